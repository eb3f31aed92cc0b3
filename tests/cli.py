"""Run the command line inside the test's process."""

from __future__ import annotations

import json
import shlex
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

from jsonschema import Draft202012Validator
from typer.testing import CliRunner

from densify.cli.app import app

MODELS = Path(__file__).resolve().parent.parent / "models"
DIGITS = f"{MODELS / 'digits.py'}:digit_net"
WEIGHTS = str(MODELS / "digits.safetensors")
SCENE = str(MODELS / "samples" / "scene1.png")


@dataclass(frozen=True)
class Outcome:
    """What a command left: its exit status and what it said where."""

    status: int
    stdout: str
    stderr: str

    @property
    def document(self) -> dict[str, Any]:
        """What --json printed; it is what the schema says."""
        found: dict[str, Any] = json.loads(self.stdout, parse_constant=not_json)
        validate(found)
        return found


def not_json(text: str) -> None:
    """NaN and Infinity are Python's, not JSON's."""
    raise AssertionError(f"{text} is no JSON")


def schema() -> dict[str, Any]:
    """The schema that densify ships."""
    found: dict[str, Any] = json.loads(files("densify").joinpath("results.schema.json").read_text("utf-8"))
    return found


@cache
def _validator(name: str) -> Draft202012Validator:
    whole = schema()
    return Draft202012Validator({"$ref": f"#/$defs/{name}", "$defs": whole["$defs"]})


def validate(document: dict[str, Any]) -> None:
    """Check a document against the schema of its command."""
    name = "error" if "error" in document else "choices" if "choices" in document else document["command"]
    _validator(name).validate(document)


def densify(*arguments: object, columns: int = 80) -> Outcome:
    """Run `densify` with these arguments; an exception that gets through is raised, so that no test overlooks it."""
    result = CliRunner().invoke(
        app, [str(argument) for argument in arguments], prog_name="densify", env={"COLUMNS": str(columns)}
    )
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return Outcome(result.exit_code, result.stdout, result.stderr)


def follow(*arguments: object, weights: object = "") -> list[list[str]]:
    """The words of the commands that `densify` proposes from here on, each of them run; of several the first goes on.

    Args:
        weights: what stands for FILE.
    """
    made = densify(*arguments)
    assert made.status == 0, made.stderr
    told = made.stderr.partition("next:\n")[2].splitlines()
    proposed = [[str(weights) if word == "FILE" else word for word in shlex.split(line)[1:]] for line in told]
    for words in proposed[1:]:
        assert densify(*words).status == 0, words
    return [*proposed[:1], *follow(*proposed[0], weights=weights)] if proposed else []
