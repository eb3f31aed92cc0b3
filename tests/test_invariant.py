"""Rotation- and flip-invariant convolutions: which symmetries they have exactly, on small integers in float64, against
plain convolutions of turned images and of kernels turned by hand."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch._subclasses import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx
from torch.nn.utils import prune
from torch.nn.utils.parametrizations import weight_norm

import densify
from densify import InvariantConv2d
from densify.equivariance import (
    TRANSFORMATIONS,
    composed,
    equivariance,
    inverse,
    reversed_axes,
    swaps_axes,
    transformed,
)
from densify.errors import SymmetryError, UsageError
from densify.layers import Maxout
from densify.layers.copies import ANGLES, FLIPS, Copies
from densify.layers.plain import geometry
from densify.onnx.file import OnnxSession

QUARTERS = ("identity", "rot90", "rot180", "rot270")
RING = [0, 1, 2, 5, 8, 7, 6, 3]  # clockwise
FOUR_FLIPS = ("identity", "rot180", "flip-h", "flip-v")
# What is exact, by angles and flips (3 x 3 kernels).
EXACT = {
    (1, "none"): ("identity",),
    (1, "h"): ("identity", "flip-h"),
    (1, "v"): ("identity", "flip-v"),
    (1, "paper"): ("identity",),
    (1, "all"): FOUR_FLIPS,
    (2, "none"): ("identity", "rot180"),
    (2, "h"): FOUR_FLIPS,
    (2, "v"): FOUR_FLIPS,
    (2, "paper"): FOUR_FLIPS,
    (2, "all"): FOUR_FLIPS,
    **{(4, flips): TRANSFORMATIONS for flips in ("h", "v", "paper", "all")},
    **{(8, flips): TRANSFORMATIONS for flips in ("h", "v", "paper", "all")},
    (4, "none"): QUARTERS,
    (8, "none"): QUARTERS,
}


def integers(*shape: int) -> Tensor:
    return torch.randint(-4, 5, shape, dtype=torch.float64)


def whole(layer: nn.Module) -> Any:
    """The layer with small integers as weights, in float64."""
    layer.double()
    for parameter in layer.parameters():
        parameter.data = integers(*parameter.shape)
    return layer.eval()


def exact(function: Callable[[Tensor], Tensor], x: Tensor) -> tuple[str, ...]:
    """The transformations under which there is no error; under all others it is far from rounding."""
    errors = equivariance(function, x)
    assert all(error == 0 or error > 0.01 for error in errors.values()), errors
    return tuple(name for name in TRANSFORMATIONS if errors[name] == 0)


# ---- the symmetries of the square ------------------------------------------------------------------


def test_transformations_are_a_group() -> None:
    x = torch.arange(6.0).reshape(1, 1, 2, 3)
    assert len({str(transformed(x, name).tolist()) for name in TRANSFORMATIONS}) == 8
    for second in TRANSFORMATIONS:
        assert transformed(transformed(x, second), inverse(second)).equal(x)
        assert (transformed(x, second).shape == (1, 1, 3, 2)) is swaps_axes(second)
        for first in TRANSFORMATIONS:
            assert transformed(transformed(x, first), second).equal(transformed(x, composed(second, first)))


def test_axes_that_are_read_backwards() -> None:
    """Along a reversed axis the first sample of a line comes to lie behind its last."""
    rows, columns = torch.arange(3.0)[:, None].expand(3, 3), torch.arange(3.0).expand(3, 3)
    for name in TRANSFORMATIONS:
        for axis, ramp in enumerate((rows, columns)):
            turned = transformed(ramp, name)
            line = turned[:, 0] if (axis == 0) is not swaps_axes(name) else turned[0]
            assert (line[0] > line[-1]).item() is (axis in reversed_axes(name)), name


# ---- copies ----------------------------------------------------------------------------------------


def fitting(kernel: tuple[int, int]) -> list[tuple[int, str]]:
    angles = [a for a in ANGLES if (a < 4 or kernel[0] == kernel[1]) and (a < 8 or kernel == (3, 3))]
    return [(a, f) for a in angles for f in FLIPS]


@pytest.mark.parametrize("kernel", [(1, 1), (1, 4), (2, 2), (2, 3), (3, 3), (5, 5), (4, 1)])
def test_copies_are_distinct_kernels(kernel: tuple[int, int]) -> None:
    weight = torch.rand(2, 3, *kernel)
    for angles, flips in fitting(kernel):
        copies = Copies(kernel, angles, flips)
        made = copies.expand(weight).unflatten(0, (2, -1))
        assert made.shape[1] == len(copies)
        for number, grid in enumerate(copies.grids):
            assert made[:, number].equal(weight.flatten(2)[..., torch.tensor(grid)])
        if len(copies) > 1:
            assert torch.pdist(made[0].flatten(1)).min() > 0


def test_counts_of_copies() -> None:
    counts = {key: len(Copies((3, 3), *key)) for key in EXACT}
    assert [counts[1, flips] for flips in FLIPS] == [1, 2, 2, 3, 4]
    assert [counts[2, flips] for flips in FLIPS] == [2, 4, 4, 4, 4]
    assert [counts[4, flips] for flips in FLIPS] == [4, 8, 8, 8, 8]
    assert [counts[8, flips] for flips in FLIPS] == [8, 16, 16, 16, 16]
    assert (len(Copies((1, 5), 1, "all")), len(Copies((1, 5), 1, "v")), len(Copies((1, 1), 4, "all"))) == (2, 1, 1)


def test_45_degrees_shift_the_ring() -> None:
    kernel = torch.tensor([[1, 2, 3], [8, 0, 4], [7, 6, 5]])
    made = Copies((3, 3), 8, "none").expand(kernel[None, None])[:, 0]
    assert made[0].equal(kernel)
    assert made[1].tolist() == [[2, 3, 4], [1, 0, 5], [8, 7, 6]]
    for one, following in zip(made, made.roll(-1, 0), strict=True):
        assert following.flatten()[RING].equal(one.flatten()[RING].roll(-1))
    for quarter in range(4):
        assert made[2 * quarter].equal(torch.rot90(kernel, quarter))


# ---- what is exact ---------------------------------------------------------------------------------


@pytest.mark.parametrize(("angles", "flips"), EXACT)
@pytest.mark.parametrize("size", [(9, 9), (7, 10)])
def test_exactness(angles: int, flips: str, size: tuple[int, int]) -> None:
    layer = whole(InvariantConv2d(3, 4, 3, padding=1, angles=angles, flips=flips))
    assert exact(layer, integers(2, 3, *size)) == EXACT[angles, flips]
    assert layer.copies.closed == EXACT[angles, flips]
    report = layer.check_equivariance(size)
    assert report
    assert report.holds == report.exact == EXACT[angles, flips]
    assert report.reasons.keys() == set(TRANSFORMATIONS) - set(report.exact)


@pytest.mark.parametrize("kernel", [(5, 5), (2, 2), (4, 4), (3, 5), (2, 3), (1, 4)])
def test_exactness_with_any_kernel(kernel: tuple[int, int]) -> None:
    for angles, flips in fitting(kernel):
        layer = whole(InvariantConv2d(2, 3, kernel, angles=angles, flips=flips))
        found = exact(layer, integers(1, 2, 8, 11))
        assert set(found) >= set(EXACT[angles, flips])
        assert found == layer.copies.closed == layer.check_equivariance().exact


def test_quarter_turns_of_the_ring_are_all_that_8_angles_have() -> None:
    """A pixel grid knows no turn by 45 degrees. What comes nearest, a shift of rings, is no symmetry of the layer."""
    layer = whole(InvariantConv2d(1, 1, 3, angles=8))
    x, once = integers(1, 1, 3, 3), Copies((3, 3), 8, "none")
    turned = once.expand(x)[1:2]
    assert layer(turned).equal(layer(x))  # one window: the copies are the same eight
    spread = torch.zeros(1, 1, 5, 5, dtype=torch.float64)
    one, other = spread.clone(), spread.clone()
    one[..., 1:4, 1:4], other[..., 1:4, 1:4] = x, turned
    assert not once.expand(layer(one))[1:2].equal(layer(other))


@pytest.mark.parametrize(
    ("layers", "expected"),
    [
        ([(4, "none"), (1, "paper")], ("identity",)),
        ([(4, "none"), (1, "all")], ("identity", "rot180")),
        ([(4, "none"), (4, "none")], QUARTERS),
        ([(1, "all"), (4, "all")], FOUR_FLIPS),
        ([(4, "all"), (8, "h")], TRANSFORMATIONS),
        ([(8, "none"), (2, "none")], ("identity", "rot180")),
    ],
)
def test_exactness_of_stacks(layers: list[tuple[int, str]], expected: tuple[str, ...]) -> None:
    """The paper's stack, 4 angles and then its three flips, keeps the identity alone."""
    convs = [InvariantConv2d(3, 3, 3, padding=1, angles=angles, flips=flips) for angles, flips in layers]
    assert exact(whole(nn.Sequential(convs[0], nn.ReLU(), convs[1])), integers(1, 3, 8, 11)) == expected


