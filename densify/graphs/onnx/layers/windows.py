"""eConv and ePool: window ops that read their input at step eST (paper, equations 3 and 4)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import reduce
from math import prod
from typing import Any

import numpy as np
import onnx_ir as ir

from densify.graphs.onnx.tape import Size, Tensor, concatenated
from densify.lattice import DenseWindow, Layout


def layouts(x: Tensor, windows: Sequence[DenseWindow], sizes: Sequence[Size] | None = None) -> list[Layout]:
    """Padding, far side and subsampling per spatial axis; `sizes` as for :func:`densify.layers.emax_pool`."""
    return [
        window.layout(x.size(2 + axis), None if sizes is None else sizes[axis])  # type: ignore[arg-type]
        for axis, window in enumerate(windows)
    ]


def windowed(
    x: Tensor,
    kind: str,
    inputs: Sequence[ir.Value | None],
    attributes: Mapping[str, Any],
    windows: Sequence[DenseWindow],
    found: Sequence[Layout],
    *,
    channels: int,
    fill: float = 0.0,
    written: bool = True,
) -> Tensor:
    """An operator with a window: its padding, the operator itself, its far side.

    Args:
        kind, inputs, attributes: of the operator, but for its geometry.
        found: padding and far side per spatial axis.
        channels: of the result.
        fill: what its padding holds.
        written: whether its padding may stand in its attributes.
    """
    inside = written and all(isinstance(side, int) and side >= 0 for at in found for side in (at.low, at.high))
    if kind == "MaxPool":  # ONNX Runtime compares padding with the undilated kernel
        inside = inside and all(max(at.low, at.high) < w.kernel for at, w in zip(found, windows, strict=True))
    if not inside:
        x = padded(x, found, fill)
    pads = [at.low for at in found] + [at.high for at in found] if inside else [0] * (2 * len(found))
    geometry: dict[str, Any] = {
        "kernel_shape": [w.kernel for w in windows],
        "strides": [w.move for w in windows],
        "dilations": [w.spacing for w in windows],
        "pads": pads,
    }
    if kind in ("AveragePool", "LpPool"):
        del geometry["dilations"]
    sizes = [
        _made(x.shape[2 + axis], window, pads[axis] + pads[axis + len(windows)]) for axis, window in enumerate(windows)
    ]
    y = x.op(kind, inputs, [x.shape[0], channels, *sizes], **geometry, **attributes)
    return far_side(y, found, windows)


def padded(x: Tensor, found: Sequence[Layout], fill: float) -> Tensor:
    """A map with the padding that its windows ask for."""
    return x.padded({2 + axis: (at.low, at.high) for axis, at in enumerate(found)}, fill)


def _made(size: Size | None, window: DenseWindow, padding: Size) -> Size | None:
    if not isinstance(size, int) or not isinstance(padding, int):
        return None
    return (size + padding - window.spacing * (window.kernel - 1) - 1) // window.move + 1


def econv(
    x: Tensor, weight: ir.Value, bias: ir.Value | None, windows: Sequence[DenseWindow], channels: int, groups: int = 1
) -> Tensor:
    """Convolution with the kernel's taps eST samples apart (paper, equation 3).

    [B, C, *spatial] -> [B, channels, *spatial].
    """
    inputs = [weight] if bias is None else [weight, bias]
    return windowed(x, "Conv", inputs, {"group": groups}, windows, layouts(x, windows), channels=channels)


def emax_pool(
    x: Tensor, windows: Sequence[DenseWindow], sizes: Sequence[Size] | None = None, *, shifts: bool = False
) -> Tensor:
    """Max pooling with the window's samples eST samples apart (paper, equation 4).

    Args:
        sizes: the original's spatial sizes, needed for padding="same" in ceil mode.
        shifts: by maxima of shifted views, for runtimes without dilated pooling.
    """
    found = layouts(x, windows, sizes)
    dilated = any(window.spacing > 1 for window in windows)
    if (shifts and dilated) or all(window.kernel == 1 for window in windows):
        y = padded(x, found, -np.inf)
        for axis, window in enumerate(windows):
            y = _shifted_maximum(y, 2 + axis, window)
        return far_side(y, found, windows)
    return windowed(x, "MaxPool", (), {}, windows, found, channels=x.channels(), fill=-np.inf)


def _shifted_maximum(x: Tensor, dim: int, window: DenseWindow) -> Tensor:
    """The running maximum along one dimension from shifted views."""
    reach = window.spacing * (window.kernel - 1)
    if window.kernel == 1:
        return x.sliced(dim, 0, None, window.move)
    length = x.size(dim) - reach
    views = [
        x.sliced(dim, tap * window.spacing, tap * window.spacing + length, window.move) for tap in range(window.kernel)
    ]
    return views[0].op("Max", [view.value for view in views[1:]], views[0].shape)


def eavg_pool(
    x: Tensor, windows: Sequence[DenseWindow], count_include_pad: bool, sizes: Sequence[Size] | None = None
) -> Tensor:
    """Average pooling with the window's samples eST samples apart: a depthwise convolution with ones, divided.

    The divisor is that of :func:`densify.layers.eavg_pool`.
    """
    found = layouts(x, windows, sizes)
    channels, kernel = x.channels(), [w.kernel for w in windows]
    dtype = x.value.dtype
    assert dtype is not None
    varies = any(_counts_vary(window, count_include_pad) for window in windows)
    each = 1.0 if varies else 1.0 / prod(kernel)
    one = ir.tensor(np.array([each], dtype.numpy()))
    weight = x.tape.op("ConstantOfShape", [x.tape.integers([channels, 1, *kernel])], {"value": one})
    weight.dtype = dtype
    y = windowed(
        x, "Conv", [weight], {"group": channels}, windows, [at._replace(total=None, take=1) for at in found],
        channels=channels,
    )  # fmt: skip
    if varies:
        counts = [
            _counts(x, axis, *pair, count_include_pad) for axis, pair in enumerate(zip(windows, found, strict=True))
        ]
        y = y.op("Div", [reduce(lambda a, b: x.tape.op("Mul", [a, b]), counts)])
    return far_side(y, found, windows)


def _counts_vary(window: DenseWindow, count_include_pad: bool) -> bool:
    return (
        window.ceil or (not count_include_pad and bool(window.pad_low or window.pad_high)) or window.padding == "same"
    )


def _counts(x: Tensor, axis: int, window: DenseWindow, at: Layout, count_include_pad: bool) -> ir.Value:
    """For every window along one axis, how many of its samples count for the divisor: [1, ..., n, ..., 1].

    The sum of a line of ones by the same window, where padding that counts is ones too.
    """
    tape, dtype = x.tape, x.value.dtype
    assert dtype is not None
    number = dtype.numpy()
    size = x.size(2 + axis)
    ones = tape.op("ConstantOfShape", [tape.integers([1, 1, size])], {"value": ir.tensor(np.array([1], number))})
    ones.dtype = dtype
    line = Tensor(tape, ones, [1, 1, size])
    low, high = (window.est * window.low, window.est * window.high) if count_include_pad else (0, 0)
    line = line.padded({2: (low, high)}, 1.0)
    line = line.padded({2: (at.low - low, at.high - high)})
    kernel = tape.op(
        "ConstantOfShape", [tape.integers([1, 1, window.kernel])], {"value": ir.tensor(np.array([1], number))}
    )
    kernel.dtype = dtype
    counted = line.op(
        "Conv", [kernel], [1, 1, None], kernel_shape=[window.kernel], strides=[window.move],
        dilations=[window.spacing], pads=[0, 0],
    )  # fmt: skip
    least = counted.op("Max", [tape.constant(np.array(1, number))])
    behind = x.rank - 3 - axis
    return least.reshaped([-1, *[1] * behind]).value


def epower_pool(x: Tensor, windows: Sequence[DenseWindow], norm: float) -> Tensor:
    """Power-average pooling (LpPool): the norm of a window's samples, eST samples apart."""
    number = x.value.dtype.numpy()  # type: ignore[union-attr]
    power, root, count = (
        x.tape.constant(np.array(one, number)) for one in (norm, 1.0 / norm, prod(w.kernel for w in windows))
    )
    mean = eavg_pool(x.op("Abs").op("Pow", [power]), windows, True)
    return mean.op("Mul", [count]).op("Pow", [root])


