"""Readers of convolutions, linear layers, poolings and paddings."""

from __future__ import annotations

from math import prod
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from densify.graphs.fx.registry import Call, everywhere, kind, reads
from densify.lattice import Window
from densify.ops import (
    AdaptivePool,
    AvgPool,
    Channelwise,
    Conv,
    GlobalPool,
    Linear,
    MaxPool,
    Op,
    Pad,
    Patches,
    PowerPool,
    Unsupported,
)


def each(value: Any, count: int) -> list[Any]:
    values = list(value) if isinstance(value, tuple | list) else [value]
    return values * count if len(values) == 1 else values


@reads(nn.Conv1d, nn.Conv2d, nn.Conv3d, F.conv1d, F.conv2d, F.conv3d)
def conv(call: Call) -> Op | None:
    names = "input weight bias stride padding dilation groups"
    written = call.arguments(names, stride=1, padding=0, dilation=1)
    if getattr(call.module, "padding_mode", "zeros") != "zeros":
        return None
    if _follows_size(written):
        return _COMPUTED
    given = call.value(written)
    count = call.spatial
    kernel = given["weight"].shape[2:]
    strides, dilations = each(given["stride"], count), each(given["dilation"], count)
    if given["padding"] in ("same", "valid"):
        totals = [d * (k - 1) if given["padding"] == "same" else 0 for k, d in zip(kernel, dilations, strict=True)]
        sides = [(total // 2, total - total // 2) for total in totals]
    else:
        sides = [(p, p) for p in each(given["padding"], count)]
    return Conv(
        tuple(
            Window(k, s, low, high, d) for k, s, (low, high), d in zip(kernel, strides, sides, dilations, strict=True)
        )
    )


def _follows_size(written: dict[str, Any]) -> bool:
    """Whether a window's geometry, or what it divides by, is computed from the map's size."""
    keys = ("kernel_size", "stride", "padding", "dilation", "divisor_override", "norm_type")
    return any(isinstance(one, fx.Node) for key in keys for one in each(written.get(key), 1))


def _whole_map(call: Call, written: dict[str, Any]) -> Op | None:
    """A pooling whose window is the map is one over the whole map; any other must not be frozen at one size."""
    whole = tuple(each(call.value(written["kernel_size"]), call.spatial)) == tuple(call.source.shape[2:])
    if whole and not isinstance(written.get("divisor_override"), fx.Node):
        return GlobalPool()
    return _COMPUTED


_COMPUTED = Unsupported("its window is computed from the map's size", "Write the window's size as a number")


def _pool_windows(given: dict[str, Any], count: int) -> tuple[Window, ...]:
    kernels = each(given["kernel_size"], count)
    strides = each(given["stride"], count) if given["stride"] not in (None, (), []) else kernels
    paddings, dilations = each(given["padding"], count), each(given["dilation"], count)
    return tuple(
        Window(k, s, p, p, d, bool(given["ceil_mode"]))
        for k, s, p, d in zip(kernels, strides, paddings, dilations, strict=True)
    )


@reads(nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d, F.max_pool1d, F.max_pool2d, F.max_pool3d)
@reads(torch.max_pool1d, torch.max_pool2d, torch.max_pool3d)
@reads(F.max_pool1d_with_indices, F.max_pool2d_with_indices, F.max_pool3d_with_indices)
def max_pool(call: Call) -> Op | None:
    names = "input kernel_size stride padding dilation ceil_mode return_indices"
    written = call.arguments(names, stride=None, padding=0, dilation=1, ceil_mode=False)
    indices = not isinstance(call.result, Tensor)
    if _follows_size(written):
        return _COMPUTED if indices else _whole_map(call, written)
    return MaxPool(_pool_windows(written, call.spatial), indices=indices)


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
    written = call.arguments(names, stride=None, ceil_mode=False)
    if _follows_size(written):
        return _COMPUTED
    given = call.value(written) | {"padding": 0, "dilation": 1}
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
    dims = {d % rank for d in each(given["dim"], 1)} if given["dim"] is not None else set(range(rank))
    if rank > 2 and dims == set(range(2, rank)):
        return GlobalPool(keepdim=bool(given["keepdim"]))
    if dims == {1} and given["keepdim"]:
        return Channelwise()
    return None


@reads(nn.Linear, F.linear)
def linear(call: Call) -> Op | None:
    if call.source.dim() == 2:
        return Linear()
    return None


@reads(nn.FractionalMaxPool2d, nn.FractionalMaxPool3d, F.fractional_max_pool2d, F.fractional_max_pool3d)
def random_regions(call: Call) -> Op | None:
    return Unsupported("its regions are random, so there is no original to be equal to", "Use another pooling")


def has_stride(module: nn.Module | None) -> bool:
    """Whether a module moves by more than one sample."""
    return any(isinstance(one, int) and one > 1 for one in each(getattr(module, "stride", 1), 1))
