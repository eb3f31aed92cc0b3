"""Solve w = wT and T'w = wT for the weights of a layer, axis by axis where the transformations allow it."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from densify.errors import Refusal, SymmetryError, ZeroSolutionWarning
from densify.symmetry.constraints import RTOL, Constraint, Demand, demands, several
from densify.symmetry.equations import Block, Equations, Ties, equations, null_space, tie
from densify.symmetry.matrix import Index, SparseMatrix
from densify.symmetry.solution import Factor, Solution

_COPY = 1e-9  # directions that differ by this are one


def solve(
    shape: Sequence[int],
    constraints: Constraint | Sequence[Constraint],
    *,
    names: Sequence[str] | None = None,
    support: Tensor | npt.NDArray[Any] | None = None,
    rtol: float = RTOL,
) -> Solution:
    """All weights that have one or several symmetries.

    Constraints that share no axis are solved by themselves, others together. Permutations, signed or partial ones and
    projectors on means are solved exactly, as ties between weights, for any size; for other matrices the null space of
    the equations is computed, block by block.

    Args:
        shape: of the weight, [*out, *in].
        constraints: :class:`Invariant` and :class:`Equivariant`.
        names: of the weight's axes, "nchw" for example, for constraints that name them.
        support: bool, broadcast to the shape: weights outside are zero.
        rtol: terms of equations up to this part of the largest entry of the constraint's matrices count as zero, and
            singular values up to this part of the largest.

    Returns:
        Dimension, ties or basis, and residual. Where only zero has the symmetry, a
        :class:`densify.errors.ZeroSolutionWarning` says so.

    Raises:
        SymmetryError: a transformation or support that does not fit the shape, or equations too large to solve.
    """
    asked = several(constraints)
    wanted = demands(shape, asked, names)
    solution = solved(tuple(shape), wanted, support, rtol)
    if solution.only_zero:
        warnings.warn(
            f"only w = 0 of shape {solution.shape} has what {', '.join(d.name for d in wanted) or 'the support'} asks: "
            f"check its places and factors; numbers in single precision need a larger rtol than {rtol:g}.",
            ZeroSolutionWarning,
            stacklevel=2,
        )
    return solution


def solved(
    shape: tuple[int, ...],
    wanted: Sequence[Demand],
    support: Tensor | npt.NDArray[Any] | None = None,
    rtol: float = RTOL,
) -> Solution:
    """As :func:`solve`, of constraints whose transformations are matrices, and without a warning."""
    mask, mask_axes = _support(shape, support)
    groups = _joined([{*demand.left_axes, *demand.right_axes} for demand in wanted] + [mask_axes] * bool(mask_axes))
    factors = []
    for axes in groups:
        inside = [demand for demand in wanted if axes & {*demand.left_axes, *demand.right_axes}]
        with torch.device("cpu"):  # whatever the layer is made on
            factors.append(_factor(shape, sorted(axes), inside, mask if mask_axes & axes else None, rtol))
    return Solution(shape, tuple(factors))


def _support(shape: tuple[int, ...], support: Tensor | npt.NDArray[Any] | None) -> tuple[npt.NDArray[Any], set[int]]:
    """A mask of as many axes as the weight, and the axes that it tells apart."""
    given = support.cpu().numpy() if isinstance(support, Tensor) else np.asarray(True if support is None else support)
    if given.dtype != bool:
        raise SymmetryError(
            Refusal("the support", f"it holds {given.dtype}", "Give a mask of bool, True where weights may be.")
        )
    try:
        np.broadcast_to(given, shape)
    except ValueError:
        raise SymmetryError(
            Refusal(
                "the support",
                f"its shape {given.shape} cannot be broadcast to the weight's, {shape}",
                "Give a mask with 1 or the weight's size along every axis.",
            )
        ) from None
    mask = given.reshape((1,) * (len(shape) - given.ndim) + given.shape)
    axes = {axis for axis, size in enumerate(mask.shape) if size > 1}
    if not axes and not mask.all():
        axes = {len(shape) - 1}
    return mask, axes


def _joined(sets: Sequence[set[int]]) -> list[set[int]]:
    """Sets that share an element made one, in the order of their first elements."""
    groups: list[set[int]] = []
    for one in sets:
        meeting = [group for group in groups if group & one]
        groups = [group for group in groups if not group & one] + [set().union(one, *meeting)]
    return sorted(groups, key=min)


def _factor(
    shape: tuple[int, ...], axes: Sequence[int], wanted: Sequence[Demand], mask: npt.NDArray[Any] | None, rtol: float
) -> Factor:
    sizes = tuple(shape[axis] for axis in axes)
    outside: Index = np.empty(0, dtype=np.int64)
    if mask is not None:
        here = mask.reshape([mask.shape[axis] for axis in axes])
        (outside,) = np.nonzero(~np.broadcast_to(here, sizes).reshape(-1))
    system, scale = equations(sizes, axes, wanted, outside, rtol)
    ties, left = tie(system.scaled(scale, rtol), rtol)
    multiplicity = np.bincount(ties.index[ties.index >= 0], minlength=ties.count)
    subject = ", ".join(demand.name for demand in wanted) or "the support"
    blocks = null_space(left, multiplicity, rtol, subject)
    copies = _copies(ties.count, blocks)
    if copies is None:
        vectors = _basis(ties, multiplicity, blocks)
        return Factor(tuple(axes), sizes, vectors.shape[1], _residual(system, vectors), vectors=vectors)
    ties = ties.then(copies)
    sign = None if (ties.sign == 1).all() else torch.from_numpy(ties.sign.astype(np.int8)).reshape(sizes)
    index = torch.from_numpy(ties.index.clip(0).astype(np.int32)).reshape(sizes)
    found = Factor(tuple(axes), sizes, ties.count, 0.0, index, sign)
    return replace(found, residual=_residual(system, found.basis))


def _copies(count: int, blocks: Sequence[Block]) -> Ties | None:
    """Blocks as ties, where each of their weights is a copy of one free weight, its negative or zero."""
    heads, sign = np.arange(count), np.ones(count)
    for block in blocks:
        # Copies of one weight are parallel in the basis and of one length, all others are at right angles.
        products = block.vectors @ block.vectors.T
        near = _COPY * products.max(initial=0)
        first = (np.abs(products) > near).argmax(1)
        which = np.arange(len(first))
        signs = np.where(products.diagonal() > near, np.sign(products[which, first]), 0.0)
        alike = np.where(first[:, None] == first, products.diagonal()[first], 0.0) * np.outer(signs, signs)
        if np.abs(products - alike).max() > near:
            return None
        heads[block.members] = block.members[first]
        sign[block.members] = signs
    free, index = np.unique(heads[sign != 0], return_inverse=True)
    numbers = np.full(count, -1)
    numbers[sign != 0] = index.reshape(-1)
    return Ties(numbers, sign, len(free))


def _basis(ties: Ties, multiplicity: Index, blocks: Sequence[Block]) -> SparseMatrix:
    """[n, dimension] an orthonormal basis: of every free weight in no block by itself, and of every block."""
    alone = np.ones(ties.count, dtype=bool)
    for block in blocks:
        alone[block.members] = False
    (singles,) = np.nonzero(alone)
    dimension = len(singles)
    free, columns, values = [singles], [np.arange(dimension)], [1 / np.sqrt(multiplicity[singles])]
    for block in blocks:
        row, column = np.nonzero(block.vectors)
        free.append(block.members[row])
        columns.append(dimension + column)
        values.append(block.vectors[row, column])
        dimension += block.vectors.shape[1]
    entries = (np.concatenate(free), np.concatenate(columns), np.concatenate(values))
    blockwise = SparseMatrix((ties.count, dimension), *entries)
    (rows,) = np.nonzero(ties.index >= 0)
    return SparseMatrix((len(ties.index), ties.count), rows, ties.index[rows], ties.sign[rows]) @ blockwise


def _residual(system: Equations, basis: SparseMatrix) -> float:
    """The largest number that the equations leave of the basis vectors."""
    height = int(system.rows.max(initial=-1)) + 1
    left = SparseMatrix((height, system.unknowns), system.rows, system.columns, system.values) @ basis
    return float(np.abs(left.values).max(initial=0.0))
