"""Scale-invariant convolutions against the paper's formula, written out place by place in fractions."""

from __future__ import annotations

import copy
import pickle
from fractions import Fraction
from math import ceil, floor
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm

import densify
from densify import ScaleInvariantConv2d
from densify.errors import ConversionError, SymmetryError, UsageError
from densify.layers.scale import SCALES, OverScales
from densify.onnx.file import OnnxSession

HALF = Fraction(1, 2)


def reading(places: list[Fraction], size: int) -> tuple[Tensor, Tensor]:
    """The matrix that reads an axis of that size at places, linearly between samples; and which lie inside."""
    matrix = torch.zeros(len(places), size, dtype=torch.float64)
    for row, place in enumerate(places):
        at = min(max(place, Fraction(0)), Fraction(size - 1))
        for sample in {floor(at), ceil(at)}:
            matrix[row, sample] += float(1 - abs(at - sample))
    return matrix, torch.tensor([0 <= place <= size - 1 for place in places])


def reference(layer: nn.Conv2d, scales: list[Fraction], x: Tensor, outside: float = -torch.inf) -> Tensor:
    """Equations 3 to 5 with the alignment of their centres: u_s = (s (c + 1/2) - 1/2 - d(k-1)/2 + p) / stride."""

    def plain(image: Tensor) -> Tensor:
        return nn.Conv2d.forward(layer, image)

    best = plain(x)
    for s in scales:
        sizes = [floor(n * s) for n in x.shape[2:]]
        if s == 1 or min(sizes) < 2:
            continue
        rows, columns = (
            reading([(j + HALF) / s - HALF for j in range(m)], n)[0] for m, n in zip(sizes, x.shape[2:], strict=True)
        )
        try:
            small = plain(rows @ x @ columns.T)
        except RuntimeError:  # it takes no image as small as that
            continue
        if min(small.shape[2:]) < 2:
            continue
        read = []
        for axis in range(2):
            reach = Fraction(layer.dilation[axis] * (layer.kernel_size[axis] - 1), 2)
            p, stride = layer._reversed_padding_repeated_twice[2 - 2 * axis], layer.stride[axis]
            centres = [u * stride + reach - p for u in range(best.shape[2 + axis])]
            places = [(s * (c + HALF) - HALF - reach + p) / stride for c in centres]
            read.append(reading(places, small.shape[2 + axis]))
        (rows, above), (columns, beside) = read
        back = rows @ small @ columns.T
        best = torch.maximum(best, torch.where(above[:, None] & beside, back, outside))
    return best


def doubled(layer: Any) -> Any:
    """The layer in float64, in eval mode, without gradients."""
    return layer.double().eval().requires_grad_(False)


def error(a: Tensor, b: Tensor) -> float:
    assert a.shape == b.shape
    return float((a - b).abs().max() / b.abs().max())


@settings(max_examples=30)
@given(
    scales=st.lists(st.fractions(Fraction(1, 3), 3, max_denominator=30), min_size=1, max_size=3, unique=True),
    kernel=st.tuples(st.integers(1, 5), st.integers(1, 5)),
    stride=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    padding=st.tuples(st.integers(0, 3), st.integers(0, 3)),
    dilation=st.integers(1, 2),
    mode=st.sampled_from(["zeros", "zeros", "reflect", "replicate", "circular"]),
    size=st.tuples(st.integers(9, 14), st.integers(9, 14)),
)
def test_any_convolution(
    scales: list[Fraction],
    kernel: tuple[int, int],
    stride: tuple[int, int],
    padding: tuple[int, int],
    dilation: int,
    mode: Any,
    size: tuple[int, int],
) -> None:
    every = [Fraction(1), *(s for s in scales if s != 1)]
    layer = doubled(
        ScaleInvariantConv2d(
            4, 2, kernel, stride, padding, dilation, 2, padding_mode=mode, scales=[float(s) for s in every]
        )
    )
    assert list(layer.fractions) == every
    x = torch.randn(2, 4, *size, dtype=torch.float64)
    assert error(layer(x), reference(layer, every, x)) <= 1e-12


INTEGERS = [{"padding": 1}, {"padding": "same"}, {"stride": 2}, {"stride": (2, 1), "padding": 2, "dilation": 2}]


