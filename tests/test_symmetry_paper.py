"""Every example of the paper on weight sharing from symmetry, as it is right, and as it is printed where that is wrong.

Equations are those of *Invariance and Equivariance Induced Weight Sharing Schemes*; matrices are written from their
Kronecker deltas, which count from 1.
"""

from __future__ import annotations

import doctest
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import densify.symmetry
from densify.errors import ZeroSolutionWarning
from densify.symmetry import (
    CyclicShift,
    DownScale,
    Equivariant,
    Flip,
    Invariant,
    Shift,
    Solution,
    penalty,
    solve,
)


def delta(size: int, where: Callable[[int, int], Any]) -> Tensor:
    """The matrix T[i', i] of a formula in i' and i, which count from 1."""
    return torch.tensor(
        [[float(where(i, j)) for j in range(1, size + 1)] for i in range(1, size + 1)], dtype=torch.float64
    )


def only_zero(shape: tuple[int, ...], constraints: Any) -> Solution:
    with pytest.warns(ZeroSolutionWarning, match="only w = 0"):
        found = solve(shape, constraints)
    assert found.only_zero
    assert found.dimension == 0
    assert not found.expand(torch.ones(found.free_shape)).any()
    return found


def integers(*shape: int, seed: int = 0) -> Tensor:
    return torch.randint(-9, 10, shape, generator=torch.Generator().manual_seed(seed)).double()


@pytest.mark.parametrize("m", [1, 2, 5, 8])
def test_cyclic_shift_invariance_shares_weights_along_the_whole_axis(m: int) -> None:  # equations 9 to 14
    printed = delta(m, lambda i, j: (i == j + 1) or (i == 1 and j == m))  # equation 10, which is right
    for transformation in (CyclicShift(), printed, np.arange(m) - 1 + m * (np.arange(m) == 0)):
        found = solve((3, m, 2), Invariant(transformation, 1))
        assert found.dimension == 3 * 1 * 2
        assert found.residual == 0
        weight = found.expand(integers(*found.free_shape))
        assert torch.equal(weight, weight[:, :1].expand(3, m, 2))


def test_the_printed_index_of_the_cyclic_shift_names_a_sample_that_is_not_there() -> None:  # equation 9
    m = 6
    right, printed = ([(t % m) + 1 for t in range(1, m + 1)], [(t + 1) % m for t in range(1, m + 1)])
    assert sorted(right) == list(range(1, m + 1))
    assert 0 in printed
    assert m not in printed
    # Read as it stands, with zero for the sample 0 that no axis has, no weight is left.
    only_zero((1, m), Invariant(np.array(printed) - 1, 1))
    assert solve((1, m), Invariant(np.array(right) - 1, 1)).dimension == 1


@pytest.mark.parametrize("n", [2, 5])
def test_shift_equivariance_is_a_lower_triangular_toeplitz_matrix(n: int) -> None:  # equations 17 to 22
    printed = delta(n, lambda i, j: i == j + 1)  # T^1 of equation 17
    for transformation in (printed, Shift(1)):
        found = solve((n, n), Equivariant(transformation, axes=1, out_axes=0))
        assert found.dimension == n
        assert found.residual == 0
        offset = torch.arange(n)[:, None] - torch.arange(n)
        first = found.index[:, :1].flatten()
        assert torch.equal(found.index, torch.where(offset >= 0, first[offset.clamp(min=0)], -1))
        assert len(set(first.tolist())) == n
    # The printed matrix is the transpose: it does not commute with the shift, and the right one does.
    upper = torch.where(offset <= 0, torch.arange(1.0, n + 1, dtype=torch.float64)[offset.abs()], 0)
    asked = Equivariant(printed, 1, 0)
    assert penalty(upper, asked) > 0
    assert penalty(upper.T, asked) == 0
    assert torch.equal(found.project(upper.T), upper.T)


@pytest.mark.parametrize(("n", "width"), [(5, 2), (6, 3), (7, 1)])
def test_two_shifts_leave_multiples_of_the_identity(n: int, width: int) -> None:  # equation 23, as printed
    back = delta(n, lambda i, j: i == j - width)  # T^-omega of equation 17
    found = solve((n, n), [Equivariant(Shift(1), 1, 0), Equivariant(back, 1, 0)])
    assert found.dimension == 1
    assert torch.equal(found.expand(torch.tensor([3.0])), 3 * torch.eye(n))
    offset = torch.arange(n) - torch.arange(n)[:, None]
    printed = torch.where((offset >= 0) & (offset < width), offset + 1.0, 0).double()  # the matrix of equation 23
    if width > 1:
        assert penalty(printed, [Equivariant(Shift(1), 1, 0), Equivariant(back, 1, 0)]) > 0


@pytest.mark.parametrize(("n", "width"), [(5, 2), (8, 3), (7, 7)])
def test_a_cyclic_shift_and_a_support_are_the_convolution(n: int, width: int) -> None:  # what equation 23 means
    offset = (torch.arange(n) - torch.arange(n)[:, None]) % n
    found = solve((n, n), Equivariant(CyclicShift(), 1, 0), support=offset < width)
    assert found.dimension == width
    kernel, x = integers(width), integers(1, 1, n, seed=1)
    free = torch.empty(width, dtype=torch.float64)
    free[found.index[0, :width]] = kernel
    around = torch.cat([x, x[..., : width - 1]], -1)  # the first sample follows the last
    expected = torch.nn.functional.conv1d(around, kernel[None, None])
    assert torch.equal(found.expand(free) @ x[0, 0], expected[0, 0])


