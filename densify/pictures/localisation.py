"""Where the main object is, by the strength of a map: docs/papers.md, section 3.2 of the paper. Imports no torch."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from densify.pictures.placed import PlacedMap

Mask = NDArray[np.bool_]


class Box(NamedTuple):
    """A box in input pixels, the last row and column included in part: edges, not centres of pixels."""

    top: float
    left: float
    bottom: float
    right: float

    @property
    def area(self) -> float:
        return max(0.0, self.bottom - self.top) * max(0.0, self.right - self.left)

    def overlap(self, other: Box) -> float:
        """Intersection over union."""
        shared = Box(
            max(self.top, other.top), max(self.left, other.left),
            min(self.bottom, other.bottom), min(self.right, other.right),
        ).area  # fmt: skip
        union = self.area + other.area - shared
        return shared / union if union else 0.0


@dataclass(frozen=True, eq=False)
class Location:
    """The largest connected part of a map that is above its mean.

    Attributes:
        threshold: the mean of the map.
        mask: [h, w], the part.
        box: around what its samples fill, within the image.
    """

    threshold: float
    mask: Mask
    box: Box


def locate(one: PlacedMap, image: tuple[int, int]) -> Location | None:
    """The main object of a map of one channel; None where no sample is above the mean.

    Args:
        image: (height, width) in pixels.
    """
    values = one.values[0]
    finite = np.isfinite(values)
    threshold = float(values[finite].mean()) if finite.any() else 0.0
    mask = largest_part(finite & (values > threshold))
    return Location(threshold, mask, box_of(mask, one, image)) if mask.any() else None


def largest_part(mask: Mask) -> Mask:
    """The largest part of a mask [h, w] whose samples are neighbours of each other, by rows or columns; of several of
    one size the first."""
    left, best = mask.copy(), np.zeros_like(mask)
    height, width = mask.shape
    count = 0
    for start in zip(*np.nonzero(mask), strict=True):
        if not left[start]:
            continue
        left[start] = False
        part, queue = [start], deque([start])
        while queue:
            row, column = queue.popleft()
            for y, x in ((row - 1, column), (row + 1, column), (row, column - 1), (row, column + 1)):
                if 0 <= y < height and 0 <= x < width and left[y, x]:
                    left[y, x] = False
                    part.append((y, x))
                    queue.append((y, x))
        if len(part) > count:
            count, best = len(part), np.zeros_like(mask)
            best[tuple(np.array(part).T)] = True
    return best


def box_of(mask: Mask, one: PlacedMap, image: tuple[int, int]) -> Box:
    """The box around what the samples of a mask fill: half a step around the outermost, cut at the image's edges."""
    edges = []
    for axis in (0, 1):
        places = one.places(axis)[mask.any(1 - axis)]
        half, last = one.step[axis] / 2, image[axis] - 0.5
        edges.append([float(np.clip(edge, -0.5, last)) for edge in (places[0] - half, places[-1] + half)])
    (top, bottom), (left, right) = edges
    return Box(top, left, bottom, right)


def outline(mask: Mask, width: int) -> Mask:
    """The rim of a drawn mask [H, W], inside it, `width` pixels wide."""
    inner = mask
    for _ in range(width):
        inner = inner & _moved(inner, 1, 0) & _moved(inner, -1, 0) & _moved(inner, 1, 1) & _moved(inner, -1, 1)
    return mask & ~inner


def _moved(mask: Mask, by: int, axis: int) -> Mask:
    """A mask moved by one along an axis; False comes in."""
    made = np.roll(mask, by, axis)
    edge = [slice(None), slice(None)]
    edge[axis] = slice(0, 1) if by > 0 else slice(-1, None)
    made[tuple(edge)] = False
    return made
