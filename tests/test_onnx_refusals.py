"""ONNX files that cannot be read or made dense: what, where and why is said, and nothing is written."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from cli import densify
from laws.onnx import Node, graph, integers
from onnx import TensorProto, helper

from densify.checkpoint import load
from densify.errors import CheckpointError, ConversionError, DensifyError, RefusedError, UsageError
from densify.front import save, verify
from densify.onnx.conversion import convert_onnx, survey_onnx
from densify.onnx.file import save_onnx
from densify.onnx.model import OnnxModel

WEIGHTS = {"k": integers(4, 3, 3, 3), "last": integers(2, 4, 1, 1)}
FIRST: Node = ("Conv", ["input", "k"], ["a"], {"pads": [1, 1, 1, 1]})
POOL: Node = ("MaxPool", ["a"], ["p"], {"kernel_shape": [2, 2], "strides": [2, 2]})
LAST: Node = ("Conv", ["b", "last"], ["output"], {})


def behind_a_pooling(*nodes: Node, **weights: Any) -> OnnxModel:
    return graph([FIRST, POOL, *nodes, LAST], {**WEIGHTS, **weights}, ("N", 3, "H", "W"))


def _branch(kind: str) -> onnx.GraphProto:
    return helper.make_graph(
        [helper.make_node(kind, ["p"], ["r"])], kind, [], [helper.make_tensor_value_info("r", TensorProto.FLOAT, None)]
    )


REFUSED: dict[str, tuple[Callable[[], OnnxModel], str]] = {
    "control flow": (
        lambda: behind_a_pooling(
            ("If", ["yes"], ["b"], {"then_branch": _branch("Relu"), "else_branch": _branch("Neg")}), yes=np.array(True)
        ),
        "b: control flow decides what becomes of the image",
    ),
    "a kernel of the image": (
        lambda: behind_a_pooling(
            ("ReduceMean", ["p"], ["m"], {"axes": [0, 2, 3], "keepdims": 1}),
            ("Reshape", ["m", "shape"], ["w"], {}),
            ("Conv", ["p", "w"], ["b"], {}),
            shape=np.array([4, 1, 1, 1]),
        ),
        "b: its kernel is computed from the image",
    ),
    "random numbers": (
        lambda: behind_a_pooling(("RandomNormalLike", ["p"], ["b"], {})),
        "b: it draws random numbers",
    ),
    "a batch statistic": (
        lambda: behind_a_pooling(("Softmax", ["p"], ["b"], {"axis": 0})),
        "b: it works across the images of a batch",
    ),
    "a stride over a flipped map": (
        lambda: behind_a_pooling(
            ("Slice", ["p", "start", "end", "rows", "back"], ["f"], {}),
            ("MaxPool", ["f"], ["b"], {"kernel_shape": [2, 2], "strides": [2, 2]}),
            start=np.array([-1]), end=np.array([-(2**31)]), rows=np.array([2]), back=np.array([-1]),
        ),
        "b: it strides over a map that was flipped",
    ),
    "a normalisation of the batch": (
        lambda: behind_a_pooling(("MeanVarianceNormalization", ["p"], ["b"], {"axes": [0, 2, 3]})),
        "b: it works across the images of a batch",
    ),
    "a sum over the images before": (
        lambda: behind_a_pooling(("CumSum", ["p", "zero"], ["b"], {}), zero=np.array(0)),
        "b: it mixes the images of a batch",
    ),
    "images normalised together": (
        lambda: behind_a_pooling(("LpNormalization", ["p"], ["b"], {"axis": 0})),
        "b: it mixes the images of a batch",
    ),
    "tokens weighted over the batch": (
        lambda: behind_a_pooling(
            ("Reshape", ["p", "tokens"], ["t"], {}), ("Softmax", ["t"], ["w"], {"axis": 0}),
            ("Shape", ["p"], ["s"], {}), ("Reshape", ["w", "s"], ["b"], {}), tokens=np.array([0, 0, -1]),
        ),
        "w: it mixes the images of a batch",
    ),
    "a vector over the batch": (
        lambda: behind_a_pooling(
            ("GlobalAveragePool", ["p"], ["g"], {}), ("Flatten", ["g"], ["f"], {}),
            ("CumSum", ["f", "zero"], ["c"], {}), ("Reshape", ["c", "map"], ["b"], {}),
            zero=np.array(0), map=np.array([-1, 4, 1, 1]),
        ),
        "c: it mixes the images of a batch",
    ),
    "products of images": (
        lambda: behind_a_pooling(("Einsum", ["p", "p"], ["b"], {"equation": "bchw,dchw->bchw"})),
        "b: it mixes the images of a batch",
    ),
    "places of maxima that are an output": (
        lambda: graph(
            [FIRST, ("MaxPool", ["a"], ["b", "places"], {"kernel_shape": [2, 2], "strides": [2, 2]}), LAST],
            WEIGHTS, ("N", 3, "H", "W"), outputs=("output", "places"),
        ),
        "b: the places of its maxima are read",
    ),
    "a stride from the far end": (
        lambda: behind_a_pooling(
            ("Slice", ["p", "start", "end", "rows", "two"], ["b"], {}),
            start=np.array([-5]), end=np.array([2**62]), rows=np.array([2]), two=np.array([2]),
        ),
        'output: it makes the output "output", whose spatial axes',
    ),
    "flattened windows, channels last, side by side": (
        lambda: graph(
            [FIRST, POOL, ("Transpose", ["p"], ["t"], {"perm": [0, 2, 3, 1]}), ("Flatten", ["t"], ["f"], {}),
             ("Neg", ["f"], ["n"], {}), ("Concat", ["f", "n"], ["c"], {"axis": 1}),
             ("Gemm", ["c", "g"], ["output"], {})],
            {"k": WEIGHTS["k"], "g": integers(768, 5, seed=2)}, ("N", 3, "H", "W"),
        ),
        "c: it makes a map of a head's flattened window",
    ),
    "sizes that depend on numbers": (
        lambda: behind_a_pooling(
            ("NonZero", ["p"], ["n"], {}), ("Cast", ["n"], ["f"], {"to": 1}), ("Reshape", ["f", "s"], ["b"], {}),
            s=np.array([1, 4, -1, 1]),
        ),
        "n: no shape of its result follows from the image's",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_has_no_meaning_on_a_lattice(name: str) -> None:
    made, reason = REFUSED[name]
    with pytest.raises(RefusedError, match=reason):
        convert_onnx(made(), (3, 16, 24), output_stride=1)


def test_operators_of_other_domains(tmp_path: Path) -> None:
    source = behind_a_pooling(("Relu", ["p"], ["b"], {}))
    node = next(node for node in source.graph.graph if node.op_type == "Relu")
    node.domain = "com.example"
    source.graph.opset_imports["com.example"] = 1
    path = tmp_path / "net.onnx"
    save_onnx(source.graph, path)
    made = densify("convert", path, "--input-size", "3,16,24", "--output-stride", 1, "-o", tmp_path / "dense.onnx")
    assert made.status == 3
    assert "b: Relu is of the domain 'com.example'" in made.stderr
    assert not (tmp_path / "dense.onnx").exists()


def test_several_inputs_and_none(tmp_path: Path) -> None:
    source = behind_a_pooling(("Relu", ["p"], ["b"], {}))
    other = helper.make_tensor_value_info("other", TensorProto.FLOAT, [1, 3, 4, 4])
    proto = onnx.ModelProto()
    save_onnx(source.graph, tmp_path / "net.onnx")
    proto = onnx.load(tmp_path / "net.onnx")
    proto.graph.input.append(other)
    onnx.save(proto, tmp_path / "two.onnx")
    with pytest.raises(ConversionError, match=r"has to have one input.*other"):
        survey_onnx(OnnxModel.load(tmp_path / "two.onnx"), (3, 16, 24))


def test_a_dense_graph_is_no_torch_checkpoint(tmp_path: Path) -> None:
    source = behind_a_pooling(("Relu", ["p"], ["b"], {}))
    save(convert_onnx(source, (3, 16, 24), output_stride=1), tmp_path / "dense.onnx")
    with pytest.raises(UsageError, match=r"made from an ONNX file \(test.onnx\).*densify.load_onnx"):
        load(tmp_path / "dense.onnx")


def external(folder: Path, location: str) -> Path:
    """A file whose weights lie elsewhere."""
    source = behind_a_pooling(("Relu", ["p"], ["b"], {}))
    path = folder / "net.onnx"
    save_onnx(source.graph, path)
    proto = onnx.load(path)
    tensor = proto.graph.initializer[0]
    data = tensor.raw_data
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in (("location", location), ("offset", "0"), ("length", str(len(data)))):
        tensor.external_data.add(key=key, value=value)
    path.write_bytes(proto.SerializeToString())
    if ".." not in location:
        (folder / location).write_bytes(data)
    return path


def test_external_weights(tmp_path: Path) -> None:
    path = external(tmp_path, "net.data")
    out = tmp_path / "dense.onnx"
    arguments = ("--input-size", "3,16,24", "--output-stride", 1, "-o", out)
    assert densify("convert", path, *arguments).status == 0
    assert [one.name for one in onnx.load(out).graph.initializer] == list(WEIGHTS)
    out.unlink()
    (tmp_path / "net.data").unlink()
    made = densify("convert", path, *arguments)
    assert made.status == 3
    assert "net.data" in made.stderr
    made = densify("convert", external(tmp_path, "../net.data"), *arguments)
    assert made.status == 4
    assert "outside the file's own folder" in made.stderr
    assert not out.exists()


@pytest.mark.parametrize("first", range(0, 200, 50))
def test_damaged_files_are_read_or_refused(first: int, tmp_path: Path) -> None:
    """Flipped, cut and repeated bytes: no other error than densify's own."""
    source = behind_a_pooling(("Resize", ["p", "", "scales"], ["b"], {}), scales=np.array([1, 1, 2, 2], np.float32))
    path = tmp_path / "net.onnx"
    save_onnx(source.graph, path)
    whole, refused = path.read_bytes(), 0
    for seed in range(first, first + 50):
        rng = random.Random(seed)
        data = bytearray(whole)
        for _ in range(rng.choice([1, 1, 2, 8])):
            data[rng.randrange(len(data))] = rng.randrange(256)
        if rng.random() < 0.3:
            del data[rng.randrange(len(data)) :]
        path.write_bytes(data)
        try:
            convert_onnx(OnnxModel.load(path), (3, 16, 24), output_stride=1)
        except DensifyError:
            refused += 1
        except Exception as error:
            error.add_note(f"seed {seed}")
            raise
    assert refused > 10


