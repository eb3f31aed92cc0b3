"""Graphs as Keras, old and later exporters write them: heads, opsets, sizes that are written out; the same laws."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch
from laws.onnx import Node, graph, integers, run
from test_onnx_ops import CONV, LAST, OPEN, WEIGHTS, between, check, op

from densify.errors import RefusedError
from densify.onnx.conversion import convert_onnx
from densify.onnx.model import OnnxModel, at_opset
from densify.onnx.packing import inverse_onnx
from densify.onnx.verification import verify_onnx_laws
from densify.onnx.writing import metadata_of
from densify.samples import Sample


def _keras(batch: str | int, *spatial: str | int) -> OnnxModel:
    """A classifier as tf2onnx writes it: channels last outside, a flatten in that order, MatMul and Add."""
    nodes: list[Node] = [
        ("Transpose", ["input"], ["x"], {"perm": [0, 3, 1, 2]}),
        ("Conv", ["x", "first"], ["a"], {"strides": [2, 2], "auto_pad": "SAME_UPPER"}),
        ("Relu", ["a"], ["c"], {}),
        ("MaxPool", ["c"], ["d"], {"kernel_shape": [2, 2], "strides": [2, 2], "auto_pad": "VALID"}),
        ("Transpose", ["d"], ["e"], {"perm": [0, 2, 3, 1]}),
        ("Reshape", ["e", "flat"], ["f"], {}),
        ("MatMul", ["f", "k"], ["g"], {}),
        ("Add", ["g", "v"], ["h"], {}),
        ("Softmax", ["h"], ["output"], {"axis": 1}),
    ]
    weights = {
        "first": integers(4, 3, 3, 3), "flat": np.array([-1, 80]), "k": integers(80, 5, seed=2), "v": integers(5),
    }  # fmt: skip
    return graph(nodes, weights, (batch, *spatial, 3), opset=11)


@pytest.mark.parametrize("shape", [("N", "H", "W"), (1, 17, 22)])
def test_a_keras_classifier(shape: tuple[str | int, ...]) -> None:
    source = _keras(*shape)
    for form in ("dilated", "fragments"):
        dense = convert_onnx(source, (3, 17, 22), output_stride=1, form=form)
        sizes = [(1, 3, 17, 22)] if shape[0] == 1 else [(2, 3, 17, 22), (1, 3, 33, 30)]
        samples = [Sample(str(size), torch.from_numpy(integers(*size, seed=8))) for size in sizes]
        report = verify_onnx_laws(None, dense, samples)
        assert report, report.failed
        assert "head" in {check.law for check in report.checks}


@pytest.mark.parametrize(
    ("mode", "coordinates", "rounding"),
    [
        ("nearest", "asymmetric", "floor"), ("nearest", "half_pixel", "round_prefer_floor"),
        ("linear", "half_pixel", "floor"), ("linear", "align_corners", "floor"), ("linear", "asymmetric", "floor"),
        ("cubic", "half_pixel", "floor"), ("cubic", "pytorch_half_pixel", "floor"),
    ],
)  # fmt: skip
def test_resize_in_its_coordinate_modes(mode: str, coordinates: str, rounding: str) -> None:
    """Between two joins of maps, where the density of the other one stays."""
    pool: Node = op("MaxPool", kernel_shape=[2, 2], strides=[2, 2], out="p")
    again: Node = ("MaxPool", ["p"], ["q"], {"kernel_shape": [2, 2], "strides": [2, 2]})
    resize: Node = (
        "Resize", ["q", "", "scales"], ["r"],
        {"mode": mode, "coordinate_transformation_mode": coordinates, "nearest_mode": rounding},
    )  # fmt: skip
    join: Node = ("Concat", ["r", "q2"], ["b"], {"axis": 1})
    crop: Node = ("Conv", ["p", "k"], ["q2"], {})
    last: Node = ("Conv", ["b", "wide"], ["output"], {})
    weights = {"scales": np.array([1, 1, 2, 2], "f"), "k": integers(4, 4, 1, 1, seed=3), "wide": integers(2, 8, 1, 1)}
    source = graph([CONV, pool, again, resize, crop, join, last], {**WEIGHTS, **weights}, OPEN)
    dense = convert_onnx(source, (3, 16, 24), output_stride=1)
    samples = [Sample(str(s), torch.from_numpy(integers(1, 3, *s, seed=9))) for s in ((16, 24), (32, 20))]
    report = verify_onnx_laws(None, dense, samples)
    assert report, report.failed
    assert dense.plan.merges


@pytest.mark.parametrize("opset", [7, 8, 9, 10, 11, 13, 18, 21])
def test_old_and_new_opsets(opset: int) -> None:
    pads = {"pads": [0, 0, 1, 1, 0, 0, 1, 1]} if opset < 11 else {}
    given = ["pads"] if opset >= 11 else []
    weights: dict[str, Any] = {"pads": np.array([0, 0, 1, 1, 0, 0, 1, 1])} if given else {}
    pool: Node = op("MaxPool", kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1], out="p")
    pad: Node = ("Pad", ["p", *given], ["b"], pads)
    check(between(pool, pad, opset=opset, **weights))


@pytest.mark.parametrize("opset", [7, 8])
def test_constants_that_old_opsets_lack(opset: int) -> None:
    """All that is written of this graph are integers and a kernel of ones."""
    strided: Node = ("Conv", ["input", "k"], ["a"], {"strides": [2, 2]})
    pool: Node = ("AveragePool", ["a"], ["output"], {"kernel_shape": [2, 3]})
    source = graph([strided, pool], {"k": integers(4, 3, 2, 2)}, (1, 3, 17, 23), opset=opset)
    dense = convert_onnx(source, output_stride=1)
    assert dense.opset == 9
    onnx.checker.check_model(ir.to_proto(dense.graph), full_check=True)
    report = verify_onnx_laws(None, dense, [Sample("x", torch.from_numpy(integers(1, 3, 17, 23, seed=7)))])
    assert report, report.failed


@pytest.mark.parametrize("mode", ["nearest", "linear"])
@pytest.mark.parametrize("opset", [7, 9, 10])
def test_a_raised_opset_leaves_samples_where_they_were(mode: str, opset: int) -> None:
    """ONNX's converter alone would move those of an interpolation by half a sample."""
    attributes = {"mode": mode, "scales": [1.0, 1.0, 2.0, 3.0]} if opset < 9 else {"mode": mode}
    given = [] if opset < 9 else ["scales"]
    resize: Node = op("Resize" if opset > 9 else "Upsample", *given, **attributes)
    scales: dict[str, Any] = {"scales": np.array([1, 1, 2, 3], "f")} if given else {}
    source = between(resize, opset=opset, **scales)
    x = torch.from_numpy(integers(2, 3, 7, 9, seed=6))
    want, have = (run(graph, x, optimised=False) for graph in (source.graph, at_opset(source, 12).graph))
    assert torch.equal(want["output"], have["output"])


