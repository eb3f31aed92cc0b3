"""ONNX files in float16: as good as float16 is at every size, with sizes computed exactly."""

from __future__ import annotations

import copy
import math
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from cli import DIGITS, WEIGHTS
from cli import densify as command
from small import Residual, images, seeded
from test_dense_export import CASES
from test_static_export import transposed
from torch import Tensor, nn

import densify
from densify.errors import ConversionError, UsageError
from densify.onnx.file import load_onnx, read_onnx_weights
from densify.onnx.half import half_state
from densify.onnx.rounding import RoundingSession
from densify.samples import Sample
from densify.verification import verify_onnx

SIZES = ((17, 22), (33, 30))
HALF = onnx.TensorProto.FLOAT16
FORMS = {name: CASES[name] for name in ("kept", "fragments", "ceil")}
FORMS["average of shifts"] = (transposed, {"output_stride": 1, "merge": "average"})


def samples(*sizes: tuple[int, int]) -> list[Sample]:
    return [Sample(str(size), images(*size).float()) for size in sizes]


@pytest.mark.parametrize("name", FORMS)
def test_agrees_with_float32_at_every_size(name: str, tmp_path: Path) -> None:
    factory, choice = FORMS[name]
    dense = densify.convert(seeded(factory()).float(), (1, 3, 17, 22), **choice)
    path = tmp_path / "half.onnx"
    made = densify.export(dense, path, half=True, static=name == "ceil")
    onnx.checker.check_model(str(path), full_check=True)
    graph = load_onnx(path).graph
    assert {value.type.tensor_type.elem_type for value in (*graph.input, *graph.output)} == {HALF}
    assert {tensor.data_type for tensor in graph.initializer} == {HALF}
    given = [Sample("x", images(17, 22, batch=1).float())] if made.fixed else samples(*SIZES)
    report = verify_onnx(path, dense, given)
    assert report, report.failed
    assert {check.tolerance for check in report.checks} == {1e-2}
    assert all(1e-5 < check.relative < 3e-3 for check in report.checks)  # it is float16, and no worse than float16
    weights, state = read_onnx_weights(path)[0], dense.state_dict()
    assert weights.keys() == state.keys()
    assert all(torch.equal(weights[name], state[name].half()) for name in state if state[name].is_floating_point())


