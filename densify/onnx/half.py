"""ONNX graphs in float16: everything made of the input or of the weights; arithmetic on sizes stays as it is.

A size in float16 would be wrong past 2048, so no value changes its type that neither the input nor a weight went into.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnx_ir.passes.common as passes
import torch
from onnx_ir.tensor_adapters import TorchTensor
from torch import Tensor

from densify.errors import ConversionError
from densify.onnx.file import to_torch
from densify.onnx.graph import all_values

_LARGEST = float(np.finfo(np.float16).max)
_SMALLEST = float(np.finfo(np.float16).smallest_subnormal)
_EXTREME = float(np.finfo(np.float32).max)
_FLOAT, _HALF = ir.DataType.FLOAT, ir.DataType.FLOAT16
_TO_SEQUENCE = ("SplitToSequence", "SequenceConstruct", "SequenceInsert")
_SEQUENCES = (*_TO_SEQUENCE, "SequenceAt", "ConcatFromSequence")
_TYPES = {"tensor(float16)", "seq(tensor(float16))"}


def half_state(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The float32 entries of a state_dict in float16, the others as they are; what shares memory still does.

    Raises:
        ConversionError: a finite number is past float16's largest, 65504.
    """
    made: dict[Any, Tensor] = {}
    result = {}
    for name, tensor in state.items():
        if tensor.dtype != torch.float32:
            result[name] = tensor
            continue
        place = (tensor.device, tensor.data_ptr(), tensor.shape, tensor.stride())
        if place not in made:
            made[place] = tensor.detach().half()
            if not torch.equal(made[place].isfinite(), tensor.isfinite()):
                raise _overflow(f"the weight {name!r}", float(tensor[tensor.isfinite()].abs().max()))
        result[name] = made[place]
    return result


def graph_to_half(model: ir.Model) -> None:
    """Bring a float32 graph that anyone exported to float16, as :func:`to_half` does.

    Initializers that sizes are computed with, or that never meet the image, keep their numbers: scales, coordinates.
    Those of a single number are brought to float16 as constants are.

    Raises:
        ConversionError: a weight or a constant past 65504, or an op whose types are not known.
    """
    state = {}
    for name, tensor in _weights(model).items():
        single = tensor.size == 1
        state[name] = torch.from_numpy(_half_constant(tensor.numpy(), name)) if single else to_torch(tensor)
    to_half(model, half_state(state))


def _weights(model: ir.Model) -> dict[str, ir.TensorProtocol]:
    """The initializers that meet the image, by themselves or through nodes that read nothing but initializers.

    What meets numbers that follow from sizes as well is none of them.
    """
    graph, found, sized = model.graph, set[str](), set[str]()
    images = {value for value in graph.inputs if value.name not in graph.initializers}
    sources = {value: {str(value.name)} for value in graph.initializers.values()}
    for node in graph:
        read = [value for value in node.inputs if value is not None]
        if node.op_type in ("Shape", "Size"):
            continue
        if images.intersection(read):
            images.update(node.outputs)
            found.update(*(sources[value] for value in _of_any_type(model, node) if value in sources))
        elif all(value in sources for value in read):
            sources.update(dict.fromkeys(node.outputs, set[str]().union(*(sources[value] for value in read))))
        else:
            sized.update(*(sources[value] for value in read if value in sources))
    tensors = {name: graph.initializers[name].const_value for name in graph.initializers if name in found - sized}
    return {name: tensor for name, tensor in tensors.items() if tensor is not None and tensor.dtype == _FLOAT}


def _of_any_type(model: ir.Model, node: ir.Node) -> list[ir.Value]:
    """The inputs of a node that may be float16."""
    schema = _schema(model, node)
    allowed = _allowed(schema)
    kinds = [(value, _formal(schema.inputs, place).type_str) for place, value in enumerate(node.inputs)]
    return [value for value, kind in kinds if value is not None and allowed.get(kind, False)]


def _allowed(schema: Any) -> dict[str, bool]:
    """An op's type variables, and whether they may be float16."""
    return {one.type_param_str: bool(_TYPES & set(one.allowed_type_strs)) for one in schema.type_constraints}


def to_half(model: ir.Model, state: Mapping[str, Tensor]) -> None:
    """Bring a float32 graph to float16: inputs, weights, what is made of them, and the outputs.

    Where an op takes no float16, casts stand around it. Constants that float16 would round to 0 (an epsilon) become its
    smallest number, and float32's extremes (the padding of a maximum) become its own.

    Args:
        model: the graph, nodes in topological order.
        state: of `half_state`, the initializers that become float16.

    Raises:
        ConversionError: a constant past 65504, or an op whose types are not known.
    """
    graph = model.graph
    _complete_types(model)
    for value in graph.inputs:
        if value.name not in graph.initializers:
            _set(value, _HALF)
    for name, value in graph.initializers.items():
        if name in state:
            value.const_value = TorchTensor(state[name].detach(), name=name)
            _set(value, _HALF)
    casts: dict[tuple[ir.Value, ir.DataType], ir.Value] = {}
    for node in list(graph):
        if node.op_type == "CastLike" and node.domain == "":
            _plain_cast(graph, node)
        elif node.op_type == "Cast" and node.domain == "":
            if _is(node.inputs[0], _HALF) and _is(node.outputs[0], _FLOAT):
                node.attributes["to"] = ir.AttrInt64("to", _HALF)
                _set(node.outputs[0], _HALF)
        else:
            _convert(model, node, casts)


