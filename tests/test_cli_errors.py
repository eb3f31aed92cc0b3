"""What bad input gets: one clear message on stderr, the right exit status, no traceback, no file left."""

from __future__ import annotations

import pickle
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from cli import DIGITS, MODELS, WEIGHTS, Outcome, densify
from torch import nn

NAMES = """
import os
import signal

import torch
from torch import nn

INPUT_SIZE = (3, 16, 16)


class Untraceable(nn.Module):
    def __init__(self):
        super().__init__()
        self.pool = nn.MaxPool2d(2)

    def forward(self, x):
        return self.pool(x) if float(x.sum()) > 0 else self.pool(-x)


class Unsupported(nn.Module):
    def __init__(self):
        super().__init__()
        self.pool = nn.MaxPool2d(2)

    def forward(self, x):
        return torch.fft.rfft2(self.pool(x)).abs()


class Unmeasured(nn.Module):
    def forward(self, x):
        return x


def interrupted():
    os.kill(os.getpid(), signal.SIGINT)
    return Untraceable()


class Terminated(nn.Module):
    def forward(self, x):
        os.kill(os.getpid(), signal.SIGTERM)
        return x


class Fixed(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(1, 2, 3, 2, 1)
        self.fc = nn.Linear(48, 3)

    def forward(self, x):
        return self.fc(self.conv(x).flatten(1))


def broken():
    raise ValueError("no luck")


def number():
    return 7
"""

CONVERT = ("convert", DIGITS, "--weights", WEIGHTS, "--start", "pool2")


@pytest.fixture
def out(tmp_path: Path) -> Path:
    """A folder for outputs, empty."""
    folder = tmp_path / "out"
    folder.mkdir()
    return folder


@pytest.fixture
def nets(tmp_path: Path) -> Path:
    file = tmp_path / "nets.py"
    file.write_text(NAMES)
    return file


@pytest.fixture(scope="module")
def dense(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("dense") / "dense.safetensors"
    assert densify(*CONVERT, "-o", path, "-q").status == 0
    return path


def refused(outcome: Outcome, status: int, *words: str, out: Path | None = None) -> None:
    """The habits of every refusal."""
    assert outcome.status == status, outcome.stderr
    assert outcome.stdout == ""
    assert "Traceback" not in outcome.stderr
    assert outcome.stderr.count("error: ") == 1
    for word in words:
        assert word in outcome.stderr
    assert out is None or not list(out.iterdir())


# ---- references and choices ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("reference", "words"),
    [
        ("torchvision:vgg61", ["vgg16"]),
        ("vgg16", ["torchvision:NAME"]),
        ("nowhere.py:net", ["nowhere.py"]),
        ("no_such_package:net", ["no_such_package"]),
        (f"{MODELS / 'digits.py'}:digitnet", ["digit_net"]),
    ],
)
def test_unknown_reference(reference: str, words: list[str], out: Path) -> None:
    arguments = ("convert", reference, "--init", "random", "--head-only", "-o", out / "dense.pth")
    refused(densify(*arguments), 2, *words, out=out)


