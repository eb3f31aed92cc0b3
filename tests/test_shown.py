"""Results in Python are the documents that the commands print, and show themselves in notebooks as commands do."""

from __future__ import annotations

import json
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from cli import DIGITS, MODELS, WEIGHTS
from cli import densify as command
from laws.onnx import graph
from rich.console import Console
from small import Residual, images, seeded
from test_layerwise import KERNELS, NODES
from torch import nn

import densify
from densify.onnx.file import save_onnx
from densify.reference import resolve
from densify.samples import read_samples
from densify.shown import Shown
from densify.weights import read_weights

OWN = ("command", "model", "dry_run", "written", "compared")


def own(document: dict[str, Any]) -> dict[str, Any]:
    """A command's document without what only commands know."""
    return {name: value for name, value in document.items() if name not in OWN}


def digits() -> nn.Module:
    return resolve(DIGITS).build_with(read_weights(Path(WEIGHTS))).eval()


def written(value: Shown, width: int = 100) -> str:
    console = Console(file=StringIO(), width=width)
    console.print(value)
    assert isinstance(console.file, StringIO)
    return console.file.getvalue()


def test_torch_documents_are_those_of_the_commands(tmp_path: Path) -> None:
    model, shape = digits(), (1, 3, 32, 32)
    plan, dense = densify.plan(model, shape, start="pool2"), densify.convert(model, shape, start="pool2")
    assert densify.inspect(model, shape).to_dict() == own(command("inspect", DIGITS, "--json").document)
    every = own(command("inspect", DIGITS, "--json", "-v").document)
    assert densify.inspect(model, shape).to_dict(every=True) == every
    assert plan.to_dict() == own(command("plan", DIGITS, "--start", "pool2", "--json").document)
    file, image = tmp_path / "dense.safetensors", tmp_path / "image.npy"
    densify.save(dense, file)
    np.save(image, images(40, 33, batch=1).float().numpy())
    made = command(
        "convert", DIGITS, "--weights", WEIGHTS, "--start", "pool2", "--sample", image, "--dry-run", "--json"
    )
    samples = read_samples([image], (3, 32, 32), None, None, torch.float32)
    told = dense.to_dict() | {"plan": plan.to_dict()} | densify.verify(None, dense, samples).to_dict()
    assert told == own(made.document)


def test_graph_documents_are_those_of_the_commands(tmp_path: Path) -> None:
    path = tmp_path / "net.onnx"
    save_onnx(graph(NODES, KERNELS, ("N", 3, "H", "W")).graph, path)
    size = ("--input-size", "3,33,40", "--json")
    assert densify.inspect(path, (1, 3, 33, 40)).to_dict() == own(command("inspect", path, *size).document)
    plan = densify.plan(path, (1, 3, 33, 40), output_stride=1)
    assert plan.to_dict() == own(command("plan", path, "--output-stride", 1, *size).document)
    dense = densify.convert(path, (1, 3, 33, 40), output_stride=1)
    made = own(command("convert", path, "--output-stride", 1, "--dry-run", *size).document)
    assert dense.to_dict() == {name: made[name] for name in dense.to_dict()}
    file = densify.OnnxModel.load(path).to_dict()
    assert file == {"name": str(path), "dense": False, "opset": file["opset"], "image": [None, 3, None, None],
                    "parameters": sum(kernel.size for kernel in KERNELS.values())}  # fmt: skip


def results() -> dict[str, Shown]:
    """One of each kind, a failed report among them."""
    model, x = seeded(Residual()), images(33, 47)
    dense = densify.convert(model, x, start="main")
    source = graph(NODES, KERNELS, ("N", 3, "H", "W"))
    good = densify.verify(model, dense, x)
    with torch.no_grad():
        dense.get_parameter("last.bias").fill_(torch.nan)
    return {
        "inspect": densify.inspect(model, x),
        "choices": densify.choices(model, x),
        "plan": densify.plan(model, x, start="main"),
        "dense": dense,
        "report": good,
        "failed": densify.verify(model, dense, x),
        "graph": source,
        "dense graph": densify.convert(source, (1, 3, 33, 40), output_stride=1),
    }


WORDS = {
    "inspect": "strided layers (*)",
    "choices": "what --start or --output-stride would give",
    "plan": "stride removed from main",
    "dense": "4 times as dense along each axis",
    "report": "PASSED",
    "failed": "first layer that diverges: last (Conv2d, small.py:",
    "graph": "a graph of opset",
    "dense graph": "4 times as dense along each axis",
}


def test_results_show_themselves() -> None:
    shown = results()
    assert shown.keys() == WORDS.keys()
    for name, value in shown.items():
        assert WORDS[name] in written(value).replace("\n", " ").replace("  ", " "), name
        assert max(map(len, written(value, 60).splitlines())) <= 60, name
        page = value._repr_html_()
        assert page.startswith("<pre")
        assert WORDS[name].split()[0] in page
        document = value.to_dict()
        assert json.loads(json.dumps(document, allow_nan=False)) == document, name


def test_names_in_html_are_escaped() -> None:
    evil = "<script>alert(1)</script>"
    dense = densify.convert(seeded(Residual()), images(33, 47), start="main")
    dense.__dict__["origin"] = type(dense.origin)(evil)
    page = dense._repr_html_()
    assert "<script>" not in page
    assert "&lt;script&gt;" in page


def test_reports_and_choices_are_printed_as_the_commands_show_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "100")
    shown = results()
    for name in ("report", "failed", "choices"):
        wanted = written(shown[name]).split()  # rich breaks the lines that print leaves whole
        with monkeypatch.context() as patch:
            patch.setenv("FORCE_COLOR", "1")
            assert str(shown[name]).split() == wanted, name
        assert len(repr(shown[name])) < 100, name
    assert str(shown["report"]).endswith(f"PASSED: {len(shown['report'].checks)} checks")  # type: ignore[attr-defined]
    assert repr(shown["failed"]).startswith("Report(passed=False, ")
    assert "plan.layers=('main'" in repr(shown["dense"])


def test_choices_are_a_sequence_with_the_document_of_the_command() -> None:
    found = densify.choices(digits(), (1, 3, 32, 32))
    assert [offer.starts for offer in found] == [("pool3",), ("pool2",), ("pool1",)]
    assert (len(found), found[-1], [*found[1:]]) == (3, found.found[2], [*found][1:])
    assert repr(found) == "Offers(start='pool3', start='pool2', start='pool1')"
    assert found.to_dict() == own(command("plan", DIGITS, "--json").document)


@pytest.mark.parametrize("name", ["inspect", "plan"])
def test_what_is_shown_in_python_is_what_the_command_shows(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(MODELS.parent)
    model = digits()
    options = ("--start", "pool2") if name == "plan" else ()
    value: Any = (
        densify.plan(model, (1, 3, 32, 32), start="pool2") if options else densify.inspect(model, (1, 3, 32, 32))
    )
    lines = command(name, DIGITS, *options, columns=100).stdout.splitlines()
    assert [line.rstrip() for line in written(value).splitlines()][1:] == lines[1:]
