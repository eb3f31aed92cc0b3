"""The parts of random networks: ops that keep the size, strided stages, branches, joins and heads."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field
from math import lcm, prod
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from laws import blocks
from laws.integers import EPS
from laws.program import RandomNet, Step, Value

_CONV = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
_NORM = {1: nn.BatchNorm1d, 2: nn.BatchNorm2d, 3: nn.BatchNorm3d}
_MAX: dict[int, Any] = {1: nn.MaxPool1d, 2: nn.MaxPool2d, 3: nn.MaxPool3d}
_AVG: dict[int, Any] = {1: nn.AvgPool1d, 2: nn.AvgPool2d, 3: nn.AvgPool3d}
_GLOBAL = {1: nn.AdaptiveMaxPool1d, 2: nn.AdaptiveMaxPool2d, 3: nn.AdaptiveMaxPool3d}
_JOINS: list[Callable[..., Tensor]] = [torch.add, torch.sub, torch.maximum]
MODES = ["reflect", "replicate", "circular"]

Doing = nn.Module | Callable[..., Any]


@dataclass
class Geometry:
    """How one stage strides: along each axis a stride and span - 2 * padding, so that branches agree in size."""

    stride: list[int]
    deficit: list[int]
    ceil: bool
    padding: list[int] = field(default_factory=list)
    patches: bool = False


class Builder:
    """Puts random parts into a network.

    Args:
        plain: window ops, pointwise ops and statistics alone.
    """

    def __init__(self, rng: random.Random, dimensions: int, plain: bool) -> None:
        self.rng, self.dimensions, self.plain, self.net = rng, dimensions, plain, RandomNet()
        self.block, self.number = "", 0
        self.again: list[tuple[str, int, int]] = []  # layers that keep size and channels, and stages before them
        self.strides: list[tuple[str, int]] = []  # layers that stride and keep the channels
        self.unnamed = False  # whether the stage strides in a function, which has a name of densify's own

    def add(self, sources: tuple[Value, ...], channels: int, step: Doing, name: str = "") -> Value:
        indices = tuple(value.place for value in sources)
        if isinstance(step, nn.Module):
            owner = self.net.get_submodule(self.block)
            path = f"{self.block}.{name}{len(self.net.program)}" if self.block else f"{name}{len(self.net.program)}"
            owner.add_module(path.rsplit(".", 1)[-1], step)
            self.net.program.append(Step(indices, layer=path))
        else:
            self.net.program.append(Step(indices, function=step))
        return Value(len(self.net.program), channels)

    def last_name(self) -> str:
        return self.net.program[-1].layer

    def call(self, x: Value, layer: str, channels: int) -> Value:
        """A layer that is there already, once more."""
        self.net.program.append(Step((x.place,), layer=layer))
        return Value(len(self.net.program), channels)

    def conv(self, x: Value, channels: int, kernel: Any, **given: Any) -> Value:
        groups = self.rng.choice([1, 1, x.channels]) if channels % x.channels == 0 else 1
        bias = self.rng.random() < 0.7
        module: Any = _CONV[self.dimensions]
        if not self.plain and self.rng.random() < 0.1:
            module = blocks.COMPUTED[self.dimensions]
            self.net.kinds.add("computed weight")
        elif not self.plain and self.rng.random() < 0.15 and given.get("padding", 0) not in (0, "same"):
            given["padding_mode"] = self.rng.choice(MODES)
            self.special(f"{given['padding_mode']} conv")
        return self.add((x,), channels, module(x.channels, channels, kernel, groups=groups, bias=bias, **given), "conv")

    def special(self, kind: str) -> None:
        """Remember an op that is no window op and no pointwise op."""
        self.net.kinds.add(kind)
        self.net.plain = False

    def same_size(self, x: Value) -> Value:
        """An op of stride 1 that keeps the size."""
        if not self.plain and self.rng.random() < 0.35:
            return self.phase_wise(x)
        kind = self.rng.choice(["conv", "conv", "string", "point", "norm", "relu", "max", "avg", "cat", "twice"])
        axes = range(self.dimensions)
        if kind == "conv":
            dilation = [self.rng.choice([1, 1, 2]) for _ in axes]
            kernel = [self.rng.choice([1, 3]) for _ in axes]
            padding = [d * (k - 1) // 2 for k, d in zip(kernel, dilation, strict=True)]
            made = self.conv(x, x.channels, kernel, padding=padding, dilation=dilation)
            self.again.append((self.last_name(), x.channels, self.number))
            return made
        if kind == "string":
            return self.conv(x, x.channels, [self.rng.choice([1, 2, 3, 4]) for _ in axes], padding="same")
        if kind == "point":
            return self.conv(x, self.rng.randint(2, 4), 1)
        if kind == "norm":
            return self.add((x,), x.channels, _NORM[self.dimensions](x.channels, eps=EPS), "norm")
        if kind == "relu":
            acts: list[Doing] = [nn.ReLU(), F.relu, nn.LeakyReLU(0.5)]
            return self.add((x,), x.channels, self.rng.choice(acts), "act")
        if kind == "max":
            return self.add((x,), x.channels, _MAX[self.dimensions](3, 1, 1), "max")
        if kind == "avg":
            return self.average(x, [3] * self.dimensions, [1] * self.dimensions, [1] * self.dimensions, False)
        if kind == "twice":
            fitting = [(layer, number) for layer, channels, number in self.again if channels == x.channels]
            if not fitting:
                module = _CONV[self.dimensions](x.channels, x.channels, 3, padding=1)
                x = self.add((x,), x.channels, module, "conv")
                fitting = [(self.last_name(), self.number)]
                self.again.append((self.last_name(), x.channels, self.number))
            layer, number = self.rng.choice(fitting)
            self.net.kinds.add("layer called twice" if number == self.number else "layer called in two stages")
            return self.call(x, layer, x.channels)
        return x

    def phase_wise(self, x: Value) -> Value:
        """An op that runs on every phase by itself, a crop, or padding by itself."""
        tables = [blocks.EXACT] * 16 + [blocks.TIES, blocks.TIES, blocks.NORMS]
        table = self.rng.choice([*tables, blocks.FLAT] if self.dimensions == 2 else tables)
        if self.rng.random() < 0.15:
            kernel = [self.rng.choice([1, 2, 3, 4]) for _ in range(self.dimensions)]
            return self.conv(self.padded(x, [k - 1 for k in kernel]), x.channels, kernel)
        kind = self.rng.choice(sorted(table))
        self.special(kind)
        self.net.statistic = True
        self.net.exact &= table is not blocks.NORMS
        self.net.exact_gradient &= table not in (blocks.NORMS, blocks.TIES)
        return self.add((x,), x.channels, table[kind](self.rng, x.channels, self.dimensions), "block")

    def padded(self, x: Value, totals: list[int]) -> Value:
        """Padding by itself, not the same on both sides."""
        mode = self.rng.choice(["constant", "constant", *MODES])
        amounts: list[int] = []
        for total in totals:
            low = self.rng.randint(0, total)
            amounts = [low, total - low, *amounts]
        self.special(f"{mode} pad")
        return self.add((x,), x.channels, blocks.Call(lambda v: F.pad(v, amounts, mode)), "pad")

    def average(self, x: Value, kernel: list[int], stride: list[int], padding: list[int], ceil: bool) -> Value:
        """An average pooling of numbers that all its divisors divide, its gradient's too."""
        include, divisor = self.rng.random() < 0.5, None
        if self.dimensions > 1 and self.rng.random() < 0.3:
            divisor = self.rng.randint(1, 5)
        factor = divisor or prod(lcm(*range(1, k + 1)) for k in kernel)
        x = self.add((x,), x.channels, lambda value: value * factor)
        given: dict[str, Any] = {"ceil_mode": ceil, "count_include_pad": include}
        if self.dimensions > 1:
            given["divisor_override"] = divisor
        if self.dimensions == 2 and self.rng.random() < 0.3:
            averaged: Callable[..., Tensor] = F.avg_pool2d
            self.unnamed |= max(stride) > 1
            made = self.add((x,), x.channels, lambda v: averaged(v, kernel, stride, padding, **given))
        else:
            made = self.add((x,), x.channels, _AVG[self.dimensions](kernel, stride, padding, **given), "avg")
        return self.add((made,), x.channels, lambda value: value * factor)

    def strided(self, x: Value, g: Geometry) -> Value:
        """An op with the geometry of its stage."""
        if not (self.plain or g.ceil) and self.rng.random() < 0.4:
            made = self.unusually_strided(x, g)
            if made is not None:
                return made
        kinds = ["max", "avg"] if g.ceil else ["conv", "conv", "max", "avg"]
        kernel, padding, dilation, kind = [], [], [], self.rng.choice(kinds)
        for axis, deficit in enumerate(g.deficit):
            least = max(0, -(deficit // 2))
            low = g.padding[axis] if g.ceil else self.rng.randint(least, least + 1)
            span = deficit + 2 * low
            # A dilated max pooling with padding may see padding alone on a small map: then torch itself says -inf.
            dilates = kind == "conv" or (kind == "max" and low == 0)
            d = 2 if dilates and span > 0 and span % 2 == 0 and self.rng.random() < 0.3 else 1
            if kind != "conv" and low > (span // d + 1) // 2:
                d, low = 1, least
                span = deficit + 2 * low
            if kind != "conv" and low > (span + 1) // 2:
                kind = "conv"
            kernel.append(span // d + 1)
            padding.append(low)
            dilation.append(d)
        if kind == "avg" and max(kernel) > 3:
            kind = "conv" if not g.ceil else "max"
        if kind == "conv":
            return self.conv(x, x.channels, kernel, stride=g.stride, padding=padding, dilation=dilation)
        if kind == "avg":
            return self.average(x, kernel, g.stride, padding, g.ceil)
        module = _MAX[self.dimensions](kernel, g.stride, padding, dilation, ceil_mode=g.ceil)
        return self.add((x,), x.channels, module, "max")

    def unusually_strided(self, x: Value, g: Geometry) -> Value | None:
        """Slices, patches, padding at run time or by itself in front; None where the geometry does not fit."""
        stride = g.stride[0]
        kind = self.rng.choice(["slice", "run-time same", "padded", *["patches"] * 6 * g.patches])
        if kind == "slice" and min(g.deficit) >= 0:
            self.net.kinds.add(kind)
            return self.add((x,), x.channels, blocks.Slice(g.deficit, g.stride), "slice")
        if kind == "patches":
            self.net.kinds.add(kind)
            made = self.add((x,), x.channels * stride**2, nn.PixelUnshuffle(stride), "patches")
            return self.conv(made, x.channels, 1)
        if kind == "run-time same" and not any(g.deficit):
            self.special(kind)
            kernel = [self.rng.randint(s, 4) for s in g.stride]
            x = self.add((x,), x.channels, blocks.RunTimeSame(kernel, g.stride), "same")
            return self.conv(x, x.channels, kernel, stride=g.stride)
        if kind == "padded":
            totals = [max(0, -deficit) + self.rng.randint(0, 2) for deficit in g.deficit]
            x = self.padded(x, totals)
            kernel = [deficit + total + 1 for deficit, total in zip(g.deficit, totals, strict=True)]
            if self.rng.random() < 0.5:
                return self.conv(x, x.channels, kernel, stride=g.stride)
            return self.add((x,), x.channels, _MAX[self.dimensions](kernel, g.stride), "max")
        return None

    def geometry(self, sizes: list[int]) -> Geometry:
        rng, axes = self.rng, range(self.dimensions)
        stride = [rng.choice([1, 2, 2, 2, 3]) if sizes[a] > 5 else 1 for a in axes]
        if not self.plain and self.dimensions == 2 and rng.random() < 0.6:
            factors = [s for s in (2, 3) if all(n % s == 0 for n in sizes)]
            if factors:
                factor = rng.choice(factors)
                return Geometry([factor] * 2, [factor - 1] * 2, False, patches=True)
        ceil = rng.random() < 0.3
        if not ceil:
            return Geometry(stride, [rng.choice([0, 0, 1, 2, -1]) for _ in axes], False)
        padding = [rng.randint(0, 1) for _ in axes]
        return Geometry(stride, [rng.choice([1, 2]) if p == 0 else 0 for p in padding], True, padding)

    def stage(self, x: Value, sizes: list[int], number: int) -> Value:
        """A block that strides (or not), with one to three branches."""
        self.block, self.unnamed, self.number = f"stage{number}", False, number
        self.net.add_module(self.block, nn.Module())
        fitting = [layer for layer, channels in self.strides if channels == x.channels]
        if fitting and not self.plain and self.rng.random() < 0.2:
            layer = self.rng.choice(fitting)
            self.net.kinds.add("strided layer called twice")
            self.net.stages.append((layer,))
            return self.call(x, layer, x.channels)
        g = self.geometry(sizes)
        branches = []
        for _ in range(self.rng.choice([1, 1, 2, 3])):
            y = x
            for _ in range(self.rng.randint(0, 1)):
                y = self.same_size(y)
            before = y.channels
            y = self.strided(y, g)
            if self.last_name() and y.channels == before and max(g.stride) > 1:
                self.strides.append((self.last_name(), before))
            for _ in range(self.rng.randint(0, 1)):
                y = self.same_size(y)
            branches.append(y)
        made = self.join(branches)
        if max(g.stride) > 1 and not self.unnamed:
            self.net.stages.append((self.block,))
        return made

    def join(self, branches: list[Value]) -> Value:
        if len(branches) == 1:
            return branches[0]
        self.net.kinds.add("branches")
        if self.rng.random() < 0.5:
            made = self.add(tuple(branches), sum(b.channels for b in branches), lambda *maps: torch.cat(maps, 1))
            return self.conv(made, 3, 1)
        level = [b if b.channels == 3 else self.conv(b, 3, 1) for b in branches]
        made = level[0]
        for other in level[1:]:
            made = self.add((made, other), 3, self.rng.choice(_JOINS))
        return made

    def residual(self, x: Value) -> Value:
        y = self.same_size(self.same_size(x))
        if y.channels != x.channels:
            y = self.conv(y, x.channels, 1)
        return self.add((x, y), x.channels, lambda a, b: a + b)

    def excite(self, x: Value) -> Value:
        """Squeeze and excitation, the squeeze being a maximum, which is exact."""
        self.net.statistic = True
        s = self.add((x,), x.channels, _GLOBAL[self.dimensions](1), "squeeze")
        s = self.add((self.conv(s, x.channels, 1),), x.channels, lambda v: F.hardtanh(v, 0.0, 2.0))
        return self.add((x, s), x.channels, lambda a, b: a * b)

    def head(self, x: Value, sizes: list[int]) -> Value:
        """A map, a global pooling with or without a classifier, or a fixed window."""
        self.block = ""
        kind = self.rng.choice(["map", "map", "max", "mean", "meanlinear", "window", "window"])
        dims = tuple(range(2, 2 + self.dimensions))
        if kind == "map":
            return self.conv(x, 3, 1)
        if kind == "window" and prod(sizes) * x.channels <= 200:
            self.net.window = tuple(sizes) if prod(sizes) > 1 else None
            flattens: list[Doing] = [nn.Flatten(), lambda v: torch.flatten(v, 1), lambda v: v.flatten(1)]
            flatten = self.rng.choice(flattens)
            flat = self.add((x,), x.channels * prod(sizes), flatten, "flat")
            x = self.add((flat,), 6, nn.Linear(flat.channels, 6), "fc")
            x = self.add((x,), 6, F.relu)
            return self.add((x,), 4, nn.Linear(6, 4), "fc")
        self.net.statistic = True
        return self.pooled_head(x, kind, dims)

    def pooled_head(self, x: Value, kind: str, dims: tuple[int, ...]) -> Value:
        if kind in ("mean", "meanlinear") and self.rng.random() < 0.7:
            pooled = self.add((x,), x.channels, blocks.Call(blocks.exact_mean), "mean")
        elif kind in ("mean", "meanlinear"):
            pooled = self.add((x,), x.channels, lambda v: v.mean(dims))
            self.net.exact = self.net.exact_gradient = False
        else:
            pooled = self.add((x,), x.channels, _GLOBAL[self.dimensions](1), "max")
            pooled = self.add((pooled,), x.channels, lambda v: torch.flatten(v, 1))
        return self.add((pooled,), 4, nn.Linear(x.channels, 4), "fc") if kind != "mean" else pooled
