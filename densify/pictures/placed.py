"""Maps whose samples have places in the image: read between them, coloured, painted. Nothing here imports torch.

Places are in input pixels, per spatial axis (vertical, horizontal); pixel i covers [i - 0.5, i + 0.5].
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from densify.pictures.colours import UNSEEN, Colours, Numbers

Pair = tuple[float, float]
Indices = NDArray[np.intp]

UPSAMPLINGS = ("linear", "nearest")

_DIGITS = 6  # of places that are the same: a third of a pixel has no exact number


@dataclass(frozen=True, eq=False)
class PlacedMap:
    """A map of an image.

    Attributes:
        values: [C, h, w], float64.
        first: where sample (0, 0) looks.
        step: between neighbouring samples.
    """

    values: Numbers
    first: Pair
    step: Pair

    @property
    def size(self) -> tuple[int, int]:
        """(h, w)."""
        return self.values.shape[1], self.values.shape[2]

    def places(self, axis: int) -> Numbers:
        """Where the samples of a spatial axis look."""
        return self.first[axis] + self.step[axis] * np.arange(self.size[axis])

    def same_places(self, other: PlacedMap) -> bool:
        """Whether both have samples at the same places."""
        return (self.first, self.step, self.size) == (other.first, other.step, other.size)

    def with_values(self, values: Numbers) -> PlacedMap:
        """Other channels at the same places."""
        return replace(self, values=values)


def upsampled(coarse: PlacedMap, dense: PlacedMap, how: str = "linear") -> PlacedMap:
    """A map read where the samples of another one look.

    Past the outermost samples they are repeated; at the place of a sample its own value is read, exactly.

    Args:
        how: "linear": between the neighbouring samples; "nearest": the nearest one, of two the first.
    """
    values = coarse.values
    for axis in (0, 1):
        at = _exact((dense.places(axis) - coarse.first[axis]) / coarse.step[axis])
        values = _read(values, at.clip(0, coarse.size[axis] - 1), axis + 1, how)
    return dense.with_values(values)


def _read(values: Numbers, at: Numbers, axis: int, how: str) -> Numbers:
    if how == "nearest":
        return values.take(_nearest(at), axis)
    low = np.floor(at).astype(np.intp)
    below, above = values.take(low, axis), values.take(np.minimum(low + 1, values.shape[axis] - 1), axis)
    shape = [1] * values.ndim
    shape[axis] = -1
    share = (at - low).reshape(shape)
    with np.errstate(invalid="ignore"):  # infinite samples
        return np.where(share == 0, below, below * (1 - share) + above * share)


def _exact(at: Numbers) -> Numbers:
    """Places on samples and half way between two without what rounding did to them."""
    halves = (2 * at).round() / 2
    return np.where(np.abs(at - halves) < 10.0**-_DIGITS, halves, at)


def _nearest(at: Numbers) -> Indices:
    """The nearest whole number, of two the lower one."""
    found: Indices = np.ceil(at - 0.5).astype(np.intp)
    return found


def coinciding(one: PlacedMap, other: PlacedMap) -> tuple[Indices, Indices]:
    """Rows and columns of a map whose samples look exactly where samples of another one look."""
    places = [[each.places(axis).round(_DIGITS) for each in (one, other)] for axis in (0, 1)]
    rows, columns = (np.flatnonzero(np.isin(mine, theirs)) for mine, theirs in places)
    return rows, columns


# ---- colours -------------------------------------------------------------------------------------


def limits(*arrays: Numbers) -> Pair:
    """The smallest and the largest finite number of arrays; (0, 0) where there is none."""
    finite = np.concatenate([one[np.isfinite(one)].ravel() for one in arrays])
    return (float(finite.min()), float(finite.max())) if finite.size else (0.0, 0.0)


def coloured(values: Numbers, low: float, high: float, table: Colours) -> Colours:
    """Colours [h, w, 3] of numbers [h, w]: `low` has the first colour of the table, `high` the last.

    Where both are the same, everything has the colour in the middle; what is not finite has `UNSEEN`.
    """
    finite = np.isfinite(values)
    share = (np.where(finite, values, low) - low) / (high - low) if high > low else np.full(values.shape, 0.5)
    places = np.minimum((share * len(table)).astype(np.intp), len(table) - 1).clip(0)
    return np.where(finite[..., None], table[places], np.array(UNSEEN, np.uint8))


# ---- painting ------------------------------------------------------------------------------------


def canvas_indices(one: PlacedMap, axis: int, image: int, canvas: int) -> Indices:
    """For every pixel of a canvas axis the sample that is drawn there, or -1 where none looks.

    A sample fills its own step, half of it on both sides of where it looks.

    Args:
        image: length of the image along this axis, in input pixels.
        canvas: length of the canvas, which shows the whole image.
    """
    centres = (np.arange(canvas) + 0.5) * (image / canvas) - 0.5
    at = (centres - one.first[axis]) / one.step[axis]
    inside = (at >= -0.5) & (at <= one.size[axis] - 0.5)
    return np.where(inside, _nearest(at).clip(0, one.size[axis] - 1), -1)


def painted(
    one: PlacedMap, cells: NDArray[np.generic], image: Sequence[int], canvas: Sequence[int], empty: Any = UNSEEN
) -> NDArray[np.generic]:
    """What each sample has, [h, w] or [h, w, 3], drawn over the image; `empty` where no sample looks.

    Args:
        image: (height, width) in input pixels.
        canvas: (height, width) of what is drawn.
    """
    rows, columns = (canvas_indices(one, axis, image[axis], canvas[axis]) for axis in (0, 1))
    drawn = cells[rows][:, columns].copy()
    drawn[rows < 0] = empty
    drawn[:, columns < 0] = empty
    return drawn
