"""What a graph has to be: of ONNX's own operators, with one input that is an image."""

from __future__ import annotations

import onnx_ir as ir

from densify.errors import ConversionError, Refusal, RefusedError


def image_of(model: ir.Model) -> ir.Value:
    """The one input that is an image.

    Raises:
        ConversionError: there is none, or there are several.
    """
    inputs = [value for value in model.graph.inputs if value.name not in model.graph.initializers]
    images = [value for value in inputs if value.shape is None or len(value.shape) >= 3]
    if len(inputs) != 1 or not images:
        names = ", ".join(f"{value.name} {value.shape}" for value in inputs) or "none"
        raise ConversionError(f"the graph has to have one input, an image [B, C, *spatial]; it has: {names}.")
    if images[0].dtype is None or not images[0].dtype.is_floating_point():
        raise ConversionError(f"{images[0].name}: the image has to be of a floating type, not {images[0].dtype}.")
    return images[0]


def spatial_dims(model: ir.Model) -> tuple[int, ...]:
    """The dimensions of the image in the order [B, C, *spatial]: channels come last where the first window op sees them
    moved there."""
    image = image_of(model)
    rank = len(image.shape) if image.shape is not None else 4
    orders: dict[str, tuple[int, ...]] = {str(image.name): tuple(range(rank))}
    for node in model.graph:
        seen = [orders[str(one.name)] for one in node.inputs if one is not None and str(one.name) in orders]
        if not seen:
            continue
        if node.op_type in _WINDOWS:
            return seen[0]
        order = seen[0]
        if node.op_type in _RESHAPES:
            continue
        if node.op_type == "Transpose":
            permutation = list(node.attributes.get_ints("perm", list(reversed(range(rank)))))
            order = tuple(order[dim] for dim in permutation)
        orders[str(node.outputs[0].name)] = order
    return tuple(range(rank))


_RESHAPES = ("Flatten", "Gather", "Reshape", "Shape", "Size", "Squeeze", "Unsqueeze")  # of which other dimensions come
_WINDOWS = ("Conv", "MaxPool", "AveragePool", "LpPool", "ConvTranspose", "BatchNormalization", "GlobalAveragePool")


_OLDEST = 7


def refuse_foreign(model: ir.Model) -> None:
    """Refuse a graph of operators that ONNX does not have, or had long ago.

    Raises:
        RefusedError: operators of other domains.
        ConversionError: an opset from before the operators broadcast as they do.
    """
    version = model.opset_imports.get("", 0)
    if version < _OLDEST:
        raise ConversionError(
            f"the graph is of opset {version}; {_OLDEST} is the first that can be read. Bring it there with "
            "onnx.version_converter."
        )
    found = []
    for node in model.graph:
        if node.domain not in ("", "ai.onnx"):
            reason = f"{node.op_type} is of the domain {node.domain!r}, not of ONNX's own"
            found.append(Refusal(str(node.name), reason, "Export the model with ONNX's own operators."))
    if found:
        raise RefusedError(tuple(found))