@pytest.mark.parametrize(("angles", "flips"), [(4, "none"), (1, "all"), (8, "all"), (2, "h")])
def test_kept_copies_change_places(angles: int, flips: str) -> None:
    layer = whole(InvariantConv2d(2, 48, 3, padding=1, angles=angles, flips=flips, reduction="none"))
    report = layer.check_equivariance((7, 10))
    assert report
    assert report.exact == EXACT[angles, flips]
    assert exact(layer, integers(1, 2, 7, 10)) == ("identity",)  # without the change of places


@pytest.mark.parametrize("stride", [2, 3, (2, 1)])
def test_strides_that_do_not_fit_the_size(stride: int | tuple[int, int]) -> None:
    layer = whole(InvariantConv2d(2, 3, 3, stride, padding=1, angles=4, flips="all"))
    for size in ((7, 10), (9, 13), (8, 9), (10, 7), (13, 13)):
        report = layer.check_equivariance(size)
        assert report
        assert report.exact == report.holds == exact(layer, integers(1, 2, *size))
    assert len(layer.check_equivariance().exact) == (8 if isinstance(stride, int) else 4)


def test_the_remedy_is_another_size() -> None:
    layer = InvariantConv2d(3, 4, 7, stride=2, padding=3, angles=4)
    report = layer.check_equivariance((224, 225))
    assert report.exact == ("identity", "rot90")  # it reads the columns backwards, and those fit
    assert report.reasons["rot180"] == "(n + 2p - d(k-1) - 1) % s is 1 at n = 224; n = 225 fits the stride"
    assert "n = 225 fits the stride" in str(report)
    assert report.errors["rot270"] > 0.1
    assert layer.check_equivariance((225, 227)).exact == QUARTERS
    assert report
    assert layer.check_equivariance()


