"""What is asked of a weight: w = wT (invariance, paper, equation 8) or T'w = wT (equivariance, equation 16)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from densify.errors import Refusal, SymmetryError
from densify.symmetry.matrix import SparseMatrix
from densify.symmetry.transformations import Transformation, name_of, sparse

Axes = int | str | Sequence[int | str]
RTOL = 1e-10  # entries up to this part of a matrix's largest are rounding


@dataclass(frozen=True)
class Invariant:
    """w = wT: what the layer makes of Tx is what it makes of x.

    Attributes:
        transformation: T, see :func:`densify.symmetry.sparse`.
        axes: the axes of the weight that read what T acts on: numbers or names, one or several; "hw" is "h" and "w".
    """

    transformation: Transformation
    axes: Axes


@dataclass(frozen=True)
class Equivariant:
    """T'w = wT: what the layer makes of Tx is T' of what it makes of x.

    Attributes:
        transformation: T, of the input.
        axes: the axes of the weight that read what T acts on.
        out_axes: the axes of the weight that write what T' acts on.
        out: T', of the output; None for T.
        interior: leave out the equations in which T' writes or T reads nothing, as at the ends of a `Shift`.
    """

    transformation: Transformation
    axes: Axes
    out_axes: Axes
    out: Transformation | None = None
    interior: bool = False


Constraint = Invariant | Equivariant


@dataclass(frozen=True, eq=False)
class Demand:
    """One constraint on a weight of known shape: left w = w right, either of them the identity where it is None."""

    left: SparseMatrix | None
    left_axes: tuple[int, ...]
    right: SparseMatrix | None
    right_axes: tuple[int, ...]
    interior: bool

    @property
    def name(self) -> str:
        """As messages have it."""
        matrix = self.right or self.left
        assert matrix is not None  # one of them is given
        return f"{matrix.name} on axes {list(self.right_axes or self.left_axes)}"

    def difference(self, weight: Tensor) -> Tensor:
        """T'w - wT, zero at the places of equations that are left out: the shape of the weight."""
        first = along(weight, self.left, self.left_axes)
        second = along(weight, self.right, self.right_axes, from_right=True)
        made = first - second
        if self.interior:
            made = where_used(made, self.left, self.left_axes, rows=True)
            made = where_used(made, self.right, self.right_axes, rows=False)
        return made


def used(matrix: SparseMatrix, rtol: float = RTOL, *, rows: bool) -> Any:
    """Whether each row, or each column, of a matrix has an entry of more than `rtol` times the largest."""
    found = np.zeros(matrix.shape[0 if rows else 1], dtype=bool)
    entries = np.abs(matrix.values) > rtol * np.abs(matrix.values).max(initial=0.0)
    found[(matrix.rows if rows else matrix.columns)[entries]] = True
    return found


def several(constraints: Constraint | Sequence[Constraint]) -> tuple[Constraint, ...]:
    """One constraint or several, as several.

    Raises:
        SymmetryError: what is no constraint.
    """
    asked: Any = [constraints] if isinstance(constraints, Constraint) else constraints
    found = tuple(asked) if isinstance(asked, Iterable) and not isinstance(asked, str) else (asked,)
    for one in found:
        if not isinstance(one, Constraint):
            raise SymmetryError(
                Refusal(
                    f"{one!r}",
                    "it is no constraint",
                    'Give Invariant(Flip(), "w") or Equivariant(...) of densify.symmetry, or a flat list of them.',
                )
            )
    return found


