"""What the commands look like on real terminals: narrow, without colours, dumb, interrupted."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import signal
import struct
import subprocess
import sys
import termios
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest
from cli import DIGITS, MODELS, SCENE, WEIGHTS, densify

from densify.display import show_comparison, show_conversion, show_inverse, show_layers, show_plan, show_report
from densify.display_choices import show_offers

ESCAPE = "\x1b"
CONVERT = ("convert", DIGITS, "--weights", WEIGHTS, "--start", "pool3")


@pytest.fixture(scope="module")
def dense(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("dense") / "dense.safetensors"
    assert densify(*CONVERT, "-o", path, "-q").status == 0
    return path


# ---- widths --------------------------------------------------------------------------------------


def cells(shown: str) -> list[str]:
    """The words of a table, or of its rows as text."""
    return sorted(re.sub(r"(?m)^k: kernel.*\n", "", shown).replace(": ", " ").split())


def test_nothing_is_lost_on_narrow_terminals(
    dense: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Every word and number of the widest form stands whole in the narrow ones, whose lines fit."""
    weak = ("--trust-code", "--rtol", "0")
    for words, show in (
        (("inspect", "torchvision:resnet18"), show_layers),
        (("plan", DIGITS), show_offers),
        (("plan", "torchvision:fcn_resnet50", "--input-size", "3,64,64"), show_offers),
        (("plan", DIGITS, "--start", "pool2"), show_plan),
        (("verify", dense, *weak), show_report),
        (("inverse", dense, *weak, "--dry-run"), show_inverse),
        (("convert", DIGITS, "--weights", WEIGHTS, "--start", "pool3", "--dry-run"), show_conversion),
        (("compare", dense, SCENE, "--trust-code", "-o", tmp_path / "picture.png"), show_comparison),
    ):
        document = densify(*words, "--json", "-q").document
        shown = {}
        for columns in (40, 60, 80, 300):
            monkeypatch.setenv("COLUMNS", str(columns))
            show(document)
            shown[columns] = capsys.readouterr().out
            assert not {"…", ESCAPE} & set(shown[columns])
            rows = [line for line in shown[columns].splitlines() if _of_table(line)]
            assert all(len(line) <= columns or len(line.split()) <= 3 for line in rows), rows
        for columns in (40, 60, 80):
            missing = set(cells(shown[300])) - _HEADS - set(cells(shown[columns]))
            assert not missing, (words, columns, missing)


# Of columns that are empty, or have another name in the short form.
_HEADS = {
    *("kernel", "stride", "pad", "parameters", "result", "max", "abs", "rel", "worst", "at"),
    *("remarks", "predictions", "eST", "FLOPs", "memory"),
}


def _of_table(line: str) -> bool:
    """No sentence: those are left to the terminal to break, so that they can be copied whole."""
    return "  " in line.strip()


# ---- escape codes --------------------------------------------------------------------------------


@dataclass(frozen=True)
class Seen:
    """What a process left on a terminal."""

    status: int
    shown: str
    before: list[object]
    after: list[object]


def on_terminal(
    words: Sequence[object],
    *,
    columns: int = 80,
    until: Callable[[str], bool] | None = None,
    env: Mapping[str, str] | None = None,
) -> Seen:
    """Run the command line on a terminal; Ctrl-C is typed once `until` holds of what is shown."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 50, columns, 0, 0))
    before = termios.tcgetattr(theirs)
    known = {name: value for name, value in os.environ.items() if name not in _DECIDING}
    child = subprocess.Popen(
        [sys.executable, "-c", _PATIENT, *map(str, words)],
        stdin=theirs, stdout=theirs, stderr=theirs, cwd=MODELS.parent, start_new_session=True,
        env={**known, "TERM": "xterm"} | dict(env or {}),
        preexec_fn=_own_terminal,
    )  # fmt: skip
    said = b""
    while child.poll() is None or _waiting(ours):
        if _waiting(ours, 0.1):
            said += os.read(ours, 65536)
        if until is not None and until(said.decode(errors="replace")):
            os.write(ours, b"\x03")
            until = None
    after = termios.tcgetattr(theirs)
    os.close(theirs)
    os.close(ours)
    return Seen(child.returncode, said.decode().replace("\r\n", "\n"), before, after)


_DECIDING = ("COLUMNS", "NO_COLOR", "FORCE_COLOR", "TERM", "COLORTERM")
# Bars appear at once, so that no test waits for one.
_PATIENT = "from densify.cli import main, progress\nprogress.PATIENCE = 0.0\nmain()"


def _own_terminal() -> None:
    """The terminal sends the signal for what is typed to the process that it belongs to."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    fcntl.ioctl(0, termios.TIOCSCTTY, 0)


def _waiting(descriptor: int, seconds: float = 0.0) -> bool:
    import select

    return bool(select.select([descriptor], [], [], seconds)[0])


