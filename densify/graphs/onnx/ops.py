"""Writers of single ops, for both forms."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import onnx_ir as ir

from densify.graphs.onnx import layers
from densify.graphs.onnx.tape import Size, Tensor
from densify.graphs.onnx.write import Writer, est_of, unchanged
from densify.lattice import DenseWindow
from densify.maps import Layout
from densify.ops import AvgPool, Conv, DenseWindowed, MaxPool, Op, Other, Patches, PowerPool
from densify.plans import Step
from densify.rules.joins import common, phases_to_take


def identity(writer: Writer, node: ir.Node, step: Step, op: Op) -> Tensor | None:
    """Its input."""
    source = step.site.inputs[0]
    writer.env[step.site.key] = writer.ordered(step.site.key, writer.plain(source))
    return None


def channelwise(writer: Writer, node: ir.Node, step: Step, op: Op) -> Tensor | None:
    """The node itself; on vectors, which have other dimensions here, row by row."""
    if step.sources[0].collapsed and node.op_type != "BatchNormalization":
        return rows(writer, node, step, op)
    return unchanged(writer, node, step, op)


def rows(writer: Writer, node: ir.Node, step: Step, op: Op) -> Tensor:
    """The node on the vector of every position."""
    key = step.site.inputs[0]
    x = writer.space(key)
    if not step.sources[0].collapsed:  # a vector that the dense network has as it is
        writer.keep(node, step)
        return writer.tensor(step.site.key)
    flat = layers.to_rows(x)
    (made,) = writer.copy(node, lambda one: flat.value if writer.name(one) == key else writer.argument(one, node, step))
    shape = step.site.shape
    assert shape is not None
    return layers.from_rows(Tensor(writer.tape, made, [None, shape[1]]), x)


def windowed(writer: Writer, node: ir.Node, step: Step, op: DenseWindowed) -> Tensor | None:
    """eConv and ePool, or the node itself where nothing changed."""
    linear = isinstance(op.op, Conv) and op.op.linear
    several = step.site.inputs[0] not in map(writer.name, filter(None, node.inputs))  # nodes, which may ask for images
    if all(window.untouched for window in op.windows) and not linear and not (several and not step.map.untouched):
        return unchanged(writer, node, step, op)
    x = writer.plain(step.site.inputs[0])
    windows: Sequence[DenseWindow] = layers.run_time(op.windows, x, op.op.same) if op.op.same else op.windows
    if isinstance(op.op, Conv):
        return _conv(writer, node, step, op.op, windows, x)
    if isinstance(op.op, Patches):
        return writer.ordered(step.site.key, layers.epatches(x, windows, op.op.order))
    if isinstance(op.op, PowerPool):
        return layers.epower_pool(x, windows, op.op.norm)
    sizes = _sizes(writer, step, windows)
    if isinstance(op.op, AvgPool):
        return layers.eavg_pool(x, windows, op.op.count_include_pad, sizes)
    assert isinstance(op.op, MaxPool)
    made = layers.emax_pool(x, windows, sizes, shifts=writer.shifts)
    return writer.ordered(step.site.key, made)


def _sizes(writer: Writer, step: Step, windows: Sequence[DenseWindow]) -> list[Size] | None:
    """The original's sizes, where a layer needs them beside its windows."""
    if any(window.ceil and window.padding == "same" and window.est > 1 for window in windows):
        return writer.original_sizes(step.site.inputs[0])
    return None


