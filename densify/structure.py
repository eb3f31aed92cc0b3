"""The structure of a model's outputs: tensors in tuples, named tuples, lists and dicts."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, TypeVar

Leaf = TypeVar("Leaf")


def named(value: Any, kind: type[Leaf], name: str = "") -> Iterator[tuple[str, Leaf]]:
    """All leaves of a kind with their names: "output" alone, else the keys, fields or places, joined by dots."""
    if isinstance(value, kind):
        yield name or "output", value
        return
    entries: Iterator[tuple[Any, Any]] = iter(())
    if isinstance(value, Mapping):
        entries = iter(value.items())
    elif isinstance(value, tuple | list):
        entries = zip(getattr(value, "_fields", range(len(value))), value, strict=True)
    for key, item in entries:
        yield from named(item, kind, f"{name}.{key}" if name else str(key))
