"""Numbers and sizes in words, as the tables show them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any


def count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def shape(sizes: Sequence[int]) -> str:
    return "x".join(map(str, sizes))


def axes(values: Sequence[object]) -> str:
    """One value where all axes agree."""
    return str(values[0]) if len(set(values)) == 1 else "x".join(map(str, values))


def flops(number: int) -> str:
    return f"{number / 1e9:,.3g} GFLOPs" if number < 10**12 else f"{number / 1e9:,.0f} GFLOPs"


def memory(number: int) -> str:
    """Bytes."""
    for unit, name in ((10**12, "TB"), (10**9, "GB"), (10**6, "MB"), (10**3, "kB")):
        if number >= unit:
            return f"{number / unit:.3g} {name}"
    return f"{number} B"


def model(document: Mapping[str, Any]) -> str:
    """The name of the model of a document; in Python it is an object."""
    name: str = document.get("model", "the model")
    return name


def times(cost: Mapping[str, Any]) -> str:
    """How much more it costs than the original."""
    return "" if cost["ratio"] is None else f"{cost['ratio']:.1f}x"


def seconds(number: float) -> str:
    """A time."""
    return f"{number:.3g} s" if number >= 1 else f"{1000 * number:.3g} ms"