def _complete_types(model: ir.Model) -> None:
    """Give every value its type; shapes stay as they are, since the exporter's say more than inferred ones."""
    shapes = {value: value.shape for value in all_values(model)}
    passes.ShapeInferencePass(check_type=False, strict_mode=False)(model)
    for value, shape in shapes.items():
        value.shape = shape


def _convert(model: ir.Model, node: ir.Node, casts: dict[tuple[ir.Value, ir.DataType], ir.Value]) -> None:
    """One op: inputs of one type variable get one type, float16 where any of them has it and the op takes it."""
    if not any(_is(value, _HALF) for value in node.inputs):
        return
    schema = _schema(model, node)
    allowed = _allowed(schema)
    kinds = [_formal(schema.inputs, place).type_str for place in range(len(node.inputs))]
    halves = {
        kind for kind, value in zip(kinds, node.inputs, strict=True) if _is(value, _HALF) and allowed.get(kind, False)
    }
    for place, (kind, value) in enumerate(zip(kinds, node.inputs, strict=True)):
        wanted = _HALF if kind in halves else _FLOAT
        if value is not None and value.dtype in (_FLOAT, _HALF) and value.dtype != wanted:
            node.replace_input_with(place, _cast(model.graph, node, value, wanted, casts))
    for place, value in enumerate(node.outputs):
        # Between a tensor and a sequence of such tensors there is no type variable in common.
        if _formal(schema.outputs, place).type_str in halves or (halves and node.op_type in _SEQUENCES):
            _set(value, _HALF)
            if node.op_type in _TO_SEQUENCE:
                value.type = ir.SequenceType(ir.TensorType(_HALF))


def _schema(model: ir.Model, node: ir.Node) -> Any:
    version = model.opset_imports.get(node.domain)
    has_graph = any(attribute.type == ir.AttributeType.GRAPH for attribute in node.attributes.values())
    if version is not None and not has_graph:
        try:
            return onnx.defs.get_schema(node.op_type, version, node.domain)
        except onnx.defs.SchemaError:
            pass
    raise ConversionError(
        f"the op {node.domain or 'ai.onnx'}.{node.op_type} cannot be brought to float16: its types are not known, or "
        "it holds a graph of its own. Write the file in float32."
    )


def _formal(formals: Any, place: int) -> Any:
    """The description of an input or output; the last one may stand for many."""
    return formals[min(place, len(formals) - 1)]


def _plain_cast(graph: ir.Graph, node: ir.Node) -> None:
    """CastLike takes its type from a value that may become float16; a size that it casts must not follow."""
    source, made = node.inputs[0], node.outputs[0]
    if source is None or not _is(made, _FLOAT):
        return
    kind = _HALF if _is(source, _HALF) else _FLOAT
    constant = _constant(source)
    if constant is not None:
        data = ir.tensor(constant.astype(np.float32))
        other = ir.node("Constant", [], attributes={"value": data}, name=node.name)
    else:
        other = ir.node("Cast", [source], attributes={"to": int(kind)}, name=node.name)
    result = other.outputs[0]
    result.shape, result.type, name = made.shape, ir.TensorType(kind), made.name
    graph.insert_before(node, other)
    made.replace_all_uses_with(result, replace_graph_outputs=True)
    graph.remove(node, safe=True)
    result.name = name


def _cast(
    graph: ir.Graph,
    node: ir.Node,
    value: ir.Value,
    kind: ir.DataType,
    casts: dict[tuple[ir.Value, ir.DataType], ir.Value],
) -> ir.Value:
    """The value in another type, made in front of the node that first wants it."""
    if (value, kind) not in casts:
        name = f"{value.name}_{kind.name.lower()}"
        constant = _constant(value)
        if constant is not None:
            data = ir.tensor(_half_constant(constant, str(value.name)))
            made = ir.node("Constant", [], attributes={"value": data}, name=f"node_{name}")
        else:
            made = ir.node("Cast", [value], attributes={"to": int(kind)}, name=f"node_{name}")
        result = made.outputs[0]
        result.name, result.shape, result.type = name, value.shape, ir.TensorType(kind)
        graph.insert_before(node, made)
        casts[value, kind] = result
    return casts[value, kind]


def _constant(value: ir.Value) -> np.ndarray | None:
    """The numbers of a constant, or of a copy of one; None for everything else, weights among it."""
    while (node := value.producer()) is not None and node.op_type == "Identity" and node.inputs[0] is not None:
        value = node.inputs[0]
    constant = None if value.is_initializer() else ir.convenience.get_const_tensor(value)
    return None if constant is None else constant.numpy()


def _half_constant(data: np.ndarray, name: str) -> np.ndarray:
    """A float32 constant in float16: extremes stay extremes, and what is not 0 does not become 0."""
    extreme = np.abs(data) == _EXTREME
    with np.errstate(over="ignore"):
        made = np.where(extreme, np.sign(data) * _LARGEST, data).astype(np.float16)
    if not np.array_equal(np.isfinite(made), np.isfinite(data)):
        raise _overflow(f"the constant {name!r}", float(np.abs(data[np.isfinite(data)]).max()))
    return np.where((made == 0) & (data != 0), np.sign(data) * _SMALLEST, made).astype(np.float16)


def _overflow(what: str, largest: float) -> ConversionError:
    return ConversionError(
        f"{what} holds {largest:g}, which float16 cannot: its largest number is {_LARGEST:g}. Write the file in "
        "float32."
    )


def _is(value: ir.Value | None, kind: ir.DataType) -> bool:
    return value is not None and value.dtype == kind


def _set(value: ir.Value, kind: ir.DataType) -> None:
    """Give a value another type that is float32, or whose type inference did not find."""
    if value.dtype in (_FLOAT, None):
        value.type = ir.TensorType(kind)