def test_a_wrong_promise_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    layer = InvariantConv2d(3, 4, 3, padding=1, angles=4)
    monkeypatch.setattr(Copies, "order", lambda self, name: tuple(range(4)))
    assert not layer.check_equivariance()


@pytest.mark.parametrize(("angles", "flips"), [(4, "none"), (1, "all"), (4, "all"), (8, "all")])
@pytest.mark.parametrize("channels", [3, 256])
def test_float32_is_within_1e_6(angles: int, flips: str, channels: int) -> None:
    layer = InvariantConv2d(channels, 32, 3, padding=1, angles=angles, flips=flips)
    report = layer.check_equivariance()
    assert report
    assert report.tolerance == 1e-6
    assert report.exact == EXACT[angles, flips]
    assert all(report.errors[name] > 0.01 for name in report.reasons)
    assert all(error > 0.01 for name, error in report.plain.items() if name != "identity")


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("name", ["weight", "bias"])
def test_layers_without_finite_numbers_hold_nothing(name: str, value: float) -> None:
    layer = InvariantConv2d(2, 3, 3, angles=4)
    layer.get_parameter(name).data.flatten()[0] = value
    report = layer.check_equivariance()
    assert not report
    assert report.holds == ()
    assert set(report.errors.values()) == {torch.inf}


def test_errors_do_not_vanish_beside_the_bias() -> None:
    layer = InvariantConv2d(2, 3, 3, angles=1, flips="paper")
    alone = layer.check_equivariance()
    layer.bias.data.fill_(1e8)  # type: ignore[union-attr]
    report = layer.check_equivariance()
    assert report
    assert report.holds == ("identity",)
    assert all(report.errors[name] > 0.01 for name in report.reasons)
    assert (report.plain["identity"], report.plain["rot90"]) == (0, alone.plain["rot90"])


# ---- against plain convolutions --------------------------------------------------------------------


