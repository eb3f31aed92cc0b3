"""The heads of classifiers: poolings over the whole map, fixed windows, flatten and Linear."""

from __future__ import annotations

from dataclasses import replace

from densify.lattice import Axis, Window
from densify.maps import Map
from densify.ops import (
    AdaptivePool,
    Conv,
    Flatten,
    GlobalPool,
    Identity,
    Linear,
    PhaseWise,
)
from densify.rules.registry import Refused, Rewrite, rewrite, rule


@rule(GlobalPool)
def global_pool(op: GlobalPool, source: Map, *, padding: str) -> Rewrite:
    """A statistic over the whole map is taken phase by phase: [.., n*e, m*e] -> [.., e, e]."""
    if source.collapsed:
        raise Refused("it pools a map that was flattened before", "Choose layers in front of the flatten")
    if op.through:
        return Rewrite(Identity(), replace(source, collapsed=not op.keepdim, pooled=True))
    pooled = Map(tuple(axis.pooled(padding) for axis in source.axes), collapsed=not op.keepdim)
    return Rewrite(PhaseWise(op), pooled)


@rule(AdaptivePool)
def adaptive_pool(op: AdaptivePool, source: Map, *, padding: str) -> Rewrite:
    """Adaptive pooling to k x k: phase by phase, but where it makes a head's window, which must have that size."""
    sizes = tuple(axis.size for axis in source.axes)
    if op.window and sizes == op.sizes:
        return Rewrite(Identity(), source)
    if op.window:
        have, want = ("x".join(map(str, s)) for s in (sizes, op.sizes))
        raise Refused(
            f"it pools a map of {have} to {want} at this reference size, and a fully convolutional head needs {want}",
            "Give an example (--input-size) at which the map already has that size",
        )
    if padding != "full" and not source.untouched:
        raise Refused(
            f'it pools every phase by itself, which padding="{padding}" leaves incomplete', 'Use padding="full"'
        )
    axes = tuple(_binned(axis, size, padding) for axis, size in zip(source.axes, op.sizes, strict=True))
    return Rewrite(PhaseWise(op), source.with_axes(axes))


def _binned(axis: Axis, size: int, padding: str) -> Axis:
    """One axis of an adaptive pooling to so many bins; the step is that of the map, whose shifts its phases are."""
    if size == axis.size:
        return replace(axis, field=None)
    pooled = axis.pooled(padding)
    return replace(pooled, size=size, dense=size * axis.lattice.stride, repeated=pooled.repeated * size)


@rule(Flatten)
def flatten(op: Flatten, source: Map, *, padding: str) -> Rewrite:
    """The map stays a map; the next Linear layer reads the whole window at every position."""
    if any(axis.mirrored and axis.size > 1 for axis in source.axes):
        raise Refused(
            "it takes in a map that was flipped, whose windows come in the other order on a larger image",
            "Flip the image in front of the network instead",
        )
    if source.collapsed:
        return Rewrite(Identity(), source)
    window = op.window or tuple(1 if source.pooled else axis.size for axis in source.axes)
    axes = tuple(replace(axis, pending=size) for axis, size in zip(source.axes, window, strict=True))
    return Rewrite(Identity(), Map(axes, collapsed=True, pooled=source.pooled))


@rule(Linear)
def linear(op: Linear, source: Map, *, padding: str) -> Rewrite:
    """A Linear layer on a flattened window is a convolution with that window as its kernel (paper, section 2.1)."""
    if not source.collapsed:
        raise Refused("a Linear layer on a map that was not flattened", "Permuted layouts are not supported yet")
    return rewrite(Conv(tuple(Window(axis.pending) for axis in source.axes), linear=True), source, padding=padding)
