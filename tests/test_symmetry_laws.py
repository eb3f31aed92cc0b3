"""The solver of symmetries against brute force: exact ranks, orbits counted by Burnside, projections, refusals."""

from __future__ import annotations

import math
from collections.abc import Sequence
from fractions import Fraction
from itertools import product
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from densify.errors import SymmetryError, ZeroSolutionWarning
from densify.symmetry import (
    Constraint,
    CyclicShift,
    DownScale,
    Equivariant,
    Flip,
    Invariant,
    Rotate90,
    Shift,
    penalty,
    solve,
    sparse,
)

pytestmark = pytest.mark.filterwarnings("ignore::densify.errors.ZeroSolutionWarning")

Matrix = np.ndarray[Any, Any]


def exact_rank(matrix: Matrix) -> int:
    """Rank by elimination in rational numbers."""
    rows = [[Fraction(float(number)) for number in row] for row in matrix]
    rank = 0
    for column in range(matrix.shape[1]):
        pivot = next((r for r in range(rank, len(rows)) if rows[r][column]), None)
        if pivot is None:
            continue
        rows[rank], rows[pivot] = rows[pivot], rows[rank]
        for r in range(rank + 1, len(rows)):
            factor = rows[r][column] / rows[rank][column]
            rows[r] = [a - factor * b for a, b in zip(rows[r], rows[rank], strict=True)]
        rank += 1
    return rank


def equations(pairs: Sequence[tuple[Matrix, Matrix]]) -> Matrix:
    """T'w - wT = 0 for every (T', T), w flattened row by row: written independently of the solver."""
    parts = [np.kron(left, np.eye(len(right))) - np.kron(np.eye(len(left)), right.T) for left, right in pairs]
    return np.concatenate(parts)


def matrix_of(index: Sequence[int]) -> Matrix:
    """(Tx)[i] = x[index[i]]."""
    made = np.zeros((len(index), len(index)))
    for row, column in enumerate(index):
        if column >= 0:
            made[row, column] = 1
    return made


def integers(*shape: int, times: int = 1, seed: int = 0) -> Tensor:
    return times * torch.randint(-9, 10, shape, generator=torch.Generator().manual_seed(seed)).double()


def orbit_lengths(index: Tensor) -> int:
    """A number that every orbit's length divides: means over orbits of its multiples are exact."""
    counts = index.flatten()[index.flatten() >= 0].bincount()
    return math.lcm(*counts.tolist()) if len(counts) else 1


partial = st.integers(2, 5).flatmap(  # index arrays, some with zeros or repetitions
    lambda n: st.one_of(st.permutations(range(n)), st.lists(st.integers(-1, n - 1), min_size=n, max_size=n))
)
small_matrices = st.integers(1, 3).flatmap(
    lambda n: st.lists(st.integers(-2, 2), min_size=n * n, max_size=n * n).map(
        lambda numbers: np.array(numbers, dtype=float).reshape(n, n)
    )
)


# ---- dimension -----------------------------------------------------------------------------------


@settings(max_examples=60)
@given(st.lists(partial, min_size=1, max_size=2), st.integers(1, 3))
def test_dimension_of_invariance_is_the_exact_rank_that_is_missing(indices: list[list[int]], rows: int) -> None:
    n = len(indices[0])
    same = [index for index in indices if len(index) == n]
    found = solve((rows, n), [Invariant(np.array(index), 1) for index in same])
    matrix = equations([(np.eye(rows), matrix_of(index)) for index in same])
    assert found.dimension == rows * n - exact_rank(matrix)
    assert found.residual < 1e-12