@pytest.mark.parametrize("arguments", INTEGERS)
def test_exact_on_integers(arguments: dict[str, Any]) -> None:
    """Scales of 2 read halves and quarters, which float64 holds."""
    layer = doubled(ScaleInvariantConv2d(3, 4, 3, scales=(0.5, 1, 2), **arguments))
    for parameter in layer.parameters():
        parameter.data = torch.randint(-4, 5, parameter.shape).double()
    for size in ((11, 11), (12, 17), (17, 13)):
        x = torch.randint(-4, 5, (2, 3, *size)).double()
        expected = reference(layer, [HALF, Fraction(1), Fraction(2)], x)
        assert layer(x).equal(expected)
        wrong = reference(layer, [HALF, Fraction(1), Fraction(2)], x, outside=0.0)
        assert not layer(x).equal(wrong)  # zeros at the border win over negative maps


def test_images_smaller_than_the_kernel_at_some_scales() -> None:
    for mode in ("zeros", "reflect", "circular"):
        layer = doubled(ScaleInvariantConv2d(1, 2, 5, padding=2, padding_mode=mode, scales=(1, 0.34, 0.1, 2)))
        for size in ((3, 3), (3, 8), (5, 4), (11, 29)):
            x = torch.randn(1, 1, *size, dtype=torch.float64)
            assert error(layer(x), reference(layer, list(layer.fractions), x)) <= 1e-12


@pytest.mark.parametrize("arguments", [{"padding": "same"}, {"padding": 0}, {"padding": 2, "stride": 2}])
def test_a_plain_interpolation_is_right_for_same_padding_alone(arguments: dict[str, Any]) -> None:
    layer = doubled(ScaleInvariantConv2d(2, 3, 5, scales=(1, 2), **arguments))
    x = torch.randn(1, 2, 12, 17, dtype=torch.float64)
    plain = layer.lower().conv
    larger = plain(F.interpolate(x, scale_factor=2, mode="bilinear"))
    wrong = torch.maximum(plain(x), F.interpolate(larger, plain(x).shape[2:], mode="bilinear"))
    assert (error(layer(x), wrong) <= 1e-12) is (arguments["padding"] == "same")


@pytest.mark.parametrize(
    "arguments", [{}, {"stride": 2, "padding": 2, "groups": 2}, {"padding": "same", "bias": False}]
)
def test_scale_1_is_the_plain_convolution(arguments: dict[str, Any]) -> None:
    conv = nn.Conv2d(4, 6, (3, 5), **arguments)
    layer = ScaleInvariantConv2d.from_conv(conv, scales=(1,))
    x = torch.randn(2, 4, 11, 14)
    assert layer(x).equal(conv(x))
    assert type(layer.lower()) is nn.Conv2d
    with_others = ScaleInvariantConv2d.from_conv(conv)
    assert (with_others(x) >= conv(x)).all()
    assert with_others(x).isfinite().all()
    assert with_others(x[0]).equal(with_others(x[:1])[0])


def test_blobs_of_any_size_are_found_where_they_are() -> None:
    """A detector of blobs of one size answers alike to blobs of the sizes of its scales; the plain one does not."""
    grid = torch.arange(13.0) - 6
    squares = (grid**2 + grid[:, None] ** 2) / (2 * 2.0**2)
    layer = doubled(ScaleInvariantConv2d(1, 1, 13, padding=6, bias=False, scales=(1, 0.5, 0.7071, 1.4142, 2)))
    layer.weight.copy_((1 - squares) * torch.exp(-squares))
    answers, plain = [], []
    for sigma in (1.6, 2.2627, 3.2):
        places = torch.arange(61.0)
        image = torch.exp(-((places - 37) ** 2 + (places[:, None] - 28) ** 2) / (2 * sigma**2)).double()[None, None]
        maps = layer(image)
        assert divmod(int(maps.argmax()), 61) == (28, 37)
        answers.append(float(maps.max()))
        plain.append(float(layer.lower().conv(image).max()))
    assert max(answers) / min(answers) < 1.05
    assert max(plain) / min(plain) > 1.15


def test_gradients() -> None:
    layer = ScaleInvariantConv2d(1, 2, 3, stride=2, padding=1, scales=(1, 0.5, 1.5)).double()
    x = torch.randn(1, 1, 6, 7, dtype=torch.float64, requires_grad=True)
    inputs = (x, *layer.parameters())

    def function(x: Tensor, weight: Tensor, bias: Tensor) -> Any:
        return torch.func.functional_call(layer, {"weight": weight, "bias": bias}, (x,))

    assert torch.autograd.gradcheck(function, inputs)
    with torch.autograd.set_detect_anomaly(True, check_nan=True):
        layer(x).sum().backward()
    assert all(one.grad is not None and one.grad.isfinite().all() for one in inputs)