def _conv(writer: Writer, node: ir.Node, step: Step, op: Conv, windows: Sequence[DenseWindow], x: Tensor) -> Tensor:
    shape = step.site.shape
    assert shape is not None
    given = [writer.argument(one, node, step) for one in node.inputs[1:] if one is not None]
    if not op.linear:
        bias = given[1] if len(given) > 1 else None
        return layers.econv(x, given[0], bias, windows, shape[1], node.attributes.get_int("group", 1))
    kernel = [window.kernel for window in windows]
    turned = node.op_type == "MatMul" or not node.attributes.get_int("transB", 0)
    weight = _kernel(writer, step, given[0], kernel, x.channels(), shape[1], turned=turned)
    scales = [node.attributes.get_float(name, 1.0) for name in ("alpha", "beta")]
    plain = scales == [1.0, 1.0]
    bias = _flat(writer, given[1], shape[1]) if plain and len(given) > 1 else None
    y = layers.econv(x, weight, bias, windows, shape[1])
    if plain:
        return y
    number = x.value.dtype.numpy()  # type: ignore[union-attr]
    y = y.op("Mul", [writer.tape.constant(np.array(scales[0], number))])
    if len(given) < 2:
        return y
    bias = writer.tape.op("Mul", [_flat(writer, given[1], shape[1]), writer.tape.constant(np.array(scales[1], number))])
    ones = [1] * len(kernel)
    return y.op("Add", [writer.tape.op("Reshape", [bias, writer.tape.integers([1, -1, *ones])])])


def _flat(writer: Writer, bias: ir.Value, channels: int) -> ir.Value:
    """A Gemm's bias as a convolution's, [K]."""
    if bias.shape is not None and len(bias.shape) == 1 and bias.shape[0] == channels:
        return bias
    whole = writer.tape.op("Expand", [bias, writer.tape.integers([1, channels])])
    return writer.tape.op("Reshape", [whole, writer.tape.integers([channels])])


def _kernel(
    writer: Writer, step: Step, weight: ir.Value, kernel: Sequence[int], channels: int, made: int, *, turned: bool
) -> ir.Value:
    """A linear layer's weight as a convolution's [K, C, *kernel].

    Its columns come in the order in which the map's dimensions were when it was flattened.

    Args:
        turned: whether the weight is [C * prod(kernel), K].
    """
    tape, order = writer.tape, _flattened(writer, step.site.inputs[0])
    sizes = [channels, *kernel]
    within = [sizes[order.index(dim) - 1] for dim in range(1, len(order))]
    place = [dim - 1 for dim in order[1:]]
    if turned:
        apart = tape.op("Reshape", [weight, tape.integers([*within, made])])
        return tape.op("Transpose", [apart], {"perm": [len(within), *place]})
    apart = tape.op("Reshape", [weight, tape.integers([made, *within])])
    if place == list(range(len(place))):
        return apart
    return tape.op("Transpose", [apart], {"perm": [0, *(one + 1 for one in place)]})


def _flattened(writer: Writer, key: str) -> tuple[int, ...]:
    """The order of dimensions of the map that a vector was made of."""
    site = writer.plan.network.sites[key]
    while site.layout is Layout.VECTOR and site.inputs:
        site = writer.plan.network.sites[site.inputs[0]]
    order = writer.reading.places[site.key].order
    return order or tuple(range(2 + len(writer.plan.steps[key].map.axes)))


def joined(writer: Writer, node: ir.Node, step: Step, operands: Mapping[str, Tensor]) -> Tensor:
    """The join itself, of these tensors in their own order of dimensions."""
    axis = {"axis": 1} if node.op_type == "Concat" and step.map.collapsed else {}

    def read(value: ir.Value) -> ir.Value:
        name = writer.name(value)
        return operands[name].value if name in operands else writer.argument(value, node, step)

    (made,) = writer.copy(node, read, **axis)
    known = writer.tensor(step.site.key).shape
    return Tensor(writer.tape, made, known)


def rephased(writer: Writer, step: Step) -> dict[str, Tensor]:
    """The fragments of operands whose phases are not those of the result, brought into its order, by key."""
    wide = [common(axes) for axes in zip(*(source.axes for source in step.sources), strict=True)]
    found = {}
    for key, source in zip(step.site.inputs, step.sources, strict=True):
        phases = tuple(phases_to_take(*pair) for pair in zip(source.axes, wide, strict=True))
        if phases != tuple(tuple(range(e)) for e in est_of(source)):
            found[key] = layers.rephase(writer.fragment(key), est_of(source), phases)
    return found


def moved(writer: Writer, step: Step) -> dict[str, Tensor]:
    """What an op that runs on fragments reads instead of its inputs' own."""
    return rephased(writer, step) if isinstance(step.site.op, Other) else {}
