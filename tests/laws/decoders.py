"""Random encoder-decoders with exact arithmetic: strided stages, upsamplings, skips by add and cat, odd sizes."""

from __future__ import annotations

import random
from fractions import Fraction
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from laws.blocks import Block
from laws.builder import Builder, Geometry
from laws.fragments import Choice, fits
from laws.integers import inputs, integer_weights
from laws.merges import ResizeLike
from laws.nets import alive, drawn_choice
from laws.program import RandomNet, Value

_TRANSPOSED: dict[int, Any] = {1: nn.ConvTranspose1d, 2: nn.ConvTranspose2d, 3: nn.ConvTranspose3d}
_LINEAR = {1: "linear", 2: "bilinear", 3: "trilinear"}
KINDS = {
    "select": ["transposed", "transposed", "shuffle", "whole", "broken", "like"],
    "average": ["transposed", "transposed", "shuffle", "whole"],
    "resample": ["whole", "broken", "corners", "like", "like", "transposed", "shuffle"],
}
"""Which upsamplings there are for a merge: whole and broken scale factors, corners aligned, another map's size."""


class CropLike(Block):
    """A map cropped to what another has: at its end, or on both sides."""

    def __init__(self, centre: bool) -> None:
        super().__init__()
        self.centre = centre

    def forward(self, x: Tensor, like: Tensor) -> Tensor:
        index: list[Any] = [slice(None), slice(None)]
        for n, m in zip(x.shape[2:], like.shape[2:], strict=True):
            start = max(n - m, 0) // 2 if self.centre else 0
            index.append(slice(start, start + m))
        return x[tuple(index)]


class Decoder(NamedTuple):
    """A random encoder-decoder, and how to convert it.

    Attributes:
        net: in eval mode, float64.
        choice: which strides go.
        merge: what its upsamplings do.
    """

    net: RandomNet
    choice: Choice
    merge: str


def random_decoder(seed: int, merge: str | None = None) -> Decoder:
    """A random encoder-decoder with a choice of layers and a merge that has a meaning for its upsamplings."""
    rng = random.Random(seed)
    how = merge or rng.choice(sorted(KINDS))
    while True:
        made = _attempt(rng, rng.choice([1, 2, 2, 2, 3]), how)
        if made is None or not alive(made) or not fits(made, inputs(made.reference)):
            continue
        choice = drawn_choice(rng, made, lambda choice: True)
        if choice is not None:
            return Decoder(made, choice, how)


class Level(NamedTuple):
    """A value of the network and its step, per spatial axis."""

    value: Value
    step: tuple[Fraction, ...]


def _attempt(rng: random.Random, dimensions: int, merge: str) -> RandomNet | None:
    build = Builder(rng, dimensions, plain=rng.random() < 0.6)
    least, most = {1: (17, 60), 2: (13, 34), 3: (7, 12)}[dimensions]
    build.net.reference = (2, 2, *(rng.randint(least, most) for _ in range(dimensions)))
    build.net.eval()
    one = (Fraction(1),) * dimensions
    image = Level(Value(0, 2), one)
    x = Level(build.conv(image.value, 3, rng.choice([1, 3]), padding=rng.choice([0, 1])), one)
    skips, outputs = [image], []
    try:
        for number in range(rng.choice([1, 2, 2, 3])):
            skips.append(x)
            x = _down(build, x, number)
        outputs.append(x.value)
        while len(skips) > 1:
            skip = skips.pop()
            if rng.random() < 0.2 and len(skips) > 1:
                continue  # the next one up is twice as far
            x = _up(build, x, skip, merge)
            x = Level(build.same_size(x.value), x.step)
            if rng.random() < 0.2:
                outputs.append(x.value)
        if rng.random() < 0.3 and "like" in KINDS[merge]:
            x = Level(_resized(build, x.value, image.value), one)
        outputs.append(build.conv(x.value, 2, 1))
        integer_weights(build.net, rng)
        with torch.no_grad():
            build.net.eval().double()(inputs(build.net.reference))
    except (RuntimeError, ValueError, IndexError):
        return None  # a window does not fit
    if rng.random() < 0.6:
        outputs = outputs[-1:]
    if len(outputs) > 1:
        build.net.returns = {f"out{i}": value.place for i, value in enumerate(outputs)}
    return build.net.double().eval()


def _down(build: Builder, x: Level, number: int) -> Level:
    """A strided stage, mostly halving."""
    rng = build.rng
    build.block, build.number = f"stage{number}", number
    build.net.add_module(build.block, nn.Module())
    stride = [rng.choice([2, 2, 2, 3])] * build.dimensions
    if rng.random() < 0.2:
        stride = [rng.choice([1, 2]) for _ in stride]
    geometry = Geometry(stride, [1] * len(stride), rng.random() < 0.2, [0] * len(stride))
    build.unnamed = False
    made = build.strided(build.same_size(x.value), geometry)
    if max(stride) > 1 and not build.unnamed:
        build.net.stages.append((build.block,))
    made = build.same_size(made)
    build.block = ""
    return Level(made, tuple(own * s for own, s in zip(x.step, stride, strict=True)))


