"""Ops that read several maps at once."""

from __future__ import annotations

from dataclasses import replace
from math import gcd

from densify.lattice import Axis, Field, Lattice
from densify.maps import Map
from densify.ops import Chain, Join
from densify.rules.registry import Refused, Rewrite, rule


@rule(Join)
def join(op: Join, *sources: Map, padding: str) -> Rewrite:
    """Sample by sample, on one lattice; with padding "valid" and "same" cropped to what all operands have."""
    first = sources[0]
    if any(source.collapsed != first.collapsed or len(source.axes) != len(first.axes) for source in sources):
        raise Refused("it joins a map with a flattened one", "Choose layers so that both keep their shape")
    axes = tuple(_meet(axes, padding) for axes in zip(*(source.axes for source in sources), strict=True))
    return Rewrite(op, replace(first, axes=axes, pooled=any(source.pooled for source in sources)))


@rule(Chain)
def chain(op: Chain, *sources: Map, padding: str) -> Rewrite:
    """Phase r of the chain is the chain of the phases r, as all of them are complete."""
    along = [source.axes[op.axis] for source in sources]
    if any(source.collapsed for source in sources):
        raise Refused("it chains maps that were flattened before", "Choose layers behind it")
    lattices = {source.lattices for source in sources}
    if len(lattices) > 1 or len({axis.step for axis in along}) > 1 or any(axis.whole for axis in along):
        raise apart(tuple(axis for source in sources for axis in source.axes))
    if padding != "full" and any(lattice != (1, 0) for lattice in sources[0].lattices):
        raise Refused(f'it chains maps whose phases padding="{padding}" leaves incomplete', 'Use padding="full"')
    chained = replace(
        along[0],
        size=sum(axis.size for axis in along),
        dense=sum(axis.dense for axis in along),
        field=None,
        repeated=tuple(again for axis in along for again in axis.repeated),
        exact=all(axis.exact for source in sources for axis in source.axes),
        mirrored=any(axis.mirrored for axis in along),
    )
    across = [_meet(axes, padding) for axes in zip(*(source.axes for source in sources), strict=True)]
    axes = tuple(chained if index == op.axis else axis for index, axis in enumerate(across))
    return Rewrite(op, replace(sources[0], axes=axes))


def crops(sources: tuple[Map, ...]) -> list[tuple[int, ...]]:
    """For every operand, how many leading samples to drop per axis so that all lattices begin together."""
    begin = _begin(sources)
    return [
        tuple(axis.lattice.offset - start for axis, start in zip(source.axes, begin, strict=True)) for source in sources
    ]


def _begin(sources: tuple[Map, ...]) -> tuple[int, ...]:
    return tuple(min(axis.lattice.offset for axis in axes) for axes in zip(*(s.axes for s in sources), strict=True))


def _meet(axes: tuple[Axis, ...], padding: str) -> Axis:
    met = common(axes).lattice.stride
    axes = tuple(axis if axis.whole else thinned(axis, met) for axis in axes)
    first = axes[0]
    if len({(axis.lattice.stride, axis.pitch, axis.size, axis.whole) for axis in axes}) > 1:
        return _spread(axes, padding)
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
        mirrored=any(axis.mirrored for axis in axes),
    )


def widest(axes: tuple[Axis, ...]) -> Axis:
    """The operand's axis that says what the result is: that of a map before those that are made of whole maps."""
    return max(axes, key=lambda axis: (not axis.whole, axis.size, axis.lattice.stride, axis.pitch))


def common(axes: tuple[Axis, ...]) -> Axis:
    """The widest operand's axis, on the lattice that all maps among the operands have phases for.

    Maps of another eST meet so behind an upsampling alone: elsewhere there are layers to choose for it.
    """
    wide = widest(axes)
    maps = [axis for axis in axes if not axis.whole]
    if not maps or len({axis.step for axis in maps}) > 1 or not any(axis.upsampled for axis in maps):
        return wide
    return thinned(wide, gcd(*(axis.lattice.stride for axis in maps)))


def thinned(axis: Axis, est: int) -> Axis:
    """An axis without the phases that a coarser lattice has no place for; unchanged where it has no such phases."""
    have = axis.lattice.stride
    if have == est or have % est:
        return axis
    apart = have // est
    return replace(axis, dense=axis.size * est, lattice=Lattice(est), repeated=axis.repeated[::apart])


def phases_to_take(axis: Axis, wide: Axis) -> tuple[int, ...]:
    """Which phases of an operand meet those of the widest one: the same, or where it is made of a whole map the ones of
    the same shifts.

    Raises:
        Refused: they lie on different lattices.
    """
    have, est = axis.lattice.stride, wide.lattice.stride
    if (not axis.whole and axis.step == wide.step and have % est == 0) or est == have == 1:
        return tuple(range(0, have, have // est))
    taken = axis.phases_for(wide) if axis.whole else None
    if taken is None:
        raise apart((axis, wide))
    return taken


def apart(axes: tuple[Axis, ...]) -> Refused:
    """The refusal of operands that lie on different lattices."""
    steps = " and ".join(sorted({f"eST {axis.lattice.stride} (step {axis.pitch})" for axis in axes}))
    if len({axis.step for axis in axes}) > 1 and not any(axis.whole for axis in axes):
        steps += ", and as their samples lie at other steps in the original, no shift of the image is one of them all"
    remedy = "Choose the layers on all branches, or let the block run whole on every phase (docs/new-op.md)"
    return Refused(f"its operands lie on different lattices: {steps}", remedy)


def _spread(axes: tuple[Axis, ...], padding: str) -> Axis:
    """A map and what is made of a whole one, or a single sample: every phase of the map takes one phase of that."""
    wide = widest(axes)
    taken = [phases_to_take(axis, wide) for axis in axes]
    if padding != "full" and any(axis.lattice != (1, 0) for axis in axes):
        raise Refused(f'it joins a map with a statistic; with padding="{padding}" phases are incomplete', 'Use "full"')
    repeated = tuple(
        any(_repeated(axis, wide, phases, index) for axis, phases in zip(axes, taken, strict=True))
        for index in range(wide.dense)
    )
    exact, mirrored = all(axis.exact for axis in axes), any(axis.mirrored for axis in axes)
    return replace(wide, field=None, repeated=repeated, exact=exact, mirrored=mirrored)


def _repeated(axis: Axis, wide: Axis, taken: tuple[int, ...], index: int) -> bool:
    """Whether what meets a sample of the widest operand saw repeated windows."""
    if axis.size == wide.size and not axis.whole:
        return axis.repeated[index]
    return any(axis.repeated[taken[index % len(taken)] :: axis.lattice.stride])


def _cropped(axis: Axis, count: int) -> Axis:
    field = axis.field
    if field is not None:
        field = Field(field.first + count * axis.pitch, field.last + count * axis.pitch)
    return replace(axis, dense=axis.dense - count, field=field, repeated=axis.repeated[count:])
