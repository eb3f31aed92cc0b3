"""What is known of an ONNX graph's values before it runs: shapes, and numbers that follow from shapes and constants."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
from onnx.reference import ReferenceEvaluator

_MOST_NUMBERS = 4096  # of a tensor whose numbers are followed: sizes, axes and the like


@dataclass(frozen=True)
class Known:
    """What is known of one value.

    Attributes:
        shape: None where it depends on the image's numbers.
        dtype: of its numbers.
        numbers: where they follow from shapes and constants alone, and are few.
    """

    shape: tuple[int, ...] | None
    dtype: ir.DataType
    numbers: np.ndarray | None = None


_LONGEST, _TIMES = 2**16, 256
"""A dimension is followed up to this length, or so many times the image's largest; damaged files have longer ones."""


class Values:
    """Follows the shapes of a graph for inputs of given shapes, as often as asked.

    Args:
        model: with operators of ONNX's own domain alone.
        image: the input whose shape is varied.
    """

    def __init__(self, model: ir.Model, image: ir.Value) -> None:
        self.image = image
        self.version = model.opset_imports[""]
        self.images = frozen_images(image)
        self._nodes = [(node, ir.to_proto(node)) for node in model.graph]
        self._imports = [onnx.helper.make_opsetid("", self.version)]
        self._constants = {
            name: _of_tensor(value.const_value)
            for name, value in model.graph.initializers.items()
            if value.const_value is not None
        }

    def at(self, shape: Sequence[int]) -> dict[str, Known]:
        """What is known by name, where the image has that shape; what cannot be there is left out."""
        assert self.image.dtype is not None
        found = dict(self._constants)
        found[str(self.image.name)] = Known(tuple(shape), self.image.dtype)
        self._longest = max(_LONGEST, _TIMES * max(shape))
        for node, proto in self._nodes:
            inputs = [None if one is None else found.get(str(one.name)) for one in node.inputs]
            if all(one is None or known is not None for one, known in zip(node.inputs, inputs, strict=True)):
                found.update(self._outputs(node, proto, inputs))
        return found

    def _outputs(self, node: ir.Node, proto: Any, inputs: Sequence[Known | None]) -> dict[str, Known]:
        """What is known of a node's outputs."""
        first = inputs[0] if inputs else None
        if node.op_type in ("Shape", "Size") and first is not None:
            if first.shape is None:
                return {}
            start, end = (node.attributes.get_int(key, default) for key, default in (("start", 0), ("end", None)))
            sizes = np.array(first.shape[start:end], np.int64)
            return {str(node.outputs[0].name): _of_array(sizes if node.op_type == "Shape" else sizes.prod())}
        if node.op_type == "CastLike" and first is not None and first.numbers is not None and inputs[1] is not None:
            return {str(node.outputs[0].name): _of_array(first.numbers.astype(inputs[1].dtype.numpy()))}
        known = [one for one in inputs if one is not None]
        if all(one.numbers is not None for one in known) and not _has_graphs(node):
            numbers = {name: one.numbers for name, one in zip(proto.input, inputs, strict=True) if one is not None}
            made = _computed(proto, numbers, self.version)
            if made is not None:
                return {name: _of_array(one) for name, one in zip(proto.output, made, strict=True) if name}
        return self._inferred(node, proto, inputs)

    def _inferred(self, node: ir.Node, proto: Any, inputs: Sequence[Known | None]) -> dict[str, Known]:
        """Types and shapes, by ONNX's own inference."""
        if any(one is not None and one.numbers is None and min(one.shape or (1,)) < 1 for one in inputs):
            return {}  # a window that does not fit; on such sizes ONNX's inference may end the process
        types, numbers = {}, {}
        first = inputs[0].shape if inputs and inputs[0] is not None else None
        for index, (name, one) in enumerate(zip(proto.input, inputs, strict=True)):
            if one is not None:
                types[name] = onnx.helper.make_tensor_type_proto(one.dtype.value, one.shape)
            if one is not None and one.numbers is not None:
                given = one.numbers
                if first and writes_images(node, index, given, self.images) and given[0] != first[0]:
                    given = np.array([first[0], *given[1:]])  # the number of images was written out
                numbers[name] = onnx.numpy_helper.from_array(given, name)
        try:
            version = max(self.version, _POOLS_RIGHT_SINCE) if node.op_type in _POOLS else self.version
            schema = onnx.defs.get_schema(node.op_type, version, node.domain)
            made = onnx.shape_inference.infer_node_outputs(schema, proto, types, numbers, opset_imports=self._imports)
            known = all(one.tensor_type.HasField("shape") for one in made.values())
            if schema.has_function and not known:  # type: ignore[attr-defined]
                made = self._by_its_body(proto, types, numbers)
        except Exception:  # of many kinds: no such op, or no such shape
            return {}
        found = {name: _of_type(one) for name, one in made.items() if one.HasField("tensor_type")}
        if any(not 0 <= size <= self._longest for one in found.values() for size in one.shape or ()):
            return {}
        shapes = [known.shape for known in found.values()]
        if node.op_type == "Reshape" and first and shapes and shapes[0] and prod(shapes[0]) != prod(first):
            return {}  # a size was written out; the inference does not look at how many numbers there are
        return found

    def _by_its_body(self, proto: Any, types: Mapping[str, Any], numbers: Mapping[str, Any]) -> dict[str, Any]:
        """Types of the outputs of an operator that ONNX defines by others alone: inferred as in a graph of its own."""
        inputs = [onnx.helper.make_value_info(name, one) for name, one in types.items()]
        outputs = [onnx.ValueInfoProto(name=name) for name in proto.output]
        graph = onnx.helper.make_graph([proto], "one", inputs, outputs, list(numbers.values()))
        model = onnx.helper.make_model(graph, opset_imports=self._imports)
        return {value.name: value.type for value in onnx.shape_inference.infer_shapes(model).graph.output}


