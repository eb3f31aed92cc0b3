"""The graph that a dense ONNX file was made from, kept in its metadata less the weights, and put together again."""

from __future__ import annotations

import base64
import zlib

import numpy as np
import onnx
import onnx_ir as ir

from densify.errors import CheckpointError
from densify.onnx.model import ORIGINAL_KEY, OnnxModel

_LARGE = 1024  # bytes of a Constant node that are not kept twice


def packed(source: OnnxModel, dense: ir.Model) -> str:
    """A graph less the weights that the dense graph holds, as text."""
    model, held = source.copy(), _large_constants(dense)
    model.metadata_props.pop(ORIGINAL_KEY, None)
    model.graph.initializers.clear()
    for node in model.graph:
        if (large := _large_constant(node)) is not None and str(node.outputs[0].name) in held:
            node.attributes["value"] = ir.AttrTensor("value", _placeholder(large))
    proto = ir.to_proto(model)
    return base64.b85encode(zlib.compress(proto.SerializeToString(), 9)).decode()


def _large_constant(node: ir.Node) -> ir.TensorProtocol | None:
    if node.op_type != "Constant" or "value" not in node.attributes:
        return None
    tensor = node.attributes["value"].as_tensor()
    return tensor if tensor.nbytes > _LARGE else None


def _large_constants(model: ir.Model) -> dict[str, ir.Node]:
    return {str(node.outputs[0].name): node for node in model.graph if _large_constant(node) is not None}


def _placeholder(tensor: ir.TensorProtocol) -> ir.TensorProtocol:
    """A tensor of no numbers of the same type, in place of one that the dense graph holds."""
    return ir.tensor(np.zeros(0, tensor.dtype.numpy()), name=_ELSEWHERE)


_ELSEWHERE = "densify.elsewhere"


def inverse_onnx(dense: OnnxModel) -> OnnxModel:
    """The graph that a dense file was made from, with the file's weights (dpoa).

    Raises:
        CheckpointError: densify did not make it from an ONNX file, or its weights are not those that it needs.
    """
    text = dense.metadata.get(ORIGINAL_KEY)
    if text is None:
        raise CheckpointError(
            f"{dense.name}: does not hold the graph that it was made from. Give a dense file that densify made from an "
            "ONNX file."
        )
    weights = {name: value.const_value for name, value in dense.graph.graph.initializers.items()}
    try:
        proto = onnx.ModelProto.FromString(zlib.decompress(base64.b85decode(text)))
        for name, tensor in weights.items():  # without their numbers, so that the graph is whole
            assert tensor is not None
            proto.graph.initializer.add(name=name, data_type=tensor.dtype.value, dims=tensor.shape.numpy())
        model = ir.from_proto(proto)
    except Exception as error:  # a damaged text
        raise CheckpointError(
            f"{dense.name}: its entry {ORIGINAL_KEY!r} is damaged ({type(error).__name__}). Take the original file."
        ) from None
    for name, value in model.graph.initializers.items():
        value.const_value = weights[name]
    _check_weights(model, dense)
    _fill_constants(model, dense)
    return OnnxModel(model, f"the original of {dense.name}")


def _check_weights(model: ir.Model, dense: OnnxModel) -> None:
    """Refuse a graph some of whose weights are gone."""
    known = {id(value) for value in (*model.graph.inputs, *model.graph.initializers.values())}
    read = [one for node in model.graph for one in node.inputs if one is not None]
    missing = sorted({str(one.name) for one in read if one.producer() is None and id(one) not in known})
    if missing:
        raise CheckpointError(
            f"{dense.name}: lacks {', '.join(missing[:10])} of the graph it was made from. Take the file as densify "
            "wrote it, with other numbers in the same initializers."
        )


def _fill_constants(model: ir.Model, dense: OnnxModel) -> None:
    """Put large constants, which the file holds in the dense graph alone, back to their places."""
    large = _large_constants(dense.graph)
    for node in model.graph:
        if node.op_type != "Constant" or "value" not in node.attributes:
            continue
        if node.attributes["value"].as_tensor().name == _ELSEWHERE:
            name = str(node.outputs[0].name)
            if name not in large:
                raise CheckpointError(f"{dense.name}: lacks the constant {name} of the graph it was made from.")
            node.attributes["value"] = large[name].attributes["value"]