@settings(max_examples=60)
@given(partial, partial, st.booleans())
def test_dimension_of_equivariance_is_the_exact_rank_that_is_missing(
    left: list[int], right: list[int], support: bool
) -> None:
    shape = (len(left), len(right))
    mask = torch.arange(math.prod(shape)).reshape(shape) % 3 != 1 if support else None
    found = solve(shape, Equivariant(np.array(right), 1, 0, out=np.array(left)), support=mask)
    matrix = equations([(matrix_of(left), matrix_of(right))])
    if mask is not None:
        matrix = np.concatenate([matrix, np.eye(math.prod(shape))[~mask.flatten().numpy()]])
    assert found.dimension == math.prod(shape) - exact_rank(matrix)
    if mask is not None:
        assert not found.project(integers(*shape))[~mask].any()


@settings(max_examples=60)
@given(small_matrices, small_matrices)
def test_any_matrix_against_exact_elimination(left: Matrix, right: Matrix) -> None:
    shape = (len(left), len(right))
    system = equations([(left, right)])
    found = solve(shape, Equivariant(right, 1, 0, out=left))
    assert found.dimension == math.prod(shape) - exact_rank(system)
    assert found.residual < 1e-12
    weight = found.project(integers(*shape))
    assert np.abs(left @ weight.numpy() - weight.numpy() @ right).max() < 1e-12
    assert torch.allclose(found.project(weight), weight, rtol=1e-12, atol=1e-12)
    basis = found.factors[0].basis.dense()
    assert torch.allclose(basis.T @ basis, torch.eye(found.dimension, dtype=torch.float64), atol=1e-12)


def test_the_exact_rank_sees_what_it_should() -> None:
    assert exact_rank(np.array([[1.0, 2, 3], [2, 4, 6], [0, 0, 1]])) == 2
    shift, other = matrix_of([1, 2, 0]), matrix_of([1, 0, 2])
    assert 9 - exact_rank(equations([(shift, shift)])) == 3
    assert 9 - exact_rank(equations([(shift, other)])) != solve((3, 3), Equivariant(shift, 1, 0)).dimension
    assert exact_rank(equations([(shift, shift.T)])) == exact_rank(equations([(shift.T, shift)]))


@pytest.mark.parametrize("sign", [1, -1])
def test_orthogonal_matrices_of_floating_point_numbers(sign: int) -> None:
    generator = torch.Generator().manual_seed(3)
    turn = torch.linalg.qr(torch.randn(5, 5, generator=generator, dtype=torch.float64)).Q * sign
    found = solve((5, 5), Equivariant(turn, 1, 0))  # commutes with it: its 5 different eigenvalues are free
    assert found.dimension == 5
    assert not found.tied
    assert found.residual < 1e-14
    with pytest.raises(ValueError, match="combinations of free ones"):
        _ = found.index
    angle = 0.3
    plane = torch.tensor([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]]).double()
    small = solve((2, 2), Equivariant(plane, 1, 0))  # [[a, -b], [b, a]]: as ties
    assert small.index.tolist() == [[0, 1], [1, 0]]
    assert small.sign[0, 0] == small.sign[1, 1]
    assert small.sign[0, 1] == -small.sign[1, 0]


# ---- rounding ------------------------------------------------------------------------------------


def turned(angle: float) -> Matrix:
    return np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])


def mirrored_by_sampling(x: Tensor) -> Tensor:
    """[B, H, W] mirrored by interpolation: the flip and noise of rounding size."""
    mirror = torch.tensor([[[-1.0, 0, 0], [0, 1, 0]]], dtype=x.dtype).expand(len(x), 2, 3)
    grid = nn.functional.affine_grid(mirror, [len(x), 1, *x.shape[1:]], align_corners=False)
    return nn.functional.grid_sample(x[:, None], grid, align_corners=False)[:, 0]


QUARTERS = [Equivariant(turned(k * math.pi / 2), 1, 0) for k in range(4)]
THIRDS = [Equivariant(np.linalg.matrix_power(turned(2 * math.pi / 3), k), 1, 0) for k in (1, 2, 3)]
ORTHOGONAL = np.linalg.qr(np.random.default_rng(0).standard_normal((6, 6)))[0]
NOISE = 1e-17 * np.random.default_rng(0).standard_normal((6, 6))


