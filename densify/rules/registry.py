"""The table from op to rule."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, Protocol

from densify.maps import Map
from densify.ops import Op


class Rewrite(NamedTuple):
    """A rule's answer: the op to put there, and the map that it makes."""

    op: Op
    map: Map


class Refused(Exception):  # noqa: N818  (a rule's answer; users get a RefusedError)
    """An op that has no meaning on its lattice: the reason and the remedy."""

    def __init__(self, reason: str, remedy: str) -> None:
        super().__init__(f"{reason}. {remedy}")
        self.reason = reason
        self.remedy = remedy


class Rule(Protocol):
    """A pure function of geometry."""

    def __call__(self, op: Op, *maps: Map, padding: str) -> Rewrite: ...


_RULES: dict[type[Op], Callable[..., Rewrite]] = {}


def rule(*ops: type[Op]) -> Callable[[Callable[..., Rewrite]], Callable[..., Rewrite]]:
    """Register a function as the rule of `ops`; an op has one rule."""

    def register(function: Callable[..., Rewrite]) -> Callable[..., Rewrite]:
        for op in ops:
            if op in _RULES:
                raise ValueError(f"{op.__name__} has a rule already: {_RULES[op].__qualname__}")
            _RULES[op] = function
        return function

    return register


def rewrite(op: Op, *maps: Map, padding: str = "full") -> Rewrite:
    """Apply the rule of `op`.

    Raises:
        Refused: the op has no meaning on these lattices.
    """
    return _RULES[type(op)](op, *maps, padding=padding)