def turned_images(layer: InvariantConv2d, x: Tensor) -> list[Tensor]:
    """For each copy: turn the image back, convolve with the kernel as it is, turn the maps."""
    rotations, flips = QUARTERS[:: 4 // layer.copies.angles], FLIPS[layer.copies.flips]
    plain = nn.functional.conv2d
    pad = layer._reversed_padding_repeated_twice
    mode = layer.padding_mode.replace("zeros", "constant")
    maps = []
    for turn in dict.fromkeys(composed(flip, rotation) for flip in flips for rotation in rotations):
        back = transformed(nn.functional.pad(x, pad, mode), inverse(turn))
        maps.append(transformed(plain(back, layer.weight, layer.bias, 1, 0, layer.dilation, layer.groups), turn))
    return maps


@given(
    angles=st.sampled_from([1, 2, 4]),
    flips=st.sampled_from(list(FLIPS)),
    kernel=st.integers(1, 5),
    dilation=st.integers(1, 2),
    padding=st.integers(0, 3),
    groups=st.sampled_from([1, 2, 4]),
    mode=st.sampled_from(["zeros", "reflect", "replicate", "circular"]),
    size=st.tuples(st.integers(9, 13), st.integers(9, 13)),
)
def test_turned_kernels_are_turned_images(
    angles: int, flips: str, kernel: int, dilation: int, padding: int, groups: int, mode: Any, size: tuple[int, int]
) -> None:
    layer = whole(
        InvariantConv2d(4, 8, kernel, 1, padding, dilation, groups, padding_mode=mode, angles=angles, flips=flips)
    )
    x = integers(2, 4, *size)
    maps = turned_images(layer, x)
    assert layer(x).equal(torch.stack(maps).amax(0))
    kept = InvariantConv2d.from_conv(plain_of(layer), angles=angles, flips=flips, reduction="none")
    if kernel > 1:
        assert kept(x).equal(torch.stack(maps, 2).flatten(1, 2))
    x[0, 0, 4, 4] += 1
    assert not layer(x).equal(torch.stack(maps).amax(0)) or not layer.weight[:, 0].any()


def plain_of(layer: InvariantConv2d) -> nn.Conv2d:
    """The plain convolution with the same parameters."""
    plain = nn.Conv2d(out_channels=layer.unique_channels, **geometry(layer))
    plain.load_state_dict(layer.state_dict(), assign=True)
    return plain.train(layer.training)


def test_8_angles_are_kernels_turned_by_hand() -> None:
    layer = whole(InvariantConv2d(3, 4, 3, 2, 1, angles=8, bias=False))
    ring = [(0, 0), (0, 1), (0, 2), (1, 2), (2, 2), (2, 1), (2, 0), (1, 0)]
    x, best = integers(1, 3, 8, 11), torch.full((), -torch.inf, dtype=torch.float64)
    for shift in range(8):
        kernel = layer.weight.detach().clone()
        for place, (row, column) in enumerate(ring):
            kernel[..., row, column] = layer.weight[..., ring[(place + shift) % 8][0], ring[(place + shift) % 8][1]]
        best = torch.maximum(best, nn.functional.conv2d(x, kernel, None, 2, 1))
        assert layer(x).equal(best) is (shift == 7)


@pytest.mark.parametrize(
    "arguments", [{}, {"stride": 2, "padding": 2, "groups": 2}, {"padding": "same", "bias": False}]
)
def test_one_copy_is_the_plain_convolution(arguments: dict[str, Any]) -> None:
    conv = nn.Conv2d(4, 6, (3, 5), **arguments)
    layer = InvariantConv2d.from_conv(conv, angles=1)
    x = torch.randn(2, 4, 11, 14)
    assert layer(x).equal(conv(x))
    assert layer.eval()(x).equal(conv(x))
    assert type(layer.lower()) is nn.Conv2d


def test_gradients_are_those_of_the_turned_images() -> None:
    layer = whole(InvariantConv2d(2, 3, 3, padding=1, angles=4, flips="h"))
    x = torch.randn(1, 2, 5, 7, dtype=torch.float64)
    for training in (True, False):
        layer.train(training)
        parameters = list(layer.parameters())
        expected = torch.autograd.grad((torch.stack(turned_images(layer, x)).amax(0) ** 2).sum(), parameters)
        for _ in range(2):  # nothing is kept between two passes
            found = torch.autograd.grad((layer(x) ** 2).sum(), parameters)
            assert all(torch.allclose(a, b, rtol=1e-12, atol=1e-9) for a, b in zip(found, expected, strict=True))


def test_images_without_a_batch_and_channels_last() -> None:
    layer = InvariantConv2d(3, 4, 3, angles=4).eval()
    x = torch.randn(2, 3, 9, 12)
    assert layer(x[0]).equal(layer(x[:1])[0])
    assert torch.allclose(layer(x.contiguous(memory_format=torch.channels_last)), layer(x), atol=1e-6)


# ---- parameters and what is kept -------------------------------------------------------------------


def test_parameters_are_the_plain_convolutions() -> None:
    conv = nn.Conv2d(3, 8, 3, padding=1)
    layer = InvariantConv2d.from_conv(conv.eval(), angles=8, flips="all")
    assert layer.weight is conv.weight
    assert layer.bias is conv.bias
    assert not layer.training
    for mode in (True, False):
        layer.train(mode)(torch.randn(1, 3, 7, 7))
        assert {name: t.shape for name, t in layer.state_dict().items()} == {
            name: t.shape for name, t in conv.state_dict().items()
        }
    conv.load_state_dict(layer.state_dict())


def test_double_the_maps_with_half_the_parameters() -> None:
    plain = nn.Conv2d(8, 32, 3, bias=False)
    layer = InvariantConv2d(8, 64, 3, angles=4, reduction="none", unique_channels=16, bias=False)
    assert layer(torch.randn(1, 8, 9, 9)).shape[1] == layer.out_channels == 64
    assert layer.weight.numel() * 2 == plain.weight.numel()
    assert InvariantConv2d(8, 64, 3, angles=4, reduction="none").unique_channels == 16


def seen(layer: InvariantConv2d, x: Tensor) -> bool:
    """Whether the layer computes with the parameters that it has now."""
    with torch.no_grad():
        expected: Tensor = copy.deepcopy(layer)(x)
        return expected.equal(layer(x))


def step(layer: InvariantConv2d, kind: Any, **options: Any) -> None:
    """One step of an optimiser, the gradient taken in eval mode."""
    optimiser = kind(layer.parameters(), lr=0.1, **options)
    layer(torch.randn(1, 3, 7, 7)).sum().backward()
    with torch.no_grad():
        layer(torch.randn(1, 3, 7, 7))
    optimiser.step()
    optimiser.zero_grad()


CHANGES: dict[str, Callable[[InvariantConv2d], Any]] = {
    "load_state_dict": lambda layer: layer.load_state_dict(InvariantConv2d(3, 4, 3).state_dict()),
    "load_state_dict, assigned": lambda layer: layer.load_state_dict(
        InvariantConv2d(3, 4, 3).state_dict(), assign=True
    ),
    "in place": lambda layer: layer.weight.requires_grad_(False).mul_(2),
    "bias": lambda layer: layer.requires_grad_(False).get_parameter("bias").add_(1),
    "SGD": lambda layer: step(layer, torch.optim.SGD, momentum=0.9),
    "Adam, one by one": lambda layer: step(layer, torch.optim.Adam, foreach=False),
    "Adam, for each": lambda layer: step(layer, torch.optim.Adam, foreach=True),
    "AdamW, fused": lambda layer: step(layer, torch.optim.AdamW, fused=True),
    "another parameter": lambda layer: setattr(layer, "weight", nn.Parameter(torch.randn(4, 3, 3, 3))),
    "other data": lambda layer: setattr(layer.weight, "data", torch.randn(4, 3, 3, 3)),
    "train and a write through .data": lambda layer: (layer.train(), layer.weight.data.mul_(2), layer.eval()),
    "a write through .data": lambda layer: layer.weight.data.mul_(2),
    "a write through numpy": lambda layer: layer.weight.detach().numpy().__imul__(2),
    "to float64": lambda layer: layer.double(),
    "share_memory": lambda layer: (layer.share_memory(), layer.weight.detach().mul_(3)),
}


@pytest.mark.parametrize("change", CHANGES)
def test_kept_kernels_follow_the_parameters(change: str) -> None:
    layer, x = InvariantConv2d(3, 4, 3, angles=4).eval(), torch.randn(1, 3, 7, 7)
    with torch.no_grad():
        before = layer(x)
    assert layer._expanded is not None
    CHANGES[change](layer)
    assert seen(layer, x.to(layer.weight.dtype))
    if change != "to float64":
        assert not torch.allclose(before, layer(x), atol=1e-4)


def test_kept_kernels_are_used(monkeypatch: pytest.MonkeyPatch) -> None:
    """This also shows that the test above can fail."""
    layer, x = InvariantConv2d(3, 4, 3, angles=4).eval(), torch.randn(1, 3, 7, 7)
    with torch.no_grad():
        layer(x)
    monkeypatch.setattr("densify.layers.invariant._same", lambda before, now: True)
    layer.weight.data.mul_(2)
    assert not seen(layer, x)


def test_kept_kernels_follow_a_shared_convolution() -> None:
    """A fused optimiser steps through the convolution that the parameters come from, and leaves no gradient."""
    conv = nn.Conv2d(3, 4, 3)
    layer, x = InvariantConv2d.from_conv(conv).eval(), torch.randn(1, 3, 7, 7)
    optimiser = torch.optim.AdamW(conv.parameters(), lr=0.1, fused=True)
    with torch.no_grad():
        layer(x)
    conv(x).sum().backward()
    optimiser.step()
    optimiser.zero_grad()
    assert seen(layer, x)


class Flickering:
    """Another thread: what it keeps is gone at the second look."""

    def __init__(self) -> None:
        self.looks = 0

    def __get__(self, layer: Any, kind: Any) -> Any:
        self.looks += 1
        return None if self.looks % 2 == 0 else layer.__dict__.get("_expanded")

    def __set__(self, layer: Any, value: Any) -> None:
        layer.__dict__["_expanded"] = value


def test_kept_kernels_of_another_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    layer, x = InvariantConv2d(3, 4, 3, angles=4).eval(), torch.randn(1, 3, 7, 7)
    with torch.no_grad():
        expected = layer(x)
        flickering = Flickering()
        monkeypatch.setattr(InvariantConv2d, "_expanded", flickering, raising=False)
        for _ in range(4):
            assert layer(x).equal(expected)
    assert flickering.looks >= 4


def test_kernels_are_expanded_once_in_eval_mode(monkeypatch: pytest.MonkeyPatch) -> None:
    layer, x, calls = InvariantConv2d(3, 4, 3, angles=4), torch.randn(1, 3, 7, 7), []
    expand = Copies.expand

    def counted(copies: Copies, weight: Tensor) -> Tensor:
        calls.append(1)
        return expand(copies, weight)

    monkeypatch.setattr(Copies, "expand", counted)
    for training, gradients, expected in ((True, True, 3), (True, False, 3), (False, True, 3), (False, False, 1)):
        calls.clear()
        layer.train(training)
        with torch.set_grad_enabled(gradients):
            for _ in range(3):
                layer(x)
        assert len(calls) == expected


def test_kernels_kept_in_inference_mode_serve_gradients() -> None:
    layer, x = InvariantConv2d(3, 4, 3, angles=4).eval().requires_grad_(False), torch.randn(1, 3, 7, 7)
    with torch.inference_mode():
        layer(x)
    x.requires_grad_(True)
    layer(x).sum().backward()
    assert x.grad is not None
    with torch.inference_mode():
        inside = InvariantConv2d(3, 4, 3, angles=4).eval()
        assert inside(x).shape == (1, 4, 5, 5)


def fake(layer: InvariantConv2d, x: Tensor) -> None:
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        assert layer(mode.from_tensor(x)).shape == (1, 4, 5, 5)


WITHOUT_NUMBERS: dict[str, Callable[[InvariantConv2d, Tensor], Any]] = {
    "fake": fake,
    "make_fx, fake": lambda layer, x: make_fx(layer, tracing_mode="fake", _allow_non_fake_inputs=True)(x),
    "make_fx, real": lambda layer, x: make_fx(layer)(x),
    "grad": lambda layer, x: torch.func.grad(lambda x: layer(x).sum())(x),
    "vmap": lambda layer, x: torch.func.vmap(layer)(x),
    "functionalize": lambda layer, x: torch.func.functionalize(layer)(x),
}


@pytest.mark.parametrize("made", WITHOUT_NUMBERS)
@pytest.mark.parametrize("frozen", [True, False])
def test_tensors_of_a_mode_or_transform_are_not_kept(made: str, frozen: bool) -> None:
    layer, x = InvariantConv2d(3, 4, 3, angles=4).eval().requires_grad_(not frozen), torch.randn(1, 3, 7, 7)
    with torch.no_grad():
        WITHOUT_NUMBERS[made](layer, x)
    assert layer._expanded is None
    assert seen(layer, x)


def test_copies_of_the_layer() -> None:
    layer, x = InvariantConv2d(3, 4, 3, angles=4, flips="all").eval(), torch.randn(1, 3, 7, 7)
    with torch.no_grad():
        layer(x)
        for other in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer)), copy.copy(layer)):
            assert other._expanded is None
            assert other(x).equal(layer(x))


