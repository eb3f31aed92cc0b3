"""Upsamplings on fragments by brute force: every shift by itself, put in its place sample by sample.

Nothing of densify is used. docs/design.md, "Upsamplings", says what is computed here.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from fractions import Fraction
from itertools import product
from math import floor, gcd
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from laws.blocks import Block

Phase = tuple[int, ...]
Transposed = nn.ConvTranspose1d | nn.ConvTranspose2d | nn.ConvTranspose3d
_TRANSPOSED: dict[int, Callable[..., Tensor]] = {1: F.conv_transpose1d, 2: F.conv_transpose2d, 3: F.conv_transpose3d}


class ResizeLike(Block):
    """Interpolation to the size of another map."""

    def __init__(self, mode: str, align_corners: bool | None) -> None:
        super().__init__()
        self.mode, self.align_corners = mode, align_corners

    def forward(self, x: Tensor, like: Tensor) -> Tensor:
        return F.interpolate(x, size=like.shape[2:], mode=self.mode, align_corners=self.align_corners)


UPSAMPLINGS = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d, nn.Upsample, nn.PixelShuffle, ResizeLike)


class Lie(NamedTuple):
    """Along one axis: eST before and after, and how far apart neighbouring phases of the input lie in the result."""

    est: int
    left: int
    hop: int


def lies(
    module: nn.Module, est: Sequence[int], step: Sequence[int | Fraction], like: Sequence[int | Fraction] | None
) -> list[Lie]:
    """How the phases of a map lie in what the module makes of it; `like` is the step of the map whose size it takes."""
    found = []
    for axis, (e, own) in enumerate(zip(est, step, strict=True)):
        u = ratio(module, axis, own, like[axis] if like is not None else None)
        shared = gcd(u.numerator, e)
        found.append(Lie(e, e // shared, u.numerator // shared) if u.denominator == 1 else Lie(e, 1, 1))
    return found


def ratio(module: nn.Module, axis: int, step: int | Fraction, like: int | Fraction | None) -> Fraction:
    """How many samples the module makes of one."""
    if isinstance(module, Transposed):
        return Fraction(module.stride[axis])
    if isinstance(module, nn.PixelShuffle):
        return Fraction(module.upscale_factor)
    if isinstance(module, nn.Upsample):
        factors: Any = module.scale_factor
        return Fraction(factors[axis] if isinstance(factors, tuple) else factors).limit_denominator(99)
    assert like is not None
    return Fraction(step) / Fraction(like)


def upsampled(
    module: nn.Module, parts: dict[Phase, Tensor], given: Sequence[Lie], merge: str, others: dict[Phase, Tensor]
) -> dict[Phase, Tensor]:
    """The fragments of the result; `others` are those of a second operand, on any lattice."""
    left = tuple(one.left for one in given)
    if merge == "resample" and any(one.left < one.est for one in given):
        dense = _resampled(module, parts, given, others)
    elif merge == "average" and isinstance(module, Transposed) and any(one.left < one.est for one in given):
        dense = _transposed(module, parts, given)
    else:
        every = merge == "average" and any(one.left < one.est for one in given)
        made = {}
        for phase, part in parts.items():
            if every or all(r < one.left for r, one in zip(phase, given, strict=True)):
                first = next(iter(others.values()), None)
                made[phase] = module(part) if first is None else module(part, first)
        dense = placed(made, given)
    found = {}
    for phase in product(*map(range, left)):
        index: Any = (..., *(slice(r, None, e) for r, e in zip(phase, left, strict=True)))
        found[phase] = dense[index]
    return found


def placed(made: dict[Phase, Tensor], given: Sequence[Lie]) -> Tensor:
    """What was made of each shift at its place, averaged where several meet, the next of the phase where none does."""
    some = next(iter(made.values()))
    ends = [one.left * n for one, n in zip(given, some.shape[2:], strict=True)]
    sizes = [end + one.hop * one.left for one, end in zip(given, ends, strict=True)]  # where even the last has begun
    total, count = some.new_zeros((*some.shape[:2], *sizes)), some.new_zeros((1, 1, *sizes))
    for phase, part in made.items():
        at = [
            list(range(r * one.hop, size, one.left))[: part.shape[2 + axis]]
            for axis, (r, one, size) in enumerate(zip(phase, given, sizes, strict=True))
        ]
        if all(at):
            index: Any = (..., *torch.meshgrid(*map(torch.tensor, at), indexing="ij"))
            begun: Any = (..., *(slice(len(one)) for one in at))
            total[index] += part[begun]
            count[index] += 1
    total = total / count.clamp(min=1)
    for axis, (one, size) in enumerate(zip(given, sizes, strict=True)):
        phases = {phase[axis] for phase in made}
        reached = [any(t >= r * one.hop and (t - r * one.hop) % one.left == 0 for r in phases) for t in range(size)]
        source = [next((s for s in range(t, size, one.left) if reached[s]), t) for t in range(size)]
        total = total.index_select(2 + axis, torch.tensor(source[: ends[axis]]))
    return total


def _transposed(module: Any, parts: dict[Phase, Tensor], given: Sequence[Lie]) -> Tensor:
    """Averaged before it is cropped, and before the bias is added."""
    run = _TRANSPOSED[len(given)]
    geometry = (module.stride, 0, module.output_padding, module.groups, module.dilation)
    dense = placed({phase: run(part, module.weight, None, *geometry) for phase, part in parts.items()}, given)
    for axis, (one, padding) in enumerate(zip(given, module.padding, strict=True)):
        crop = padding * one.left
        dense = dense.narrow(2 + axis, crop, dense.shape[2 + axis] - 2 * crop)
    return dense if module.bias is None else dense + module.bias.view(-1, *[1] * len(given))


def _resampled(module: Any, parts: dict[Phase, Tensor], given: Sequence[Lie], others: dict[Phase, Tensor]) -> Tensor:
    """The dense map read at e times the original's coordinates, an axis after the other."""
    some = next(iter(parts.values()))
    dense = some.new_zeros((*some.shape[:2], *(n * one.est for n, one in zip(some.shape[2:], given, strict=True))))
    for phase, part in parts.items():
        index: Any = (..., *(slice(r, None, one.est) for r, one in zip(phase, given, strict=True)))
        dense[index] = part
    first = next(iter(others.values()), None)
    sizes = (module(some) if first is None else module(some, first)).shape[2:]
    for axis, (one, n, size) in enumerate(zip(given, some.shape[2:], sizes, strict=True)):
        pitch = Fraction(n, size)
        if isinstance(module, nn.Upsample):
            pitch = 1 / ratio(module, axis, 0, None)
            if pitch == 1:
                continue  # the map stays as it is along this axis
        mode = module.mode.removeprefix("bi").removeprefix("tri")
        matrix = some.new_zeros((size * one.left, n * one.est))
        for t in range(size * one.left):
            for at, weight in reads(mode, bool(module.align_corners), Fraction(t, one.left), pitch, n, size, one.est):
                matrix[t, min(max(at, 0), one.est * (n - 1))] += weight
        dense = (dense.movedim(2 + axis, -1) @ matrix.T).movedim(-1, 2 + axis)
    return dense


def reads(
    mode: str, align_corners: bool, i: Fraction, pitch: Fraction, n: int, size: int, est: int
) -> list[tuple[int, float]]:
    """Which dense samples an interpolation reads for the original's output i, and their weights."""
    if mode == "nearest":
        return [(floor(est * i * pitch), 1.0)]
    half = Fraction(1, 2)
    source = i * Fraction(n - 1, max(size - 1, 1)) if align_corners else (i + half) * pitch - half
    at = est * source
    if mode == "nearest-exact":
        return [(floor(at + half), 1.0)]
    if mode == "linear":
        at = min(max(at, Fraction(0)), Fraction(est * (n - 1)))
        return [(floor(at), float(1 - at + floor(at))), (floor(at) + 1, float(at - floor(at)))]
    return [(floor(at) + tap, float(_cubic(abs(at - floor(at) - tap)))) for tap in (-1, 0, 1, 2)]


def _cubic(d: Fraction) -> Fraction:
    """Keys' kernel with torch's sharpness of -3/4."""
    a = Fraction(-3, 4)
    if d <= 1:
        return (a + 2) * d**3 - (a + 3) * d**2 + 1
    return a * d**3 - 5 * a * d**2 + 8 * a * d - 4 * a if d < 2 else Fraction(0)
