"""Dense networks in all runtimes, at sizes other than the one they were exported with."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
from runtimes import EVERYTHING, verify_everywhere
from small import Residual, images, seeded
from torch import nn

import densify
from densify.errors import ConversionError, UsageError
from densify.onnx import export as onnx_export
from densify.onnx import file as onnx_file
from densify.onnx.file import load_onnx
from densify.samples import Sample
from densify.verification import verify_onnx

SIZES = ((17, 22), (24, 19), (33, 30), (20, 21))


def ceil() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 4, 3, 1, 1), nn.MaxPool2d(3, 2, ceil_mode=True), nn.ReLU(), nn.Conv2d(4, 4, 3, 1, 1),
        nn.AvgPool2d(3, 2, 1, ceil_mode=True, count_include_pad=False), nn.Conv2d(4, 2, 1),
    )  # fmt: skip


CASES: dict[str, tuple[Callable[[], nn.Module], dict[str, Any]]] = {
    "head": (Residual, {"start": "main"}),
    "stem too": (Residual, {"output_stride": 1}),
    "kept": (Residual, {"layers": ["main", "shortcut"]}),
    "fragments": (Residual, {"start": "main", "form": "fragments"}),
    "same": (Residual, {"start": "main", "padding": "same"}),
    "valid": (Residual, {"start": "main", "padding": "valid", "head": "features"}),
    "average": (Residual, {"start": "pool", "head": "average"}),
    "cam": (Residual, {"start": "pool", "head": "cam"}),
    "ceil": (ceil, {"output_stride": 1}),
    "ceil kept": (ceil, {"layers": ["1"]}),
    "ceil valid": (ceil, {"output_stride": 1, "padding": "valid"}),
    "ceil same": (ceil, {"output_stride": 1, "padding": "same"}),
    "ceil fragments": (ceil, {"output_stride": 1, "form": "fragments"}),
}


@pytest.mark.parametrize("name", CASES)
def test_every_form_runs_at_every_size(name: str, tmp_path: Path) -> None:
    factory, choice = CASES[name]
    model = seeded(factory()).float()
    dense = densify.convert(model, (1, 3, 17, 22), **choice)
    path = tmp_path / "dense.onnx"
    made = densify.export(dense, path)
    assert made.fixed == {}
    report = verify_everywhere(path, dense, [Sample(str(size), images(*size).float()) for size in SIZES])
    assert report, report.failed
    assert {check.runtime for check in report.checks} == EVERYTHING


def test_the_file_carries_the_recipe_and_the_state_dicts_names(tmp_path: Path) -> None:
    dense = densify.convert(seeded(Residual()).float(), (1, 3, 17, 22), start="main")
    densify.export(dense, tmp_path / "dense.onnx", opset=21)
    proto = onnx.load(tmp_path / "dense.onnx")
    assert {entry.version for entry in proto.opset_import if entry.domain == ""} == {21}
    recipe = json.loads({entry.key: entry.value for entry in proto.metadata_props}["densify"])
    assert recipe["lattices"] == {"output": [[4, 0], [4, 0]]}
    assert recipe["positions"]["output"][0][0] == 2
    names = {tensor.name for tensor in proto.graph.initializer}
    assert names == {key for key in dense.state_dict() if not key.endswith("num_batches_tracked")}
    assert [value.name for value in (*proto.graph.input, *proto.graph.output)] == ["input", "output"]
    back = densify.load(tmp_path / "dense.onnx", model=Residual())
    assert torch.equal(back(images(17, 22).float()), dense(images(17, 22).float()))


def test_a_file_with_other_numbers_fails(tmp_path: Path) -> None:
    dense = densify.convert(seeded(Residual()).float(), (1, 3, 17, 22), start="main")
    densify.export(dense, tmp_path / "dense.onnx")
    with torch.no_grad():
        dense.get_parameter("last.weight")[0, 0, 1, 1] += 0.01
    report = verify_everywhere(tmp_path / "dense.onnx", dense, [Sample("x", images(17, 22).float())])
    assert {check.runtime for check in report.failed} == EVERYTHING


def test_what_cannot_be_exported_leaves_nothing(tmp_path: Path) -> None:
    dense = densify.convert(seeded(Residual()).float(), (1, 3, 17, 22), start="main")
    path = tmp_path / "dense.onnx"
    with pytest.raises(UsageError, match="opset"):
        densify.export(dense, path, opset=13)
    with pytest.raises(UsageError, match="needs an example"):
        densify.export(Residual(), path)
    frozen = nn.Sequential(nn.Conv2d(3, 4, 3, 2), nn.AdaptiveMaxPool2d(3), nn.Conv2d(4, 2, 1))
    with pytest.raises(ConversionError, match="adaptive max pooling"):
        densify.export(densify.convert(frozen, (1, 3, 17, 22), start="0"), path)
    assert not list(tmp_path.iterdir())


@pytest.fixture
def in_two_files(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if these small weights were past 2 GiB."""
    monkeypatch.setattr(onnx_file, "ONE_FILE_LIMIT", 100)


@pytest.mark.usefixtures("in_two_files")
def test_large_weights_lie_beside_the_file(tmp_path: Path) -> None:
    dense = densify.convert(seeded(Residual()).float(), (1, 3, 17, 22), start="main")
    path, moved = tmp_path / "dense.onnx", tmp_path / "elsewhere"
    made = densify.export(dense, path)
    assert made.files == (path, tmp_path / "dense.onnx.data")
    assert set(tmp_path.iterdir()) == set(made.files)
    places = [entry.value for tensor in load_onnx(path).graph.initializer for entry in tensor.external_data]
    assert {place for place in places if not place.isdecimal()} == {"dense.onnx.data"}
    moved.mkdir()
    for file in made.files:
        file.rename(moved / file.name)
    assert verify_onnx(moved / "dense.onnx", dense, [Sample("x", images(17, 22).float())])
    back = densify.load(moved / "dense.onnx", model=Residual())
    assert all(torch.equal(back.state_dict()[name], tensor) for name, tensor in dense.state_dict().items())


@pytest.mark.usefixtures("in_two_files")
def test_an_old_pair_stays_until_the_new_one_is_complete(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dense = densify.convert(seeded(Residual()).float(), (1, 3, 17, 22), start="main")
    files = densify.export(dense, tmp_path / "dense.onnx").files
    before = [file.read_bytes() for file in files]
    with torch.no_grad():
        dense.get_parameter("last.weight").mul_(2)
    with pytest.raises(UsageError, match="exists already"):
        densify.export(dense, tmp_path / "dense.onnx")

    def interrupted(*_: object) -> None:
        assert len(list(tmp_path.glob(".*/dense.onnx*"))) == 2  # both are written, and neither is in its place
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(onnx_export, "_check", interrupted)
        with pytest.raises(KeyboardInterrupt):
            densify.export(dense, tmp_path / "dense.onnx", overwrite=True)
    assert [file.read_bytes() for file in files] == before
    assert set(tmp_path.iterdir()) == set(files)
    densify.export(dense, tmp_path / "dense.onnx", overwrite=True)
    assert files[1].read_bytes() != before[1]
    assert set(tmp_path.iterdir()) == set(files)
