"""Readers of torch's ops: modules, functions and tensor methods alike.

A reader that answers None says that it has no rule for this use: then the op runs phase by phase.
"""

from __future__ import annotations

import operator
from fractions import Fraction
from math import prod
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from densify.graphs.fx.registry import Call, everywhere, kind, reader_of, reads
from densify.lattice import Window
from densify.ops import (
    AdaptivePool,
    AvgPool,
    Channelwise,
    Conv,
    Crop,
    Flatten,
    GlobalPool,
    Join,
    Linear,
    MaxPool,
    Op,
    Pad,
    Patches,
    Pointwise,
    PowerPool,
    Resize,
    Same,
    ShapeOf,
    Unflatten,
    Unsupported,
)


def _each(value: Any, count: int) -> list[Any]:
    values = list(value) if isinstance(value, tuple | list) else [value]
    return values * count if len(values) == 1 else values


@reads(nn.Conv1d, nn.Conv2d, nn.Conv3d, F.conv1d, F.conv2d, F.conv3d)
def conv(call: Call) -> Op | None:
    names = "input weight bias stride padding dilation groups"
    given = call.value(call.arguments(names, stride=1, padding=0, dilation=1))
    if getattr(call.module, "padding_mode", "zeros") != "zeros":
        return None
    count = call.spatial
    kernel = given["weight"].shape[2:]
    strides, dilations = _each(given["stride"], count), _each(given["dilation"], count)
    if given["padding"] in ("same", "valid"):
        totals = [d * (k - 1) if given["padding"] == "same" else 0 for k, d in zip(kernel, dilations, strict=True)]
        sides = [(total // 2, total - total // 2) for total in totals]
    else:
        sides = [(p, p) for p in _each(given["padding"], count)]
    return Conv(
        tuple(
            Window(k, s, low, high, d) for k, s, (low, high), d in zip(kernel, strides, sides, dilations, strict=True)
        )
    )


def _follows_size(written: dict[str, Any]) -> bool:
    """Whether a pooling's geometry is computed from the map's size."""
    keys = ("kernel_size", "stride", "padding", "dilation")
    return any(isinstance(one, fx.Node) for key in keys for one in _each(written.get(key), 1))


def _whole_map(call: Call, written: dict[str, Any]) -> Op | None:
    """A pooling whose window is the map is one over the whole map; any other must not be frozen at one size."""
    if tuple(_each(call.value(written["kernel_size"]), call.spatial)) == tuple(call.source.shape[2:]):
        return GlobalPool()
    return Unsupported("its window is computed from the map's size", "Write the window's size as a number")


def _pool_windows(given: dict[str, Any], count: int) -> tuple[Window, ...]:
    kernels = _each(given["kernel_size"], count)
    strides = _each(given["stride"], count) if given["stride"] not in (None, (), []) else kernels
    paddings, dilations = _each(given["padding"], count), _each(given["dilation"], count)
    return tuple(
        Window(k, s, p, p, d, bool(given["ceil_mode"]))
        for k, s, p, d in zip(kernels, strides, paddings, dilations, strict=True)
    )


@reads(nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d, F.max_pool1d, F.max_pool2d, F.max_pool3d)
@reads(torch.max_pool1d, torch.max_pool2d, torch.max_pool3d)
def max_pool(call: Call) -> Op | None:
    names = "input kernel_size stride padding dilation ceil_mode return_indices"
    written = call.arguments(names, stride=None, padding=0, dilation=1, ceil_mode=False, return_indices=False)
    if written["return_indices"]:
        return None
    if _follows_size(written):
        return _whole_map(call, written)
    return MaxPool(_pool_windows(written, call.spatial))


@reads(nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d, F.avg_pool1d, F.avg_pool2d, F.avg_pool3d)
def avg_pool(call: Call) -> Op | None:
    names = "input kernel_size stride padding ceil_mode count_include_pad divisor_override"
    written = call.arguments(names, stride=None, padding=0, ceil_mode=False, count_include_pad=True)
    if _follows_size(written):
        return _whole_map(call, written)
    given = call.value(written) | {"dilation": 1}
    windows = _pool_windows(given, call.spatial)
    return AvgPool(windows, count_include_pad=bool(given["count_include_pad"]), divisor=given.get("divisor_override"))


@reads(nn.LPPool1d, nn.LPPool2d, nn.LPPool3d, F.lp_pool1d, F.lp_pool2d, F.lp_pool3d)
def power_pool(call: Call) -> Op | None:
    names = "input norm_type kernel_size stride ceil_mode"
    given = call.value(call.arguments(names, stride=None, ceil_mode=False)) | {"padding": 0, "dilation": 1}
    return PowerPool(_pool_windows(given, call.spatial), norm=float(given["norm_type"]))


@reads(nn.PixelUnshuffle, F.pixel_unshuffle)
def pixel_unshuffle(call: Call) -> Op | None:
    factor = call.source.shape[-1] // call.result.shape[-1]
    return Patches((Window(factor, factor),) * call.spatial) if call.spatial == 2 else None


_PADS = [f"{kind}Pad{n}d" for kind in ("Zero", "Constant", "Reflection", "Replication", "Circular") for n in (1, 2, 3)]
_MODES = {"Reflection": "reflect", "Replication": "replicate", "Circular": "circular"}


@reads(F.pad, *(getattr(nn, name) for name in _PADS if hasattr(nn, name)))
def pad(call: Call) -> Op | None:
    """torch lists amounts from the last axis to the first, the low side first."""
    if call.module is not None:
        mode = _MODES.get(kind(call).partition("Pad")[0], "constant")
        amounts = list(call.module.padding)  # type: ignore[arg-type]
    else:
        given = call.value(call.arguments("input pad mode value", mode="constant"))
        mode, amounts = given["mode"], list(given["pad"])
    spatial = amounts[: 2 * call.spatial] + [0] * (2 * call.spatial - len(amounts))
    sides = tuple((spatial[2 * i], spatial[2 * i + 1]) for i in reversed(range(call.spatial)))
    if any(amounts[2 * call.spatial :]):
        return Channelwise() if not any(map(any, sides)) and mode == "constant" else None
    return Pad(sides, mode)


@reads(F.interpolate, F.upsample, nn.Upsample, nn.UpsamplingNearest2d, nn.UpsamplingBilinear2d)
@reads(nn.PixelShuffle, F.pixel_shuffle, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
@reads(F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d)
def resize(call: Call) -> Op | None:
    pairs = zip(call.result.shape[2:], call.source.shape[2:], strict=True)
    return Resize(tuple(Fraction(made, read) for made, read in pairs))


_ADAPTIVE = [f"{kind}{n}" for kind in ("AvgPool", "MaxPool") for n in (1, 2, 3)]


@reads(*(getattr(nn, f"Adaptive{name}d") for name in _ADAPTIVE))
@reads(*(getattr(F, f"adaptive_{kind}_pool{n}d") for kind in ("avg", "max") for n in (1, 2, 3)))
def adaptive_pool(call: Call) -> Op | None:
    if not isinstance(call.result, Tensor):
        return None
    sizes = tuple(call.result.shape[2:])
    return GlobalPool() if prod(sizes) == 1 else AdaptivePool(sizes)


@reads(*everywhere("mean sum amax amin"))
def reduction(call: Call) -> Op | None:
    given = call.value(call.arguments("input dim keepdim", dim=None, keepdim=False))
    rank = call.source.dim()
    dims = {d % rank for d in _each(given["dim"], 1)} if given["dim"] is not None else set(range(rank))
    if rank > 2 and dims == set(range(2, rank)):
        return GlobalPool(keepdim=bool(given["keepdim"]))
    if dims == {1} and given["keepdim"]:
        return Channelwise()
    return None


@reads(nn.Flatten, torch.flatten, torch.reshape, torch.squeeze, "flatten", "view", "reshape", "squeeze")
def reshape(call: Call) -> Op | None:
    before, after = tuple(call.source.shape), tuple(call.result.shape)
    if after == before:
        return Same()
    if after == (before[0], prod(before[1:])):
        return Flatten()
    if len(before) == 2 and after[:2] == before and set(after[2:]) == {1}:
        return Unflatten()
    return None


@reads(nn.Linear, F.linear)
def linear(call: Call) -> Op | None:
    if call.source.dim() == 2:
        return Linear()
    return None


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
_ARITHMETIC = "add sub mul div true_divide maximum minimum subtract multiply divide fmax fmin"
_OPERATORS = "add sub mul truediv iadd isub imul itruediv neg pow"


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
    tensors = given["tensors"]
    if given["dim"] % call.result.dim() != 1:
        return None
    if isinstance(tensors, fx.Node):
        return Channelwise()  # the pieces of one map
    return Join() if all(one in call.maps for one in tensors) else None


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


@reads(operator.getitem)
def getitem(call: Call) -> Op | None:
    """An entry of a tuple of maps, some of the channels, or a part of the map: x[:, 2:4], x[..., 1:], x[..., ::2]."""
    if not isinstance(call.maps[0].meta["value"], Tensor):
        return Pointwise()
    entries = spread(call.node.args[1], call.source.dim())
    if entries is None or entries[0] != slice(None) or not isinstance(entries[1], slice):
        return None
    spatial = entries[2:]
    if all(entry == slice(None) for entry in spatial):
        return Channelwise()
    if entries[1] != slice(None) or not all(isinstance(entry, slice) for entry in spatial):
        return None
    bounds = [call.value(entry).indices(size) for entry, size in zip(spatial, call.source.shape[2:], strict=True)]
    if all(step == 1 for _, _, step in bounds):
        sizes = call.source.shape[2:]
        return Crop(tuple((-a, max(a, b) - size) for (a, b, _), size in zip(bounds, sizes, strict=True)))
    if any(not _open(entry) for entry in spatial):
        return None
    return MaxPool(tuple(Window(1, step, low=-start) for start, _, step in bounds))


def spread(index: Any, rank: int) -> list[Any] | None:
    """One entry per dimension of an index, its Ellipsis written out; None where it adds or mixes dimensions."""
    entries = list(index) if isinstance(index, tuple) else [index]
    if not all(isinstance(entry, slice | int) or entry is Ellipsis for entry in entries):
        return None
    if Ellipsis in entries:
        at = entries.index(Ellipsis)
        entries[at : at + 1] = [slice(None)] * (rank + 1 - len(entries))
    return entries + [slice(None)] * (rank - len(entries))


def _open(entry: slice) -> bool:
    """Whether a slice reaches to the end from a fixed start, whatever the size."""
    start = entry.start or 0
    return entry.stop is None and isinstance(start, int) and start >= 0


@reads(torch.chunk, torch.split, "chunk", "split")
def pieces(call: Call) -> Op | None:
    given = call.value(call.arguments("input size dim", dim=0))
    if given["dim"] % call.source.dim() == 1:
        return Channelwise()
    return None


@reads(nn.FractionalMaxPool2d, nn.FractionalMaxPool3d, F.fractional_max_pool2d, F.fractional_max_pool3d)
def random_regions(call: Call) -> Op | None:
    return Unsupported("its regions are random, so there is no original to be equal to", "Use another pooling")


@reads(getattr)
def attribute(call: Call) -> Op | None:
    """Attributes that are the tensor itself; what is not a tensor (dtype, device) is no business of a rule."""
    if reads_shape(call):
        return ShapeOf(spatial=not _reads_batch_only(call))
    return Pointwise() if call.node.args[1] in ("data", "real") else None


@reads("size", "dim", "ndimension", "numel", "nelement", torch.numel)
def shape_of(call: Call) -> Op | None:
    name = getattr(call.node.target, "__name__", str(call.node.target))
    return ShapeOf(total=name in ("numel", "nelement"), spatial=not _reads_batch_only(call))


def _reads_batch_only(call: Call) -> bool:
    """Whether a program asks for the batch or the channels alone, or for the rank."""
    node = call.node
    if node.target in ("dim", "ndimension") or (node.target is getattr and node.args[1] == "ndim"):
        return True
    if node.target == "size" and len(node.args) > 1:
        return node.args[1] in (0, 1)
    return all(user.target is operator.getitem and user.args[1] in (0, 1) for user in node.users)


_DESCRIPTIONS = "dtype device layout is_cuda is_cpu is_meta is_quantized requires_grad training is_mkldnn is_sparse"
_QUESTIONS = "is_floating_point is_complex get_device type element_size requires_grad_ is_same_size"


def describes(call: Call) -> bool:
    """Whether what a program takes out of a map, no tensor, is the same for its dense form."""
    node = call.node
    if node.target is getattr:
        return node.args[1] in _DESCRIPTIONS.split()
    return getattr(node.target, "__name__", str(node.target)) in _QUESTIONS.split()


def reads_shape(call: Call) -> bool:
    """Whether a program asks for a tensor's shape, in any of its ways."""
    node = call.node
    if node.target is getattr:
        return node.args[1] in ("shape", "ndim")
    return reader_of(call) is shape_of
