"""Readers of operators that work sample by sample, and of those across channels."""

from __future__ import annotations

from densify.graphs.onnx.registry import ACROSS_IMAGES, Call, reads
from densify.maps import Layout
from densify.ops import Chain, Channelwise, Join, Op, Pointwise, Unsupported

_UNARY = (
    "Abs Acos Acosh Asin Asinh Atan Atanh BitwiseNot Cast Ceil Celu Clip Cos Cosh Elu Erf Exp Floor Gelu HardSigmoid "
    "HardSwish Identity IsInf IsNaN LeakyRelu Log Mish Neg Not Reciprocal Relu Round Selu Shrink Sigmoid Sign Sin Sinh "
    "Softplus Softsign Sqrt Swish Tan Tanh ThresholdedRelu"
)
_ARITHMETIC = (
    "Add And BitShift BitwiseAnd BitwiseOr BitwiseXor CastLike Div Equal Greater GreaterOrEqual Less LessOrEqual Max "
    "Mean Min Mod Mul Or PRelu Pow Sub Sum Where Xor"
)


@reads(f"{_UNARY} {_ARITHMETIC}")
def elementwise(call: Call) -> Op | None:
    """Constants may differ from channel to channel, but not along the map."""
    if len({call.places[name].entries for name in call.maps}) > 1:
        return None
    spatial = call.source.order[2:] if call.source.layout is Layout.MAP else ()
    for shape in call.constants():
        missing = call.rank - len(shape)
        if missing < 0 or any(dim >= missing and shape[dim - missing] > 1 for dim in spatial):
            return None
    wide = any(size > 1 for shape in call.constants() for size in shape)
    if len(call.maps) > 1:
        ranks = {len(call.shape(name)) for name in call.maps}
        plain = not (wide and call.source.layout is Layout.VECTOR)  # vectors have other dimensions in a dense graph
        return Join() if len(ranks) == 1 and plain else None
    return Channelwise() if wide else Pointwise()


@reads("Dropout")
def dropout(call: Call) -> Op | None:
    training = call.numbers(2)
    if len(call.node.inputs) > 2 and call.node.inputs[2] is not None and (training is None or bool(training)):
        return Unsupported("it drops in a network that is not trained, at random", "Export the model in eval mode")
    return Pointwise()


@reads("RandomNormalLike RandomUniformLike Bernoulli Multinomial")
def random(call: Call) -> Op | None:
    return Unsupported("it draws random numbers, so there is no original to be equal to", "Leave it out")


@reads("BatchNormalization")
def batch_norm(call: Call) -> Op | None:
    if call.node.attributes.get_int("training_mode", 0):
        return Unsupported(
            "it takes its statistics from the batch, so that they would be those of all phases",
            "Export the model in eval mode",
        )
    if not call.node.attributes.get_int("spatial", 1):
        return None  # until version 9: a scale for every place
    return Channelwise() if call.source.layout is not Layout.MAP or call.source.plain else None


@reads("LRN")
def across_channels(call: Call) -> Op | None:
    return Channelwise() if call.source.plain else None


@reads("Softmax LogSoftmax Hardmax ArgMax ArgMin")
def along_axis(call: Call) -> Op | None:
    """Until version 13 the softmaxes took all dimensions from their axis on as one."""
    node = call.node
    arg = node.op_type in ("ArgMax", "ArgMin")
    joins = call.version < 13 and not arg
    axis = node.attributes.get_int("axis", 0 if arg else 1 if call.version < 13 else -1) % call.rank
    if axis == call.source.order[0]:
        return ACROSS_IMAGES
    if arg and not node.attributes.get_int("keepdims", 1):
        return None
    alone = axis == call.rank - 1 or not joins
    return Channelwise() if axis == call.source.order[1] and alone else None


@reads("LayerNormalization RMSNormalization LpNormalization")
def normalization(call: Call) -> Op | None:
    """Over channels alone, where they come last."""
    axis = call.node.attributes.get_int("axis", -1) % call.rank
    return Channelwise() if axis == call.rank - 1 == call.source.order[1] else None


@reads("Concat")
def concat(call: Call) -> Op | None:
    axis = call.node.attributes.get_int("axis", 1) % call.rank
    if axis == call.source.order[0]:
        return None
    if len({call.places[name].entries for name in call.maps}) > 1 or call.constants():
        return None
    if call.source.flat and call.source.flat[0][1] != 1:
        return None  # the channels of a flattened window are its outermost dimension only where they come first
    if axis == call.source.order[1]:
        return Join()
    alone = len(call.maps) == len(call.node.inputs)
    return Chain(call.source.order.index(axis) - 2) if alone and call.source.layout is Layout.MAP else None


@reads("Split")
def split(call: Call) -> Op | None:
    axis = call.node.attributes.get_int("axis", 0) % call.rank
    return Channelwise() if axis == call.source.order[1] and call.source.layout is Layout.MAP else None
