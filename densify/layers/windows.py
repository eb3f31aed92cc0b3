"""eConv and ePool: window ops that read their input at step eST (paper, equations 3 and 4)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import reduce

import torch
import torch.nn.functional as F
from torch import Tensor

from densify.errors import ConversionError
from densify.lattice import DenseWindow, Layout

_CONV = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}
_MAX_POOL = {1: F.max_pool1d, 2: F.max_pool2d, 3: F.max_pool3d}


def econv(x: Tensor, weight: Tensor, bias: Tensor | None, windows: Sequence[DenseWindow], groups: int = 1) -> Tensor:
    """Convolution with the kernel's taps eST samples apart (paper, equation 3).

    Args:
        x: [B, C, *spatial], dense.
        weight: [K, C / groups, *kernel], as the original has it.
        bias: [K] or None.
        windows: geometry per spatial axis.

    Returns:
        [B, K, *spatial], dense.
    """
    layouts = _layouts(x, windows, None)
    if all(at.low == at.high and not (isinstance(at.low, int) and at.low < 0) for at in layouts):
        padding = [at.low for at in layouts]
    else:
        x, padding = _pad(x, layouts, 0.0), [0] * len(layouts)
    stride, dilation = [w.move for w in windows], [w.spacing for w in windows]
    y = _CONV[len(windows)](x, weight, bias, stride, padding, dilation, groups)
    return _far_side(y, layouts)


def emax_pool(x: Tensor, windows: Sequence[DenseWindow], sizes: Sequence[int] | None = None) -> Tensor:
    """Max pooling with the window's samples eST samples apart (paper, equation 4).

    Args:
        x: [B, C, *spatial], dense.
        windows: geometry per spatial axis.
        sizes: the original's spatial sizes, needed for padding="same" in ceil mode.
    """
    layouts = _layouts(x, windows, sizes)
    # Padding is filled with -inf by hand: torch and ONNX Runtime compare their own with the undilated kernel.
    least = float("-inf") if x.is_floating_point() else torch.iinfo(x.dtype).min
    if torch.compiler.is_compiling() or (torch.is_grad_enabled() and x.requires_grad):
        # Where two samples tie, torch.maximum would send the gradient to both.
        kernel, stride = [w.kernel for w in windows], [w.move for w in windows]
        padded = _pad(x, layouts, least)
        y = _MAX_POOL[len(windows)](padded, kernel, stride, 0, [w.spacing for w in windows])
    else:
        y = x
        for axis, window in enumerate(windows):  # padded one by one: together, margins of eST samples take much memory
            y = _pad(y, layouts[axis : axis + 1], least, len(windows) - 1 - axis)
            y = shifted_maximum(y, 2 + axis, window.kernel, window.spacing, window.move)
    y = _far_side(y, layouts)
    # With kernels of size 1 this may still be the input, which an op behind may change in place.
    return y.clone() if all(w.kernel == 1 for w in windows) else y


def emax_pool_with_indices(
    x: Tensor, windows: Sequence[DenseWindow], sizes: Sequence[int] | None = None
) -> tuple[Tensor, Tensor]:
    """Max pooling as :func:`emax_pool`, and where each maximum came from.

    Returns:
        Two maps [B, C, *spatial]. The second counts the samples of the phase that was read as the original counts those
        of its input, row by row.
    """
    layouts = _layouts(x, windows, sizes)
    least = float("-inf") if x.is_floating_point() else torch.iinfo(x.dtype).min
    padded = _pad(x, layouts, least)
    kernel, stride, spacing = ([getattr(w, name) for w in windows] for name in ("kernel", "move", "spacing"))
    y, flat = _MAX_POOL[len(windows)](padded, kernel, stride, 0, spacing, return_indices=True)
    place = torch.zeros_like(flat)
    for axis, (window, at) in enumerate(zip(windows, layouts, strict=True)):
        rows = flat // math.prod(padded.shape[3 + axis :])  # of all axes before; the exporter has no % by a size
        index = rows - rows // padded.shape[2 + axis] * padded.shape[2 + axis] - at.low
        place = place * window.original_size(x.shape[2 + axis]) + index // window.est
    return _far_side(y, layouts), _far_side(place, layouts)


def eavg_pool(
    x: Tensor,
    windows: Sequence[DenseWindow],
    count_include_pad: bool,
    divisor: int | None,
    sizes: Sequence[int] | None = None,
) -> Tensor:
    """Average pooling with the window's samples eST samples apart; torch itself has none.

    The sum is a depthwise convolution with ones. The divisor is the product of per-axis counts: samples inside
    count, padding counts if `count_include_pad`, what hangs over in ceil mode never does.

    Args:
        x: [B, C, *spatial], dense.
        windows: geometry per spatial axis.
        divisor: torch's divisor_override.
        sizes: the original's spatial sizes, needed for padding="same" in ceil mode.
    """
    if x.dtype in (torch.float16, torch.bfloat16):  # a sum may overflow where its average does not
        return eavg_pool(x.float(), windows, count_include_pad, divisor, sizes).to(x.dtype)
    layouts = _layouts(x, windows, sizes)
    channels = x.shape[1]
    ones = x.new_ones(()).expand(channels, 1, *(w.kernel for w in windows))
    stride, dilation = [w.move for w in windows], [w.spacing for w in windows]
    padded = _pad(x, layouts, 0.0)
    y = _CONV[len(windows)](padded, ones, None, stride, 0, dilation, channels)
    if divisor is not None:
        y = y / divisor
    elif any(_counts_vary(window, count_include_pad) for window in windows):
        per_axis = (
            _window_counts(x, i, *pair, count_include_pad) for i, pair in enumerate(zip(windows, layouts, strict=True))
        )
        y = y / reduce(lambda a, b: a[..., None] * b, per_axis)
    else:
        y = y / reduce(lambda a, b: a * b, (w.kernel for w in windows))
    return _far_side(y, layouts)


def epower_pool(x: Tensor, windows: Sequence[DenseWindow], norm: float) -> Tensor:
    """Power-average pooling (LPPool): the norm of a window's samples, eST samples apart.

    Args:
        x: [B, C, *spatial], dense.
        windows: geometry per spatial axis.
        norm: the exponent.
    """
    count = reduce(lambda a, b: a * b, (w.kernel for w in windows))
    mean = eavg_pool(x.pow(norm), windows, True, None)
    return (torch.sign(mean) * F.relu(torch.abs(mean)) * count).pow(1.0 / norm)


def epatches(x: Tensor, windows: Sequence[DenseWindow], order: Sequence[int] = ()) -> Tensor:
    """The samples of every window side by side in the channels: pixel_unshuffle, read eST samples apart.

    Args:
        x: [B, C, *spatial], dense.
        windows: geometry per spatial axis.
        order: which of the C * prod(kernel) channels to take, in which order; () for all.

    Returns:
        [B, C * prod(kernel), *spatial] or [B, len(order), *spatial], dense.
    """
    kernel = [w.kernel for w in windows]
    count = reduce(lambda a, b: a * b, kernel)
    taps = torch.eye(count, dtype=x.dtype, device=x.device).reshape(count, 1, *kernel)
    y = econv(x, taps.repeat(x.shape[1], *[1] * (1 + len(kernel))), None, windows, x.shape[1])
    return y.index_select(1, torch.tensor(order, device=x.device)) if order else y


def shifted_maximum(x: Tensor, dim: int, kernel: int, spacing: int, move: int) -> Tensor:
    """Max pooling along one axis from shifted views: far faster on a CPU than dilated pooling.

    Args:
        x: any shape, padded already.
        dim: the axis.
        kernel, spacing, move: samples of a window, the step between them and that between windows.

    Raises:
        RuntimeError: the axis is shorter than a window by more than one sample.
    """
    reach = spacing * (kernel - 1)
    if isinstance(x.shape[dim], int) and x.shape[dim] < reach:
        raise RuntimeError(f"max pooling over {reach + 1} samples reads a map that has {x.shape[dim]}")
    before = (slice(None),) * dim
    views = [x[(*before, slice(k * spacing, (k + 1 - kernel) * spacing or None))] for k in range(kernel)]
    y = reduce(torch.maximum, views)
    return y if move == 1 else y[(*before, slice(None, None, move))]


def padded(x: Tensor, windows: Sequence[DenseWindow], fill: float, sizes: Sequence[int] | None = None) -> Tensor:
    """[B, C, *spatial] with the padding that its windows ask for; `sizes` as for :func:`emax_pool`."""
    return _pad(x, _layouts(x, windows, sizes), fill)


def finished(y: Tensor, x: Tensor, windows: Sequence[DenseWindow], sizes: Sequence[int] | None = None) -> Tensor:
    """What a window op made of the padded `x`, with its far side: [B, K, *spatial].

    Raises:
        ConversionError: it is not as large as the windows say.
    """
    layouts = _layouts(x, windows, sizes)
    for axis, (window, at) in enumerate(zip(windows, layouts, strict=True)):
        wanted = (x.shape[2 + axis] + at.low + at.high - window.spacing * (window.kernel - 1) - 1) // window.move + 1
        made = y.shape[2 + axis]
        if isinstance(made, int) and isinstance(wanted, int) and made != wanted:
            raise ConversionError(
                f"the function of a sliding window made {made} samples along axis {axis} where {wanted} are due: run "
                f"it with stride {window.move} and dilation {window.spacing}, as it is told, and without padding."
            )
    return _far_side(y, layouts)


def spatial_sizes(x: Tensor) -> tuple[int, ...]:
    """[B, C, *spatial] -> its spatial sizes."""
    return tuple(x.shape[2:])


def counts(sizes: Sequence[int], windows: Sequence[DenseWindow]) -> tuple[int, ...]:
    """The original's sizes after a window op, from those before."""
    return tuple(window.window.count(size) for window, size in zip(windows, sizes, strict=True))


