"""The scale-invariant convolution: A. Akbari, *ImageNet Object Recognition with Scale-Invariant Deep Convolutional
Neural Network*, equations 3 to 5.

The input is resized by each scale, convolved with the same kernels, resized back, and the maximum over the scales is
kept. There are no new parameters::

    layer = ScaleInvariantConv2d(3, 16, 5, padding=2, scales=(1, 0.5, 2))   # a Conv2d's arguments and state_dict
    layer = ScaleInvariantConv2d.from_conv(conv)          # starts with a trained convolution's own parameters
    layer.check_equivariance().errors                     # beside .plain, those of the plain convolution
    layer.lower()                                         # a Conv2d, applied to every size

**Alignment.** Output u of the plain convolution looks at c = u * stride + d(k-1)/2 - p. At scale s that place is
s * (c + 1/2) - 1/2, and what looks at it is the output u_s = (s * (c + 1/2) - 1/2 - d(k-1)/2 + p) / stride of the
resized input: that is what is read, between samples linearly. Where u_s lies outside the outputs at that scale, the
scale has no say: it is -inf in the maximum. Scale 1 has a say everywhere; a scale at which the input has fewer than two
samples or outputs along an axis has none.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from fractions import Fraction
from functools import partial
from typing import Any, Literal, NamedTuple, cast

import torch
from torch import Tensor, nn

from densify.equivariance import Equivariance, noise, tolerance_of
from densify.errors import UsageError
from densify.layers.plain import (
    check_measurable,
    check_plain,
    convolution_like,
    least_size,
    plain_convolution,
    sides,
)

SCALES = (1.0, 0.63, 0.7937, 1.2599, 1.5874, 2.0)
"""The reference set: from 0.63 to 2 in steps of a third of an octave. It costs about ten plain convolutions."""

_FINEST = 10**6
_LARGEST = 100
_WAVES = 12
_INSIDE = "not exact: no pixel grid is resized without loss; root mean square inside the map"


class Along(NamedTuple):
    """One axis of a convolution.

    Attributes:
        span: d * (k - 1), in samples.
        stride, low, high: its stride, and its padding in front and behind.
        least: the smallest input that it takes and makes two outputs of.
    """

    span: int
    stride: int
    low: int
    high: int
    least: int

    def outputs(self, size: int) -> int:
        return (size + self.low + self.high - self.span - 1) // self.stride + 1


class ScaleInvariantConv2d(nn.Conv2d):
    """A convolution of several sizes of its input, of which each output keeps the maximum (paper, equations 3 to 5).

    Parameters and state_dict are those of the plain Conv2d. With 1 as the only scale it is that, bit for bit. The
    activation is left to the network.

    Args:
        in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bias, padding_mode, device, dtype: as
            for Conv2d.
        scales: by how much the input is resized, from 1/100 to 100, linearly between samples; 1 must be among them.
            Default: 1, 0.63, 0.7937, 1.2599, 1.5874 and 2, from 0.63 to 2 in steps of a third of an octave. They are
            kept as fractions with denominators of at most a million, in which decimals of up to six places are exact.

    Raises:
        UsageError: scales without 1, twice the same, or some that are no numbers from 1/100 to 100.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | tuple[int, int],
        stride: int | tuple[int, int] = 1,
        padding: str | int | tuple[int, int] = 0,
        dilation: int | tuple[int, int] = 1,
        groups: int = 1,
        bias: bool = True,
        padding_mode: Literal["zeros", "reflect", "replicate", "circular"] = "zeros",
        device: Any = None,
        dtype: Any = None,
        *,
        scales: Sequence[float] = SCALES,
    ) -> None:
        super().__init__(
            in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bias, padding_mode, device, dtype
        )
        self.scales = _numbers(scales)
        self.fractions = _fractions(self.scales)
        self.axes = _axes(self)

    @classmethod
    def from_conv(cls, conv: nn.Conv2d, *, scales: Sequence[float] = SCALES) -> ScaleInvariantConv2d:
        """The layer that has a convolution's parameters, the very same objects, and its geometry and mode.

        Raises:
            UsageError: as the class.
            SymmetryError: a module that is no plain Conv2d.
        """
        check_plain(conv, cls.__name__)
        return convolution_like(cls, conv, conv.out_channels, scales=scales)

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, H, W] or [C, H, W] to maps of the size that the plain convolution makes."""
        return maximum_over_scales(super().forward, x, self.fractions, self.axes)

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, scales={self.scales}"

    def lower(self) -> nn.Module:
        """The same function of a plain Conv2d with weights of its own."""
        weight, bias = (None if one is None else one.detach().clone() for one in (self.weight, self.bias))
        assert weight is not None
        conv = plain_convolution(self, weight, bias)
        return conv if len(self.fractions) == 1 else OverScales(conv, self.fractions).train(self.training)

    def check_equivariance(self, size: tuple[int, int] = (61, 74), *, tolerance: float | None = None) -> Equivariance:
        """Measure how much of a smooth random image's maps is the same when the image is resized by one of the scales.

        Nothing but the identity is exact. The errors are root mean squares over the inner half of the map, relative to
        that of the map less its mean, beside those of the plain convolution with the same weights. The report is true
        where the layer's maps are finite and the same in two runs; it promises nothing of the scales.

        Args:
            size: height and width of the image at scale 1.
            tolerance: of the identity; default 1e-6 in float32, 1e-12 in float64.

        Raises:
            UsageError: a size of which a scale makes less than the layer takes; a layer on the meta device.
        """
        smallest = min(*self.fractions, Fraction(1))
        check_measurable(self, size, cast(tuple[int, int], tuple(math.ceil(one.least / smallest) for one in self.axes)))
        limit = tolerance_of(self.weight.dtype) if tolerance is None else tolerance
        ratios = {"identity": Fraction(1), **{f"scale {float(s):g}": s for s in self.fractions if s != 1}}
        plain_forward = partial(nn.Conv2d.forward, self)
        with torch.no_grad():
            errors = {name: _error(self, ratio, size, self) for name, ratio in ratios.items()}
            plain = {name: _error(plain_forward, ratio, size, self) for name, ratio in ratios.items()}
        reasons = {name: _INSIDE for name in ratios if name != "identity"}
        return Equivariance(size, errors, ("identity",), reasons, limit, plain)


class OverScales(nn.Module):
    """A plain convolution, applied to its input at several sizes; see `ScaleInvariantConv2d`."""

    def __init__(self, conv: nn.Conv2d, scales: Sequence[Fraction]) -> None:
        super().__init__()
        self.conv, self.scales, self.axes = conv, tuple(scales), _axes(conv)

    def forward(self, x: Tensor) -> Tensor:
        return maximum_over_scales(self.conv, x, self.scales, self.axes)

    def extra_repr(self) -> str:
        return f"scales={tuple(map(float, self.scales))}"


def maximum_over_scales(
    convolve: Callable[[Tensor], Tensor], x: Tensor, scales: Sequence[Fraction], axes: Sequence[Along]
) -> Tensor:
    """The maximum over what a convolution makes of its input at several sizes, each moved back to where it looks.

    Args:
        convolve: the convolution, [..., C, H, W] to [..., K, h, w].
        x: [..., C, H, W].
        scales: 1 among them.
        axes: the convolution's rows and columns.
    """
    best = convolve(x)
    for scale in scales:
        if scale != 1:
            small = x
            for dim, along in zip((-2, -1), axes, strict=True):
                small = resized(small, dim, scale, along.least)
            y = convolve(small)
            reached = []
            for dim, along in zip((-2, -1), axes, strict=True):
                y, inside = restored(y, dim, scale, along, x.shape[dim])
                reached.append(inside)
            best = torch.maximum(best, torch.where(reached[0][:, None] & reached[1], y, -torch.inf))
    return best


def resized(x: Tensor, dim: int, scale: Fraction, least: int = 1) -> Tensor:
    """An axis of n samples resized to floor(n * scale), linearly between samples: sample j is x at (j + 1/2) / s - 1/2.

    Args:
        x: [..., H, W].
        dim: -2 for rows, -1 for columns.
        scale: s.
        least: samples that are made at least, so that no exporter need ask for the size of what follows; those past the
            far side repeat the last.
    """
    a, b = scale.numerator, scale.denominator
    made = torch.sym_max(x.shape[dim] * a // b, least)
    places = b * (2 * torch.arange(made, device=x.device) + 1) - a
    return _between(x, dim, places, 2 * a)


def restored(y: Tensor, dim: int, scale: Fraction, along: Along, size: int) -> tuple[Tensor, Tensor]:
    """An axis of what the convolution made of the resized input, read where the outputs of the input itself look.

    Args:
        y: [..., h, w].
        dim: -2 for rows, -1 for columns.
        scale: by which the input was resized.
        along: the convolution's axis.
        size: samples of the input before it was resized.

    Returns:
        The tensor with as many samples as the convolution makes of the input; and which of them lie inside `y`. The
        others are its samples at the border.
    """
    a, b = scale.numerator, scale.denominator
    centre = 1 + along.span - 2 * along.low  # twice the place of the first output's, in the input, and 1
    places = a * (2 * along.stride * torch.arange(along.outputs(size), device=y.device) + centre) - b * centre
    step = 2 * b * along.stride
    made = size * a // b
    short = torch.sym_min(torch.sym_max(along.least - made, 0), 1)  # 1 where the scale has no say
    count = along.outputs(cast(int, torch.sym_max(made, along.least)))
    last = count - 1 - short * count
    return _between(y, dim, places, step), (places >= 0) & (places <= last * step)


def _between(x: Tensor, dim: int, places: Tensor, step: int) -> Tensor:
    """A tensor at `places / step` along an axis, linearly between samples; outside, the sample at the border."""
    last = x.shape[dim] - 1
    places = places.clamp(min=0, max=last * step)
    base = places // step
    wide = torch.promote_types(x.dtype, torch.float32)
    part = ((places - base * step).to(wide) / step).to(x.dtype)
    part = part if dim == -1 else part[:, None]
    low, high = x.index_select(dim, base), x.index_select(dim, (base + 1).clamp(max=last))
    return torch.where(part == 0, low, low * (1 - part) + high * part)  # their difference may overflow


def _axes(conv: nn.Conv2d) -> tuple[Along, Along]:
    """Rows and columns of a convolution."""
    found = []
    for axis, (low, high) in enumerate(sides(conv)):
        span = conv.dilation[axis] * (conv.kernel_size[axis] - 1)
        least = max(least_size(conv, axis, outputs=2), 2)
        found.append(Along(span, conv.stride[axis], low, high, least))
    return found[0], found[1]


def _numbers(scales: Sequence[float]) -> tuple[float, ...]:
    """
    Raises:
        UsageError: no sequence of numbers.
    """
    try:
        return tuple(map(float, scales))
    except (TypeError, ValueError):
        raise UsageError(f"scales={scales!r}: give numbers, 1 among them, such as (1, 0.5, 2)") from None


def _fractions(scales: tuple[float, ...]) -> tuple[Fraction, ...]:
    """
    Raises:
        UsageError: they make no layer.
    """
    if not all(1 / _LARGEST <= scale <= _LARGEST for scale in scales):
        raise UsageError(f"scales={scales}: they are positive numbers from {1 / _LARGEST} to {_LARGEST}")
    found = tuple(Fraction(scale).limit_denominator(_FINEST) for scale in scales)
    if 1 not in found:
        raise UsageError(f"scales={scales}: 1 must be among them, since it alone reaches all outputs at the border")
    if len(set(found)) < len(found):
        raise UsageError(f"scales={scales}: to six places they are not all different")
    return found


def _error(function: Callable[[Tensor], Tensor], ratio: Fraction, size: tuple[int, int], conv: nn.Conv2d) -> float:
    """How far f(the image resized) is from f(the image), where the two look at the same places."""
    maps = function(_image(conv, size, Fraction(1)))
    moved = function(_image(conv, size, ratio))
    for dim, along, n in zip((-2, -1), _axes(conv), size, strict=True):
        moved, _ = restored(moved, dim, ratio, along, n)
        middle = slice(maps.shape[dim] // 4, maps.shape[dim] - maps.shape[dim] // 4)
        maps, moved = (one.transpose(dim, 0)[middle].transpose(dim, 0) for one in (maps, moved))
    maps, moved = maps.double(), moved.double()
    scale = float((maps - maps.mean((-2, -1), keepdim=True)).square().mean())
    squared = float((moved - maps).square().mean())
    if not (math.isfinite(scale) and math.isfinite(squared)):
        return math.inf
    if squared == 0:
        return 0.0
    return math.sqrt(squared / scale) if scale else math.inf


def _image(conv: nn.Conv2d, size: tuple[int, int], scale: Fraction) -> Tensor:
    """A random image [1, C, H, W] of waves of 9 pixels and more, taken at another scale without any resampling."""
    lengths = torch.linspace(9, 30, _WAVES, dtype=torch.float64)
    steps, phases = noise(2, _WAVES, like=lengths), noise(conv.in_channels, _WAVES, 1, 1, like=lengths, seed=1)
    steps = steps / steps.norm(dim=0) * 2 * math.pi / lengths
    rows, columns = ((torch.arange(int(n * scale)) + 0.5) / float(scale) - 0.5 for n in size)
    turns = steps[0, :, None, None] * rows[:, None] + steps[1, :, None, None] * columns
    return torch.cos(turns + 6 * phases).sum(1)[None].to(conv.weight)