@pytest.mark.parametrize(
    ("choice", "words"),
    [
        ([], ["--start", "--layer", "--output-stride", "--head-only"]),
        (["--start", "pool1", "--head-only"], ["--start and --head-only"]),
        (["--start", "pol2"], ["no strided layer", "pool2"]),
        (["--layer", "conv1"], ["no strided layer", "pool1"]),
        (["--output-stride", "8"], ["nothing to convert"]),
        (["--output-stride", "0"], ["at least 1"]),
    ],
)
def test_a_choice_that_does_not_fit(choice: list[str], words: list[str], out: Path) -> None:
    made = densify("convert", DIGITS, "--weights", WEIGHTS, *choice, "-o", out / "dense.pth", "-q")
    refused(made, 2, *words, out=out)
    if choice:  # without one, plan lists them all
        refused(densify("plan", DIGITS, *choice, "-q"), 2, *words)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--input-size", "3"], ["--input-size 3", "3,224,224"]),
        (["--input-size", "3,a,b"], ["--input-size 3,a,b"]),
        (["--mean", "red"], ["--mean red", "numbers"]),
        (["--std", "0.5,0,0.5"], ["--std", "divides"]),
        (["--rtol", "-1"], ["--rtol"]),
        (["--model-arg", "classes"], ["NAME=VALUE"]),
        (["--model-arg", "classes=3"], ["classes"]),
        (["--device", "cuda:99"], ["--device cuda:99", "cpu"]),
        (["--device", "abacus"], ["--device abacus"]),
        (["--opset", "7"], ["--opset 7"]),
        (["--opset", "20"], ["no output is an .onnx file"]),
        (["--static"], ["--static", "no output is an .onnx file"]),
        (["--half"], ["--half", "no output is an .onnx file"]),
        (["--init", "random"], ["--weights and --init random"]),
        (["--pretrained"], ["--pretrained is for torchvision:NAME"]),
        (["--form", "fragments", "--padding", "same"], ["--form fragments"]),
    ],
)
def test_options_that_do_not_fit(options: list[str], words: list[str], out: Path) -> None:
    refused(densify(*CONVERT, *options, "-o", out / "dense.pth", "-q"), 2, *words, out=out)


def test_without_weights_the_ways_to_give_them_are_told(out: Path) -> None:
    made = densify("convert", "torchvision:vgg16", "--start", "features.23", "-o", out / "dense.pth")
    refused(made, 2, "--weights FILE", "--pretrained", "--init random", out=out)


def test_a_reference_size_that_nobody_knows(nets: Path) -> None:
    nets.write_text(NAMES.replace("INPUT_SIZE", "SIZE"))
    refused(densify("inspect", f"{nets}:Unmeasured"), 2, "--input-size 3,224,224")


# ---- checkpoints ---------------------------------------------------------------------------------


def _truncated(path: Path) -> None:
    path.write_bytes(Path(WEIGHTS).read_bytes()[:5000])


def _foreign(path: Path) -> None:
    path.write_bytes(b"\x89PNG but not a checkpoint" * 9)


def _other_model(path: Path) -> None:
    torch.save(nn.Conv2d(3, 4, 3).state_dict(), path)


def _misshapen(path: Path) -> None:
    from safetensors.torch import load_file

    torch.save(load_file(WEIGHTS) | {"fc2.bias": torch.zeros(12)}, path)


def _pickled_module(path: Path) -> None:
    torch.save(nn.Linear(2, 2), path)


class _Evil:
    def __reduce__(self) -> tuple[object, ...]:
        return print, ("this must never run",)


def _evil(path: Path) -> None:
    path.write_bytes(pickle.dumps(_Evil()))


@pytest.mark.parametrize(
    ("name", "make", "status", "words"),
    [
        ("missing.pth", None, 2, ["missing.pth", "no such file"]),
        ("weights.txt", _foreign, 2, ["weights.txt", ".safetensors"]),
        ("cut.safetensors", _truncated, 3, ["cut.safetensors", "truncated"]),
        ("foreign.pth", _foreign, 3, ["foreign.pth"]),
        ("foreign.onnx", _foreign, 3, ["foreign.onnx"]),
        ("other.pth", _other_model, 3, ["other.pth", "missing (", "conv1.weight", "unexpected (2): weight, bias"]),
        ("misshapen.pth", _misshapen, 3, ["misshapen", "fc2.bias is [12], the model has [11]"]),
        ("module.pth", _pickled_module, 4, ["module.pth", "Linear", "state_dict()"]),
        ("evil.pth", _evil, 4, ["evil.pth", "print"]),
    ],
)
def test_checkpoints_that_cannot_be_used(
    name: str, make: object, status: int, words: Sequence[str], tmp_path: Path, out: Path
) -> None:
    path = tmp_path / name
    if callable(make):
        make(path)
    made = densify("convert", DIGITS, "--weights", path, "--start", "pool2", "-o", out / "dense.pth", "-q")
    refused(made, status, *words, out=out)
    assert "this must never run" not in made.stdout + made.stderr


