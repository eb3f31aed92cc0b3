"""ONNX graphs in float16 and of later opsets: as good as float16 is, with sizes computed exactly; what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch
from cli import densify as command
from laws.onnx import Node, graph, integers

import densify
from densify.comparison import Report, Tolerance
from densify.errors import ConversionError, TargetError, UsageError
from densify.onnx.conversion import build_for, in_half, options_of, origin_of
from densify.onnx.file import save_onnx
from densify.onnx.half import graph_to_half
from densify.onnx.model import OnnxModel
from densify.onnx.runtime import Runtime
from densify.onnx.verification import verify_half, verify_onnx_laws
from densify.samples import Sample
from densify.targets import find

FRONT: list[Node] = [
    ("Conv", ["input", "first"], ["a"], {"pads": [1, 1, 1, 1]}),
    ("MaxPool", ["a"], ["b"], {"kernel_shape": [3, 3], "strides": [2, 2], "pads": [1, 1, 1, 1]}),
    ("Conv", ["b", "second"], ["c"], {}),
    ("MaxPool", ["c"], ["d"], {"kernel_shape": [2, 2], "strides": [2, 2]}),
]
WEIGHTS = {"first": integers(4, 3, 3, 3) / 8, "second": integers(4, 4, 3, 3, seed=1) / 8}
SIZES = ((17, 22), (33, 30))


def source(*nodes: Node, **weights: Any) -> OnnxModel:
    """Two poolings, and these nodes behind "d"."""
    return graph([*FRONT, *nodes], {**WEIGHTS, **weights}, ("N", 3, "H", "W"))


def halves(made_of: OnnxModel, sizes: Any = SIZES, scale: float = 1, **choice: Any) -> tuple[Report, Any]:
    """What float16 costs, and the dense graph in float16."""
    options = options_of(made_of, (3, 17, 22), **(choice or {"output_stride": 1}))
    made = [build_for(made_of, options, origin_of(made_of), find("ort"), half=half) for half in (False, True)]
    images = [torch.randn(2, 3, *size, generator=torch.Generator().manual_seed(0)) * scale for size in sizes]
    samples = [Sample(str(list(x.shape)), x) for x in images]
    laws = verify_onnx_laws(None, made[1], [Sample(one.name, one.tensor.half()) for one in samples])
    return verify_half(made[0], made[1], samples, Tolerance()) + laws, made[1]


TAILS: dict[str, tuple[list[Node], dict[str, Any]]] = {
    "convolution": ([("Conv", ["d", "last"], ["output"], {})], {"last": integers(2, 4, 2, 3) / 8}),
    "power pooling": ([("LpPool", ["d"], ["output"], {"kernel_shape": [2, 2], "strides": [1, 1]})], {}),
    "weights turned first": (
        [("Transpose", ["last"], ["k"], {"perm": [1, 0, 2, 3]}), ("Conv", ["d", "k"], ["output"], {})],
        {"last": integers(4, 2, 2, 3) / 8},
    ),
    "classifier": (
        [("GlobalAveragePool", ["d"], ["e"], {}), ("Flatten", ["e"], ["f"], {}),
         ("Gemm", ["f", "fc", "bias"], ["output"], {"transB": 1})],
        {"fc": integers(5, 4) / 8, "bias": integers(5)},
    ),
    "a number past float16's least": (
        [("Abs", ["d"], ["e"], {}), ("Max", ["e", "least"], ["f"], {}), ("Sub", ["d", "d"], ["g"], {}),
         ("Div", ["g", "f"], ["h"], {}), ("Add", ["h", "d"], ["output"], {})],
        {"least": np.float32(1e-12)},
    ),
    "clipped at float32's ends": (
        [("Clip", ["d", "low", "high"], ["output"], {})],
        {"low": np.finfo("f").min, "high": np.finfo("f").max},
    ),
}  # fmt: skip


@pytest.mark.parametrize("form", ["dilated", "fragments"])
@pytest.mark.parametrize("name", TAILS)
def test_as_good_as_float16_at_every_size(name: str, form: str, tmp_path: Path) -> None:
    nodes, weights = TAILS[name]
    made_of = source(*nodes, **weights)
    report, dense = halves(made_of, output_stride=1, form=form)
    assert report, report.failed
    assert {check.law for check in report.checks} >= {"half", "weights", "grid", "phases", "size"}
    assert {check.tolerance for check in report.checks if check.law != "size"} <= {1e-2, 0.0}
    assert all(check.relative < 3e-3 for check in report.checks)
    model = ir.to_proto(dense.graph)
    onnx.checker.check_model(model, full_check=True)
    half = onnx.TensorProto.FLOAT16
    assert {value.type.tensor_type.elem_type for value in (*model.graph.input, *model.graph.output)} == {half}
    assert {tensor.data_type for tensor in model.graph.initializer} == {half}


def test_what_sizes_are_computed_with_stays_float32() -> None:
    """Columns past 2048, which float16 cannot count; the scales of a Resize, which are no float16 numbers."""
    nodes: list[Node] = [
        ("Conv", ["d", "last"], ["e"], {}),
        ("Resize", ["e", "", "scales"], ["f"], {"mode": "linear"}),
        ("Shape", ["f"], ["shape"], {"start": 3, "end": 4}), ("Squeeze", ["shape"], ["count"], {}),
        ("Range", ["zero", "count", "one"], ["columns"], {}), ("Cast", ["columns"], ["numbers"], {"to": 1}),
        ("Mul", ["numbers", "tenth"], ["tenths"], {}), ("Floor", ["tenths"], ["tens"], {}),
        ("Mod", ["tens", "two"], ["stripes"], {"fmod": 1}), ("Add", ["f", "stripes"], ["output"], {}),
    ]  # fmt: skip
    numbers = {
        "scales": np.array([1, 1, 1, 1.7777], "f"), "zero": np.int64(0), "one": np.int64(1), "tenth": np.float32(0.1),
        "two": np.float32(2),
    }  # fmt: skip
    made_of = source(*nodes, last=integers(2, 4, 1, 1) / 8, **numbers)
    report, dense = halves(made_of, ((9, 12001),), start="d")
    assert report, report.failed
    kept = dense.source.weights
    assert {name for name, tensor in kept.items() if tensor.dtype == ir.DataType.FLOAT} == {"scales", "tenth", "two"}
    assert all((kept[name].numpy() == numbers[name]).all() for name in numbers)


def test_a_number_that_scales_maps_and_sizes_stays_float32() -> None:
    """8196 samples, pooled to 4098, which float16 does not have: 4096 * 1.5 are 6144 and not 6147."""
    nodes: list[Node] = [
        ("Conv", ["input", "first"], ["a"], {}),
        ("MaxPool", ["a"], ["b"], {"kernel_shape": [2], "strides": [2]}), ("Mul", ["b", "factor"], ["c"], {}),
        ("Shape", ["c"], ["head"], {"end": 2}), ("Shape", ["c"], ["length"], {"start": 2}),
        ("Cast", ["length"], ["number"], {"to": 1}), ("Mul", ["number", "factor"], ["longer"], {}),
        ("Cast", ["longer"], ["count"], {"to": 7}), ("Concat", ["head", "count"], ["sizes"], {"axis": 0}),
        ("Resize", ["c", "", "", "sizes"], ["output"], {"mode": "nearest"}),
    ]  # fmt: skip
    weights = {"first": integers(2, 1, 1, least=1), "factor": np.float32(1.5)}
    made = in_half(graph(nodes, weights, ("N", 1, "W")))
    kinds = {name: tensor.dtype for name, tensor in made.weights.items()}
    assert kinds == {"first": ir.DataType.FLOAT16, "factor": ir.DataType.FLOAT}
    with Runtime("the graph") as runtime:
        (output,) = runtime.rounding(made.graph)(torch.ones(1, 1, 8196).half()).values()
    assert output.shape == (1, 2, 6147)


def test_an_overflow_between_two_ops_is_found() -> None:
    """ONNX Runtime's CPU alone would not make inf of it."""
    up: list[Node] = [("Mul", ["d", "much"], ["e"], {}), ("Mul", ["e", "little"], ["output"], {})]
    made_of = source(*up, much=np.float32(60000), little=np.float32(1 / 60000))
    report, _ = halves(made_of, scale=8)
    assert not report
    assert any("is the first that is not finite" in check.note for check in report.failed)


