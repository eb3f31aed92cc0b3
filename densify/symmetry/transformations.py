"""Linear transformations of one or several axes: those with names, and the sparse matrix of whatever is given."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from densify.errors import Refusal, SymmetryError
from densify.symmetry.matrix import SparseMatrix

_PIECE = 2**22  # numbers of the identity that a function is given at a time


@dataclass(frozen=True)
class Flip:
    """Every axis mirrored: i -> m - 1 - i, counted from 0 (paper, equation 24, with the index that it means)."""

    def __call__(self, x: Tensor) -> Tensor:
        """[B, *axes] -> [B, *axes]."""
        return x.flip(tuple(range(1, x.dim())))

    def __str__(self) -> str:
        return "flip"


@dataclass(frozen=True)
class CyclicShift:
    """Every axis moved on by `steps`, its end put in front: sample i becomes sample (i + steps) % m (equation 10)."""

    steps: int = 1

    def __call__(self, x: Tensor) -> Tensor:
        """[B, *axes] -> [B, *axes]."""
        axes = tuple(range(1, x.dim()))
        return x.roll((self.steps,) * len(axes), axes)

    def __str__(self) -> str:
        return f"cyclic shift by {self.steps}"


@dataclass(frozen=True)
class Shift:
    """Every axis moved on by `steps`, zeros put in front: sample i becomes sample i + steps (equation 17)."""

    steps: int = 1

    def __call__(self, x: Tensor) -> Tensor:
        """[B, *axes] -> [B, *axes]."""
        for axis in range(1, x.dim()):
            places = torch.arange(x.shape[axis], device=x.device) - self.steps
            inside = (places >= 0) & (places < x.shape[axis])
            shape = [-1 if a == axis else 1 for a in range(x.dim())]
            x = torch.where(inside.reshape(shape), x.roll(self.steps, axis), 0)
        return x

    def __str__(self) -> str:
        return f"shift by {self.steps}"


@dataclass(frozen=True)
class DownScale:
    """Every axis in blocks of `factor` samples, each of which becomes the block's mean: a projector.

    What is left of the image when its scale is reduced by `factor` and brought back. The transformation that the paper
    prints (equation 27) shrinks the axis and multiplies it by 1/n: no weight but zero is invariant under that.
    """

    factor: int

    def __call__(self, x: Tensor) -> Tensor:
        """[B, *axes] -> [B, *axes], axes that are multiples of `factor`."""
        for axis in range(1, x.dim()):
            size = x.shape[axis]
            if self.factor < 1 or size % self.factor:
                raise SymmetryError(
                    Refusal(
                        str(self),
                        f"an axis of {size} samples has no blocks of {self.factor}",
                        "Choose a factor that divides the axis.",
                    )
                )
            means = x.unflatten(axis, (-1, self.factor)).mean(axis + 1)
            x = means.repeat_interleave(self.factor, axis)
        return x

    def __str__(self) -> str:
        return f"down-scale by {self.factor}"


@dataclass(frozen=True)
class Rotate90:
    """Two axes (height, width) turned by `turns` quarter turns; odd numbers of turns need as many rows as columns."""

    turns: int = 1

    def __call__(self, x: Tensor) -> Tensor:
        """[B, H, W] -> [B, H, W], or [B, W, H] after odd numbers of turns."""
        if x.dim() != 3:
            raise SymmetryError(
                Refusal(str(self), f"it turns two axes, not {x.dim() - 1}", "Name height and width together.")
            )
        return x.rot90(self.turns, (1, 2))

    def __str__(self) -> str:
        return f"rotation by {90 * self.turns} degrees"


Transformation = Callable[[Tensor], Any] | SparseMatrix | Tensor | npt.NDArray[Any] | Sequence[Any]


def name_of(transformation: Any) -> str:
    """How messages call it."""
    if isinstance(transformation, SparseMatrix):
        return transformation.name
    if callable(transformation):
        named = "__str__" in vars(type(transformation))
        return str(transformation) if named else str(getattr(transformation, "__name__", transformation))
    return "the index array" if len(getattr(transformation, "shape", (0, 0))) == 1 else "the matrix"


def sparse(transformation: Any, sizes: Sequence[int]) -> SparseMatrix:
    """The matrix of a transformation of axes of these sizes.

    Args:
        transformation: a function from [B, *sizes] to the same shape, linear, which is given float64 tensors; an index
            array [n] of integers with (Tx)[i] = x[index[i]], or 0 where the index is -1; a matrix [n, n], dense or
            sparse, of torch, numpy or scipy.
        sizes: of the axes that it acts on; n is their product.

    Raises:
        SymmetryError: it does not have this shape, or is not linear; or there are no samples to act on.
    """
    size, name = math.prod(sizes), name_of(transformation)
    if size == 0:
        raise SymmetryError(
            Refusal(name, f"it acts on axes of sizes {tuple(sizes)}: there are no samples", "Name axes that have some.")
        )
    if isinstance(transformation, Tensor) and transformation.is_floating_point():
        transformation = transformation.double()  # numpy has no bfloat16
    if isinstance(transformation, SparseMatrix):
        if transformation.shape != (size, size):
            raise _wrong_shape(name, transformation.shape, sizes)
        return transformation
    if hasattr(transformation, "tocoo"):  # a scipy.sparse matrix, without a need for scipy
        entries = transformation.tocoo()
        shape, places = tuple(entries.shape), (entries.row, entries.col)
        return _checked(name, sizes, shape, *places, entries.data)
    if isinstance(transformation, Tensor) and transformation.layout != torch.strided:
        held = transformation.detach().cpu().to_sparse_coo().coalesce()
        return _checked(
            name, sizes, tuple(held.shape), held.indices()[0].numpy(), held.indices()[1].numpy(), held.values().numpy()
        )
    if callable(transformation):
        with torch.device("cpu"):
            return _of_function(transformation, tuple(sizes), name)
    given = transformation.detach().cpu().numpy() if isinstance(transformation, Tensor) else np.asarray(transformation)
    if given.ndim == 1:
        return _of_index(given, sizes)
    if given.ndim != 2:
        raise _wrong_shape(name, given.shape, sizes)
    where = np.nonzero(given)
    return _checked(name, sizes, given.shape, where[0], where[1], given[where])


def _of_index(index: npt.NDArray[Any], sizes: Sequence[int]) -> SparseMatrix:
    size = math.prod(sizes)
    if not np.issubdtype(index.dtype, np.integer):
        raise SymmetryError(
            Refusal("the index array", f"it holds {index.dtype}", "Give integers: (Tx)[i] = x[index[i]], -1 for zero.")
        )
    if index.shape != (size,):
        raise _wrong_shape("the index array", index.shape, sizes)
    if size and not (index.min() >= -1 and index.max() < size):
        raise SymmetryError(
            Refusal(
                "the index array",
                f"it names places from {index.min()} to {index.max()} of an axis of {size} samples",
                f"Give integers from 0 to {size - 1}, or -1 where the result is zero.",
            )
        )
    (rows,) = np.nonzero(index >= 0)
    return SparseMatrix((size, size), rows, index[rows].astype(np.int64), np.ones(len(rows)), "the index array")


def _of_function(function: Callable[[Tensor], Any], sizes: tuple[int, ...], name: str) -> SparseMatrix:
    size = math.prod(sizes)
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(3, size, generator=generator, dtype=torch.float64)
    x[2] = x[0] - 2 * x[1]
    wanted = _run(function, x, sizes, name)
    # Most functions move samples about: the numbers of the samples tell where to. That takes no matrix of n x n.
    marks = _run(function, torch.arange(1.0, size + 1, dtype=torch.float64)[None], sizes, name)[0].nan_to_num()
    places = marks.abs().round().clamp(0, size).long()
    moved = torch.cat([x.new_zeros(3, 1), x], 1)[:, places] * marks.sign()
    if torch.equal(moved, wanted):
        rows = places.nonzero()[:, 0]
        found = (rows, places[rows] - 1, marks.sign()[rows])
        return SparseMatrix((size, size), found[0].numpy(), found[1].numpy(), found[2].numpy(), name)
    pieces = []
    for start in range(0, size, max(1, _PIECE // size)):
        units = torch.zeros(min(max(1, _PIECE // size), size - start), size, dtype=torch.float64)
        units[:, start:].fill_diagonal_(1)
        image = _run(function, units, sizes, name)
        columns, rows = image.nonzero(as_tuple=True)
        pieces.append((rows, columns + start, image[columns, rows]))
    entries = [torch.cat(parts).numpy() for parts in zip(*pieces, strict=True)]
    matrix = _checked(name, sizes, (size, size), entries[0], entries[1], entries[2])
    if not torch.allclose(matrix.applied(x), wanted, rtol=1e-9, atol=1e-9 * float(wanted.abs().max())):
        raise SymmetryError(
            Refusal(
                name,
                "it is not linear, or draws random numbers",
                "Weights can be tied under linear transformations only.",
            )
        )
    return matrix


def _run(function: Callable[[Tensor], Any], x: Tensor, sizes: tuple[int, ...], name: str) -> Tensor:
    """[B, n] -> [B, n], the function's own errors with its name."""
    try:
        made = torch.as_tensor(function(x.reshape(-1, *sizes).clone()))
    except SymmetryError:
        raise
    except Exception as error:
        raise SymmetryError(
            Refusal(
                name,
                f"it fails on a float64 tensor of shape {(len(x), *sizes)}: {error}",
                "Give a function of torch tensors [B, *axes].",
            )
        ) from error
    if made.is_complex():
        raise SymmetryError(
            Refusal(name, f"it makes {made.dtype} of float64", "Give a real function: take .real where all is real.")
        )
    if made.shape != (len(x), *sizes):
        raise SymmetryError(
            Refusal(
                name,
                f"it makes {tuple(made.shape)} of {(len(x), *sizes)}",
                "Give a transformation that keeps the shape of its axes; quarter turns need a square.",
            )
        )
    return made.detach().to("cpu", torch.float64).reshape(len(x), -1)


