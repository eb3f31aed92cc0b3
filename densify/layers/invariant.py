"""Rotation- and flip-invariant convolutions: H. Gao, S. Ji, *Efficient and Invariant Convolutional Neural Networks for
Dense Prediction* (2017).

Every kernel is applied under several rotations and reflections of itself, and the maximum over these copies is kept
(maxout), or all of their maps. What the paper calls invariance is equivariance of the maps: rotate the input, and the
output rotates. It is exact under the transformations that turn the set of copies into itself::

    layer = InvariantConv2d(3, 16, 3, padding=1, angles=4)   # a Conv2d's arguments, parameters and state_dict
    layer.check_equivariance().exact                         # ('identity', 'rot90', 'rot180', 'rot270')
    layer = InvariantConv2d.from_conv(conv, flips="all")     # starts with a trained convolution's own parameters
    layer.lower()                                            # Conv2d with all copies as kernels, then Maxout
"""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.modules.utils import _pair

from densify.equivariance import (
    TRANSFORMATIONS,
    Equivariance,
    equivariance,
    error,
    noise,
    reversed_axes,
    swaps_axes,
    tolerance_of,
)
from densify.errors import Refusal, SymmetryError, UsageError
from densify.layers.copies import Copies
from densify.layers.plain import (
    check_measurable,
    check_plain,
    convolution_like,
    least_size,
    plain_convolution,
    sides,
)

REDUCTIONS = ("max", "none")


class Kept(NamedTuple):
    """Expanded kernels and biases, and copies of the parameters that they were made of."""

    weight: Tensor
    bias: Tensor | None
    expanded: tuple[Tensor, Tensor | None]


class Maxout(nn.Module):
    """The maximum over every `pieces` neighbouring maps: [B, K * pieces, H, W] -> [B, K, H, W]."""

    def __init__(self, pieces: int) -> None:
        super().__init__()
        self.pieces = pieces

    def forward(self, x: Tensor) -> Tensor:
        return maxout(x, self.pieces)

    def extra_repr(self) -> str:
        return f"pieces={self.pieces}"


def maxout(x: Tensor, pieces: int) -> Tensor:
    """[..., K * pieces, H, W] -> [..., K, H, W]. Pieces that tie share the gradient."""
    parts: Tensor = x.unflatten(-3, (-1, pieces))
    return parts.amax(-3)


