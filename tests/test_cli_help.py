"""Help and version: at once, and without torch."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from typing import Any

import pytest
import typer
from cli import densify

from densify.cli.app import app

COMMANDS = ("convert", "inverse", "verify", "inspect", "plan", "compare", "report")
_COMMAND: Any = typer.main.get_command(app)


def test_help_imports_neither_torch_nor_rich() -> None:
    program = (
        "import sys\n"
        "from densify.cli import main\n"
        "sys.argv = ['densify', 'convert', '--help']\n"
        "try:\n    main()\n"
        "except SystemExit as end:\n    assert end.code == 0\n"
        "heavy = {'torch', 'torchvision', 'onnx', 'onnxruntime', 'numpy', 'rich'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "Usage: densify convert" in done.stdout


@pytest.mark.parametrize("command", COMMANDS)
def test_help_fits_one_screen(command: str) -> None:
    """50 lines of 100 columns: every option on one line, with one example, which the command understands."""
    lines = help_at(100, command)
    assert len(lines) <= 50
    assert max(map(len, lines)) <= 100
    parsed = _COMMAND.commands[command]
    assert not {"{", "}"} & set("".join(lines[: lines.index("")]))
    options = [parameter.opts for parameter in parsed.params if parameter.opts[0].startswith("-")]
    listed = [line for line in lines[lines.index("Arguments:") :] if line.startswith("  -")]
    assert len(listed) == len(options) + 1  # of --help itself
    words = {word.rstrip(",") for line in listed for word in line.split()[:2]}
    assert words >= {flag for one in options for flag in one}
    (example,) = (line.partition("Example: ")[2] for line in lines if "Example: " in line)
    name, *given = shlex.split(example)[1:]
    assert name == command
    context = parsed.make_context(command, given)
    assert context.params["json"] is False


def test_help_on_a_narrow_terminal_loses_nothing() -> None:
    wide, narrow = help_at(100, "convert"), help_at(60, "convert")
    assert " ".join(wide).split() == " ".join(narrow).split()
    assert max(map(len, narrow)) <= 60


def help_at(columns: int, *words: str) -> list[str]:
    """The lines of a real process."""
    done = subprocess.run(
        [sys.executable, "-m", "densify", *words, "--help"],
        capture_output=True, text=True, check=True, env={**os.environ, "COLUMNS": str(columns)},
    )  # fmt: skip
    assert done.stderr == ""
    return done.stdout.splitlines()


def test_commands_are_listed_whole() -> None:
    shown = densify("--help")
    assert shown.status == 0
    assert all(f"\n  {command} " in shown.stdout for command in COMMANDS)
    assert shown.stdout.count("...") == 1  # of the usage line
    (first,) = (line.partition(": ")[2] for line in shown.stdout.splitlines() if "To begin with" in line)
    assert densify(*first.split()[1:], "-q").status == 0


def test_version_and_module_name_the_program() -> None:
    done = subprocess.run([sys.executable, "-m", "densify", "--version"], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("densify ")


def test_an_unknown_option_is_a_usage_error() -> None:
    failed = densify("plan", "torchvision:resnet18", "--strat", "layer3")
    assert failed.status == 2
    assert "--strat" in failed.stderr
