"""Edits of an exported ONNX graph: names, cleanliness, and initializers that are exactly the state_dict's."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir
import onnx_ir.passes.common as passes
from onnx_ir.tensor_adapters import TorchTensor
from onnxscript.optimizer import fold_constants
from torch import Tensor

from densify.onnx.predicates import of_sizes

_LARGEST = 2**20  # elements of a constant: far more than any list of indices has, far less than it would take to matter


def all_values(model: ir.Model) -> Iterator[ir.Value]:
    """Every value of the main graph and the graphs inside it: inputs, initializers, what nodes produce."""
    yield from model.graph.inputs
    yield from model.graph.initializers.values()
    for node in model.graph.all_nodes():
        yield from node.outputs


def rename_symbols(model: ir.Model, symbols: Mapping[str, str]) -> None:
    """Rename symbolic sizes in every shape, inside expressions too (`4*(s53//2)` becomes `4*(height//2)`)."""
    if not symbols:
        return
    longest_first = sorted(symbols, key=len, reverse=True)
    pattern = re.compile(rf"(?<!\w)({'|'.join(map(re.escape, longest_first))})(?!\w)")
    for value in all_values(model):
        if value.shape is not None:
            value.shape = ir.Shape(
                pattern.sub(lambda found: symbols[found[0]], str(dim)) if isinstance(dim, ir.SymbolicDim) else dim
                for dim in value.shape
            )


def name_values(model: ir.Model, outputs: Sequence[str]) -> None:
    """Name the only input `input` and the outputs as given; another value of such a name gives way."""
    passes.OutputFixPass()(model)  # an output is a value of its own: no input, no other output
    wanted = dict(zip(("input", *outputs), (*model.graph.inputs, *model.graph.outputs), strict=True))
    for value in all_values(model):
        if value.name in wanted and wanted[value.name] is not value and value.name not in model.graph.initializers:
            value.name = f"{value.name}_inner"
    for name, value in wanted.items():
        value.name = name


def clean(model: ir.Model) -> None:
    """Remove what the exporter leaves behind: local paths, stack traces, zero biases, nodes that nothing reads."""
    for node in list(model.graph.all_nodes()):
        if node.op_type == "Conv" and len(node.inputs) == 3 and _is_filled_with_zero(node.inputs[2]):
            node.resize_inputs(2)
    _name_nodes(model.graph)
    _split_at_once(model.graph)
    _maxima_for_absolutes(model.graph)
    passes.RemoveUnusedNodesPass()(model)
    passes.RemoveUnusedFunctionsPass()(model)
    passes.RemoveUnusedOpsetsPass()(model)
    passes.ClearMetadataAndDocStringPass()(model)
    model.doc_string = None
    model.metadata_props.clear()
    for value in all_values(model):
        value.metadata_props.clear()
        value.doc_string = None


def _name_nodes(graph: ir.Graph) -> None:
    """Name nodes by the module that they come from and their operator, as in `layer1.0.conv1/Conv`."""
    taken = {str(node.name) for node in graph}
    for node in graph:
        scopes = ast.literal_eval(node.metadata_props.get(_SCOPES, "[]"))
        owner = scopes[-2] if len(scopes) > 1 else ""  # the last is the operation itself
        if not owner or node.op_type == "Constant":
            continue
        name = base = f"{owner}/{node.op_type}"
        count = 0
        while name in taken:
            count += 1
            name = f"{base}_{count}"
        taken.add(name)
        node.name = name


_SCOPES = "pkg.torch.onnx.name_scopes"


def _split_at_once(graph: ir.Graph) -> None:
    """Make a Split of every sequence of pieces whose entries are taken one by one: few runtimes know sequences."""
    for node in list(graph):
        if node.op_type != "SplitToSequence":
            continue
        uses = [use.node for use in node.outputs[0].uses()]
        places = {one: _constant(one.inputs[1]) for one in uses if one.op_type == "SequenceAt"}
        sizes = _piece_sizes(node)
        if sizes is None or len(places) < len(uses) or None in places.values():
            continue
        lengths = ir.node("Constant", [], {"value_ints": sizes})
        split = ir.node(
            "Split",
            [node.inputs[0], lengths.outputs[0]],
            {"axis": node.attributes.get_int("axis", 0)},
            num_outputs=len(sizes),
            name=node.name,
        )
        graph.insert_before(node, [lengths, split])
        for one, place in places.items():
            assert place is not None
            piece = split.outputs[int(place.numpy())]
            piece.name, piece.shape, piece.type = one.outputs[0].name, one.outputs[0].shape, one.outputs[0].type
            one.outputs[0].replace_all_uses_with(piece, replace_graph_outputs=True)
        graph.remove([*places, node], safe=True)


def _maxima_for_absolutes(graph: ir.Graph) -> None:
    """Write the absolute of a number that follows from sizes as a maximum: not every runtime makes it (targets.py)."""
    for node in list(graph):
        if node.op_type != "Abs" or not of_sizes(node):
            continue
        (x,), made = node.inputs, node.outputs[0]
        negative = ir.node("Neg", [x])
        largest = ir.node("Max", [x, negative.outputs[0]], name=node.name)
        for value in (negative.outputs[0], largest.outputs[0]):
            value.shape, value.type = made.shape, made.type
        largest.outputs[0].name, negative.outputs[0].name = made.name, f"{made.name}_negative"
        graph.insert_before(node, [negative, largest])
        made.replace_all_uses_with(largest.outputs[0], replace_graph_outputs=True)
        graph.remove(node, safe=True)


def _constant(value: ir.Value | None) -> ir.TensorProtocol | None:
    return None if value is None else ir.convenience.get_const_tensor(value)


def _piece_sizes(node: ir.Node) -> list[int] | None:
    """The sizes of the pieces that a SplitToSequence makes, where they are the same for every image."""
    source, axis = node.inputs[0], node.attributes.get_int("axis", 0)
    sizes = _constant(node.inputs[1]) if len(node.inputs) > 1 else None
    if source is None or source.shape is None or sizes is None or not node.attributes.get_int("keepdims", 1):
        return None
    whole = source.shape[axis]
    if not isinstance(whole, int):
        return None
    pieces = [int(size) for size in sizes.numpy().reshape(-1)]
    if sizes.numpy().ndim:
        return pieces
    (size,) = pieces
    return [min(size, whole - start) for start in range(0, whole, size)]


def fold_sizes(model: ir.Model) -> None:
    """Compute what does not depend on the input or the weights: all arithmetic on sizes, in a graph of fixed sizes."""
    graph = model.graph
    weights = {value: value.const_value for value in graph.initializers.values()}
    for value in weights:
        value.const_value = None  # unknown to the folding, which would replace a weight by what is made of it
    fold_constants(model, input_size_limit=_LARGEST, output_size_limit=_LARGEST)
    for value in [value for value in graph.initializers.values() if value not in weights]:
        make_constant(graph, value)  # of the folding: the initializers stay the original's
    for value, data in weights.items():
        value.const_value = data
    passes.RemoveUnusedNodesPass()(model)


def _is_filled_with_zero(value: ir.Value | None) -> bool:
    """Whether the value is a constant 0, spread over a shape: what the exporter gives a convolution without bias."""
    while value is not None and (node := value.producer()) is not None and node.op_type in ("Expand", "CastLike"):
        value = node.inputs[0]
    constant = ir.convenience.get_const_tensor(value) if value is not None and not value.is_initializer() else None
    return constant is not None and not np.any(constant.numpy())


def keep_state(model: ir.Model, state: Mapping[str, Tensor]) -> dict[str, Any]:
    """Make the initializers exactly the state_dict's entries, in its order.

    Other initializers (lifted constants) become Constant nodes. Entries that the graph does not use (auxiliary heads)
    are added, except for integer counters and for tensors that share their memory with one that is there.

    Returns:
        Those exceptions: {"counters": {key: [dtype, number]}, "tied": {key: key of the initializer}}.
    """
    graph = model.graph
    for name in [name for name in graph.initializers if name not in state]:
        make_constant(graph, graph.initializers[name])
    held = {_memory(state[name]): name for name in graph.initializers}
    counters: dict[str, list[Any]] = {}
    tied: dict[str, str] = {}
    for name, tensor in state.items():
        if name in graph.initializers:
            graph.initializers[name] = graph.initializers.pop(name)
        elif tensor.dim() == 0 and not (tensor.is_floating_point() or tensor.is_complex()):
            counters[name] = [str(tensor.dtype).removeprefix("torch."), tensor.item()]
        elif tensor.numel() and _memory(tensor) in held:
            tied[name] = held[_memory(tensor)]
        else:
            graph.register_initializer(_initializer(name, tensor))
            held[_memory(tensor)] = name
    return {"counters": counters, "tied": tied}


def _memory(tensor: Tensor) -> tuple[Any, ...]:
    return tensor.device, tensor.data_ptr(), tuple(tensor.shape), tensor.stride(), tensor.dtype


def _initializer(name: str, tensor: Tensor) -> ir.Value:
    data = TorchTensor(tensor.detach(), name=name)
    return ir.Value(name=name, shape=data.shape, type=ir.TensorType(data.dtype), const_value=data)


def make_constant(graph: ir.Graph, value: ir.Value) -> None:
    """Turn an initializer into a Constant node, at the head of the graph."""
    node = ir.node("Constant", [], attributes={"value": value.const_value}, name=f"node_{value.name}")
    constant = node.outputs[0]
    name, constant.shape, constant.type = value.name, value.shape, value.type
    del graph.initializers[str(name)]
    value.name = f"{name}_replaced"
    constant.name = name
    value.replace_all_uses_with(constant)
    first = next(iter(graph), None)
    graph.append(node) if first is None else graph.insert_before(first, node)
