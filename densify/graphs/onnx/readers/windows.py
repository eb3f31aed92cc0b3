"""Readers of convolutions, poolings and paddings."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from densify.graphs.onnx.registry import Call, Place, reads
from densify.lattice import Window
from densify.maps import Layout
from densify.ops import AvgPool, Channelwise, Conv, MaxPool, Op, Pad, Patches, PowerPool, Unsupported, Windowed

_SAME = {"SAME_UPPER": "upper", "SAME_LOWER": "lower"}


@reads("Conv")
def conv(call: Call) -> Op | None:
    weight = call.node.inputs[1]
    assert weight is not None
    if not call.source.plain or call.node.inputs[0] is None or str(call.node.inputs[0].name) not in call.maps:
        return NO_MAP
    kernel = call.shape(str(weight.name))[2:]
    return Conv(windows(call, kernel), same=same(call)) if kernel else DYNAMIC


NO_MAP = Unsupported("its input is no map [B, C, *spatial]", "Choose layers behind it")
DYNAMIC = Unsupported("its kernel is computed from the image", "Give it constant weights")


def windows(call: Call, kernel: tuple[int, ...]) -> tuple[Window, ...]:
    """The geometry of a node's attributes, `auto_pad` apart."""
    count = len(kernel)
    strides, dilations = call.integers("strides", (1,) * count), call.integers("dilations", (1,) * count)
    pads = call.integers("pads", (0,) * (2 * count))
    if call.node.attributes.get_string("auto_pad", "NOTSET") != "NOTSET":
        pads = (0,) * (2 * count)
    ceil = bool(call.node.attributes.get_int("ceil_mode", 0)) and not same(call)  # which rounds up by itself
    return tuple(
        Window(k, s, low, high, d, ceil)
        for k, s, low, high, d in zip(kernel, strides, pads[:count], pads[count:], dilations, strict=True)
    )


def same(call: Call) -> str:
    """Which side the odd sample of a padding that follows the size goes to; "" where the padding is written."""
    return _SAME.get(call.node.attributes.get_string("auto_pad", "NOTSET"), "")


@reads("MaxPool AveragePool LpPool")
def pool(call: Call) -> Op | None:
    node = call.node
    if not call.source.plain:
        return NO_MAP
    found, follows = windows(call, tuple(call.integers("kernel_shape", ()))), same(call)
    if node.op_type == "MaxPool":
        if len(node.outputs) > 1 and (node.outputs[1].uses() or node.outputs[1].is_graph_output()):
            return Unsupported("the places of its maxima are read", "Give the torch model instead")
        return MaxPool(found, same=follows)
    if node.op_type == "AveragePool":
        return AvgPool(found, same=follows, count_include_pad=bool(node.attributes.get_int("count_include_pad", 0)))
    if follows or any(window.low or window.high or window.dilation > 1 or window.ceil for window in found):
        return None
    return PowerPool(found, norm=float(node.attributes.get_int("p", 2)))


def row_pool(call: Call) -> Op | None:
    """A pooling of one axis that is written as one of a single row: Unsqueeze, the pooling, and this Squeeze."""
    pooling = call.node.inputs[0].producer() if call.node.op_type == "Squeeze" and call.node.inputs[0] else None
    if pooling is None or pooling.op_type not in ("MaxPool", "AveragePool", "LpPool") or not pooling.inputs[0]:
        return None
    row = str(pooling.inputs[0].name)
    lift = pooling.inputs[0].producer()
    if lift is None or lift.op_type != "Unsqueeze" or not lift.inputs[0] or str(lift.inputs[0].name) not in call.places:
        return None
    added, taken = replace(call, node=lift, maps=(row,)).axes(input_since=13), call.axes(input_since=13)
    if not call.places[str(lift.inputs[0].name)].plain or added != taken or added is None or min(added) < 2:
        return None
    shape = call.shape(row)
    place = Place(Layout.MAP, tuple(range(len(shape))), shape[2:])
    op = pool(replace(call, node=pooling, maps=(row,), places={row: place}))
    if not isinstance(op, Windowed):
        return None
    others = [window for axis, window in enumerate(op.windows) if 2 + axis in added]
    kept = tuple(window for axis, window in enumerate(op.windows) if 2 + axis not in added)
    return replace(op, windows=kept) if all(one._replace(ceil=False) == Window(1, 1) for one in others) else None


@reads("SpaceToDepth")
def space_to_depth(call: Call) -> Op | None:
    """Its channels are counted [*block, C]."""
    size = call.node.attributes.get_int("blocksize")
    channels = call.shape(call.maps[0])[1]
    order = tuple(channel * size * size + tap for tap in range(size * size) for channel in range(channels))
    return Patches((Window(size, size),) * 2, order=order) if call.source.plain else None


_MODES = {"constant": "constant", "reflect": "reflect", "edge": "replicate", "wrap": "circular"}


@reads("Pad")
def pad(call: Call) -> Op | None:
    amounts: Sequence[int]
    axes = None
    if call.version >= 11:
        numbers, axes = call.numbers(1), call.numbers(3)
        if numbers is None:
            return Unsupported("its padding is computed from the image", "Give it constant amounts")
        amounts = [int(one) for one in numbers]
    else:
        amounts = call.integers("pads", ()) or call.integers("paddings", ())
    low, high = [0] * call.rank, [0] * call.rank
    named = [int(axis) % call.rank for axis in axes] if axes is not None else list(range(call.rank))
    for place, axis in enumerate(named):
        low[axis], high[axis] = amounts[place], amounts[place + len(named)]
    order = call.source.order
    mode = _MODES[call.node.attributes.get_string("mode", "constant")]
    if any(low[dim] or high[dim] for dim in order[:1]):
        return None
    sides = tuple((low[dim], high[dim]) for dim in order[2:])
    if low[order[1]] or high[order[1]]:
        if not any(map(any, sides)):
            return Channelwise()
        return Pad(sides, mode) if call.version >= 11 else None
    return Pad(sides, mode)
