"""Upsamplings: where a dense map meets an op that makes samples between its own."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction
from math import gcd

from densify.lattice import Axis, Lattice
from densify.ops import Map, PhaseWise, Resize, Select
from densify.rules.registry import Refused, Rewrite, rule


@rule(Resize)
def resize(op: Resize, source: Map, like: Map | None = None, *, padding: str) -> Rewrite:
    """Select: with g = gcd(scale, e), the first e / g phases are kept, each resized by itself; law 1 survives.

    The scale is the ratio of the steps where the op takes the size of another map, `like`. A scale that is no whole
    number keeps phase 0 alone: there the result is the original's. What is made of the whole map keeps all phases.
    """
    if source.collapsed:
        raise Refused("it makes a map of a flattened one", "Choose layers behind it")
    dense = any(axis.lattice.stride > 1 for axis in source.axes)
    if dense and padding != "full":
        raise Refused(f'it resizes phases, which padding="{padding}" leaves incomplete', 'Use padding="full"')
    targets = like.axes if like is not None else (None,) * len(source.axes)
    axes = tuple(_resized(*each) for each in zip(source.axes, op.scales, targets, strict=True))
    result = source.with_axes(axes)
    kept = tuple(axis.lattice.stride for axis in axes)
    if kept == tuple(axis.lattice.stride for axis in source.axes):
        return Rewrite(PhaseWise(op), result)
    return Rewrite(Select(op, kept), result)


def _resized(axis: Axis, scale: Fraction, like: Axis | None) -> Axis:
    est = axis.lattice.stride
    size = round(axis.size * scale) if like is None else like.size
    if axis.whole:
        seen = tuple(any(axis.repeated[phase::est]) for phase in range(est))
        return replace(axis, size=size, dense=size * est, repeated=seen * size)
    ratio = scale if like is None else Fraction(axis.step, like.step)
    left = est if ratio == 1 else est // (gcd(ratio.numerator, est) if ratio.denominator == 1 else est)
    seen = tuple(any(axis.repeated[phase::est]) for phase in range(left))
    step = max(1, round(axis.step / ratio))
    return replace(
        axis, size=size, dense=size * left, lattice=Lattice(left), step=max(step, left), field=None,
        repeated=seen * size,
    )  # fmt: skip
