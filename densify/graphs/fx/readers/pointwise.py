"""Readers of ops that work sample by sample, and of those across channels."""

from __future__ import annotations

import operator

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from densify.graphs.fx.registry import Call, everywhere, reads
from densify.ops import (
    Chain,
    Channelwise,
    Join,
    Op,
    Pointwise,
    Unsupported,
)

_ELEMENTWISE = (
    "relu relu6 sigmoid tanh gelu silu mish elu selu celu leaky_relu prelu rrelu hardtanh hardswish hardsigmoid "
    "hardshrink softplus softsign softshrink tanhshrink threshold logsigmoid exp expm1 log log1p sqrt rsqrt abs neg "
    "sign square pow reciprocal clamp clamp_min clamp_max clip erf sin cos nan_to_num where clone "
    "detach"
)
_MODULES = (
    "ReLU ReLU6 Sigmoid Tanh GELU SiLU Mish ELU SELU CELU LeakyReLU PReLU RReLU Hardtanh Hardswish Hardsigmoid "
    "Hardshrink Softplus Softsign Softshrink Tanhshrink Threshold LogSigmoid Dropout Dropout1d Dropout2d Dropout3d "
    "AlphaDropout FeatureAlphaDropout Identity"
)
_ARITHMETIC = (
    "add sub mul div true_divide floor_divide remainder fmod maximum minimum subtract multiply divide fmax fmin "
    "gt ge lt le eq ne logical_and logical_or logical_not"
)
_OPERATORS = "add sub mul truediv floordiv mod iadd isub imul itruediv ifloordiv imod neg pow ipow gt ge lt le eq ne"


@reads(*everywhere(_ELEMENTWISE), *(getattr(nn, name) for name in _MODULES.split()), "contiguous", "to", "float")
@reads("torchvision.ops.stochastic_depth.stochastic_depth")
@reads(*everywhere(_ARITHMETIC), *(getattr(operator, name) for name in _OPERATORS.split()))
def elementwise(call: Call) -> Op | None:
    others = [n.meta["value"] for n in call.node.all_input_nodes if n not in call.maps]
    tensors = [other for other in others if isinstance(other, Tensor) and other.dim() > 0]
    rank = call.source.dim()
    if any(size > 1 for other in tensors for size in other.shape[max(2 - rank + other.dim(), 0) :] if rank > 2):
        return None
    if len(call.maps) > 1:
        return Join()
    return Channelwise() if tensors or isinstance(call.module, nn.PReLU) else Pointwise()


@reads(*everywhere("dropout alpha_dropout feature_alpha_dropout dropout1d dropout2d dropout3d"))
def dropout(call: Call) -> Op | None:
    given = call.arguments("input p training", p=0.5, training=True)
    if given["training"] and given["p"] and not call.training:
        return Unsupported("it drops in eval mode too, at random", "Give it training=self.training")
    return elementwise(call)


_DRAWS = (
    "bernoulli multinomial poisson normal uniform random exponential cauchy log_normal geometric "
    "rand randn randint randperm rand_like randn_like randint_like"
)


@reads(*everywhere(_DRAWS))
def random(call: Call) -> Op | None:
    if call.training:
        return None
    return Unsupported("it draws random numbers in eval mode, so there is no original to be equal to", "Leave it out")


@reads(torch.cat, torch.concat)
def cat(call: Call) -> Op | None:
    given = call.arguments("tensors dim", dim=0)
    tensors, dim = given["tensors"], given["dim"] % call.result.dim()
    if isinstance(tensors, fx.Node):
        return Channelwise() if dim == 1 else None  # the pieces of one map
    if dim == 0 or not all(one in call.maps for one in tensors):
        return None
    if dim == 1:
        return Join()
    return Chain(dim - 2) if len(set(tensors)) == len(tensors) else None


@reads(nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm, F.batch_norm)
def batch_norm(call: Call) -> Op | None:
    given = call.arguments("input running_mean running_var weight bias training", running_mean=None)
    of_batch = given["running_mean"] is None or (call.module is None and given.get("training"))
    if of_batch and not call.training:
        return Unsupported(
            "it takes its statistics from the batch in eval mode too, so that they would be those of all phases",
            "Give it running statistics",
        )
    return Channelwise()


@reads(nn.LocalResponseNorm, nn.CrossMapLRN2d, F.local_response_norm)
def across_channels(call: Call) -> Op | None:
    return Channelwise()


@reads(nn.Softmax, nn.LogSoftmax, *everywhere("softmax log_softmax"))
def softmax(call: Call) -> Op | None:
    given = call.value(call.arguments("input dim", dim=None))
    rank = call.source.dim()
    implied = 0 if rank in (0, 1, 3) else 1  # torch's own choice where none is given
    dim = (given["dim"] if given["dim"] is not None else implied) % rank
    if dim == 0:
        return Unsupported("its softmax runs across the images of a batch", "Give it a dim")
    return Channelwise() if dim == 1 else None
