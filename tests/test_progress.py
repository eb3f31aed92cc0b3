"""Progress bars: on a terminal's stderr, for work that lasts; nowhere else, and nothing stays of them."""

from __future__ import annotations

import os
import pty
import subprocess
import sys
from io import StringIO
from pathlib import Path

import pytest
from cli import DIGITS, WEIGHTS
from cli import densify as command
from small import Residual, images, seeded

import densify
from densify.cli import progress, running
from densify.steps import advancing, listening, working

Event = tuple[str, int, int]
HIDDEN_CURSOR = "\x1b[?25l"


class Terminal(StringIO):
    """Says that it is a terminal."""

    def isatty(self) -> bool:
        return True


def test_a_listener_hears_every_step_and_the_end() -> None:
    heard: list[Event] = []
    with listening(lambda *event: heard.append(event)):
        assert list(advancing("a", [3, 4])) == [3, 4]
        with pytest.raises(ZeroDivisionError), working("b"):
            raise ZeroDivisionError
    assert heard == [("a", 0, 2), ("a", 1, 2), ("a", 2, 2), ("b", 0, 1), ("b", 1, 1)]
    assert list(advancing("a", [3, 4])) == [3, 4]  # nobody listens
    assert len(heard) == 5


def test_the_library_tells_what_it_does(tmp_path: Path) -> None:
    heard: list[Event] = []
    model, samples = seeded(Residual()).float(), [images(33, 47).float(), images(20, 21).float()]
    with listening(lambda *event: heard.append(event)):
        dense = densify.convert(model, (1, 3, 33, 47), start="main")
        assert densify.verify(model, dense, samples)
        densify.export(dense, tmp_path / "dense.onnx")
    names = {what for what, _, _ in heard}
    assert {"tracing", "verifying", "exporting"} <= names
    assert [event for event in heard if event[0] == "verifying"] == [("verifying", i, 2) for i in range(3)]
    for name in names:
        assert [done == total for what, done, total in heard if what == name][-1]


def drawn(bars: progress._Bars) -> dict[str, tuple[float, float | None]]:
    """What is on the screen: steps done and steps in all."""
    tasks = [] if bars._progress is None else bars._progress.tasks
    return {task.description: (task.completed, task.total) for task in tasks}


def test_bars_appear_after_a_while_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Work that is quick draws nothing; work that lasts, bars that are gone at its end."""
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setenv("TERM", "xterm")
    with progress.shown():
        list(advancing("quick", [1, 2]))
    assert terminal.getvalue() == ""
    bars = progress._Bars()
    bars("verifying", 0, 3)
    bars._appear()  # as the timer does
    bars("verifying", 1, 3)
    bars("exporting", 0, 1)
    assert drawn(bars) == {
        "verifying": (1, 3), "exporting": (0, None),
    }  # fmt: skip
    bars("verifying", 3, 3)
    bars("exporting", 1, 1)
    assert drawn(bars) == {}
    assert "verifying" in terminal.getvalue()
    bars("late", 0, 2)
    bars.close()
    bars._appear()
    assert drawn(bars) == {}


@pytest.mark.parametrize("quiet", [["-q"], ["--json"], []])
def test_no_bars_where_nobody_looks(quiet: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[bool] = []
    real = progress.shown

    def shown(*, wanted: bool) -> object:
        asked.append(wanted)
        return real(wanted=wanted)

    monkeypatch.setattr(running, "shown", shown)
    monkeypatch.setattr(progress, "PATIENCE", 0.001)
    made = command("inspect", DIGITS, *quiet)
    assert asked == [not quiet]
    assert HIDDEN_CURSOR not in made.stdout + made.stderr


@pytest.mark.skipif(os.name == "nt", reason="needs a pseudo-terminal")
def test_a_real_terminal() -> None:
    """stderr is a terminal and stdout is not: bars on the one, the results alone on the other."""
    program = (
        "import sys\nfrom densify.cli import main, progress\nprogress.PATIENCE = 0.01\n"
        f"sys.argv = ['densify', 'convert', {DIGITS!r}, '--weights', {WEIGHTS!r}, '--start', 'pool2', '--dry-run']\n"
        "main()\n"
    )
    ours, theirs = pty.openpty()
    child = subprocess.Popen(
        [sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=theirs, env={**os.environ, "TERM": "xterm"}
    )
    os.close(theirs)
    said = b""
    while True:
        try:
            part = os.read(ours, 4096)
        except OSError:  # the other end is closed
            break
        if not part:
            break
        said += part
    results = child.communicate()[0].decode()
    assert child.returncode == 0, said
    assert results.splitlines()[-1].startswith("PASSED")
    assert "\x1b" not in results
    assert b"verifying" in said
    assert HIDDEN_CURSOR.encode() in said
    assert said.count(HIDDEN_CURSOR.encode()) == said.count(b"\x1b[?25h")  # shown again each time