def test_a_graph_that_begins_with_a_reshape_is_read() -> None:
    """Space to depth by views, their sizes written out: strides behind it can be removed, and its own."""
    nodes: list[Node] = [
        ("Reshape", ["input", "apart"], ["a"], {}), ("Transpose", ["a"], ["b"], {"perm": [0, 1, 3, 5, 2, 4]}),
        ("Reshape", ["b", "whole"], ["c"], {}), ("Conv", ["c", "k"], ["d"], {"strides": [2, 2]}),
        ("Conv", ["d", "k2"], ["output"], {}),
    ]  # fmt: skip
    weights = {
        "apart": np.array([-1, 3, 12, 2, 10, 2]), "whole": np.array([-1, 12, 12, 10]), "k": integers(4, 12, 3, 3),
        "k2": integers(2, 4, 2, 2),
    }  # fmt: skip
    source = graph(nodes, weights, ("N", 3, 24, 20))
    assert survey_onnx(source).network.outputs
    for start, step in (("d", 2), ("c", 4)):
        dense = convert_onnx(source, start=start)
        assert dense.lattices["output"] == ((step, 0), (step, 0))
        assert verify(source, dense, [torch.from_numpy(integers(2, 3, 24, 20))])


def test_nodes_of_one_name_are_refused(tmp_path: Path) -> None:
    source = behind_a_pooling(("Relu", ["p"], ["b"], {}))
    for node in source.graph.graph:
        node.name = "twin"
    save_onnx(source.graph, tmp_path / "net.onnx")
    with pytest.raises(CheckpointError, match="4 nodes are called 'twin'. Give every node a name of its own"):
        OnnxModel.load(tmp_path / "net.onnx")


def test_what_onnx_runtime_says_is_said_of_the_users_file(tmp_path: Path) -> None:
    """Not of a temporary one."""
    one, other = tmp_path / "one.onnx", tmp_path / "other.onnx"
    nodes: list[Node] = [FIRST, ("Conv", ["a", "last"], ["output"], {})]
    save_onnx(graph(nodes, WEIGHTS, (1, 3, 12, 14)).graph, one)
    save_onnx(graph(nodes, WEIGHTS, (1, 3, 20, 22)).graph, other)
    made = densify("verify", one, other)
    assert made.status == 3
    assert f"{one} or {other}: ONNX Runtime fails on [1, 3, 12, 14]" in made.stderr
