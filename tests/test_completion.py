"""Shell completion: scripts for each shell, and what they offer, without torch."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys

import pytest
import torchvision.models

from densify.cli.completion import torchvision_names

SHELLS = ("bash", "zsh", "fish")


def run(*words: str, **env: str) -> str:
    """stdout of a process in which neither torch nor rich may be imported."""
    program = (
        "import sys\nfrom densify.cli import main\n"
        "try:\n    main()\n"
        "except SystemExit as end:\n    assert not end.code, end.code\n"
        "assert not {'torch', 'torchvision', 'numpy', 'onnx'} & set(sys.modules)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, *words], capture_output=True, text=True, check=False, env={**os.environ, **env}
    )
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


@pytest.mark.parametrize("shell", SHELLS)
def test_scripts_are_printed(shell: str) -> None:
    script = run("--show-completion", shell, _TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION="1")
    assert f"_DENSIFY_COMPLETE=complete_{shell}" in script
    program = shutil.which(shell)
    if program is not None:  # it understands the script
        subprocess.run([program, "-n"], input=script, text=True, check=True)


def offered(shell: str, line: str) -> list[str]:
    """What a shell offers behind a line, words alone."""
    words = line.split(" ")
    env = {"_DENSIFY_COMPLETE": f"complete_{shell}", "_TYPER_COMPLETE_ARGS": line, "COMP_WORDS": line,
           "COMP_CWORD": str(len(words) - 1), "_TYPER_COMPLETE_FISH_ACTION": "get-args"}  # fmt: skip
    made = run(**env).replace("_arguments '*: :((", "").replace("))'", "").replace(r"\\:", "§")
    return [line.split("\t")[0].split(":")[0].strip('"').replace("§", ":") if shell != "bash" else line
            for line in made.splitlines()]  # fmt: skip


@pytest.mark.parametrize("shell", SHELLS)
def test_what_is_offered(shell: str) -> None:
    assert offered(shell, "densify conv") == ["convert"]
    assert offered(shell, "densify convert --output-s") == ["--output-stride"]
    assert offered(shell, "densify plan x --padding ") == ["full", "valid", "same"]
    assert offered(shell, "densify convert x --target o") == ["ort", "openvino"]


def test_models_of_torchvision_are_offered() -> None:
    assert offered("bash", "densify inspect torchvision:vgg1")[:2] == ["torchvision:vgg11", "torchvision:vgg11_bn"]
    assert offered("bash", "densify inspect models/") == [""]  # the shell offers files
    known = torchvision.models
    parts = (known, known.segmentation, known.video)
    assert torchvision_names() == sorted(name for part in parts for name in known.list_models(module=part))
