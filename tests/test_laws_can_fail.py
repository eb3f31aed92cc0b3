"""Every oracle is fed something wrong and fails: a test that cannot fail proves nothing."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import reduce
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from laws import fragments, oracle
from laws.alive import assert_alive
from laws.checks import check_gradient, check_values, check_weights, options
from laws.nets import random_net
from laws.oracle import Weights, check_square, run_dense
from laws.program import RandomNet
from torch import Tensor, nn

from densify.conversion import Dense, convert
from densify.lattice import DenseWindow, Lattice, Window
from densify.ops import AvgPool, Conv, DenseWindowed, MaxPool, Windowed

pytestmark = pytest.mark.filterwarnings("ignore:Using padding='same':UserWarning")
Edit = Callable[[DenseWindow], DenseWindow]


def edited(edit: Edit) -> oracle.DenseRun:
    """A dense op whose geometry was spoilt."""

    def run(op: DenseWindowed, x: Tensor, given: Weights, sizes: Sequence[int] | None = None) -> Tensor:
        return run_dense(replace(op, windows=tuple(edit(window) for window in op.windows)), x, given, sizes)

    return run


class Spaced:
    """A window op run at another spacing than its eST asks for."""

    def __init__(self, est: int) -> None:
        self.est = est

    def __call__(self, op: DenseWindowed, x: Tensor, given: Weights, sizes: Sequence[int] | None = None) -> Tensor:
        (window,), wanted = op.windows, run_dense(op, x, given, sizes)
        assert given.weight is not None
        made = F.conv1d(F.pad(x, (window.pad_low, window.pad_high)), given.weight, given.bias, dilation=self.est)
        return (
            made[..., : wanted.shape[-1]]
            if made.shape[-1] >= wanted.shape[-1]
            else F.pad(made, (0, wanted.shape[-1] - made.shape[-1]))
        )


CONV = Conv((Window(3, 2, 1, 1),), (True,))
PLAIN = Conv((Window(3, 1, 1, 1),), (False,))
CEIL = AvgPool((Window(3, 2, 0, 0, 1, True),), (True,))


def assert_fails(
    op: Windowed, est: int, size: int, dense: oracle.DenseRun, law: str, *, right: oracle.DenseRun = run_dense
) -> None:
    """The right op passes, the wrong one fails the named law."""
    check_square(op, [Lattice(est)] * len(op.windows), [size] * len(op.windows), dense=right)
    with pytest.raises(AssertionError, match=law):
        check_square(op, [Lattice(est)] * len(op.windows), [size] * len(op.windows), dense=dense)


@pytest.mark.parametrize("spacing", [1, 2, 4])
def test_wrong_dilation(spacing: int) -> None:
    assert_fails(PLAIN, 3, 7, Spaced(spacing), "law 1")


def test_destrided_layer_itself_dilated() -> None:
    """The classic mistake: the layer that loses its stride is dilated by it."""
    assert_fails(CONV, 1, 9, Spaced(2), "law 1")


def test_symmetric_padding_of_an_even_kernel() -> None:
    even = Conv((Window(4, 1, 1, 2),), (False,))
    assert_fails(even, 2, 7, edited(lambda w: w._replace(pad_low=w.pad_low + 1, pad_high=w.pad_high - 1)), "law 1")


def test_padding_not_times_est() -> None:
    assert_fails(PLAIN, 2, 7, edited(lambda w: w._replace(pad_low=w.low, pad_high=w.est * 2 - w.low)), "law 1")


def _zeros_on_the_far_side(op: DenseWindowed, x: Tensor, given: Weights, sizes: Sequence[int] | None = None) -> Tensor:
    """The input filled up with zeros instead of repeated windows."""
    (window,) = op.windows
    wanted = run_dense(op, x, given, sizes).shape[-1]
    missing = wanted - (x.shape[-1] + window.pad_low + window.pad_high - window.spacing * (window.kernel - 1))
    filled = F.pad(x, (window.pad_low, window.pad_high + missing))
    if given.weight is not None:
        return F.conv1d(filled, given.weight, given.bias, dilation=window.spacing)
    return F.max_pool1d(filled, window.kernel, 1, 0, window.spacing)


def test_far_side_of_zeros() -> None:
    """A convolution is wrong in phases other than the original's, a max pooling in ceil mode on the grid itself."""
    assert_fails(CONV, 2, 7, _zeros_on_the_far_side, "law 3")
    negative = MaxPool((Window(2, 2, 0, 0, 1, True),), (True,))

    def below(op: DenseWindowed, x: Tensor, given: Weights, sizes: Sequence[int] | None = None) -> Tensor:
        return _zeros_on_the_far_side(op, x - 9, given, sizes) + 9

    assert_fails(negative, 1, 7, below, "law 1")


def test_lost_ceil_window() -> None:
    """Floor instead of ceil: one output too few, or the far side repeated where a window exists."""

    def floor(op: DenseWindowed, x: Tensor, given: Weights, sizes: Sequence[int] | None = None) -> Tensor:
        made = run_dense(op, x, given, sizes)
        (window,) = op.windows
        fresh = x.shape[-1] - window.spacing * (window.kernel - 1)
        index = torch.arange(made.shape[-1])
        index = torch.where(index < fresh, index, fresh - window.est + index % window.est)
        return made[..., index]

    assert_fails(CEIL, 1, 8, floor, "law 1")
    assert_fails(CEIL, 1, 8, lambda *args: run_dense(*args)[..., :-2], "size")


