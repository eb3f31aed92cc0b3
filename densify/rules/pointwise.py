"""Ops that work on every sample by itself pass through."""

from __future__ import annotations

from densify.maps import Map
from densify.ops import (
    Channelwise,
    Op,
    Pointwise,
    Rows,
    ShapeOf,
    Unsupported,
    Values,
)
from densify.rules.registry import Refused, Rewrite, rule


@rule(Pointwise)
def pointwise(op: Op, source: Map, *, padding: str) -> Rewrite:
    """The same op: a sample's value does not depend on where its neighbours lie."""
    return Rewrite(op, source)


@rule(ShapeOf)
def shape_of(op: ShapeOf, source: Map, *, padding: str) -> Rewrite:
    """A program reads the original's sizes, N / e along every axis."""
    if padding == "same" and op.spatial and any(axis.lattice.stride > 1 for axis in source.axes):
        raise Refused('it reads a size that padding="same" does not keep', 'Use padding="full" or padding="valid"')
    if op.total and not source.untouched:
        raise Refused("it reads a tensor's number of elements", "Write it as the product of the shape it means")
    return Rewrite(op, source)


@rule(Values)
def values(op: Op, *sources: Map, padding: str) -> Rewrite:
    """A number cannot be another one for every phase."""
    if not all(source.untouched for source in sources):
        raise Refused(
            "it makes a number or a condition of a map, and every phase has its own",
            "Keep it a tensor, or choose layers behind it",
        )
    return Rewrite(op, sources[0])


@rule(Channelwise)
def channelwise(op: Op, source: Map, *, padding: str) -> Rewrite:
    """The same op on a map; on flattened maps it runs on the vector of every position."""
    return rows(op, source, padding=padding) if source.collapsed else Rewrite(op, source)


@rule(Rows)
def rows(op: Op, source: Map, *, padding: str) -> Rewrite:
    """An op on vectors [B, K]: positions go into the batch."""
    if any(axis.pending > 1 for axis in source.axes):
        raise Refused(
            "it works on a flattened window of the map, entry by entry, and that window is not a tensor here",
            'Use head="features", or move it behind the first Linear layer',
        )
    fault = getattr(op, "fault", None)
    if fault and any(axis.lattice.stride > 1 or not axis.statistic for axis in source.axes):
        raise Refused(fault, "Choose layers behind it, or write it image by image")
    return Rewrite(Rows(), source)


@rule(Unsupported)
def unsupported(op: Unsupported, *sources: Map, padding: str) -> Rewrite:
    """Refuse, with the reader's reason."""
    raise Refused(op.reason, op.remedy)
