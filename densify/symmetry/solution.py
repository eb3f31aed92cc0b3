"""The weights that have a symmetry: free weights, how they spread over the whole weight, and the way back."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor
from torch.jit._trace import is_tracing

from densify.symmetry.matrix import SparseMatrix


@dataclass(frozen=True, eq=False)
class Factor:
    """What the symmetry says of some axes of a weight, the same at every place of the others.

    Attributes:
        axes: numbers of these axes of the weight, ascending.
        sizes: of these axes.
        dimension: number of free weights along them.
        residual: the largest |T'v - vT| over basis vectors v of length 1; exactly 0 for permutations.
        index: [*sizes], int32, number of the free weight that stands at each place, 0 as well where the weight is zero;
            None where weights are no copies of free ones, and a basis is all there is.
        sign: [*sizes], int8, 1, -1, or 0 where the weight is zero; None where all are 1.
        vectors: [n, dimension], an orthonormal basis, n being the product of the sizes; None with an index.
    """

    axes: tuple[int, ...]
    sizes: tuple[int, ...]
    dimension: int
    residual: float
    index: Tensor | None = None
    sign: Tensor | None = None
    vectors: SparseMatrix | None = None
    _placed: dict[torch.device, tuple[Tensor, Tensor | None]] = field(default_factory=dict, repr=False)

    @property
    def counts(self) -> Tensor:
        """[dimension], float64, at how many places each free weight stands; ones for a basis that is orthonormal."""
        if self.index is None:
            return torch.ones(self.dimension, dtype=torch.float64, device="cpu")
        weights = None if self.sign is None else self.sign.abs().flatten().double()
        return torch.bincount(self.index.flatten(), weights, self.dimension).double()

    @property
    def basis(self) -> SparseMatrix:
        """[n, dimension], an orthonormal basis of the weights, flattened row by row."""
        if self.vectors is not None:
            return self.vectors
        assert self.index is not None  # one or the other
        index, n = self.index.flatten().numpy(), self.index.numel()
        sign = np.ones(n) if self.sign is None else self.sign.flatten().numpy().astype(np.float64)
        (rows,) = np.nonzero(sign)
        values = sign[rows] / np.sqrt(self.counts.numpy()[index[rows]])
        return SparseMatrix((n, self.dimension), rows, index[rows].astype(np.int64), values)

    def spread(self, free: Tensor) -> Tensor:
        """[..., dimension] -> [..., n]: free weights to where they stand."""
        if self.vectors is not None:
            return self.vectors.applied(free)
        if self.dimension == 0:
            return free.new_zeros(*free.shape[:-1], math.prod(self.sizes))
        index, sign = self._on(free.device)
        copies = free.index_select(-1, index)
        return copies if sign is None else copies * sign

    def fold(self, x: Tensor) -> Tensor:
        """[..., n] -> [..., dimension]: the transpose of :meth:`spread`, sums over the places of each free weight."""
        if self.vectors is not None:
            return self.vectors.applied_from_right(x)
        made = x.new_zeros(*x.shape[:-1], self.dimension)
        if self.dimension == 0:
            return made
        index, sign = self._on(x.device)
        return made.index_add(-1, index.long(), x if sign is None else x * sign)

    def _on(self, device: torch.device) -> tuple[Tensor, Tensor | None]:
        """Index and sign, flattened, on a device: moved there once, but for tracers and for inference tensors."""
        assert self.index is not None  # there are no vectors
        found = self._placed.get(device)
        if found is None:
            sign = None if self.sign is None else self.sign.flatten().to(device)
            found = self.index.flatten().to(device), sign
            seen = torch.compiler.is_compiling() or is_tracing() or type(found[0]) is not Tensor
            if not (seen or found[0].is_inference()):
                self._placed.clear()
                self._placed[device] = found
        return found


def places(rank: int, factors: Iterable[Factor]) -> list[int]:
    """Axes of the free weights, as the weight counts them: those of a factor are one, in the place of its first."""
    gone = {axis for factor in factors for axis in factor.axes[1:]}
    return [axis for axis in range(rank) if axis not in gone]


@dataclass(frozen=True, eq=False)
class Solution:
    """All weights of a shape that have a symmetry.

    Attributes:
        shape: of the weight, [*out, *in].
        factors: what is asked of its axes, each axis in one factor at most; axes in none are free.
    """

    shape: tuple[int, ...]
    factors: tuple[Factor, ...]
    free_shape: tuple[int, ...] = field(init=False)

    def __post_init__(self) -> None:
        sizes = {factor.axes[0]: factor.dimension for factor in self.factors}
        shape = tuple(sizes.get(axis, self.shape[axis]) for axis in places(len(self.shape), self.factors))
        object.__setattr__(self, "free_shape", shape)

    @property
    def dimension(self) -> int:
        """Number of free weights."""
        return math.prod(self.free_shape)

    @property
    def residual(self) -> float:
        """The largest of all factors; 0 for permutations."""
        return max((factor.residual for factor in self.factors), default=0.0)

    @property
    def only_zero(self) -> bool:
        """Whether no weight but zero has the symmetry."""
        return self.dimension == 0 and math.prod(self.shape) > 0

    @property
    def tied(self) -> bool:
        """Whether every weight is a free weight, its negative or zero, so that :attr:`index` exists."""
        return all(factor.index is not None for factor in self.factors)

    @property
    def index(self) -> Tensor:
        """The weight's shape, int64, the number of the free weight at each place, or -1 where the weight is zero.

        Raises:
            ValueError: the weights are combinations of free ones (see :attr:`tied`).
        """
        if not self.tied:
            raise ValueError("these weights are combinations of free ones: see the basis of the factors, or project().")
        numbers = torch.arange(self.dimension).reshape(self.free_shape)
        where = self.expand(torch.ones(self.free_shape, dtype=torch.int8)) != 0
        bare = tuple(Factor(f.axes, f.sizes, f.dimension, f.residual, f.index) for f in self.factors)
        return torch.where(where, Solution(self.shape, bare).expand(numbers), -1)

    @property
    def sign(self) -> Tensor:
        """The weight's shape, int8, with 1, -1, or 0 where the weight is zero.

        Raises:
            ValueError: as for :attr:`index`.
        """
        if not self.tied:
            raise ValueError("these weights are combinations of free ones: see the basis of the factors, or project().")
        return self.expand(torch.ones(self.free_shape, dtype=torch.int8))

    def expand(self, free: Tensor) -> Tensor:
        """Free weights to the whole weight, which has the symmetry: exactly where weights are tied.

        Args:
            free: [*free_shape].
        """
        return self.spread(free, self.factors)

    def spread(self, free: Tensor, factors: Iterable[Factor]) -> Tensor:
        """As :meth:`expand`, along the axes of some of the factors: those of the others remain free weights."""
        axes = places(len(self.shape), self.factors)
        for factor in factors:
            free = factor.spread(free.movedim(axes.index(factor.axes[0]), -1)).unflatten(-1, factor.sizes)
            axes = [axis for axis in axes if axis != factor.axes[0]] + list(factor.axes)
        return _in_order(free, axes)

    def fold(self, x: Tensor, factors: Iterable[Factor], first: int = 0) -> Tensor:
        """The transpose of :meth:`spread`: numbers that stand where one free weight does, added up.

        Args:
            x: [..., *sizes], its last axes being those of the weight from `first` on.
            factors: some of those whose axes are among these.
        """
        axes = list(range(first, len(self.shape)))
        for factor in factors:
            last = tuple(range(-len(factor.axes), 0))
            moved = x.movedim([axes.index(axis) - len(axes) for axis in factor.axes], last)
            x = factor.fold(moved.flatten(-len(factor.axes)))
            axes = [axis for axis in axes if axis not in factor.axes] + [factor.axes[0]]
        return _in_order(x, axes)

    def coordinates(self, weight: Tensor) -> Tensor:
        """The free weights of the nearest weight with the symmetry: means over orbits where weights are tied.

        Args:
            weight: [*shape].

        Returns:
            [*free_shape].
        """
        sums, axes = self.fold(weight, self.factors), places(len(self.shape), self.factors)
        for factor in self.factors:
            shape = [-1 if axis == factor.axes[0] else 1 for axis in axes]
            sums = sums / factor.counts.to(weight).reshape(shape)
        return sums

    def project(self, weight: Tensor) -> Tensor:
        """The nearest weight with the symmetry (orthogonal projection): [*shape] -> [*shape]."""
        return self.expand(self.coordinates(weight))

    def __str__(self) -> str:
        whole = math.prod(self.shape)
        kind = "tied by index" if self.tied else "combinations"
        return f"{self.dimension:,} free weights of {whole:,} ({kind}), residual {self.residual:.1e}"


def _in_order(x: Tensor, axes: list[int]) -> Tensor:
    """The last axes of a tensor, which have these numbers, in ascending order."""
    order = sorted(range(len(axes)), key=axes.__getitem__)
    return x.movedim([at - len(axes) for at in order], list(range(-len(axes), 0)))
