"""`--json`: one document on stdout, alone, and what the shipped schema says of it, whatever happens.

`Outcome.document` holds every document of every test against the schema; here are those that no other test makes.
"""

from __future__ import annotations

import copy
import json
import re
import runpy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cli import DIGITS, SCENE, WEIGHTS, densify, schema, validate
from jsonschema import Draft202012Validator, ValidationError
from laws.onnx import graph
from test_cli_errors import NAMES
from test_layerwise import KERNELS, NODES

from densify.cli import checking, running
from densify.onnx.file import save_onnx

PAGE = Path(__file__).resolve().parent.parent / "docs" / "json.md"
COMMANDS = ("inspect", "plan", "choices", "convert", "inverse", "verify", "compare", "report", "error")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dense network in torch, and an ONNX file of no torch code with its dense form."""
    made = tmp_path_factory.mktemp("json")
    source = ("convert", DIGITS, "--weights", WEIGHTS, "--start", "pool3")
    assert densify(*source, "-o", made / "dense.pth", "-q").status == 0
    save_onnx(graph(NODES, KERNELS, ("N", 3, "H", "W")).graph, made / "net.onnx")
    size = ("--input-size", "3,33,40", "--output-stride", 1)
    assert densify("convert", made / "net.onnx", *size, "-o", made / "graph.onnx", "-q").status == 0
    np.save(made / "image.npy", np.random.default_rng(0).random((3, 35, 41), np.float32))
    return made


def commands(folder: Path, out: Path) -> Iterator[tuple[str, tuple[object, ...]]]:
    """Every command in its ways, of torch networks and of graphs: the definition of its document, and its words."""
    net, size = folder / "net.onnx", ("--input-size", "3,33,40")
    weights, trust = ("--weights", WEIGHTS), "--trust-code"
    for model, more, layer in ((DIGITS, (), "pool2"), (net, size, "b")):
        yield "inspect", ("inspect", model, *more)
        yield "inspect", ("inspect", model, *more, "-v")
        yield "choices", ("plan", model, *more)
        yield "plan", ("plan", model, *more, "--layer", layer)
        yield "plan", ("plan", model, *more, "--layer", layer, "--measure")
    yield "plan", ("convert", DIGITS, "--layer", "pool2", "--dry-run")
    yield "choices", ("plan", "torchvision:fcn_resnet50", "--input-size", "3,64,64")
    yield "plan", ("plan", "models/fcn.py:fcn16s", "--output-stride", 16, "--merge", "average")
    for name, model, more in (("a.pth", DIGITS, weights), ("b.onnx", net, size)):
        yield "convert", ("convert", model, *more, "--output-stride", 1, "-o", out / name)
        yield "convert", ("convert", model, *more, "--output-stride", 1, "--dry-run")
        yield "convert", ("convert", model, *more, "--output-stride", 1, "--dry-run", "--rtol", 0)
    own: tuple[str, ...]
    for name, own, back in (("dense.pth", (trust,), "a-back.pth"), ("graph.onnx", (), "b-back.onnx")):
        yield "inverse", ("inverse", folder / name, *own, "-o", out / back)
        yield "inverse", ("inverse", folder / name, *own, "--dry-run")
        yield "verify", ("verify", folder / name, *own)
        yield "verify", ("verify", folder / name, *own, "--rtol", 0)
        for which in (("--sum", "--locate"), ("--argmax",)):
            to = out / f"{name}{which[0]}.png"
            yield "compare", ("compare", folder / name, SCENE, *own, *which, "-o", to)
        yield "report", ("report", folder / name, *own, "--sample", folder / "image.npy", "-o", out / f"{name}.html")


def test_every_command_prints_what_the_schema_says(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(Path(DIGITS).parent.parent)
    monkeypatch.setattr("densify.timing._ENOUGH", 0)
    seen = set()
    for name, words in commands(folder, tmp_path):
        made = densify(*words, "--json", "-q")
        assert made.status == (1 if "--rtol" in words else 0), made.stderr
        assert made.stderr == "" or made.status == 1, words
        document = made.document
        assert ("choices" if "choices" in document else document["command"]) == name, words
        assert document.get("passed", True) == (made.status == 0)
        for path in document.get("written", ()):
            assert document["command"] in ("compare", "report") or Path(path).is_file()
        seen.add(name)
    assert {*seen, "error"} == set(COMMANDS)


FAILURES: dict[str, tuple[tuple[object, ...], str, int]] = {
    "no such option": (("plan", DIGITS, "--strat", "pool2"), "usage", 2),
    "no model": (("plan",), "usage", 2),
    "a value of no kind": (("plan", DIGITS, "--padding", "most"), "usage", 2),
    "no such layer": (("plan", DIGITS, "--start", "pol2"), "usage", 2),
    "no such file": (("verify", "missing.pth"), "usage", 2),
    "no checkpoint of densify": (("inverse", WEIGHTS, "--dry-run"), "checkpoint", 3),
    "an op without meaning": (("plan", "NETS:Unsupported", "--output-stride", 1), "refused", 3),
    "a factory that fails": (("plan", "NETS:broken"), "conversion", 3),
    "code that nobody trusts": (("verify", "DENSE"), "unsafe", 4),
    "Ctrl-C": (("plan", "NETS:typed"), "interrupted", 130),
}


@pytest.mark.parametrize("name", FAILURES)
def test_a_failure_is_a_document_too(name: str, folder: Path, tmp_path: Path) -> None:
    words, kind, status = FAILURES[name]
    (tmp_path / "nets.py").write_text(f"{NAMES}\ndef typed():\n    raise KeyboardInterrupt\n")
    places = {"NETS": f"{tmp_path / 'nets.py'}", "DENSE": str(folder / "dense.pth")}
    made = densify(*(str(word).replace(key, place) for word in words for key, place in [_place(str(word), places)]),
                   "--json")  # fmt: skip
    assert made.status == status, made.stderr
    document = made.document
    assert document["command"] == words[0]
    error = document["error"]
    assert (error["kind"], error["exit_status"]) == (kind, status)
    assert error["message"].splitlines()[0] in made.stderr
    assert bool(error["refusals"]) == (kind == "refused")
    assert all(one["layer"] and one["reason"] and one["remedy"] for one in error["refusals"])


def _place(word: str, places: dict[str, str]) -> tuple[str, str]:
    return next(((key, place) for key, place in places.items() if key in word), ("\0", ""))


def test_a_command_that_does_not_exist() -> None:
    for words in (("planet", DIGITS, "--json"), ("--planet", "plan", "--json")):
        made = densify(*words)
        assert made.status == 2
        assert made.document["command"] is None
        assert made.document["error"]["kind"] == "usage"
    assert densify("planet", DIGITS).stdout == ""


@pytest.mark.parametrize(("error", "kind"), [(ZeroDivisionError("x"), "bug"), (MemoryError(), "memory")])
def test_a_bug_is_a_document_too(error: Exception, kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr(checking, "write_state", fail)
    made = densify("convert", DIGITS, "--weights", WEIGHTS, "--start", "pool3", "-o", tmp_path / "d.pth", "--json")
    assert (made.status, made.document["error"]["kind"]) == (3, kind)
    assert list(tmp_path.iterdir()) == []


# ---- the schema itself ---------------------------------------------------------------------------


def objects(value: Any) -> Iterator[dict[str, Any]]:
    """All parts of the schema that say which keys there are."""
    if isinstance(value, dict):
        if isinstance(value.get("properties"), dict) and "type" in value:
            yield value
        for one in value.values():
            yield from objects(one)
    elif isinstance(value, list):
        for one in value:
            yield from objects(one)


def test_the_schema_is_one_and_leaves_nothing_open() -> None:
    whole = schema()
    Draft202012Validator.check_schema(whole)
    assert [one["$ref"].rpartition("/")[2] for one in whole["oneOf"]] == list(COMMANDS)
    assert '"$ref": "#/$defs/' in json.dumps(whole)
    bases = ("verification", "planned", "compared")  # closed where they are used
    for name, one in whole["$defs"].items():
        for part in objects(one):
            closed = part.get("additionalProperties") is False or part.get("unevaluatedProperties") is False
            assert closed or name in bases, name
            assert set(part.get("required", ())) <= set(part["properties"]), name
            assert all("description" in value or "$ref" in value or "anyOf" in value or "type" in value
                       for value in part["properties"].values()), name  # fmt: skip


def paths(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Where there are objects in a document."""
    if isinstance(value, dict):
        yield path
        for key, one in value.items():
            yield from paths(one, (*path, key))
    elif isinstance(value, list):
        for index, one in enumerate(value):
            yield from paths(one, (*path, index))