def _checked(
    name: str,
    sizes: Sequence[int],
    shape: tuple[int, ...],
    rows: npt.NDArray[Any],
    columns: npt.NDArray[Any],
    values: npt.NDArray[Any],
) -> SparseMatrix:
    size = math.prod(sizes)
    if shape != (size, size):
        raise _wrong_shape(name, shape, sizes)
    if np.iscomplexobj(values) or not np.isfinite(values.astype(np.float64)).all():
        raise SymmetryError(Refusal(name, "it holds numbers that are complex or not finite", "Give a real matrix."))
    places, inverse = np.unique(rows.astype(np.int64) * size + columns, return_inverse=True)
    summed = np.bincount(inverse.reshape(-1), values.astype(np.float64), len(places))
    places, summed = places[summed != 0], summed[summed != 0]
    return SparseMatrix((size, size), places // size, places % size, summed, name)


def _wrong_shape(name: str, shape: Sequence[int], sizes: Sequence[int]) -> SymmetryError:
    size = math.prod(sizes)
    of = f"{' x '.join(map(str, sizes))} samples" if len(sizes) != 1 else f"{size} samples"
    return SymmetryError(
        Refusal(
            name,
            f"it has shape {tuple(shape)}, and acts on axes of {of}",
            f"Give a matrix of {size} x {size}, or an index array of {size} integers.",
        )
    )