def epatches(x: Tensor, windows: Sequence[DenseWindow], order: Sequence[int]) -> Tensor:
    """The samples of every window side by side in the channels: SpaceToDepth, read eST samples apart.

    Args:
        order: which of the C * prod(kernel) channels to take, in which order.
    """
    kernel, channels = [w.kernel for w in windows], x.channels()
    count, dtype = prod(kernel), x.value.dtype
    assert dtype is not None
    taps = np.eye(count, dtype=dtype.numpy()).reshape(count, 1, *kernel)
    weight = x.tape.op("Tile", [x.tape.constant(taps), x.tape.integers([channels, 1, *[1] * len(kernel)])])
    y = econv(x, weight, None, windows, channels * count, channels)
    index = x.tape.constant(np.array(order, np.int64))
    return y.op("Gather", [index], y.changed({1: len(order)}), axis=1)


def far_side(y: Tensor, found: Sequence[Layout], windows: Sequence[DenseWindow]) -> Tensor:
    """Repeat the last window of every phase where the original's stride or ceil mode reaches past the last one.

    At most stride - 1 of them are missing: so many copies of the last period are put behind, and what is too much is
    cut off.
    """
    for axis, (at, window) in enumerate(zip(found, windows, strict=True)):
        dim, have = 2 + axis, y.shape[2 + axis]
        total: Size | None = at.total
        if total is not None and not (isinstance(total, int) and have == total):
            copies = window.stride - 1
            if isinstance(total, int) and isinstance(have, int):
                copies = -(-(total - have) // at.period)
            last = y.sliced(dim, -at.period, None)
            y = concatenated([y, *[last] * copies], dim)
        y = y.sliced(dim, 0, total, at.take)
    return y


def counts(sizes: Sequence[Size], windows: Sequence[DenseWindow], side: str = "") -> list[Size]:
    """The original's sizes after a window op, from those before.

    Args:
        side: as for :func:`run_time`, where the padding follows the map's size.
    """
    made: list[Size] = []
    for window, size in zip(windows, sizes, strict=True):
        found: Any = size
        plain = window.window.same(found, side) if side and window.stride > 1 else window.window
        made.append(plain.count(found))
    return made


def run_time(windows: Sequence[DenseWindow], x: Tensor, side: str) -> list[DenseWindow]:
    """Windows whose padding follows the map's size ("same"), for this map."""
    made = []
    for axis, window in enumerate(windows):
        if window.stride == 1:
            made.append(window)
            continue
        size: Any = x.size(2 + axis)
        padded = window.window.same(window.original_size(size), side)
        low, high = window.est * padded.low, window.est * padded.high
        made.append(window._replace(low=padded.low, high=padded.high, pad_low=low, pad_high=high))
    return made
