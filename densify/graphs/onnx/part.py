"""A part of an ONNX graph as a graph of its own, and what it makes of given tensors."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime

from densify.graphs.onnx.values import Known

_MADE = "densify.made"


def constant(name: str, tensor: ir.TensorProtocol) -> onnx.TensorProto:
    """A weight within the graph."""
    return onnx.numpy_helper.from_array(tensor.numpy(), name)


def run(proto: onnx.ModelProto, *feeds: Mapping[str, np.ndarray]) -> list[list[Any] | None]:
    """What a graph makes of each of several sets of tensors; None of those that it does not take."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    try:
        session = onnxruntime.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])
    except Exception:  # the runtime has exceptions of its own
        return [None] * len(feeds)
    found: list[list[Any] | None] = []
    for feed in feeds:
        try:
            found.append(session.run(None, dict(feed)))
        except Exception:
            found.append(None)
    return found


def reads_numbers(node: ir.Node) -> list[str]:
    """Names of the inputs of a node whose numbers it reads, not the type alone."""
    inputs = node.inputs[:1] if node.op_type == "CastLike" else node.inputs
    return [str(one.name) for one in inputs if one is not None]


def _written(node: ir.Node, known: Mapping[str, Known]) -> onnx.NodeProto:
    """A node as it is; one that reads the type of a tensor with that type written out."""
    if node.op_type != "CastLike":
        proto: onnx.NodeProto = ir.to_proto(node)
        return proto
    like = node.inputs[1]
    assert like is not None
    (made,) = node.outputs
    to = known[str(like.name)].dtype.value
    return onnx.helper.make_node("Cast", reads_numbers(node), [str(made.name)], to=to)


def part(
    model: ir.Model,
    names: Sequence[str],
    given: Collection[str],
    known: Mapping[str, Known],
    weight: Callable[[str, ir.TensorProtocol], onnx.TensorProto] = constant,
) -> onnx.ModelProto:
    """The nodes that some values are made by, from the given ones, weights and what follows from sizes.

    Args:
        names: of the values, its outputs; of a weight it makes a copy.
        given: names of its inputs.
        known: what is known of every value at the size at which it runs.
        weight: how an initializer is written.
    """
    producers = {str(value.name): node for node in model.graph for value in node.outputs}
    nodes: dict[int, ir.Node] = {}
    constants: dict[str, onnx.TensorProto] = {}
    stack = list(names)
    while stack:
        one = stack.pop()
        if one in given or one in constants:
            continue
        value, other = model.graph.initializers.get(one), known.get(one)
        if value is not None and value.const_value is not None:
            constants[one] = weight(one, value.const_value)
        elif other is not None and other.numbers is not None:
            constants[one] = onnx.numpy_helper.from_array(np.asarray(other.numbers), one)
        elif id(producers[one]) not in nodes:
            nodes[id(producers[one])] = producers[one]
            stack += reads_numbers(producers[one])
    order = [_written(node, known) for node in model.graph if id(node) in nodes]
    copies = {one: f"{_MADE}.{one}" for one in names if one in constants or one in given}
    order += [onnx.helper.make_node("Identity", [one], [made]) for one, made in copies.items()]
    value_of = onnx.helper.make_tensor_value_info
    graph = onnx.helper.make_graph(
        order,
        "part",
        [value_of(one, known[one].dtype.value, None) for one in given],
        [value_of(copies.get(one, one), known[one].dtype.value, None) for one in names],
        list(constants.values()),
    )
    opset = onnx.helper.make_opsetid("", model.opset_imports[""])
    return onnx.helper.make_model(graph, opset_imports=[opset], ir_version=model.ir_version)