def test_parameters_are_the_plain_convolutions() -> None:
    conv = nn.Conv2d(3, 8, 3, padding=1).eval()
    layer = ScaleInvariantConv2d.from_conv(conv)
    assert (layer.weight, layer.bias, layer.training) == (conv.weight, conv.bias, False)
    assert layer.state_dict().keys() == conv.state_dict().keys()
    assert layer.scales == SCALES
    conv.load_state_dict(layer.state_dict())


@pytest.mark.parametrize("arguments", [{"padding": 2}, {"stride": 2, "padding": 1, "padding_mode": "reflect"}])
def test_plain_layers_are_the_same_bit_for_bit(arguments: dict[str, Any]) -> None:
    layer = ScaleInvariantConv2d(3, 4, 5, bias="stride" in arguments, **arguments).requires_grad_(False)
    plain = layer.lower()
    assert isinstance(plain, OverScales)
    assert type(plain.conv) is nn.Conv2d
    x = torch.randn(2, 3, 11, 14)
    for other in (plain, copy.deepcopy(layer), pickle.loads(pickle.dumps(plain))):
        assert other(x).equal(layer(x))
    plain.conv.weight.data.zero_()
    assert layer.weight.abs().min() > 0


@pytest.mark.parametrize(
    ("arguments", "lower"),
    [({"padding": 2, "scales": (1, 0.63)}, False), ({"stride": 2, "padding": 1, "scales": (1, 1.2599)}, True)],
)
def test_onnx(arguments: dict[str, Any], lower: bool, tmp_path: Path) -> None:
    layer = ScaleInvariantConv2d(3, 4, 5, **arguments).eval()
    written = densify.export(layer.lower() if lower else layer, tmp_path / "layer.onnx", (1, 3, 17, 22))
    assert written.dynamic.keys() == {"batch", "height", "width"}
    for optimised in (True, False):
        session = OnnxSession(tmp_path / "layer.onnx", optimised=optimised)
        for size in ((1, 3, 17, 22), (2, 3, 9, 40), (1, 3, 5, 6), (2, 3, 33, 31), (1, 3, 100, 7)):
            x = torch.randn(size)
            with torch.no_grad():
                expected = layer(x)
            (found,) = session(x.numpy())
            assert error(torch.from_numpy(found), expected) <= 1e-6


def test_compiled() -> None:
    layer, x = ScaleInvariantConv2d(3, 4, 3, padding=1, scales=(1, 2)), torch.randn(2, 3, 9, 12)
    compiled = torch.compile(layer, backend="aot_eager", fullgraph=True)
    assert torch.allclose(compiled(x), layer(x), atol=1e-6)


def test_half_precision() -> None:
    """Places are computed in wider numbers: a million does not fit into float16."""
    layer, x = doubled(ScaleInvariantConv2d(3, 4, 3, padding=1, scales=(1, 1.2599))), torch.randn(1, 3, 9, 12)
    assert error(layer.bfloat16()(x.bfloat16()).double(), layer.double()(x.double())) < 0.02
    assert error(layer.half()(x.half()).double(), layer.double()(x.double())) < 0.005


@pytest.mark.parametrize("scales", [(1, 2), (1, 0.5), (1, 1.2599, 0.63)])
@pytest.mark.parametrize("stride", [1, 2])
def test_large_and_infinite_samples_make_no_nan(scales: tuple[float, ...], stride: int) -> None:
    layer = ScaleInvariantConv2d(2, 3, 1, stride, scales=scales, dtype=torch.float16).requires_grad_(False)
    layer.weight.fill_(0.3)
    x = torch.randn(1, 2, 11, 13).sign().half() * 40000  # twice that is past float16
    assert layer(x).isfinite().all()
    x = torch.randn(1, 2, 11, 13)
    for row, column in ((0, 0), (5, 5), (10, 12)):  # borders, too
        x[0, 1, row, column] = torch.inf
        found = layer.float()(x)
        assert not found.isnan().any()
        assert found.isinf().any()
        assert found.isfinite().any()