def _layouts(x: Tensor, windows: Sequence[DenseWindow], sizes: Sequence[int] | None) -> list[Layout]:
    return [
        window.layout(x.shape[2 + axis], None if sizes is None else sizes[axis]) for axis, window in enumerate(windows)
    ]


def _pad(x: Tensor, layouts: Sequence[Layout], value: float, behind: int = 0) -> Tensor:
    """Padding of some axes; `behind` counts those after them that get none."""
    amounts = [0, 0] * behind + [side for at in reversed(layouts) for side in (at.low, at.high)]
    if all(isinstance(amount, int) and amount == 0 for amount in amounts):
        return x
    return F.pad(x, amounts, value=value)


def _far_side(y: Tensor, layouts: Sequence[Layout]) -> Tensor:
    """Repeat the last window of every phase where the original's stride or ceil mode reaches past the last one."""
    for axis, at in enumerate(layouts):
        dim = 2 + axis
        if at.total is not None:
            have = y.shape[dim]
            if not (isinstance(have, int) and isinstance(at.total, int) and have == at.total):
                sample = torch.arange(at.total, device=y.device)
                index = torch.where(sample < have, sample, have - at.period + sample % at.period)
                y = y.index_select(dim, index)
        if at.take > 1:
            y = y[(slice(None),) * dim + (slice(None, None, at.take),)]
    return y


def _counts_vary(window: DenseWindow, count_include_pad: bool) -> bool:
    return window.ceil or (not count_include_pad and (window.low > 0 or window.high > 0)) or window.padding == "same"


def _window_counts(x: Tensor, axis: int, window: DenseWindow, at: Layout, count_include_pad: bool) -> Tensor:
    """For every window along one axis, how many of its samples count for the divisor; at least 1."""
    size = x.shape[2 + axis]
    windows = size + at.low + at.high - window.spacing * (window.kernel - 1)
    first = torch.arange(0, windows, window.move, device=x.device) - at.low
    taps = first[:, None] + torch.arange(window.kernel, device=x.device) * window.spacing
    low = -window.est * window.low if count_include_pad else 0
    high = size + (window.est * window.high if count_include_pad else 0)
    return ((taps >= low) & (taps < high)).sum(1).clamp(min=1).to(x.dtype)
