"""Run the command line inside the test's process."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

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
        found: dict[str, Any] = json.loads(self.stdout)
        return found


def densify(*arguments: object, columns: int = 80) -> Outcome:
    """Run `densify` with these arguments; an exception that gets through is raised, so that no test overlooks it."""
    result = CliRunner().invoke(
        app, [str(argument) for argument in arguments], prog_name="densify", env={"COLUMNS": str(columns)}
    )
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return Outcome(result.exit_code, result.stdout, result.stderr)
