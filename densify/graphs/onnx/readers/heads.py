"""Readers of statistics over the whole map and of what follows them."""

from __future__ import annotations

import numpy as np

from densify.graphs.onnx.registry import ACROSS_IMAGES, Call, reads
from densify.maps import Layout
from densify.ops import AdaptivePool, Channelwise, GlobalPool, Linear, Op, Pointwise, Unsupported


@reads("GlobalAveragePool GlobalMaxPool GlobalLpPool")
def global_pool(call: Call) -> Op | None:
    return GlobalPool() if call.source.plain else None


_REDUCTIONS = (
    "ReduceL1 ReduceL2 ReduceLogSum ReduceLogSumExp ReduceMax ReduceMean ReduceMin ReduceProd ReduceSum ReduceSumSquare"
)


@reads(_REDUCTIONS)
def reduction(call: Call) -> Op | None:
    since = 13 if call.node.op_type == "ReduceSum" else 18
    if call.version >= since and call.given(1) and call.numbers(1) is None:
        return Unsupported("its axes are computed from the image", "Give it constant axes")
    axes = call.axes(input_since=since)
    if not axes and call.node.attributes.get_int("noop_with_empty_axes", 0) == 1:
        return Pointwise()
    reduced = set(axes or range(call.rank))
    order, keeps = call.source.order, bool(call.node.attributes.get_int("keepdims", 1))
    if order[0] in reduced:
        return ACROSS_IMAGES
    if call.source.layout is not Layout.MAP:
        return None
    if reduced == set(order[2:]) and (keeps or order[0] < order[1]):
        return GlobalPool(keepdim=keeps)
    return Channelwise() if keeps and reduced == {order[1]} else None


@reads("MeanVarianceNormalization")
def normalization(call: Call) -> Op | None:
    """Its axes are those of the batch and of space, unless it is told others."""
    if call.source.order and call.source.order[0] in call.integers("axes", (0, 2, 3)):
        return ACROSS_IMAGES
    return None


@reads("Gemm")
def gemm(call: Call) -> Op | None:
    if not _reads_first_alone(call) or call.node.attributes.get_int("transA", 0) == 1:
        return None
    return Linear() if call.source.layout is Layout.VECTOR else None


@reads("MatMul")
def matmul(call: Call) -> Op | None:
    """A Linear layer on vectors, one at every place of a map whose channels come last, or an adaptive pooling."""
    second = str(call.node.inputs[1].name) if call.node.inputs[1] is not None else ""
    if not _reads_first_alone(call) or len(call.shape(second)) != 2:
        return None
    if call.source.layout is Layout.VECTOR:
        return Linear()
    if call.source.layout is not Layout.MAP:
        return None
    last = call.source.order.index(call.rank - 1)
    if last == 1:
        return Channelwise()
    numbers, (size, bins) = call.numbers(1), call.shape(second)
    if last < 2 or numbers is None or not np.allclose(numbers, averaging(size, bins), rtol=1e-6, atol=0):
        return None
    return AdaptivePool(tuple(bins if axis == last - 2 else n for axis, n in enumerate(call.source.sizes)))


def _reads_first_alone(call: Call) -> bool:
    """Whether the first input, and no other, is a tensor of the image."""
    names = [None if one is None else str(one.name) for one in call.node.inputs]
    return [name for name in names if name in call.maps] == names[:1]


def averaging(size: int, bins: int) -> np.ndarray:
    """The matrix [size, bins] by which adaptive average pooling multiplies one axis."""
    sample, made = np.arange(size)[:, None], np.arange(bins)[None]
    first, end = made * size // bins, -(-(made + 1) * size // bins)
    return ((sample >= first) & (sample < end)) / (end - first)
