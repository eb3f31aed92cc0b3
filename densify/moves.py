"""Space to depth, however it is written: what chains of ops do that only move samples.

That is in their numbers alone: such a chain runs on maps that hold the index of every sample, at several sizes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from math import prod
from typing import NamedTuple

import torch
from torch import Tensor

from densify.lattice import Window
from densify.ops import Patches

_MOST_HOLES = 16  # samples of a window per sample that is used


class Trial(NamedTuple):
    """What a chain did with a map of one size.

    Attributes:
        shape: of the map, [B, C, *spatial].
        taken: for every sample of the result the flat index that it comes from, or -1 for a zero.
    """

    shape: tuple[int, ...]
    taken: Tensor


def shapes(image: Sequence[int], step: int) -> Iterator[list[int]]:
    """Shapes of images to try a chain at besides the example's: more images, longer ones along each axis, and some that
    leave other remainders.

    Args:
        image: the example's, [B, C, *spatial].
        step: how many samples of the image lie between two of the map that the chain reads.
    """
    yield [2 * image[0] + 1, *image[1:]]
    for axis in range(2, len(image)):
        yield [size * 4 if dim == axis else size for dim, size in enumerate(image)]
    for more in sorted({1, 2, 3, step, 2 * step, 3 * step}):
        yield [*image[:2], *(size + more for size in image[2:])]


def trial(shape: Sequence[int], run: Callable[[Tensor], Tensor | None]) -> Trial | None:
    """What a chain does with a map of this shape; None where it does more than move samples.

    Args:
        run: the chain on a map in float64; None where it does not run.
    """
    indices = torch.arange(1.0, 1 + prod(shape), dtype=torch.float64).view(*shape)
    signed = torch.randint(-(2**20), 2**20, tuple(shape), generator=torch.Generator().manual_seed(0)).double() / 2**10
    made, checked = run(indices), run(signed)
    if made is None or checked is None or not torch.equal(made, made.round().clamp(0, indices.numel())):
        return None
    taken = made.long() - 1
    if not torch.equal(checked, torch.where(taken < 0, 0.0, signed.flatten()[taken])):
        return None
    return Trial(tuple(shape), taken)


def patches(trials: Iterable[Trial | None], *, fixed: Sequence[bool] = ()) -> Patches | None:
    """The windows whose samples a chain lays side by side in the channels, where it did nothing else at any size.

    Args:
        fixed: per spatial axis whether the chain takes maps of one length alone; () for none.
    """
    found: list[Trial] = []
    for one in trials:
        if one is None:
            return None
        found.append(one)
    op = _patches(found, fixed)
    return op if op is not None and all(torch.equal(one.taken, _taken(op, one.shape)) for one in found) else None


def mirrored(trials: Iterable[Trial | None]) -> tuple[bool, ...]:
    """Per spatial axis whether a chain turns a map around, where all it does is to move samples; else ().

    Two samples turned around may also be rolled, so that larger maps decide.
    """
    turned: tuple[bool, ...] = ()
    for one in trials:
        if one is None or one.taken.dim() != len(one.shape):
            return ()
        places = torch.unravel_index(one.taken.clamp(0), one.shape)
        axes = range(2, len(one.shape))
        now = tuple(one.taken.shape[i] > 1 and bool((places[i].diff(dim=i) == -1).all()) for i in axes)
        turned = tuple(before and this for before, this in zip(turned or now, now, strict=True))
        if not any(this and one.taken.shape[2 + axis] < 3 for axis, this in enumerate(turned)):
            break
    return turned


def _patches(trials: Sequence[Trial], fixed: Sequence[bool]) -> Patches | None:
    """The windows that explain the first trial, with padding that explains the sizes of all."""
    shape, taken = trials[0]
    spatial = range(2, len(shape))
    if taken.dim() != len(shape):
        return None
    tried = [len({trial.shape[axis] for trial in trials}) > 1 for axis in spatial]
    if not all(several or one for several, one in zip(tried, fixed or [False] * len(tried), strict=True)):
        return None
    inside = (taken >= 0).movedim(1, 0).flatten(1)
    if not inside.any(1).all():
        return None
    seen = inside.int().argmax(1)  # for every channel, a sample of it that is no padding
    at = torch.unravel_index(seen, (taken.shape[0], *taken.shape[2:]))
    channel, *places = torch.unravel_index(taken.movedim(1, 0).flatten(1).gather(1, seen[:, None])[:, 0], shape)[1:]
    windows, taps = [], []
    for axis, (place, out) in enumerate(zip(places, at[1:], strict=True)):
        stride = _stride(taken, shape, 2 + axis)
        offsets = place - stride * out
        counts = [(trial.shape[2 + axis], trial.taken.shape[2 + axis]) for trial in trials]
        window = _window(offsets, stride, counts)
        if window is None:
            return None
        windows.append(window)
        taps.append(offsets + window.low)
    kernel = [window.kernel for window in windows]
    if shape[1] * prod(kernel) > _MOST_HOLES * taken.shape[1]:
        return None
    order = channel
    for tap, extent in zip(taps, kernel, strict=True):
        order = order * extent + tap
    return Patches(tuple(windows), order=tuple(order.tolist()))


def _stride(taken: Tensor, shape: Sequence[int], dim: int) -> int:
    """How far the window moves along an axis between two neighbouring samples that are no padding; 0 if none are."""
    place = torch.unravel_index(taken.clamp(0), tuple(shape))[dim]
    both = [(taken.narrow(dim, start, taken.shape[dim] - 1) >= 0) for start in (0, 1)]
    moved = place.diff(dim=dim)[both[0] & both[1]]
    return int(moved[0]) if len(moved) else 0


def _window(offsets: Tensor, stride: int, counts: Sequence[tuple[int, int]]) -> Window | None:
    """The window of these offsets whose padding gives so many samples for each of so many."""
    first, last = int(offsets.min()), int(offsets.max())
    size, count = counts[0]
    missing = (count - 1) * stride + last + 1 - size
    for high in (max(-first, 0), 0, missing):
        window = Window(last - first + 1, stride, low=-first, high=high)
        if stride > 0 and all(window.count(size) == count for size, count in counts):
            return window
    return None


def _taken(op: Patches, shape: tuple[int, ...]) -> Tensor:
    """The flat index that every sample of the result comes from for a map of this shape, -1 for padding."""
    steps = [prod(shape[axis + 1 :]) for axis in range(len(shape))]
    kernel = tuple(window.kernel for window in op.windows)
    channel, *taps = torch.unravel_index(torch.tensor(op.order), (shape[1], *kernel))
    rank = len(shape)
    images, channels = torch.arange(shape[0]) * steps[0], channel * steps[1]
    index = images.view(-1, *[1] * (rank - 1)) + channels.view(-1, *[1] * (rank - 2))
    inside = torch.ones_like(index, dtype=torch.bool)
    for axis, (window, tap) in enumerate(zip(op.windows, taps, strict=True), 2):
        starts = torch.arange(window.count(shape[axis])) * window.stride - window.low
        place = starts.view(-1, *[1] * (rank - 1 - axis)) + tap.view(-1, *[1] * (rank - 2))
        inside = inside & (place >= 0) & (place < shape[axis])
        index = index + place * steps[axis]
    return index.where(inside, -1)
