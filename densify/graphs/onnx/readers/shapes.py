"""Readers of operators on shapes: flattening, transposing, slices, and what a graph asks of a tensor's shape."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

from densify.graphs.onnx.registry import Call, reads
from densify.lattice import Window
from densify.maps import Layout
from densify.ops import Channelwise, Crop, Flatten, MaxPool, Op, Pointwise, Same, ShapeOf, Unflatten, Unsupported


@reads("Flatten Reshape Squeeze Unsqueeze")
def reshape(call: Call) -> Op | None:
    before, after = call.shape(call.maps[0]), call.result
    if after == before:
        return Same()
    if call.source.layout is Layout.MAP and after == (before[0], prod(before[1:])) and call.source.order[0] == 0:
        return Flatten()
    if (
        call.source.layout is Layout.VECTOR
        and len(after) == 2 + call.spatial
        and sorted(after[2:]) == [1] * (len(after) - 2)
    ):
        return Unflatten() if after[:2] == before else None
    return None


@reads("Transpose")
def transpose(call: Call) -> Op | None:
    return Pointwise() if call.source.layout is Layout.MAP else None


@reads("Shape Size")
def shape_of(call: Call) -> Op | None:
    """What it reads of; a vector has no spatial axes."""
    return ShapeOf(total=call.node.op_type == "Size", spatial=call.source.layout is Layout.MAP)


@reads("Slice")
def slice_(call: Call) -> Op | None:
    """Some of the channels, or a part of the map; a step is a stride."""
    bounds = _bounds(call)
    if bounds is None:
        return Unsupported("what it cuts out is computed from the image", "Give it constant bounds")
    order, shape = call.source.order, call.shape(call.maps[0])
    cut = {dim for dim, (start, stop, step) in bounds.items() if (start, stop, step) != (0, shape[dim], 1)}
    if order[0] in cut or call.source.layout is not Layout.MAP or any(step < 1 for _, _, step in bounds.values()):
        return None
    if bounds.keys() <= {order[1]}:
        return Channelwise()
    sides = [bounds.get(dim, (0, shape[dim], 1)) for dim in order[2:]]
    if all(step == 1 for _, _, step in sides):
        pairs = zip(sides, call.source.sizes, strict=True)
        return Crop(tuple((-start, max(start, stop) - size) for (start, stop, _), size in pairs))
    if order[1] in cut:
        return None
    whole = all(stop == size for (_, stop, _), size in zip(sides, call.source.sizes, strict=True))
    return MaxPool(tuple(Window(1, step, low=-start) for start, _, step in sides)) if whole else None


def _bounds(call: Call) -> dict[int, tuple[int, int, int]] | None:
    """Per dimension that a Slice names: start, stop and step at the reference size; None where they are not known."""
    given: list[Sequence[int] | None]
    if call.version >= 10:
        numbers = [call.numbers(index) for index in range(1, len(call.node.inputs))]
        if any(one is None for one, value in zip(numbers, call.node.inputs[1:], strict=True) if value is not None):
            return None
        given = [None if one is None else [int(number) for number in one] for one in numbers]
    else:
        given = [call.integers("starts", ()), call.integers("ends", ()), call.integers("axes", ()) or None]
    starts, ends, axes, steps = [*given, None, None][:4]
    assert starts is not None
    assert ends is not None
    named = [axis % call.rank for axis in axes] if axes is not None else list(range(len(starts)))
    shape, found = call.shape(call.maps[0]), {}
    for place, dim in enumerate(named):
        step = 1 if steps is None else steps[place]
        start, stop, _ = slice(starts[place], ends[place], step).indices(shape[dim])
        found[dim] = (start, stop, step)
    return found


@reads("Gather")
def gather(call: Call) -> Op | None:
    """Some of the channels."""
    data = call.node.inputs[0]
    axis = call.node.attributes.get_int("axis", 0) % call.rank
    if data is None or (str(data.name),) != call.maps or call.source.layout is not Layout.MAP:
        return None
    kept = len(call.result) == call.rank
    return Channelwise() if axis == call.source.order[1] and kept else None