@pytest.mark.parametrize(("n", "width"), [(5, 2), (8, 3), (6, 6)])
def test_the_interior_alone_and_a_support_are_the_convolution(n: int, width: int) -> None:
    outs = n - width + 1
    asked = Equivariant(Shift(1), 1, 0, interior=True)
    offset = torch.arange(n) - torch.arange(outs)[:, None]
    assert solve((outs, n), asked).dimension == outs + n - 1  # Toeplitz
    found = solve((outs, n), asked, support=(offset >= 0) & (offset < width))
    assert found.dimension == width
    kernel, x = integers(width), integers(1, 1, n, seed=1)
    free = torch.empty(width, dtype=torch.float64)
    free[found.index[0, :width]] = kernel
    weight = found.expand(free)
    assert torch.equal(weight @ x[0, 0], torch.nn.functional.conv1d(x, kernel[None, None])[0, 0])
    assert penalty(weight, asked) == 0
    assert penalty(weight, Equivariant(Shift(1), 1, 0)) > 0  # at the ends it does not hold


@pytest.mark.parametrize("m", [2, 5, 6])
def test_flip_ties_partners_on_the_two_sides(m: int) -> None:  # equations 24 to 26
    right = delta(m, lambda i, j: i == m - j + 1)
    for transformation in (Flip(), right, np.arange(m)[::-1].copy()):
        found = solve((4, m, 3), Invariant(transformation, 1))
        assert found.free_shape == (4, (m + 1) // 2, 3)
        assert found.residual == 0
        weight = found.expand(integers(*found.free_shape))
        assert torch.equal(weight, weight.flip(1))
    only_zero((4, m, 3), Invariant(delta(m, lambda i, j: i == j - m + 1), 1))  # equation 24 as printed


@pytest.mark.parametrize(("m", "factor"), [(12, 3), (8, 2), (10, 5), (6, 1)])
def test_down_scaling_makes_blocks_of_equal_weights(m: int, factor: int) -> None:  # equations 27 to 30
    found = solve((2, m), Invariant(DownScale(factor), 1))
    assert found.dimension == 2 * (m // factor)
    assert found.residual < 1e-15
    assert found.factors[0].index is not None
    assert found.factors[0].index.tolist() == [i // factor for i in range(m)]


@pytest.mark.parametrize("printed", [12, 3, 2])  # the 1/n_1 of equation 27, the 1/m_1 of 28; 1/S is no better
def test_the_printed_down_scaling_leaves_zero_alone(printed: int) -> None:
    m, factor = 12, 3
    shrinking = delta(m, lambda i, j: factor * (i - 1) < j <= factor * i) / printed
    only_zero((2, m), Invariant(shrinking, 1))


def test_translation_and_down_scaling_together() -> None:  # equations 31 and 32
    asked = [Invariant(CyclicShift(), 0), Invariant(DownScale(3), 1)]
    found = solve((4, 12), asked)
    assert found.dimension == 4
    weight = found.expand(torch.tensor([[1.0, 2.0, 3.0, 4.0]], dtype=torch.float64))
    assert torch.equal(weight, torch.arange(1.0, 5).repeat_interleave(3).expand(4, 12).double())
    assert penalty(weight, asked) < 1e-25
    m, factor = 12, 3
    only_zero((4, m), [asked[0], Invariant(delta(m, lambda i, j: factor * (i - 1) < j <= factor * i) / m, 1)])


def test_a_bias_is_free_under_invariance_and_tied_under_equivariance() -> None:  # section 6
    n = 6
    weight = solve((n, n), Equivariant(CyclicShift(2), 1, 0)).project(integers(n, n) * 3)  # orbits of 3
    x = integers(n, seed=1)
    roll = Equivariant(CyclicShift(2), 1, 0).transformation
    assert callable(roll)
    free, tied = integers(n, seed=2), torch.tensor([1.0, 4.0] * 3, dtype=torch.float64)

    def layer(x: Tensor, bias: Tensor) -> Tensor:
        return torch.relu(weight @ x + bias)

    def moved(x: Tensor) -> Tensor:
        made: Tensor = roll(x[None])[0]
        return made

    assert torch.equal(layer(moved(x), tied), moved(layer(x, tied)))
    assert not torch.equal(layer(moved(x), free), moved(layer(x, free)))
    mirrored = solve((3, n), Invariant(Flip(), 1)).project(integers(3, n) * 2)
    assert torch.equal(torch.relu(mirrored @ x.flip(0) + 5), torch.relu(mirrored @ x + 5))


def test_an_activation_that_is_not_pointwise_breaks_equivariance() -> None:  # section 6
    weight, x = solve((4, 4), Equivariant(CyclicShift(), 1, 0)).project(integers(4, 4) * 4), integers(4, seed=3)
    assert torch.equal((weight @ x.roll(1)).relu(), (weight @ x).relu().roll(1))
    assert not torch.equal((weight @ x.roll(1)).cumsum(0), (weight @ x).cumsum(0).roll(1))


def test_the_flip_invariant_layer_of_section_5() -> None:
    shape = (6 * 6 * 113, 256, 6, 6)
    found = solve(shape, Invariant(Flip(), "w"), names="nchw")
    assert shape[0] == 4068
    assert 6 * 113 != 4068  # as printed
    assert found.dimension == 18_745_344
    assert found.dimension != 4068 // 2  # the paper's "2034 free parameters"


def test_the_examples_of_the_documentation() -> None:
    results = doctest.testmod(densify.symmetry)
    assert results.attempted > 5
    assert results.failed == 0