def test_refusals() -> None:
    tail: Node = ("Mul", ["d", "much"], ["output"], {})
    with pytest.raises(ConversionError, match="'much' holds 70000, which float16 cannot"):
        in_half(source(tail, much=np.full((1, 4, 1, 1), 7e4, "f")))
    once = in_half(source(tail, much=np.float32(2)))
    with pytest.raises(UsageError, match=r"float16 is made of graphs in float32"):
        in_half(once)


@pytest.mark.parametrize("half", [False, True])
def test_export(half: bool, tmp_path: Path) -> None:
    nodes, weights = TAILS["classifier"]
    dense = densify.convert(source(*nodes, **weights), (1, 3, 17, 22), output_stride=1)
    made = densify.export(dense, tmp_path / "a.onnx", target="openvino", opset=21, static=True, half=half)
    assert (made.opset, made.target, made.dynamic) == (21, "openvino", {})
    assert made.fixed == {"batch": 1, "height": 17, "width": 22}
    assert made.files == (tmp_path / "a.onnx",)
    again = densify.load_onnx(tmp_path / "a.onnx")
    assert isinstance(again, densify.DenseOnnx)
    x = torch.randn(1, 3, 17, 22).to(torch.float16 if half else torch.float32)
    assert densify.verify(None, again, x)
    with pytest.raises(UsageError, match="has its own size"):
        densify.export(dense, tmp_path / "b.onnx", (1, 3, 17, 22))  # type: ignore[call-overload]