def test_a_mask_whose_numbers_are_known_for_one_image_alone() -> None:
    """Those of two are too many to be followed; that it runs on one is no fault."""
    two = onnx.numpy_helper.from_array(np.array([2], "f"))
    nodes: list[Node] = [
        op("MaxPool", kernel_shape=[2, 2], strides=[2, 2], out="p"), ("Softmax", ["p"], ["u"], {"axis": 3}),
        ("Shape", ["p"], ["s"], {}), ("ConstantOfShape", ["s"], ["t"], {"value": two}), ("Add", ["u", "t"], ["b"], {}),
    ]  # fmt: skip
    dense = convert_onnx(graph([CONV, *nodes, LAST], WEIGHTS, OPEN), (3, 57, 60), output_stride=1)
    report = verify_onnx_laws(None, dense, [Sample("x", torch.from_numpy(integers(2, 3, 57, 60, seed=7)))])
    assert report, report.failed


@pytest.mark.parametrize("mode", ["nearest", "linear"])
@pytest.mark.parametrize("images", [1, 2])
def test_a_size_that_writes_out_the_images(images: int, mode: str) -> None:
    pool: Node = op("MaxPool", kernel_shape=[3, 3], strides=[3, 3], out="p")
    resize: Node = ("Resize", ["p", "", "", "size"], ["b"], {"mode": mode})
    weights = {**WEIGHTS, "size": np.array([images, 4, 10, 14])}
    source = graph([CONV, pool, resize, LAST], weights, (images, 3, 17, 22))
    sample = Sample("x", torch.from_numpy(integers(images, 3, 17, 22, seed=7)))
    for form in ("dilated", "fragments"):
        dense = convert_onnx(source, output_stride=1, form=form)
        assert dense.lattices["output"] == ((3, 0), (3, 0))
        report = verify_onnx_laws(None, dense, [sample])
        assert report, report.failed


def test_a_shape_that_is_an_output() -> None:
    pool: Node = op("MaxPool", kernel_shape=[2, 2], strides=[2, 2], out="p")
    shape: Node = ("Shape", ["p"], ["shape"], {})
    last: Node = ("Conv", ["p", "last"], ["output"], {})
    source = graph([CONV, pool, shape, last], WEIGHTS, OPEN, outputs=("output", "shape"))
    source.graph.graph.outputs[1].dtype = ir.DataType.INT64
    x = torch.from_numpy(integers(2, 3, 17, 22, seed=7))
    for form in ("dilated", "fragments"):
        dense = convert_onnx(source, (3, 17, 22), output_stride=1, form=form)
        assert run(dense.graph, x)["shape"].tolist() == run(source.graph, x)["shape"].tolist() == [2, 4, 8, 11]


