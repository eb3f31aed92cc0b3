"""Ops for random networks that are no convolution or pooling; exact on small integers, but for the NORMS.

The oracle runs each of them whole on every fragment; densify traces into them.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_CONV: dict[int, Callable[..., Tensor]] = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}
EPS = 0.25  # of normalisations that are not exact: small maps have small variances, which amplify rounding


class Block(nn.Module):
    """What the oracle runs as it is."""


class Call(Block):
    """Any function as a module."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


def spatial(x: Tensor) -> tuple[int, ...]:
    """The dimensions of a map's spatial axes."""
    return tuple(range(2, x.dim()))


def exact_mean(x: Tensor) -> Tensor:
    """The mean over the map times the square of its size: whole numbers, in the gradient too."""
    count = math.prod(x.shape[2:])
    return (x * count).mean(spatial(x)) * count


class Squeeze(Block):
    """Squeeze and excitation on integers: a gate of whole numbers, multiplied or added to the map."""

    def __init__(self, channels: int, statistic: str, form: str, joined: str) -> None:
        super().__init__()
        self.statistic, self.form, self.joined = statistic, form, joined
        self.first, self.second = nn.Linear(channels, channels), nn.Linear(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        s = F.relu(self.first(self.squeeze(x)))
        s = F.hardtanh(self.second(s), -2.0, 2.0)
        if self.form == "view":
            s = s.view(x.shape[0], x.shape[1], *[1] * (x.dim() - 2))
        else:
            for _ in spatial(x):
                s = s.unsqueeze(-1) if self.form == "unsqueeze" else s[..., None]
        return x * s if self.joined == "mul" else x - s

    def squeeze(self, x: Tensor) -> Tensor:
        if self.statistic == "sum":
            return x.sum(spatial(x))
        if self.statistic == "amax":
            return torch.amax(x, spatial(x))
        if self.statistic == "max":
            return x.flatten(2).max(2)[0]
        return exact_mean(x)


class ChannelsLast(Block):
    """Linear layers on a map whose channels come last."""

    def __init__(self, channels: int, form: str) -> None:
        super().__init__()
        self.form, self.up, self.down = form, nn.Linear(channels, 2 * channels), nn.Linear(2 * channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        if self.form == "movedim":
            last: Tensor = self.down(F.relu(self.up(x.movedim(1, -1))))
            return last.movedim(-1, 1)
        if self.form == "tokens":
            tokens: Tensor = self.down(F.relu(self.up(x.flatten(2).transpose(1, 2))))
            return tokens.transpose(1, 2).reshape(x.shape)
        y: Tensor = self.down(F.relu(self.up(x.permute(0, *spatial(x), 1))))
        return x + y.permute(0, x.dim() - 1, *range(1, x.dim() - 1))


class Attention(Block):
    """Attention over all positions, its weights the signs of the products."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.qkv = nn.Linear(channels, 3 * channels)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x.flatten(2).transpose(1, 2)).chunk(3, dim=-1)
        mixed: Tensor = F.hardtanh(q @ k.transpose(-2, -1)) @ v
        return x + mixed.transpose(1, 2).view_as(x)


class Mix(Block):
    """Channels mixed by an einsum."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.linear = nn.Linear(channels, channels, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return torch.einsum("bc...,kc->bk...", x, self.linear.weight)


class LastNorm(Block):
    """Layer normalisation of the channels of a channels-last map."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(channels, eps=EPS)

    def forward(self, x: Tensor) -> Tensor:
        normed: Tensor = self.norm(x.movedim(1, -1))
        return normed.movedim(-1, 1)


class RunTimeSame(Block):
    """TensorFlow's padding, from the size at run time: a window op behind it gives ceil(n / stride) samples."""

    def __init__(self, kernel: list[int], stride: list[int]) -> None:
        super().__init__()
        self.kernel, self.stride = kernel, stride

    def forward(self, x: Tensor) -> Tensor:
        amounts: list[Any] = []
        for n, k, s in zip(x.shape[2:], self.kernel, self.stride, strict=True):
            total = max((math.ceil(n / s) - 1) * s + k - n, 0)
            amounts = [total // 2, total - total // 2, *amounts]
        return F.pad(x, amounts)


class Slice(nn.Module):
    """x[..., o::s] along every axis: a strided op of one sample."""

    def __init__(self, offset: list[int], stride: list[int]) -> None:
        super().__init__()
        self.offset, self.stride = tuple(offset), tuple(stride)

    def forward(self, x: Tensor) -> Tensor:
        index: tuple[Any, ...] = (..., *(slice(o, None, s) for o, s in zip(self.offset, self.stride, strict=True)))
        return x[index]


class Computed:
    """A convolution whose weight is computed in forward."""

    def kernel(self: Any) -> Tensor:
        made: Tensor = self.weight + self.weight.sum(1, keepdim=True)
        return made

    def forward(self: Any, x: Tensor) -> Tensor:
        convolve = _CONV[len(self.kernel_size)]
        return convolve(x, self.kernel(), self.bias, self.stride, self.padding, self.dilation, self.groups)


class Computed1d(Computed, nn.Conv1d):
    """In one dimension."""


class Computed2d(Computed, nn.Conv2d):
    """In two dimensions."""


class Computed3d(Computed, nn.Conv3d):
    """In three dimensions."""


COMPUTED = {1: Computed1d, 2: Computed2d, 3: Computed3d}


def shuffled(x: Tensor, groups: int) -> Tensor:
    """Channel shuffle."""
    batch, channels = x.shape[:2]
    return x.view(batch, groups, channels // groups, *x.shape[2:]).transpose(1, 2).reshape(x.shape)


def unfolded(x: Tensor) -> Tensor:
    """The sum over a 3 x 3 neighbourhood, by its patches laid out."""
    batch, channels, height, width = x.shape
    return F.unfold(x, 3, padding=1).view(batch, channels, 9, height, width).sum(2)


def response(x: Tensor) -> Tensor:
    """ConvNeXt V2's global response normalisation."""
    total: Tensor = torch.linalg.vector_norm(x, dim=spatial(x), keepdim=True)
    return x * (total / (total.mean(1, keepdim=True) + EPS)) + x + 0.1


Make = Callable[[random.Random, int, int], nn.Module]  # of (random numbers, channels, spatial axes)


def _along(function: Callable[[Tensor, int], Tensor]) -> Make:
    """An op along one axis, whichever."""

    def make(rng: random.Random, channels: int, count: int) -> nn.Module:
        axis = rng.choice([2 + rng.randrange(count), -1 - rng.randrange(count)])
        return Call(lambda x: function(x, axis))

    return make


def _all(function: Callable[[Tensor], Tensor]) -> Make:
    return lambda rng, channels, count: Call(function)


def _excite(rng: random.Random, channels: int, count: int) -> nn.Module:
    statistic = rng.choice(["sum", "max", "mean"])
    return Squeeze(channels, statistic, rng.choice(["view", "unsqueeze", "index"]), rng.choice(["mul", "sub"]))


def _shuffle(rng: random.Random, channels: int, count: int) -> nn.Module:
    groups = rng.choice([g for g in range(2, channels + 1) if channels % g == 0])
    return Call(lambda x: shuffled(x, groups))


def _roll(rng: random.Random, channels: int, count: int) -> nn.Module:
    axis, shift = 2 + rng.randrange(count), rng.choice([-2, -1, 1, 2])
    return Call(lambda x: torch.roll(x, shift, axis))


def _crop(rng: random.Random, channels: int, count: int) -> nn.Module:
    low, high = rng.randint(0, 1), rng.randint(1, 2)
    amounts = (high, low, *[0, 0] * (count - 1))
    return Call(lambda x: F.pad(x[..., low:-high], amounts, "replicate"))  # refuses a map of which nothing is left


def _negative_pad(rng: random.Random, channels: int, count: int) -> nn.Module:
    low = rng.choice([-1, 1])
    return Call(lambda x: F.pad(x, (low, -low)))


# Everything here takes statistics or mixes positions within a fragment, or has no reader: it runs phase by phase.
EXACT: dict[str, Make] = {
    "squeeze block": _excite,
    "flip": _along(lambda x, axis: x.flip(axis).cummax(axis)[0].flip(axis)),
    "roll": _roll,
    "cumsum": _along(lambda x, axis: x.cumsum(axis)),
    "cummax": _along(lambda x, axis: x.cummax(axis)[0]),
    "sort": _along(lambda x, axis: torch.sort(x, dim=axis, stable=True).values),
    "axis sum": _along(lambda x, axis: x + x.sum(axis, keepdim=True)),
    "max norm": _all(lambda x: x - x.flatten(2).max(2)[0].view(x.shape[0], x.shape[1], *[1] * (x.dim() - 2))),
    "sum norm": _all(lambda x: 2 * x - x.sum(spatial(x), keepdim=True)),
    "channels last": lambda rng, channels, count: ChannelsLast(channels, rng.choice(["movedim", "tokens", "permute"])),
    "attention": lambda rng, channels, count: Attention(channels),
    "einsum": lambda rng, channels, count: Mix(channels),
    "shuffle": _shuffle,
    "chunk": _all(lambda x: torch.cat([F.relu(part) for part in x.chunk(2, 1)][::-1], 1)),
    "compare": _all(lambda x: torch.where(x > 0, x, -2 * x)),
    "in place": _all(lambda x: x.clone().add_(1).relu_()),
    "coordinates": _along(lambda x, axis: x + torch.ones_like(x).cumsum(axis)),
    "crop": _crop,
    "negative pad": _negative_pad,
}
FLAT: dict[str, Make] = {"unfold": _all(unfolded)}  # in two dimensions only
TIES: dict[str, Make] = {  # values exact; the gradient of a maximum is divided among its ties
    "amax norm": _all(lambda x: x - torch.amax(x, spatial(x), keepdim=True)),
    "amin norm": _along(lambda x, axis: x - x.amin(axis, keepdim=True)),
    "amax squeeze": lambda rng, channels, count: Squeeze(channels, "amax", "view", "mul"),
}
INSTANCE = {1: nn.InstanceNorm1d, 2: nn.InstanceNorm2d, 3: nn.InstanceNorm3d}
NORMS: dict[str, Make] = {
    "group norm": lambda rng, channels, count: nn.GroupNorm(rng.choice([1, channels]), channels, eps=EPS),
    "instance norm": lambda rng, channels, count: INSTANCE[count](channels, eps=EPS, affine=True),
    "layer norm": lambda rng, channels, count: LastNorm(channels),
    "map norm": _all(lambda x: F.layer_norm(x, list(x.shape[1:]), eps=EPS) + 0.1),
    "normalize": _all(lambda x: F.normalize(x + 0.1, dim=1)),
    "response norm": _all(response),
    "softmax": _along(lambda x, axis: F.softmax(x / 16, axis) * 16),
}