@pytest.mark.parametrize("half", [False, True])
def test_the_way_back_from_a_file_of_one_size_takes_every_size(half: bool, tmp_path: Path) -> None:
    nodes, weights = TAILS["convolution"]
    first, second = tmp_path / "a.onnx", tmp_path / "b.onnx"
    densify.export(densify.convert(source(*nodes, **weights), (1, 3, 17, 22), output_stride=1), first, static=True)
    dense = densify.load_onnx(first)
    assert isinstance(dense, densify.DenseOnnx)
    densify.export(dense, second, half=half)
    ways = [densify.inverse(one) for one in (dense, first, second)]
    assert [way.declared() for way in ways if isinstance(way, OnnxModel)] == [(None, 3, None, None)] * 3


def test_what_is_spread_over_a_map_is_no_initializer_of_a_file_of_one_size() -> None:
    nodes: list[Node] = [
        ("Shape", ["d"], ["shape"], {}), ("ConstantOfShape", ["shape"], ["zeros"], {}),
        ("Add", ["zeros", "gain"], ["gains"], {}), ("Mul", ["d", "gains"], ["output"], {}),
    ]  # fmt: skip
    made_of = source(*nodes, gain=integers(1, 4, 1, 1, least=1))
    options = options_of(made_of, (3, 17, 22), output_stride=1)
    dense = build_for(made_of, options, origin_of(made_of), find("ort"), static=True)
    assert list(dense.graph.graph.initializers) == ["first", "second", "gain"]
    report = verify_onnx_laws(None, dense, [Sample("x", torch.randn(1, 3, 17, 22))])
    assert report, report.failed


def test_opset() -> None:
    nodes, weights = TAILS["convolution"]
    dense = densify.convert(source(*nodes, **weights), (1, 3, 17, 22), output_stride=1)
    build: dict[str, Any] = {"options": dense.options, "origin": dense.origin, "target": find("ort")}
    assert build_for(dense.source, **build).opset == 17
    later = build_for(dense.source, **build, opset=22)
    assert later.opset == 22
    assert verify_onnx_laws(None, later, [Sample("x", torch.randn(1, 3, 17, 22))])
    with pytest.raises(UsageError, match=r"opset 13: .* is of 17"):
        build_for(dense.source, **build, opset=13)


def test_a_graph_of_a_later_opset_than_its_target_takes(tmp_path: Path) -> None:
    nodes, weights = TAILS["convolution"]
    made_of = graph([*FRONT, *nodes], {**WEIGHTS, **weights}, ("N", 3, "H", "W"), opset=22)
    dense = densify.convert(made_of, (1, 3, 17, 22), output_stride=1)
    with pytest.raises(TargetError, match='is of opset 22; the target "portable" takes those up to 20'):
        densify.export(dense, tmp_path / "a.onnx", target="portable")
    assert not list(tmp_path.iterdir())
    assert densify.export(dense, tmp_path / "a.onnx", target="tensorrt").opset == 22


def test_commands(tmp_path: Path) -> None:
    nodes, weights = TAILS["classifier"]
    net, dense, back = (tmp_path / name for name in ("net.onnx", "dense.onnx", "back.onnx"))
    save_onnx(source(*nodes, **weights).graph, net)
    how = ("--input-size", "3,17,22", "--start", "b")
    made = command("convert", net, *how, "--half", "--opset", "21", "-o", dense, "--json")
    assert made.status == 0, made.stderr
    assert "opset 17 -> 21: as asked for" in made.stderr
    laws = {(check["law"], check["runtime"]) for check in made.document["checks"]}
    assert ("half", "onnxruntime, float16 after every op") in laws
    for others in ((), (net,)):
        told = command("verify", dense, *others)
        assert told.status == 0, told.stderr
    assert command("inverse", dense, "-o", back).status == 0
    other = onnx.load(net)
    model = ir.from_proto(other)
    graph_to_half(model)
    assert list(onnx.load(back).graph.node) == list(other.graph.node)
    wanted = [tensor.raw_data for tensor in ir.to_proto(model).graph.initializer]
    assert [onnx.numpy_helper.to_array(t).tobytes() for t in onnx.load(back).graph.initializer] == wanted