class InvariantConv2d(nn.Conv2d):
    """A convolution whose kernels are applied under several rotations and reflections of themselves.

    All copies are computed by one convolution. Parameters and state_dict are those of a plain Conv2d with
    `unique_channels` kernels. With one copy (angles=1, flips="none") it is the plain convolution, bit for bit.

    In eval mode, on the CPU, the expanded kernels are kept where no gradients are recorded, beside a copy of the
    parameters. Every call compares the parameters with it, number by number, and makes the kernels anew after any
    change. On other devices, which would have to be waited for, each call makes them.

    Args:
        in_channels, kernel_size, stride, padding, dilation, groups, bias, padding_mode, device, dtype: as for Conv2d.
        out_channels: the maps that it makes.
        angles: 1, 2 (0 and 180 degrees, kernels of any shape), 4 (square kernels) or 8 (3 x 3 kernels: multiples of 45
            degrees shift the ring of the 8 outer weights).
        flips: "none", "h" (left and right), "v" (top and bottom), "paper" (the paper's three: the kernel, "h" and "v"),
            or "all" (also both at once, which closes the set). With angles every rotated kernel is flipped.
        reduction: "max" keeps the maximum over the copies of a kernel, with its bias; "none" keeps all their maps:
            those of the first kernel, then those of the second, each in the order of `copies.parts`.
        unique_channels: the kernels that have weights of their own: `out_channels` with "max", `out_channels / copies`
            with "none". It need not be given, and is checked where it is. The paper's variant with double the maps and
            half the parameters of `Conv2d(C, K)` is
            `InvariantConv2d(C, 2 * K, angles=4, reduction="none", unique_channels=K // 2)`.

    Attributes:
        copies: the copies of each kernel.

    Raises:
        UsageError: other angles, flips or reductions, or channels that do not fit the copies.
        SymmetryError: a kernel or padding that cannot have the symmetry.
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
        angles: int = 4,
        flips: str = "none",
        reduction: str = "max",
        unique_channels: int | None = None,
    ) -> None:
        if reduction not in REDUCTIONS:
            raise UsageError(f'reduction={reduction!r}: give "max" or "none"')
        copies = Copies(_pair(kernel_size), angles, flips)
        unique = _unique_channels(out_channels, len(copies), reduction, unique_channels)
        super().__init__(
            in_channels, unique, kernel_size, stride, padding, dilation, groups, bias, padding_mode, device, dtype
        )  # fmt: skip
        self.unique_channels, self.out_channels = unique, out_channels
        self.copies, self.reduction = copies, reduction
        self._expanded: Kept | None = None
        _check_geometry(self)

    @classmethod
    def from_conv(
        cls, conv: nn.Conv2d, *, angles: int = 4, flips: str = "none", reduction: str = "max"
    ) -> InvariantConv2d:
        """The layer that has a convolution's parameters, the very same objects, and its geometry and mode.

        With reduction="none" it makes as many times the maps as there are copies.

        Raises:
            UsageError, SymmetryError: as the class; a module that is no plain Conv2d.
        """
        check_plain(conv, cls.__name__)
        copies = Copies(_pair(conv.kernel_size), angles, flips) if reduction == "none" else ()
        return convolution_like(
            cls, conv, conv.out_channels * max(len(copies), 1), angles=angles, flips=flips, reduction=reduction
        )

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, H, W] or [C, H, W] to maps of the size that the plain convolution makes."""
        weight, bias = self.expanded()
        y = self._conv_forward(x, weight, bias)
        return y if self.reduction == "none" or len(self.copies) == 1 else maxout(y, len(self.copies))

    def expanded(self) -> tuple[Tensor, Tensor | None]:
        """The kernels of all copies [unique_channels * copies, C / groups, h, w], and their biases."""
        weight, bias = self.weight, self.bias
        if len(self.copies) == 1:
            return weight, bias
        if not self._may_keep():
            if not torch.compiler.is_compiling():
                self._expanded = None
            return self._expand(weight, bias)
        kept = self._expanded  # another thread may replace it
        if kept is None or not (_same(kept.weight, weight) and _same(kept.bias, bias)):
            with torch.inference_mode(False), torch.no_grad():
                copied = weight.clone(), None if bias is None else bias.clone()
                kept = self._expanded = Kept(*copied, self._expand(*copied))
        return kept.expanded

    def _expand(self, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
        return self.copies.expand(weight), None if bias is None else bias.repeat_interleave(len(self.copies))

    def _may_keep(self) -> bool:
        """Whether expanded kernels are plain numbers, which belong to no graph of gradients, program or mode."""
        if self.training or torch.compiler.is_compiling() or torch._C._get_tracing_state() is not None:
            return False
        if torch._C._len_torch_dispatch_stack() or torch._C._functorch.maybe_current_level() is not None:
            return False
        parameters = [self.weight] if self.bias is None else [self.weight, self.bias]
        recording = torch.is_grad_enabled()
        return all(
            type(one) is nn.Parameter and one.device.type == "cpu" and not (recording and one.requires_grad)
            for one in parameters
        )

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_expanded": None}

    def extra_repr(self) -> str:
        own = f"angles={self.copies.angles}, flips={self.copies.flips!r}, reduction={self.reduction!r}"
        return f"{super().extra_repr()}, {own}"

    def lower(self) -> nn.Module:
        """The same function in plain layers, with weights of their own: Conv2d with all copies, then Maxout."""
        weight, bias = (None if one is None else one.detach().clone() for one in self._expand(self.weight, self.bias))
        assert weight is not None
        conv = plain_convolution(self, weight, bias)
        if self.reduction == "none" or len(self.copies) == 1:
            return conv
        return nn.Sequential(conv, Maxout(len(self.copies))).train(self.training)

    def order(self, name: str) -> tuple[int, ...] | None:
        """The order in which T f(x) has the maps of f(Tx); None where T does not turn the copies into each other."""
        order = self.copies.order(name)
        if order is None or self.reduction == "max":
            return None if order is None else tuple(range(self.out_channels))
        return tuple(kernel * len(order) + copy for kernel in range(self.unique_channels) for copy in order)

    def check_equivariance(
        self, size: tuple[int, int] | None = None, *, tolerance: float | None = None
    ) -> Equivariance:
        """Measure, on random input, how far the layer is equivariant under the symmetries of the square.

        It is measured without its bias, which changes none of them.

        Args:
            size: height and width; default an odd, not square one that the stride fits.
            tolerance: of the exact ones; default 1e-6 in float32, 1e-12 in float64.

        Raises:
            UsageError: a size that the layer does not take, or with rows and columns swapped; a layer on the meta
                device.
        """
        size = self._fitting_size() if size is None else size
        least = max(least_size(self, axis) for axis in (0, 1))
        check_measurable(self, size, (least, least))
        reasons = {name: reason for name in TRANSFORMATIONS if (reason := self._reason(name, size))}
        x = noise(2, self.in_channels, *size, like=self.weight)
        with torch.no_grad():
            errors = {name: error(self._unbiased, x, name, self.order(name)) for name in TRANSFORMATIONS}
            plain = equivariance(lambda x: self._conv_forward(x, self.weight, None), x)
        exact = tuple(name for name in TRANSFORMATIONS if name not in reasons)
        limit = tolerance_of(self.weight.dtype) if tolerance is None else tolerance
        return Equivariance(size, errors, exact, reasons, limit, plain)

    def _unbiased(self, x: Tensor) -> Tensor:
        """The layer's maps with a bias of 0, or of NaN where it is not finite."""
        bias = self._parameters.get("bias")
        maps: Tensor = self(x) if bias is None else torch.func.functional_call(self, {"bias": 0 * bias}, (x,))
        return maps

    def _fitting_size(self) -> tuple[int, int]:
        height, width = (_fitting(self, axis, least) for axis, least in ((0, 11), (1, 14)))
        return height, width + (self.stride[1] if height == width else 0)

    def _reason(self, name: str, size: tuple[int, int]) -> str | None:
        """Why the layer is not equivariant under a transformation at this size of the input."""
        if self.copies.order(name) is None:
            return "the copies of a kernel do not become each other"
        if swaps_axes(name):
            for what in ("stride", "padding", "dilation"):
                one, other = sides(self) if what == "padding" else getattr(self, what)
                if one != other and not (what == "dilation" and self.kernel_size == (1, 1)):
                    return f"the {what} differs between rows and columns"
        for axis in reversed_axes(name):
            low, high = sides(self)[axis]
            if low != high:
                return "the padding differs between the two sides"
            left = _left_over(self, axis, size[axis])
            if left:
                n, remedy = size[axis], size[axis] + self.stride[axis] - left
                return f"(n + 2p - d(k-1) - 1) % s is {left} at n = {n}; n = {remedy} fits the stride"
        return None


def _same(before: Tensor | None, now: Tensor | None) -> bool:
    """Whether two parameters are the same numbers, of the same type."""
    if before is None or now is None:
        return before is now
    return before.dtype == now.dtype and torch.equal(before, now)


def _unique_channels(out_channels: int, copies: int, reduction: str, unique: int | None) -> int:
    """The number of kernels.

    Raises:
        UsageError: the channels do not fit.
    """
    if unique is not None and type(unique) is not int:
        raise UsageError(f"unique_channels={unique!r}: give the number of kernels, or leave it out")
    if reduction == "none" and out_channels % copies:
        near = [n for n in (out_channels // copies * copies, (out_channels // copies + 1) * copies) if n]
        raise UsageError(
            f"out_channels={out_channels}: with {copies} copies of each kernel kept, the maps are a multiple of "
            f"{copies}, such as {' or '.join(map(str, near))}"
        )
    fitting = out_channels // copies if reduction == "none" else out_channels
    if unique not in (None, fitting):
        raise UsageError(
            f"unique_channels={unique} does not fit out_channels={out_channels}: with reduction={reduction!r} and "
            f'{copies} copies it is {fitting}. Keep all copies with reduction="none" and out_channels={unique * copies}'
        )
    return fitting


def _left_over(conv: nn.Conv2d, axis: int, n: int) -> int:
    """How many of n samples the stride leaves unread at the far side."""
    return (n + sum(sides(conv)[axis]) - conv.dilation[axis] * (conv.kernel_size[axis] - 1) - 1) % conv.stride[axis]


def _fitting(conv: nn.Conv2d, axis: int, outputs: int) -> int:
    """The smallest size with that many outputs and without a rest, for the other axis, too; odd where there is one."""
    span, stride = conv.dilation[axis] * (conv.kernel_size[axis] - 1) + 1, conv.stride[axis]
    padding = sides(conv)[axis]
    swapped = least_size(conv, 1 - axis)
    least = max(span + stride * (outputs - 1) - sum(padding), max(padding) + 1, swapped)
    sizes = [n for n in range(least, least + 2 * stride) if not _left_over(conv, axis, n)]
    return next((n for n in sizes if n % 2), sizes[0])


def _check_geometry(layer: InvariantConv2d) -> None:
    """
    Raises:
        SymmetryError: padding or dilation that the copies cannot have.
    """
    copies, padding, dilation = layer.copies, sides(layer), layer.dilation
    layer_name = f"InvariantConv2d({layer.extra_repr()})"
    if copies.turning and dilation[0] != dilation[1]:
        reason = f"a quarter turn of a kernel with dilation {dilation} is another shape"
        raise SymmetryError(Refusal(layer_name, reason, "Use one dilation, or angles=2 or flips"))
    if copies.turning and padding[0] != padding[1]:
        reason = "rows and columns are padded differently, and a quarter turn swaps them"
        raise SymmetryError(Refusal(layer_name, reason, "Use one padding, or angles=2 or flips"))
    for axis in {axis for _, name in copies.parts for axis in reversed_axes(name)}:
        if padding[axis][0] != padding[axis][1]:
            what = "columns" if axis else "rows"
            reason = f'padding="same" adds one more of the {what} behind than in front, which no reflection keeps'
            raise SymmetryError(Refusal(layer_name, reason, "Use an odd kernel, or give the padding as a number"))
