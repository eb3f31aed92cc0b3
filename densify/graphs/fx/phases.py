"""Nodes that run on fragments, and which phases they meet; both forms write them so."""

from __future__ import annotations

from collections.abc import Callable
from math import prod
from typing import Any

import torch.utils._pytree as pytree
from torch import fx

from densify import layers
from densify.graphs.fx.write import Writer, est_of
from densify.plans import Step
from densify.rules.joins import common, phases_to_take


def on_fragments(writer: Writer, node: fx.Node, est: tuple[int, ...], read: Callable[[fx.Node], fx.Node]) -> fx.Node:
    """A node on fragments; what was recorded as a whole may look at its batch, and sees one phase at a time."""
    if not node.meta.get("whole"):
        return writer.new.node_copy(node, read)
    given = (tuple(node.args), dict(node.kwargs))
    takes = pytree.tree_map(lambda one: isinstance(one, fx.Node) and writer.of_images(one), given)
    args, kwargs = fx.map_arg(given, lambda one: read(one) if writer.of_images(one) else writer.fragment(one, _ONCE))
    if node.op == "call_module":
        module = writer.new.create_node("get_attr", str(node.target))
        return writer.call(layers.each_phase, module, prod(est), takes, args, kwargs)
    return writer.call(_each_phase_of(node.target), prod(est), takes, args, kwargs)


_ONCE = (1,)  # eST of a batch of images


def _each_phase_of(function: Any) -> Callable[..., Any]:
    def call(phases: int, takes: Any, args: Any, kwargs: Any) -> Any:
        return layers.each_phase(function, phases, takes, args, kwargs)

    call.__name__ = call.__qualname__ = f"each_phase_of_{function.__name__}"
    return call


def rephased(writer: Writer, step: Step) -> dict[str, fx.Node]:
    """The fragments of operands whose phases are not those of the result, brought into its order, by key."""
    wide = [common(axes) for axes in zip(*(source.axes for source in step.sources), strict=True)]
    found = {}
    for key, source in zip(step.site.inputs, step.sources, strict=True):
        phases = tuple(phases_to_take(*pair) for pair in zip(source.axes, wide, strict=True))
        if phases != tuple(tuple(range(e)) for e in est_of(source)):
            made = writer.fragment(writer.by_name[key], est_of(source))
            found[key] = writer.call(layers.rephase, made, est_of(source), phases)
    return found
