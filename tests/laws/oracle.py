"""The oracle of one op: the square ``sample(dense_op(X)) == op(sample(X))``, and what else the laws ask of it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import product
from math import lcm, prod
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from densify.lattice import Axis, Field, Lattice
from densify.layers import eavg_pool, econv, emax_pool
from densify.maps import Map
from densify.ops import (
    AvgPool,
    Conv,
    DenseWindowed,
    MaxPool,
    Windowed,
)
from densify.rules import rewrite
from laws.fragments import Fragments as Parts
from laws.fragments import convolved
from laws.windows import Geometry, Kind

_CONV = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}
_MAX = {1: F.max_pool1d, 2: F.max_pool2d, 3: F.max_pool3d}
_AVG: dict[int, Callable[..., Tensor]] = {1: F.avg_pool1d, 2: F.avg_pool2d, 3: F.avg_pool3d}


@dataclass(frozen=True)
class Weights:
    """A convolution's parameters; both None for a pooling."""

    weight: Tensor | None = None
    bias: Tensor | None = None
    groups: int = 1


def integers(*shape: int, low: int = -3, high: int = 4) -> Tensor:
    """Small integers in float64, on which sums and products are exact; many of them tie."""
    return torch.randint(low, high, shape).double()


def weights_for(op: Windowed, groups: int, channels: int = 4, outputs: int = 4) -> Weights:
    """Random small integers as a convolution's parameters."""
    if not isinstance(op, Conv):
        return Weights()
    return Weights(integers(outputs, channels // groups, *(w.kernel for w in op.windows)), integers(outputs), groups)


def divisible_by(op: Windowed) -> int:
    """A number whose multiples every divisor of an average pooling divides, so that averages are exact integers."""
    if not isinstance(op, AvgPool):
        return 1
    return op.divisor or prod(lcm(*range(1, w.kernel + 1)) for w in op.windows)


def run_original(op: Windowed, x: Tensor, given: Weights) -> Tensor:
    """The op as torch itself has it."""
    count, windows = len(op.windows), op.windows
    kernel, stride = [w.kernel for w in windows], [w.stride for w in windows]
    dilation, padding = [w.dilation for w in windows], [w.low for w in windows]
    if isinstance(op, Conv):
        assert given.weight is not None
        x = F.pad(x, [side for w in reversed(windows) for side in (w.low, w.high)])
        return _CONV[count](x, given.weight, given.bias, stride, 0, dilation, given.groups)
    assert all(w.low == w.high for w in windows)
    ceil = windows[0].ceil
    if isinstance(op, MaxPool):
        return _MAX[count](x, kernel, stride, padding, dilation, ceil)
    assert isinstance(op, AvgPool)
    if count == 1:
        return _AVG[1](x, kernel, stride, padding, ceil, op.count_include_pad)
    return _AVG[count](x, kernel, stride, padding, ceil, op.count_include_pad, op.divisor)


def run_dense(op: DenseWindowed, x: Tensor, given: Weights, sizes: Sequence[int] | None = None) -> Tensor:
    """The op that the rule put there, by densify's own layers."""
    if isinstance(op.op, Conv):
        assert given.weight is not None
        return econv(x, given.weight, given.bias, op.windows, given.groups)
    if isinstance(op.op, MaxPool):
        return emax_pool(x, op.windows, sizes)
    assert isinstance(op.op, AvgPool)
    return eavg_pool(x, op.windows, op.op.count_include_pad, op.op.divisor, sizes)


DenseRun = Callable[[DenseWindowed, Tensor, Weights, Sequence[int] | None], Tensor]


def sample(x: Tensor, lattices: Sequence[Lattice], sizes: Sequence[int]) -> Tensor:
    """The original's samples: ``original[i] == dense[offset + i * stride]``."""
    grid = (slice(o, o + e * (n - 1) + 1, e) for (e, o), n in zip(lattices, sizes, strict=True))
    index: tuple[Any, ...] = (..., *grid)
    return x[index]


def check_square(
    op: Windowed,
    lattice: Sequence[Lattice],
    size: Sequence[int],
    *,
    given: Weights | None = None,
    padding: str = "full",
    extra: Sequence[int] = (),
    dense: DenseRun = run_dense,
) -> None:
    """Assert laws 1, 2, 3 and 5 of one op, exactly, on small integers.

    Args:
        op: the original's op, with the strides to remove.
        lattice: of the input, per spatial axis.
        size: the original's spatial size.
        given: a convolution's parameters.
        padding: "full", "valid" or "same".
        extra: dense samples that the input lacks of e * n, where the padding is not "full".
        dense: how the dense op is run; tests of the oracle give it a wrong one.
    """
    given = given if given is not None else weights_for(op, 1)
    lengths = [o + e * n - missing for (e, o), n, missing in zip(lattice, size, extra or (0,) * len(size), strict=True)]
    channels = given.weight.shape[1] * given.groups if given.weight is not None else 2
    x = integers(2, channels, *lengths) * divisible_by(op)
    source = Map(
        tuple(
            Axis(n, length, one, one.stride, Field(0, 0), (False,) * length)
            for n, length, one in zip(size, lengths, lattice, strict=True)
        )
    )
    answer = rewrite(op, source, padding=padding)
    assert isinstance(answer.op, DenseWindowed)
    expected = run_original(op, sample(x, lattice, size), given)
    sizes = tuple(axis.size for axis in answer.map.axes)
    assert sizes == tuple(expected.shape[2:]), "the rule counts other windows than torch"
    with torch.no_grad():
        made = dense(answer.op, x, given, size)
    assert tuple(made.shape[2:]) == tuple(axis.dense for axis in answer.map.axes), "the plan expects another size"
    _equal(sample(made, answer.map.lattices, sizes), expected, "law 1")
    if padding == "full":
        assert tuple(made.shape[2:]) == tuple(e * n for (e, _), n in zip(answer.map.lattices, sizes, strict=True))
        _check_phases(op, x, given, lattice, answer.map, made)
    _check_gradient(op, x, given, lattice, size, answer.op, answer.map, made, dense)


def _equal(made: Tensor, expected: Tensor, law: str) -> None:
    assert torch.isfinite(made).all(), f"{law}: not finite"
    assert torch.equal(made, expected), f"{law}: off by {(made - expected).abs().max().item()}"


def kind_of(op: Windowed, given: Weights) -> Kind:
    """The op's description for the fragments."""
    if isinstance(op, Conv):
        return Kind("conv", given.weight, given.bias, given.groups)
    if isinstance(op, AvgPool):
        return Kind("avg", count_include_pad=op.count_include_pad, divisor=op.divisor)
    return Kind("max")


def _check_phases(
    op: Windowed, x: Tensor, given: Weights, lattice: Sequence[Lattice], result: Map, made: Tensor
) -> None:
    est, geometry = [e for e, _ in lattice], [Geometry(*w) for w in op.windows]
    sizes = [length // e for length, e in zip(x.shape[2:], est, strict=True)]
    chosen = op.chosen or (False,) * len(est)
    parts = {
        phase: sample(x, [Lattice(e, r) for e, r in zip(est, phase, strict=True)], sizes)
        for phase in product(*(range(e) for e in est))
    }
    result_est = tuple(e for e, _ in result.lattices)
    fragments = convolved(kind_of(op, given), geometry, Parts(parts, tuple(est), (1,) * len(est)), chosen, result_est)
    _equal(made, Parts(fragments, result_est, (1,) * len(est)).dense(), "law 3")
    for axis, (g, e, take, e2) in enumerate(zip(geometry, est, chosen, result_est, strict=True)):
        n = x.shape[2 + axis] // e
        fresh = max(g.fitting(n), (g.count(n) - 1) * g.stride + 1)
        firsts = [r // e if take else r * g.stride // e for r in range(e2)]
        repeated = tuple(firsts[t % e2] + t // e2 * g.stride >= fresh for t in range(e2 * g.count(n)))
        assert result.axes[axis].repeated == repeated, "the far side is reported wrongly"


def _check_gradient(
    op: Windowed,
    x: Tensor,
    given: Weights,
    lattice: Sequence[Lattice],
    size: Sequence[int],
    dense_op: DenseWindowed,
    result: Map,
    forward: Tensor,
    dense: DenseRun,
) -> None:
    """Law 5: a loss that looks at the original's samples alone gives the original's gradients, and nothing else."""
    x = x.detach().requires_grad_()
    leaves = [x, *(t.requires_grad_() for t in (given.weight, given.bias) if t is not None)]
    sizes = tuple(axis.size for axis in result.axes)
    original = run_original(op, sample(x, lattice, size), given)
    upstream = integers(*original.shape) * divisible_by(op)
    expected = torch.autograd.grad(original, leaves, upstream)
    made = dense(dense_op, x, given, size)
    _equal(made.detach(), forward, "training and inference")
    got = torch.autograd.grad(sample(made, result.lattices, sizes), leaves, upstream)
    for one, other in zip(got, expected, strict=True):
        _equal(one, other, "law 5")
