"""The map whose size a Resize is given, where it is one."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from densify.graphs.onnx.growth import Growth
from densify.graphs.onnx.registry import Call
from densify.graphs.onnx.values import Known
from densify.maps import Layout
from densify.plans import Site


def like(call: Call, sites: Mapping[str, Site], sized: Collection[str], growth: Growth) -> tuple[str, ...]:
    """The other map that the result of a Resize is as large as; () where there is none.

    Args:
        sites: of all tensors of the image in front of it, and of what tells their shapes.
        sized: names of what follows from shapes alone.
    """
    made = tuple(call.result[dim] for dim in call.source.order[2:])
    stack = [one.producer() for one in call.node.inputs[1:] if one is not None and str(one.name) in sized]
    while stack:
        node = stack.pop()
        if node is None:
            continue
        if node.op_type == "Shape" and str(node.outputs[0].name) in sites:
            (other,) = sites[str(node.outputs[0].name)].inputs
            place = call.places[other]
            if other not in call.maps and place.layout is Layout.MAP and place.sizes == made:
                return (other,)
        else:
            stack += [one.producer() for one in node.inputs if one is not None]
    return _as_large(call, growth)


def _as_large(call: Call, growth: Growth) -> tuple[str, ...]:
    """The first map that is as large as the result at every size tried: exporters write sizes anew."""
    name, dims = str(call.node.outputs[0].name), call.source.order[2:]
    for other, place in call.places.items():
        if other in (name, *call.maps) or place.layout is not Layout.MAP or place.order != call.source.order:
            continue
        shapes = [(_shape(one, name), _shape(one, other)) for one in (growth.known, *growth.grown)]
        if all(a and b and [a[dim] for dim in dims] == [b[dim] for dim in dims] for a, b in shapes):
            return (other,)
    return ()


def _shape(known: Mapping[str, Known], name: str) -> tuple[int, ...]:
    found = known.get(name)
    return () if found is None else found.shape or ()
