"""Export targets: what is written for each runs and holds nothing that it refuses; what they refuse, they refuse."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch
import torch.nn.functional as F
from cli import densify as command
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper
from runtimes import EVERYTHING, openvino, verify_everywhere
from small import Residual, images, seeded
from torch import Tensor, nn

import densify
from densify.cli import options
from densify.errors import ConversionError, TargetError, UsageError
from densify.layers.windows import shifted_maximum
from densify.onnx.file import OnnxSession
from densify.onnx.lower import max_pool
from densify.samples import Sample
from densify.targets import OPSETS, TARGETS, Fact, Target, avoided, check, find, refusals

SIZES = ((17, 22), (24, 19))


class Pools(nn.Module):
    """Max pooling of all kinds: in ceil mode in front of what is chosen and behind, padded, dilated in the original."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.early = nn.Conv2d(3, 4, 3, padding=1), nn.MaxPool2d(3, 2, ceil_mode=True)
        self.main = nn.MaxPool2d(3, 2, 1)
        self.late = nn.Sequential(nn.Conv2d(4, 4, 3, padding=1), nn.MaxPool2d(2, 1, 1, dilation=2), nn.Conv2d(4, 2, 1))

    def forward(self, x: Tensor) -> Tensor:
        scores: Tensor = self.late(self.main(self.early(self.stem(x))))
        return scores