def test_functional_calls_use_what_they_are_given() -> None:
    layer, x = InvariantConv2d(3, 4, 3, angles=4).eval(), torch.randn(1, 3, 7, 7)
    with torch.no_grad():
        layer(x)
        double = {name: 2 * tensor for name, tensor in layer.state_dict().items()}
        assert torch.allclose(torch.func.functional_call(layer, double, (x,)), 2 * layer(x), atol=1e-5)
        several = torch.func.vmap(lambda weight: torch.func.functional_call(layer, {"weight": weight}, (x,)))
        stacked = torch.stack([layer.weight, 2 * layer.weight])
        assert torch.allclose(several(stacked)[0], layer(x), atol=1e-6)


@pytest.mark.parametrize("training", [True, False])
def test_compiled_and_exported(training: bool) -> None:
    layer, x = InvariantConv2d(3, 4, 3, angles=4, flips="h").train(training), torch.randn(2, 3, 9, 12)
    compiled = torch.compile(layer, backend="aot_eager", fullgraph=True)
    with torch.no_grad():
        assert torch.allclose(compiled(x), layer(x), atol=1e-6)
        layer.weight.mul_(2)
        assert torch.allclose(compiled(x), layer(x), atol=1e-6)
        program = torch.export.export(layer, (x,))
        layer.weight.mul_(2)  # the program shares the parameters
        assert torch.allclose(program.module()(x), layer(x), atol=1e-6)


