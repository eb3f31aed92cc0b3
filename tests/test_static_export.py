"""ONNX files of one size: every shape known, nothing left to compute but what depends on the input or the weights."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from cli import DIGITS, WEIGHTS
from cli import densify as command
from small import Residual, images, seeded
from test_dense_export import CASES
from torch import nn

import densify
from densify.errors import ConversionError
from densify.onnx import export as onnx_export
from densify.onnx.file import load_onnx, read_onnx_weights, run_onnx
from densify.samples import Sample
from densify.verification import verify_onnx

SHAPE = (2, 3, 17, 22)


def unknown_shapes(path: Path) -> list[str]:
    """Values whose shape strict inference does not find in full; the file's own statements do not count."""
    proto = load_onnx(path)
    del proto.graph.value_info[:]
    inferred = onnx.shape_inference.infer_shapes(proto, check_type=True, strict_mode=True, data_prop=True)
    values = {v.name: v.type.tensor_type.shape for v in (*inferred.graph.value_info, *inferred.graph.output)}
    known = {name for name, shape in values.items() if all(dim.HasField("dim_value") for dim in shape.dim)}
    return [name for node in proto.graph.node for name in node.output if name not in known]


def needless(path: Path) -> list[str]:
    """Ops that depend on neither the input nor the weights, and those that ask for a shape."""
    graph = load_onnx(path).graph
    known = {"input", *(tensor.name for tensor in graph.initializer)}
    found = []
    for node in graph.node:
        if known & set(node.input) and node.op_type != "Shape":
            known |= set(node.output)
        elif node.op_type != "Constant":
            found.append(node.op_type)
    return found


def transposed() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 4, 3, 2, 1), nn.MaxPool2d(2, ceil_mode=True), nn.ConvTranspose2d(4, 3, 4, 2, 1),
        nn.Upsample(scale_factor=2, mode="bilinear"), nn.Conv2d(3, 2, 3),
    )  # fmt: skip


FORMS = {name: CASES[name] for name in ("kept", "fragments", "same", "ceil valid")}
FORMS["average of shifts"] = (transposed, {"output_stride": 1, "merge": "average"})
FORMS["resample"] = (transposed, {"output_stride": 1, "merge": "resample"})


@pytest.mark.parametrize("name", FORMS)
def test_every_shape_is_known_and_no_size_is_computed(name: str, tmp_path: Path) -> None:
    factory, choice = FORMS[name]
    dense = densify.convert(seeded(factory()).float(), SHAPE, **choice)
    path = tmp_path / "static.onnx"
    made = densify.export(dense, path, static=True)
    assert (made.fixed, made.dynamic) == ({"batch": 2, "height": 17, "width": 22}, {})
    assert unknown_shapes(path) == []
    assert needless(path) == []
    report = verify_onnx(path, dense, [Sample("x", images(17, 22).float())])
    assert report, report.failed
    weights, state = read_onnx_weights(path)[0], dense.state_dict()
    assert weights.keys() == state.keys()
    assert all(torch.equal(weights[name], state[name]) for name in state)


def test_a_file_for_every_size_has_neither(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The oracles can fail; and without the folding, arithmetic on sizes is left."""
    dense = densify.convert(seeded(Residual()).float(), SHAPE, start="main")
    densify.export(dense, tmp_path / "free.onnx")
    assert unknown_shapes(tmp_path / "free.onnx")
    assert needless(tmp_path / "free.onnx")
    monkeypatch.setattr(onnx_export, "fold_sizes", lambda model: None)
    densify.export(dense, tmp_path / "static.onnx", static=True)
    assert needless(tmp_path / "static.onnx")


def test_another_size_is_refused_by_the_runtime(tmp_path: Path) -> None:
    path = tmp_path / "net.onnx"
    densify.export(seeded(Residual()).float(), path, (1, 3, 17, 22), static=True)
    assert run_onnx(path, np.zeros((1, 3, 17, 22), np.float32), optimised=True)[0].shape == (1, 5)
    for size in ((2, 3, 17, 22), (1, 3, 18, 22), (1, 3, 17, 21)):
        with pytest.raises(ConversionError, match="ONNX Runtime fails on"):
            run_onnx(path, np.zeros(size, np.float32), optimised=True)


def test_what_is_made_of_weights_alone_stays(tmp_path: Path) -> None:
    """Folding it would take the weights out of the file."""

    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.randn(2, 3, 3, 3))
            self.gain = nn.Parameter(torch.tensor(2.0))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return nn.functional.conv2d(x, (self.weight * self.gain).transpose(2, 3)) + torch.arange(4.0).sum()

    net, path = Scaled(), tmp_path / "net.onnx"
    densify.export(net, path, (1, 3, 9, 8), static=True)
    assert {tensor.name for tensor in load_onnx(path).graph.initializer} == {"weight", "gain"}
    assert needless(path) == []
    assert verify_onnx(path, net, [Sample("x", images(9, 8, batch=1).float())])


def test_commands(tmp_path: Path) -> None:
    path, back = tmp_path / "dense.onnx", tmp_path / "fast.onnx"
    made = command("convert", DIGITS, "--weights", WEIGHTS, "--start", "pool3", "--static", "-o", path, "--json")
    assert made.status == 0, made.stderr
    assert {check["expected"][0] for check in made.document["checks"] if check["law"] == "onnx"} == {1}
    assert (unknown_shapes(path), "allows no other size" in made.stderr) == ([], False)
    assert command("verify", path, "--trust-code").status == 0
    fast = command("inverse", path, "--trust-code", "--static", "-o", back)
    assert fast.status == 0, fast.stderr
    assert (unknown_shapes(back), needless(back)) == ([], [])
    several = tmp_path / "several.onnx"
    densify.export(densify.load(path, trust_code=True), several, (3, 3, 40, 44), static=True)
    checked = command("verify", several, "--trust-code", "--json")
    assert checked.status == 0, checked.stderr
    inputs = {check["input"] for check in checked.document["checks"] if check["law"] == "onnx"}
    assert inputs == {"random 40x44, batch 3"}
