"""Which ops are linear, or affine: an average of their results is their result on the average."""

from __future__ import annotations

import operator

from torch import nn

from densify.graphs.fx.readers.pointwise import batch_norm, cat, dropout
from densify.graphs.fx.readers.shapes import getitem
from densify.graphs.fx.registry import Call, everywhere, reader_of
from densify.ops import (
    AvgPool,
    Channelwise,
    Conv,
    Crop,
    GlobalPool,
    Interpolation,
    Join,
    Op,
    Pad,
    Patches,
    Pointwise,
    Same,
    Shuffle,
    Transposed,
)

_ALWAYS = (AvgPool, Conv, Crop, Interpolation, Pad, Patches, Same, Shuffle, Transposed)
_SUMS = [
    *everywhere("add sub subtract neg contiguous clone detach chunk split"),
    *(operator.add, operator.sub, operator.iadd, operator.isub, operator.neg, "to", "float"),
]
_PRODUCTS = [
    *everywhere("mul div true_divide multiply divide"),
    *(operator.mul, operator.truediv, operator.imul, operator.itruediv),
]
_MODULES = (nn.Identity, nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d)
_MEANS = everywhere("mean sum adaptive_avg_pool1d adaptive_avg_pool2d adaptive_avg_pool3d")
_READERS = (batch_norm, cat, dropout, getitem)


def linear(call: Call, op: Op) -> bool:
    """Whether an op in eval mode is linear in its maps together, but for a constant.

    A product of two maps is not, and what is not known is taken not to be.
    """
    if isinstance(op, _ALWAYS):
        return True
    target = call.node.target
    if isinstance(op, GlobalPool):
        return "Avg" in type(call.module).__name__ or target in _MEANS
    if not isinstance(op, Pointwise | Channelwise | Join):
        return False
    if call.module is not None:
        return isinstance(call.module, _MODULES) or reader_of(call) is batch_norm
    if target in _SUMS or reader_of(call) in _READERS:
        return True
    divides = getattr(target, "__name__", target) in ("div", "true_divide", "divide", "truediv", "itruediv", "div_")
    by_map = divides and call.node.args[0] not in call.maps
    times = target in _PRODUCTS and len(call.maps) == 1 and call.node.args.count(call.maps[0]) == 1
    return times and not by_map
