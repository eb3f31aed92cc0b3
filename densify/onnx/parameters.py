"""Which initializers of a graph are weights: those that layers read as such. Other constants are no parameters."""

from __future__ import annotations

from collections.abc import Iterator

import onnx_ir as ir

_READ = {
    **dict.fromkeys(("Conv", "ConvTranspose", "Gemm", "LayerNormalization", "GroupNormalization"), (1, 2)),
    **dict.fromkeys(("BatchNormalization", "InstanceNormalization"), (1, 2)),  # statistics are no parameters
    **dict.fromkeys(("LSTM", "GRU", "RNN"), (1, 2, 3)),
    **dict.fromkeys(("MatMul", "Add", "Mul"), (0, 1)),
    **dict.fromkeys(("PRelu", "RMSNormalization"), (1,)),
}
"""By operator, the inputs that may be weights."""

_JOINS = ("Add", "Mul")
"""Operators whose constant is a bias or a scale per channel; a single number is none that was learned."""

_CARRIED = ("Cast", "DequantizeLinear", "Identity", "Reshape", "Squeeze", "Transpose", "Unsqueeze")


def parameters(model: ir.Model) -> dict[str, dict[str, int]]:
    """For every layer with weights, by its node's name: how many numbers each of its initializers has, by name."""
    found = {}
    for node in model.graph:
        places = _READ.get(node.op_type, ())
        read = dict(one for place in places if place < len(node.inputs) for one in _weight(node, node.inputs[place]))
        if read:
            found[str(node.name or node.outputs[0].name)] = read
    return found


def _weight(node: ir.Node, value: ir.Value | None) -> Iterator[tuple[str, int]]:
    """The initializer that a layer reads there, by itself or through views, as its name and size; none of a map."""
    made, quantised = None if value is None else value.producer(), False
    while made is not None and made.op_type in _CARRIED:
        value, quantised = made.inputs[0], quantised or made.op_type == "DequantizeLinear"
        made = None if value is None else value.producer()
    tensor = None if value is None or not value.is_initializer() else value.const_value
    if value is None or tensor is None or not (quantised or tensor.dtype.is_floating_point()):
        return
    if node.op_type not in _JOINS or tensor.size > 1:
        yield str(value.name), tensor.size
