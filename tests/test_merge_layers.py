"""The layers of merges against torch's own ops, and against brute force over all shifts."""

from __future__ import annotations

from fractions import Fraction
from itertools import product
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from laws import merges as brute
from torch import Tensor, nn

from densify.lattice import Window
from densify.layers import etransposed, resample, transposed_shifts
from densify.merging import Spread, spread_of

WHOLE = Spread(1, 1, 1)
MODES = {1: ["nearest", "nearest-exact", "linear"], 2: ["nearest", "nearest-exact", "bilinear", "bicubic"]}
MODES[3] = ["nearest", "nearest-exact", "trilinear"]


def named(mode: str) -> str:
    return mode.removeprefix("bi").removeprefix("tri")


def corners(mode: str) -> list[bool | None]:
    return [None] if "nearest" in mode else [False, True]


CASES = [(n, mode, aligned) for n in MODES for mode in MODES[n] for aligned in corners(mode)]


@pytest.mark.parametrize(("spatial", "mode", "aligned"), CASES)
def test_resampling_one_phase_is_torchs_own(spatial: int, mode: str, aligned: bool | None) -> None:
    x = torch.randn(2, 3, *(5, 7, 4)[:spatial], dtype=torch.float64)
    for sizes in ((9, 13, 6), (5, 3, 11), (10, 14, 8), (1, 1, 1)):
        made = resample(x, (WHOLE,) * spatial, sizes[:spatial], named(mode), bool(aligned))
        expected = F.interpolate(x, sizes[:spatial], mode=mode, align_corners=aligned)
        assert torch.allclose(made, expected, rtol=0, atol=1e-12)
    for factor in (Fraction(2), Fraction(5, 2), Fraction(1, 2)):
        expected = F.interpolate(x, scale_factor=float(factor), mode=mode, align_corners=aligned)
        pairs = ((factor.numerator, factor.denominator),) * spatial
        made = resample(x, (WHOLE,) * spatial, expected.shape[2:], named(mode), bool(aligned), pairs)
        assert torch.allclose(made, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("est", [1, 2, 3, 4, 5])
@pytest.mark.parametrize("mode", ["bilinear", "bicubic"])
def test_aligned_corners_are_a_crop_and_the_plain_op(est: int, mode: str) -> None:
    x = torch.randn(2, 3, 6 * est, 4 * est, dtype=torch.float64)
    made = resample(x, (Spread(est, 1, 1),) * 2, (17, 9), named(mode), True)
    cropped = x[..., : 5 * est + 1, : 3 * est + 1]
    assert torch.allclose(made, F.interpolate(cropped, (17, 9), mode=mode, align_corners=True), rtol=0, atol=1e-12)


@pytest.mark.parametrize("est", [1, 3, 5])
def test_odd_lattices_are_a_crop_a_padding_and_the_plain_op(est: int) -> None:
    """Centres of samples stay where they are if every sample of the original keeps (e - 1) / 2 on either side."""
    x = torch.randn(2, 3, 6 * est, 4 * est, dtype=torch.float64)
    made = resample(x, (Spread(est, 1, 1),) * 2, (17, 9), "linear", False)
    cropped = F.pad(x[..., : 5 * est + 1, : 3 * est + 1], ((est - 1) // 2,) * 4, "replicate")
    plain = F.interpolate(cropped, (17, 9), mode="bilinear", align_corners=False)
    assert torch.allclose(made, plain, rtol=0, atol=1e-12)
    if est > 1:
        assert not torch.allclose(made, F.interpolate(x, (17, 9), mode="bilinear", align_corners=False), atol=1e-2)


@pytest.mark.parametrize("est", [2, 3, 4])
def test_resampling_keeps_a_ramp(est: int) -> None:
    """A map that says where its samples lie still does, clear of the borders."""
    ramp = torch.arange(12.0 * est, dtype=torch.float64).view(1, 1, -1) / est  # in samples of the original
    made = resample(ramp, (Spread(est, 1, 1),), (36,), "linear", False)
    places = (torch.arange(36.0, dtype=torch.float64) + 0.5) / 3 - 0.5
    assert torch.allclose(made[0, 0, 6:-6], places[6:-6], rtol=0, atol=1e-12)


@given(
    est=st.lists(st.integers(1, 6), min_size=2, max_size=2),
    stride=st.lists(st.integers(1, 6), min_size=2, max_size=2),
    kernel=st.lists(st.integers(1, 5), min_size=2, max_size=2),
    dilation=st.integers(1, 2),
    sizes=st.lists(st.integers(2, 5), min_size=2, max_size=2),
    groups=st.sampled_from([1, 2]),
    seed=st.integers(0, 10**6),
)
def test_transposed_convolutions_average_every_shift(
    est: list[int], stride: list[int], kernel: list[int], dilation: int, sizes: list[int], groups: int, seed: int
) -> None:
    """All shifts at once, by fragments and by brute force; with padding and output_padding."""
    generator = torch.Generator().manual_seed(seed)
    draw = lambda *shape: torch.randint(-3, 4, shape, generator=generator).double()  # noqa: E731
    padding = [int(torch.randint(0, (k - 1) * dilation + 1, (), generator=generator)) for k in kernel]
    extra = [int(torch.randint(0, max(s, dilation), (), generator=generator)) for s in stride]
    build: Any = nn.ConvTranspose2d
    module = build(4, 4, kernel, stride, padding, extra, groups, True, dilation).double()
    module.weight.data, module.bias.data = draw(*module.weight.shape), draw(4)
    x = draw(2, 4, *(n * e for n, e in zip(sizes, est, strict=True)))
    parts: dict[tuple[int, ...], Tensor] = {
        (*phase,): x[..., phase[0] :: est[0], phase[1] :: est[1]] for phase in product(range(est[0]), range(est[1]))
    }
    try:
        made = module(parts[0, 0])
    except RuntimeError:
        return  # the padding leaves nothing
    given = brute.lies(module, est, est, None)
    expected = brute._transposed(module, parts, given)
    windows = [Window(k, s, p, p, dilation) for k, s, p in zip(kernel, stride, padding, strict=True)]
    spreads = [spread_of(e, Fraction(s)) for e, s in zip(est, stride, strict=True)]
    own = (module.weight, module.bias, windows, spreads, extra, groups)
    assert tuple(expected.shape[2:]) == tuple(m * s.left for m, s in zip(made.shape[2:], spreads, strict=True))
    fragments = torch.stack(list(parts.values()), 1).flatten(0, 1)
    for other in (etransposed(x, *own), transposed_shifts(fragments, *own)):
        assert torch.allclose(other, expected, rtol=0, atol=1e-11)