def test_equivariance_is_measured() -> None:
    layer = ScaleInvariantConv2d(3, 4, 5, padding=2, scales=(1, 0.5, 2))
    report = layer.check_equivariance((41, 50))
    assert report
    assert report.exact == report.holds == ("identity",)
    assert report.errors.keys() == report.plain.keys() == {"identity", "scale 0.5", "scale 2"}
    assert all(0.01 < report.errors[name] < 1.5 for name in report.reasons)
    layer.weight.data[:] = 0
    layer.weight.data[..., 2, 2] = 1  # copies of the image are the same at all scales, but for what resizing loses
    assert all(error < 0.1 for error in layer.check_equivariance((41, 50)).plain.values())


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_layers_without_finite_numbers_hold_nothing(value: float) -> None:
    layer = ScaleInvariantConv2d(1, 2, 3, scales=(1, 2))
    layer.weight.data[0, 0, 1, 1] = value
    report = layer.check_equivariance((21, 24))
    assert not report
    assert set(report.errors.values()) == set(report.plain.values()) == {torch.inf}


class Derived(ScaleInvariantConv2d):
    pass


def test_layers_of_other_classes_are_beside_the_plain_convolution() -> None:
    layer = ScaleInvariantConv2d(2, 3, 3, padding=1, scales=(1, 2))
    expected = layer.check_equivariance((21, 24))
    assert expected.plain["scale 2"] != expected.errors["scale 2"]
    derived = Derived(2, 3, 3, padding=1, scales=(1, 2))
    derived.load_state_dict(layer.state_dict())
    assert derived.check_equivariance((21, 24)) == expected
    found = weight_norm(layer).check_equivariance((21, 24))
    assert found.plain == pytest.approx(expected.plain, rel=1e-4)
    assert found.errors == pytest.approx(expected.errors, rel=1e-4)


def test_chosen_layers_behind_it_have_a_dense_form() -> None:
    """In front of it there are no phases; a layer that reads phases is refused with its reason."""
    net = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.MaxPool2d(2), ScaleInvariantConv2d(4, 6, 3, scales=(1, 2)), nn.MaxPool2d(2)
    )
    dense = densify.convert(net.eval(), (1, 3, 29, 34), start="3")
    assert densify.verify(net, dense, [torch.randn(2, 3, 29, 34)])
    with pytest.raises(ConversionError, match="no rule says where the samples of a phase then lie"):
        densify.convert(net, (1, 3, 29, 34), start="1")


@pytest.mark.parametrize(
    ("scales", "message"),
    [
        ((0.5, 2), "1 must be among them"),
        ((), "1 must be among them"),
        ((1, 0), "positive numbers"),
        ((1, -2), "positive numbers"),
        ((1, float("nan")), "positive numbers"),
        ((1, 2, 2.0), "not all different"),
        ((1, 1 + 1e-9), "not all different"),
        ((1, 1e-9), "from 0.01 to 100"),
        ((1, 1e30), "from 0.01 to 100"),
        ((1, float("inf")), "from 0.01 to 100"),
        (2, "scales=2: give numbers"),
        ((1, None), r"scales=\(1, None\): give numbers"),
        ("ab", "scales='ab': give numbers"),
    ],
)
def test_scales_that_make_no_layer(scales: Any, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        ScaleInvariantConv2d(3, 4, 3, scales=scales)


def test_sizes_that_are_too_small() -> None:
    layer = ScaleInvariantConv2d(1, 1, 45, scales=(1, 0.63))
    with pytest.raises(UsageError, match=r"size=\(61, 74\): too small.*at least \(74, 74\)"):
        layer.check_equivariance()
    assert layer.check_equivariance((74, 74))
    for mode in ("zeros", "reflect", "circular"):
        layer = ScaleInvariantConv2d(1, 1, (2, 5), (1, 2), 2, padding_mode=mode, scales=(0.3, 2, 1))
        with pytest.raises(UsageError, match="at least") as caught:
            layer.check_equivariance((1, 1))
        least = eval(str(caught.value).rpartition("at least ")[2].rstrip("."))
        assert layer.check_equivariance(least)
        for size in ((least[0] - 1, least[1]), (least[0], least[1] - 1)):
            with pytest.raises(UsageError, match="too small"):
                layer.check_equivariance(size)


@pytest.mark.parametrize("size", [9, (9.0, 9.0), (9, 9, 9), (-1, 9)])
def test_sizes_that_are_none(size: Any) -> None:
    with pytest.raises(UsageError, match="size="):
        ScaleInvariantConv2d(1, 1, 3, scales=(1, 2)).check_equivariance(size)
    with pytest.raises(UsageError, match="meta device"):
        ScaleInvariantConv2d(1, 1, 3, device="meta").check_equivariance()


def test_modules_that_are_no_convolution() -> None:
    with pytest.raises(SymmetryError, match=r"Linear: .* ScaleInvariantConv2d takes the place"):
        ScaleInvariantConv2d.from_conv(nn.Linear(3, 4))  # type: ignore[arg-type]
