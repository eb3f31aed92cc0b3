"""Everything that has no rule of its own runs phase by phase."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction

from densify.lattice import Axis, pixels
from densify.maps import Layout, Map
from densify.ops import (
    Identity,
    Other,
    PhaseWise,
    Same,
    Unflatten,
)
from densify.rules.joins import common, phases_to_take
from densify.rules.registry import Refused, Rewrite, rule


@rule(Other)
def other(op: Other, *sources: Map, padding: str) -> Rewrite:
    """The original's op on every fragment; law 3 defines the dense network so."""
    if any(source.collapsed and not all(axis.statistic for axis in source.axes) for source in sources):
        raise Refused("it makes a map of a head's flattened window", 'Use head="features"')
    if padding != "full" and any(lattice != (1, 0) for source in sources for lattice in source.lattices):
        raise Refused(f'it has no dilated form, and padding="{padding}" leaves phases incomplete', 'Use padding="full"')
    if op.fault and any(axis.lattice != (1, 0) for source in sources for axis in source.axes):
        raise Refused(op.fault, "Choose layers behind it, or write it image by image")
    axes = tuple(
        _axis(operands, scale, padding)
        for operands, scale in zip(zip(*(source.axes for source in sources), strict=True), op.scales, strict=True)
    )
    if op.mirrors:
        axes = tuple(replace(axis, mirrored=axis.mirrored != turn) for axis, turn in zip(axes, op.mirrors, strict=True))
    return Rewrite(PhaseWise(op), Map(axes, collapsed=op.layout is Layout.VECTOR))


def _axis(operands: tuple[Axis, ...], scale: Fraction, padding: str) -> Axis:
    wide = common(operands)
    est = wide.lattice.stride
    taken = [phases_to_take(axis, wide) for axis in operands]
    phases = tuple(
        any(any(axis.repeated[each[phase] :: axis.lattice.stride]) for axis, each in zip(operands, taken, strict=True))
        for phase in range(est)
    )
    wide = replace(wide, mirrored=any(axis.mirrored for axis in operands))
    pooled = replace(wide.pooled(padding), repeated=phases)
    if scale == 0:
        return pooled
    size = round(wide.size * scale)
    if wide.whole:
        return replace(wide, size=size, dense=size * est, repeated=phases * size)
    like = next((axis for axis in operands if axis.size == size and not axis.whole), None)
    if like is not None:
        return replace(like, dense=size * est, field=None, repeated=phases * size)
    if scale != 1 and est > 1:
        raise Refused(
            f"it makes the map {float(scale):g} times as large, and no rule says where the samples of a phase then lie",
            "Choose layers behind it, or write a rule for it (docs/new-op.md)",
        )
    step = pixels(wide.step / scale)
    return replace(wide, size=size, dense=size * est, step=step, field=None, repeated=phases * size)


@rule(Same)
def same(op: Same, source: Map, *, padding: str) -> Rewrite:
    """Nothing to do."""
    return Rewrite(Identity(), source)


@rule(Unflatten)
def unflatten(op: Unflatten, source: Map, *, padding: str) -> Rewrite:
    """The dense network's vectors have their axes already."""
    if not source.collapsed or not all(axis.statistic for axis in source.axes):
        raise Refused("it makes a map of a head's flattened window", 'Use head="features"')
    return Rewrite(Identity(), replace(source, collapsed=False))
