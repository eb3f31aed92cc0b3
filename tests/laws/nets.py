"""Random small networks on which all arithmetic is exact: integer weights in float64, averages of multiples.

A network is a program, a list of steps over named layers, so that it can be traced plainly and always has a shape that
runs at other sizes: branches that are joined agree in size whatever the input's size.
"""

from __future__ import annotations

import random
from collections.abc import Callable

import torch
from torch import Tensor

from densify.structure import named
from laws.builder import Builder
from laws.fragments import Choice, dense, fits, original, rule, window_ops
from laws.integers import inputs, integer_weights
from laws.program import RandomNet, Value

LARGEST = 2.0**40  # what a network may compute; its sums then stay within the integers that float64 holds


def random_net(seed: int, dimensions: int | None = None, *, plain: bool = False) -> tuple[RandomNet, Choice]:
    """A random network in eval mode, float64, and a choice of layers that fits it.

    Args:
        plain: window ops, pointwise ops and statistics alone, and one output; without it, some networks are so anyway.
    """
    rng = random.Random(seed)
    plain = rng.random() < 0.3 or plain
    while True:
        made = _attempt(rng, dimensions or rng.choice([1, 2, 2, 2, 2, 3]), plain)
        if made is None or not alive(made) or not fits(made, inputs(made.reference), made.window):
            continue
        choice = _choice(rng, made)
        if choice.layers != () or made.window is not None or made.statistic:
            return made, choice


def _attempt(rng: random.Random, dimensions: int, plain: bool) -> RandomNet | None:
    build = Builder(rng, dimensions, plain)
    least, most = {1: (9, 60), 2: (7, 34), 3: (6, 14)}[dimensions]
    build.net.reference = (2, 2, *(rng.randint(least, most) for _ in range(dimensions)))
    build.net.eval()
    x = build.conv(Value(0, 2), 3, rng.choice([1, 3]), padding=rng.choice([0, 1]))
    outputs = []
    try:
        for number in range(rng.choice([1, 1, 2, 2, 2, 3, 4])):
            x = build.stage(x, _sizes(build.net, x), number)
            build.block = ""
            if rng.random() < 0.4:
                x = build.residual(x)
            if rng.random() < 0.15:
                x = build.excite(x)
            if not plain and rng.random() < 0.1:
                outputs.append(x)
        outputs.append(build.head(x, _sizes(build.net, x)))
        integer_weights(build.net, rng)
    except (RuntimeError, ValueError, IndexError):
        return None  # a window does not fit
    if len(outputs) > 1:
        build.net.kinds.add("several outputs")
        prefix = rng.choice(["", "out"])
        build.net.returns = {f"{prefix}{i}": value.place for i, value in enumerate(outputs)}
    return build.net.double().eval()


def _sizes(net: RandomNet, x: Value) -> list[int]:
    """Spatial sizes of a value that the program made so far."""
    with torch.no_grad():
        sizes = list(net.eval().values(torch.zeros((1, *net.reference[1:])))[x.place].shape[2:])
    if min(sizes) == 0:
        raise RuntimeError("a slice leaves nothing")
    return sizes


def alive(net: RandomNet) -> bool:
    """Two inputs change every output by more than 1%, and nothing leaves the integers that float64 holds."""
    with torch.no_grad():
        one, other = (net.values(inputs(net.reference, seed)) for seed in (1, 2))
    if any(value.numel() == 0 or value.abs().max().item() > LARGEST for value in (*one, *other)):
        return False
    for a, b in ((one[place], other[place]) for place in net.returns.values() or (-1,)):
        if (a - b).abs().max().item() <= 0.01 * max(a.abs().max().item(), b.abs().max().item()):
            return False
    return True


def _choice(rng: random.Random, net: RandomNet) -> Choice:
    """A random choice that removes at least one stride, or the head alone where there is none."""
    return drawn_choice(rng, net, lambda choice: _fits(net, choice)) or Choice(layers=())


def drawn_choice(rng: random.Random, net: RandomNet, fitting: Callable[[Choice], bool]) -> Choice | None:
    """A random choice that removes at least one stride, of those that fit; None where none is found."""
    met = window_ops(net, inputs(net.reference), net.window)
    stages = [names for names in net.stages if names]
    for _ in range(20):
        kind = rng.choice(["start", "output_stride", "layers"])
        choice = Choice(output_stride=rng.choice([1, 1, 2, 3, 4]))
        if kind == "start" and stages:
            choice = Choice(start=rng.choice(stages)[0])
        if kind == "layers" and stages:
            picked = [names for names in stages if rng.random() < 0.6] or [rng.choice(stages)]
            choice = Choice(layers=tuple(dict.fromkeys(name for names in picked for name in names)))
        chooses = rule(choice, met)
        if any(entry[3] > 1 and chooses(*entry) for entry in met) and fitting(choice):
            return choice
    return None


def _fits(net: RandomNet, choice: Choice) -> bool:
    """Whether maps that meet lie on one lattice: a layer that strides in two stages may be chosen in one of them."""
    if "strided layer called twice" not in net.kinds:
        return True
    try:
        dense(net, inputs(net.reference), choice, net.window)
    except AssertionError:
        return False
    return True


def other_shape(net: RandomNet, seed: int) -> tuple[int, ...]:
    """Another legal input shape, larger or smaller than the reference: odd along one axis, if it runs so."""
    rng = random.Random(seed)
    for attempt in range(50):
        sizes = [max(1, size + rng.randint(-4, 9)) for size in net.reference[2:]]
        if attempt < 25:
            sizes[rng.randrange(len(sizes))] |= 1
        shape = (1, net.reference[1], *sizes)
        try:
            with torch.no_grad():
                made = original(net, inputs(shape), net.window) if net.window else net(inputs(shape))
        except (RuntimeError, ValueError, IndexError):
            continue  # a window does not fit
        if all(one.numel() and one.isfinite().all() for _, one in named(made, Tensor)):  # no mean of nothing
            return shape
    return net.reference