def test_a_file_that_is_no_original(dense: Path, tmp_path: Path, out: Path) -> None:
    target = ("--start", "pool2", "-o", out / "dense.pth")
    refused(densify("convert", dense, *target), 2, "is dense already", "--weights", out=out)
    refused(densify("convert", WEIGHTS, *target), 2, "holds no model", out=out)
    graph = onnx.helper.make_graph([onnx.helper.make_node("Relu", ["x"], ["y"])], "net", [], [])
    weights = onnx.helper.make_tensor("w", onnx.TensorProto.FLOAT, [1], [1.0])
    graph.initializer.append(weights)
    onnx.save(onnx.helper.make_model(graph), tmp_path / "foreign.onnx")
    refused(densify("convert", tmp_path / "foreign.onnx", *target), 2, "name an .onnx file", out=out)


def test_inverse_and_verify_want_files_of_densify(out: Path) -> None:
    refused(densify("inverse", DIGITS, "-o", out / "back.pth"), 2, "densify convert", out=out)
    refused(densify("inverse", WEIGHTS, "-o", out / "back.pth", "-q"), 3, "no densify recipe", out=out)
    refused(densify("verify", WEIGHTS, "-q"), 3, "no densify recipe")
    refused(densify("verify", "missing.pth", "-q"), 2, "no such file")


def test_a_factory_runs_only_when_it_is_trusted(dense: Path, out: Path) -> None:
    for command in (["inverse", "--dry-run"], ["verify"], ["inspect"]):
        refused(densify(*command, dense, "-q"), 4, "--trust-code", "--model", out=out)
        assert densify(*command, dense, "--model", DIGITS, "-q").status == 0


# ---- models --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("factory", "status", "words"),
    [
        ("Untraceable", 3, ["nets.py"]),
        ("Unsupported", 3, ["rfft2", "nets.py:"]),
        ("broken", 3, ["no luck", "nets.py, line"]),
        ("number", 3, ["int", "torch.nn.Module"]),
    ],
)
def test_models_that_cannot_be_converted(
    factory: str, status: int, words: Sequence[str], nets: Path, out: Path
) -> None:
    made = densify(
        "convert", f"{nets}:{factory}", "--init", "random", "--output-stride", 1, "-o", out / "dense.pth", "-q"
    )
    refused(made, status, *words, out=out)


@pytest.mark.parametrize("size", ["1,32,32", "3,50,50", "3,4,4", "3,32"])
def test_a_wrong_reference_size(size: str, out: Path) -> None:
    made = densify(*CONVERT, "--input-size", size, "-o", out / "dense.pth", "-q")
    assert made.status in (2, 3)
    refused(made, made.status, out=out)
    assert "This is a bug" not in made.stderr


@pytest.mark.parametrize(
    "command", [["plan"], ["inspect"], ["convert", "--init", "random", "--head-only", "--dry-run"]]
)
@pytest.mark.parametrize(
    ("size", "words"),
    [
        ("1,48,40", ["takes 48 numbers", "make 960 of", "--input-size", "(1, 1, 48, 40)"]),
        ("48,40", ["channels,height,width", "--input-size", "(1, 48, 40)"]),
        ("3,12,8", ["to have 1 channels", "--input-size"]),
    ],
)
def test_every_command_tells_why_a_model_does_not_run_at_a_size(
    command: list[str], size: str, words: Sequence[str], nets: Path
) -> None:
    made = densify(*command, f"{nets}:Fixed", "--input-size", size, "-q")
    refused(made, 3, *words, "nets.py:")
    assert densify(*command, f"{nets}:Fixed", "--input-size", "1,12,8", "-q").status == 0