def writes_images(node: ir.Node, index: int, numbers: np.ndarray | None, images: int | None) -> bool:
    """Whether an input of a node is the shape that it makes, with the number of images written out."""
    if {"Reshape": 1, "Resize": 3}.get(node.op_type) != index or "axes" in node.attributes:
        return False
    return images is not None and numbers is not None and bool(numbers.size) and int(numbers[0]) == images


_POOLS = ("AveragePool", "LpPool", "MaxPool")
_POOLS_RIGHT_SINCE = 22
"""Before, the inferred sizes of ceil mode count a window that begins in the far padding; runtimes never did."""


def frozen_images(image: ir.Value) -> int | None:
    """The number of images that the graph is made for; None where any will do."""
    first = image.shape[0] if image.shape is not None and len(image.shape) else None
    return first if isinstance(first, int) else None


def _of_tensor(tensor: ir.TensorProtocol) -> Known:
    shape = tuple(tensor.shape.numpy())
    few = tensor.size <= _MOST_NUMBERS and tensor.dtype.is_integer()
    return Known(shape, tensor.dtype, tensor.numpy().copy() if few or tensor.size <= 16 else None)


def _of_array(numbers: Any) -> Known:
    numbers = np.asarray(numbers)
    return Known(numbers.shape, ir.DataType.from_numpy(numbers.dtype), numbers)


def _of_type(found: onnx.TypeProto) -> Known:
    one = found.tensor_type
    known = one.HasField("shape") and all(dim.HasField("dim_value") for dim in one.shape.dim)
    return Known(tuple(dim.dim_value for dim in one.shape.dim) if known else None, ir.DataType(one.elem_type))


def _has_graphs(node: ir.Node) -> bool:
    return any(one.type in (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS) for one in node.attributes.values())


def _computed(proto: onnx.NodeProto, numbers: Mapping[str, Any], version: int) -> Sequence[Any] | None:
    """A node's outputs by ONNX's reference implementation; None where they are many, random, or cannot be."""
    if proto.op_type.startswith("Random") or proto.op_type in ("Bernoulli", "Multinomial"):
        return None
    try:
        made = list(ReferenceEvaluator(proto, opsets={"": version}).run(None, dict(numbers)))
    except Exception:  # the reference implementation has all kinds, too
        return None
    few = all(isinstance(one, np.ndarray | np.generic) and np.size(one) <= _MOST_NUMBERS for one in made)
    return made if few else None