class Ramp(nn.Module):
    """Adds what depends on the column's number; divides by 1e-12, and pads with -inf."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 2, (1, 3), padding=(0, 1))

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        column, zero = torch.arange(x.shape[3], dtype=x.dtype), x * 0
        x = x + zero / zero.abs().clamp(min=1e-12) + nn.functional.max_pool2d(x, 3, 1, 1)
        return x + torch.floor((column + 0.5) * 0.1) % 2


def test_sizes_past_2048_are_exact(tmp_path: Path) -> None:
    """Coordinates in float16 would be a column off from 2048 on: with the model brought to float16 they are."""
    net, wide = seeded(Ramp()).float(), samples((5, 5001))
    densify.export(net, tmp_path / "half.onnx", (1, 3, 6, 40), half=True)
    report = verify_onnx(tmp_path / "half.onnx", net, wide)
    assert report, report.failed
    densify.export(copy.deepcopy(net).half(), tmp_path / "all.onnx", (1, 3, 6, 40))
    assert not verify_onnx(tmp_path / "all.onnx", net, wide)


def test_resampling_reads_the_right_samples_of_a_wide_map(tmp_path: Path) -> None:
    dense = densify.convert(seeded(transposed()).float(), (1, 3, 17, 22), output_stride=1, merge="resample")
    densify.export(dense, tmp_path / "half.onnx", half=True)
    assert verify_onnx(tmp_path / "half.onnx", dense, samples((17, 22), (9, 4501)))


@pytest.mark.parametrize("number", [65520.0, 1e9])
def test_a_weight_past_the_largest_number_is_refused(number: float, tmp_path: Path) -> None:
    net = seeded(Residual()).float()
    with torch.no_grad():
        net.get_buffer("norm.running_var")[1] = number
    with pytest.raises(ConversionError, match=r"'norm\.running_var' holds .*largest number is 65504"):
        densify.export(net, tmp_path / "half.onnx", (1, 3, 17, 22), half=True)
    assert list(tmp_path.iterdir()) == []


class Through(nn.Module):
    """A convolution, then a constant."""

    def __init__(self, constant: float) -> None:
        super().__init__()
        self.conv, self.constant = nn.Conv2d(3, 2, 3), constant

    def forward(self, x: Tensor) -> Tensor:
        return torch.maximum(self.conv(x), torch.tensor(-self.constant)).clamp(max=self.constant)


def test_constants_past_the_largest_number(tmp_path: Path) -> None:
    """Extremes of float32 mean "no bound", and stay extremes."""
    with pytest.raises(ConversionError, match="the constant .* holds 1e\\+09"):
        densify.export(Through(1e9), tmp_path / "half.onnx", (1, 3, 9, 8), half=True)
    assert list(tmp_path.iterdir()) == []
    for constant in (torch.finfo(torch.float32).max, math.inf):
        net, path = Through(constant), tmp_path / f"{constant}.onnx"
        densify.export(net, path, (1, 3, 9, 8), half=True)
        assert verify_onnx(path, net, samples((9, 8)))


def test_an_op_that_overflows_is_named(tmp_path: Path) -> None:
    """Also where a later op makes finite numbers of it: a device would have inf there."""
    first, last = nn.Conv2d(3, 2, 1), nn.Conv2d(2, 1, 1)
    net = nn.Sequential(first, nn.ReLU(), last)
    nn.init.constant_(first.weight, 6e4)
    nn.init.constant_(last.weight, 1e-4)
    densify.export(net, tmp_path / "half.onnx", (1, 3, 9, 8), half=True)
    report = verify_onnx(tmp_path / "half.onnx", net, samples((9, 8)))
    assert not report
    notes = {check.note for check in report.failed}
    assert notes == {"overflows in float16: Conv 'conv2d' is the first that is not finite"}


def test_every_op_is_rounded(tmp_path: Path) -> None:
    """ONNX Runtime's CPU by itself keeps what float16 cannot hold: 2048 + 1 - 2048 is 0 there, not 1."""

    class Lossy(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return nn.functional.max_pool2d(nn.functional.avg_pool2d(x + 2048, 1) + 1, 1) - 2048

    densify.export(Lossy(), tmp_path / "half.onnx", (1, 3, 9, 8), half=True)
    assert RoundingSession(tmp_path / "half.onnx")(torch.zeros(1, 3, 5, 4))["output"].eq(0).all()


def test_parts_of_a_tensor(tmp_path: Path) -> None:
    """A split."""

    class Parts(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            a, b = torch.cat([x, x * 2], dim=1).chunk(2, dim=1)
            return a + b

    densify.export(Parts(), tmp_path / "half.onnx", (1, 3, 9, 8), half=True)
    assert "Split" in {node.op_type for node in load_onnx(tmp_path / "half.onnx").graph.node}
    assert verify_onnx(tmp_path / "half.onnx", Parts(), samples((9, 8), (7, 12)))


def test_what_shares_memory_still_does_and_integers_stay() -> None:
    a = torch.randn(3)
    made = half_state({"a": a, "b": a, "n": torch.tensor(3), "d": torch.ones(1, dtype=torch.float64)})
    assert made["a"].data_ptr() == made["b"].data_ptr()
    assert [tensor.dtype for tensor in made.values()] == [torch.float16, torch.float16, torch.int64, torch.float64]


def test_networks_of_another_type_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="made of networks in float32; this one takes torch.float64"):
        densify.export(seeded(Residual()), tmp_path / "half.onnx", (1, 3, 17, 22), half=True)
    assert list(tmp_path.iterdir()) == []


def test_commands(tmp_path: Path) -> None:
    path, back = tmp_path / "half.onnx", tmp_path / "fast.safetensors"
    made = command("convert", DIGITS, "--weights", WEIGHTS, "--start", "pool3", "--half", "-o", path, "--json")
    assert made.status == 0, made.stderr
    runs = [check for check in made.document["checks"] if check["law"] == "onnx"]
    assert {check["tolerance"] for check in runs} == {1e-2}
    assert command("verify", path, "--trust-code").status == 0
    given = command("inverse", path, "--trust-code", "--weights", WEIGHTS, "-o", back, "--json")
    assert given.status == 0, given.stderr
    assert max(change["relative"] for change in given.document["changed"]) < 2**-11
    dense = densify.load(path, trust_code=True)
    assert {tensor.dtype for tensor in dense.parameters()} == {torch.float16}
    x = np.random.default_rng(0).standard_normal((1, 3, 35, 33))
    assert dense(torch.from_numpy(x).half()).isfinite().all()
