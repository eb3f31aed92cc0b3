"""`convert --like FILE` repeats the choices of a file that densify wrote; `--dry-run` leaves the folder as it was."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from cli import DIGITS, WEIGHTS, densify
from laws.onnx import graph
from test_layerwise import KERNELS, NODES

from densify.cli.like import recipe_in
from densify.onnx.file import save_onnx

SOURCE = ("convert", DIGITS, "--weights", WEIGHTS)
CHOICES = ("--start", "pool3", "--padding", "valid", "--head", "features", "--input-size", "3,36,39", "--mean", "0.4")


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("like")
    outputs = [part for suffix in (".safetensors", ".pth", ".onnx") for part in ("-o", folder / f"dense{suffix}")]
    made = densify(*SOURCE, *CHOICES, *outputs, "-q")
    assert made.status == 0, made.stderr
    save_onnx(graph(NODES, KERNELS, ("N", 3, "H", "W")).graph, folder / "net.onnx")
    made = densify("convert", folder / "net.onnx", "--layer", "b", "--form", "fragments", "--input-size", "3,33,39",
                   "-o", folder / "graph.onnx", "-q")  # fmt: skip
    assert made.status == 0, made.stderr
    return folder


def choices(path: Path) -> Any:
    """What is repeated: all options of the conversion, and the preprocessing."""
    recipe = recipe_in(path)
    return recipe.options, recipe.origin.mean, recipe.origin.std, recipe.lattices


@pytest.mark.parametrize("name", ["dense.safetensors", "dense.pth", "dense.onnx"])
def test_the_choices_are_repeated(written: Path, tmp_path: Path, name: str) -> None:
    out = tmp_path / "again.safetensors"
    made = densify(*SOURCE, "--like", written / name, "-o", out, "-q")
    assert made.status == 0, made.stderr
    assert choices(out) == choices(written / name)
    assert choices(out)[0].shape == (1, 3, 36, 39)
    back = tmp_path / "back.safetensors"
    assert densify("inverse", out, "--trust-code", "-o", back, "-q").status == 0
    again = densify(*SOURCE, "--like", back, "--dry-run", "--json", "-q")  # what went back knows them too
    assert again.document["chosen"] == ["pool3"]


def test_what_is_given_as_well_stands(written: Path, tmp_path: Path) -> None:
    out = tmp_path / "again.pth"
    like = ("--like", written / "dense.pth", "--padding", "full", "--input-size", "3,32,32", "--mean", "0.5")
    assert densify(*SOURCE, *like, "-o", out, "-q").status == 0
    options, mean, _, _ = choices(out)
    assert (options.padding, options.head, options.shape, mean) == ("full", "features", (1, 3, 32, 32), (0.5,))


def test_graphs_repeat_choices(written: Path, tmp_path: Path) -> None:
    out = tmp_path / "again.onnx"
    made = densify("convert", written / "net.onnx", "--like", written / "graph.onnx", "-o", out, "-q")
    assert made.status == 0, made.stderr
    assert choices(out) == choices(written / "graph.onnx")
    assert choices(out)[0].form == "fragments"


def test_choices_that_do_not_fit(written: Path, tmp_path: Path) -> None:
    target = ("-o", tmp_path / "new.onnx", "-q")
    cases = {
        (*SOURCE, "--like", written / "graph.onnx"): (2, "graph.onnx: its choices do not fit"),
        ("convert", written / "net.onnx", "--like", written / "dense.pth"): (2, "dense.pth: its choices do not fit"),
        (*SOURCE, "--like", WEIGHTS): (3, "holds no densify recipe"),
        (*SOURCE, "--like", written / "net.onnx"): (3, "holds no densify recipe"),
        (*SOURCE, "--like", tmp_path / "none.onnx"): (2, "there is no such file"),
        (*SOURCE, "--like", written / "dense.pth", "--start", "pool2"): (2, "leave --start out"),
    }
    for arguments, (status, words) in cases.items():
        made = densify(*arguments, *target)
        assert made.status == status, made.stderr
        assert words in made.stderr
        assert "Traceback" not in made.stderr
    assert list(tmp_path.iterdir()) == []
    same = densify(*SOURCE, "--like", written / "dense.pth", "-o", written / "dense.pth", "--overwrite")
    assert same.status == 2
    assert "this is what the command reads" in same.stderr


def test_a_dry_run_without_weights_is_the_plan(written: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.pth"
    other.write_bytes(b"mine")
    dry = ("convert", DIGITS, "--dry-run", "-o", tmp_path / "dense.onnx")
    made = densify(*dry, *CHOICES, "--json")
    assert made.status == 0, made.stderr
    assert made.document == densify("plan", DIGITS, *CHOICES[:-2], "--json").document
    assert "nothing was verified" in made.stderr
    assert densify(*dry, "--like", written / "dense.pth", "--json").document == made.document
    assert densify(*dry, "--start", "pool9").status == 2
    assert densify(*dry, "--like", written / "graph.onnx").status == 2
    assert densify(*dry, "--start", "pool3", "-o", other).status == 2  # it is there already
    back = densify(
        "inverse", written / "dense.pth", "--trust-code", "--dry-run", "-o", tmp_path / "back.onnx", "--json"
    )
    assert (back.status, back.document["written"], back.document["dry_run"]) == (0, [], True)
    assert f"dry run: nothing was written; without --dry-run {tmp_path / 'back.onnx'} would be" in back.stderr
    size = ("--layer", "b", "--input-size", "3,33,39")
    graphs = densify("convert", written / "net.onnx", *size, "--dry-run", "-o", tmp_path / "graph.onnx")
    assert graphs.status == 0, graphs.stderr
    assert "PASSED" in graphs.stdout
    assert "\ncost: " in graphs.stdout  # of the plan
    for target in (other, tmp_path / "missing" / "new.pth"):  # whether it could be written is told in a dry run, too
        for words in (("inverse", written / "dense.pth", "--trust-code"), (*SOURCE, "--start", "pool3")):
            assert densify(*words, "--dry-run", "-o", target).status == 2
    assert [path.name for path in tmp_path.iterdir()] == ["other.pth"]
    assert other.read_bytes() == b"mine"