def at(document: Any, path: tuple[Any, ...]) -> Any:
    for key in path:
        document = document[key]
    return document


def test_a_key_more_or_less_is_seen(folder: Path) -> None:
    """The schema can fail: in every object of the documents, one unknown key is enough, and so is one that lacks."""
    open_keys = {("lattices",), ("merged",), ("positions",), ("original", "outputs")}  # by names of outputs
    optional = {"kernel", "stride", "dilation", "padding", "samples", "measured"}
    for words in (("convert", DIGITS, "--weights", WEIGHTS, "--start", "pool3", "--dry-run"), ("plan", DIGITS),
                  ("inspect", DIGITS), ("plan",),
                  ("inverse", folder / "dense.pth", "--trust-code", "--dry-run")):  # fmt: skip
        document = densify(*words, "--json").document
        for path in paths(document):
            if path in open_keys:
                continue
            more = copy.deepcopy(document)
            at(more, path)["unheard"] = 1
            with pytest.raises(ValidationError):
                validate(more)
            for key in at(document, path).keys() - optional - {"error", "choices", "command"}:
                less = copy.deepcopy(document)
                del at(less, path)[key]
                with pytest.raises(ValidationError):
                    validate(less)


def test_results_are_strict_json(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ValueError, match="JSON"):
        running.write_json({"a": float("nan")})
    assert capsys.readouterr().out == ""


def test_the_page_has_every_definition(capsys: pytest.CaptureFixture[str]) -> None:
    """docs/json.md is made of the schema: `python docs/json_page.py` makes it anew."""
    written = PAGE.read_text("utf-8")
    assert runpy.run_path(str(PAGE.with_name("json_page.py")))["page"](written) == written
    named = set(re.findall(r"^### (\w+)$", written, re.MULTILINE))
    assert named == schema()["$defs"].keys()
    assert set(re.findall(r"\(#(\w+)\)", written)) <= named
    (code,) = re.findall(r"```python\n(.*?)```", written, re.DOTALL)
    exec(compile(code, PAGE.name, "exec"), {})
    assert capsys.readouterr().out.strip() == code.rpartition("# ")[2].strip()
