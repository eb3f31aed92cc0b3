"""Padding and cropping by themselves."""

from __future__ import annotations

from dataclasses import replace

from densify.lattice import Axis, Field
from densify.maps import Map
from densify.ops import Crop, Pad, PhaseWise
from densify.rules.registry import Refused, Rewrite, rule


@rule(Pad)
def pad(op: Pad, source: Map, *, padding: str) -> Rewrite:
    """Constants are padded e times as wide; reflections and the like phase by phase: every phase has its own edge."""
    _check(source, padding)
    for axis, (low, high) in zip(source.axes, op.sides, strict=True):
        if padding == "valid" and axis.dense + axis.lattice.stride * (min(low, 0) + min(high, 0)) < 0:
            raise Refused(
                f'it crops {axis.size} samples, of whose phases padding="valid" leaves {axis.dense}',
                'Use padding="full"',
            )
    axes = tuple(_padded(axis, *sides, op.mode) for axis, sides in zip(source.axes, op.sides, strict=True))
    if op.mode == "constant":
        return Rewrite(op, source.with_axes(axes))
    if padding != "full" and any(axis.lattice.stride > 1 for axis in source.axes):
        raise Refused(
            f'mode="{op.mode}" mirrors phases, which padding="{padding}" leaves incomplete', 'Use padding="full"'
        )
    return Rewrite(PhaseWise(op), source.with_axes(axes))


@rule(Crop)
def crop(op: Crop, source: Map, *, padding: str) -> Rewrite:
    """Bounds are multiplied by eST."""
    _check(source, padding)
    axes = tuple(_padded(axis, *sides, "constant") for axis, sides in zip(source.axes, op.sides, strict=True))
    return Rewrite(op, source.with_axes(axes))


def _check(source: Map, padding: str) -> None:
    if padding == "same" and any(axis.lattice.stride > 1 for axis in source.axes):
        raise Refused('it pads or crops a map that padding="same" has moved', 'Use padding="full" or padding="valid"')


def _padded(axis: Axis, low: int, high: int, mode: str) -> Axis:
    est, offset = axis.lattice
    seen = [_source(index - low, axis.size, mode) for index in range(axis.size + low + high)]
    repeated = tuple(
        index is not None and est * index + phase < axis.dense and axis.repeated[est * index + phase]
        for index in seen
        for phase in range(est)
    )
    dense = axis.dense + est * (low + high)
    field = axis.field
    if field is not None:
        field = Field(field.first - low * axis.step, field.last - low * axis.step)
    moved = (low > 0 and offset >= est) or (high > 0 and axis.dense > offset + est * axis.size)
    return replace(
        axis,
        size=axis.size + low + high,
        dense=dense,
        field=field,
        repeated=(*repeated, *([False] * dense))[:dense],
        exact=axis.exact and not moved,
    )


def _source(index: int, size: int, mode: str) -> int | None:
    """Which sample a padded one repeats; None for a constant."""
    if 0 <= index < size:
        return index
    if mode == "reflect":
        return -index if index < 0 else 2 * (size - 1) - index
    if mode == "replicate":
        return 0 if index < 0 else size - 1
    return index % size if mode == "circular" else None
