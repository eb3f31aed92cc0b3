"""ONNX export: what comes out has the model's numbers at every size, its names, its bytes, and nothing else."""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch
import torch.nn.functional as F
import torchvision
from hypothesis import given
from hypothesis import strategies as st
from runtimes import sessions
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from densify import targets
from densify.errors import CheckpointError, ConversionError, DensifyError, UnsafeError, UsageError
from densify.onnx import export as export_module
from densify.onnx import file as onnx_file
from densify.onnx.export import ExportResult, export_onnx
from densify.onnx.file import STATE_KEY, OnnxSession, load_onnx, read_onnx_weights, run_onnx
from densify.onnx.lower import adaptive_avg_pool, avg_pool_with_divisor
from densify.targets import OPSETS

SIZES = ((2, 3, 37, 46), (1, 3, 33, 20), (3, 3, 24, 57))


class Lattices(nn.Module):
    """What a dense network is made of, by hand: -inf padding, dilation, far side, depthwise sums, per-phase means."""

    def __init__(self, dilation: int = 2) -> None:
        super().__init__()
        self.dilation = dilation
        self.stem = nn.Conv2d(3, 6, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(6)
        self.late = nn.Conv2d(6, 5, 3)
        self.first = nn.Parameter(torch.ones(5))
        self.second = nn.Parameter(torch.ones(5))
        self.unused = nn.Linear(3, 2)

    def far_side(self, x: Tensor, axis: int, total: Any, period: int) -> Tensor:
        have = x.shape[axis]
        t = torch.arange(total)
        return x.index_select(axis, torch.where(t < have, t, have - period + t % period))

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        x = F.relu(self.norm(self.stem(x)))
        n, m = x.shape[2], x.shape[3]
        x = F.max_pool2d(F.pad(x, (1, 0, 1, 1), value=-torch.inf), 3, 1)
        for axis, size in ((2, n), (3, m)):
            x = self.far_side(x, axis, torch.sym_max(4 * (size // 2), x.shape[axis]), 2)
        x = F.max_pool2d(F.pad(x, (2, 4, 2, 4), value=-torch.inf), 3, 1, dilation=self.dilation)
        x = F.conv2d(x, self.late.weight, self.late.bias, dilation=4, padding=4)
        x = F.conv2d(x, torch.ones(5, 1, 2, 2), groups=5) / 4
        x = x + self.first[:, None, None] * self.second[:, None, None]
        b, c, h, w = x.shape
        x = x[:, :, : h // 4 * 4, : w // 4 * 4]
        return {"map": x, "phases": x.reshape(b, c, h // 4, 4, w // 4, 4).mean((2, 4))}


class Applied(nn.Module):
    """A convolution, then any function."""

    def __init__(self, function: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3)
        self.function = function

    def forward(self, x: Tensor) -> Any:
        return self.function(self.conv(x))


def alive(model: nn.Module, example: Tensor) -> nn.Module:
    """He weights, BatchNorm statistics measured on data and gains all non-zero: no signal dies on the way."""
    for module in model.modules():
        if isinstance(module, (nn.Conv2d, nn.Linear)):
            nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
        elif isinstance(module, nn.BatchNorm2d):
            module.momentum = None  # the plain average of what it sees
            module.reset_running_stats()
            nn.init.uniform_(module.weight, 0.7, 1.3)
            nn.init.normal_(module.bias, std=0.2)
    with torch.no_grad():
        model.train()(example)
    return model.eval()


def relative(a: Tensor, b: Tensor) -> float:
    """max|a-b| / max|b|; something that is not a number equals nothing."""
    error = float((a - b).abs().max() / b.abs().max())
    assert math.isfinite(error)
    return error


def outputs(model: nn.Module, x: Tensor) -> list[Tensor]:
    with torch.no_grad():
        return pytree.tree_leaves(model.eval()(x))


def worst_error(model: nn.Module, path: Path, sizes: tuple[tuple[int, ...], ...]) -> float:
    """The largest relative error of all runtimes, over sizes and outputs; the slow one runs small inputs alone."""
    worst = 0.0
    for _, session in sessions(path, reference=all(math.prod(size) < 8000 for size in sizes)):
        for size in sizes:
            x = torch.randn(size)
            for a, b in zip(session(x.numpy()), outputs(model, x), strict=True):
                assert a.shape == tuple(b.shape)
                worst = max(worst, relative(torch.from_numpy(a), b))
    return worst


def own_error(model: nn.Module, size: tuple[int, ...]) -> float:
    """How far the model's own float32 is from its float64."""
    x = torch.randn(size)
    exact = copy.deepcopy(model).double()
    return max(relative(a.double(), b) for a, b in zip(outputs(model, x), outputs(exact, x.double()), strict=True))


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> tuple[nn.Module, Path, ExportResult]:
    torch.manual_seed(0)
    model = alive(Lattices(), torch.randn(4, 3, 40, 40))
    path = tmp_path_factory.mktemp("export") / "net.onnx"
    return model, path, export_onnx(model, path, torch.randn(1, 3, 37, 46), metadata={"recipe": "{}"})


def test_constructs_of_dense_networks_agree_at_every_size(exported: tuple[nn.Module, Path, ExportResult]) -> None:
    model, path, _ = exported
    assert worst_error(model, path, SIZES) < 1e-5
    wrong = Lattices(dilation=1)
    wrong.load_state_dict(model.state_dict())
    with pytest.raises(AssertionError):
        assert worst_error(wrong, path, SIZES) < 1e-5


def test_names_and_axes(exported: tuple[nn.Module, Path, ExportResult]) -> None:
    _, path, result = exported
    graph = load_onnx(path).graph
    axes = [
        [dim.dim_param or dim.dim_value for dim in v.type.tensor_type.shape.dim] for v in (*graph.input, *graph.output)
    ]
    assert [value.name for value in (*graph.input, *graph.output)] == ["input", "map", "phases"]
    assert axes[0] == ["batch", 3, "height", "width"]
    assert axes[1][:2] == ["batch", 5]
    assert "height" in str(axes[1][2])
    assert "width" in str(axes[1][3])
    assert axes[2] == ["batch", 5, 4, 4]
    assert (result.outputs, set(result.dynamic), result.fixed) == (("map", "phases"), {"batch", "height", "width"}, {})


def test_the_file_is_valid_and_its_metadata_is_kept(exported: tuple[nn.Module, Path, ExportResult]) -> None:
    _, path, result = exported
    onnx.checker.check_model(str(path), full_check=True)
    weights, metadata = read_onnx_weights(path)
    assert metadata["recipe"] == "{}"
    assert load_onnx(path).opset_import[0].version == result.opset
    assert load_onnx(path).producer_name == "pytorch"
    assert set(result.weights) == {name for name in weights if not name.endswith("num_batches_tracked")}


def test_weights_come_back_whole(exported: tuple[nn.Module, Path, ExportResult]) -> None:
    """The unused head, the integer counter and two equal parameters included."""
    model, path, _ = exported
    weights, _ = read_onnx_weights(path)
    state = model.state_dict()
    assert weights.keys() == state.keys()
    assert all(weights[name].dtype == state[name].dtype and torch.equal(weights[name], state[name]) for name in state)
    Lattices().load_state_dict(weights, strict=True)


def test_nothing_of_this_machine_is_inside(exported: tuple[nn.Module, Path, ExportResult], tmp_path: Path) -> None:
    model, path, _ = exported
    foreign = [str(Path.home()), str(Path.cwd()), str(Path(__file__).parent), "site-packages", "stack_trace", ".py"]
    content = path.read_bytes()
    assert [text for text in foreign if text.encode() in content] == []
    raw = torch.onnx.export(model, (torch.randn(2, 3, 37, 46),), dynamo=True, optimize=False, verbose=False)
    assert raw is not None
    raw.save(tmp_path / "raw.onnx")
    assert b".py" in (tmp_path / "raw.onnx").read_bytes()  # the exporter left to itself


def test_quiet_and_the_model_is_as_before(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    model = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.Sequential(nn.BatchNorm2d(4), nn.Dropout()).eval(), nn.MaxPool2d(2, ceil_mode=True)
    )
    modes = [module.training for module in model.modules()]
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    export_onnx(model, tmp_path / "net.onnx", torch.randn(1, 3, 21, 17))
    assert capfd.readouterr() == ("", "")
    assert [module.training for module in model.modules()] == modes
    assert all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())
    assert worst_error(model, tmp_path / "net.onnx", ((1, 3, 21, 17), (2, 3, 30, 14))) < 2e-6


@pytest.mark.parametrize("opset", [OPSETS[0], 22, OPSETS[-1]])
def test_the_opset_asked_for_is_produced(tmp_path: Path, opset: int) -> None:
    model = Applied(lambda x: F.avg_pool2d(F.pad(x, (1, 1, 1, 1)), 3, 2, ceil_mode=True))
    result = export_onnx(model, tmp_path / "net.onnx", torch.randn(1, 3, 20, 24), opset=opset)
    assert result.opset == opset == load_onnx(tmp_path / "net.onnx").opset_import[0].version
    assert worst_error(model, tmp_path / "net.onnx", ((1, 3, 20, 24), (2, 3, 17, 35))) < 2e-6


@pytest.mark.parametrize("opset", [7, 13, 17, OPSETS[-1] + 1])
def test_an_opset_that_cannot_be_produced_is_refused(tmp_path: Path, opset: int) -> None:
    with pytest.raises(UsageError, match=f"opset {opset} cannot be produced. Ask for one from 18 to {OPSETS[-1]}"):
        export_onnx(Applied(F.relu), tmp_path / "net.onnx", torch.randn(1, 3, 20, 24), opset=opset)
    assert list(tmp_path.iterdir()) == []


def test_an_exporter_that_produces_another_opset_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(targets, "OPSETS", range(7, 30))
    any_opset = replace(targets.find("ort"), opsets=range(7, 30))
    with pytest.raises(UsageError, match="opset 17 cannot be produced"):
        export_onnx(
            Applied(lambda x: F.pad(x, (1, 1))),
            tmp_path / "net.onnx",
            torch.randn(1, 3, 20, 24),
            target=any_opset,
            opset=17,
        )


@given(st.integers(1, 9), st.integers(1, 9), st.integers(1, 7), st.integers(1, 7))
def test_adaptive_pooling_is_exact(n: int, m: int, bins: int, others: int) -> None:
    x = torch.randn(2, 3, n, m, dtype=torch.float64)
    expected = F.adaptive_avg_pool2d(x, (bins, others))
    assert torch.allclose(adaptive_avg_pool(x, (bins, others)), expected, rtol=0, atol=1e-12)


@given(st.integers(1, 4), st.integers(1, 5), st.integers(0, 2), st.integers(0, 8), st.booleans())
def test_own_divisors_are_exact(k: int, s: int, p: int, more: int, ceil: bool) -> None:
    x = torch.randn(2, 3, k + more, k + 1, dtype=torch.float64)
    args = ((k, k), (s, s), (min(p, k // 2),) * 2, ceil, True, 5)
    expected = F.avg_pool2d(x, *args)
    assert torch.allclose(avg_pool_with_divisor(x, *args), expected, rtol=0, atol=1e-12)


def pools(x: Tensor) -> Tensor:
    """An own divisor, bins that do not divide, global pooling: what the exporter gets wrong and what it gets right."""
    x = F.avg_pool2d(x, 3, 2, 1, ceil_mode=True, divisor_override=7)
    x = F.avg_pool2d(F.adaptive_avg_pool2d(x, (5, 3)), 2, 1)
    return x + F.adaptive_avg_pool2d(x, 1)


def test_pooling_that_the_exporter_gets_wrong_is_lowered(tmp_path: Path) -> None:
    model = Applied(pools)
    export_onnx(model, tmp_path / "net.onnx", torch.randn(1, 3, 22, 32))
    assert worst_error(model, tmp_path / "net.onnx", ((1, 3, 22, 32), (2, 3, 17, 41), (1, 3, 30, 11))) < 2e-6
    raw = torch.onnx.export(model, (torch.randn(1, 3, 22, 32),), dynamo=True, optimize=False, verbose=False)
    assert raw is not None
    raw.save(tmp_path / "raw.onnx")
    with pytest.raises(AssertionError):  # the exporter left to itself drops the divisor
        assert worst_error(model, tmp_path / "raw.onnx", ((1, 3, 22, 32),)) < 1e-2


def test_pooling_to_a_part_or_a_multiple_of_the_size(tmp_path: Path) -> None:
    def areas(x: Tensor) -> list[Tensor]:
        wide = F.interpolate(x, scale_factor=2, mode="area")
        return [wide, F.interpolate(x, scale_factor=0.5, mode="area"), F.adaptive_avg_pool2d(x, (None, 3))]

    model = Applied(areas)
    result = export_onnx(model, tmp_path / "net.onnx", torch.randn(1, 3, 20, 24))
    assert set(result.dynamic) == {"batch", "height", "width"}
    assert worst_error(model, tmp_path / "net.onnx", ((1, 3, 20, 24), (2, 3, 17, 33))) < 2e-6


def test_axes_that_the_model_binds_are_fixed_and_reported(tmp_path: Path) -> None:
    path = tmp_path / "net.onnx"
    result = export_onnx(Applied(lambda x: x.view(-1, 8, 18, x.shape[3])), path, torch.randn(1, 3, 20, 24))
    assert (set(result.dynamic), result.fixed) == ({"batch", "width"}, {"height": 20})
    assert run_onnx(path, np.zeros((3, 3, 20, 31), np.float32), optimised=True)[0].shape == (3, 8, 18, 29)
    with pytest.raises(ConversionError, match="ONNX Runtime fails on"):
        run_onnx(path, np.zeros((1, 3, 21, 24), np.float32), optimised=True)
    result = export_onnx(Applied(lambda x: x.view(1, 8, *x.shape[2:])), path, torch.randn(1, 3, 20, 24))
    assert result.fixed == {"batch": 1}
    result = export_onnx(Applied(lambda x: 2 * x if x.shape[2] > 9 else x), path, torch.randn(1, 3, 20, 24))
    assert (result.dynamic["height"], result.dynamic["batch"]) == ((12, None), (1, None))


@pytest.mark.parametrize(("rank", "axes"), [(1, {"batch", "length"}), (3, {"batch", "depth", "height", "width"})])
def test_other_ranks(tmp_path: Path, rank: int, axes: set[str]) -> None:
    conv, pool = ((nn.Conv1d, F.max_pool1d), (nn.Conv3d, F.max_pool3d))[rank == 3]

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = conv(2, 3, 3)

        def forward(self, x: Tensor) -> Any:
            return pool(pool(self.conv(x), 2, 1, dilation=2), 3, padding=1, ceil_mode=True)

    model = Net()
    result = export_onnx(model, tmp_path / "net.onnx", torch.randn(1, 2, *range(9, 9 + rank)))
    assert set(result.dynamic) == axes
    assert worst_error(model, tmp_path / "net.onnx", ((2, 2, *range(7, 7 + rank)),)) < 2e-6


def test_output_names(tmp_path: Path) -> None:
    example, path = torch.randn(1, 3, 20, 24), tmp_path / "net.onnx"
    assert export_onnx(Applied(lambda x: (x, [x, x + 1])), path, example).outputs == (
        "output.0",
        "output.1.0",
        "output.1.1",
    )
    assert export_onnx(Applied(lambda x: {"a": x, "b": None}), path, example).outputs == ("a",)
    assert export_onnx(Applied(lambda x: (x, x)), path, example, output_names=["u", "v"]).outputs == ("u", "v")
    for names in (["u"], ["u", "u"], ["u", "input"]):
        with pytest.raises(UsageError, match="the model has 2 outputs"):
            export_onnx(Applied(lambda x: (x, x)), path, example, output_names=names)


class Stateful(nn.Module):
    """Tied weights, a constant and a buffer that are no state, a bool mask, and names like those of graph values."""

    def __init__(self) -> None:
        super().__init__()
        self.input = nn.Conv2d(3, 3, 3, padding=1)
        self.output = nn.Conv2d(3, 3, 3, padding=1)
        self.output.weight = self.input.weight
        self.register_buffer("transient", torch.arange(3.0), persistent=False)
        self.register_buffer("mask", torch.tensor([True, False]))
        self.register_buffer("brief", torch.ones(2, dtype=torch.bfloat16))

    def forward(self, x: Tensor) -> Tensor:
        scale = torch.tensor([1.0, 2.0, -0.0])[:, None, None]
        x = F.relu(self.input(x) * scale)
        return torch.add(self.output(x), self.get_buffer("transient")[:, None, None])


def test_initializers_are_the_state_and_nothing_else(tmp_path: Path) -> None:
    model, path = Stateful(), tmp_path / "net.onnx"
    export_onnx(model, path, torch.randn(1, 3, 8, 9))
    names = [tensor.name for tensor in load_onnx(path).graph.initializer]
    tied = json.loads(read_onnx_weights(path)[1][STATE_KEY])["tied"]
    assert sorted([*names, *tied]) == sorted(model.state_dict())
    assert len(tied) == 1
    weights, _ = read_onnx_weights(path)
    assert weights["input.weight"].data_ptr() == weights["output.weight"].data_ptr()
    model.load_state_dict(weights, strict=True)
    assert worst_error(model, path, ((1, 3, 8, 9), (2, 3, 5, 13))) < 2e-6


def test_the_file_written_by_hand_is_protobufs_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    models: list[ir.Model] = []

    def save(model: ir.Model, path: Path) -> tuple[Path, ...]:
        models.append(model)
        return onnx_file.save_onnx(model, path)

    monkeypatch.setattr(export_module, "save_onnx", save)
    export_onnx(Applied(F.relu), tmp_path / "net.onnx", torch.randn(1, 3, 20, 24))
    ir.save(models[0], tmp_path / "library.onnx")
    ours, theirs = load_onnx(tmp_path / "net.onnx"), load_onnx(tmp_path / "library.onnx")
    weights = {tensor.name: tensor for tensor in theirs.graph.initializer}
    assert {tensor.name: tensor for tensor in ours.graph.initializer} == weights
    assert len(weights) == 2
    # The library describes initializers a second time, among the intermediate values.
    described = [value for value in theirs.graph.value_info if value.name not in weights]
    del theirs.graph.value_info[:]
    theirs.graph.value_info.extend(described)
    assert ours == theirs


def test_a_weight_that_the_exporter_changed_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = Applied(F.relu)

    def tampered(translated: ir.Model, path: Path) -> tuple[Path, ...]:
        weight = model.conv.weight.detach().clone()
        weight[0, 0, 0, 0] = torch.nextafter(weight[0, 0, 0, 0], torch.tensor(torch.inf))
        translated.graph.initializers["conv.weight"].const_value = ir.tensor(weight.numpy(), name="conv.weight")
        return onnx_file.save_onnx(translated, path)

    monkeypatch.setattr(export_module, "save_onnx", tampered)
    with pytest.raises(ConversionError, match=r"changed the weight 'conv\.weight'"):
        export_onnx(model, tmp_path / "net.onnx", torch.randn(1, 3, 20, 24))
    assert list(tmp_path.iterdir()) == []


def test_large_weights_go_to_a_second_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onnx_file, "ONE_FILE_LIMIT", 100)
    model, path = Applied(F.relu), tmp_path / "net.onnx"
    result = export_onnx(model, path, torch.randn(1, 3, 20, 24))
    assert result.files == (path, tmp_path / "net.onnx.data")
    assert all(torch.equal(tensor, model.state_dict()[name]) for name, tensor in read_onnx_weights(path)[0].items())
    assert worst_error(model, path, ((2, 3, 17, 12),)) < 2e-6
    (tmp_path / "net.onnx.data").write_bytes(b"short")
    with pytest.raises(CheckpointError, match="conv"):
        read_onnx_weights(path)
    (tmp_path / "net.onnx.data").unlink()
    with pytest.raises(CheckpointError, match="conv"):
        read_onnx_weights(path)


@pytest.mark.parametrize(
    "location", ["../secret", "/etc/hostname", "sub/../../secret", "link", "C:\\secret", "..\\secret"]
)
def test_weights_outside_the_folder_are_refused(tmp_path: Path, location: str) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    (tmp_path / "secret").write_bytes(bytes(8))
    (folder / "link").symlink_to(tmp_path / "secret")
    tensor = onnx.TensorProto(
        name="w", dims=[2], data_type=onnx.TensorProto.FLOAT, data_location=onnx.TensorProto.EXTERNAL
    )
    tensor.external_data.add(key="location", value=location)
    model = onnx.helper.make_model(onnx.helper.make_graph([], "g", [], [], [tensor]))
    (folder / "net.onnx").write_bytes(model.SerializeToString())
    with pytest.raises(UnsafeError, match="outside the file's own folder"):
        read_onnx_weights(folder / "net.onnx")


def _bad_files(good: bytes) -> dict[str, bytes]:
    short = onnx.TensorProto(name="w", dims=[2**40], data_type=onnx.TensorProto.FLOAT, raw_data=bytes(8))
    odd = onnx.TensorProto(name="w", dims=[1], data_type=onnx.TensorProto.STRING, string_data=[b"x"])
    files = {"empty": b"", "text": b"no model at all\n", "cut off": good[: len(good) * 2 // 3], "zeros": bytes(100)}
    for name, tensor in (("short", short), ("strings", odd)):
        model = onnx.helper.make_model(onnx.helper.make_graph([], "g", [], [], [tensor]))
        files[name] = model.SerializeToString()
    model = onnx.helper.make_model(
        onnx.helper.make_graph([], "g", [], [], [onnx.TensorProto(name="w", data_type=1, raw_data=bytes(4))])
    )
    model.metadata_props.add(key=STATE_KEY, value='{"counters": {}, "tied": {"a": "absent"}}')
    return {**files, "state": model.SerializeToString()}


@pytest.mark.parametrize("kind", ["empty", "text", "cut off", "zeros", "short", "strings", "state"])
def test_files_that_are_no_models(exported: tuple[nn.Module, Path, ExportResult], tmp_path: Path, kind: str) -> None:
    path = tmp_path / "net.onnx"
    path.write_bytes(_bad_files(exported[1].read_bytes())[kind])
    with pytest.raises(CheckpointError):
        read_onnx_weights(path)
    if kind in ("empty", "text", "cut off", "zeros"):
        with pytest.raises(ConversionError, match="ONNX Runtime cannot load it"):
            OnnxSession(path, optimised=True)


def test_missing_files(tmp_path: Path) -> None:
    for read in (read_onnx_weights, lambda path: OnnxSession(path, optimised=True)):
        with pytest.raises(UsageError, match="there is no such file"):
            read(tmp_path / "absent.onnx")


@pytest.mark.parametrize(
    ("function", "words"),
    [
        (lambda x: x.view(7, -1), "cannot be exported"),
        (lambda x: F.adaptive_max_pool2d(x, 3), "cannot be exported: adaptive max pooling to"),
        (
            lambda x: F.interpolate(x, scale_factor=0.5, mode="bilinear", antialias=True),
            "cannot be exported: antialiased interpolation by",
        ),
    ],
)
def test_models_that_cannot_be_exported(tmp_path: Path, function: Callable[[Tensor], Tensor], words: str) -> None:
    with pytest.raises(ConversionError, match=words) as caught:
        export_onnx(Applied(function), tmp_path / "net.onnx", torch.randn(1, 3, 20, 24))
    assert "\n" not in str(caught.value)
    assert isinstance(caught.value, DensifyError)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("name", "size", "other"),
    [
        ("alexnet", (96, 96), (81, 110)),
        ("resnet18", (64, 64), (57, 90)),
        ("squeezenet1_1", (64, 64), (57, 90)),
        ("googlenet", (64, 64), (57, 90)),
    ],
)
def test_plain_torchvision_models(tmp_path: Path, name: str, size: tuple[int, int], other: tuple[int, int]) -> None:
    options = {"init_weights": False, "aux_logits": False} if name == "googlenet" else {}
    model = alive(torchvision.models.get_model(name, num_classes=10, **options), torch.randn(8, 3, *size))
    first, second = (outputs(model, torch.randn(1, 3, *size))[0] for _ in range(2))
    assert relative(first, second) > 0.01
    result = export_onnx(model, tmp_path / "net.onnx", torch.randn(1, 3, *size))
    assert (set(result.dynamic), result.outputs) == ({"batch", "height", "width"}, ("output",))
    tolerance = max(1e-5, 10 * own_error(model, (1, 3, *size)))
    assert tolerance < 1e-3
    assert worst_error(model, tmp_path / "net.onnx", ((1, 3, *size), (2, 3, *other))) < tolerance
