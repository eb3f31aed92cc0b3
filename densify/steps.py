"""How far long work is: the library tells whoever listens. Nothing here shows anything."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TypeVar

Listener = Callable[[str, int, int], None]
"""Told of a piece of work by its name, the number of its steps that are done, and how many there are: at its beginning,
before every step, and at its end, when all are done. A piece of one step is one whose steps nobody knows."""

_Item = TypeVar("_Item")
_LISTENER: ContextVar[Listener | None] = ContextVar("densify_listener", default=None)


@contextmanager
def listening(listener: Listener) -> Iterator[None]:
    """Tell a listener of the work that is done inside."""
    token = _LISTENER.set(listener)
    try:
        yield
    finally:
        _LISTENER.reset(token)


def advancing(what: str, items: Sequence[_Item]) -> Iterator[_Item]:
    """The items of a piece of work, one by one."""
    tell = _LISTENER.get() or _nobody
    try:
        for done, item in enumerate(items):
            tell(what, done, len(items))
            yield item
    finally:
        tell(what, len(items), len(items))


@contextmanager
def working(what: str) -> Iterator[None]:
    """A piece of work whose steps nobody knows."""
    tell = _LISTENER.get() or _nobody
    tell(what, 0, 1)
    try:
        yield
    finally:
        tell(what, 1, 1)


def _nobody(what: str, done: int, total: int) -> None:
    """Where nobody listens."""
