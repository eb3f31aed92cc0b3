"""Layers with tied weights: exact invariance and equivariance, the plain layer that they equal, training, ONNX."""

from __future__ import annotations

import copy
import doctest
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from runtimes import ORT, sessions
from torch import Tensor, nn
from torch._subclasses import FakeTensorMode
from torch.nn.utils.parametrizations import weight_norm

import densify
import densify.layers.symmetric
import densify.layers.symmetric_conv
from benchmarks.symmetric import peak
from densify.equivariance import error_of
from densify.errors import RefusedError, SymmetryError, UsageError
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
)


def mirrored_rows(x: Tensor) -> Tensor:
    """A function of one's own on [B, C, H, W]: the first two channels swapped, rows mirrored."""
    return torch.cat([x[:, 1:2], x[:, :1], x[:, 2:]], 1).flip(2)


TURN = torch.linalg.qr(torch.arange(9.0).reshape(3, 3).double() + torch.eye(3).double()).Q  # a basis is all there is

LINEAR: dict[str, tuple[Any, Any, Any, dict[str, Any]]] = {
    "flip": ((4, 3, 6), 5, Invariant(Flip(), "w"), {}),
    "flip, odd": ((2, 4, 5), 3, Invariant(Flip(), "w"), {"bias": False}),
    "both flips": ((2, 3, 5), 7, [Invariant(Flip(), "w"), Invariant(Flip(), "h")], {}),
    "all turns": ((2, 5, 5), 4, [Invariant(Rotate90(), ("h", "w")), Invariant(Flip(), "w")], {}),
    "own function": ((3, 4, 5), 4, Invariant(mirrored_rows, ("c", "h", "w")), {}),
    "down-scale and shift": ((4, 6), 3, [Invariant(DownScale(3), "w"), Invariant(CyclicShift(), "c")], {}),
    "odd weights": (5, 3, Invariant(-torch.eye(5).flip(0), "c"), {}),
    "circulant": (6, 6, Equivariant(CyclicShift(), "c", "n"), {}),
    "circulant, few taps": (
        6, 6, Equivariant(CyclicShift(), "c", "n"), {"support": (torch.arange(6) - torch.arange(6)[:, None]) % 6 < 3}
    ),
    "toeplitz": (6, 4, Equivariant(Shift(), "c", "n", interior=True), {}),
    "triangular": (5, 5, Equivariant(Shift(), "c", "n"), {}),
    "mirror to mirror": ((3, 4), (2, 4), [Equivariant(Flip(), 3, 1), Invariant(Flip(), 2)], {}),
    "swap for sign": (4, 3, Equivariant([1, 0, 3, 2], "c", "n", out=-torch.eye(3)), {}),
    "basis": (3, 4, Equivariant(TURN, "c", "n", out=torch.eye(4).flip(0)), {}),
    "basis of inputs": ((3, 2), 4, Invariant(torch.tensor([[1.0, 0, 0], [0.3, 0.2, 0.5], [0.3, 0.2, 0.5]]), 1), {}),
}  # fmt: skip


def linear(name: str, dtype: torch.dtype = torch.float64) -> Any:
    ins, outs, constraints, more = LINEAR[name]
    return densify.SymmetricLinear(ins, outs, constraints, dtype=dtype, **more)


CONVS: dict[str, tuple[type[Any], tuple[Any, ...], Any, dict[str, Any]]] = {
    "flip": (densify.SymmetricConv2d, (3, 5, 3), Invariant(Flip(), "w"), {"padding": 1}),
    "strided": (densify.SymmetricConv2d, (3, 5, (3, 4)), Invariant(Flip(), ("h", "w")), {"stride": 2, "padding": 1}),
    "turns": (
        densify.SymmetricConv2d, (2, 4, 5), [Invariant(Rotate90(), ("h", "w")), Invariant(Flip(), "h")],
        {"stride": 3, "padding": 2, "dilation": 2, "bias": False},
    ),
    "groups": (densify.SymmetricConv2d, (4, 6, 3), Invariant(Flip(), "h"), {"groups": 2, "padding": "same"}),
    "channels": (densify.SymmetricConv2d, (4, 3, (2, 3)), Invariant(Flip(), "c"), {}),
    "channels to channels": (densify.SymmetricConv1d, (4, 6, 3), Equivariant(CyclicShift(2), "c", "n"), {"padding": 2}),
    "flip to swapped maps": (
        densify.SymmetricConv2d, (3, 4, 3), Equivariant(Flip(), "w", "n", out=[1, 0, 3, 2]),
        {"padding": 1, "padding_mode": "reflect"},
    ),
    "one axis": (
        densify.SymmetricConv1d, (3, 5, 5), Invariant(Flip(), "w"), {"padding": 2, "padding_mode": "circular"},
    ),
    "three axes": (
        densify.SymmetricConv3d, (2, 3, (3, 2, 3)), [Invariant(Flip(), axis) for axis in "dhw"], {"stride": (1, 2, 1)},
    ),
}  # fmt: skip