class Indices(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        pooled, places = F.max_pool2d(self.conv(x), 2, return_indices=True)
        return F.max_unpool2d(pooled, places, (2, 2))


@pytest.mark.parametrize(("target", "form"), [*((target, "dilated") for target in TARGETS), ("openvino", "fragments")])
def test_what_is_written_for_a_target(target: str, form: str, tmp_path: Path) -> None:
    """It runs everywhere where it may, whatever it was written for, and holds nothing that the target refuses."""
    model = seeded(Pools()).float()
    dense = densify.convert(model, (1, 3, 17, 22), start="main", form=form)
    made = densify.export(dense, tmp_path / "dense.onnx", target=target)
    assert (made.target, made.opset) == (target, find(target).opset)
    assert made.form == (find(target).form or form)
    written = ir.load(tmp_path / "dense.onnx")
    assert refusals(written, find(target)) == avoided(written, find(target)) == []
    samples = [Sample(str(size), images(*size).float()) for size in SIZES]
    report = verify_everywhere(tmp_path / "dense.onnx", dense, samples)
    assert report, report.failed
    assert {check.runtime for check in report.checks} >= EVERYTHING - {"openvino"}
    assert target not in ("openvino", "portable") or {check.runtime for check in report.checks} == EVERYTHING
    dilations = [node for node in written.graph if node.op_type == "MaxPool" and _values(node, "dilations", 1) != {1}]
    assert bool(dilations) == (find(target).max_pool == "native")


def _values(node: ir.Node, name: str, default: int) -> set[int]:
    attribute = node.attributes.get(name)
    return {default} if attribute is None else set(attribute.as_ints())


@pytest.mark.parametrize("target", ["openvino", "tensorrt"])
def test_a_plain_model_is_written_for_a_target_too(target: str, tmp_path: Path) -> None:
    model = seeded(Pools()).float()
    made = densify.export(model, tmp_path / "plain.onnx", (1, 3, 17, 22), target=target)
    assert (made.form, made.target) == (None, target)
    report = verify_everywhere(
        tmp_path / "plain.onnx", model, [Sample(str(size), images(*size).float()) for size in SIZES]
    )
    assert report, report.failed


geometry = st.tuples(
    st.integers(1, 3), st.integers(1, 3), st.integers(1, 4), st.integers(0, 7), st.booleans(), st.integers(1, 3)
)


@given(geometry, geometry, st.sampled_from(list(TARGETS)), st.integers(1, 3))
def test_max_pooling_is_rewritten_exactly(a: Any, b: Any, target: str, rank: int) -> None:
    """At every geometry, in ceil mode and not, and in integers."""
    kernel, stride, dilation = ((a[i], b[i], a[i])[:rank] for i in (0, 1, 2))
    padding = tuple(k // 2 for k in kernel)
    sizes = [d * (k - 1) + 1 + more for d, k, more in zip(dilation, kernel, (a[3], b[3], 1), strict=False)]
    x = torch.randint(-9, 9, (2, 3, *sizes), dtype=torch.float64) - 20.0  # all below 0: padding with zeros would show
    pool: Callable[..., Tensor] = {1: F.max_pool1d, 2: F.max_pool2d, 3: F.max_pool3d}[rank]
    expected = pool(x, kernel, stride, padding, dilation, ceil_mode=a[4])
    assert torch.equal(max_pool(find(target), rank, x, kernel, stride, padding, dilation, a[4]), expected)


def test_a_map_smaller_than_a_window_is_no_empty_one() -> None:
    with pytest.raises(RuntimeError, match="max pooling over 5 samples reads a map that has 3"):
        shifted_maximum(torch.zeros(1, 1, 3), 2, 3, 2, 1)


def test_convolutions_that_openvino_cannot_compile_run_in_fragments(tmp_path: Path) -> None:
    model = seeded(nn.Sequential(nn.Conv2d(3, 4, 3, 2, 1), nn.ReLU(), nn.Conv2d(4, 2, 3, dilation=17))).float()
    dense = densify.convert(model, (1, 3, 73, 80), output_stride=1)
    file = tmp_path / "dense.onnx"
    assert densify.export(dense, file, target="openvino").form == "fragments"
    report = verify_everywhere(file, dense, [Sample("odd", images(75, 74).float())], reference=False)
    assert report, report.failed
    assert "openvino" in {check.runtime for check in report.checks}
    valid = densify.convert(model, (1, 3, 73, 80), output_stride=1, padding="valid")
    with pytest.raises(TargetError, match="dilated taps that reach 64 samples"):
        densify.export(valid, tmp_path / "valid.onnx", target="openvino")
    with pytest.raises(UsageError, match='padding="valid" does not have'):
        densify.export(valid, tmp_path / "valid.onnx", target="portable")
    assert list(tmp_path.iterdir()) == [file]


def test_what_a_target_refuses_is_not_written(tmp_path: Path) -> None:
    with pytest.raises(TargetError) as caught:
        densify.export(seeded(Indices()).float(), tmp_path / "net.onnx", (1, 3, 16, 16), target="tensorrt")
    message = str(caught.value)
    for part in ("TensorRT", "MaxPool with indices", "builtin_op_static_checkers", "ort and openvino take it"):
        assert part in message
    assert caught.value.exit_status == 3
    with pytest.raises(UsageError, match="target='tvm' is not one of ort, openvino, tensorrt, portable"):
        densify.export(Residual(), tmp_path / "net.onnx", (1, 3, 17, 22), target="tvm")
    with pytest.raises(UsageError, match='opset 25: the target "portable" takes those from 18 to 20'):
        densify.export(Residual(), tmp_path / "net.onnx", (1, 3, 17, 22), target="portable", opset=25)
    assert not list(tmp_path.iterdir())


@dataclass(frozen=True)
class Node:
    """A node that a fact is about, and attributes (None: without it) that make it harmless; None: any such op is."""

    op: str
    attributes: dict[str, Any]
    harmless: dict[str, Any] | None
    inputs: tuple[tuple[Any, ...], ...] = (("n", 2, "h", "w"),)
    outputs: int = 1
    behind: str = ""  # an op between its first input and it

    def model(self, **changed: Any) -> onnx.ModelProto:
        given = {name: value for name, value in {**self.attributes, **changed}.items() if value is not None}
        outputs = [f"y{i}" for i in range(given.pop("outputs", self.outputs))]
        shapes = given.pop("inputs", self.inputs)
        names, behind = [f"x{i}" for i in range(len(shapes))], given.pop("behind", self.behind)
        front = [helper.make_node(behind, names[:1], ["front"])] if behind else []
        node = helper.make_node(self.op, ["front", *names[1:]] if front else names, outputs, name="this", **given)
        values = [
            helper.make_tensor_value_info(x, TensorProto.FLOAT, shape) for x, shape in zip(names, shapes, strict=True)
        ]
        made = [helper.make_tensor_value_info(y, TensorProto.FLOAT, None) for y in outputs]
        graph = helper.make_graph([*front, node], "graph", values, made)
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)


_POOL = {"kernel_shape": [2, 2], "strides": [2, 2]}
_LINE, _MAP, _VOLUME = ("n", 2, "l"), ("n", 2, "h", "w"), ("n", 2, "d", "h", "w")
# For every kind of fact, by its words, what it is about.
NODES: dict[str, Node] = {
    "an output_padding that reaches its stride": Node(
        "ConvTranspose", {"output_padding": [1, 1], "strides": [1, 1], "dilations": [2, 2]}, {"strides": [2, 2]},
        (_MAP, (2, 2, 3, 3)),
    ),
    "dilations and padding in front": Node(
        "MaxPool", {**_POOL, "dilations": [2, 1], "pads": [1, 0, 0, 0]}, {"pads": [0, 0, 1, 0]}
    ),
    "dilations": Node("MaxPool", {**_POOL, "dilations": [1, 2]}, {"dilations": [1, 1]}),
    "dynamic sizes and dilated taps that reach 64 samples past the padding": Node(
        "Conv", {"kernel_shape": [3, 3], "dilations": [1, 33], "pads": [0, 1, 0, 1]}, {"dilations": [31, 32]},
        (_MAP, (2, 2, 3, 3)),
    ),
    "ceil_mode": Node("MaxPool", {**_POOL, "ceil_mode": 1}, {"ceil_mode": 0}),
    "ceil_mode, padding and count_include_pad": Node(
        "AveragePool", {**_POOL, "ceil_mode": 1, "pads": [0, 1, 0, 1], "count_include_pad": 1}, {"pads": [0, 0, 0, 0]}
    ),
    "what follows from sizes": Node("Abs", {}, {"behind": ""}, behind="Shape"),
    "antialias": Node("Resize", {"mode": "linear", "antialias": 1}, {"antialias": 0}),
    "a rare coordinate mode": Node(
        "Resize", {"coordinate_transformation_mode": "half_pixel_symmetric"}, {"coordinate_transformation_mode": None}
    ),
    "a keep_aspect_ratio_policy": Node(
        "Resize", {"keep_aspect_ratio_policy": "not_larger"}, {"keep_aspect_ratio_policy": "stretch"}
    ),
    "cubic mode and exclude_outside": Node("Resize", {"mode": "cubic", "exclude_outside": 1}, {"mode": "linear"}),
    "cubic mode": Node("Resize", {"mode": "cubic"}, {"mode": "linear"}),
    'mode "wrap"': Node("Pad", {"mode": "wrap"}, {"mode": "edge"}),
    'mode "max"': Node("RoiAlign", {"mode": "max"}, {"mode": "avg"}),
    "five axes": Node("GridSample", {"inputs": (_VOLUME, ("n", 2, 2, 2, 3))}, {"inputs": (_MAP, ("n", 2, 2, 2))}),
    "an output_shape": Node("MaxUnpool", {**_POOL, "inputs": (_MAP, _MAP, (4,))}, {"inputs": (_MAP, _MAP)}),
    "a scale that the graph makes": Node("LayerNormalization", {}, None, (_MAP, (1, 1, 1, 1))),
    "indices": Node("MaxPool", {**_POOL, "outputs": 2}, {"outputs": 1}),
    "one spatial axis": Node(
        "MaxPool", {"kernel_shape": [2], "inputs": (_LINE,)}, {"kernel_shape": [2, 2], "inputs": (_MAP,)}
    ),
    "three spatial axes": Node(
        "Conv", {"inputs": (_VOLUME, (2, 2, 3, 3, 3))}, {"inputs": (_MAP, (2, 2, 3, 3))}
    ),
}  # fmt: skip

FACTS = [(target, fact) for target in TARGETS.values() for fact in (*target.refuses, *target.avoids)]


@pytest.mark.parametrize(("target", "fact"), FACTS, ids=lambda value: getattr(value, "name", None))
def test_every_fact_finds_what_it_is_about_and_nothing_else(target: Target, fact: Fact) -> None:
    look = refusals if fact in target.refuses else avoided
    for op in fact.ops:
        example = NODES[fact.what] if fact.what else Node(op, {}, None)
        node = replace(example, op=op)
        found = [one for one in look(ir.from_proto(node.model()), target) if one.fact is fact]
        assert [(one.node, one.op) for one in found] == [("this", op)]
        for words in (op, fact.what, fact.reason, fact.source):
            assert words in str(found[0])
        if node.harmless is not None:
            assert fact not in [one.fact for one in look(ir.from_proto(node.model(**node.harmless)), target)]


def test_a_dilated_pooling_is_refused_for_portable_and_a_plain_one_is_not() -> None:
    pool = NODES["dilations"]
    check(ir.from_proto(pool.model()), find("ort"))
    check(ir.from_proto(pool.model(dilations=[1, 1])), find("portable"))
    with pytest.raises(TargetError, match="this .MaxPool with dilations.*tract ignored"):
        check(ir.from_proto(pool.model()), find("portable"))


def _saved(model: onnx.ModelProto, path: Path, *constants: Any) -> Path:
    """The model with constants for all inputs but the first, in a file."""
    del model.graph.input[1:]
    for i, value in enumerate(constants, 1):
        model.graph.initializer.append(onnx.numpy_helper.from_array(np.asarray(value), f"x{i}"))
        if f"x{i}" not in model.graph.node[0].input:
            model.graph.node[0].input.append(f"x{i}")
    onnx.save(model, path)
    return path


WEIGHT = np.ones((2, 2, 3, 3), np.float32)


# A runtime that passes one of these no longer needs the fact in its table.
@pytest.mark.parametrize(
    ("what", "constant"),
    [
        ("dynamic sizes and dilated taps that reach 64 samples past the padding", WEIGHT),
        ('mode "wrap"', np.array([0, 0, 1, 1, 0, 0, 1, 1])),
    ],
)
def test_openvino_refuses_it(what: str, constant: Any, tmp_path: Path) -> None:
    path = _saved(NODES[what].model(), tmp_path / "node.onnx", constant)
    assert OnnxSession(path, optimised=True)(np.zeros((1, 2, 70, 99), np.float32))
    with pytest.raises(RuntimeError):
        openvino(path)


def test_onnx_runtime_refuses_an_overhanging_output_padding(tmp_path: Path) -> None:
    path = _saved(NODES["an output_padding that reaches its stride"].model(), tmp_path / "node.onnx", WEIGHT)
    x = np.zeros((1, 2, 6, 5), np.float32)
    assert openvino(path)(x)[0].shape == (1, 2, 11, 10)
    with pytest.raises(ConversionError, match="ONNX Runtime fails on"):
        OnnxSession(path, optimised=False)(x)


def test_openvino_loses_maps_whose_scale_is_made(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("ReduceMean", ["x", "axes"], ["m"]),
        helper.make_node("LayerNormalization", ["x", "m"], ["y"], axis=-1),
    ]
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", "h", "w", 4]) for name in "xy")
    graph = helper.make_graph(nodes, "graph", [x], [y], [onnx.numpy_helper.from_array(np.array([1, 2]), "axes")])
    path = tmp_path / "norm.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9), path)
    given = np.random.default_rng(0).random((2, 5, 3, 4), np.float32)
    assert OnnxSession(path, optimised=False)(given)[0].shape == (2, 5, 3, 4)
    with suppress(RuntimeError):
        made = openvino(path)(given)[0]
        assert made.shape != (2, 5, 3, 4)


def test_openvino_leaves_sizes_below_0(tmp_path: Path) -> None:
    """The absolute of 3 - 5, as the length of a tensor."""
    steps = [("Shape", "x", "n"), ("Sub", "n five", "d"), ("Abs", "d", "e"), ("ConstantOfShape", "e", "y")]
    nodes = [helper.make_node(op, read.split(), [made]) for op, read, made in steps]
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, [f"of {name}"]) for name in "xy")
    five = onnx.numpy_helper.from_array(np.array([5]), "five")
    graph = helper.make_graph(nodes, "graph", [x], [y], [five])
    path = tmp_path / "sizes.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9), path)
    given = np.zeros(3, np.float32)
    assert OnnxSession(path, optimised=True)(given)[0].shape == (2,)
    with suppress(RuntimeError):  # with several threads it says that -2 is no length
        assert openvino(path)(given)[0].shape != (2,)


