"""Convolutions and poolings: eConv and ePool."""

from __future__ import annotations

from densify.lattice import densify_window
from densify.maps import Map
from densify.ops import (
    AvgPool,
    Conv,
    DenseWindowed,
    MaxPool,
    Patches,
    PowerPool,
    Sliding,
    Windowed,
)
from densify.rules.registry import Refused, Rewrite, rule

_DENSEST = 2**16


@rule(Conv, MaxPool, AvgPool, PowerPool, Patches, Sliding)
def window(op: Windowed, source: Map, *, padding: str) -> Rewrite:
    """Read at step eST; a removed stride multiplies the eST of what follows (paper, section 2.1)."""
    if source.collapsed and not (isinstance(op, Conv) and op.linear):
        raise Refused("a window slides over a map that was flattened before", "Choose layers in front of the flatten")
    chosen = op.chosen or (False,) * len(op.windows)
    windows, axes = [], []
    for axis, written, remove in zip(source.axes, op.windows, chosen, strict=True):
        one = written.same(axis.size, op.same) if op.same else written
        if op.same and one.stride > 1 and padding == "same":
            raise Refused("its own padding follows the map's size", 'Use padding="full"')
        if one.starts(axis.size) < 1:
            raise Refused(
                f"a window of {one.span + 1} samples does not fit into a map of {axis.size} samples",
                "Give a larger example",
            )
        if one.stride > 1 and axis.mirrored and (remove or axis.lattice.stride > 1):
            raise Refused(
                "it strides over a map that was flipped, so that its phases would be shifts of the image the other way",
                "Flip the image in front of the network instead",
            )
        dense, lattice = densify_window(one, axis.lattice, chosen=remove, padding=padding)
        if lattice.stride > _DENSEST:
            raise Refused(
                f"it would make {lattice.stride} samples of one along an axis",
                "Choose fewer layers, or look at its stride",
            )
        windows.append(dense)
        axes.append(axis.through(dense, lattice))
    return Rewrite(DenseWindowed(op, tuple(windows)), source.with_axes(tuple(axes)))
