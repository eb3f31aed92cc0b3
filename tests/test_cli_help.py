"""Help and version: at once, and without torch."""

from __future__ import annotations

import subprocess
import sys

import pytest
from cli import densify

COMMANDS = ("convert", "inverse", "verify", "inspect", "plan", "compare", "report")


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
def test_every_command_has_an_example(command: str) -> None:
    shown = densify(command, "--help")
    assert shown.status == 0
    assert f"Example: densify {command} " in " ".join(shown.stdout.split())


def test_commands_are_listed_whole() -> None:
    shown = densify("--help")
    assert shown.status == 0
    assert all(f"\n  {command} " in shown.stdout for command in COMMANDS)
    assert shown.stdout.count("...") == 1  # of the usage line


def test_version_and_module_name_the_program() -> None:
    done = subprocess.run([sys.executable, "-m", "densify", "--version"], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("densify ")


def test_an_unknown_option_is_a_usage_error() -> None:
    failed = densify("plan", "torchvision:resnet18", "--strat", "layer3")
    assert failed.status == 2
    assert "--strat" in failed.stderr