def conv(name: str, dtype: torch.dtype = torch.float64) -> Any:
    kind, sizes, constraints, more = CONVS[name]
    return kind(*sizes, constraints, dtype=dtype, **more)


def whole(layer: Any, seed: int = 0) -> Any:
    """Small integers as weights: every sum is exact."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in layer.parameters():
        parameter.data = torch.randint(-4, 5, parameter.shape, generator=generator).to(parameter)
    return layer


def integers(*shape: int, seed: int = 1) -> Tensor:
    return torch.randint(-9, 10, shape, generator=torch.Generator().manual_seed(seed)).double()


def sample(layer: Any) -> Tensor:
    if isinstance(layer, densify.SymmetricLinear):
        return integers(3, layer.in_features)
    sizes = layer._default_size()
    return integers(2, layer.in_channels, *sizes)


def close(a: Tensor, b: Tensor) -> bool:
    return error_of(b, a) <= 1e-12


LAYERS = [pytest.param(linear, name, id=f"linear, {name}") for name in LINEAR]
LAYERS += [pytest.param(conv, name, id=f"conv, {name}") for name in CONVS]
COPIES = [case for case in LAYERS if "basis" not in str(case.id)]


# ---- the laws ------------------------------------------------------------------------------------


@pytest.mark.parametrize(("make", "name"), COPIES)
def test_the_symmetry_is_exact(make: Any, name: str) -> None:
    layer = whole(make(name))
    x = sample(layer)
    assert layer.solution.tied
    if name == "down-scale and shift":
        x = 3 * x  # their means are integers
    measured = layer.check_equivariance(x)
    assert measured
    assert measured.error == 0, measured
    assert layer(x).abs().max() > 1


@pytest.mark.parametrize(("make", "name"), LAYERS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_symmetry_holds_to_rounding(make: Any, name: str, dtype: torch.dtype) -> None:
    measured = make(name, dtype).check_equivariance()
    assert measured, measured
    assert len(measured.errors) == len(make(name).constraints)


@pytest.mark.parametrize(("make", "name"), LAYERS)
def test_the_lowered_layer_is_plain_and_equal(make: Any, name: str) -> None:
    layer = make(name).eval()
    plain, x = layer.lower(), sample(layer)
    assert type(plain).__module__.startswith("torch.nn")
    assert not plain.training
    with torch.no_grad():
        assert close(plain(x), layer(x))
    if layer.solution.tied:
        exact = whole(layer)
        assert torch.equal(exact.lower()(x), exact(x))
    assert penalty(plain.weight.reshape(layer.solution.shape), layer.constraints, names(layer)) < 1e-25


def names(layer: Any) -> Sequence[str] | None:
    rank = len(layer.solution.shape)
    if isinstance(layer, densify.SymmetricLinear):
        inside = {1: "c", 2: "cw", 3: "chw"}[len(layer.in_shape)]
        return "n" + inside if len(layer.out_shape) == 1 else None
    return "nc" + "dhw"[5 - rank :]


@pytest.mark.parametrize(("make", "name"), LAYERS)
def test_a_plain_layer_gives_its_projection_and_comes_back(make: Any, name: str) -> None:
    layer = make(name).eval()
    plain = layer.lower()
    again = remade(plain, make, name)
    assert close(again.weight, layer.weight)
    assert close(again.lower().weight, plain.weight)
    assert not again.training
    noisy = copy.deepcopy(plain)
    noisy.weight.data = integers(*plain.weight.shape)
    nearest = remade(noisy, make, name).expanded_weight()
    expected = layer.solution.project(noisy.weight.reshape(layer.solution.shape))
    assert torch.equal(nearest, expected.detach())
    assert torch.equal(noisy.weight, integers(*plain.weight.shape))


def remade(plain: Any, make: Any, name: str) -> Any:
    if make is conv:
        kind, _, constraints, _ = CONVS[name]
        return kind.from_conv(plain, constraints)
    ins, outs, constraints, more = LINEAR[name]
    shapes = {"in_shape": None if isinstance(ins, int) else ins, "out_shape": None if isinstance(outs, int) else outs}
    return densify.SymmetricLinear.from_linear(plain, constraints, **shapes, support=more.get("support"))


@pytest.mark.parametrize("make", [linear, conv])
def test_broken_weights_are_seen(make: Any) -> None:
    layer = whole(make("flip"))
    assert layer.check_equivariance(sample(layer)).error == 0
    plain = layer.lower()
    plain.weight.data.flatten()[0] += 1

    class Broken(type(layer)):  # type: ignore[misc]
        def forward(self, x: Tensor) -> Any:
            return plain(x)

    layer.__class__ = Broken
    measured = layer.check_equivariance(sample(layer))
    assert not measured
    assert measured.error > 1e-3
    assert "flip" in str(measured)


def test_biases_have_the_symmetry_under_equivariance_alone() -> None:
    assert linear("circulant").bias.shape == (1,)
    assert linear("triangular").bias.shape == (0,)  # a shift that loses samples leaves no bias
    assert linear("triangular").lower().bias.tolist() == [0] * 5
    assert linear("toeplitz").bias.shape == (1,)
    assert linear("flip").bias.shape == (5,)
    assert conv("channels to channels").bias.shape == (2,)
    assert conv("flip to swapped maps").bias.shape == (2,)
    plain = nn.Linear(6, 6)
    layer = densify.SymmetricLinear.from_linear(plain, Equivariant(CyclicShift(), "c", "n"))
    bias = layer.expanded_bias()
    assert bias is not None
    assert torch.allclose(bias, plain.bias.mean())


def test_leading_dimensions_are_those_of_linear() -> None:
    layer = linear("both flips")
    x = integers(2, 3, 4, layer.in_features)
    assert layer(x).shape == (2, 3, 4, 7)
    assert torch.equal(layer(x)[1, 2], layer(x[1, 2]))
    assert layer(x[0, 0, 0]).shape == (7,)


# ---- what breaks a symmetry of maps --------------------------------------------------------------


@pytest.mark.parametrize(
    ("more", "size", "reason"),
    [
        ({"stride": 2, "padding": 1}, (9, 8), r"\(8 \+ 2 - 3\) % 2 is not 0 along axis 3"),
        ({"stride": 2, "padding": 1}, (8, 9), None),  # rows are not mirrored
        ({"stride": 3}, (7, 10), r"\(10 \+ 0 - 3\) % 3 is not 0"),
        ({"padding": "same"}, (8, 9), None),
    ],
)
def test_strides_that_break_a_flip_are_named(more: Any, size: tuple[int, int], reason: str | None) -> None:
    layer = densify.SymmetricConv2d(2, 3, 3, Invariant(Flip(), "w"), dtype=torch.float64, **more)
    measured = layer.check_equivariance(integers(2, 2, *size))
    if reason is None:
        assert measured
        return
    assert not measured
    (note,) = measured.notes.values()
    with pytest.raises(AssertionError, match=reason):
        raise AssertionError(note)


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths:UserWarning")
def test_paddings_and_axes_that_break_a_symmetry_are_named() -> None:
    even = densify.SymmetricConv2d(2, 3, 4, Invariant(Flip(), "w"), padding="same").check_equivariance()
    assert not even
    assert "axis 3 is padded by 1 in front and 2 behind" in str(even)
    uneven = densify.SymmetricConv2d(2, 3, 3, Invariant(Rotate90(), ("h", "w")), stride=(1, 2)).check_equivariance()
    assert not uneven
    assert "stride, dilation or padding differ between the axes" in str(uneven)
    assert uneven.error == float("inf")


def test_transformations_of_kernels_alone_are_measured_on_the_weight() -> None:
    layer = densify.SymmetricConv1d(2, 3, 6, Invariant(DownScale(2), "w"))
    measured = layer.check_equivariance()
    assert measured
    assert "no transformation of maps" in str(measured)


# ---- as torch's layers ---------------------------------------------------------------------------


@pytest.mark.parametrize(("make", "name"), LAYERS)
def test_gradients_are_those_of_the_expanded_weight(make: Any, name: str) -> None:
    layer, x = make(name), sample(make(name)).requires_grad_()
    plain = layer.lower()
    of_input, of_weight = torch.autograd.grad(layer(x).square().sum(), [x, layer.weight])
    expected, whole_weight = torch.autograd.grad(plain(x).square().sum(), [x, plain.weight])
    assert close(of_input, expected)
    summed = layer.solution.fold(whole_weight.reshape(layer.solution.shape), layer.solution.factors)
    assert close(of_weight, summed)


@pytest.mark.parametrize(("make", "name"), LAYERS)
def test_copies_state_and_devices(make: Any, name: str) -> None:
    layer = make(name, torch.float32).eval()
    x = sample(layer).float()
    expected = layer(x)
    assert set(layer.state_dict()) <= {"weight", "bias"}
    assert not list(layer.buffers())
    assert torch.equal(copy.deepcopy(layer)(x), expected)
    file = io.BytesIO()
    torch.save(layer, file)
    assert torch.equal(torch.load(io.BytesIO(file.getvalue()), weights_only=False)(x), expected)
    with torch.device("meta"):
        empty = make(name, torch.float32)
    assert empty(x.to("meta")).shape == expected.shape
    assigned = copy.deepcopy(empty)
    assigned.load_state_dict(layer.state_dict(), assign=True)
    assert torch.equal(assigned(x), expected)
    filled = empty.to_empty(device="cpu")
    filled.load_state_dict(layer.state_dict())
    assert torch.equal(filled(x), expected)
    assert filled.double()(x.double()).dtype == torch.float64
    assert filled.bfloat16()(x.bfloat16()).dtype == torch.bfloat16


@pytest.mark.parametrize("make", [linear, conv])
@pytest.mark.parametrize("tied", [True, False])
def test_lowered_layers_share_no_storage_with_the_layer(make: Any, tied: bool) -> None:
    layer = make("flip")
    if not tied:
        layer = densify.SymmetricConv2d(2, 3, 3, []) if make is conv else densify.SymmetricLinear(4, 3, [])
    before = copy.deepcopy(layer.state_dict())
    plain = layer.lower()
    for parameter in plain.parameters():
        assert parameter.is_contiguous()
        parameter.data.add_(1)
    assert all(torch.equal(value, before[name]) for name, value in layer.state_dict().items())


@pytest.mark.parametrize("frozen", [(), ("weight",), ("weight", "bias")])
def test_what_is_frozen_stays_frozen(frozen: Sequence[str]) -> None:
    for plain in (nn.Conv2d(2, 3, 3), nn.Linear(4, 3)):
        for name in frozen:
            plain.get_parameter(name).requires_grad_(False)
        with torch.no_grad():
            layer: Any = (
                densify.SymmetricConv2d.from_conv(plain, Invariant(Flip(), "w"))
                if isinstance(plain, nn.Conv2d)
                else densify.SymmetricLinear.from_linear(plain, Invariant(Flip(), "c"))
            )
        for made in (layer, layer.lower()):
            assert {name for name, value in made.named_parameters() if not value.requires_grad} == set(frozen)


def test_parametrized_weights_are_taken_as_they_come_out() -> None:
    plain = weight_norm(nn.Conv2d(2, 3, 3, bias=False))
    with torch.no_grad():
        layer = densify.SymmetricConv2d.from_conv(plain, Invariant(Flip(), "w"))
        expected = (plain.weight + plain.weight.flip(3)) / 2
    assert torch.allclose(layer.expanded_weight(), expected)
    assert layer.weight.requires_grad


def test_new_weights_are_distributed_as_torch_does() -> None:
    torch.manual_seed(3)
    tied, plain = densify.SymmetricLinear((8, 6, 6), 50, Invariant(Flip(), "w")), nn.Linear(288, 50)
    for name in ("weight", "bias"):
        ours, theirs = getattr(tied, name).detach(), getattr(plain, name).detach()
        assert float(ours.abs().max()) == pytest.approx(float(theirs.abs().max()), rel=0.1)
        assert float(ours.std()) == pytest.approx(float(theirs.std()), rel=0.2)


def test_the_input_is_folded_and_the_weight_is_not_expanded() -> None:
    """What autograd keeps of the flip-tied layer: nothing as large as the plain layer's weight."""
    layer, kept = densify.SymmetricLinear((8, 6, 6), 100, Invariant(Flip(), "w")), []

    def keep(tensor: Tensor) -> Tensor:
        kept.append(tensor.numel())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        layer(torch.randn(4, 288, requires_grad=True))
    assert max(kept) == layer.weight.numel() == 100 * 144


