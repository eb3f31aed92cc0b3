"""Weight sharing from symmetry: which weights of a linear layer make it invariant or equivariant.

The source is *Invariance and Equivariance Induced Weight Sharing Schemes*: a layer is invariant under a linear
transformation T of its input where w = wT, and equivariant where T'w = wT. A fully connected layer on 256 maps of
6 x 6 that does not tell an image from its mirror image has half the weights:

>>> from densify.symmetry import CyclicShift, Equivariant, Flip, Invariant, solve
>>> solution = solve((4068, 256, 6, 6), Invariant(Flip(), "w"), names="nchw")
>>> solution.dimension, solution.factors[0].index.tolist()
(18745344, [0, 1, 2, 2, 1, 0])

`densify.layers.symmetric` has layers whose parameters are these free weights. A transformation is a function of a
tensor [B, *axes], an index array, or a matrix, dense or sparse (:func:`sparse`). Symmetries that share an axis are
solved together, and a support says where weights may be at all. A convolution is what a shift and a support leave:

>>> import torch
>>> offset = (torch.arange(7) - torch.arange(7)[:, None]) % 7
>>> shifted = Equivariant(CyclicShift(1), axes="i", out_axes="j")
>>> solve((7, 7), shifted, names="ji").dimension, solve((7, 7), shifted, names="ji", support=offset < 3).dimension
(7, 3)

Where a symmetry should hold only roughly, :func:`penalty` measures how far a weight is from it:

>>> from densify.symmetry import penalty
>>> float(penalty(torch.tensor([[1.0, 2.0, 5.0]]), Invariant(Flip(), 1)))
32.0
"""

from densify.symmetry.constraints import Constraint, Equivariant, Invariant, penalty
from densify.symmetry.matrix import SparseMatrix
from densify.symmetry.solution import Factor, Solution
from densify.symmetry.solving import solve
from densify.symmetry.transformations import (
    CyclicShift,
    DownScale,
    Flip,
    Rotate90,
    Shift,
    Transformation,
    sparse,
)

__all__ = [
    "Constraint",
    "CyclicShift",
    "DownScale",
    "Equivariant",
    "Factor",
    "Flip",
    "Invariant",
    "Rotate90",
    "Shift",
    "Solution",
    "SparseMatrix",
    "Transformation",
    "penalty",
    "solve",
    "sparse",
]
