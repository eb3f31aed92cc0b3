"""Phases taken apart and put together, shifts at their places, and reading between samples: plainly, one by one.

This is what verification compares with. It is slow, and shares no code with the layers that it checks.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from fractions import Fraction
from itertools import product
from math import floor
from typing import Any

import torch
from torch import Tensor

from densify.maps import Map
from densify.ops import Interpolation, Merge, Unpool

Phase = tuple[int, ...]
Parts = dict[Phase, Tensor]


def taken_apart(x: Tensor, one: Map) -> Parts:
    """The phases of a dense tensor, each as the original has it."""
    found = {}
    for phase in product(*(range(axis.lattice.stride) for axis in one.axes)):
        index: Any = (..., *(slice(r, None, axis.lattice.stride) for r, axis in zip(phase, one.axes, strict=True)))
        found[phase] = x[index].flatten(1) if one.collapsed else x[index]
    return found


def together(parts: Parts, one: Map) -> Tensor:
    """The dense tensor that these are the phases of; a vector per image has one sample per phase."""
    whole: Tensor | None = None
    for phase, part in parts.items():
        part = part.reshape(*part.shape, *[1] * len(one.axes)) if one.collapsed else part
        if whole is None:
            sizes = [n * axis.lattice.stride for n, axis in zip(part.shape[2:], one.axes, strict=True)]
            whole = part.new_empty((*part.shape[:2], *sizes))
        index: Any = (..., *(slice(r, None, axis.lattice.stride) for r, axis in zip(phase, one.axes, strict=True)))
        whole[index] = part
    assert whole is not None
    return whole


def placed(parts: Iterable[tuple[Phase, Tensor]], merge: Merge, counts: Sequence[int]) -> Tensor:
    """Every shift's result at its place, and the mean of those that reach a sample; in front of all, the next.

    Args:
        parts: what the op made of the first phases.
        counts: how many these are, per spatial axis.
    """
    total = count = torch.empty(0)
    sizes: list[int] = []
    ends: list[int] = []
    for phase, part in parts:
        if not sizes:
            ends = [spread.left * n for spread, n in zip(merge.spreads, part.shape[2:], strict=True)]
            sizes = [end + max(spread.firsts) for spread, end in zip(merge.spreads, ends, strict=True)]
            total, count = part.new_zeros((*part.shape[:2], *sizes)), part.new_zeros((1, 1, *sizes))
        place: Any = [...]
        begun: Any = [...]
        for r, spread, n, size in zip(phase, merge.spreads, part.shape[2:], sizes, strict=True):
            start = min(r * spread.hop, size)
            # Where indices put the samples, they are not late, but nothing comes in front of the first window.
            late = start // spread.left if isinstance(merge.op, Unpool) else 0
            some = min(n - late, len(range(start, size, spread.left)))
            place.append(slice(start, start + some * spread.left, spread.left))
            begun.append(slice(late, late + some))
        total[tuple(place)] += part[tuple(begun)]
        count[tuple(place)] += 1
    total /= count.clamp(min=1)
    for axis, (spread, size, phases) in enumerate(zip(merge.spreads, sizes, counts, strict=True)):
        starts = [r * spread.hop for r in range(phases)]
        source = list(range(size))
        for t in range(min(max(starts), size)):
            later = range(t, size, spread.left)
            source[t] = next((s for s in later if any(s >= b and (s - b) % spread.left == 0 for b in starts)), t)
        total = total.index_select(2 + axis, torch.tensor(source[: ends[axis]], device=total.device))
    return total


def read_between(x: Tensor, merge: Merge, op: Interpolation, made: Sequence[int]) -> Tensor:
    """A dense map read at e times the original's coordinates; `made` are the sizes that the original makes."""
    for axis, (spread, size) in enumerate(zip(merge.spreads, made, strict=True)):
        if op.factors and op.factors[axis] == 1:
            continue
        n = x.shape[2 + axis] // spread.est
        matrix = x.new_zeros((size * spread.left, x.shape[2 + axis]))
        for t in range(size * spread.left):
            for at, weight in _taps(op, axis, Fraction(t, spread.left), n, size, spread.est):
                matrix[t, min(max(at, 0), spread.est * (n - 1))] += weight
        x = (x.movedim(2 + axis, -1) @ matrix.T).movedim(-1, 2 + axis)
    return x


def _taps(op: Interpolation, axis: int, i: Fraction, n: int, size: int, est: int) -> list[tuple[int, float]]:
    """Which dense samples are read for output i of the original, and their weights."""
    pitch = 1 / op.factors[axis] if op.factors else Fraction(n, size)
    half = Fraction(1, 2)
    if op.mode == "nearest":
        return [(floor(est * i * pitch), 1.0)]
    at = est * (i * Fraction(n - 1, max(size - 1, 1)) if op.align_corners else (i + half) * pitch - half)
    if op.mode == "nearest-exact":
        return [(floor(at + half), 1.0)]
    if op.mode == "linear":
        at = min(max(at, Fraction(0)), Fraction(est * (n - 1)))
        return [(floor(at), float(floor(at) + 1 - at)), (floor(at) + 1, float(at - floor(at)))]
    return [(floor(at) + tap, _keys(float(abs(at - floor(at) - tap)))) for tap in (-1, 0, 1, 2)]


def _keys(d: float) -> float:
    """The kernel of cubic convolution at a distance (Keys 1981), with torch's a = -3/4."""
    a = -0.75
    return (a + 2) * d**3 - (a + 3) * d**2 + 1 if d <= 1 else a * d**3 - 5 * a * d**2 + 8 * a * d - 4 * a
