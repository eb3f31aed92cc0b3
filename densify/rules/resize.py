"""Upsamplings: where a dense map meets an op that makes samples between its own."""

from __future__ import annotations

from dataclasses import replace
from math import gcd

from densify.lattice import Lattice
from densify.ops import Map, PhaseWise, Resize, Select
from densify.rules.registry import Refused, Rewrite, rule


@rule(Resize)
def resize(op: Resize, source: Map, *, padding: str) -> Rewrite:
    """Select: with g = gcd(scale, e), the first e / g phases are kept, each resized by itself; law 1 survives.

    A scale that is no whole number keeps phase 0 alone: there the result is the original's.
    """
    if source.collapsed:
        raise Refused("it makes a map of a flattened one", "Choose layers behind it")
    dense = any(axis.lattice.stride > 1 for axis in source.axes)
    if dense and padding != "full":
        raise Refused(f'it resizes phases, which padding="{padding}" leaves incomplete', 'Use padding="full"')
    axes, kept = [], []
    for axis, scale in zip(source.axes, op.scales, strict=True):
        est = axis.lattice.stride
        shared = gcd(scale.numerator, est) if scale.denominator == 1 else est
        left = est if scale == 1 else est // shared
        size = round(axis.size * scale)
        seen = tuple(any(axis.repeated[phase::est]) for phase in range(left))
        step = max(1, round(axis.step / scale))
        axes.append(
            replace(
                axis, size=size, dense=size * left, lattice=Lattice(left), step=max(step, left), field=None,
                repeated=seen * size, statistic=axis.statistic and size == 1,
            )
        )  # fmt: skip
        kept.append(left)
    result = source.with_axes(tuple(axes))
    if tuple(kept) == tuple(axis.lattice.stride for axis in source.axes):
        return Rewrite(PhaseWise(op), result)
    return Rewrite(Select(op, tuple(kept)), result)
