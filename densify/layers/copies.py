"""The rotated and mirrored copies of a kernel, and the symmetries that a set of them has."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from densify.equivariance import TRANSFORMATIONS, composed, inverse, swaps_axes, transformed
from densify.errors import Refusal, SymmetryError, UsageError

Grid = tuple[tuple[int, ...], ...]
Places = np.ndarray[Any, np.dtype[np.int_]]

_QUARTERS = ("identity", "rot90", "rot180", "rot270")
ANGLES = {1: ("identity",), 2: ("identity", "rot180"), 4: _QUARTERS, 8: _QUARTERS}  # 8: and each 45 degrees further
FLIPS = {
    "none": ("identity",),
    "h": ("identity", "flip-h"),
    "v": ("identity", "flip-v"),
    "paper": ("identity", "flip-h", "flip-v"),
    "all": ("identity", "flip-h", "flip-v", "rot180"),
}
_RING = (0, 1, 2, 5, 8, 7, 6, 3)  # the outer weights of a 3 x 3 kernel in clockwise order, counted row by row


@dataclass(frozen=True)
class Copies:
    """The distinct copies of a kernel under some angles and flips.

    They are ordered by flip, as FLIPS has them, and for each by angle, counterclockwise from 0. Copies that would be
    the same kernel whatever its weights (a flip of a kernel of one row) are made once.

    Args:
        kernel: height and width.
        angles: 1 (none but 0), 2 (0 and 180 degrees), 4, or 8, which shifts the ring of outer weights of 3 x 3 kernels.
        flips: a key of FLIPS: "h" mirrors left and right, "v" top and bottom, "paper" is the kernel and these two,
            "all" is closed: the kernel mirrored both ways, too.

    Attributes:
        parts: for each copy, whether it is turned by 45 degrees, and the transformation that comes then.
        grids: for each copy, the place in the kernel, counted row by row, that each of its weights comes from.

    Raises:
        UsageError: other angles or flips.
        SymmetryError: a kernel that cannot be rotated so.
    """

    kernel: tuple[int, int]
    angles: int
    flips: str
    parts: tuple[tuple[bool, str], ...] = field(init=False, repr=False, compare=False)
    grids: tuple[Grid, ...] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if type(self.angles) is not int or self.angles not in ANGLES:
            raise UsageError(f"angles={self.angles!r}: kernels are rotated by 1, 2, 4 or 8 angles")
        if not isinstance(self.flips, str) or self.flips not in FLIPS:
            raise UsageError(f"flips={self.flips!r}: give one of {', '.join(map(repr, FLIPS))}")
        size = f"a kernel of {self.kernel[0]} x {self.kernel[1]}"
        if self.angles == 4 and self.kernel[0] != self.kernel[1]:
            raise SymmetryError(
                Refusal(size, "it is not square: a quarter turn of it is another shape", "Use angles=2 or flips")
            )
        if self.angles == 8 and self.kernel != (3, 3):
            remedy = "Use angles=4 or flips" if self.kernel[0] == self.kernel[1] else "Use angles=2 or flips"
            raise SymmetryError(
                Refusal(size, "only 3 x 3 kernels have a ring of 8 weights to shift by 45 degrees", remedy)
            )
        eighths = (False, True) if self.angles == 8 else (False,)
        flips, turns = FLIPS[self.flips], ANGLES[self.angles]
        distinct: dict[Grid, tuple[bool, str]] = {}
        for part in [(eighth, composed(flip, turn)) for flip in flips for turn in turns for eighth in eighths]:
            distinct.setdefault(_grid(self.kernel, *part), part)
        object.__setattr__(self, "parts", tuple(distinct.values()))
        object.__setattr__(self, "grids", tuple(distinct))

    def __len__(self) -> int:
        return len(self.parts)

    @property
    def turning(self) -> bool:
        """Whether there are copies whose rows were columns, or that are turned by 45 degrees."""
        return len(self) > 1 and any(eighth or swaps_axes(name) for eighth, name in self.parts)

    @property
    def closed(self) -> tuple[str, ...]:
        """The transformations of the square that turn these copies into each other."""
        return tuple(name for name in TRANSFORMATIONS if self.order(name) is not None)

    def order(self, name: str) -> tuple[int, ...] | None:
        """For each copy the one that the transformation makes it of; None where that is no copy.

        The maps m of all copies of an image x and the maps n of the transformed image are n[k] == T m[order[k]].
        """
        undone = [_frozen(transformed(np.array(grid), inverse(name), np)) for grid in self.grids]
        return tuple(map(self.grids.index, undone)) if set(undone) == set(self.grids) else None

    def expand(self, weight: Tensor) -> Tensor:
        """[K, C, h, w] -> [K * copies, C, h, w]: all copies of the first kernel, all of the second, and so on."""
        if len(self) == 1:
            return weight
        taps = weight.flatten(-2).unbind(-1)
        copies = [torch.stack([taps[place] for row in grid for place in row], -1) for grid in self.grids]
        return torch.stack(copies, 1).reshape(-1, weight.shape[1], *self.kernel)


def _grid(kernel: tuple[int, int], eighth: bool, name: str) -> Grid:
    grid = np.arange(kernel[0] * kernel[1]).reshape(kernel)
    return _frozen(transformed(_eighth(grid) if eighth else grid, name, np))


def _eighth(kernel: Places) -> Places:
    """[3, 3] with the ring of the outer weights shifted by one, counterclockwise: 45 degrees."""
    turned = kernel.ravel().copy()
    turned[list(_RING)] = turned[[*_RING[1:], _RING[0]]]
    return turned.reshape(3, 3)


def _frozen(grid: Places) -> Grid:
    return tuple(tuple(map(int, row)) for row in grid)
