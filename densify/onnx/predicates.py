"""What is asked of one ONNX node: its attributes, and how many axes it works on. Imports neither torch nor onnx."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import onnx_ir as ir


def _ints(node: ir.Node, name: str) -> tuple[int, ...]:
    attribute = node.attributes.get(name)
    return () if attribute is None else tuple(attribute.as_ints())


def _int(node: ir.Node, name: str, default: int = 0) -> int:
    attribute = node.attributes.get(name)
    return default if attribute is None else attribute.as_int()


def _text(node: ir.Node, name: str, default: str) -> str:
    attribute = node.attributes.get(name)
    return default if attribute is None else attribute.as_string()


def dilated(node: ir.Node) -> bool:
    return any(d > 1 for d in _ints(node, "dilations"))


def dilated_and_padded(node: ir.Node) -> bool:
    pads = _ints(node, "pads")
    return dilated(node) and any(pads[: len(pads) // 2])


def padded(node: ir.Node) -> bool:
    return any(_ints(node, "pads")) or _text(node, "auto_pad", "NOTSET") not in ("NOTSET", "VALID")


def ceils(node: ir.Node) -> bool:
    return bool(_int(node, "ceil_mode"))


def ceils_over_padding(node: ir.Node) -> bool:
    return ceils(node) and bool(_int(node, "count_include_pad")) and padded(node)


def gives_indices(node: ir.Node) -> bool:
    return len(node.outputs) > 1 and bool(node.outputs[1].name)


def told_its_shape(node: ir.Node) -> bool:
    return len(node.inputs) > 2 and node.inputs[2] is not None


def overhangs(node: ir.Node) -> bool:
    """A transposed convolution whose output padding reaches its stride."""
    padding, strides = _ints(node, "output_padding"), _ints(node, "strides")
    return any(p >= s for p, s in zip(padding, strides or (1,) * len(padding), strict=False))


def _axes(node: ir.Node) -> int:
    """Spatial axes of a convolution or pooling, as far as they are known."""
    kernel = _ints(node, "kernel_shape")
    weight = node.inputs[1] if len(node.inputs) > 1 else None
    rank = weight.shape.rank() if weight is not None and weight.shape is not None else 2
    return len(kernel) or rank - 2


def reaches_far(node: ir.Node) -> bool:
    """A dilated convolution of dynamic size whose taps lie 64 samples or more apart, the padding taken off."""
    kernel, spacing, pads = (_ints(node, name) for name in ("kernel_shape", "dilations", "pads"))
    x, axes = node.inputs[0], len(kernel)
    pads = pads or (0,) * 2 * axes
    if x is not None and x.shape is not None and all(isinstance(size, int) for size in x.shape[2:]):
        return False
    reaches = (
        d * (k - 1) - pads[i] - pads[i + axes] for i, (k, d) in enumerate(zip(kernel, spacing, strict=False)) if d > 1
    )
    return any(reach >= 64 for reach in reaches)


def of_volumes(node: ir.Node) -> bool:
    return _axes(node) == 3


def of_lines(node: ir.Node) -> bool:
    return _axes(node) == 1


def samples_volumes(node: ir.Node) -> bool:
    x = node.inputs[0]
    return x is not None and x.shape is not None and x.shape.rank() == 5


def wraps(node: ir.Node) -> bool:
    return _text(node, "mode", "constant") == "wrap"


def antialiases(node: ir.Node) -> bool:
    return bool(_int(node, "antialias"))


def keeps_aspect(node: ir.Node) -> bool:
    return _text(node, "keep_aspect_ratio_policy", "stretch") != "stretch"


def cubic_inside(node: ir.Node) -> bool:
    return _text(node, "mode", "nearest") == "cubic" and bool(_int(node, "exclude_outside"))


def cubic(node: ir.Node) -> bool:
    return _text(node, "mode", "nearest") == "cubic"


_COMMON_COORDINATES = ("half_pixel", "pytorch_half_pixel", "asymmetric", "align_corners", "tf_half_pixel_for_nn")


def rare_coordinates(node: ir.Node) -> bool:
    return _text(node, "coordinate_transformation_mode", "half_pixel") not in _COMMON_COORDINATES


def takes_maxima(node: ir.Node) -> bool:
    return _text(node, "mode", "avg") == "max"


_ARITHMETIC = frozenset(
    ["Abs", "Add", "Cast", "Concat", "Div", "Gather", "Identity", "Max", "Min", "Mod", "Mul", "Neg", "Reshape", "Slice",
     "Squeeze", "Sub", "Unsqueeze"]
)  # fmt: skip


def of_sizes(node: ir.Node) -> bool:
    """Whether what it reads follows from the sizes of other values, and from nothing else but constants."""
    stack, seen, sized = [value for value in node.inputs if value is not None], set[int](), False
    while stack:
        value = stack.pop()
        made = value.producer()
        if id(value) in seen or value.is_initializer() or (made is not None and made.op_type == "Constant"):
            continue
        seen.add(id(value))
        if made is None or made.op_type not in (*_ARITHMETIC, "Shape", "Size"):
            return False
        if made.op_type in ("Shape", "Size"):
            sized = True
        else:
            stack += [one for one in made.inputs if one is not None]
    return sized


def is_scaled_by_the_graph(node: ir.Node) -> bool:
    """Whether the scale of a normalisation is no weight."""
    scale = node.inputs[1] if len(node.inputs) > 1 else None
    made = None if scale is None else scale.producer()
    return scale is not None and not scale.is_initializer() and (made is None or made.op_type != "Constant")
