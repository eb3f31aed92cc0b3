"""The arithmetic of lattices against brute force: counts against torch, receptive fields by following NaN."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from laws.checks import options
from laws.integers import inputs
from laws.nets import random_net
from torch import Tensor

from densify.conversion import Dense, convert
from densify.lattice import Axis, DenseWindow, Field, Lattice, Window, densify_window, larger, smaller

pytestmark = pytest.mark.filterwarnings("ignore:Using padding='same':UserWarning")

windows = st.builds(
    lambda kernel, stride, padding, dilation, ceil: Window(
        kernel, stride, min(padding, kernel // 2), min(padding, kernel // 2), dilation, ceil
    ),
    st.integers(1, 5),
    st.integers(1, 4),
    st.integers(0, 2),
    st.integers(1, 3),
    st.booleans(),
)


@given(window=windows, extra=st.integers(0, 20))
def test_counts_are_torchs(window: Window, extra: int) -> None:
    size = max(1, window.span + 1 - window.low - window.high) + extra
    x = torch.zeros(1, 1, size)
    made = F.max_pool1d(x, window.kernel, window.stride, window.low, window.dilation, window.ceil)
    assert window.count(size) == made.shape[-1]


@given(a=st.integers(-50, 50), b=st.integers(-50, 50))
def test_larger_and_smaller(a: int, b: int) -> None:
    """Their symbolic form is the same number."""
    assert (larger(a, b), smaller(a, b)) == (max(a, b), min(a, b))
    assert ((a + b + abs(a - b)) // 2, (a + b - abs(a - b)) // 2) == (max(a, b), min(a, b))


@given(window=windows, est=st.integers(1, 6), chosen=st.booleans())
def test_lattice_after_a_window(window: Window, est: int, chosen: bool) -> None:
    chosen = chosen and window.stride > 1
    dense, lattice = densify_window(window, Lattice(est), chosen=chosen, padding="full")
    assert lattice == Lattice(est * window.stride if chosen else est, 0)
    assert dense.window == window
    assert (dense.pad_low, dense.pad_high) == (est * window.low, est * window.high)


def test_the_removed_stride_does_not_dilate_the_layer_itself() -> None:
    dense, lattice = densify_window(Window(3, 2, 1, 1), Lattice(), chosen=True, padding="full")
    assert (dense.spacing, lattice.stride) == (1, 2)
    after, _ = densify_window(Window(3, 1, 1, 1), lattice, chosen=False, padding="full")
    assert (after.spacing, after.pad_low) == (2, 2)


@given(window=windows, est=st.integers(1, 6), chosen=st.booleans(), extra=st.integers(0, 8))
def test_sources_are_what_the_layout_makes(window: Window, est: int, chosen: bool, extra: int) -> None:
    """The plan's samples: e' * n2 of them, each phase its own windows, the far side a repetition."""
    size = max(1, window.span + 1 - window.low - window.high) + extra
    chosen = chosen and window.stride > 1
    dense, lattice = densify_window(window, Lattice(est), chosen=chosen, padding="full")
    sources = dense.sources(est * size)
    count = window.count(size)
    assert len(sources) == lattice.stride * count
    assert [sources[lattice.stride * i] for i in range(count)] == [
        (est * window.stride * i, False) for i in range(count)
    ]
    take = 1 if chosen else window.stride
    fresh = max(window.starts(size), (count - 1) * window.stride + 1)
    for t, (source, again) in enumerate(sources):
        wanted = t * take
        assert source % est == wanted % est
        assert again == (wanted // est >= fresh)
        assert source == (min(wanted // est, fresh - 1) * est + wanted % est)


def test_asymmetric_padding_of_even_kernels() -> None:
    """torch's padding="same" puts the odd sample on the far side; at eST e both sides are times e."""
    dense, _ = densify_window(Window(4, 1, 1, 2), Lattice(3), chosen=False, padding="full")
    assert (dense.pad_low, dense.pad_high) == (3, 6)


def test_same_padding_of_the_paper() -> None:
    """VGG-16 from pool4 at 256: 32 -> 31 -> 31 -> 31, offsets 0, 1, 13."""
    axis = Axis(32, 32, Lattice(), 8, Field(0, 0), (False,) * 32)
    sizes, lattices = [], []
    for window, chosen in ((Window(2, 2), True), (Window(3, 1, 1, 1), False), (Window(2, 2), True), (Window(7), False)):
        dense, lattice = densify_window(window, axis.lattice, chosen=chosen, padding="same")
        axis = axis.through(dense, lattice)
        sizes.append(axis.dense)
        lattices.append(tuple(lattice))
    assert sizes == [31, 31, 31, 31]
    assert lattices == [(2, 0), (2, 0), (4, 1), (4, 13)]
    assert axis.size == 2
    assert axis.exact


@pytest.mark.parametrize("padding", ["full", "valid", "same"])
def test_receptive_fields_by_following_nan(padding: str) -> None:
    """A NaN in one pixel reaches the samples whose receptive field ends or begins there, and none beyond."""
    tried = 0
    for seed in range(40):
        net, choice = random_net(seed, dimensions=1, plain=True)
        if net.statistic:
            continue
        dense = convert(net, net.reference, **options(choice), padding=padding)
        ((axis,),) = (one.axes for one in dense.plan.outputs.values())
        _follow_nan(dense, axis, inputs(net.reference), f"random_net({seed}, 1, plain=True)")
        tried += 1
    assert tried > 8


def _follow_nan(dense: Dense, axis: Axis, x: Tensor, name: str) -> None:
    assert axis.field is not None
    for pixel in range(x.shape[-1]):
        spoilt = x.clone()
        spoilt[..., pixel] = float("nan")
        with torch.no_grad():
            reached = torch.isnan(dense(spoilt)).flatten(0, 1).any(0).tolist()
        assert len(reached) == axis.dense
        for sample in range(axis.dense):
            first, last = axis.field.first + sample * axis.pitch, axis.field.last + sample * axis.pitch
            if not axis.repeated[sample]:
                assert not reached[sample] or first <= pixel <= last, f"{name}: sample {sample} sees pixel {pixel}"
                assert reached[sample] or pixel not in (first, last), f"{name}: sample {sample} misses pixel {pixel}"


def test_phases_are_shifted_images() -> None:
    """Law 3 in pixels: phase r is what f computes on the image shifted by r * S / e, clear of the borders."""
    compared = 0
    for seed in range(40):
        net, choice = random_net(seed, dimensions=1, plain=True)
        if net.statistic or net.window is not None:
            continue
        x = inputs((1, 2, net.reference[2] + 40))
        dense = convert(net, x, **options(choice))
        ((axis,),) = (one.axes for one in dense.plan.outputs.values())
        assert axis.field is not None
        with torch.no_grad():
            made = dense(x)
            for phase in range(axis.lattice.stride):
                shift = int(phase * axis.pitch)
                shifted = torch.cat([x[..., shift:], inputs((1, 2, shift), 1)], -1)
                expected = net(shifted)
                for i in range(axis.size):
                    first, last = axis.field.first + i * axis.step, axis.field.last + i * axis.step
                    if first >= 0 and last + shift < x.shape[-1]:
                        assert torch.equal(made[..., phase + i * axis.lattice.stride], expected[..., i])
                        compared += 1
    assert compared > 100


def test_dense_window_knows_the_original() -> None:
    window = Window(3, 2, 1, 1, 2, True)
    dense, _ = densify_window(window, Lattice(4), chosen=True, padding="full")
    assert isinstance(dense, DenseWindow)
    assert dense.window == window
    assert dense.original_size(4 * 9) == 9
