"""The form "dilated": eConv and ePool, phase by phase where an op has no dilated form."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from densify.graphs.onnx import layers
from densify.graphs.onnx.merging import merged
from densify.graphs.onnx.ops import channelwise, identity, joined, moved, rephased, rows, windowed
from densify.graphs.onnx.tape import Tensor
from densify.graphs.onnx.write import Writer, est_of, unchanged
from densify.lattice import Axis
from densify.maps import Layout
from densify.ops import Channelwise, Crop, DenseWindowed, Identity, Join, Merge, Op, Pad, PhaseWise, Rows, ShapeOf
from densify.plans import Step
from densify.rules.joins import crops, widest


def _phase_wise(writer: Writer, node: ir.Node, step: Step, op: Op) -> Tensor | None:
    """The op itself on fragments. Nothing moves back into space before somebody needs it there: wraps that follow on
    each other cancel."""
    source = step.sources[0]
    inside = all(key in writer.env for key in step.site.inputs)
    if all(one.untouched for one in (*step.sources, step.map)) and inside:
        return unchanged(writer, node, step, op)
    if writer.plan.padding == "full" or set(est_of(source)) == {1}:
        other = moved(writer, step)
        writer.on_fragments(node, est_of(step.map), other.get)
        return None
    key, est = step.site.inputs[0], est_of(source)
    x, sizes = writer.plain(key), writer.original_sizes(key)
    first = tuple(axis.lattice.offset - axis.lattice.offset % axis.lattice.stride for axis in source.axes)
    kept = layers.complete_phases(x, est, sizes, first)
    fragments = writer.ordered(key, layers.space_to_batch(x, est, sizes, first))
    (made,) = writer.copy(
        node, lambda one: fragments.value if writer.name(one) == key else writer.argument(one, node, step)
    )
    shape: list[int | None] = [None] * len(step.site.shape or ())
    shape[1] = (step.site.shape or (0, 0))[1]
    whole = Tensor(writer.tape, made, shape)
    return writer.ordered(step.site.key, layers.batch_to_space(writer.plain_of(step.site.key, whole), est, kept))


def _scaled(writer: Writer, value: ir.Value, times: Sequence[int]) -> ir.Value:
    """Numbers of samples of the original in dense samples; what reaches past every size stays as it is."""
    numbers = writer.reading.known[writer.name(value)].numbers
    assert numbers is not None
    factors = np.where(np.abs(numbers) < _PAST_ALL, np.array(times, np.int64), 1)
    kind, largest = numbers.dtype, np.iinfo(numbers.dtype).max
    if ir.convenience.get_const_tensor(value) is not None:
        return writer.tape.constant((numbers * factors).clip(-largest, largest).astype(kind))
    return writer.tape.op("Mul", [writer.values[writer.name(value)], writer.tape.constant(factors.astype(kind))])


_PAST_ALL = 2**31 - 1


def _pad(writer: Writer, node: ir.Node, step: Step, op: Pad) -> Tensor | None:
    """The same padding, e times as wide."""
    est, key = est_of(step.sources[0]), step.site.inputs[0]
    if set(est) == {1}:
        return unchanged(writer, node, step, op)
    x, order = writer.space(key), writer.reading.places[key].order
    apart = [(1, 1, *est)[order.index(dim)] for dim in range(x.rank)]
    if writer.tape.version < 11:
        sides = {2 + i: (low * e, high * e) for i, ((low, high), e) in enumerate(zip(op.sides, est, strict=True))}
        return writer.ordered(key, writer.plain(key).padded(sides, node.attributes.get_float("value", 0.0)))
    amounts = node.inputs[1]
    assert amounts is not None
    axes = node.inputs[3] if len(node.inputs) > 3 else None
    named = range(x.rank) if axes is None else writer.reading.known[writer.name(axes)].numbers
    assert named is not None
    wide = _scaled(writer, amounts, [apart[int(dim)] for dim in named] * 2)
    (made,) = writer.copy(node, lambda one: wide if one is amounts else writer.argument(one, node, step))
    return Tensor(writer.tape, made, writer.tensor(step.site.key).shape)


def _crop(writer: Writer, node: ir.Node, step: Step, op: Crop) -> Tensor | None:
    """The same slices, their bounds times e."""
    est, key = est_of(step.sources[0]), step.site.inputs[0]
    if set(est) == {1}:
        return unchanged(writer, node, step, op)
    x, order = writer.space(key), writer.reading.places[key].order
    apart = [(1, 1, *est)[order.index(dim)] for dim in range(x.rank)]
    known = writer.tensor(step.site.key).shape
    if writer.tape.version < 10:
        starts, ends = (node.attributes.get_ints(name, []) for name in ("starts", "ends"))
        axes = [int(dim) % x.rank for dim in node.attributes.get_ints("axes", list(range(len(starts))))]
        bounds = [[_wide(one, apart[dim]) for one, dim in zip(ones, axes, strict=True)] for ones in (starts, ends)]
        (made,) = writer.copy(node, lambda one: writer.argument(one, node, step), starts=bounds[0], ends=bounds[1])
        return Tensor(writer.tape, made, known)
    given = [None if one is None else writer.reading.known[writer.name(one)].numbers for one in node.inputs[1:4]]
    first, third = given[0], given[2] if len(given) > 2 else None
    assert first is not None
    named = range(len(first)) if third is None else [int(dim) % x.rank for dim in third]
    times = [apart[dim] for dim in named]
    wide = {id(one): _scaled(writer, one, times) for one in node.inputs[1:3] if one is not None}
    (made,) = writer.copy(node, lambda one: wide.get(id(one)) or writer.argument(one, node, step))
    return Tensor(writer.tape, made, known)


def _wide(bound: int, times: int) -> int:
    return bound * times if abs(bound) < _PAST_ALL else bound


def _merged(writer: Writer, node: ir.Node, step: Step, op: Merge) -> Tensor:
    return writer.ordered(step.site.key, merged(writer, node, step, op, at_once=True))


def _is_spread(axis: Axis, wide: Axis) -> bool:
    """Whether an operand's one sample per phase meets many of the widest operand's, at some size."""
    return (axis.size == 1 and wide.size > 1) or (axis.statistic and not wide.statistic)


def _join(writer: Writer, node: ir.Node, step: Step, op: Op) -> Tensor | None:
    keys, sources = step.site.inputs, step.sources
    operands = {key: writer.space(key) for key in keys}
    if all(source.untouched for source in sources):
        return unchanged(writer, node, step, op)
    if len(keys) == 1:
        return joined(writer, node, step, operands)
    for key, made in rephased(writer, step).items():
        operands[key] = layers.batch_to_space(made, est_of(step.map))
    axes = list(zip(*(source.axes for source in sources), strict=True))
    wide = [keys[operand.index(widest(operand))] for operand in axes]
    for key, source in zip(keys, sources, strict=True):
        short = [_is_spread(axis, widest(operand)) for axis, operand in zip(source.axes, axes, strict=True)]
        if any(short):
            likes = [
                writer.plain_of(other, operands[other]) if one else None for other, one in zip(wide, short, strict=True)
            ]
            operands[key] = writer.ordered(key, layers.tile(writer.plain_of(key, operands[key]), likes))
    if writer.plan.padding != "full" and any(axis.lattice.stride > 1 for axis in step.map.axes):
        plain = [writer.plain_of(key, one) for key, one in operands.items()]
        aligned = layers.align(plain, crops(sources))
        operands = {key: writer.ordered(key, one) for key, one in zip(keys, aligned, strict=True)}
    return joined(writer, node, step, operands)


def _shape_of(writer: Writer, node: ir.Node, step: Step, op: Op) -> Tensor | None:
    if step.sources[0].untouched:
        writer.keep(node, step)
    elif writer.reading.places[step.site.inputs[0]].layout is not Layout.MIXED:
        writer.replace(step.site.key, writer.shape(node, step))
    return None


class DilatedWriter(Writer):
    """The form "dilated": eConv and ePool, phase by phase where an op has no dilated form."""

    writers: ClassVar = {
        Channelwise: channelwise,
        DenseWindowed: windowed,
        Identity: identity,
        Join: _join,
        Merge: _merged,
        Pad: _pad,
        Crop: _crop,
        PhaseWise: _phase_wise,
        Rows: rows,
        ShapeOf: _shape_of,
    }