def test_training_needs_no_more_memory_than_a_plain_layer() -> None:
    """In bytes that torch holds, which are the same in every run; the target is 1.1 times the plain layer's."""
    tied, plain = (peak(name, batch=16, shape=(64, 6, 6), outputs=500) for name in ("tied", "plain"))
    assert plain > 3 * 4 * 500 * 64 * 36  # weight, gradient, momentum
    assert tied < 0.6 * plain


# ---- export --------------------------------------------------------------------------------------


class Chain(nn.Module):
    """Layers of all kinds, one behind the other, tied or as the plain layers that they equal."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.conv = conv("flip to swapped maps", torch.float32)
        self.folded = densify.SymmetricLinear((4, 4, 5), 6, Invariant(Flip(), "w"))
        self.expanded = linear("circulant, few taps", torch.float32)
        self.odd = densify.SymmetricLinear(6, 3, Invariant(-torch.eye(6).flip(0), "c"))
        self.basis = densify.SymmetricLinear(3, 4, LINEAR["basis"][2])

    def forward(self, x: Tensor) -> Any:
        x = torch.relu(self.conv(x))
        x = torch.relu(self.expanded(self.folded(x.flatten(1))))
        return self.basis(self.odd(x))

    def lower(self) -> Chain:
        """The same with plain layers."""
        made = copy.deepcopy(self)
        for name, layer in self._modules.items():
            lowered: Any = layer
            setattr(made, name, lowered.lower())
        return made


def test_networks_compile_whole() -> None:
    chain, x = Chain(), integers(2, 3, 4, 5).float()
    compiled = torch.compile(chain, backend="aot_eager", fullgraph=True)
    expected, made = chain(x), compiled(x)
    assert torch.allclose(made, expected, rtol=1e-5)
    gradients = [torch.autograd.grad(y.sum(), list(chain.parameters())) for y in (made, expected)]
    for ours, theirs in zip(*gradients, strict=True):
        assert torch.allclose(ours, theirs, rtol=1e-4, atol=1e-4)


FRESH: list[Any] = [
    lambda: densify.SymmetricLinear((2, 4), 3, Invariant(-torch.eye(4).flip(0), "w")),
    lambda: densify.SymmetricConv1d(2, 3, 3, Invariant(Flip(), "w")),
]


@pytest.mark.filterwarnings("ignore:`torch.jit.trace:FutureWarning", "ignore:`torch.jit.trace_method:FutureWarning")
@pytest.mark.parametrize("make", FRESH)
def test_fresh_layers_are_traced_and_exported(make: Any) -> None:
    layer, x = make(), torch.randn(3, 8) if make is FRESH[0] else torch.randn(1, 2, 6)
    traced = torch.jit.trace(layer, (x,))  # runs it twice, and compares what it saw
    strict = torch.export.export(make(), (x,), strict=True).module()
    assert torch.equal(traced(x), layer(x))
    assert strict(x).shape == layer(x).shape


@pytest.mark.parametrize("make", FRESH)
def test_what_fake_and_inference_runs_leave_behind_does_not_matter(make: Any) -> None:
    x = torch.randn(3, 8) if make is FRESH[0] else torch.randn(1, 2, 6)
    layer = make()
    with FakeTensorMode(allow_non_fake_inputs=True):
        layer(torch.randn(x.shape))
    assert type(layer(x)) is Tensor
    for device in ("cpu", "meta"):
        moved = make().to(device)
        with torch.inference_mode():
            moved(x.to(device))
        moved(x.to(device)).sum().backward()
        assert moved.weight.grad is not None


@pytest.mark.parametrize("lowered", [True, False])
def test_networks_export_and_run(lowered: bool, tmp_path: Path) -> None:
    chain = Chain().eval()
    model = chain.lower() if lowered else chain
    written = densify.export(model, tmp_path / "chain.onnx", example=(1, 3, 4, 5))
    assert set(written.weights) == {f"{name}.{part}" for name in chain._modules for part in ("weight", "bias")}
    if lowered:
        kinds = {node.op_type for node in onnx.load(tmp_path / "chain.onnx").graph.node}
        assert kinds.isdisjoint({"Gather", "ScatterND", "ScatterElements", "MatMul"})
        assert kinds >= {"Conv", "Gemm"}
    ran = set()
    for runtime, session in sessions(tmp_path / "chain.onnx", reference=False):
        for batch in (1, 3):
            x = integers(batch, 3, 4, 5).float()
            with torch.no_grad():
                expected = chain(x).numpy()
            assert np.abs(session(x.numpy())[0] - expected).max() <= 1e-5 * np.abs(expected).max(), runtime
        ran.add(runtime)
    assert ran >= ORT


def test_lowered_convolutions_run_at_other_sizes(tmp_path: Path) -> None:
    layer = conv("strided", torch.float32).eval()
    densify.export(layer.lower(), tmp_path / "layer.onnx", example=(1, 3, 9, 8))
    for _, session in sessions(tmp_path / "layer.onnx", reference=False):
        for size in ((9, 8), (7, 12), (15, 5)):
            x = integers(2, 3, *size).float()
            with torch.no_grad():
                expected = layer(x).numpy()
            assert np.abs(session(x.numpy())[0] - expected).max() <= 1e-5 * np.abs(expected).max()


# ---- dense networks ------------------------------------------------------------------------------


def test_networks_of_tied_convolutions_become_dense() -> None:
    torch.manual_seed(2)
    channels = Equivariant([2, 3, 0, 1], "c", "n", out=[1, 2, 0, 4, 3, 5])
    model = nn.Sequential(
        densify.SymmetricConv2d(3, 4, 3, Invariant(Flip(), "w"), padding=1), nn.ReLU(), nn.MaxPool2d(2),
        densify.SymmetricConv2d(4, 6, 3, channels, padding=1), nn.ReLU(), nn.MaxPool2d(2),
        nn.Flatten(), densify.SymmetricLinear((6, 4, 4), 5, Invariant(Flip(), "w")),
    ).eval()  # fmt: skip
    with pytest.raises(RefusedError, match=r"7\.unflatten"):
        densify.convert(model, (1, 3, 16, 16), output_stride=1)
    head: Any = model[7]
    model[7] = head.lower()
    dense = densify.convert(model, (1, 3, 16, 16), output_stride=1)
    shapes = [{name: value.shape for name, value in net.state_dict().items()} for net in (dense, model)]
    assert shapes[0] == shapes[1]
    assert densify.verify(model, dense, torch.randn(1, 3, 16, 16))


# ---- refusals ------------------------------------------------------------------------------------


class Doubled(nn.Linear):
    """A forward of its own."""

    def forward(self, x: Tensor) -> Tensor:
        return 2 * super().forward(x)


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda: densify.SymmetricLinear((2, 3, 5), 4, Invariant(Rotate90(), ("h", "w"))),
         r"SymmetricLinear of weights \(4, 2, 3, 5\): rotation by 90 degrees: it makes .*square"),
        (lambda: densify.SymmetricLinear(5, 4, Invariant(np.eye(4), "c")), "the matrix: it has shape"),
        (lambda: densify.SymmetricLinear(5, 5, Invariant(Flip(), "n")), "axes 0 to 0 of the weight are outputs"),
        (lambda: densify.SymmetricLinear(5, 5, Equivariant(Flip(), "n", "c")), "Name axes of the input in axes"),
        (lambda: densify.SymmetricLinear(3, 2, Invariant(2 * np.eye(3), "c")), "only w = 0 has this symmetry"),
        (lambda: densify.SymmetricLinear((2, 3), (2, 3), Invariant(Flip(), "w")), "no axis 'w'"),
        (lambda: densify.SymmetricConv2d(4, 4, 3, Invariant(Flip(), "c"), groups=2), "2 groups of them are read apart"),
        (lambda: densify.SymmetricConv2d(4, 4, (3, 5), Invariant(Rotate90(), ("h", "w"))), "need a square"),
        (lambda: densify.SymmetricLinear.from_linear(nn.Conv2d(1, 1, 1), []), "Conv2d: it is no Linear"),  # type: ignore[arg-type]
        (lambda: densify.SymmetricConv2d.from_conv(nn.Conv1d(1, 1, 1), []), "Conv1d: it is no Conv2d"),
        (lambda: densify.SymmetricLinear.from_linear(Doubled(4, 2), []),
         "Doubled: it is no plain Linear, but a class derived from it"),
        (lambda: densify.SymmetricConv2d.from_conv(densify.InvariantConv2d(3, 8, 3, angles=4), []),
         "InvariantConv2d: it is no plain Conv2d, but a class derived"),
        (lambda: densify.SymmetricConv2d.from_conv(densify.ScaleInvariantConv2d(3, 8, 3), []),
         "ScaleInvariantConv2d: it is no plain Conv2d, but a class derived"),
        (lambda: densify.SymmetricLinear.from_linear(nn.Linear(30, 2), [], in_shape=(2, 4, 4)),
         r"Linear\(30, 2\): its 30 features are not of shape \(2, 4, 4\)"),
    ],
)  # fmt: skip
def test_what_layers_cannot_have_is_refused(make: Any, reason: str) -> None:
    with pytest.raises(SymmetryError, match=f"(?s){reason}"):
        make()


def test_two_constraints_of_one_name_are_both_measured() -> None:
    asked: list[Constraint] = [Invariant(np.array([1, 0, 2]), "c"), Invariant(np.array([0, 2, 1]), "c")]
    layer = densify.SymmetricLinear(3, 2, asked)
    assert layer.weight.shape == (2, 1)
    assert len(layer.check_invariance().errors) == 2


@pytest.mark.parametrize("module", [densify.layers.symmetric, densify.layers.symmetric_conv])
def test_the_examples_of_the_documentation(module: Any) -> None:
    results = doctest.testmod(module)
    assert results.attempted > 3
    assert results.failed == 0


def test_letters_name_axes() -> None:
    one, other = (densify.SymmetricLinear((6, 5, 5), 4, Invariant(Rotate90(), axes)) for axes in ("hw", ("h", "w")))
    assert one.expanded_weight().shape == other.expanded_weight().shape
    assert [demand.right_axes for demand in one._demands.values()] == [(2, 3)]
    assert one.check_invariance()
    with pytest.raises(SymmetryError, match="no axis 'hz'"):
        densify.SymmetricLinear((6, 5, 5), 4, Invariant(Rotate90(), "hz"))
    with pytest.raises(SymmetryError, match="no axis None"):
        densify.SymmetricLinear((6, 5, 5), 4, Invariant(Rotate90(), None))  # type: ignore[arg-type]


@pytest.mark.parametrize("wrong", ["flip", None, Flip(), [Flip()], 3])
def test_what_is_no_constraint(wrong: Any) -> None:
    with pytest.raises(SymmetryError, match=r"it is no constraint. Give Invariant\(Flip\(\), \"w\"\)"):
        densify.SymmetricLinear((6, 5, 5), 4, wrong)
    with pytest.raises(SymmetryError, match="it is no constraint"):
        penalty(torch.zeros(4, 5), wrong)


def test_a_map_that_is_not_flattened() -> None:
    layer = densify.SymmetricLinear((6, 5, 5), 4, Invariant(Flip(), "w"))
    with pytest.raises(UsageError, match=r"\[3, 6, 5, 5\].*reads 150 features.*x.flatten\(1\)"):
        layer(torch.zeros(3, 6, 5, 5))
    assert layer(torch.zeros(3, 6, 5, 5).flatten(1)).shape == (3, 4)
