"""Window ops one window at a time: torch's own op on the samples of each window, laid out side by side."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

_CONV = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}
_MAX = {1: F.max_pool1d, 2: F.max_pool2d, 3: F.max_pool3d}


class Geometry(NamedTuple):
    """One axis of a window op as torch has it."""

    kernel: int
    stride: int = 1
    low: int = 0
    high: int = 0
    dilation: int = 1
    ceil: bool = False

    def fitting(self, n: int) -> int:
        """Windows that fit at stride 1."""
        return n + self.low + self.high - self.dilation * (self.kernel - 1)

    def count(self, n: int) -> int:
        """Outputs, by torch's own formula."""
        last = self.fitting(n) - 1
        if not self.ceil:
            return last // self.stride + 1
        outputs = (last + self.stride - 1) // self.stride + 1
        return outputs - 1 if (outputs - 1) * self.stride >= n + self.low else outputs

    def windows(self, n: int, phase: int, est: int, chosen: bool) -> tuple[int, list[int]]:
        """For one phase of the output: the phase of the input that it reads, and its windows there."""
        existing = max(self.fitting(n), (self.count(n) - 1) * self.stride + 1)
        source, first = (
            (phase % est, phase // est) if chosen else (phase * self.stride % est, phase * self.stride // est)
        )
        return source, [min(first + t * self.stride, existing - 1) for t in range(self.count(n))]


class Kind(NamedTuple):
    """What a window op does with the samples in its windows."""

    name: str
    weight: Tensor | None = None
    bias: Tensor | None = None
    groups: int = 1
    count_include_pad: bool = True
    divisor: int | None = None


def slide(x: Tensor, kind: Kind, geometry: Sequence[Geometry], windows: Sequence[Sequence[int]]) -> Tensor:
    """The results of the windows of these indices (window i begins at sample i - low), each by itself.

    The windows' samples are laid out side by side, so that torch's own op runs without padding or dilation.
    """
    kernel = [g.kernel for g in geometry]
    fill = float("-inf") if kind.name == "max" else 0.0
    sizes = x.shape[2:]
    for axis, (g, chosen) in enumerate(zip(geometry, windows, strict=True)):
        samples = torch.tensor([w - g.low + j * g.dilation for w in chosen for j in range(g.kernel)])
        inside = (samples >= 0) & (samples < sizes[axis])
        x = x.index_select(2 + axis, samples.clamp(0, sizes[axis] - 1))
        x = torch.where(inside.reshape([-1] + [1] * (len(sizes) - 1 - axis)), x, torch.full((), fill, dtype=x.dtype))
    if kind.name == "max":
        return _MAX[len(kernel)](x, kernel, kernel)
    if kind.name == "patches":
        return F.pixel_unshuffle(x, kernel[0])
    if kind.name == "conv":
        assert kind.weight is not None
        return _CONV[len(kernel)](x, kind.weight, kind.bias, kernel, 0, 1, kind.groups)
    ones = x.new_ones(x.shape[1], 1, *kernel)
    total = _CONV[len(kernel)](x, ones, None, kernel, 0, 1, x.shape[1])
    return total / (kind.divisor if kind.divisor is not None else _divisor(sizes, kind, geometry, windows))


def _divisor(
    sizes: Sequence[int], kind: Kind, geometry: Sequence[Geometry], windows: Sequence[Sequence[int]]
) -> Tensor:
    divisor = torch.ones((), dtype=torch.float64)
    for n, g, chosen in zip(sizes, geometry, windows, strict=True):
        low, high = (-g.low, n + g.high) if kind.count_include_pad else (0, n)
        count = [max(1, sum(low <= w - g.low + j < high for j in range(g.kernel))) for w in chosen]
        divisor = divisor[..., None] * torch.tensor(count, dtype=torch.float64)
    return divisor


def _tuple(value: Any, count: int) -> tuple[Any, ...]:
    return tuple(value) if isinstance(value, tuple | list) else (value,) * count


def conv_geometry(weight: Tensor, stride: Any, padding: Any, dilation: Any) -> list[Geometry]:
    """Geometry of a convolution from torch's arguments; "same" puts the odd sample on the far side."""
    kernel = weight.shape[2:]
    count = len(kernel)
    dilations = _tuple(dilation, count)
    spans = [d * (k - 1) for k, d in zip(kernel, dilations, strict=True)]
    if padding == "same":
        sides = [(span // 2, span - span // 2) for span in spans]
    else:
        sides = [(p, p) for p in _tuple(0 if padding == "valid" else padding, count)]
    return [
        Geometry(k, s, low, high, d)
        for k, s, (low, high), d in zip(kernel, _tuple(stride, count), sides, dilations, strict=True)
    ]


def pool_geometry(count: int, kernel: Any, stride: Any, padding: Any, dilation: Any, ceil: bool) -> list[Geometry]:
    """Geometry of a pooling from torch's arguments."""
    kernels = _tuple(kernel, count)
    columns = (kernels, _tuple(stride or kernel, count), _tuple(padding, count), _tuple(dilation, count))
    return [Geometry(k, s, p, p, d, ceil) for k, s, p, d in zip(*columns, strict=True)]