def _up(build: Builder, x: Level, skip: Level, merge: str) -> Level:
    """An upsampling, mostly back to a skip's step, and a join with that skip."""
    rng = build.rng
    kind = rng.choice(KINDS[merge])
    factors = [max(1, round(own / to)) for own, to in zip(x.step, skip.step, strict=True)]
    if rng.random() < 0.15:
        factors = [rng.choice([2, 3, 4])] * build.dimensions
    value, step = x.value, tuple(own / u for own, u in zip(x.step, factors, strict=True))
    if kind == "shuffle" and (build.dimensions != 2 or len(set(factors)) > 1):
        kind = "whole"
    build.net.kinds.add(kind)
    if kind == "transposed":
        value = _transposed(build, value, factors)
    elif kind == "shuffle":
        value = build.conv(value, 2 * factors[0] ** 2, 1)
        value = build.add((value,), 2, nn.PixelShuffle(factors[0]), "shuffle")
    elif kind == "like":
        value, step = _resized(build, value, skip.value), skip.step
    elif kind == "broken":
        factor = rng.choice([Fraction(3, 2), Fraction(5, 2), Fraction(1, 2)])
        value = build.add((value,), value.channels, nn.Upsample(scale_factor=float(factor)), "up")
        step = tuple(own / factor for own in x.step)
    else:
        value = build.add((value,), value.channels, _upsample(build, kind, factors), "up")
    if step != skip.step or rng.random() < 0.2:
        return Level(value, step)
    return Level(_joined(build, value, skip.value), step)


def _joined(build: Builder, x: Value, skip: Value) -> Value:
    """A map and a skip, each cropped to what the other has."""
    how = build.rng.choice(["skip added", "skip concatenated"])
    build.net.kinds.add(how)
    centre = build.rng.random() < 0.5
    cropped = build.add((skip, x), skip.channels, CropLike(centre), "crop")
    x = build.add((x, cropped), x.channels, CropLike(centre), "crop")
    if how == "skip concatenated":
        joined = build.add((x, cropped), x.channels + skip.channels, lambda *maps: torch.cat(maps, 1))
        return build.conv(joined, 3, 1)
    level = cropped if skip.channels == x.channels else build.conv(cropped, x.channels, 1)
    return build.add((x, level), x.channels, lambda a, b: a + b)


def _transposed(build: Builder, x: Value, stride: list[int]) -> Value:
    rng = build.rng
    dilation = [rng.choice([1, 1, 1, 2]) for _ in stride]
    kernel = [rng.randint(1, 2 * s) for s in stride]
    padding = [rng.randint(0, min(2, d * (k - 1))) for k, d in zip(kernel, dilation, strict=True)]
    extra = [rng.randint(0, max(s, d) - 1) if rng.random() < 0.3 else 0 for s, d in zip(stride, dilation, strict=True)]
    groups = rng.choice([1, x.channels])
    module = _TRANSPOSED[build.dimensions](
        x.channels, x.channels, kernel, stride, padding, extra, groups, rng.random() < 0.5, dilation
    )
    return build.add((x,), x.channels, module, "up")


def _upsample(build: Builder, kind: str, factors: list[int]) -> nn.Module:
    """An interpolation by whole factors; where corners are aligned, it gives no whole numbers."""
    rng, modes = build.rng, ["nearest", "nearest-exact", _LINEAR[build.dimensions]]
    if kind == "corners":
        build.net.exact = build.net.exact_gradient = False
        return nn.Upsample(scale_factor=tuple(factors), mode=_LINEAR[build.dimensions], align_corners=True)
    mode = rng.choice(modes + ["bicubic"] * (build.dimensions == 2))
    # Halves and quarters are exact, but the bits that they take add up.
    build.net.exact &= mode.startswith("nearest") or (set(factors) <= {1, 2} and "halves" not in build.net.kinds)
    if not mode.startswith("nearest"):
        build.net.kinds.add("halves")
    build.net.exact &= mode != "bicubic"
    build.net.exact_gradient &= build.net.exact
    return nn.Upsample(scale_factor=tuple(factors), mode=mode)


def _resized(build: Builder, x: Value, like: Value) -> Value:
    """Interpolation to another map's size, whose steps need not be whole numbers of times as fine."""
    mode = build.rng.choice(["nearest", _LINEAR[build.dimensions]])
    corners = build.rng.random() < 0.5 if mode != "nearest" else None
    build.net.exact = build.net.exact and mode == "nearest"
    build.net.exact_gradient &= build.net.exact
    return build.add((x, like), x.channels, ResizeLike(mode, corners), "like")
