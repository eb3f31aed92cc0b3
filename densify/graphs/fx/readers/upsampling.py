"""Readers of ops that make samples between those of a map."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import torch.nn.functional as F
from torch import Tensor, fx, nn

from densify.graphs.fx.readers.windows import each
from densify.graphs.fx.registry import Call, reads
from densify.lattice import Window
from densify.merging import LARGEST
from densify.ops import Interpolation, Op, Shuffle, Transposed, Unpool, Unsupported

_MODES = {"bilinear": "linear", "trilinear": "linear", "bicubic": "cubic"}


def _scales(call: Call) -> tuple[Fraction, ...]:
    return tuple(Fraction(made, n) for made, n in zip(call.result.shape[2:], call.source.shape[2:], strict=True))


@reads(F.interpolate, F.upsample, nn.Upsample, nn.UpsamplingNearest2d, nn.UpsamplingBilinear2d)
def interpolate(call: Call) -> Op | None:
    """torch takes a size or scale factors; these place the samples unless it is to compute them anew from the sizes."""
    names = "input size scale_factor mode align_corners recompute_scale_factor antialias"
    given = call.arguments(names, size=None, scale_factor=None, mode="nearest", align_corners=None)
    factors = given["scale_factor"]
    fixed = factors is not None and not given.get("recompute_scale_factor")
    written = each(factors, call.spatial) if fixed else []
    if any(isinstance(one, fx.Node) for one in written):
        written = []
    return Interpolation(
        _scales(call),
        mode=_MODES.get(given["mode"], given["mode"]) + (" antialiased" if given.get("antialias") else ""),
        align_corners=bool(given["align_corners"]),
        factors=tuple(map(_fraction, written)),
    )


def _fraction(factor: float) -> Fraction:
    """A scale factor as the fraction that is meant by it, 1/3 say."""
    near = Fraction(factor).limit_denominator(LARGEST)
    return near if float(near) == factor else Fraction(factor)


@reads(nn.PixelShuffle, F.pixel_shuffle)
def pixel_shuffle(call: Call) -> Op | None:
    return Shuffle(_scales(call)) if call.spatial == 2 else None


@reads(nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
@reads(F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d)
def transposed(call: Call) -> Op | None:
    """Where the caller gives the sizes, output_padding is what makes them."""
    written = transposed_arguments(call)
    geometry = ("stride", "padding", "output_padding", "dilation")
    if any(isinstance(one, fx.Node) for key in geometry for one in each(written[key], 1)):
        return Unsupported("its geometry is computed from the map's size", "Write it as numbers, or give output_size")
    weight = call.value(written["weight"])
    assert isinstance(weight, Tensor)
    strides, paddings, extra, dilations = (each(written[key], call.spatial) for key in geometry)
    axes = zip(weight.shape[2:], strides, paddings, dilations, strict=True)
    windows = tuple(Window(k, s, p, p, d) for k, s, p, d in axes)
    if written["output_size"] is not None:
        sizes = zip(call.source.shape[2:], call.result.shape[2:], windows, strict=True)
        extra = [made - (n - 1) * w.stride + 2 * w.low - w.span - 1 for n, made, w in sizes]
    return Transposed(_scales(call), windows=windows, extra=tuple(extra))


@reads(nn.MaxUnpool1d, nn.MaxUnpool2d, nn.MaxUnpool3d, F.max_unpool1d, F.max_unpool2d, F.max_unpool3d)
def unpool(call: Call) -> Op | None:
    """It reads two maps, the second being the indices of a max pooling."""
    names = "kernel_size stride padding output_size" if call.module is None else "output_size kernel_size stride"
    given = call.arguments(f"input indices {names}", stride=None, output_size=None)
    kernel = each(given["kernel_size"], call.spatial)
    stride = each(given["stride"], call.spatial) if given["stride"] is not None else kernel
    if len(call.maps) != 2 or any(isinstance(one, fx.Node) for one in (*kernel, *stride)):
        return Unsupported("its indices are no map, or its window is computed", "Take the indices from a max pooling")
    return Unpool(_scales(call), strides=tuple(stride))


def transposed_arguments(call: Call) -> dict[str, Any]:
    """The arguments of a transposed convolution by the names of torch's function, and output_size."""
    names = "input weight bias stride padding output_padding groups dilation"
    if call.module is not None:
        names = f"input output_size {names.partition(' ')[2]}"
    defaults = {"stride": 1, "padding": 0, "output_padding": 0, "dilation": 1}
    return call.arguments(names, bias=None, groups=1, output_size=None, **defaults)
