"""Writers of upsamplings that meet a denser map; both forms."""

from __future__ import annotations

from typing import Any

from torch import fx

from densify import layers
from densify.graphs.fx.readers.upsampling import transposed_arguments
from densify.graphs.fx.registry import Call
from densify.graphs.fx.write import Writer, est_of
from densify.ops import Interpolation, Merge, Transposed, Unpool
from densify.plans import Step


def merged(writer: Writer, node: fx.Node, step: Step, op: Merge, *, at_once: bool) -> fx.Node:
    """The dense map that an upsampling makes.

    Args:
        at_once: whether a transposed convolution makes all its shifts in one, or by the original op on fragments.
    """
    key, est = step.site.inputs[0], est_of(step.sources[0])
    if isinstance(op.op, Interpolation) and op.how == "resample":
        return _resampled(writer, node, step, op.op, op)
    if isinstance(op.op, Transposed) and op.how == "average":
        return _transposed(writer, node, step, op.op, op, at_once=at_once)
    kept = est if op.how == "average" else tuple(spread.left for spread in op.spreads)
    fragments = {}
    for source, one in zip(step.site.inputs, step.sources, strict=True):
        if source == key or not isinstance(op.op, Interpolation):
            fragments[source] = _first(writer, writer.by_name[source], est_of(one), kept)
    placed = isinstance(op.op, Unpool)
    return writer.call(layers.spread_phases, writer.copy(node, **fragments), kept, op.spreads, placed)


def _first(writer: Writer, node: fx.Node, est: tuple[int, ...], kept: tuple[int, ...]) -> fx.Node:
    """The fragments of the first phases of a map."""
    if kept == est:
        return writer.fragment(node, est)
    x = writer.call(layers.first_phases, dense(writer, node, est), est, kept)
    return x if set(kept) == {1} else writer.call(layers.space_to_batch, x, kept)


def dense(writer: Writer, node: fx.Node, est: tuple[int, ...]) -> fx.Node:
    """A map with its phases in space, in whichever form the network is."""
    made = writer.space(node)
    return writer.call(layers.batch_to_space, made, est) if writer.in_batch and set(est) != {1} else made


def _resampled(writer: Writer, node: fx.Node, step: Step, op: Interpolation, merge: Merge) -> fx.Node:
    module = writer.root.get_submodule(str(node.target)) if node.op == "call_module" else None
    call = Call(node, module, tuple(writer.by_name[key] for key in step.site.inputs[:1]))
    names = "input size scale_factor mode align_corners recompute_scale_factor"
    given = call.arguments(names, size=None, scale_factor=None)
    est = est_of(step.sources[0])
    x = dense(writer, writer.by_name[step.site.inputs[0]], est)
    count = len(est)
    if given["size"] is not None:
        size = given["size"]
        made: Any = fx.map_arg(tuple(size) if isinstance(size, tuple | list) else size, writer.space)
        made = made if isinstance(made, tuple | fx.Node) and not _is_number(size) else (made,) * count
    else:
        shape = writer.call(layers.original_shape, x, est)
        factors = given["scale_factor"]
        written = tuple(factors) if isinstance(factors, tuple | list) else (factors,) * count
        made = writer.call(layers.scaled, shape, fx.map_arg(written, writer.space))
    pairs = tuple((factor.numerator, factor.denominator) for factor in op.factors)
    return writer.call(layers.resample, x, merge.spreads, made, op.mode, op.align_corners, pairs)


def _is_number(size: Any) -> bool:
    return isinstance(size, int) or (isinstance(size, fx.Node) and bool(size.meta["number"]))


def _transposed(writer: Writer, node: fx.Node, step: Step, op: Transposed, merge: Merge, *, at_once: bool) -> fx.Node:
    module = writer.root.get_submodule(str(node.target)) if node.op == "call_module" else None
    source, est = writer.by_name[step.site.inputs[0]], est_of(step.sources[0])
    given = transposed_arguments(Call(node, module, (source,)))
    if module is None:
        weight, bias = (fx.map_arg(given[name], writer.space) for name in ("weight", "bias"))
    else:
        weight = writer.new.create_node("get_attr", f"{node.target}.weight")
        bias = writer.new.create_node("get_attr", f"{node.target}.bias") if given["bias"] is not None else None
    x = dense(writer, source, est) if at_once else writer.fragment(source, est)
    extra: Any = op.extra
    if given["output_size"] is not None:
        before = writer.call(layers.original_shape, x, est if at_once else (1,) * len(est))
        after = fx.map_arg(given["output_size"], writer.space)
        extra = writer.call(layers.output_padding, before, after, op.windows)
    groups = fx.map_arg(given["groups"], writer.space)
    function = layers.etransposed if at_once else layers.transposed_shifts
    return writer.call(function, x, weight, bias, op.windows, merge.spreads, extra, groups)
