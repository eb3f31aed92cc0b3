"""Space to depth, however it is written: chains of views, permutations and unfolds that only move samples.

What such a chain does is in its numbers alone: it is run on a map that holds the index of every sample.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import prod
from typing import Any, NamedTuple

import torch
from torch import Tensor, fx, nn

from densify.graphs.fx.registry import in_place
from densify.lattice import Window
from densify.ops import Layout, Patches

_MOST_HOLES = 16  # samples of a window per sample that is used


class Moves(NamedTuple):
    """A chain that lays the samples of every window side by side in the channels.

    Attributes:
        op: what it does.
        source: the map that it reads.
        between: the nodes between the two maps, in order.
    """

    op: Patches
    source: fx.Node
    between: tuple[fx.Node, ...]


def moves(
    node: fx.Node,
    layouts: Mapping[fx.Node, Layout],
    root: nn.Module,
    grown: Sequence[Mapping[str, tuple[int, ...]]],
) -> Moves | None:
    """The windows whose samples a chain of ops moves into the channels, where it does nothing else.

    Args:
        node: the last of the chain, a map.
        layouts: of the nodes in front of it.
        root: the module tree on the meta device.
        grown: shapes by name with each spatial axis of the image made longer, as probe.py finds them.
    """
    found = _chain(node, layouts, root)
    if found is None:
        return None
    source, between = found
    indices = torch.arange(1.0, 1 + source.meta["value"].numel(), dtype=torch.float64).view(source.meta["value"].shape)
    values = torch.rand(indices.shape, dtype=torch.float64)
    made, checked = (_run((*between, node), source, x, root) for x in (indices, values))
    if made is None or checked is None or not torch.equal(made, made.round().clamp(0, indices.numel())):
        return None
    taken = made.long() - 1
    if not torch.equal(checked, torch.where(taken < 0, 0.0, values.flatten()[taken])):
        return None
    sizes = [(one[source.name], one[node.name]) for one in grown if source.name in one and node.name in one]
    op = _patches(taken, indices.shape, sizes)
    return Moves(op, source, between) if op is not None else None


def _chain(
    node: fx.Node, layouts: Mapping[fx.Node, Layout], root: nn.Module
) -> tuple[fx.Node, tuple[fx.Node, ...]] | None:
    """The one map that a node follows from, and what lies between, in order."""
    maps, between, stack = set(), set(), [node]
    while stack:
        for one in stack.pop().all_input_nodes:
            if one not in layouts and isinstance(one.meta["value"], Tensor):
                return None
            if layouts.get(one) is Layout.MAP and isinstance(one.meta["value"], Tensor):
                maps.add(one)
            elif one in layouts and one not in between:
                between.add(one)
                stack.append(one)
    if len(maps) != 1 or any(in_place(one, root) for one in (*between, node)):
        return None
    return maps.pop(), tuple(one for one in layouts if one in between)


def _run(nodes: Sequence[fx.Node], source: fx.Node, x: Tensor, root: nn.Module) -> Tensor | None:
    values: dict[fx.Node, Any] = {source: x}
    runner = fx.Interpreter(fx.GraphModule(nn.Module(), fx.Graph()))
    runner.module = root
    for node in nodes:
        args, kwargs = fx.map_arg((node.args, node.kwargs), lambda one: values.get(one, one.meta["value"]))
        try:
            with torch.no_grad():
                values[node] = getattr(runner, node.op)(node.target, args, kwargs)
        except Exception:  # it holds weights, which are on another device here: then it does more than move
            return None
    made: Tensor = values[nodes[-1]]
    return made if made.dtype == x.dtype else None


def _patches(
    taken: Tensor, shape: Sequence[int], grown: Sequence[tuple[tuple[int, ...], tuple[int, ...]]]
) -> Patches | None:
    """The windows that make [B, K, *spatial] of a map of the given shape.

    Args:
        taken: for every sample of the result the flat index that it comes from, or -1 for a zero.
        grown: shapes of the map and of the result, for each spatial axis of the image made longer.
    """
    if taken.dim() != len(shape) or len(grown) != len(shape) - 2:
        return None
    inside = taken >= 0
    image, channel, *places = torch.unravel_index(taken.clamp(0), tuple(shape))
    images = torch.arange(shape[0]).view(-1, *[1] * (taken.dim() - 1))
    channels = _per_channel(channel, inside)
    if channels is None or not torch.equal(image[inside], images.expand_as(image)[inside]):
        return None
    windows, taps, reached = [], [], torch.ones_like(inside)
    for axis, place in enumerate(places):
        count, size = taken.shape[2 + axis], shape[2 + axis]
        stride = _stride(place, inside, 2 + axis)
        if stride is None:
            return None
        starts = stride * torch.arange(count).view(-1, *[1] * (len(places) - 1 - axis))
        offsets = _per_channel(place - starts, inside)
        if offsets is None:
            return None
        window = _window(offsets, stride, [(size, count), tuple(one[2 + axis] for one in grown[axis])])
        if window is None:
            return None
        at = starts + offsets.view(-1, *[1] * len(places))
        reached &= (at >= 0) & (at < size)
        windows.append(window)
        taps.append(offsets + window.low)
    kernel = [window.kernel for window in windows]
    if not torch.equal(inside, reached) or shape[1] * prod(kernel) > _MOST_HOLES * taken.shape[1]:
        return None
    order = channels
    for tap, extent in zip(taps, kernel, strict=True):
        order = order * extent + tap
    return Patches(tuple(windows), order=tuple(order.tolist()))


def _per_channel(values: Tensor, inside: Tensor) -> Tensor | None:
    """The one value that each channel has where it is inside, [K]."""
    found = values.where(inside, -(1 << 40)).amax((0, *range(2, values.dim())))
    same = values == found.view(-1, *[1] * (values.dim() - 2))
    return found if bool((same | ~inside).all()) and int(found.min()) > -(1 << 40) else None


def _stride(place: Tensor, inside: Tensor, dim: int) -> int | None:
    """How far a window moves from one sample of the result to the next."""
    both = inside.narrow(dim, 1, inside.shape[dim] - 1) & inside.narrow(dim, 0, inside.shape[dim] - 1)
    moved = place.diff(dim=dim)[both].unique()
    return int(moved) if len(moved) == 1 and int(moved) > 0 else None


def _window(offsets: Tensor, stride: int, sizes: Sequence[tuple[int, ...]]) -> Window | None:
    """The window of these offsets whose padding gives so many samples for each of so many."""
    first, last = int(offsets.min()), int(offsets.max())
    size, count = sizes[0]
    missing = (count - 1) * stride + last + 1 - size
    for high in (max(-first, 0), 0, missing):
        window = Window(last - first + 1, stride, low=-first, high=high)
        if all(window.count(size) == count for size, count in sizes):
            return window
    return None
