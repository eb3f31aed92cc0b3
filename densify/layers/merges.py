"""Upsamplings of dense maps: where phases come to lie, the average of their shifts, and reading between samples."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from densify.lattice import Window, larger
from densify.merging import LARGEST, Spread

_TRANSPOSED = {1: F.conv_transpose1d, 2: F.conv_transpose2d, 3: F.conv_transpose3d}


def spread_phases(y: Tensor, kept: Sequence[int], spreads: Sequence[Spread], placed: bool = False) -> Tensor:
    """[B * prod(kept), C, *n] -> [B, C, *(n * left)]: what an upsampling made of the first phases, where it belongs.

    Where several phases fall on a sample, their mean; where none reaches (in front, with hops), the next of its phase.

    Args:
        y: fragments, the first `kept` phases per axis.
        spreads: where they come to lie.
        placed: they are not late: indices (of max_unpool) put every sample where it belongs.
    """
    count = len(spreads)
    y = y.unflatten(0, (y.shape[0] // math.prod(kept), *kept))
    for axis, (spread, phases) in enumerate(zip(spreads, kept, strict=True)):
        parts = y.unbind(1)
        dim = parts[0].dim() - count + axis
        made = [_mean([(parts[r], delay) for r, delay in each], dim, placed) for each in spread.shifts(phases)]
        y = torch.stack(made, dim + 1).flatten(dim, dim + 1)
    return y


def _mean(delayed: Sequence[tuple[Tensor, int]], dim: int, placed: bool) -> Tensor:
    """The mean of maps that begin late, over those that have begun; in front of all of them the first to begin."""
    if not any(delay for _, delay in delayed):
        total = sum((part for part, _ in delayed[1:]), delayed[0][0])
        return total / len(delayed) if len(delayed) > 1 else total
    first, size = delayed[0][0], delayed[0][0].shape[dim]
    sample = torch.arange(size, device=first.device).clamp(min=min(delay for _, delay in delayed))
    shape = [size if d == dim else 1 for d in range(first.dim())]
    total, reached = torch.zeros_like(first), torch.zeros(size, dtype=first.dtype, device=first.device)
    for part, delay in delayed:
        begun = sample >= delay
        late = part.index_select(dim, (sample if placed else sample - delay).clamp(0, size - 1))
        total = total + torch.where(begun.view(shape), late, 0)
        reached = reached + begun.to(first.dtype)
    return total / reached.view(shape)


def etransposed(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    windows: Sequence[Window],
    spreads: Sequence[Spread],
    extra: Sequence[int],
    groups: int = 1,
) -> Tensor:
    """Transposed convolution of a dense map, averaged over the shifts that reach each sample (cycle spinning).

    It makes all shifts at once: stride u / g, kernel taps e / g samples apart. Padding is cropped after the average.

    Args:
        x: [B, C, *(n * e)].
        weight: [C, K / groups, *kernel], as the original has it.
        bias: [K] or None.
        windows: the original's geometry per spatial axis.
        spreads: where phases come to lie, per spatial axis.
        extra: output_padding per spatial axis.

    Returns:
        [B, K, *(m * e / g)], where the original makes m of n samples.
    """
    hops = [spread.hop for spread in spreads]
    taps = [spread.left * w.dilation if w.kernel > 1 else 1 for spread, w in zip(spreads, windows, strict=True)]
    y = _TRANSPOSED[len(windows)](x, weight, None, hops, 0, 0, groups, taps)
    for axis, (spread, window) in enumerate(zip(spreads, windows, strict=True)):
        n, dim = x.shape[2 + axis] // spread.est, 2 + axis
        made = spread.left * ((n - 1) * window.stride + window.span + 1 + extra[axis])
        length = made if spread.left == 1 or spread.hop == 1 else larger(made, max(spread.firsts) + 1)
        behind = [0, 0] * (len(windows) - 1 - axis)
        y = F.pad(y, [*behind, 0, length - y.shape[dim]])
        y = _averaged(y, dim, spread)
        high = made - length - window.high * spread.left
        y = F.pad(y, [*behind, -window.low * spread.left, high])
    return y if bias is None else y + bias.view(-1, *[1] * len(windows))


def _averaged(y: Tensor, dim: int, spread: Spread) -> Tensor:
    """Sums over shifts divided by how many there are, along one axis; in front of all shifts the first of its phase."""
    if spread.est == 1:
        return y
    sample = torch.arange(y.shape[dim], device=y.device)
    begins = torch.arange(spread.est, device=y.device) * spread.hop
    late = sample[:, None] - begins
    reached = ((late >= 0) & (late % spread.left == 0)).sum(1)
    shape = [-1 if d == dim else 1 for d in range(y.dim())]
    y = y / reached.clamp(min=1).to(y.dtype).view(shape)
    firsts = spread.firsts
    if firsts == list(range(spread.left)):
        return y
    first = torch.tensor(firsts, device=y.device)[sample % spread.left]
    return y.index_select(dim, torch.maximum(sample, first))


def transposed_shifts(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    windows: Sequence[Window],
    spreads: Sequence[Spread],
    extra: Sequence[int],
    groups: int = 1,
) -> Tensor:
    """What :func:`etransposed` computes, by the original op on fragments.

    [B * prod(e), C, *n] -> [B, K, *(m * e / g)].
    """
    strides, dilations = [w.stride for w in windows], [w.dilation for w in windows]
    y = _TRANSPOSED[len(windows)](x, weight, None, strides, 0, 0, groups, dilations)
    y = F.pad(y, [side for more in reversed(extra) for side in (0, more)])
    y = spread_phases(y, [spread.est for spread in spreads], spreads)
    pairs = list(zip(windows, spreads, strict=True))
    y = F.pad(y, [side for w, s in reversed(pairs) for side in (-w.low * s.left, -w.high * s.left)])
    return y if bias is None else y + bias.view(-1, *[1] * len(windows))


def output_padding(before: Sequence[int], after: Sequence[int], windows: Sequence[Window]) -> list[int]:
    """torch's output_padding per spatial axis, with which a transposed convolution makes `after` of `before` samples.

    Both are the original's sizes; what stands in front of the spatial ones (a whole shape, say) is left out.
    """
    count = len(windows)
    pairs = zip(windows, list(before)[-count:], list(after)[-count:], strict=True)
    return [m - (n - 1) * w.stride + w.low + w.high - w.span - 1 for w, n, m in pairs]


def scaled(shape: Sequence[int], factors: Sequence[float]) -> list[int]:
    """The spatial sizes that an interpolation by these scale factors makes of a shape."""
    return [math.floor(n * factor) for n, factor in zip(list(shape)[-len(factors) :], factors, strict=True)]


def resample(
    x: Tensor,
    spreads: Sequence[Spread],
    made: Sequence[int],
    mode: str,
    align_corners: bool,
    factors: Sequence[tuple[int, int]] = (),
) -> Tensor:
    """Interpolation that reads a dense map at the original's coordinates: q(i) = e * src(i).

    Args:
        x: [B, C, *(n * e)].
        spreads: eST before and after, per spatial axis.
        made: the shape that the original makes, or its spatial sizes.
        mode: "nearest", "nearest-exact", "linear" or "cubic".
        align_corners: as in torch.
        factors: per spatial axis the scale factor that places the samples, as a fraction; () where the sizes do.

    Returns:
        [B, C, *(made * left)].
    """
    for axis, (spread, size) in enumerate(zip(spreads, list(made)[-len(spreads) :], strict=True)):
        if factors and factors[axis] == (1, 1):
            continue  # nothing happens along this axis, at its far side neither
        dim, (est, left, _) = 2 + axis, spread
        n = x.shape[dim] // est
        last = est * (n - 1)
        t = torch.arange(size * left, device=x.device)
        den, num = factors[axis] if factors else (size, n)  # neighbouring samples read num / den apart
        if mode.startswith("nearest") and factors and max(num, den) > LARGEST:
            half = 0.5 if mode == "nearest-exact" else 0.0  # a factor that is no fraction: no sample is a tie
            place = ((t.double() / left + half) * num / den - half) * est + half
            x = x.index_select(dim, torch.floor(place).long().clamp(0, last))
        elif mode == "nearest":
            x = x.index_select(dim, (t * (est * num) // (left * den)).clamp(0, last))
        elif mode == "nearest-exact":
            place = (2 * t + left) * (est * num) - (est - 1) * left * den
            x = x.index_select(dim, (place // (2 * left * den)).clamp(0, last))
        else:
            at = t.double() / left
            source = at * (n - 1) / larger(size - 1, 1) if align_corners else (at + 0.5) * num / den - 0.5
            x = _between(x, dim, source * est, last, mode == "cubic")
    return x


def _between(x: Tensor, dim: int, place: Tensor, last: int, cubic: bool) -> Tensor:
    """A map at broken coordinates along one axis; what lies outside 0 to `last` is the sample at the border."""
    place = place if cubic else place.clamp(0, last)
    base = torch.floor(place)
    part = (place - base).to(x.dtype).view([-1 if d == dim else 1 for d in range(x.dim())])
    weights = _keys(part) if cubic else [1 - part, part]
    first = -1 if cubic else 0
    terms = [
        x.index_select(dim, (base.long() + first + tap).clamp(0, last)) * weight for tap, weight in enumerate(weights)
    ]
    return sum(terms[1:], terms[0])


def _keys(part: Tensor) -> list[Tensor]:
    """The weights of the four samples around a place: Keys' cubic convolution (1981) with torch's a = -0.75."""
    a = -0.75

    def near(d: Tensor) -> Tensor:
        return ((a + 2) * d - (a + 3)) * d * d + 1

    def far(d: Tensor) -> Tensor:
        return ((a * d - 5 * a) * d + 8 * a) * d - 4 * a

    return [far(part + 1), near(part), near(1 - part), far(2 - part)]
