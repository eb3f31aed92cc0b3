"""Convolutions whose kernels are tied by a symmetry, with free weights alone.

A kernel that is its own mirror image makes of a mirrored map the mirrored map, at strides and paddings that allow it:

>>> from densify.layers.symmetric_conv import SymmetricConv2d
>>> from densify.symmetry import Flip, Invariant, Rotate90
>>> layer = SymmetricConv2d(3, 8, 5, [Invariant(Flip(), "w"), Invariant(Rotate90(), ("h", "w"))], padding=2)
>>> layer.weight.shape, bool(layer.check_equivariance())
(torch.Size([8, 3, 6]), True)
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, ClassVar, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from densify.equivariance import error_of, noise, tolerance_of
from densify.errors import Refusal, SymmetryError
from densify.layers.tied import Constraints, Support, SymmetricLayer, check_kind
from densify.symmetry.checking import MeasuredSymmetry
from densify.symmetry.constraints import Constraint, Demand, along, where_used
from densify.symmetry.transformations import Flip, Rotate90

_GEOMETRY = (
    "in_channels", "out_channels", "kernel_size", "stride", "padding", "dilation", "groups", "padding_mode",
)  # fmt: skip
_CONVOLUTIONS: dict[Any, Any] = {nn.Conv1d: F.conv1d, nn.Conv2d: F.conv2d, nn.Conv3d: F.conv3d}


class SymmetricConv(SymmetricLayer):
    """What convolutions with tied weights share, see :class:`SymmetricConv2d`."""

    plain: ClassVar[type[nn.Conv1d | nn.Conv2d | nn.Conv3d]]
    in_channels: int
    kernel_size: tuple[int, ...]
    stride: tuple[int, ...]
    dilation: tuple[int, ...]
    groups: int
    padding: str | tuple[int, ...]
    padding_mode: str
    _reversed_padding_repeated_twice: list[int]

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | Sequence[int],
        constraints: Constraints,
        stride: int | Sequence[int] = 1,
        padding: int | str | Sequence[int] = 0,
        dilation: int | Sequence[int] = 1,
        groups: int = 1,
        bias: bool = True,
        padding_mode: str = "zeros",
        *,
        names: Sequence[str] | None = None,
        support: Support = None,
        device: Any = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        geometry: Any = self.plain
        plain = geometry(
            in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bias, padding_mode, "meta"
        )
        shape = tuple(plain.weight.shape)
        super().__init__(shape, 1, constraints, names or "nc" + "dhw"[5 - len(shape) :], support, bias, device, dtype)
        for name in (*_GEOMETRY, "_reversed_padding_repeated_twice"):
            setattr(self, name, getattr(plain, name))
        touched = {axis for demand in self._demands.values() for axis in (*demand.left_axes, *demand.right_axes)}
        if groups > 1 and touched & {0, 1}:
            raise SymmetryError(
                Refusal(
                    f"{type(self).__name__} of weights {shape}",
                    f"symmetries of channels have no meaning where {groups} groups of them are read apart",
                    "Use groups=1, or name axes of the kernel alone.",
                )
            )

    @classmethod
    def from_conv(
        cls,
        conv: nn.Module,
        constraints: Constraints,
        *,
        names: Sequence[str] | None = None,
        support: Support = None,
    ) -> Self:
        """A layer with the weights of a plain convolution, projected on those that have the symmetry.

        Args:
            conv: stays as it is. Its weight may be parametrized; what is frozen stays frozen.

        Raises:
            SymmetryError: not a convolution of as many axes, one with a forward of its own, or as for the class.
        """
        check_kind(conv, cls.plain, cls)
        geometry = {name: getattr(conv, name) for name in _GEOMETRY}
        weight: Any = conv.weight
        made = cls(
            constraints=constraints, bias=conv.bias is not None, names=names, support=support,
            device=weight.device, dtype=weight.dtype, **geometry,
        )  # fmt: skip
        return made._take(conv)

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, *spatial] -> [B, K, *spatial]."""
        padding: str | int | tuple[int, ...] = self.padding
        if self.padding_mode != "zeros":
            x, padding = F.pad(x, self._reversed_padding_repeated_twice, self.padding_mode), 0
        convolve: Any = _CONVOLUTIONS[self.plain]
        y: Tensor = convolve(
            x, self.expanded_weight(), self.expanded_bias(), self.stride, padding, self.dilation, self.groups
        )
        return y

    def lower(self) -> Any:
        """A plain convolution with the expanded weight: the same numbers, up to the order of sums."""
        geometry: Any = self.plain
        made = geometry(**{name: getattr(self, name) for name in _GEOMETRY}, bias=self.bias is not None, device="meta")
        return self._into(made)

    def check_equivariance(self, x: Tensor | None = None) -> MeasuredSymmetry:
        """How far f(Tx) is T'f(x) for every constraint.

        Flips and quarter turns of kernels are those of maps; other transformations of kernels are none, and of these
        |T'w - wT| is measured instead, relative to the weight.

        Args:
            x: [B, C, *spatial]; default normal random numbers on a map that is not square and that the stride divides.
        """
        x = noise(2, self.in_channels, *self._default_size(), like=self.weight) if x is None else x
        errors, notes = {}, {}
        for (name, demand), constraint in zip(self._demands.items(), self.constraints, strict=True):
            with torch.no_grad():
                moved = _on_maps(constraint, demand)
                if moved is None:
                    weight = self.expanded_weight()
                    errors[name] = error_of(weight, weight + demand.difference(weight))
                    notes[name] = "of the weight: this is no transformation of maps"
                    continue
                errors[name] = self._error(demand, moved, x)
            if errors[name] > tolerance_of(self.weight.dtype) and (why := self._why_not(demand, x)):
                notes[name] = why
        return MeasuredSymmetry(errors, tolerance_of(self.weight.dtype), notes)

    check_invariance = check_equivariance

    def _error(self, demand: Demand, moved: Callable[[Tensor], Tensor], x: Tensor) -> float:
        if demand.right_axes != (1,):
            expected, actual = along(moved(self(x)), demand.left, (1,)), self(moved(x))
            return error_of(expected, actual)
        if demand.interior:
            x = where_used(x, demand.right, (1,), rows=False)
        expected, actual = along(self(x), demand.left, (1,)), self(moved(x))
        if demand.interior:
            expected, actual = (where_used(y, demand.left, (1,), rows=True) for y in (expected, actual))
        return error_of(expected, actual)

    def _axes(self) -> list[tuple[int, int, int, int, int]]:
        """Kernel as it reaches, stride, dilation, and padding in front and behind, per spatial axis."""
        pads = self._reversed_padding_repeated_twice[::-1]
        return [
            (d * (k - 1) + 1, s, d, pads[2 * i + 1], pads[2 * i])
            for i, (k, s, d) in enumerate(zip(self.kernel_size, self.stride, self.dilation, strict=True))
        ]

    def _default_size(self) -> list[int]:
        """Sizes at which windows end where the map does, one larger than the other."""
        sizes = []
        for i, (reach, stride, _, low, high) in enumerate(self._axes()):
            least = 2 * reach + i * stride
            sizes.append(least + (reach - low - high - least) % stride)
        return sizes

    def _why_not(self, demand: Demand, x: Tensor) -> str:
        """What of the geometry breaks a flip or a turn of the map."""
        axes = self._axes()
        chosen = [axis - 2 for axis in demand.right_axes if axis >= 2]
        if len({axes[i] for i in chosen}) > 1:
            return "kernel, stride, dilation or padding differ between the axes"
        for i in chosen:
            reach, stride, _, low, high = axes[i]
            size = x.shape[2 + i]
            if low != high:
                return f"axis {2 + i} is padded by {low} in front and {high} behind"
            if (size + low + high - reach) % stride:
                return (
                    f"({size} + {low + high} - {reach}) % {stride} is not 0 along axis {2 + i}: the windows of the "
                    "mirrored map lie elsewhere"
                )
        return ""


