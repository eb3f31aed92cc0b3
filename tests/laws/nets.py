"""Random small networks on which all arithmetic is exact: integer weights in float64, averages of multiples.

A network is a program, a list of steps over named layers, so that it can be traced plainly and always has a shape that
runs at other sizes: branches that are joined agree in size whatever the input's size.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field
from math import lcm, prod
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from laws.fragments import Choice, original, rule, window_ops
from laws.integers import EPS, inputs, integer_weights

_CONV = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
_NORM = {1: nn.BatchNorm1d, 2: nn.BatchNorm2d, 3: nn.BatchNorm3d}
_MAX: dict[int, Any] = {1: nn.MaxPool1d, 2: nn.MaxPool2d, 3: nn.MaxPool3d}
_AVG: dict[int, Any] = {1: nn.AvgPool1d, 2: nn.AvgPool2d, 3: nn.AvgPool3d}
_GLOBAL = {1: nn.AdaptiveMaxPool1d, 2: nn.AdaptiveMaxPool2d, 3: nn.AdaptiveMaxPool3d}
_JOINS: list[Callable[..., Tensor]] = [torch.add, torch.sub, torch.maximum]

Doing = nn.Module | Callable[..., Any]


class Step(NamedTuple):
    """One line of a network's program: a layer by name, or a function of the values computed so far."""

    sources: tuple[int, ...]
    layer: str = ""
    function: Callable[..., Any] | None = None


class RandomNet(nn.Module):
    """A network made by :func:`random_net`.

    Attributes:
        program: its steps; value 0 is the input.
        window: what a flatten takes in at the reference size, where that is more than one sample.
        reference: shape of the reference input.
        stages: names of the layers that stride together.
        exact: whether all its arithmetic is exact, the gradients' too.
        statistic: whether a statistic over the whole map is taken.
    """

    def __init__(self) -> None:
        super().__init__()
        self.program: list[Step] = []
        self.window: tuple[int, ...] | None = None
        self.reference: tuple[int, ...] = ()
        self.stages: list[tuple[str, ...]] = []
        self.exact = True
        self.statistic = False

    def forward(self, x: Tensor) -> Tensor:
        values = [x]
        for step in self.program:
            operands = [values[i] for i in step.sources]
            made = self.get_submodule(step.layer)(*operands) if step.function is None else step.function(*operands)
            values.append(made)
        return values[-1]


class Value(NamedTuple):
    """A value of the program: its place and its channels."""

    place: int
    channels: int


@dataclass
class Geometry:
    """How one stage strides: along each axis a stride and span - 2 * padding, so that branches agree in size."""

    stride: list[int]
    deficit: list[int]
    ceil: bool
    padding: list[int] = field(default_factory=list)


