"""Operators that move the images of a batch to another dimension, and those behind that move them back.

Neither may run on phases that are laid in the batch by itself; together they may, where they keep the images apart.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

import onnx_ir as ir

from densify.graphs.onnx.apart import moved_back
from densify.graphs.onnx.registry import Place
from densify.graphs.onnx.values import Known
from densify.maps import Layout
from densify.ops import Fault, Other
from densify.plans import Site

_TIMES = (3, 5)  # as many images are tried together


def settle(
    model: ir.Model,
    sites: dict[str, Site],
    places: Mapping[str, Place],
    known_for: Callable[[int], tuple[Mapping[str, Known], int]],
) -> None:
    """Take the fault from ops that do not keep the images along the first dimension, where those behind move them back.

    Args:
        sites: of all tensors of the image, by name; changed.
        places: what they are.
        known_for: what is known of every value for so many times as many images, and how many those are.
    """
    made = {str(value.name): value for node in model.graph for value in node.outputs}
    moved = {name for name, site in sites.items() if isinstance(site.op, Other) and site.op.fault is Fault.MOVED}
    while moved:
        region, nodes = _around(made[min(moved)], moved)
        moved -= region
        read = {name for node in nodes for one in node.inputs if one is not None and (name := str(one.name)) in places}
        exits = {name for node in nodes for one in node.outputs if (name := str(one.name)) in sites} - region
        back = exits and all(isinstance(sites[name].op, Other) for name in exits)
        if not back or any(made[name].is_graph_output() for name in region):
            continue
        before, behind = ({name: _images(places[name]) for name in sorted(names)} for names in (read - region, exits))
        if all(moved_back(model, before, behind, *known_for(times)) for times in _TIMES):
            for name in region | exits:
                site = sites[name]
                sites[name] = replace(site, op=replace(site.op, fault=None))  # type: ignore[type-var]


def _around(value: ir.Value, moved: set[str]) -> tuple[set[str], list[ir.Node]]:
    """The values whose images lie elsewhere that hang together with one of them, and the nodes between them."""
    region, stack, nodes = {str(value.name)}, [value], dict[int, ir.Node]()
    while stack:
        one = stack.pop()
        for node in (one.producer(), *one.consumers()):
            if node is None or id(node) in nodes or node.op_type in ("Shape", "Size"):
                continue
            nodes[id(node)] = node
            for other in (*node.inputs, *node.outputs):
                if other is not None and (name := str(other.name)) in moved and name not in region:
                    region.add(name)
                    stack.append(other)
    return region, list(nodes.values())


def _images(place: Place) -> int:
    """The dimension of a tensor's images."""
    return place.order[0] if place.layout is Layout.MAP else 0
