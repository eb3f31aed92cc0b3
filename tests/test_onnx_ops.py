"""Operators as Keras, Paddle and old exporters write them: laws 1 to 4 in ONNX Runtime, odd and non-square sizes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from laws.onnx import Node, graph, integers
from runtimes import agree, misread

from densify.graphs.onnx.layers import windows
from densify.onnx.conversion import convert_onnx
from densify.onnx.model import OnnxModel
from densify.onnx.packing import inverse_onnx
from densify.onnx.verification import legal, verify_onnx_laws
from densify.onnx.writing import metadata_of
from densify.samples import Sample
from densify.targets import find, refusals

SIZES = ((17, 22), (24, 19), (33, 30))
CONV: Node = ("Conv", ["input", "first"], ["a"], {"pads": [1, 1, 1, 1]})
LAST: Node = ("Conv", ["b", "last"], ["output"], {})
WEIGHTS = {"first": integers(4, 3, 3, 3), "last": integers(2, 4, 2, 3, seed=1)}
OPEN = ("N", 3, "H", "W")


def between(*nodes: Node, opset: int = 17, last: Node = LAST, **weights: Any) -> OnnxModel:
    """A convolution, these nodes from "a" to "b", and another convolution."""
    return graph([CONV, *nodes, last], {**WEIGHTS, **weights}, OPEN, opset=opset)


def op(kind: str, *inputs: str, out: str = "b", **attributes: Any) -> Node:
    return (kind, ["a", *inputs], [out], attributes)


def check(source: OnnxModel, size: Sequence[int] = (3, 17, 22), **choice: Any) -> None:
    """The laws at every size that the graph takes, in both forms, in all that runs such files; and the way back."""
    choice = choice or {"output_stride": 1}
    for form in ("dilated", "fragments"):
        dense = convert_onnx(source, size, **choice, form=form)
        assert dense.plan.chosen
        images = [torch.from_numpy(integers(2, size[0], *one, seed=7)) for one in SIZES]
        samples = [Sample(str(list(x.shape)), x) for x in images if legal(source, tuple(x.shape), dense)]
        assert samples
        report = verify_onnx_laws(None, dense, samples)
        assert report, report.failed
        assert {check.law for check in report.checks} >= {"weights", "grid", "size", "phases"}
        runtimes = agree(dense.graph, [sample.tensor.numpy() for sample in samples])
        assert "openvino" in runtimes or refusals(dense.graph, find("openvino"))
        assert "onnx reference" in runtimes or any(map(misread, dense.graph.graph))
    dense.graph.metadata_props.update(metadata_of(dense))
    back = inverse_onnx(OnnxModel(dense.graph, "dense.onnx"))
    assert [str(node) for node in back.graph.graph] == [str(node) for node in source.graph.graph]


POOLS: dict[str, Node] = {
    "max": op("MaxPool", kernel_shape=[2, 3], strides=[2, 2]),
    "max padded": op("MaxPool", kernel_shape=[3, 3], strides=[2, 3], pads=[1, 0, 1, 1]),
    "max ceil": op("MaxPool", kernel_shape=[3, 2], strides=[2, 2], ceil_mode=1, pads=[1, 0, 1, 1]),
    "max dilated": op("MaxPool", kernel_shape=[3, 2], strides=[2, 2], dilations=[2, 3]),
    "max same upper": op("MaxPool", kernel_shape=[3, 3], strides=[2, 3], auto_pad="SAME_UPPER"),
    "max same lower": op("MaxPool", kernel_shape=[2, 3], strides=[2, 2], auto_pad="SAME_LOWER"),
    "max same in ceil mode": op("MaxPool", kernel_shape=[3, 3], strides=[2, 3], auto_pad="SAME_UPPER", ceil_mode=1),
    "max valid": op("MaxPool", kernel_shape=[3, 3], strides=[2, 2], auto_pad="VALID"),
    "average": op("AveragePool", kernel_shape=[2, 3], strides=[2, 2]),
    "average padded": op("AveragePool", kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 0, 1]),
    "average with padding": op(
        "AveragePool", kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 0], count_include_pad=1
    ),
    "average ceil": op("AveragePool", kernel_shape=[3, 2], strides=[2, 3], ceil_mode=1),
    "average same upper": op("AveragePool", kernel_shape=[3, 2], strides=[2, 2], auto_pad="SAME_UPPER"),
    "average same lower": op("AveragePool", kernel_shape=[3, 2], strides=[3, 2], auto_pad="SAME_LOWER"),
    "power": op("LpPool", kernel_shape=[2, 2], strides=[2, 2], p=2),
    "power of 1": op("LpPool", kernel_shape=[3, 2], strides=[2, 2], p=1),
}


@pytest.mark.parametrize("name", POOLS)
def test_poolings(name: str) -> None:
    check(between(POOLS[name]))


@pytest.mark.parametrize("pad", ["SAME_UPPER", "SAME_LOWER", "VALID"])
@pytest.mark.parametrize("stride", [2, 3])
def test_convolutions_with_automatic_padding(pad: str, stride: int) -> None:
    strided = op("Conv", "k", strides=[stride, 2], auto_pad=pad)
    check(between(strided, k=integers(4, 4, 3, 4, seed=2)))
    again = ("Conv", ["b", "k"], ["c"], {"strides": [2, stride], "auto_pad": pad})
    last: Node = ("Conv", ["c", "last"], ["output"], {})
    check(between(strided, again, last=last, k=integers(4, 4, 3, 4, seed=2)), (3, 33, 41))


@pytest.mark.parametrize("pad", ["SAME_UPPER", "SAME_LOWER"])
@pytest.mark.parametrize("start", ["b", "c"])
def test_complete_phases_where_padding_follows_the_size(pad: str, start: str) -> None:
    """Statistics of each, at sizes of all remainders."""
    nodes: list[Node] = [
        ("Conv", ["input", "first"], ["a"], {"strides": [2, 2], "auto_pad": pad}),
        ("Conv", ["a", "k"], ["b"], {"strides": [2, 3], "auto_pad": pad}),
        ("MaxPool", ["b"], ["c"], {"kernel_shape": [3, 3], "strides": [2, 2], "auto_pad": pad}),
        ("GlobalAveragePool", ["c"], ["output"], {}),
    ]
    source = graph(nodes, {"first": WEIGHTS["first"], "k": integers(4, 4, 3, 4, seed=2)}, OPEN)
    dense = convert_onnx(source, (3, 64, 60), start=start, padding="valid")
    images = [torch.from_numpy(integers(1, 3, 57 + n, 71 - n, seed=n)) for n in range(0, 12, 2)]
    report = verify_onnx_laws(None, dense, [Sample(str(list(x.shape)), x) for x in images])
    assert report, report.failed


BETWEEN: dict[str, tuple[list[Node], dict[str, Any]]] = {
    "normalised": (
        [op("BatchNormalization", "scale", "bias", "mean", "var", out="c"), ("Relu", ["c"], ["b"], {})],
        {"scale": integers(4), "bias": integers(4, seed=3), "mean": integers(4, seed=4), "var": np.full(4, 4.0, "f")},
    ),
    "slope": ([op("PRelu", "slope")], {"slope": integers(4, 1, 1)}),
    "clip": ([op("Clip", "low", "high")], {"low": np.float32(-3), "high": np.float32(3)}),
    "scaled per channel": ([op("Mul", "scale")], {"scale": integers(1, 4, 1, 1, seed=5)}),
    "local response": ([op("LRN", size=3)], {}),
    "softmax over channels": ([op("Softmax", axis=1)], {}),
    "softmax over rows": ([op("Softmax", axis=3)], {}),
    "instance norm": (
        [op("InstanceNormalization", "scale", "bias")], {"scale": integers(4), "bias": integers(4, seed=3)}
    ),
    "squeezed": (
        [
            op("GlobalAveragePool", out="s"), ("Conv", ["s", "k"], ["t"], {}), ("Sigmoid", ["t"], ["u"], {}),
            ("Mul", ["a", "u"], ["b"], {}),
        ],
        {"k": integers(4, 4, 1, 1, seed=2)},
    ),
    "mean over space": (
        [op("ReduceMean", axes=[2, 3], keepdims=1, out="s"), ("Sub", ["a", "s"], ["b"], {})], {},
    ),
    "padded": ([op("Pad", "pads")], {"pads": np.array([0, 0, 1, 2, 0, 0, 3, 0])}),
    "reflected": ([op("Pad", "pads", mode="reflect")], {"pads": np.array([0, 0, 1, 2, 0, 0, 1, 1])}),
    "repeated edges": ([op("Pad", "pads", mode="edge")], {"pads": np.array([0, 0, 1, 2, 0, 0, 1, 1])}),
    "cropped": (
        [op("Slice", "starts", "ends", "axes")],
        {"starts": np.array([1, 0]), "ends": np.array([2**31 - 1, -2]), "axes": np.array([2, 3])},
    ),
    "cropped by short integers": (
        [op("Slice", "starts", "ends", "axes")],
        {"starts": np.array([1, 0], "i4"), "ends": np.array([2**31 - 1, -2], "i4"), "axes": np.array([2, 3], "i4")},
    ),
    "cropped, with fewer channels": (
        [op("Slice", "starts", "ends", "axes", out="c"), ("Conv", ["c", "k"], ["b"], {})],
        {"starts": np.array([1, 1]), "ends": np.array([3, -2]), "axes": np.array([1, 3]), "k": integers(4, 2, 1, 1)},
    ),
    "padded, with more channels": (
        [op("Pad", "pads", "fill", out="c"), ("Conv", ["c", "k"], ["b"], {})],
        {"pads": np.array([0, 1, 2, 0, 0, 0, 1, 1]), "fill": np.float32(3), "k": integers(4, 5, 1, 1)},
    ),
    "scaled by its own mean": (
        [op("Transpose", perm=[0, 2, 3, 1], out="t"), ("ReduceMean", ["t"], ["m"], {"axes": [1, 2]}),
         ("LayerNormalization", ["t", "m"], ["n"], {}), ("Transpose", ["n"], ["b"], {"perm": [0, 3, 1, 2]})], {},
    ),
    "a layer past which its input goes": (
        [op("GlobalAveragePool", out="g"), ("Flatten", ["g"], ["f"], {}), ("Gemm", ["f", "k", "f"], ["h"], {}),
         ("Reshape", ["h", "map"], ["m"], {}), ("Mul", ["a", "m"], ["b"], {})],
        {"k": integers(4, 4, seed=5), "map": np.array([-1, 4, 1, 1])},
    ),
    "a mask of its own shape": (
        [op("Shape", out="s"), ("Expand", ["k", "s"], ["t"], {}), ("Mul", ["a", "t"], ["b"], {})],
        {"k": integers(1, 4, 1, 1, seed=5)},
    ),
    "a mask for every row": (
        [op("Shape", out="s"), ("Expand", ["k", "s"], ["t"], {}), ("Softmax", ["a"], ["u"], {"axis": 3}),
         ("Mul", ["u", "t"], ["b"], {})],
        {"k": integers(1, 4, 1, 1, seed=5)},
    ),
    "maxima of integers": (
        [op("Cast", to=3, out="c"), ("MaxPool", ["c"], ["d"], {"kernel_shape": [2, 2], "pads": [1, 1, 0, 0]}),
         ("Cast", ["d"], ["b"], {"to": 1})], {},
    ),
    "stretched past its kernel": (
        [op("ConvTranspose", "k", strides=[3, 3], auto_pad="SAME_UPPER")], {"k": integers(4, 4, 2, 2, seed=5)},
    ),
    "resized by its own size": (
        [op("Shape", out="s"), ("Mul", ["s", "times"], ["t"], {}),
         ("Resize", ["a", "", "", "t"], ["c"], {"mode": "linear"}),
         ("MaxPool", ["c"], ["b"], {"kernel_shape": [3, 3], "strides": [3, 3]})],
        {"times": np.array([1, 1, 3, 3])},
    ),
    "some channels": (
        [op("Slice", "starts", "ends", "axes", out="c"), ("Concat", ["c", "c"], ["d"], {"axis": 1}),
         ("Concat", ["d", "c"], ["e"], {"axis": 1}), ("Conv", ["e", "k"], ["b"], {})],
        {"starts": np.array([1]), "ends": np.array([3]), "axes": np.array([1]), "k": integers(4, 6, 1, 1)},
    ),
    "split": (
        [("Split", ["a"], ["c", "d"], {"axis": 1}), ("Relu", ["c"], ["e"], {}),
         ("Concat", ["d", "e"], ["b"], {"axis": 1})], {},
    ),
    "rolled": (
        [op("Slice", "zero", "three", "rows", out="c"), op("Slice", "three", "end", "rows", out="d"),
         ("Concat", ["d", "c"], ["b"], {"axis": 2})],
        {"zero": np.array([0]), "three": np.array([3]), "end": np.array([2**62]), "rows": np.array([2])},
    ),
    "flipped": (
        [op("Slice", "start", "end", "rows", "back")],
        {"start": np.array([-1]), "end": np.array([-(2**31)]), "rows": np.array([2]), "back": np.array([-1])},
    ),
    "reduced over nothing": ([op("ReduceSum", noop_with_empty_axes=1)], {}),
    "normalised over space": ([op("MeanVarianceNormalization", axes=[2, 3])], {}),
    "channels last": (
        [op("Transpose", perm=[0, 2, 3, 1], out="c"), ("MatMul", ["c", "k"], ["d"], {}), ("Add", ["d", "v"], ["e"], {}),
         ("Softmax", ["e"], ["f"], {"axis": -1}), ("Transpose", ["f"], ["b"], {"perm": [0, 3, 1, 2]})],
        {"k": integers(4, 4, seed=5), "v": integers(4, seed=6)},
    ),
    "doubled": (
        [op("Resize", "", "scales", mode="nearest", coordinate_transformation_mode="asymmetric", nearest_mode="floor",
            out="c"), ("MaxPool", ["c"], ["b"], {"kernel_shape": [2, 2], "strides": [2, 2]})],
        {"scales": np.array([1, 1, 2, 2], "f")},
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", BETWEEN)
def test_operators_behind_a_removed_stride(name: str) -> None:
    nodes, weights = BETWEEN[name]
    pool: Node = ("MaxPool", ["p"], ["a"], {"kernel_shape": [2, 2], "strides": [2, 2]})
    first: Node = ("Conv", ["input", "first"], ["p"], {"pads": [1, 1, 1, 1]})
    check(graph([first, pool, *nodes, LAST], {**WEIGHTS, **weights}, OPEN))


def test_the_opset_is_raised_only_where_an_operator_needs_it() -> None:
    pool: Node = op("MaxPool", kernel_shape=[2, 2], strides=[2, 2])
    again: Node = ("MaxPool", ["b"], ["output"], {"kernel_shape": [2, 2], "strides": [2, 2]})
    once, twice = between(pool, opset=9), between(pool, opset=9, last=again)
    assert convert_onnx(once, (3, 17, 22), layers=[]).opset == 9
    assert convert_onnx(twice, (3, 17, 22), output_stride=1).opset == 10


def _filled(right: Callable[..., Any]) -> Callable[..., Any]:
    return lambda x, found, fill: right(x, found, -0.5)


def test_a_wrong_padding_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """A number instead of -inf in front of a max pooling of smaller ones."""
    pool = {"kernel_shape": [3, 3], "strides": [3, 3], "pads": [1, 1, 1, 1]}
    nodes: list[Node] = [op("Abs", out="c"), ("Neg", ["c"], ["d"], {}), ("MaxPool", ["d"], ["e"], pool)]
    source = between(*nodes, ("MaxPool", ["e"], ["b"], pool))
    check(source)
    monkeypatch.setattr(windows, "padded", _filled(windows.padded))
    with pytest.raises(AssertionError):
        check(source)