@pytest.mark.parametrize("what", ["ceil_mode", "ceil_mode, padding and count_include_pad"])
def test_openvino_counts_windows_otherwise(what: str, tmp_path: Path) -> None:
    x = images(7, 7, channels=2).float()
    if what == "ceil_mode":
        model = NODES[what].model(strides=[4, 4])
        expected = F.max_pool2d(x, 2, 4, ceil_mode=True)
    else:
        model = NODES[what].model(kernel_shape=[4, 4], strides=[3, 3], pads=[1, 1, 1, 1])
        expected = F.avg_pool2d(x, 4, 3, 1, ceil_mode=True)
    path = _saved(model, tmp_path / "node.onnx")
    (right,), (wrong,) = OnnxSession(path, optimised=True)(x.numpy()), openvino(path)(x.numpy())
    assert np.allclose(right, expected)
    assert wrong.shape != right.shape or not np.allclose(wrong, right, atol=1e-3)


def test_the_command_line_has_the_tables_targets() -> None:
    assert [target.value for target in options.Target] == list(TARGETS)
    assert all(target.opset in target.opsets and set(target.opsets) <= set(OPSETS) for target in TARGETS.values())


DOCS = (Path(__file__).parent.parent / "docs" / "targets.md").read_text()


def _rows(target: Target) -> str:
    """What docs/targets.md says of a target's facts."""
    lines = []
    for kind, facts in (("refused", target.refuses), ("not written", target.avoids)):
        for fact in facts:
            ops = ", ".join(fact.ops) + (f" with {fact.what}" if fact.what else "")
            lines.append(f"| {kind} | {ops} | {fact.reason} | {fact.source} |")
    return "\n".join(lines)