@pytest.mark.parametrize("pad", ["NOTSET", "SAME_UPPER", "SAME_LOWER"])
def test_a_transposed_convolution_that_is_told_its_shape(pad: str) -> None:
    """Its average, against the original on the image and on the image moved by a row."""
    strided: Node = ("Conv", ["input", "k"], ["a"], {"strides": [2, 1]})
    shape = {"output_shape": [9, 13], "auto_pad": pad, "strides": [2, 1]}
    weights = {"k": integers(4, 3, 1, 1), "t": integers(4, 2, 4, 3, seed=2)}
    last: Node = ("ConvTranspose", ["a", "t"], ["output"], shape)
    source = graph([strided, last], weights, (1, 3, 10, 12))
    x = torch.from_numpy(integers(1, 3, 10, 12, seed=3))
    moved = torch.cat([x[:, :, 1:], torch.zeros(1, 3, 1, 12)], 2)
    one, other = (run(source.graph, image)["output"] for image in (x, moved))
    for form in ("dilated", "fragments"):
        made = run(convert_onnx(source, output_stride=1, merge="average", form=form).graph, x)["output"]
        assert torch.equal(made[:, :, 1:], (one[:, :, 1:] + other[:, :, :-1]) / 2)
    with pytest.raises(RefusedError, match="it makes a map of one size"):
        convert_onnx(graph([strided, last], weights, OPEN), (3, 10, 12), output_stride=1, merge="average")


FLATTENED: dict[str, list[Node]] = {
    "dropout": [("Flatten", ["p"], ["f"], {}), ("Dropout", ["f"], ["g"], {}), ("Gemm", ["g", "k"], ["output"], {})],
    "rectified": [("Flatten", ["p"], ["f"], {}), ("Relu", ["f"], ["g"], {}), ("Gemm", ["g", "k"], ["output"], {})],
    "subtracted, channels last": [
        ("Transpose", ["p"], ["t"], {"perm": [0, 2, 3, 1]}), ("Neg", ["t"], ["n"], {}),
        ("Flatten", ["t"], ["f"], {}), ("Flatten", ["n"], ["g"], {}), ("Sub", ["f", "g"], ["h"], {}),
        ("Gemm", ["h", "k"], ["output"], {}),
    ],
    "concatenated": [
        ("Flatten", ["p"], ["f"], {}), ("Neg", ["p"], ["n"], {}), ("Flatten", ["n"], ["g"], {}),
        ("Concat", ["g", "f"], ["h"], {"axis": 1}), ("Gemm", ["h", "wide"], ["output"], {}),
    ],
}  # fmt: skip


@pytest.mark.parametrize("name", FLATTENED)
def test_flattened_windows(name: str) -> None:
    """What stands between a flatten and the layer that reads it."""
    pool: Node = op("MaxPool", kernel_shape=[3, 4], strides=[3, 4], out="p")
    weights = {"first": WEIGHTS["first"], "k": integers(100, 6, seed=2), "wide": integers(200, 6, seed=3)}
    source = graph([CONV, pool, *FLATTENED[name]], weights, OPEN)
    for form in ("dilated", "fragments"):
        dense = convert_onnx(source, (3, 17, 22), output_stride=1, form=form)
        samples = [
            Sample(str(size), torch.from_numpy(integers(*size, seed=8))) for size in ((2, 3, 17, 22), (1, 3, 29, 30))
        ]
        report = verify_onnx_laws(None, dense, samples)
        assert report, report.failed
        assert "head" in {check.law for check in report.checks}


@pytest.mark.parametrize("head", ["dense", "features"])
def test_weights_in_constants_come_back(head: str) -> None:
    """Those of a head that was cut off, too."""
    weight = onnx.numpy_helper.from_array(integers(4, 100, seed=2))
    nodes: list[Node] = [
        op("MaxPool", kernel_shape=[2, 2], strides=[2, 2], out="p"), ("GlobalAveragePool", ["p"], ["g"], {}),
        ("Flatten", ["g"], ["f"], {}), ("Constant", [], ["k"], {"value": weight}),
        ("MatMul", ["f", "k"], ["output"], {}),
    ]  # fmt: skip
    source = graph([CONV, *nodes], {"first": WEIGHTS["first"]}, OPEN)
    dense = convert_onnx(source, (3, 17, 22), output_stride=1, head=head)
    dense.graph.metadata_props.update(metadata_of(dense))
    back = inverse_onnx(OnnxModel(dense.graph, "dense.onnx"))
    x = torch.from_numpy(integers(2, 3, 17, 22, seed=7))
    assert torch.equal(run(back.graph, x)["output"], run(source.graph, x)["output"])