@pytest.mark.parametrize(
    ("shape", "constraints", "rtol", "dimension"),
    [
        ((3, 3), Invariant(mirrored_by_sampling, (0, 1)), 1e-10, 6),
        ((5, 7), Invariant(mirrored_by_sampling, (0, 1)), 1e-10, 20),
        ((2, 2), QUARTERS, 1e-10, 2),
        ((2, 2), THIRDS, 1e-10, 2),
        ((6,), Invariant(ORTHOGONAL.T @ ORTHOGONAL, 0), 1e-10, 6),
        ((3,), Invariant(np.diag([1, 1 + 1e-9, 1 + 1e-9]), 0), 1e-4, 3),
        ((3,), Invariant(np.diag([1, 1 + 1e-9, 1 + 1e-9]), 0), 1e-10, 1),
        ((6, 6), Equivariant(np.eye(6, k=-1) + NOISE, 1, 0, interior=True), 1e-10, 11),
        ((6, 6), Equivariant(np.eye(6, k=-1) + 1e7 * NOISE, 1, 0, interior=True), 1e-6, 11),
        # the scale is that of each constraint: neither the large nor the small one hides the other
        ((3, 3), [Equivariant(1e-12 * np.eye(3)[[1, 2, 0]], 1, 0), Equivariant(1e12 * np.eye(3)[[1, 0, 2]], 1, 0)],
         1e-10, 2),
    ],
)  # fmt: skip
def test_terms_of_rounding_size_ask_for_nothing(shape: Any, constraints: Any, rtol: float, dimension: int) -> None:
    found = solve(shape, constraints, rtol=rtol)
    assert found.dimension == dimension


def test_the_residual_is_that_of_all_terms() -> None:
    found = solve((3,), Invariant(np.diag([1, 1 + 1e-9, 1 + 1e-9]), 0), rtol=1e-4)
    assert found.residual == pytest.approx(1e-9, rel=1e-6)
    assert solve((6,), Invariant(ORTHOGONAL.T @ ORTHOGONAL, 0)).residual > 0
    assert solve((6,), Invariant(Flip(), 0)).residual == 0


def test_penalties_of_the_interior_pass_over_rounding() -> None:
    weight = torch.arange(36.0, dtype=torch.float64).reshape(6, 6)
    noisy, shift = (Equivariant(np.eye(6, k=-1) + noise, 1, 0, interior=True) for noise in (NOISE, 0))
    assert float(penalty(weight, noisy)) == pytest.approx(float(penalty(weight, shift)), rel=1e-12)


# ---- orbits --------------------------------------------------------------------------------------


def group(generators: Sequence[tuple[int, ...]]) -> set[tuple[int, ...]]:
    """All permutations that these make, by composition."""
    found = {tuple(range(len(generators[0])))}
    edge = set(found)
    while edge:
        edge = {tuple(a[i] for i in b) for a, b in product(edge, generators)} - found
        found |= edge
    return found


def burnside(elements: set[tuple[int, ...]]) -> int:
    """Number of orbits: the mean number of places that an element leaves where they are."""
    fixed = sum(sum(i == image for i, image in enumerate(element)) for element in elements)
    assert fixed % len(elements) == 0
    return fixed // len(elements)


@settings(max_examples=40)
@given(st.integers(2, 6).flatmap(lambda n: st.lists(st.permutations(range(n)), min_size=1, max_size=2)))
def test_orbits_are_as_many_as_burnside_counts(generators: list[list[int]]) -> None:
    n = len(generators[0])
    elements = group([tuple(g) for g in generators])
    found = solve((1, n), [Invariant(np.array(g), 1) for g in generators])
    assert found.dimension == burnside(elements)
    pairs = {tuple(element[i] * n + element[j] for i in range(n) for j in range(n)) for element in elements}
    both = solve((n, n), [Equivariant(np.array(g), 1, 0) for g in generators])
    assert both.dimension == burnside(pairs)
    assert both.residual == found.residual == 0


