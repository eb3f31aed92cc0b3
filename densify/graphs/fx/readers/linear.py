"""Which ops are linear, or affine: an average of their results is their result on the average."""

from __future__ import annotations

import operator

from torch import Tensor, nn

from densify.graphs.fx.readers.pointwise import batch_norm, cat, dropout
from densify.graphs.fx.readers.shapes import getitem
from densify.graphs.fx.registry import Call, everywhere, reader_of
from densify.ops import ALWAYS_LINEAR, Channelwise, Interpolation, Join, Op, Pointwise
from densify.rules.upsampling import whole_factors

_SUMS = [
    *everywhere("add sub subtract neg contiguous clone detach chunk split"),
    *(operator.add, operator.sub, operator.iadd, operator.isub, operator.neg, "to", "float"),
]
_PRODUCTS = [
    *everywhere("mul div true_divide multiply divide"),
    *(operator.mul, operator.truediv, operator.imul, operator.itruediv),
]
_DIVISIONS = ("div", "true_divide", "divide", "truediv", "itruediv", "div_")
_MODULES = (nn.Identity, nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d)
_READERS = (batch_norm, cat, dropout, getitem)


def linear(call: Call, op: Op) -> bool:
    """Whether an op in eval mode is linear in its maps together, but for a constant, and the same at every place.

    A product of two maps is not, and what is not known is taken not to be.
    """
    if isinstance(op, Interpolation):
        return whole_factors(op)
    if isinstance(op, ALWAYS_LINEAR):
        return True
    if not isinstance(op, Pointwise | Channelwise | Join):
        return False
    if call.module is not None:
        return isinstance(call.module, _MODULES) or reader_of(call) is batch_norm
    made, target = call.result, call.node.target
    if isinstance(made, Tensor) and not made.is_floating_point():
        return False
    if target in _SUMS or reader_of(call) in _READERS:
        return True
    divides = getattr(target, "__name__", target) in _DIVISIONS
    if divides and (call.node.args[0] not in call.maps or call.node.kwargs.get("rounding_mode")):
        return False
    return target in _PRODUCTS and len(call.maps) == 1 and call.node.args.count(call.maps[0]) == 1