# ---- plain layers and ONNX -------------------------------------------------------------------------

LOWERED: list[dict[str, Any]] = [
    {"angles": 4, "padding": 1},
    {"angles": 8, "flips": "all", "stride": 2, "padding": 1},
    {"angles": 1, "flips": "paper", "padding": 2, "dilation": 2, "padding_mode": "reflect", "bias": False},
    {"angles": 2, "reduction": "none", "groups": 2, "padding": "same"},
]


@pytest.mark.parametrize("arguments", LOWERED)
def test_plain_layers_are_the_same_bit_for_bit(arguments: dict[str, Any]) -> None:
    layer = InvariantConv2d(4, 8, 3, **arguments)
    layer.weight.requires_grad_(False)
    plain = layer.lower()
    assert {type(module) for module in plain.modules()} <= {nn.Sequential, nn.Conv2d, Maxout}
    for mode in (True, False):
        for size in ((9, 9), (8, 13)):
            x = torch.randn(2, 4, *size)
            assert plain.train(mode)(x).equal(layer.train(mode)(x))
    assert [p.requires_grad for p in plain.parameters()] == [p.requires_grad for p in layer.parameters()]
    assert all(module.training is layer.training for module in plain.modules())
    next(plain.parameters()).data.zero_()
    assert layer.weight.abs().min() > 0


