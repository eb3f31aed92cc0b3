"""Equivariance of maps: f(Tx) == T f(x) for the eight symmetries T of the square, or for scalings, as far as it holds.

Rotations are counterclockwise. "flip-h" swaps left and right, "flip-v" top and bottom; "transpose" mirrors at the
diagonal from the first sample, "anti-transpose" at the other one.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from densify.comparison import difference

# Whether it mirrors left and right first, and by how many quarter turns it rotates then.
_TRANSFORMATIONS = {
    "identity": (False, 0),
    "rot90": (False, 1),
    "rot180": (False, 2),
    "rot270": (False, 3),
    "flip-h": (True, 0),
    "transpose": (True, 1),
    "flip-v": (True, 2),
    "anti-transpose": (True, 3),
}
TRANSFORMATIONS = tuple(_TRANSFORMATIONS)
"""The eight symmetries of the square (the dihedral group of order 8), by name."""

_TOLERANCES = {torch.float64: 1e-12, torch.float32: 1e-6}


def transformed(x: Any, name: str, ops: Any = torch) -> Any:
    """A tensor [..., H, W] rotated or mirrored; [..., W, H] where `swaps_axes`.

    Args:
        x: a tensor, or what `ops` has.
        name: one of TRANSFORMATIONS.
        ops: the library that has `flip` and `rot90`: torch, or numpy.
    """
    mirrored, turns = _TRANSFORMATIONS[name]
    if mirrored:
        x = ops.flip(x, (-1,))
    return ops.rot90(x, turns, (-2, -1)) if turns else x


def inverse(name: str) -> str:
    """The transformation that undoes another."""
    return {"rot90": "rot270", "rot270": "rot90"}.get(name, name)


def composed(second: str, first: str) -> str:
    """The transformation that is `first`, then `second`."""
    (mirror, turns), (mirrored, turned) = _TRANSFORMATIONS[second], _TRANSFORMATIONS[first]
    both = (mirror != mirrored, (turns + (-turned if mirror else turned)) % 4)
    return next(name for name, parts in _TRANSFORMATIONS.items() if parts == both)


def swaps_axes(name: str) -> bool:
    """Whether rows become columns."""
    return _TRANSFORMATIONS[name][1] % 2 == 1


def reversed_axes(name: str) -> tuple[int, ...]:
    """The spatial axes of the input that are read backwards: 0 rows, 1 columns."""
    mirrored, turns = _TRANSFORMATIONS[name]
    columns, rows = mirrored != (turns in (1, 2)), turns in (2, 3)
    return (0,) * rows + (1,) * columns


@dataclass(frozen=True)
class Equivariance:
    """How far a layer is equivariant: max|f(Tx) - T f(x)| / max|T f(x)| on random input. Truthy when it is as promised.

    Attributes:
        size: height and width of the input.
        errors: relative error per transformation; infinite where f(Tx) has another size than T f(x),
            or where either has a value that is not finite. A layer is measured without its bias, beside which an error
            may vanish.
        exact: the transformations under which the layer is equivariant but for rounding.
        reasons: why the others are none of these.
        tolerance: what the errors of `exact` may be.
        plain: the errors of the plain convolution with the same weights.
    """

    size: tuple[int, int]
    errors: Mapping[str, float]
    exact: tuple[str, ...]
    reasons: Mapping[str, str]
    tolerance: float
    plain: Mapping[str, float] = field(default_factory=dict)

    def __bool__(self) -> bool:
        return all(self.errors[name] <= self.tolerance for name in self.exact)

    @property
    def holds(self) -> tuple[str, ...]:
        """The transformations whose error is within the tolerance on this input, exact or not."""
        return tuple(name for name, error in self.errors.items() if error <= self.tolerance)

    def __str__(self) -> str:
        lines = [f"equivariance at {self.size[0]}x{self.size[1]}, tolerance {self.tolerance:.0e}:"]
        for name, error in self.errors.items():
            note = self.reasons.get(name, "exact" if name in self.exact else "")
            lines.append(f"  {name:15}{error:9.1e}  {note}".rstrip())
        return "\n".join(lines)


def tolerance_of(dtype: torch.dtype) -> float:
    """What exact equivariance means in a floating-point type: sums may be taken in another order."""
    return _TOLERANCES.get(dtype, 8 * torch.finfo(dtype).eps)


def error(function: Callable[[Tensor], Tensor], x: Tensor, name: str, channels: Sequence[int] | None = None) -> float:
    """max|f(Tx) - T f(x)| / max|T f(x)| of one transformation of the square, as `error_of` has it.

    Args:
        function: maps [B, C, H, W] to maps [B, K, h, w].
        x: [B, C, H, W].
        name: one of TRANSFORMATIONS.
        channels: the order in which T f(x) has the maps of f(Tx), where it is another.
    """
    expected, actual = transformed(function(x), name), function(transformed(x, name))
    if channels is not None:
        expected = expected[:, list(channels)]
    return error_of(expected, actual)


def error_of(expected: Tensor, actual: Tensor) -> float:
    """max|actual - expected| / max|expected|; infinite where the shapes differ, or where a value is not finite."""
    if expected.shape != actual.shape or not (expected.isfinite().all() and actual.isfinite().all()):
        return math.inf
    return difference(expected, actual)[1]


def equivariance(function: Callable[[Tensor], Tensor], x: Tensor) -> dict[str, float]:
    """`error` for each of the eight symmetries of the square: of a layer, or of any function of maps.

    Args:
        function: maps [B, C, H, W] to maps [B, K, h, w]; a module is called in the mode that it is in.
        x: [B, C, H, W], better not square.
    """
    with torch.no_grad():
        return {name: error(function, x, name) for name in TRANSFORMATIONS}


def noise(*shape: int, like: Tensor, seed: int = 0) -> Tensor:
    """Normal random numbers of a tensor's type and device; torch's own generators stay as they are."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64, device="cpu").to(like)
