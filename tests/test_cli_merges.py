"""The commands on a segmentation network: the refusal, the plan, a merged network there and back, and its ONNX file."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from cli import MODELS, SCENE, densify
from safetensors.torch import load_file

NET = f"{MODELS / 'digit_segmentation.py'}:digit_segmentation"
WEIGHTS = MODELS / "digit_segmentation.safetensors"


def test_without_a_merge_the_choice_is_explained() -> None:
    made = densify("plan", NET, "--start", "pool3")
    assert made.status == 3
    for words in ("up2", "so do up8", "it reads score4", 'Use merge="average"'):
        assert words in made.stderr


def test_without_a_choice_every_refusal_is_listed_and_what_helps() -> None:
    made = densify("plan", NET, columns=200)
    assert made.status == 0
    assert made.stdout.count("refused: it meets the denser map as an upsampling (up2)") == 4
    assert made.stdout.count('Use merge="average"') == 1
    assert made.stderr.splitlines()[-1].endswith("--merge average")
    document = densify("plan", NET, "--merge", "average", "--json").document
    assert all(row["refused"] is None and row["merges"] for row in document["choices"])


def test_the_plan_names_the_merges() -> None:
    made = densify("plan", NET, "--start", "pool3", "--merge", "average")
    assert made.status == 0
    assert "merge: up2 averages 2x2 shifts of a map with a sample every 4 pixels (eST 4 -> 2)" in made.stdout
    assert "output: the average of the original over its shifts" in made.stdout
    assert "every sample of the original lies in the dense output" not in made.stdout
    document = densify("plan", NET, "--start", "pool3", "--merge", "average", "--json").document
    assert document["merge"] == "average"
    assert document["merges"][1] == {
        "name": "up8", "op": "ConvTranspose2d", "how": "average", "from": [2, 2], "to": [1, 1], "step": [4, 4],
    }  # fmt: skip
    (output,) = document["outputs"]
    assert output["merged"] == "average"
    assert output["lattice"] == [{"stride": 1, "offset": 0}] * 2


def test_a_merged_network_there_and_back(tmp_path: Path) -> None:
    files = [tmp_path / "dense.safetensors", tmp_path / "dense.onnx"]
    given = ("--weights", WEIGHTS, "--start", "pool3", "--merge", "average", "--sample", SCENE)
    made = densify("convert", NET, *given, "-o", files[0], "-o", files[1], "--json")
    assert made.status == 0, made.stderr
    assert made.document["merged"] == {"output": "average"}
    laws = {(check["law"], check["output"]) for check in made.document["checks"]}
    assert {("grid", "score4"), ("grid", "score3"), ("merges", "output"), ("onnx", "output")} <= laws
    assert ("grid", "output") not in laws
    shown = densify("verify", files[0], "--trust-code", "--sample", SCENE)
    assert shown.status == 0, shown.stderr
    assert "merges: checks that the output is what brute force" in shown.stdout
    back = tmp_path / "back.safetensors"
    assert densify("inverse", files[0], "--trust-code", "--sample", SCENE, "-o", back).status == 0
    original, returned = load_file(WEIGHTS), load_file(back)
    assert original.keys() == returned.keys()
    assert all(np.array_equal(original[key], returned[key]) for key in original)


MULTIPLES = """
import torch
from torch import nn

INPUT_SIZE = (3, 32, 32)


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 4, 3, 2, 1), nn.Conv2d(4, 4, 3, 2, 1)
        self.up, self.last = nn.Upsample(scale_factor=2, mode="bilinear"), nn.Conv2d(8, 3, 1)

    def forward(self, x):
        level = self.first(x).relu()
        return self.last(torch.cat([level, self.up(self.second(level))], 1))


def net():
    return Net()
"""


def test_a_network_that_takes_multiples_alone_is_verified_on_such(tmp_path: Path) -> None:
    """Random inputs are of sizes that the network takes, for the ONNX file too."""
    (tmp_path / "multiples.py").write_text(MULTIPLES)
    made = densify(
        "convert", f"{tmp_path / 'multiples.py'}:net", "--init", "random", "--output-stride", 1, "--merge", "average",
        "-o", tmp_path / "net.onnx", "--json",
    )  # fmt: skip
    assert made.status == 0, made.stderr
    inputs = {check["input"] for check in made.document["checks"] if check["law"] == "onnx"}
    assert len(inputs) == 4
    assert "random 32x32" in inputs
