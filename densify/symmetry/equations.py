"""Linear equations between the weights of some axes: exact ties first, null spaces of what is left.

Equations of one term make a weight zero, equations of two terms of one size tie two weights, and so on with what these
leave. Permutations are solved by that alone: what is tied is an orbit, exactly. The rest falls into blocks that share
no weight; the null space of each is its own. Terms of rounding size are no terms: alone in an equation, one would make
its weight zero.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import numpy as np
import numpy.typing as npt

from densify.errors import Refusal, SymmetryError
from densify.symmetry.constraints import Demand, used
from densify.symmetry.matrix import Index, SparseMatrix, Values

LARGEST = 4096  # weights in one block: a dense decomposition beyond takes minutes and gigabytes
_ROUNDING = 8 * np.finfo(np.float64).eps


@dataclass(frozen=True, eq=False)
class Equations:
    """Sums of terms that are zero: the sum over the entries of one row of values * w[columns] is 0.

    Attributes:
        rows, columns, values: [entries], in the order of the rows; no place twice.
        unknowns: number of weights.
    """

    rows: Index
    columns: Index
    values: Values
    unknowns: int

    @staticmethod
    def of(rows: Index, columns: Index, values: Values, unknowns: int, floor: float = 0.0) -> Equations:
        """Terms of one place added up; what cancels to rounding, or up to the floor, is gone."""
        places, inverse = np.unique(rows * unknowns + columns, return_inverse=True)
        inverse = inverse.reshape(-1)
        summed: Values = np.bincount(inverse, values, len(places)).astype(np.float64)
        size = np.bincount(inverse, np.abs(values), len(places))
        kept = np.abs(summed) > np.maximum(_ROUNDING * size, floor)
        places, summed = places[kept], summed[kept]
        return Equations(places // unknowns, places % unknowns, summed, unknowns)

    def scaled(self, scale: Values, rtol: float) -> Equations:
        """Every row divided by its scale [rows]; terms up to `rtol` are gone."""
        return Equations.of(self.rows, self.columns, self.values / scale[self.rows], self.unknowns, rtol)


@dataclass(frozen=True, eq=False)
class Ties:
    """Which weights are one up to the sign, and which are zero.

    Attributes:
        index: [weights] number of the free weight, or -1 for zero.
        sign: [weights] 1.0, -1.0, or 0.0 for zero.
        count: number of free weights.
    """

    index: Index
    sign: Values
    count: int

    def then(self, other: Ties) -> Ties:
        """Ties of weights whose free weights are tied themselves."""
        index, sign = np.append(other.index, -1), np.append(other.sign, 0.0)  # what -1 reads is at the end
        return Ties(index[self.index], self.sign * sign[self.index], other.count)


@dataclass(frozen=True, eq=False)
class Block:
    """The null space of the equations among some free weights.

    Attributes:
        members: [k] numbers of the free weights.
        vectors: [k, dimension] a basis.
    """

    members: Index
    vectors: Values


def equations(
    sizes: Sequence[int], axes: Sequence[int], demands: Sequence[Demand], outside: Index, rtol: float
) -> tuple[Equations, Values]:
    """Everything that is asked of the weights of some axes, flattened row by row.

    Args:
        sizes: of these axes.
        axes: their numbers in the weight.
        demands: constraints on these axes alone.
        outside: weights that are zero.
        rtol: entries of a matrix up to this part of its largest do not make a place one that an interior has.

    Returns:
        The equations, and [rows] the scale of each: the power of 2 below the largest entry of its matrices.
    """
    unknowns = math.prod(sizes)
    zeros = np.arange(len(outside)) + len(demands) * unknowns
    parts = [(zeros, outside, np.ones(len(outside)))]
    for number, demand in enumerate(demands):
        left = _terms(sizes, axes, demand.left, demand.left_axes)
        right = _terms(sizes, axes, demand.right, demand.right_axes)[[1, 0]]  # w T reads the rows of T
        values = (_repeated(demand.left, unknowns), -_repeated(demand.right, unknowns))
        kept: npt.NDArray[np.bool_] = np.ones(unknowns, dtype=bool)
        if demand.interior:
            kept &= _at_places(sizes, axes, demand.left, demand.left_axes, rtol, rows=True)
            kept &= _at_places(sizes, axes, demand.right, demand.right_axes, rtol, rows=False)
        for (row, column), value in zip((left, right), values, strict=True):
            where = kept[row]
            parts.append((row[where] + number * unknowns, column[where], value[where]))
    rows, columns, terms = (np.concatenate([part[i] for part in parts]) for i in range(3))
    scale = np.append(np.repeat([_scale(demand) for demand in demands], unknowns), np.ones(len(outside)))
    return Equations.of(rows, columns, terms, unknowns), scale


def _scale(demand: Demand) -> float:
    """The power of 2 below the largest entry of a constraint's matrices; 1 where all are zero."""
    largest = max(1.0 if m is None else float(np.abs(m.values).max(initial=0.0)) for m in (demand.left, demand.right))
    return 2.0 ** math.floor(math.log2(largest)) if largest else 1.0