@pytest.mark.parametrize("env", [{"NO_COLOR": "1"}, {"TERM": "dumb"}, {"NO_COLOR": "1", "FORCE_COLOR": "1"}])
def test_no_escape_codes_where_nobody_wants_them(env: dict[str, str]) -> None:
    seen = on_terminal(("plan", DIGITS, "--start", "pool2"), columns=60, env=env)
    assert seen.status == 0, seen.shown
    assert "stride 2 -> 1" in seen.shown
    assert ESCAPE not in seen.shown
    assert max(map(len, [line for line in seen.shown.splitlines() if _of_table(line)])) <= 60


def test_colours_on_a_terminal_and_where_they_are_forced(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = on_terminal(("inspect", DIGITS))
    assert seen.status == 0
    assert f"{ESCAPE}[1m" in seen.shown
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm")
    assert f"{ESCAPE}[1m" in densify("inspect", DIGITS).stdout
    assert ESCAPE not in densify("inspect", DIGITS, "--json").stdout
    monkeypatch.delenv("FORCE_COLOR")
    assert ESCAPE not in densify("inspect", DIGITS).stdout


# ---- Ctrl-C --------------------------------------------------------------------------------------


SHOWS = {
    "a bar": lambda shown: "verifying " in shown.rpartition("\x1b[?25l")[2],
    "loading": lambda shown: "building" in shown,
    "writing": lambda shown: "exporting" in shown,
}


@pytest.mark.parametrize("moment", SHOWS)
def test_ctrl_c(moment: str, tmp_path: Path) -> None:
    """Typed at a terminal: one line, 130, no file, the cursor and the terminal as they were."""
    outputs = ("-o", tmp_path / "dense.safetensors", "-o", tmp_path / "dense.onnx")
    seen = on_terminal((*CONVERT, *outputs), until=SHOWS[moment])
    assert seen.status == 130, seen.shown
    assert "Traceback" not in seen.shown
    assert "PASSED" not in seen.shown
    assert seen.shown.count("interrupted: nothing was left behind\n") == 1
    assert seen.shown.endswith("interrupted: nothing was left behind\n")
    assert seen.shown.count("\x1b[?25l") == seen.shown.count("\x1b[?25h")
    assert seen.before == seen.after
    assert list(tmp_path.iterdir()) == []


FACTORIES = {
    "in an import": """
import os, pathlib, signal, time
end = time.time() + 0.3
os.kill(os.getpid(), signal.SIGINT)
while time.time() < end:
    time.sleep(0.01)
pathlib.Path(__file__).with_name("after").touch()
def net():
    time.sleep(60)
""",
    "lost in a library": """
import os, signal, time
def net():
    try:
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(60)
    except BaseException:
        raise ValueError("half loaded")
""",
}


@pytest.mark.parametrize("moment", FACTORIES)
def test_ctrl_c_in_the_code_of_others(moment: str, tmp_path: Path) -> None:
    """Whoever catches it or would be loaded half, it is an interruption."""
    file = tmp_path / "nets.py"
    file.write_text(FACTORIES[moment] + "INPUT_SIZE = (3, 32, 32)\n")
    seen = on_terminal(("plan", f"{file}:net"))
    assert seen.status == 130, seen.shown
    assert seen.shown == "interrupted: nothing was left behind\n"
    assert (tmp_path / "after").exists() == (moment == "in an import")  # what was begun was ended


# ---- quiet and verbose ---------------------------------------------------------------------------


def test_quiet_and_verbose_mean_the_same_everywhere(
    dense: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """-q: the same results, and nothing beside; -v: all that there is of them."""
    picture, page = tmp_path / "a.png", tmp_path / "a.html"
    for words in (
        ("inspect", DIGITS), ("plan", DIGITS), ("plan", DIGITS, "--output-stride", 1),
        ("verify", dense, "--trust-code"), ("inverse", dense, "--trust-code", "--dry-run"), (*CONVERT, "--dry-run"),
        ("compare", dense, SCENE, "--trust-code", "-o", picture, "--overwrite"),
        ("report", dense, "--trust-code", "--sample", SCENE, "-o", page, "--overwrite"),
    ):  # fmt: skip
        loud, quiet, verbose = (densify(*words, *more) for more in ((), ("-q",), ("-v",)))
        assert quiet.stderr == "", words
        assert quiet.stdout == loud.stdout
        assert loud.stderr or words[0] == "plan"
        assert len(verbose.stdout) >= len(loud.stdout)
    failed = densify("verify", dense, "--trust-code", "-q", "--rtol", "-1")
    assert failed.stderr.startswith("error: ")
    monkeypatch.setattr("densify.display._SHOWN", 1)
    few, every = (densify("plan", DIGITS, "--output-stride", 1, *more).stdout for more in ((), ("-v",)))
    assert "stride removed from pool1 and 2 more" in few
    assert "stride removed from pool1, pool2, pool3" in every
