"""Space to depth, however it is written: chains of views, permutations and unfolds that only move samples.

What such a chain does is in its numbers alone: it is run on maps that hold the index of every sample, at several sizes.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from math import prod
from typing import Any, NamedTuple

import torch
from torch import Tensor, fx, nn

from densify.graphs.fx.probe import image_of, run_at
from densify.graphs.fx.registry import in_place
from densify.lattice import Window
from densify.maps import Layout
from densify.ops import Patches

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


class _Trial(NamedTuple):
    """What a chain did with a map of one size: for every sample of its result the flat index that it comes from, or -1
    for a zero."""

    shape: tuple[int, ...]
    taken: Tensor


def moves(node: fx.Node, layouts: Mapping[fx.Node, Layout], graph: fx.Graph, root: nn.Module) -> Moves | None:
    """The windows whose samples a chain of ops moves into the channels, where it does nothing else at any size tried.

    Args:
        node: the last of the chain, a map.
        layouts: of the nodes in front of it.
        root: the module tree on the meta device.
    """
    found = _chain(node, layouts, root)
    if found is None:
        return None
    source, between = found
    trials: list[_Trial] = []
    for values in _sizes(graph, root, source, node):
        trial = _trial((*between, node), source, values, root)
        if trial is None:
            return None
        trials.append(trial)
    op = _patches(trials)
    if op is None or not all(torch.equal(trial.taken, _taken(op, trial.shape)) for trial in trials):
        return None
    return Moves(op, source, between)


def mirrored(node: fx.Node, layouts: Mapping[fx.Node, Layout], graph: fx.Graph, root: nn.Module) -> tuple[bool, ...]:
    """Per spatial axis whether a chain of ops turns a map around, where all it does is to move samples; else ().

    Two samples turned around may also be rolled, so that larger maps decide.
    """
    found = _chain(node, layouts, root)
    if found is None:
        return ()
    source, between = found
    turned: tuple[bool, ...] = ()
    for values in _sizes(graph, root, source, node):
        trial = _trial((*between, node), source, values, root)
        if trial is None or trial.taken.dim() != len(trial.shape):
            return ()
        places = torch.unravel_index(trial.taken.clamp(0), trial.shape)
        axes = range(2, len(trial.shape))
        now = tuple(trial.taken.shape[i] > 1 and bool((places[i].diff(dim=i) == -1).all()) for i in axes)
        turned = tuple(one and other for one, other in zip(turned or now, now, strict=True))
        if not any(one and trial.taken.shape[2 + axis] < 3 for axis, one in enumerate(turned)):
            break
    return turned


def _arguments(nodes: Sequence[fx.Node]) -> list[fx.Node]:
    return [source for node in nodes for source in node.all_input_nodes]


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


def _sizes(graph: fx.Graph, root: nn.Module, source: fx.Node, node: fx.Node) -> Iterator[dict[fx.Node, Any]]:
    """The values of the graph at the example's size and at others that it takes: longer ones along each axis, and some
    that leave other remainders."""
    yield {one: one.meta["value"] for one in graph.nodes if "value" in one.meta}
    shape = image_of(graph).meta["value"].shape
    step = max(round(n / max(m, 1)) for n, m in zip(shape[2:], source.meta["value"].shape[2:], strict=True))
    grown = [[size * 4 if dim == axis else size for dim, size in enumerate(shape)] for axis in range(2, len(shape))]
    more = [[*shape[:2], *(n + d for n in shape[2:])] for d in sorted({1, 2, 3, step, 2 * step, 3 * step})]
    for image in ([2 * shape[0] + 1, *shape[1:]], *grown, *more):
        values = run_at(graph, root, image, node)
        if node in values:
            yield values


def _trial(nodes: Sequence[fx.Node], source: fx.Node, values: Mapping[fx.Node, Any], root: nn.Module) -> _Trial | None:
    """What the chain does with a map of this size; None where it does more than move samples."""
    shape = tuple(values[source].shape)
    indices = torch.arange(1.0, 1 + prod(shape), dtype=torch.float64).view(shape)
    signed = torch.rand(shape, dtype=torch.float64) * 8 - 4
    made, checked = (_run(nodes, {**values, source: x}, root) for x in (indices, signed))
    if made is None or checked is None or not torch.equal(made, made.round().clamp(0, indices.numel())):
        return None
    taken = made.long() - 1
    if not torch.equal(checked, torch.where(taken < 0, 0.0, signed.flatten()[taken])):
        return None
    return _Trial(shape, taken)


def _run(nodes: Sequence[fx.Node], values: dict[fx.Node, Any], root: nn.Module) -> Tensor | None:
    runner = fx.Interpreter(fx.GraphModule(nn.Module(), fx.Graph()))
    runner.module = root
    for node in nodes:
        args, kwargs = fx.map_arg((node.args, node.kwargs), values.__getitem__)
        try:
            with torch.no_grad():
                values[node] = getattr(runner, node.op)(node.target, args, kwargs)
        except Exception:  # it holds weights, which are on another device here: then it does more than move
            return None
    made: Tensor = values[nodes[-1]]
    return made if made.dtype == torch.float64 else None


def _patches(trials: Sequence[_Trial]) -> Patches | None:
    """The windows that explain the first trial, with padding that explains the sizes of all."""
    shape, taken = trials[0]
    spatial = range(2, len(shape))
    if taken.dim() != len(shape) or any(len({trial.shape[axis] for trial in trials}) < 2 for axis in spatial):
        return None
    inside = (taken >= 0).movedim(1, 0).flatten(1)
    if not inside.any(1).all():
        return None
    seen = inside.int().argmax(1)  # for every channel, a sample of it that is no padding
    at = torch.unravel_index(seen, (taken.shape[0], *taken.shape[2:]))
    channel, *places = torch.unravel_index(taken.movedim(1, 0).flatten(1).gather(1, seen[:, None])[:, 0], shape)[1:]
    windows, taps = [], []
    for axis, (place, out) in enumerate(zip(places, at[1:], strict=True)):
        stride = _stride(taken, shape, 2 + axis)
        offsets = place - stride * out
        counts = [(trial.shape[2 + axis], trial.taken.shape[2 + axis]) for trial in trials]
        window = _window(offsets, stride, counts)
        if window is None:
            return None
        windows.append(window)
        taps.append(offsets + window.low)
    kernel = [window.kernel for window in windows]
    if shape[1] * prod(kernel) > _MOST_HOLES * taken.shape[1]:
        return None
    order = channel
    for tap, extent in zip(taps, kernel, strict=True):
        order = order * extent + tap
    return Patches(tuple(windows), order=tuple(order.tolist()))


def _stride(taken: Tensor, shape: Sequence[int], dim: int) -> int:
    """How far the window moves along an axis between two neighbouring samples that are no padding; 0 if none are."""
    place = torch.unravel_index(taken.clamp(0), tuple(shape))[dim]
    both = [(taken.narrow(dim, start, taken.shape[dim] - 1) >= 0) for start in (0, 1)]
    moved = place.diff(dim=dim)[both[0] & both[1]]
    return int(moved[0]) if len(moved) else 0


def _window(offsets: Tensor, stride: int, counts: Sequence[tuple[int, int]]) -> Window | None:
    """The window of these offsets whose padding gives so many samples for each of so many."""
    first, last = int(offsets.min()), int(offsets.max())
    size, count = counts[0]
    missing = (count - 1) * stride + last + 1 - size
    for high in (max(-first, 0), 0, missing):
        window = Window(last - first + 1, stride, low=-first, high=high)
        if stride > 0 and all(window.count(size) == count for size, count in counts):
            return window
    return None


def _taken(op: Patches, shape: tuple[int, ...]) -> Tensor:
    """The flat index that every sample of the result comes from for a map of this shape, -1 for padding."""
    steps = [prod(shape[axis + 1 :]) for axis in range(len(shape))]
    kernel = tuple(window.kernel for window in op.windows)
    channel, *taps = torch.unravel_index(torch.tensor(op.order), (shape[1], *kernel))
    rank = len(shape)
    images, channels = torch.arange(shape[0]) * steps[0], channel * steps[1]
    index = images.view(-1, *[1] * (rank - 1)) + channels.view(-1, *[1] * (rank - 2))
    inside = torch.ones_like(index, dtype=torch.bool)
    for axis, (window, tap) in enumerate(zip(op.windows, taps, strict=True), 2):
        starts = torch.arange(window.count(shape[axis])) * window.stride - window.low
        place = starts.view(-1, *[1] * (rank - 1 - axis)) + tap.view(-1, *[1] * (rank - 2))
        inside = inside & (place >= 0) & (place < shape[axis])
        index = index + place * steps[axis]
    return index.where(inside, -1)