def demands(shape: Sequence[int], constraints: Sequence[Constraint], names: Sequence[str] | None) -> list[Demand]:
    """Constraints on a weight of this shape.

    Args:
        shape: of the weight, [*out, *in].
        constraints: what is asked of it.
        names: of its axes, one letter each for a string; None where axes are numbers only.

    Raises:
        SymmetryError: an axis that it does not have, axes that meet, or a transformation that does not fit.
    """
    if names is not None and (len(names) != len(shape) or len(set(names)) != len(names)):
        raise SymmetryError(
            Refusal(
                f"a weight of shape {tuple(shape)}",
                f"the names {list(names)} do not name its {len(shape)} axes",
                "Give each axis one name.",
            )
        )
    found = []
    for constraint in constraints:
        axes = _numbers(constraint, constraint.axes, shape, names)
        right = sparse(constraint.transformation, [shape[axis] for axis in axes])
        if isinstance(constraint, Invariant):
            found.append(Demand(None, (), right, axes, False))
            continue
        out_axes = _numbers(constraint, constraint.out_axes, shape, names)
        if set(axes) & set(out_axes):
            raise SymmetryError(
                Refusal(
                    right.name,
                    f"axes {sorted(set(axes) & set(out_axes))} of the weight would read and write what it acts on",
                    "Name the axes of the input in axes, those of the output in out_axes.",
                )
            )
        out = constraint.transformation if constraint.out is None else constraint.out
        left = sparse(out, [shape[axis] for axis in out_axes])
        found.append(Demand(left, out_axes, right, axes, constraint.interior))
    return found


def penalty(
    weight: Tensor, constraints: Constraint | Sequence[Constraint], names: Sequence[str] | None = None
) -> Tensor:
    """The soft constraint: the sum of |T'w - wT|^2 over all constraints, differentiable, zero for exact symmetry.

    Added to a loss, with a factor of one's choice, it draws weights that are not tied towards the symmetry (paper,
    section 6).

    Args:
        weight: [*out, *in], real.
        constraints, names: as for :func:`densify.symmetry.solve`. Functions are looked at in every call; what
            :func:`densify.symmetry.sparse` makes of one saves that in a loop.

    Returns:
        A scalar.

    Raises:
        SymmetryError: a constraint does not fit the weight.
    """
    return sum(
        (demand.difference(weight).square().sum() for demand in demands(weight.shape, several(constraints), names)),
        start=weight.new_zeros(()),
    )


def _numbers(constraint: Constraint, axes: Axes, shape: Sequence[int], names: Sequence[str] | None) -> tuple[int, ...]:
    """Axes as numbers from 0."""
    known_names = [] if names is None else list(names)
    listed: Any = axes if isinstance(axes, Iterable) and not isinstance(axes, str) else [axes]
    given = [part for axis in listed for part in _parts(axis, known_names)]
    found = []
    for axis in given:
        if isinstance(axis, str):
            number = known_names.index(axis) if axis in known_names else None
        else:
            number = axis % len(shape) if isinstance(axis, int) and -len(shape) <= axis < len(shape) else None
        if number is None:
            known = f", named {known_names}" if names is not None else " without names"
            raise SymmetryError(
                Refusal(
                    name_of(constraint.transformation),
                    f"the weight has no axis {axis!r}: its shape is {tuple(shape)}{known}",
                    "Name its axes, or count them from 0.",
                )
            )
        found.append(number)
    if not found or len(set(found)) != len(found):
        raise SymmetryError(
            Refusal(
                name_of(constraint.transformation),
                f"it acts on axes {given}",
                "Give one axis, or several different ones.",
            )
        )
    return tuple(found)


def _parts(axis: int | str, names: Sequence[str]) -> list[int | str]:
    """The axes that are meant: "hw" is "h" and "w" where no axis has that name."""
    whole = not isinstance(axis, str) or axis in names or not set(axis) <= set(names)
    return [axis] if whole else list(str(axis))


def along(x: Tensor, matrix: SparseMatrix | None, axes: tuple[int, ...], *, from_right: bool = False) -> Tensor:
    """A matrix applied along some axes of a tensor, Tx, or from the right, xT; a tensor of the same shape."""
    if matrix is None:
        return x
    last = tuple(range(-len(axes), 0))
    moved = x.movedim(axes, last)
    flat = moved.flatten(-len(axes))
    made = matrix.applied_from_right(flat) if from_right else matrix.applied(flat)
    return made.reshape(moved.shape).movedim(last, axes)


def where_used(x: Tensor, matrix: SparseMatrix | None, axes: tuple[int, ...], *, rows: bool) -> Tensor:
    """A tensor with zeros where the row, or the column, of a matrix along some axes has no entry."""
    if matrix is None:
        return x
    last = tuple(range(-len(axes), 0))
    moved = x.movedim(axes, last)
    mask = torch.from_numpy(used(matrix, rows=rows)).to(x.device).reshape(moved.shape[-len(axes) :])
    return torch.where(mask, moved, 0).movedim(last, axes)