@pytest.mark.parametrize("include", [True, False])
def test_wrong_divisor(include: bool) -> None:
    pool = AvgPool((Window(3, 2, 1, 1, 1, True), Window(2, 2, 1, 1, 1, True)), (True, True), count_include_pad=include)

    def other(op: DenseWindowed, x: Tensor, given: Weights, sizes: Sequence[int] | None = None) -> Tensor:
        assert isinstance(op.op, AvgPool)
        return run_dense(replace(op, op=replace(op.op, count_include_pad=not include)), x, given, sizes)

    def whole(op: DenseWindowed, x: Tensor, given: Weights, sizes: Sequence[int] | None = None) -> Tensor:
        assert isinstance(op.op, AvgPool)
        return run_dense(replace(op, op=replace(op.op, divisor=6)), x, given, sizes)

    assert_fails(pool, 2, 6, other, "law 1")
    assert_fails(pool, 2, 6, whole, "law 1")


def test_gradient_through_maximum_ties() -> None:
    """torch.maximum splits a tie's gradient between both samples; torch's pooling gives it to the first."""

    def split(op: DenseWindowed, x: Tensor, given: Weights, sizes: Sequence[int] | None = None) -> Tensor:
        (window,) = op.windows
        length = x.shape[-1] - window.spacing
        return reduce(torch.maximum, [x[..., tap * window.spacing :][..., :length] for tap in range(window.kernel)])

    assert_fails(MaxPool((Window(2, 1),), (False,)), 2, 12, split, "law 5")


def test_inference_unlike_training() -> None:
    def unlike(op: DenseWindowed, x: Tensor, given: Weights, sizes: Sequence[int] | None = None) -> Tensor:
        return run_dense(op, x, given, sizes) + (1.0 if torch.is_grad_enabled() else 0.0)

    assert_fails(PLAIN, 2, 7, unlike, "training and inference")


def _spoilt(dense: Dense, spoil: Callable[[Tensor], Tensor]) -> Dense:
    """The dense network with its output spoilt."""
    forward = dense.forward
    dense.__dict__["forward"] = lambda *args, **kwargs: spoil(forward(*args, **kwargs))
    return dense


def _pooled_net() -> tuple[RandomNet, fragments.Choice, Tensor]:
    for seed in range(200):
        net, choice = random_net(seed, dimensions=2, plain=True)
        if net.statistic and choice.layers is None:
            dense = convert(net, net.reference, **options(choice))
            if max(max(dense.lattices.values())).stride > 1:
                return net, choice, torch.randint(-3, 4, net.reference).double()
    raise AssertionError("no such network")


def test_statistic_over_all_phases() -> None:
    """A pooling over the whole dense map gives every phase the same value, and phase 0 a wrong one."""
    net, choice, x = _pooled_net()
    dense = convert(net, x, **options(choice))
    check_values(net, choice, dense, x)
    wrong = _spoilt(dense, lambda y: y.amax((2, 3), keepdim=True).expand_as(y))
    with pytest.raises(AssertionError, match="law"):
        check_values(net, choice, wrong, x)


@pytest.mark.parametrize(
    ("spoil", "law"),
    [
        (lambda y: y.roll(1, 2), "law 1"),
        (lambda y: F.pad(y, (0, 1)), "law 2"),
        (lambda y: torch.where(torch.arange(y.shape[-1]) % 2 == 1, y + 1.0, y), "law 3"),
        (lambda y: y / 0.0, "not finite"),
    ],
)
def test_network_oracle(spoil: Callable[[Tensor], Tensor], law: str) -> None:
    net, choice, x = _map_net()
    check_values(net, choice, convert(net, x, **options(choice)), x)
    with pytest.raises(AssertionError, match=law):
        check_values(net, choice, _spoilt(convert(net, x, **options(choice)), spoil), x)


def _map_net() -> tuple[RandomNet, fragments.Choice, Tensor]:
    for seed in range(200):
        net, choice = random_net(seed, dimensions=2, plain=True)
        if not net.statistic and net.window is None and choice == fragments.Choice(output_stride=1):
            dense = convert(net, net.reference, **options(choice))
            if all(lattice.stride % 2 == 0 for lattice in next(iter(dense.lattices.values()))):
                return net, choice, torch.randint(-3, 4, net.reference).double()
    raise AssertionError("no such network")


def test_gradient_oracle() -> None:
    """A loss that all phases reach, or one parameter that is cut off."""
    net, choice, x = _map_net()
    check_gradient(net, convert(net, x, **options(choice)), x)
    wrong = _spoilt(convert(net, x, **options(choice)), lambda y: y + 0.5 * y.roll(1, -1))
    with pytest.raises(AssertionError, match="law 5"):
        check_gradient(net, wrong, x)


def test_weight_oracle() -> None:
    net, choice, x = _map_net()
    check_weights(net, convert(net, x, **options(choice), share=True), share=True)
    with pytest.raises(AssertionError):
        check_weights(net, convert(net, x, **options(choice)), share=True)
    wrong = convert(net, x, **options(choice))
    next(wrong.parameters()).data.add_(1)
    with pytest.raises(AssertionError):
        check_weights(net, wrong, share=False)


def test_fragments_with_nothing_chosen_are_the_original() -> None:
    for seed in range(20):
        net, _ = random_net(seed, dimensions=2, plain=True)
        x: Any = torch.randint(-3, 4, net.reference).double()
        with torch.no_grad():
            expected = net(x)
            made = fragments.original(net, x, net.window)["output"].reshape(expected.shape)
        assert torch.equal(made, expected) if net.exact else torch.allclose(made, expected, rtol=1e-12)


def test_a_dead_signal_is_noticed() -> None:
    last = nn.Conv2d(4, 4, 1)
    nn.init.normal_(last.weight, std=1e-6)
    dead = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), last)
    with pytest.raises(AssertionError, match="two inputs change the output"):
        assert_alive(dead, (1, 3, 8, 8))