# ---- samples -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("missing.png", None, ["missing.png"]),
        ("text.png", b"not an image", ["text.png", "no image"]),
        ("text.npy", b"not an array", ["text.npy"]),
    ],
)
def test_samples_that_are_none(
    name: str, content: bytes | None, words: Sequence[str], tmp_path: Path, out: Path
) -> None:
    path = tmp_path / name
    if content is not None:
        path.write_bytes(content)
    refused(densify(*CONVERT, "--sample", path, "-o", out / "dense.pth", "-q"), 2, *words, out=out)


@pytest.mark.parametrize("shape", [(1, 32, 32), (3, 9, 9)])
def test_a_sample_of_a_wrong_size(shape: tuple[int, ...], tmp_path: Path, out: Path) -> None:
    path = tmp_path / "sample.npy"
    np.save(path, np.zeros(shape, np.float32))
    made = densify(*CONVERT, "--sample", path, "-o", out / "dense.pth", "-q")
    refused(made, 2, "sample.npy", out=out)


# ---- outputs -------------------------------------------------------------------------------------


def test_compare_wants_an_image(out: Path) -> None:
    refused(densify("compare", "dense.pth", "-o", out / "a.png"), 2, "IMAGE is missing", "compare dense.pth", out=out)


def test_an_existing_output_stays(out: Path) -> None:
    path = out / "dense.pth"
    path.write_text("precious")
    refused(densify(*CONVERT, "-o", out / "new.safetensors", "-o", path), 2, "dense.pth", "--overwrite")
    assert path.read_text() == "precious"
    assert list(out.iterdir()) == [path]


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("missing/dense.pth", ["no folder"]),
        ("file/dense.pth", ["no folder"]),
        ("dense.txt", [".safetensors, .pth, .onnx"]),
        ("dense", [".safetensors, .pth, .onnx"]),
    ],
)
def test_an_output_that_cannot_be_written_is_told_before_any_work(name: str, words: Sequence[str], out: Path) -> None:
    (out.parent / "file").write_text("")
    target = out.parent / name if name.startswith("file") else out / name
    made = densify("convert", "torchvision:no_such_model", "--head-only", "-o", target)
    refused(made, 2, target.name, *words, out=out)


@pytest.mark.parametrize("command", [CONVERT, ("inverse", "dense.safetensors"), ("inverse", "dense.onnx")])
def test_what_writes_wants_an_output(command: Sequence[str]) -> None:
    refused(densify(*command), 2, "-o FILE", "--dry-run")


# ---- interruptions and bugs ----------------------------------------------------------------------


def test_ctrl_c_while_writing_leaves_nothing(out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from densify.cli import checking

    def write(state: object, place: Path, recipe: object) -> None:
        place.write_bytes(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(checking, "write_state", write)
    made = densify(*CONVERT, "-o", out / "dense.pth", "-q")
    assert (made.status, made.stdout) == (130, "")
    assert "interrupted" in made.stderr
    assert not list(out.iterdir())


@pytest.mark.parametrize(("factory", "status"), [("interrupted", 130), ("Terminated", 143)])
def test_a_real_signal(factory: str, status: int, nets: Path, out: Path) -> None:
    command = [sys.executable, "-m", "densify", "convert", f"{nets}:{factory}", "--init", "random", "--head-only"]
    done = subprocess.run(
        [*command, "-o", str(out / "dense.pth")],
        capture_output=True,
        text=True,
        check=False,
        cwd=MODELS.parent,
        # Jobs in the background inherit an ignored SIGINT.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    assert done.returncode == status
    assert done.stdout == ""
    assert "Traceback" not in done.stderr
    assert not list(out.iterdir())


@pytest.mark.parametrize(
    ("error", "words"), [(ZeroDivisionError("dividing"), "bug in densify"), (MemoryError(), "not enough memory")]
)
def test_a_bug_is_called_one(error: Exception, words: str, out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from densify.cli import checking

    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr(checking, "write_state", fail)
    refused(densify(*CONVERT, "-o", out / "dense.pth"), 3, words, out=out)
    loud = densify(*CONVERT, "-o", out / "dense.pth", "-v")
    assert loud.status == 3
    assert "Traceback" in loud.stderr
    assert not list(out.iterdir())
