"""Between a plain convolution and the layers that are made of one: with the same parameters, and back."""

from __future__ import annotations

from typing import Any, TypeVar

from torch import Tensor, nn
from torch.nn.utils.parametrize import type_before_parametrizations

from densify.errors import Refusal, SymmetryError, UsageError

Convolution = TypeVar("Convolution", bound=nn.Conv2d)


def check_plain(conv: nn.Module, layer: str) -> None:
    """
    Raises:
        SymmetryError: not a Conv2d, one with a forward of its own, or one whose weight is computed.
    """
    kind = type_before_parametrizations(conv)
    name = kind.__name__
    if kind is not nn.Conv2d:
        reason = "it is no plain Conv2d" + (", but a class derived from it" if isinstance(conv, nn.Conv2d) else "")
        raise SymmetryError(Refusal(name, reason, f"{layer} takes the place of torch.nn.Conv2d alone"))
    assert isinstance(conv, nn.Conv2d)
    if type(conv.weight) is not nn.Parameter or not isinstance(conv.bias, nn.Parameter | None):
        remedy = "Make it a parameter first, with remove_parametrizations, or with prune.remove"
        raise SymmetryError(Refusal(name, "its weight or bias is computed from others", remedy))


def sides(conv: nn.Conv2d) -> tuple[tuple[int, int], tuple[int, int]]:
    """The padding of rows and of columns, each in front and behind."""
    columns_first = conv._reversed_padding_repeated_twice
    return (columns_first[2], columns_first[3]), (columns_first[0], columns_first[1])


def least_size(conv: nn.Conv2d, axis: int, outputs: int = 1) -> int:
    """The smallest rows (axis 0) or columns (1) that a convolution takes and makes that many outputs of."""
    low, high = sides(conv)[axis]
    padded = {"reflect": max(low, high) + 1, "circular": max(low, high)}.get(conv.padding_mode, 1)
    span = conv.dilation[axis] * (conv.kernel_size[axis] - 1)
    return max(span + 1 - low - high + conv.stride[axis] * (outputs - 1), padded, 1)


def check_measurable(conv: nn.Conv2d, size: tuple[int, int], least: tuple[int, int]) -> None:
    """
    Raises:
        UsageError: a layer without numbers, or no height and width of at least these.
    """
    if conv.weight.device.type == "meta":
        raise UsageError("the layer is on the meta device, without numbers to measure: load its weights first")
    if not isinstance(size, tuple) or len(size) != 2 or not all(isinstance(n, int) for n in size):
        raise UsageError(f"size={size!r}: give height and width, such as {least}")
    if size[0] < least[0] or size[1] < least[1]:
        raise UsageError(f"size={size}: too small for this layer to be measured. Give at least {least}")


def geometry(conv: nn.Conv2d) -> dict[str, Any]:
    """The arguments of a convolution but for its number of maps and where it computes."""
    names = ("in_channels", "kernel_size", "stride", "padding", "dilation", "groups", "padding_mode")
    return {**{name: getattr(conv, name) for name in names}, "bias": conv.bias is not None, "dtype": conv.weight.dtype}


def convolution_like(kind: type[Convolution], conv: nn.Conv2d, out_channels: int, **own: Any) -> Convolution:
    """A layer of another class with a convolution's arguments, its parameters, the very same objects, and its mode."""
    layer = kind(out_channels=out_channels, device="meta", **geometry(conv), **own)
    layer.weight, layer.bias = conv.weight, conv.bias
    layer.train(conv.training)
    return layer


def plain_convolution(layer: nn.Conv2d, weight: Tensor, bias: Tensor | None) -> nn.Conv2d:
    """A plain Conv2d with a layer's geometry and mode, and with these weights."""
    conv = nn.Conv2d(out_channels=len(weight), device="meta", **geometry(layer))
    conv.weight = nn.Parameter(weight, requires_grad=layer.weight.requires_grad)
    if layer.bias is not None and bias is not None:
        conv.bias = nn.Parameter(bias, requires_grad=layer.bias.requires_grad)
    return conv.train(layer.training)
