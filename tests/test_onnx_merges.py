"""Graphs whose upsamplings average or resample: verified by brute force, the graph's own nodes on every phase."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from laws.onnx import Node, exported, graph, integers
from runtimes import agree
from small import seeded
from test_merges import Unpooled

from densify.comparison import Report
from densify.errors import RefusedError, UsageError
from densify.graphs.onnx import layers
from densify.onnx.conversion import DenseOnnx, build_for, convert_onnx
from densify.onnx.model import OnnxModel
from densify.onnx.verification import verify_onnx_laws
from densify.samples import Sample
from densify.targets import find

POOL = {"kernel_shape": [2, 2], "strides": [2, 2]}
FRONT: list[Node] = [
    ("Conv", ["input", "first"], ["a"], {"pads": [1, 1, 1, 1]}),
    ("MaxPool", ["a"], ["y"], POOL),
    ("Conv", ["y", "second"], ["b"], {"pads": [1, 1, 1, 1]}),
    ("MaxPool", ["b"], ["z"], POOL),
]
WEIGHTS: dict[str, Any] = {
    "first": integers(4, 2, 3, 3), "second": integers(4, 4, 3, 3, seed=1), "kernel": integers(4, 4, 4, 3, seed=2),
    "grouped": integers(4, 2, 3, 3, seed=3), "bias": integers(4, seed=4), "last": integers(3, 4, 1, 1, seed=5),
    "scales": integers(4, least=2, most=2) * [0.5, 0.5, 1, 1], "slope": integers(4, 4, seed=6),
}  # fmt: skip
UP: Node = ("ConvTranspose", ["z", "kernel", "bias"], ["u"], {"strides": [2, 2], "pads": [1, 0, 1, 1]})
DOUBLED: dict[str, Any] = {"mode": "linear", "coordinate_transformation_mode": "half_pixel"}

TAILS: dict[str, list[Node]] = {
    "alone": [("ConvTranspose", ["z", "kernel", "bias"], ["output"], UP[3])],
    "padded on one side": [
        ("ConvTranspose", ["z", "kernel"], ["u"], {"strides": [2, 2], "pads": [2, 0, 0, 1]}),
        ("Relu", ["u"], ["output"], {}),
    ],
    "as large as a stride": [
        ("ConvTranspose", ["z", "kernel"], ["u"], {"strides": [2, 2], "auto_pad": "SAME_UPPER"}),
        ("Add", ["u", "y"], ["output"], {}),
    ],
    "groups, longer": [
        ("ConvTranspose", ["z", "grouped", "bias"], ["output"],
         {"strides": [2, 2], "pads": [1, 1, 1, 1], "output_padding": [1, 1], "group": 2}),
    ],
    "a skip and a convolution": [
        UP, ("Add", ["u", "y"], ["v"], {}), ("Conv", ["v", "last"], ["w"], {}), ("Relu", ["w"], ["output"], {}),
    ],
    "interpolated": [
        ("Resize", ["z", "", "scales"], ["u"], DOUBLED), ("Mul", ["u", "y"], ["v"], {}),
        ("Conv", ["v", "last"], ["output"], {}),
    ],
    "channels last": [
        ("Resize", ["z", "", "scales"], ["u"], DOUBLED), ("Transpose", ["u"], ["v"], {"perm": [0, 2, 3, 1]}),
        ("MatMul", ["v", "slope"], ["w"], {}), ("Softmax", ["w"], ["output"], {"axis": -1}),
    ],
    "to the size of another": [
        ("Shape", ["y"], ["whole"], {}), ("Shape", ["z"], ["small"], {}),
        ("Slice", ["whole", "two", "four"], ["rest"], {}), ("Slice", ["small", "zero", "two"], ["front"], {}),
        ("Concat", ["front", "rest"], ["sizes"], {"axis": 0}), ("Resize", ["z", "", "", "sizes"], ["u"], DOUBLED),
        ("Concat", ["u", "y"], ["output"], {"axis": 1}),
    ],
    "twice": [
        UP, ("Relu", ["u"], ["v"], {}), ("Resize", ["v", "", "scales"], ["w"], DOUBLED),
        ("MaxPool", ["w"], ["output"], {"kernel_shape": [3, 3]}),
    ],
}  # fmt: skip
NUMBERS = {"zero": [0], "two": [2], "four": [4]}
SIZES = ((2, 16, 20), (1, 24, 12))


def source(name: str) -> OnnxModel:
    nodes = [*FRONT, *TAILS[name]]
    read = {one for _, inputs, _, _ in nodes for one in inputs}
    weights = {**WEIGHTS, **{key: torch.tensor(numbers).numpy() for key, numbers in NUMBERS.items()}}
    weights["scales"] = weights["scales"].astype("f")
    return graph(nodes, {key: value for key, value in weights.items() if key in read}, ("N", 2, "H", "W"))


def images() -> list[torch.Tensor]:
    return [torch.from_numpy(integers(batch, 2, *size, seed=7)) for batch, *size in SIZES]


def report(dense: DenseOnnx, original: OnnxModel | None = None) -> Report:
    assert dense.lattices["output"].merged
    return verify_onnx_laws(original, dense, [Sample(str(list(x.shape)), x) for x in images()])


def made(of: OnnxModel, how: str, form: str = "dilated") -> DenseOnnx:
    return convert_onnx(of, (2, 16, 20), output_stride=1, merge=how, form=form)


NOT_COMPILED = ("twice", "average", "fragments")  # by OpenVINO, unless its size is fixed (docs/targets.md)
PLACED = "to the size of another"  # whose shifts have no average on its samples
PAIRS = [(name, how) for name in TAILS for how in ("average", "resample") if (name, how) != (PLACED, "average")]


@pytest.mark.parametrize("form", ["dilated", "fragments"])
@pytest.mark.parametrize(("name", "how"), PAIRS)
def test_brute_force(name: str, how: str, form: str) -> None:
    dense = made(source(name), how, form)
    found = report(dense)
    assert found, found.failed
    if (name, how, form) == NOT_COMPILED:
        with pytest.raises(RuntimeError, match="Argument shapes are inconsistent"):
            agree(dense.graph, [x.numpy() for x in images()])
        for shape in (x.shape for x in images()):
            of_one_size = replace(dense.options, shape=tuple(shape))
            fixed = build_for(dense.source, of_one_size, dense.origin, find("openvino"), static=True)
            assert "openvino" in agree(fixed.graph, [integers(*shape, seed=7)])
        return
    runtimes = agree(dense.graph, [x.numpy() for x in images()])
    assert "openvino" in runtimes
    assert "onnx reference" in runtimes or name == "groups, longer"
    checked = {(check.law, check.output) for check in found.checks}
    assert ("merges", "output") in checked
    assert {("grid", "z"), ("size", "z"), ("phases", "z")} <= checked


@pytest.mark.parametrize(("how", "layer"), [("average", "spread_phases"), ("resample", "resample")])
def test_a_wrong_layer_of_both_forms_is_found(how: str, layer: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that reads its map backwards: only brute force tells."""
    right = getattr(layers, layer)

    def wrong(x: Any, *rest: Any) -> Any:
        ends = [x.tape.integers([one]) for one in (-1, -(2**31), 2, -1)]
        return right(x.op("Slice", ends), *rest)

    monkeypatch.setattr(layers, layer, wrong)
    found = report(made(source("interpolated"), how))
    assert {check.law for check in found.failed} == {"merges"}


def test_an_original_with_another_tail_is_found() -> None:
    """Nothing but its nodes tells the two apart."""
    made_of, other = source("interpolated"), source("interpolated")
    tail = next(node for node in other.graph.graph if node.op_type == "Mul")
    tail.op_type = "Add"
    found = report(made(made_of, "average"), other)
    assert {check.law for check in found.failed} == {"merges"}


def test_an_original_without_those_tensors_is_refused() -> None:
    made_of, other = source("interpolated"), source("interpolated")
    pool = next(node for node in other.graph.graph if node.outputs[0].name == "z")
    pool.outputs[0].name = "elsewhere"
    with pytest.raises(UsageError, match="has no tensor 'z': the dense network was made of another graph"):
        report(made(made_of, "average"), other)


def test_max_unpooling_as_it_is_exported_is_refused(tmp_path: Path) -> None:
    """Exporters write it as zeros that numbers are laid into, at the places of the maxima."""
    source = exported(seeded(Unpooled()), (1, 3, 40, 44), tmp_path)
    with pytest.raises(RefusedError, match="pool/MaxPool: the places of its maxima are read. Give the torch model"):
        convert_onnx(source, (3, 40, 44), output_stride=1)
