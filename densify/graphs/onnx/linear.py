"""Which operators are linear, or affine: an average of their results is their result on the average."""

from __future__ import annotations

from densify.graphs.onnx.registry import Call
from densify.ops import ALWAYS_LINEAR, Channelwise, Interpolation, Join, Op, Pointwise
from densify.rules.upsampling import whole_factors

_SUMS = ("Add", "BatchNormalization", "Concat", "Dropout", "Identity", "Mean", "Neg", "Slice", "Split", "Sub", "Sum")
_PRODUCTS = ("Mul", "Div")


def linear(call: Call, op: Op) -> bool:
    """Whether an op is linear in its maps together, but for a constant, and the same at every place.

    A product of two maps is not, and what is not known is taken not to be.
    """
    if isinstance(op, Interpolation):
        return whole_factors(op)
    if isinstance(op, ALWAYS_LINEAR):
        return True
    if not isinstance(op, Pointwise | Channelwise | Join):
        return False
    kind, inputs = call.node.op_type, [str(one.name) for one in call.node.inputs if one is not None]
    if kind in _SUMS or kind == "Transpose":
        return True
    alone = len(call.maps) == 1 and inputs.count(call.maps[0]) == 1
    return kind in _PRODUCTS and alone and (kind == "Mul" or inputs[0] in call.maps)
