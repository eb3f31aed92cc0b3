"""The form "dilated": eConv and ePool, phase by phase where an op has no dilated form."""

from __future__ import annotations

import operator
from typing import Any, ClassVar

import torch.nn.functional as F
from torch import fx

from densify import layers
from densify.graphs.fx.merging import merged
from densify.graphs.fx.phases import on_fragments, rephased
from densify.graphs.fx.readers.shapes import spread
from densify.graphs.fx.registry import Call
from densify.graphs.fx.write import (
    Writer,
    est_of,
    identity,
    item_of,
    joined,
    rows,
    windowed,
)
from densify.lattice import Axis
from densify.maps import Layout
from densify.ops import (
    Crop,
    DenseWindowed,
    Identity,
    Join,
    Merge,
    Op,
    Other,
    Pad,
    PhaseWise,
    Rows,
    ShapeOf,
)
from densify.plans import Step
from densify.rules.joins import crops, widest


def _phase_wise(writer: Writer, node: fx.Node, step: Step, op: Op) -> fx.Node | None:
    """The op itself on fragments. Nothing moves back into space before somebody needs it there: wraps that follow on
    each other cancel."""
    source = step.sources[0]
    if all(one.untouched for one in (*step.sources, step.map)) and all(
        writer.by_name[key] in writer.env for key in step.site.inputs
    ):
        return writer.copy(node)
    if writer.plan.padding == "full" or set(est_of(source)) == {1}:
        moved = rephased(writer, step) if isinstance(step.site.op, Other) else {}
        est = est_of(step.map)
        writer.fragments[node] = on_fragments(
            writer, node, est, lambda one: moved.get(one.name) or writer.numbers(node, one, est)
        )
        return None
    key, est = step.site.inputs[0], est_of(source)
    x, sizes = writer.space(writer.by_name[key]), writer.original_sizes(key)
    first = tuple(axis.lattice.offset - axis.lattice.offset % axis.lattice.stride for axis in source.axes)
    fragments = writer.call(layers.space_to_batch, x, est, sizes, first)
    kept = writer.call(layers.complete_phases, x, est, sizes, first)
    return writer.call(layers.batch_to_space, writer.copy(node, **{key: fragments}), est, kept)


def _scaled(writer: Writer, amount: Any, est: int) -> Any:
    """A number of samples of the original, or the node that computes it, in dense samples."""
    if amount is None or est == 1 or amount == 0:
        return fx.map_arg(amount, writer.space)
    return amount * est if isinstance(amount, int) else writer.call(operator.mul, writer.space(amount), est)


def _pad(writer: Writer, node: fx.Node, step: Step, op: Op) -> fx.Node:
    """The same padding, e times as wide."""
    est = est_of(step.sources[0])
    if set(est) == {1}:
        return writer.copy(node)
    module = writer.root.get_submodule(str(node.target)) if node.op == "call_module" else None
    value = getattr(module, "value", 0.0)
    amounts: Any = getattr(module, "padding", None)
    if module is None:
        given = Call(node, None, ()).arguments("input pad mode value", value=None)
        amounts, value = given["pad"], given["value"]
    scaled = [_scaled(writer, amount, est[-1 - i // 2]) for i, amount in enumerate(amounts)]
    value = fx.map_arg(value, writer.space)
    return writer.call(F.pad, writer.space(writer.by_name[step.site.inputs[0]]), scaled, "constant", value)


def _crop(writer: Writer, node: fx.Node, step: Step, op: Op) -> fx.Node:
    """The same slices, their bounds times e."""
    est = est_of(step.sources[0])
    entries = spread(node.args[1], 2 + len(est)) or []
    bounds = [(entry.start, entry.stop) for entry in entries[2:]]
    scaled = [slice(*(_scaled(writer, one, e) for one in pair)) for pair, e in zip(bounds, est, strict=True)]
    x = writer.space(writer.by_name[step.site.inputs[0]])
    return writer.call(operator.getitem, x, (slice(None), slice(None), *scaled))


def _merged(writer: Writer, node: fx.Node, step: Step, op: Op) -> fx.Node:
    assert isinstance(op, Merge)
    return merged(writer, node, step, op, at_once=True)


def _is_spread(axis: Axis, wide: Axis) -> bool:
    """Whether an operand's one sample per phase meets many of the widest operand's, at some size."""
    return (axis.size == 1 and wide.size > 1) or (axis.statistic and not wide.statistic)


def _join(writer: Writer, node: fx.Node, step: Step, op: Op) -> fx.Node:
    keys, sources = step.site.inputs, step.sources
    operands = {key: writer.space(writer.by_name[key]) for key in keys}
    if all(source.untouched for source in sources):
        return writer.copy(node)
    if len(keys) == 1:
        return joined(writer, node, operands)
    for key, made in rephased(writer, step).items():
        operands[key] = writer.call(layers.batch_to_space, made, est_of(step.map))
    axes = list(zip(*(source.axes for source in sources), strict=True))
    wide = [keys[operand.index(widest(operand))] for operand in axes]
    for key, source in zip(keys, sources, strict=True):
        short = [_is_spread(axis, widest(operand)) for axis, operand in zip(source.axes, axes, strict=True)]
        if any(short):
            likes = [operands[other] if one else None for other, one in zip(wide, short, strict=True)]
            operands[key] = writer.call(layers.tile, operands[key], likes)
    if writer.plan.padding != "full" and any(axis.lattice.stride > 1 for axis in step.map.axes):
        aligned = writer.call(layers.align, tuple(operands.values()), tuple(crops(sources)))
        operands = {key: writer.new.call_function(item_of, (aligned, i)) for i, key in enumerate(keys)}
    return joined(writer, node, operands)


def _shape_of(writer: Writer, node: fx.Node, step: Step, op: Op) -> fx.Node | None:
    if step.sources[0].untouched:
        return writer.copy(node)
    return None if step.site.layout is Layout.MIXED else writer.shape(node, step, (1,) * len(step.map.axes))


class DilatedWriter(Writer):
    """The form "dilated": eConv and ePool, phase by phase where an op has no dilated form."""

    writers: ClassVar = {
        DenseWindowed: windowed,
        Identity: identity,
        Join: _join,
        Pad: _pad,
        Crop: _crop,
        Merge: _merged,
        PhaseWise: _phase_wise,
        Rows: rows,
        ShapeOf: _shape_of,
    }