ONNX = [(LOWERED[i], lower) for i, lower in ((1, False), (2, True), (3, False))]


@pytest.mark.parametrize(("arguments", "lower"), ONNX)
def test_onnx(arguments: dict[str, Any], lower: bool, tmp_path: Path) -> None:
    layer = InvariantConv2d(4, 8, 3, **arguments).eval()
    network = layer.lower() if lower else layer
    densify.export(network, tmp_path / "layer.onnx", (1, 4, 12, 15))
    for optimised in (True, False):
        session = OnnxSession(tmp_path / "layer.onnx", optimised=optimised)
        for size in ((1, 4, 12, 15), (2, 4, 9, 9), (3, 4, 7, 16)):
            x = torch.randn(size)
            with torch.no_grad():
                expected = layer(x)
            (found,) = session(x.numpy())
            assert (torch.from_numpy(found) - expected).abs().max() <= 1e-6 * expected.abs().max()


def test_dense_equivalents() -> None:
    """Chosen or not, an invariant layer has a dense form, with its own keys."""
    net = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.MaxPool2d(2), InvariantConv2d(4, 6, 3, 2, 1, angles=4), nn.ReLU(),
        InvariantConv2d(6, 8, 3, angles=1, flips="all", reduction="none", bias=False),
    )  # fmt: skip
    for start in ("1", "2"):
        dense = densify.convert(net.eval(), (1, 3, 29, 34), start=start)
        assert dense.state_dict().keys() == net.state_dict().keys()
        assert densify.verify(net, dense, [torch.randn(2, 3, 29, 34), torch.randn(1, 3, 24, 31)])