class SymmetricConv1d(SymmetricConv):
    """As :class:`SymmetricConv2d`, [B, C, W]; the axes of its weight are "n", "c", "w"."""

    plain = nn.Conv1d


class SymmetricConv2d(SymmetricConv):
    """A convolution whose weight has a symmetry: torch's arguments, with the constraints behind the kernel's size.

    Args:
        constraints: on a weight of shape [K, C / groups, *kernel], its axes called "n", "c", "h", "w". Flips and
            quarter turns of the kernel, as invariance, make the convolution equivariant under those of the map;
            constraints on "c", and on "n" with "c", are of channels.
        bias: whether there is one. Where "n" is tied it has the symmetry, b = T'b.
        names: of the weight's axes, instead of these.
        support: bool, broadcast to the weight: weights outside are zero.

    Raises:
        SymmetryError: a symmetry that a weight of this shape cannot have.
    """

    plain = nn.Conv2d


class SymmetricConv3d(SymmetricConv):
    """As :class:`SymmetricConv2d`, [B, C, D, H, W]; the axes of its weight are "n", "c", "d", "h", "w"."""

    plain = nn.Conv3d


def _on_maps(constraint: Constraint, demand: Demand) -> Callable[[Tensor], Tensor] | None:
    """T on a map [B, C, *spatial], or None where it is none."""
    if demand.right_axes == (1,):
        return lambda x: along(x, demand.right, (1,))
    turn, axes = constraint.transformation, demand.right_axes
    if min(axes) < 2 or not isinstance(turn, Flip | Rotate90):
        return None

    def moved(x: Tensor) -> Tensor:
        last = tuple(range(-len(axes), 0))
        maps = x.movedim(axes, last)
        made: Tensor = turn(maps.flatten(0, -len(axes) - 1))
        back: Tensor = made.unflatten(0, maps.shape[: -len(axes)]).movedim(last, axes)
        return back

    return moved