def test_burnside_counts_what_it_should() -> None:
    turns = group([(1, 2, 3, 0)])
    assert len(turns) == 4
    assert burnside(turns) == 1
    assert burnside(group([(1, 0, 2, 3)])) == 3
    with pytest.raises(AssertionError):
        burnside(turns - {(0, 1, 2, 3)} | {(0, 1, 3, 2)})  # no group


@pytest.mark.parametrize("n", [3, 4, 7])
def test_the_square_and_its_turns(n: int) -> None:
    turned = solve((2, n, n), Invariant(Rotate90(), (1, 2)))
    assert turned.dimension == 2 * ((n * n + 3) // 4)
    both = solve((2, n, n), [Invariant(Rotate90(), (1, 2)), Invariant(Flip(), 2)])
    half = (n + 1) // 2
    assert both.dimension == 2 * (half * (half + 1) // 2)
    weight = both.project(integers(2, n, n, times=8))
    for image in (weight.rot90(1, (1, 2)), weight.flip(1), weight.flip(2), weight.transpose(1, 2)):
        assert torch.equal(image, weight)


def test_signs_come_with_the_ties() -> None:
    odd = solve((2, 5), Invariant(-torch.eye(5).flip(0), 1))
    assert odd.factors[0].dimension == 2
    assert odd.sign[0].tolist() == [1, 1, 0, -1, -1]
    assert odd.index[0].tolist() == [0, 1, -1, 1, 0]
    weight = odd.project(integers(2, 5, times=2))
    assert torch.equal(weight, -weight.flip(1))


def test_permutations_of_many_samples_are_solved() -> None:
    n = 200_000
    index = torch.randperm(n, generator=torch.Generator().manual_seed(0))
    found = solve((2, n), Invariant(index, 1))
    assert found.residual == 0
    weight = found.expand(integers(*found.free_shape))
    assert torch.equal(weight[:, index], weight)
    assert solve((3, n), Invariant(Flip(), 1)).dimension == 3 * n // 2


# ---- projection ----------------------------------------------------------------------------------


@settings(max_examples=40)
@given(st.permutations(range(5)), st.permutations(range(4)), st.integers(0, 100))
def test_projections_are_exact_and_idempotent(right: list[int], left: list[int], seed: int) -> None:
    found = solve((4, 2, 5), Equivariant(np.array(right), 2, 0, out=np.array(left)))
    weight = integers(4, 2, 5, times=orbit_lengths(found.index), seed=seed)
    nearest = found.project(weight)
    assert torch.equal(nearest[left], nearest[..., np.argsort(right)])  # T'w = wT
    assert torch.equal(found.project(nearest), nearest)
    assert torch.equal(found.expand(found.coordinates(nearest)), nearest)
    other = found.expand(integers(*found.free_shape, seed=seed + 1))
    assert float(((weight - nearest) * other).sum()) == 0  # what is taken away is at right angles to what has it
    expanded = found.expand(torch.arange(found.dimension).reshape(found.free_shape))
    assert torch.equal(expanded, found.index)


def test_a_wrong_permutation_is_seen() -> None:
    found = solve((4, 5), Invariant(np.array([1, 2, 3, 4, 0]), 1))
    weight = found.project(integers(4, 5, times=5))
    assert penalty(weight, Invariant(np.array([1, 2, 3, 4, 0]), 1)) == 0
    flipped = solve((4, 5), Invariant(Flip(), 1)).project(integers(4, 5, times=2))
    assert penalty(flipped, Invariant(np.array([1, 2, 3, 4, 0]), 1)) > 0


# ---- axes ----------------------------------------------------------------------------------------


def test_axes_that_share_no_constraint_are_solved_apart() -> None:
    asked: list[Constraint] = [Invariant(Flip(), 1), Invariant(CyclicShift(), 3), Equivariant(Flip(), 2, 0)]
    found = solve((3, 4, 5, 6), asked)
    assert [factor.axes for factor in found.factors] == [(0, 2), (1,), (3,)]
    assert found.free_shape == (8, 2, 1)
    weight = found.expand(integers(*found.free_shape))
    assert torch.equal(weight, weight.flip(1))
    assert torch.equal(weight, weight[..., :1].expand(3, 4, 5, 6))
    assert torch.equal(weight.flip(0), weight.flip(2))
    assert penalty(weight, asked) == 0


def test_joint_transformations_and_those_of_one_axis_agree() -> None:
    shape = (2, 4, 6)
    one_by_one = solve(shape, [Invariant(Flip(), 1), Invariant(DownScale(3), 2)])

    def mirrored(x: Tensor) -> Tensor:
        return x.flip(1)

    together = solve(shape, [Invariant(mirrored, (1, 2)), Invariant(DownScale(3), 2)])
    assert together.dimension == one_by_one.dimension == 2 * 2 * 2
    weight = integers(*shape, times=6)
    assert torch.equal(one_by_one.project(weight), together.project(weight))
    transposed = solve((2, 6, 4), [Invariant(mirrored, (2, 1)), Invariant(DownScale(3), 1)])
    assert torch.equal(transposed.project(weight.transpose(1, 2)), together.project(weight).transpose(1, 2))


def test_names_and_numbers_of_axes_mean_the_same() -> None:
    by_name = solve((4, 3, 5, 6), [Invariant(Flip(), "w"), Invariant(Flip(), ["h"])], names="nchw")
    by_number = solve((4, 3, 5, 6), [Invariant(Flip(), -1), Invariant(Flip(), 2)])
    assert torch.equal(by_name.index, by_number.index)


# ---- what transformations are given as -----------------------------------------------------------


@pytest.mark.filterwarnings("ignore:Sparse CSC tensor support is in beta state:UserWarning")  # torch's own
def test_all_ways_to_give_a_transformation_agree() -> None:
    index = np.array([2, 0, -1, 1])
    matrix = matrix_of(index.tolist())
    dense = torch.from_numpy(matrix)

    def function(x: Tensor) -> Tensor:
        return x @ dense.T

    def in_numpy(x: Tensor) -> Any:
        return x.numpy() @ matrix.T

    ways = [
        index, torch.from_numpy(index), index.tolist(), matrix, matrix.tolist(), dense, dense.float(),
        dense.to_sparse(), dense.to_sparse_csc(), function, in_numpy, sparse(index, [4]),
    ]  # fmt: skip
    x = integers(3, 4)
    for way in ways:
        found = sparse(way, [4])
        assert torch.equal(found.dense(), dense), way
        assert torch.equal(found.applied(x), x @ dense.T)
        assert torch.equal(found.applied_from_right(x), x @ dense)
        assert torch.equal((found @ found).dense(), dense @ dense)


def test_scipy_matrices_are_taken_where_there_is_scipy() -> None:
    scipy_sparse = pytest.importorskip("scipy.sparse")
    for kind in (scipy_sparse.csr_matrix, scipy_sparse.coo_array):
        assert solve((2, 5), Invariant(kind(np.eye(5)[::-1]), 1)).dimension == 6
    twice = scipy_sparse.coo_matrix(([1.0, 1.0, 4.0], ([0, 0, 1], [1, 1, 0])), (2, 2))  # entries of one place add up
    assert sparse(twice, [2]).dense().tolist() == [[0, 2], [4, 0]]


def test_functions_that_mix_samples_become_matrices() -> None:
    def smooth(x: Tensor) -> Tensor:
        return (x + x.roll(1, 1) + x.roll(-1, 1)) / 3

    n = 7
    expected = (torch.eye(n) + torch.eye(n).roll(1, 0) + torch.eye(n).roll(-1, 0)).double() / 3
    assert torch.equal(sparse(smooth, [n]).dense(), expected)
    assert solve((2, n), Invariant(smooth, 1)).dimension == 2  # constant weights
    assert torch.equal(sparse(lambda x: 2 * x, [3]).dense(), 2 * torch.eye(3).double())
    big = 3000  # more numbers than are looked at together
    found = sparse(lambda x: x - 2 * x.roll(1, 1), [big])
    assert len(found.values) == 2 * big
    assert torch.equal(found.applied(torch.arange(big).double()), torch.arange(big) - 2 * torch.arange(big).roll(1))


@pytest.mark.parametrize("steps", [-2, 1, 9])
def test_shifts_read_zeros_at_the_ends(steps: int) -> None:
    x = integers(2, 5, 4)
    moved = Shift(steps)(x)
    for i, j in product(range(5), range(4)):
        inside = 0 <= i - steps < 5 and 0 <= j - steps < 4
        assert torch.equal(moved[:, i, j], x[:, i - steps, j - steps] if inside else torch.zeros(2).double())


# ---- the soft constraint -------------------------------------------------------------------------


def test_the_penalty_is_the_square_of_what_is_missing_and_differentiable() -> None:
    weight = integers(3, 2, 5).requires_grad_()
    shift, mirror = torch.from_numpy(matrix_of([1, 2, 3, 4, 0])), torch.from_numpy(matrix_of([2, 1, 0]))
    asked: list[Constraint] = [Invariant(sparse(DownScale(5), [5]), 2), Equivariant(shift, 2, 0, out=mirror)]
    means = weight.mean(2, keepdim=True)
    expected = (weight - means).square().sum()
    expected = expected + (torch.einsum("ij,jck->ick", mirror, weight) - weight @ shift).square().sum()
    assert torch.allclose(penalty(weight, asked), expected, rtol=1e-14)
    assert torch.autograd.gradcheck(lambda w: penalty(w, asked), weight)
    solution = solve(weight.shape, asked)
    start = penalty(weight, asked)
    for _ in range(100):
        weight = (weight - 0.1 * torch.autograd.grad(penalty(weight, asked), weight)[0]).detach().requires_grad_()
    assert penalty(weight, asked) < 1e-12 * start
    assert torch.allclose(weight, solution.project(integers(3, 2, 5)), atol=1e-6)  # the nearest one


def test_penalties_of_the_interior_leave_the_ends_alone() -> None:
    weight = torch.arange(12.0).reshape(3, 4)
    asked = Equivariant(Shift(), 1, 0, interior=True)
    expected = sum(float(weight[j, i] - weight[j + 1, i + 1]) ** 2 for j in range(2) for i in range(3))
    assert float(penalty(weight, asked)) == expected


# ---- refusals ------------------------------------------------------------------------------------

FLOATS = np.array([1.0, 0.0, 2.0, 3.0])


@pytest.mark.parametrize(
    ("constraint", "reason"),
    [
        (Invariant(np.array([1, 0]), 1), r"the index array: it has shape \(2,\), and acts on axes of 4 samples"),
        (Invariant(np.eye(3), 1), r"the matrix: it has shape \(3, 3\).*Give a matrix of 4 x 4"),
        (Invariant(np.ones((4, 4, 4)), 1), r"it has shape \(4, 4, 4\)"),
        (Invariant(np.array([0, 1, 2, 4]), 1), "it names places from 0 to 4 of an axis of 4 samples"),
        (Invariant(FLOATS, 1), "it holds float64. Give integers"),
        (Invariant(np.eye(4) * 1j, 1), "complex or not finite"),
        (Invariant(np.full((4, 4), np.nan), 1), "complex or not finite"),
        (Invariant(DownScale(3), 1), "down-scale by 3: an axis of 4 samples has no blocks of 3"),
        (Invariant(Rotate90(), (0, 1)), r"rotation by 90 degrees: it makes \(.*quarter turns need a square"),
        (Invariant(Rotate90(), 1), "it turns two axes, not 1"),
        (Invariant(lambda x: x[:, 1:], 1), r"it makes \(3, 3\) of \(3, 4\)"),
        (Invariant(lambda x: x * x, 1), "it is not linear"),
        (Invariant(torch.rand_like, 1), "rand_like: it is not linear, or draws random numbers"),
        (Invariant(lambda x: x + torch.nan, 1), "not finite"),
        (Invariant(lambda x: x * (1 + 5j), 1), "it makes torch.complex128 of float64"),
        ([Invariant(Flip(), 1)], "it is no constraint.*a flat list of them"),
        (Flip(), r"Flip\(\): it is no constraint"),
        (Invariant(lambda x: x.reshape(3, 3, 3), 1), "fails on a float64 tensor"),
        (Invariant(Flip(), 2), r"flip: the weight has no axis 2: its shape is \(3, 4\) without names"),
        (Invariant(Flip(), "w"), "no axis 'w'"),
        (Invariant(Flip(), ()), r"it acts on axes \[\]"),
        (Invariant(Flip(), (1, -1)), r"it acts on axes \[1, -1\]"),
        (Equivariant(Flip(), 1, 1), r"axes \[1\] of the weight would read and write"),
        (Equivariant(np.arange(4), 1, 0), r"it has shape \(4,\), and acts on axes of 3 samples"),
    ],
)
def test_what_does_not_fit_is_refused_with_reason_and_remedy(constraint: Any, reason: str) -> None:
    with pytest.raises(SymmetryError, match=f"(?s){reason}"):
        solve((3, 4), [constraint])
    with pytest.raises(SymmetryError, match=f"(?s){reason}"):
        penalty(torch.ones(3, 4), [constraint])


@pytest.mark.parametrize("transformation", [Flip(), Shift(), np.empty((0, 0))])
def test_axes_without_samples_are_refused(transformation: Any) -> None:
    with pytest.raises(SymmetryError, match=r"it acts on axes of sizes \(0,\): there are no samples"):
        solve((0, 3), Invariant(transformation, 0))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_matrices_of_few_bits_are_taken(dtype: torch.dtype) -> None:
    mirror = torch.eye(4).flip(0).to(dtype)
    for matrix in (mirror, mirror.to_sparse()):
        assert torch.equal(solve((2, 4), Invariant(matrix, 1)).index, solve((2, 4), Invariant(Flip(), 1)).index)


def test_names_supports_and_sizes_that_do_not_fit_are_refused() -> None:
    with pytest.raises(SymmetryError, match="do not name its 2 axes"):
        solve((3, 4), Invariant(Flip(), "w"), names="chw")
    with pytest.raises(SymmetryError, match=r"no axis 'x'.*named \['n', 'w'\]"):
        solve((3, 4), Invariant(Flip(), "x"), names="nw")
    with pytest.raises(SymmetryError, match="it holds float32"):
        solve((3, 4), [], support=torch.ones(3, 4))
    with pytest.raises(SymmetryError, match=r"its shape \(4, 3\) cannot be broadcast"):
        solve((3, 4), [], support=torch.ones(4, 3, dtype=torch.bool))
    generator = torch.Generator().manual_seed(0)
    mixing = torch.randn(70, 70, generator=generator, dtype=torch.float64)
    with pytest.raises(SymmetryError, match="its equations tie 4900 weights together"):
        solve((70, 70), Equivariant(mixing, 1, 0))


def test_only_zero_is_said() -> None:
    with pytest.warns(ZeroSolutionWarning, match=r"only w = 0 of shape \(2, 3\).*the matrix on axes \[1\]"):
        found = solve((2, 3), Invariant(2 * np.eye(3), 1))
    assert found.only_zero
    with pytest.warns(ZeroSolutionWarning, match="the support"):
        assert solve((2, 3), [], support=torch.zeros(1, dtype=torch.bool)).only_zero
    assert not solve((2, 3), [], support=torch.tensor([True, False, True])).only_zero
    single = torch.full((3, 3), 1 / 3)  # in float32: no projector to 1e-10
    with pytest.warns(ZeroSolutionWarning, match="larger rtol"):
        solve((2, 3), Invariant(single, 1))
    assert solve((2, 3), Invariant(single, 1), rtol=1e-6).dimension == 2
