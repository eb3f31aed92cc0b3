"""Chains of views, permutations and slices in a graph, run by themselves: see :mod:`densify.moves`."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from math import prod
from typing import NamedTuple

import onnx_ir as ir
import torch
from torch import Tensor

from densify import moves as chains
from densify.graphs.onnx.part import part, run
from densify.graphs.onnx.registry import Place
from densify.graphs.onnx.values import Known
from densify.maps import Layout
from densify.plans import Site

_EXACT = {ir.DataType.FLOAT: 2**24, ir.DataType.DOUBLE: 2**53}  # integers up to which each type holds all


class Chain(NamedTuple):
    """A chain of nodes from one map to another.

    Attributes:
        source: the name of the map that it reads.
        between: names of the values between the two maps.
    """

    source: str
    between: tuple[str, ...]


def chain(node: ir.Node, places: Mapping[str, Place]) -> Chain | None:
    """The one map that a node's result follows from, and what lies between."""
    maps, between, stack = set[str](), list[str](), [node]
    while stack:
        for value in stack.pop().inputs:
            if value is None or (name := str(value.name)) not in places or name in between:
                continue
            if places[name].layout is Layout.MAP:
                maps.add(name)
            elif (producer := value.producer()) is not None:
                between.append(name)
                stack.append(producer)
    return Chain(maps.pop(), tuple(between)) if len(maps) == 1 else None


def read_by_nobody(
    between: Collection[str],
    last: ir.Value,
    made: Mapping[str, ir.Value],
    sites: Mapping[str, Site],
    places: Mapping[str, Place],
) -> list[str]:
    """The values that nobody reads but a chain, which is one op now, and what is told of their shapes alone.

    Args:
        between: names of the values between the two maps.
        last: what the chain makes.
        made: the values of the graph by name.
        sites, places: of all tensors of the image so far.
    """
    inside, found = {id(last.producer())}, list[str]()

    def within(value: ir.Value) -> bool:
        """Whether all that reads a value is the chain, or tells the chain of shapes alone."""
        if value.is_graph_output() or not value.consumers():
            return False  # what the original makes for nobody stays, too
        told = [node for node in value.consumers() if id(node) not in inside]
        return all(str(one.name) not in places and within(one) for node in told for one in node.outputs)

    for name in [one for one in reversed(list(sites)) if one in between]:
        if within(made[name]):
            inside.add(id(made[name].producer()))
            shapes = [str(node.outputs[0].name) for node in made[name].consumers() if id(node) not in inside]
            found += [name, *(one for one in shapes if one in sites and one not in found)]
    return found


def trials(
    model: ir.Model,
    source: str,
    result: str,
    places: Mapping[str, Place],
    known_at: Callable[[Sequence[int]], Mapping[str, Known]],
    image: Sequence[int],
    fixed: Sequence[bool],
) -> Iterator[chains.Trial | None]:
    """What a chain does, at the reference size and at others that it takes.

    Args:
        source, result: names of the two maps.
        places: what they are.
        known_at: what is known of every value where the image has such a shape, [B, C, *spatial].
        image: its shape at the reference size.
        fixed: which of its dimensions the graph is made for.
    """
    order = places[source].order
    steps = [round(n / max(m, 1)) for n, m in zip(image[2:], _plain(known_at(image)[source], order)[2:], strict=True)]
    for shape in (image, *chains.shapes(image, max(steps))):
        known = known_at(shape)
        fits = all(n == m or not one for n, m, one in zip(shape, image, fixed, strict=True))
        if not fits or source not in known or result not in known or known[source].shape is None:
            continue
        plain = _plain(known[source], order)
        if prod(plain) >= _EXACT.get(known[source].dtype, 0):
            yield None
            return
        yield chains.trial(plain, _runs(model, source, result, places, known))


def _plain(known: Known, order: Sequence[int]) -> list[int]:
    """The shape of a map, [B, C, *spatial]."""
    assert known.shape is not None
    return [known.shape[dim] for dim in order]


def _runs(
    model: ir.Model, source: str, result: str, places: Mapping[str, Place], known: Mapping[str, Known]
) -> Callable[[Tensor], Tensor | None]:
    """The chain on maps of one size, [B, C, *spatial]."""
    proto = part(model, [result], [source], known)
    before, after, dtype = places[source].order, places[result].order, known[source].dtype.numpy()

    def runs(x: Tensor) -> Tensor | None:
        own = x.permute([before.index(dim) for dim in range(x.dim())]).contiguous().numpy().astype(dtype)
        (made,) = run(proto, {source: own})
        if made is None or made[0].dtype != dtype or made[0].ndim != len(after):
            return None
        return torch.from_numpy(made[0]).double().permute(*after)

    return runs
