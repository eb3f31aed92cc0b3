"""Chains of views, permutations and unfolds in a program, run by themselves: see :mod:`densify.moves`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, fx, nn

from densify import moves as chains
from densify.graphs.fx.probe import image_of, run_at
from densify.graphs.fx.registry import in_place
from densify.maps import Layout
from densify.ops import Patches


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
    op = chains.patches(_trials((*between, node), source, graph, root))
    return None if op is None else Moves(op, source, between)


def mirrored(node: fx.Node, layouts: Mapping[fx.Node, Layout], graph: fx.Graph, root: nn.Module) -> tuple[bool, ...]:
    """Per spatial axis whether a chain of ops turns a map around, where all it does is to move samples; else ()."""
    found = _chain(node, layouts, root)
    if found is None:
        return ()
    source, between = found
    return chains.mirrored(_trials((*between, node), source, graph, root))


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


def _trials(
    nodes: Sequence[fx.Node], source: fx.Node, graph: fx.Graph, root: nn.Module
) -> Iterator[chains.Trial | None]:
    """What a chain does, at the example's size and at others that it takes."""
    for values in _sizes(graph, root, source, nodes[-1]):
        shape = values[source].shape
        yield chains.trial(shape, lambda x, values=values: _run(nodes, {**values, source: x}, root))  # type: ignore[misc]


def _sizes(graph: fx.Graph, root: nn.Module, source: fx.Node, node: fx.Node) -> Iterator[dict[fx.Node, Any]]:
    """The values of the graph at the example's size and at others that it takes."""
    yield {one: one.meta["value"] for one in graph.nodes if "value" in one.meta}
    shape = image_of(graph).meta["value"].shape
    step = max(round(n / max(m, 1)) for n, m in zip(shape[2:], source.meta["value"].shape[2:], strict=True))
    for image in chains.shapes(shape, step):
        values = run_at(graph, root, image, node)
        if node in values:
            yield values


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
