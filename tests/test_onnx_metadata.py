"""The metadata of ONNX files place every prediction: found again by what changes when a line of the image does."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from cli import DIGITS, WEIGHTS
from cli import densify as command
from small import Residual, fixed_window, seeded
from torch import nn

import densify
from densify.onnx.file import OnnxSession

DOCS = (Path(__file__).parent.parent / "docs" / "onnx-metadata.md").read_text()


def documented(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """The function in the docs, as it reads folder/dense.onnx."""
    (code,) = re.findall(r"```python\n(.*?)```", DOCS, re.DOTALL)
    monkeypatch.chdir(folder)
    made: dict[str, Any] = {}
    exec(compile(code.partition("image =")[0], "docs/onnx-metadata.md", "exec"), made)
    centres: Callable[..., Any] = made["centres"]
    return centres


def notes(path: Path) -> dict[str, str]:
    return {entry.key: entry.value for entry in onnx.load(path, load_external_data=False).metadata_props}


def growing(model: nn.Module) -> nn.Module:
    """With positive weights every output grows with every pixel that it sees, through maxima too."""
    for parameter in model.parameters():
        nn.init.uniform_(parameter, 0.5, 1.0)
    return model.eval()


def seen(path: Path, size: tuple[int, ...], axis: int) -> tuple[np.ndarray, tuple[int, ...]]:
    """Which samples along an output's axis see which lines of the image: [lines, samples]; and the output's shape."""
    session = OnnxSession(path, optimised=True)
    plain = np.zeros((1, 3, *size), np.float32)
    lines = np.repeat(plain, size[axis], axis=0)
    for line in range(size[axis]):
        lines[line].swapaxes(0, 1 + axis)[line] = 1.0
    without, made = session(plain)[0], session(lines)[0]
    others = tuple(a for a in range(1, made.ndim) if a != 2 + axis)
    return (made != without).any(axis=others), made.shape


def misplaced(path: Path, size: tuple[int, ...], centres: Callable[..., Any]) -> list[Any]:
    """Samples whose receptive field lies inside the image, and is not where the metadata say."""
    (stated,) = json.loads(notes(path)["densify.outputs"]).values()
    wrong = []
    for axis, entry in enumerate(stated["axes"]):
        changes, shape = seen(path, size, axis)
        reach = (entry["receptive_field"] - 1) / 2
        places = centres("output", shape)[axis]
        inside = [i for i, at in enumerate(places) if at - reach >= 0 and at + reach <= size[axis] - 1]
        assert len(inside) > 1
        for i in inside:
            lines = np.flatnonzero(changes[:, i])
            if (lines[0], lines[-1]) != (places[i] - reach, places[i] + reach):
                wrong.append((axis, i, lines[0], lines[-1], places[i], reach))
    return wrong


def plain() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 2, (3, 4), padding=(1, 0)), nn.MaxPool2d((2, 3), (2, 1)), nn.Conv2d(2, 2, 3, 2, 2, dilation=2),
        nn.AvgPool2d((3, 2), 2, (1, 0), ceil_mode=True), nn.Conv2d(2, 2, (1, 2)),
    )  # fmt: skip


def line() -> nn.Module:
    return nn.Sequential(nn.Conv1d(3, 2, 5, 2, 1), nn.MaxPool1d(3, 2, 1), nn.Conv1d(2, 1, 3))


NETS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...], dict[str, Any]]] = {
    "full": (plain, (41, 53), {"output_stride": 1}),
    "kept": (plain, (41, 53), {"layers": ["1", "3"]}),
    "valid": (plain, (41, 53), {"output_stride": 1, "padding": "valid"}),
    "same": (plain, (41, 53), {"output_stride": 2, "padding": "same"}),
    "fragments": (plain, (41, 53), {"output_stride": 2, "form": "fragments"}),
    "one axis": (line, (61,), {"output_stride": 1}),
    "window": (fixed_window, (33, 38), {"output_stride": 2}),
}


@pytest.mark.parametrize("name", NETS)
def test_every_sample_looks_where_the_metadata_say(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    factory, size, choice = NETS[name]
    shape = (1, 3, 16, 16) if name == "window" else (1, 3, *size)
    dense = densify.convert(growing(factory()), shape, **choice)
    path, original = tmp_path / "dense.onnx", tmp_path / "original" / "dense.onnx"
    densify.export(dense, path)
    centres = documented(tmp_path, monkeypatch)
    assert misplaced(path, size, centres) == []
    assert misplaced(path, size, lambda *of: [at + 0.5 for at in centres(*of)])  # the oracle can fail
    if name == "window":  # the original's class takes one size alone, where it has no map
        return
    original.parent.mkdir()
    densify.export(densify.inverse(dense), original, shape, recipe=dense.recipe.of_kind("dpoa"))
    coarse = documented(original.parent, monkeypatch)
    assert misplaced(original, size, coarse) == []
    for axis, entry in enumerate(json.loads(notes(path)["densify.outputs"])["output"]["axes"]):
        fine = centres("output", (1, 1, 999, 999))[axis][entry["offset"] :: entry["est"]]
        assert np.array_equal(fine[:50], coarse("output", (1, 1, 50, 50))[axis])


def test_the_code_of_the_docs_needs_no_densify() -> None:
    """That it runs is a test of all pages, tests/test_docs.py."""
    (code,) = re.findall(r"```python\n(.*?)```", DOCS, re.DOTALL)
    imported = {name.split(".")[0] for name in re.findall(r"^(?:import|from) (\S+)", code, re.MULTILINE)}
    assert imported == {"json", "numpy", "onnxruntime"}


def test_what_the_entries_hold(tmp_path: Path) -> None:
    dense = densify.convert(seeded(Residual()).float(), (1, 3, 17, 22), start="pool", head="average")
    densify.export(dense, tmp_path / "dense.onnx")
    assert json.loads(notes(tmp_path / "dense.onnx")["densify.outputs"]) == {"output": {"merged": "", "axes": []}}
    densify.export(dense.with_head("dense"), tmp_path / "map.onnx")
    (rows, columns) = json.loads(notes(tmp_path / "map.onnx")["densify.outputs"])["output"]["axes"]
    assert rows == {
        "axis": 2, "name": "height", "first": None, "step": 4, "receptive_field": None, "est": 2, "offset": 0,
    }  # fmt: skip
    assert columns == {**rows, "axis": 3, "name": "width"}
    for head, stated in (("dense", {"output": {"merged": "", "axes": []}}), ("features", {}), ("average", {})):
        recipe = dense.with_head(head).recipe.of_kind("dpoa")
        path = tmp_path / f"original-{head}.onnx"
        densify.export(densify.inverse(dense), path, (1, 3, 17, 22), recipe=recipe)
        assert json.loads(notes(path)["densify.outputs"]) == stated
    densify.export(Residual(), tmp_path / "plain.onnx", (1, 3, 17, 22))
    assert set(notes(tmp_path / "plain.onnx")) == {"densify.state"}


def test_merges_are_marked(tmp_path: Path) -> None:
    net = nn.Sequential(nn.Conv2d(3, 2, 3, 2, 1), nn.MaxPool2d(2), nn.ConvTranspose2d(2, 2, 4, 4), nn.Conv2d(2, 1, 3))
    dense = densify.convert(net, (1, 3, 24, 28), output_stride=1, merge="average")
    densify.export(dense, tmp_path / "dense.onnx")
    stated = json.loads(notes(tmp_path / "dense.onnx")["densify.outputs"])["output"]
    assert (stated["merged"], [axis["est"] for axis in stated["axes"]]) == ("average", [1, 1])


def test_preprocessing_is_told_where_it_is_known(tmp_path: Path) -> None:
    from densify.onnx.metadata import placement

    assert "densify.preprocessing" not in placement({}, {}, {})
    assert json.loads(placement({}, {}, {}, std=(0.5,))["densify.preprocessing"]) == {"std": [0.5]}
    path = tmp_path / "dense.onnx"
    made = command(
        "convert", DIGITS, "--weights", WEIGHTS, "--start", "pool3", "--mean", "0.4,0.5,0.6", "--std", "0.2", "-o", path
    )
    assert made.status == 0, made.stderr
    assert json.loads(notes(path)["densify.preprocessing"]) == {"mean": [0.4, 0.5, 0.6], "std": [0.2]}
