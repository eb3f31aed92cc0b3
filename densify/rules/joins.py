"""Ops that read several maps at once."""

from __future__ import annotations

from dataclasses import replace

from densify.lattice import Axis, Field, Lattice
from densify.ops import Join, Map
from densify.rules.registry import Refused, Rewrite, rule


@rule(Join)
def join(op: Join, *sources: Map, padding: str) -> Rewrite:
    """Sample by sample, on one lattice; with padding "valid" and "same" cropped to what all operands have."""
    first = sources[0]
    if any(source.collapsed != first.collapsed or len(source.axes) != len(first.axes) for source in sources):
        raise Refused("it joins a map with a flattened one", "Choose layers so that both keep their shape")
    axes = tuple(_meet(axes, padding) for axes in zip(*(source.axes for source in sources), strict=True))
    return Rewrite(op, replace(first, axes=axes, pooled=any(source.pooled for source in sources)))


def crops(sources: tuple[Map, ...]) -> list[tuple[int, ...]]:
    """For every operand, how many leading samples to drop per axis so that all lattices begin together."""
    begin = _begin(sources)
    return [
        tuple(axis.lattice.offset - start for axis, start in zip(source.axes, begin, strict=True)) for source in sources
    ]


def _begin(sources: tuple[Map, ...]) -> tuple[int, ...]:
    return tuple(min(axis.lattice.offset for axis in axes) for axes in zip(*(s.axes for s in sources), strict=True))


def _meet(axes: tuple[Axis, ...], padding: str) -> Axis:
    first = axes[0]
    strides = {axis.lattice.stride for axis in axes}
    sizes = {axis.size for axis in axes}
    if spreads(axes) or (strides == {1} and len(sizes) == 2 and min(sizes) == 1):
        return _spread(axes, padding)
    if len(strides) > 1 or len({axis.pitch for axis in axes}) > 1:
        raise apart(axes)
    if len(sizes) > 1:
        raise Refused(f"its operands have {' and '.join(map(str, sorted(sizes)))} samples", "Join maps of one size")
    offset = min(axis.lattice.offset for axis in axes)
    cropped = [_cropped(axis, axis.lattice.offset - offset) for axis in axes]
    dense = min(axis.dense for axis in cropped)
    fields = [axis.field for axis in cropped]
    known = [field for field in fields if field is not None]
    return replace(
        first,
        dense=dense,
        lattice=Lattice(first.lattice.stride, offset),
        field=Field(min(f.first for f in known), max(f.last for f in known)) if len(known) == len(fields) else None,
        repeated=tuple(any(axis.repeated[i] for axis in cropped) for i in range(dense)),
        exact=all(axis.exact for axis in axes),
    )


def spreads(axes: tuple[Axis, ...]) -> bool:
    """Whether a map meets a statistic, which then is repeated over it."""
    return any(axis.statistic for axis in axes) and not all(axis.statistic for axis in axes)


def apart(axes: tuple[Axis, ...]) -> Refused:
    """The refusal of operands that lie on different lattices."""
    steps = " and ".join(sorted({f"eST {axis.lattice.stride} (step {axis.pitch})" for axis in axes}))
    return Refused(f"its operands lie on different lattices: {steps}", "Choose the layers on all branches")


def _spread(axes: tuple[Axis, ...], padding: str) -> Axis:
    """A map and a statistic of it: phase r of the map takes the statistic of phase r, which is tiling."""
    wide = max(axes, key=lambda axis: (not axis.statistic, axis.size))
    if len({axis.lattice.stride for axis in axes}) > 1:
        raise apart(axes)
    if wide.lattice.stride > 1:
        if len({axis.pitch for axis in axes}) > 1:
            raise apart(axes)
        if padding != "full":
            raise Refused(
                f'it joins a map with a statistic; with padding="{padding}" phases are incomplete', 'Use "full"'
            )
    repeated = tuple(any(axis.repeated[i % axis.dense] for axis in axes) for i in range(wide.dense))
    return replace(wide, field=None, repeated=repeated, exact=all(axis.exact for axis in axes))


def _cropped(axis: Axis, count: int) -> Axis:
    field = axis.field
    if field is not None:
        field = Field(field.first + count * axis.pitch, field.last + count * axis.pitch)
    return replace(axis, dense=axis.dense - count, field=field, repeated=axis.repeated[count:])
