"""Writers of upsamplings that meet a denser map; both forms."""

from __future__ import annotations

from fractions import Fraction

import onnx_ir as ir

from densify.graphs.onnx import layers
from densify.graphs.onnx.tape import Size, Tensor
from densify.graphs.onnx.write import Writer, est_of
from densify.ops import Interpolation, Merge, Transposed
from densify.plans import Step


def merged(writer: Writer, node: ir.Node, step: Step, op: Merge, *, at_once: bool) -> Tensor:
    """The dense map that an upsampling makes, [B, C, *spatial].

    Args:
        at_once: whether a transposed convolution makes all its shifts in one, or by the original op on fragments.
    """
    key, est = step.site.inputs[0], est_of(step.sources[0])
    if isinstance(op.op, Interpolation) and op.how == "resample":
        return _resampled(writer, node, step, op.op, op)
    if isinstance(op.op, Transposed) and op.how == "average":
        return _transposed(writer, node, step, op.op, op, at_once=at_once)
    kept = est if op.how == "average" else tuple(spread.left for spread in op.spreads)
    if kept == est:
        plain = writer.plain_of(key, writer.fragment(key))
    else:
        plain = layers.space_to_batch(layers.first_phases(dense(writer, key, est), est, kept), kept)
    read = writer.ordered(key, plain)

    def given(value: ir.Value) -> ir.Value:
        name = writer.name(value)
        if name == key:
            return read.value
        return writer.told(node, value, kept)

    (made,) = writer.copy(node, given)
    shape = step.site.shape
    assert shape is not None
    whole = Tensor(writer.tape, made, writer.ordered_shape(step.site.key, [None, *shape[1:2], *[None] * len(est)]))
    return layers.spread_phases(writer.plain_of(step.site.key, whole), kept, op.spreads)


def dense(writer: Writer, key: str, est: tuple[int, ...]) -> Tensor:
    """A map with its phases in space, [B, C, *spatial], in whichever form the network is."""
    made = writer.plain(key)
    return layers.batch_to_space(made, est) if writer.in_batch and set(est) != {1} else made


def _resampled(writer: Writer, node: ir.Node, step: Step, op: Interpolation, merge: Merge) -> Tensor:
    key, est = step.site.inputs[0], est_of(step.sources[0])
    x, order = dense(writer, key, est), writer.reading.places[key].order
    sizes = layers.original_sizes(x, est)
    if op.factors:
        made = [_floored(size, factor) for size, factor in zip(sizes, op.factors, strict=True)]
    elif len(node.inputs) > 3 and node.inputs[3] is not None:
        made = [writer.entry(writer.argument(node.inputs[3], node), dim) for dim in order[2:]]
    else:
        made = [_floored(size, scale) for size, scale in zip(sizes, op.scales, strict=True)]
    pairs = tuple((factor.numerator, factor.denominator) for factor in op.factors)
    return layers.resample(x, merge.spreads, made, op.mode, op.align_corners, pairs)


def _floored(size: Size, factor: Fraction) -> Size:
    return size * factor.numerator // factor.denominator


def _transposed(writer: Writer, node: ir.Node, step: Step, op: Transposed, merge: Merge, *, at_once: bool) -> Tensor:
    key, est, shape = step.site.inputs[0], est_of(step.sources[0]), step.site.shape
    assert shape is not None
    given = [writer.argument(one, node) for one in node.inputs[1:] if one is not None]
    bias = given[1] if len(given) > 1 else None
    x = dense(writer, key, est) if at_once else writer.fragment(key)
    function = layers.etransposed if at_once else layers.transposed_shifts
    groups = node.attributes.get_int("group", 1)
    return function(x, given[0], bias, op.windows, merge.spreads, op.extra, shape[1], groups)