def _places(sizes: Sequence[int], axes: Sequence[int], along: Sequence[int]) -> tuple[Index, Index]:
    """Flat places along some of the axes, in their order, and of all others: together they make every place."""
    grid = np.arange(math.prod(sizes)).reshape(sizes)
    chosen = [list(axes).index(axis) for axis in along]
    others = [i for i in range(len(sizes)) if i not in chosen]
    table = grid.transpose(*chosen, *others).reshape(math.prod(sizes[i] for i in chosen), -1)
    return table[:, 0], table[0]


def _terms(sizes: Sequence[int], axes: Sequence[int], matrix: SparseMatrix | None, along: Sequence[int]) -> Any:
    """[2, terms] flat rows and columns of a matrix that acts along some axes."""
    if matrix is None:
        return np.tile(np.arange(math.prod(sizes)), (2, 1))
    here, others = _places(sizes, axes, along)
    pairs = [(here[places][:, None] + others).reshape(-1) for places in (matrix.rows, matrix.columns)]
    return np.stack(pairs)


def _repeated(matrix: SparseMatrix | None, unknowns: int) -> Values:
    return np.ones(unknowns) if matrix is None else np.repeat(matrix.values, unknowns // matrix.shape[0])


def _at_places(
    sizes: Sequence[int],
    axes: Sequence[int],
    matrix: SparseMatrix | None,
    along: Sequence[int],
    rtol: float,
    *,
    rows: bool,
) -> Any:
    """[weights] whether the row (or the column) of the matrix at each place has an entry above rounding."""
    found = np.ones(math.prod(sizes), dtype=bool)
    if matrix is not None:
        here, others = _places(sizes, axes, along)
        found[here[:, None] + others] = used(matrix, rtol, rows=rows)[:, None]
    return found


def tie(system: Equations, rtol: float) -> tuple[Ties, Equations]:
    """Exact ties, and the equations between the free weights that they leave; terms up to `rtol` are none."""
    ties = Ties(np.arange(system.unknowns), np.ones(system.unknowns), system.unknowns)
    while True:
        _, first, counts = np.unique(system.rows, return_index=True, return_counts=True)
        alone = system.columns[first[counts == 1]]
        pairs = first[counts == 2]
        one, two = system.values[pairs], system.values[pairs + 1]
        pairs = pairs[np.abs(np.abs(one) - np.abs(two)) <= _ROUNDING * np.abs(one)]
        if len(alone) + len(pairs) == 0:
            return ties, system
        signs = -np.sign(system.values[pairs] * system.values[pairs + 1])
        found = _orbits(system.unknowns, alone, system.columns[pairs], system.columns[pairs + 1], signs)
        ties = ties.then(found)
        index = found.index[system.columns]
        kept = index >= 0
        values = system.values[kept] * found.sign[system.columns[kept]]
        system = Equations.of(system.rows[kept], index[kept], values, max(1, found.count), rtol)


def _orbits(count: int, zero: Index, first: Index, second: Index, signs: Values) -> Ties:
    """Weights tied as w[first] = signs * w[second], and w[zero] = 0.

    Every weight stands twice, as w and as -w: where these two meet, the weight is its own negative.
    """
    flipped = np.where(signs > 0, 0, count)
    label = components(
        2 * count,
        np.concatenate([first, first + count, zero]),
        np.concatenate([second + flipped, second + count - flipped, zero + count]),
    )
    positive, negative = label[:count], label[count:]
    least = np.minimum(positive, negative)
    gone = positive == negative
    free, index = np.unique(least[~gone], return_inverse=True)
    numbers = np.full(count, -1)
    numbers[~gone] = index.reshape(-1)
    return Ties(numbers, np.where(gone, 0.0, np.where(positive < negative, 1.0, -1.0)), len(free))


def components(count: int, first: Index, second: Index) -> Index:
    """[count] the smallest node that each node of a graph is connected with, by edges (first, second)."""
    parent = np.arange(count)
    while True:
        one, two = parent[first], parent[second]
        apart = one != two
        if not apart.any():
            return parent
        first, second, one, two = first[apart], second[apart], one[apart], two[apart]
        np.minimum.at(parent, np.maximum(one, two), np.minimum(one, two))
        while not np.array_equal(above := parent[parent], parent):
            parent = above


def null_space(system: Equations, multiplicity: Index, rtol: float, subject: str) -> list[Block]:
    """Solutions of the equations, block by block; weights in no equation are in no block.

    Args:
        system: between free weights.
        multiplicity: [unknowns] how many weights each free weight stands for: bases are orthonormal among the weights.
        rtol: singular values up to this part of the largest count as zero.
        subject: for messages.

    Raises:
        SymmetryError: a block is too large for a dense decomposition.
    """
    if not len(system.rows):
        return []
    starts = np.flatnonzero(np.r_[True, system.rows[1:] != system.rows[:-1]])
    head = np.repeat(system.columns[starts], np.diff(np.r_[starts, len(system.rows)]))
    label = components(system.unknowns, head, system.columns)
    involved = np.unique(system.columns)
    involved = involved[np.argsort(label[involved], kind="stable")]
    splits = np.flatnonzero(np.diff(label[involved])) + 1
    groups = np.split(involved, splits)
    largest = max(map(len, groups))
    if largest > LARGEST:
        raise SymmetryError(
            Refusal(
                subject,
                f"its equations tie {largest} weights together, and null spaces are computed for {LARGEST} at most",
                "Give permutations as such (ties are found for any size), act on fewer axes at once, or add a support.",
            )
        )
    order = np.argsort(label[system.columns], kind="stable")
    ends = np.flatnonzero(np.diff(label[system.columns[order]])) + 1
    matrices = []
    for members, entries in zip(groups, np.split(order, ends), strict=True):
        _, row = np.unique(system.rows[entries], return_inverse=True)
        row = row.reshape(-1)
        matrix = np.zeros((max(int(row.max()) + 1, len(members)), len(members)))
        matrix[row, np.searchsorted(members, system.columns[entries])] = system.values[entries]
        matrices.append((members, matrix))
    blocks = []
    by_shape = sorted(matrices, key=lambda pair: pair[1].shape)
    for _, alike in groupby(by_shape, key=lambda pair: pair[1].shape):
        blocks.extend(_solved(list(alike), multiplicity, rtol))
    return blocks


def _solved(matrices: list[tuple[Index, Values]], multiplicity: Index, rtol: float) -> list[Block]:
    """Null spaces of matrices of one shape, at once."""
    members = np.stack([pair[0] for pair in matrices])
    scale = 1 / np.sqrt(multiplicity[members])
    triangles = np.linalg.qr(np.stack([pair[1] for pair in matrices]) * scale[:, None], mode="r")
    _, singular, vectors = np.linalg.svd(triangles)
    ranks = (singular > rtol * singular[:, :1]).sum(1)
    return [Block(m, (v[r:] * s).T) for m, v, r, s in zip(members, vectors, ranks, scale, strict=True)]
