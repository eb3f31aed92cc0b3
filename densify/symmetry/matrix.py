"""Sparse matrices by their entries: of any size, on any device, differentiable, and without a need for scipy."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

Index = npt.NDArray[np.int64]
Values = npt.NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class SparseMatrix:
    """A matrix by its entries. That of a transformation T of some axes, flattened row by row, is square.

    Attributes:
        shape: numbers of its rows and columns.
        rows, columns: [entries] where they stand; no place twice.
        values: [entries] what they are; none is zero.
        name: for messages.
    """

    shape: tuple[int, int]
    rows: Index
    columns: Index
    values: Values
    name: str = "the matrix"

    def applied(self, x: Tensor) -> Tensor:
        """[..., columns] -> T x, [..., rows]."""
        return self._product(x, self.columns, self.rows, self.shape[0])

    def applied_from_right(self, w: Tensor) -> Tensor:
        """[..., rows] -> w T, [..., columns]."""
        return self._product(w, self.rows, self.columns, self.shape[1])

    def __matmul__(self, other: SparseMatrix) -> SparseMatrix:
        """Their product, its entries in the order of its rows, those included that come out as zero."""
        counts = np.bincount(other.rows, minlength=other.shape[0])
        starts, order = np.cumsum(counts) - counts, np.argsort(other.rows, kind="stable")
        # Every entry meets the counts[k] entries of row k of the other: they stand side by side in the order.
        repeats = counts[self.columns]
        within = np.arange(repeats.sum()) - np.repeat(np.cumsum(repeats) - repeats, repeats)
        met = order[np.repeat(starts[self.columns], repeats) + within]
        width = max(1, other.shape[1])
        keys, inverse = np.unique(np.repeat(self.rows, repeats) * width + other.columns[met], return_inverse=True)
        terms = np.repeat(self.values, repeats) * other.values[met]
        values = np.bincount(inverse.reshape(-1), terms, len(keys)).astype(np.float64)
        return SparseMatrix((self.shape[0], other.shape[1]), keys // width, keys % width, values)

    def dense(self) -> Tensor:
        """[rows, columns], float64."""
        made = torch.zeros(self.shape, dtype=torch.float64)
        made[torch.from_numpy(self.rows), torch.from_numpy(self.columns)] = torch.from_numpy(self.values)
        return made

    def _product(self, x: Tensor, read: Index, written: Index, size: int) -> Tensor:
        values = torch.from_numpy(self.values).to(x)
        source, target = (torch.from_numpy(places).to(x.device) for places in (read, written))
        if self.values.size > 2 * max(self.shape):
            return x @ x.new_zeros(x.shape[-1], size).index_put((source, target), values)
        terms = x.index_select(-1, source) * values
        return x.new_zeros(*x.shape[:-1], size).index_add(-1, target, terms)