@pytest.mark.parametrize("name", TARGETS)
def test_the_docs_show_the_table(name: str) -> None:
    target = TARGETS[name]
    form = "as asked for" if target.form is None else target.form
    pooling = {"native": "MaxPool with dilations", "shifts": "maxima of shifted slices"}[target.max_pool]
    ceil = "as it is" if target.ceil_mode else "padding and a crop"
    opsets = f"{target.opsets[0]} to {target.opsets[-1]}, default {target.opset}"
    checked = "run" if target.run else "its list"
    assert f"| `{name}` | {target.runtime} | {form} | {pooling} | {ceil} | {opsets} | {checked} |\n" in DOCS
    assert f"\n{_rows(target)}\n\n" in DOCS


def test_the_table_needs_neither_torch_nor_onnx() -> None:
    program = (
        "import sys, densify.targets; print([m for m in ('torch', 'onnx', 'onnx_ir', 'typer') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_the_command_line_says_what_a_target_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    layers = "nn.Conv2d(3, 4, 3), nn.MaxPool2d(2), nn.Conv2d(4, 2, 3)"
    (tmp_path / "net.py").write_text(f"from torch import nn\ndef net():\n    return nn.Sequential({layers})\n")
    arguments = ("net.py:net", "--init", "random", "--start", "1", "--input-size", "3,20,24")
    files = {name: tmp_path / name for name in ("dense.safetensors", "dense.onnx", "fast.onnx")}
    made = command(
        "convert", *arguments, "--target", "portable", "-o", files["dense.safetensors"], "-o", files["dense.onnx"]
    )
    assert made.status == 0, made.stderr
    assert "dense.onnx: in the fragments form, as the target portable takes it" in made.stderr
    assert onnx.load(files["dense.onnx"]).opset_import[0].version == 18
    back = command("inverse", files["dense.onnx"], "--trust-code", "--target", "tensorrt", "-o", files["fast.onnx"])
    assert back.status == 0, back.stderr
    lost = command("convert", *arguments, "--target", "portable", "-o", tmp_path / "other.safetensors")
    assert lost.status == 2
    assert "--target portable: no output is an .onnx file" in lost.stderr
    assert not (tmp_path / "other.safetensors").exists()
