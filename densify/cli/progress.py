"""Progress bars on stderr, for work that takes longer than a second."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from threading import Lock, Timer
from typing import TYPE_CHECKING

from densify.steps import listening
from densify.tables import plain

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

PATIENCE = 1.0  # seconds


@contextmanager
def shown(*, wanted: bool = True) -> Iterator[None]:
    """Show how far the library's work is, where stderr is a terminal that knows how and the user does not say NO_COLOR;
    nothing stays of it on the screen."""
    if not wanted or not sys.stderr.isatty() or plain():
        yield
        return
    bars = _Bars()
    try:
        with listening(bars):
            yield
    finally:
        bars.close()


class _Bars:
    """A listener that draws one bar for each piece of work that is under way."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._under_way: dict[str, tuple[int, int]] = {}
        self._tasks: dict[str, TaskID] = {}
        self._progress: Progress | None = None
        self._timer: Timer | None = None

    def __call__(self, what: str, done: int, total: int) -> None:
        with self._lock:
            if done < total:
                self._under_way[what] = (done, total)
            else:
                self._under_way.pop(what, None)
            if not self._under_way:
                self._hide()
            elif self._progress is not None:
                self._draw()
            elif self._timer is None:
                self._timer = Timer(PATIENCE, self._appear)
                self._timer.daemon = True
                self._timer.start()

    def close(self) -> None:
        """Take everything away, whatever was under way."""
        with self._lock:
            self._under_way.clear()
            self._hide()

    def _appear(self) -> None:
        from rich.console import Console
        from rich.progress import Progress

        with self._lock:
            if self._under_way and self._progress is None:
                # Results go to stdout, which is none of our business.
                self._progress = Progress(console=Console(stderr=True), transient=True, redirect_stdout=False)
                self._progress.start()
                self._draw()

    def _draw(self) -> None:
        assert self._progress is not None
        for gone in self._tasks.keys() - self._under_way.keys():
            self._progress.remove_task(self._tasks.pop(gone))
        for what, (done, total) in self._under_way.items():
            if what not in self._tasks:
                self._tasks[what] = self._progress.add_task(what, total=total if total > 1 else None)
            self._progress.update(self._tasks[what], completed=done)

    def _hide(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        if self._progress is not None:
            self._progress.stop()
        self._progress, self._timer = None, None
        self._tasks.clear()
