"""Ctrl-C, wherever it falls: heard, said once, never lost in a library."""

from __future__ import annotations

import _thread
import signal
import sys
import threading
from threading import Timer
from types import FrameType

INTERRUPTED = 130
INTERRUPTION = "interrupted: nothing was left behind"

_AGAIN = 0.05  # seconds
_IMPORTING = "<frozen importlib._bootstrap>"


class _State:
    heard = False
    told = False


def listen() -> None:
    """From now on Ctrl-C raises KeyboardInterrupt, but not inside of an import, only behind it.

    Libraries that are loaded half abort the process, or fail later in their own ways. A signal that is ignored, as in
    background jobs, stays so.
    """
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, _interrupt)


def _interrupt(number: int, frame: FrameType | None) -> None:
    _State.heard = True
    if not _importing(frame):
        raise KeyboardInterrupt
    later = Timer(_AGAIN, _again)
    later.daemon = True
    later.start()


def _again() -> None:
    """The same signal once more, to the thread that it is for: only so it ends what that one waits for."""
    main = threading.main_thread().ident
    if hasattr(signal, "pthread_kill") and main is not None:
        signal.pthread_kill(main, signal.SIGINT)
    else:
        _thread.interrupt_main()


def _importing(frame: FrameType | None) -> bool:
    while frame is not None:
        if frame.f_code.co_filename == _IMPORTING:
            return True
        frame = frame.f_back
    return False


def heard() -> bool:
    """Whether there was a Ctrl-C, whatever became of it: what fails afterwards fails because of it."""
    return _State.heard


def told() -> bool:
    """Whether the line was said."""
    return _State.told


def tell() -> None:
    """One line on stderr."""
    _State.told = True
    print(INTERRUPTION, file=sys.stderr)