class _Builder:
    def __init__(self, rng: random.Random, dimensions: int) -> None:
        self.rng, self.dimensions, self.net = rng, dimensions, RandomNet()
        self.block = ""

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

    def conv(self, x: Value, channels: int, kernel: Any, **given: Any) -> Value:
        groups = self.rng.choice([1, 1, x.channels]) if channels % x.channels == 0 else 1
        bias = self.rng.random() < 0.7
        module = _CONV[self.dimensions](x.channels, channels, kernel, groups=groups, bias=bias, **given)
        return self.add((x,), channels, module, "conv")

    def same_size(self, x: Value) -> Value:
        """An op of stride 1 that keeps the size."""
        kind = self.rng.choice(["conv", "conv", "string", "point", "norm", "relu", "max", "avg", "cat", "twice"])
        axes = range(self.dimensions)
        if kind == "conv":
            dilation = [self.rng.choice([1, 1, 2]) for _ in axes]
            kernel = [self.rng.choice([1, 3]) for _ in axes]
            padding = [d * (k - 1) // 2 for k, d in zip(kernel, dilation, strict=True)]
            return self.conv(x, x.channels, kernel, padding=padding, dilation=dilation)
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
            once = self.add((x,), x.channels, _CONV[self.dimensions](x.channels, x.channels, 3, padding=1), "conv")
            self.net.program.append(Step((once.place,), layer=self.last_name()))
            return Value(len(self.net.program), x.channels)
        return x

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
            made = self.add((x,), x.channels, lambda v: averaged(v, kernel, stride, padding, **given))
        else:
            made = self.add((x,), x.channels, _AVG[self.dimensions](kernel, stride, padding, **given), "avg")
        return self.add((made,), x.channels, lambda value: value * factor)

    def strided(self, x: Value, g: Geometry) -> Value:
        """An op with the geometry of its stage."""
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
            made = self.conv(x, x.channels, kernel, stride=g.stride, padding=padding, dilation=dilation)
        elif kind == "avg":
            return self.average(x, kernel, g.stride, padding, g.ceil)
        else:
            module = _MAX[self.dimensions](kernel, g.stride, padding, dilation, ceil_mode=g.ceil)
            made = self.add((x,), x.channels, module, "max")
        return made

    def geometry(self, least_size: list[int]) -> Geometry:
        rng, axes = self.rng, range(self.dimensions)
        stride = [rng.choice([1, 2, 2, 2, 3]) if least_size[a] > 5 else 1 for a in axes]
        ceil = rng.random() < 0.3
        if not ceil:
            return Geometry(stride, [rng.choice([0, 0, 1, 2, -1]) for _ in axes], False)
        padding = [rng.randint(0, 1) for _ in axes]
        return Geometry(stride, [rng.choice([1, 2]) if p == 0 else 0 for p in padding], True, padding)

    def stage(self, x: Value, sizes: list[int], number: int) -> Value:
        """A block that strides (or not), with one to three branches."""
        self.block = f"stage{number}"
        self.net.add_module(self.block, nn.Module())
        before = len(self.net.program)
        g = self.geometry(sizes)
        branches = []
        for _ in range(self.rng.choice([1, 1, 2, 3])):
            y = x
            for _ in range(self.rng.randint(0, 1)):
                y = self.same_size(y)
            y = self.strided(y, g)
            for _ in range(self.rng.randint(0, 1)):
                y = self.same_size(y)
            branches.append(y)
        made = self.join(branches)
        if max(g.stride) > 1:
            names = tuple(step.layer or "F" for step in self.net.program[before:])
            self.net.stages.append((self.block,) if "F" not in names else ())
        return made

    def join(self, branches: list[Value]) -> Value:
        if len(branches) == 1:
            return branches[0]
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

    def head(self, x: Value, sizes: list[int]) -> None:
        """A map, a global pooling with or without a classifier, or a fixed window."""
        self.block = ""
        kind = self.rng.choice(["map", "map", "max", "mean", "meanlinear", "window", "window"])
        dims = tuple(range(2, 2 + self.dimensions))
        if kind == "map":
            self.conv(x, 3, 1)
        elif kind == "window" and prod(sizes) * x.channels <= 200:
            self.net.window = tuple(sizes) if prod(sizes) > 1 else None
            flattens: list[Doing] = [nn.Flatten(), lambda v: torch.flatten(v, 1), lambda v: v.flatten(1)]
            flatten = self.rng.choice(flattens)
            flat = self.add((x,), x.channels * prod(sizes), flatten, "flat")
            x = self.add((flat,), 6, nn.Linear(flat.channels, 6), "fc")
            x = self.add((x,), 6, F.relu)
            self.add((x,), 4, nn.Linear(6, 4), "fc")
        else:
            self.net.statistic = True
            self.pooled_head(x, kind, dims)

    def pooled_head(self, x: Value, kind: str, dims: tuple[int, ...]) -> None:
        if kind in ("mean", "meanlinear"):
            pooled = self.add((x,), x.channels, lambda v: v.mean(dims))
            self.net.exact = False
        else:
            pooled = self.add((x,), x.channels, _GLOBAL[self.dimensions](1), "max")
            pooled = self.add((pooled,), x.channels, lambda v: torch.flatten(v, 1))
        if kind != "mean":
            self.add((pooled,), 4, nn.Linear(x.channels, 4), "fc")


def random_net(seed: int, dimensions: int | None = None) -> tuple[RandomNet, Choice]:
    """A random network in eval mode, float64, and a choice of layers that fits it."""
    rng = random.Random(seed)
    while True:
        made = _attempt(rng, dimensions or rng.choice([1, 2, 2, 2, 2, 3]))
        if made is None or not alive(made):
            continue
        choice = _choice(rng, made)
        if choice.layers != () or made.window is not None or made.statistic:
            return made, choice


def _attempt(rng: random.Random, dimensions: int) -> RandomNet | None:
    build = _Builder(rng, dimensions)
    least, most = {1: (9, 60), 2: (7, 34), 3: (6, 14)}[dimensions]
    shape = (2, 2, *(rng.randint(least, most) for _ in range(dimensions)))
    build.net.reference = shape
    build.net.eval()
    x = Value(0, 2)
    x = build.conv(x, 3, rng.choice([1, 3]), padding=rng.choice([0, 1]))
    try:
        for number in range(rng.randint(1, 4)):
            x = build.stage(x, _sizes(build.net), number)
            build.block = ""
            if rng.random() < 0.4:
                x = build.residual(x)
            if rng.random() < 0.15:
                x = build.excite(x)
        build.head(x, _sizes(build.net))
        integer_weights(build.net, rng)
    except RuntimeError:
        return None  # a window does not fit
    return build.net.double().eval()


def _sizes(net: RandomNet) -> list[int]:
    """Spatial sizes of what the program made so far."""
    with torch.no_grad():
        return list(net.eval()(torch.zeros((1, *net.reference[1:]))).shape[2:])


def alive(net: RandomNet) -> bool:
    """Two inputs change the output by more than 1%, and no sum left the integers that float64 holds."""
    with torch.no_grad():
        one, other = net(inputs(net.reference, 1)), net(inputs(net.reference, 2))
    largest = max(one.abs().max().item(), other.abs().max().item())
    return bool((one - other).abs().max().item() > 0.01 * largest) and largest < 2.0**36


def _choice(rng: random.Random, net: RandomNet) -> Choice:
    """A random choice that removes at least one stride, or the head alone where there is none."""
    met = window_ops(net, inputs(net.reference), net.window)
    named = [names for names in net.stages if names]
    for _ in range(20):
        kind = rng.choice(["start", "output_stride", "layers"])
        choice = Choice(output_stride=rng.choice([1, 1, 2, 3, 4]))
        if kind == "start" and named:
            choice = Choice(start=rng.choice(named)[0])
        if kind == "layers" and named:
            picked = [names for names in named if rng.random() < 0.6] or [rng.choice(named)]
            choice = Choice(layers=tuple(name for names in picked for name in names))
        chooses = rule(choice, met)
        if any(entry[3] > 1 and chooses(*entry) for entry in met):
            return choice
    return Choice(layers=())


def other_shape(net: RandomNet, seed: int) -> tuple[int, ...]:
    """Another legal input shape: odd along one axis, larger or smaller than the reference."""
    rng = random.Random(seed)
    for _ in range(50):
        sizes = [max(1, size + rng.randint(-4, 9)) for size in net.reference[2:]]
        sizes[rng.randrange(len(sizes))] |= 1
        shape = (1, net.reference[1], *sizes)
        try:
            with torch.no_grad():
                original(net, inputs(shape), net.window) if net.window else net(inputs(shape))
        except RuntimeError:
            continue  # a window does not fit
        return shape
    return net.reference