# ---- refusals --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"kernel_size": (3, 5), "angles": 4}, "kernel of 3 x 5: it is not square.*Use angles=2 or flips"),
        ({"kernel_size": 5, "angles": 8}, "only 3 x 3 kernels have a ring.*Use angles=4"),
        ({"kernel_size": (3, 1), "angles": 8}, "only 3 x 3 kernels have a ring.*Use angles=2"),
        (
            {"kernel_size": 3, "angles": 4, "dilation": (1, 2)},
            r"InvariantConv2d\(4, 8.*dilation \(1, 2\) is another shape",
        ),
        ({"kernel_size": 3, "angles": 4, "padding": (1, 0)}, "padded differently.*Use one padding"),
        ({"kernel_size": 2, "flips": "h", "angles": 1, "padding": "same"}, "of the columns behind.*Use an odd kernel"),
        ({"kernel_size": (2, 3), "angles": 2, "padding": "same"}, "of the rows behind"),
    ],
)
def test_symmetries_that_a_layer_cannot_have(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(SymmetryError, match=message) as caught:
        InvariantConv2d(4, 8, **arguments)
    assert caught.value.refusal.remedy
    assert caught.value.exit_status == 3


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths")
def test_padding_that_no_copy_turns_is_taken() -> None:
    layer = whole(InvariantConv2d(4, 8, (3, 2), padding="same", angles=1, flips="v"))
    assert layer.check_equivariance().exact == ("identity", "flip-v")
    assert whole(InvariantConv2d(4, 8, (2, 3), padding="same", angles=1)).check_equivariance().exact == ("identity",)
    whole(InvariantConv2d(4, 8, 1, padding=(0, 1), angles=4)).check_equivariance()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"angles": 3}, "angles=3: kernels are rotated by 1, 2, 4 or 8"),
        ({"angles": True}, "angles=True"),
        ({"angles": 4.0}, "angles=4.0"),
        ({"angles": [4]}, "angles=.4."),
        ({"flips": ["h"]}, "flips=.'h'."),
        ({"unique_channels": "a"}, "unique_channels='a': give the number of kernels"),
        ({"unique_channels": 8.0}, "unique_channels=8.0: give the number"),
        ({"flips": "both"}, "flips='both': give one of 'none', 'h', 'v', 'paper', 'all'"),
        ({"reduction": "mean"}, 'reduction=\'mean\': give "max" or "none"'),
        ({"reduction": "none", "out_channels": 10}, "a multiple of 4, such as 8 or 12"),
        ({"unique_channels": 2}, 'Keep all copies with reduction="none" and out_channels=8'),
        ({"unique_channels": 4, "reduction": "none"}, "with reduction='none' and 4 copies it is 2"),
    ],
)
def test_arguments_that_do_not_fit(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        InvariantConv2d(**{"in_channels": 4, "out_channels": 8, "kernel_size": 3, **arguments})


@pytest.mark.parametrize("size", [9, (9.0, 9.0), (9, 9, 9), (-1, 9), (2, 9), (9, 2), (), [9, 9]])
def test_sizes_that_are_none(size: Any) -> None:
    with pytest.raises(UsageError, match="size="):
        InvariantConv2d(1, 1, 3).check_equivariance(size)
    with pytest.raises(UsageError, match="meta device"):
        InvariantConv2d(1, 1, 3, device="meta").check_equivariance()


@pytest.mark.parametrize("mode", ["zeros", "reflect", "circular", "replicate"])
def test_smallest_sizes(mode: Any) -> None:
    """Kernels of any shape are measured under quarter turns, too."""
    layer = InvariantConv2d(2, 3, (2, 25), padding=(1, 4), padding_mode=mode, angles=2)
    assert layer.check_equivariance()
    assert layer.check_equivariance((17, 17))
    with pytest.raises(UsageError, match=r"size=\(16, 30\): too small.*at least \(17, 17\)"):
        layer.check_equivariance((16, 30))


@pytest.mark.parametrize(
    ("module", "message"),
    [
        (nn.Linear(3, 4), "Linear: it is no plain Conv2d"),
        (nn.ConvTranspose2d(3, 4, 3), "ConvTranspose2d: it is no plain Conv2d"),
        (nn.LazyConv2d(4, 3), "LazyConv2d: it is no plain Conv2d, but a class derived from it"),
        (InvariantConv2d(3, 4, 3), "InvariantConv2d: it is no plain Conv2d, but a class"),
        (prune.identity(nn.Conv2d(3, 4, 3), "weight"), "computed from others.*prune.remove"),
        (weight_norm(nn.Conv2d(3, 4, 3)), "Conv2d: its weight or bias is computed from others"),
    ],
)
def test_modules_that_are_no_convolution(module: Any, message: str) -> None:
    with pytest.raises(SymmetryError, match=message):
        InvariantConv2d.from_conv(module)
