"""Readers of operators that make samples between those of a map."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

from densify.graphs.onnx.readers.windows import NO_MAP, same, windows
from densify.graphs.onnx.registry import Call, reads
from densify.lattice import Window
from densify.merging import LARGEST
from densify.ops import Interpolation, Op, Shuffle, Transposed, Unsupported


def _scales(call: Call) -> tuple[Fraction, ...]:
    made = [call.result[dim] for dim in call.source.order[2:]]
    return tuple(Fraction(m, n) for m, n in zip(made, call.source.sizes, strict=True))


@reads("DepthToSpace")
def shuffle(call: Call) -> Op | None:
    return Shuffle(_scales(call)) if call.source.plain else None


@reads("ConvTranspose")
def transposed(call: Call) -> Op | None:
    """Where the sizes of the output are written, the padding is what makes them."""
    weight = call.node.inputs[1]
    assert weight is not None
    if not call.source.plain:
        return NO_MAP
    made = tuple(call.integers("output_shape", ()))
    if made and not call.frozen:
        return Unsupported("it makes a map of one size, whatever the image's", "Export it with its padding written")
    kernel = call.shape(str(weight.name))[2:]
    extra = tuple(call.integers("output_padding", (0,) * len(kernel)))
    found = windows(call, kernel)
    follows = same(call)
    if made or follows:  # the result is stride times as long where it is not said
        lost = [
            (n - 1) * w.stride + w.span + 1 + more - m if made else w.span + 1 + more - w.stride
            for w, more, n, m in zip(found, extra, call.source.sizes, made[-len(kernel) :] or extra, strict=True)
        ]
        if made and min(lost) < 0:
            return Unsupported("it makes more samples than its kernel reaches", "Export it with its padding written")
        found = tuple(_padded(window, max(total, 0), follows) for window, total in zip(found, lost, strict=True))
    return Transposed(_scales(call), windows=found, extra=extra)


def _padded(window: Window, total: int, follows: str) -> Window:
    less, more = total // 2, total - total // 2
    low, high = (less, more) if follows == "upper" else (more, less)
    return window._replace(low=low, high=high)


@reads("Upsample")
def upsample(call: Call) -> Op | None:
    given = call.numbers(1) if call.version >= 9 else call.node.attributes.get_floats("scales", [])
    return _interpolation(call, call.node.attributes.get_string("mode", "nearest"), "asymmetric", "floor", given)


@reads("Resize")
def resize(call: Call) -> Op | None:
    attributes = call.node.attributes
    mode = attributes.get_string("mode", "nearest")
    if call.version < 11:
        return _interpolation(call, mode, "asymmetric", "floor", call.numbers(1))
    odd = ("antialias", "exclude_outside", "axes", "keep_aspect_ratio_policy")
    if any(name in attributes and attributes[name].value not in (0, "stretch") for name in odd):
        return _unknown(call, mode)
    coordinates = attributes.get_string("coordinate_transformation_mode", "half_pixel")
    rounding = attributes.get_string("nearest_mode", "round_prefer_floor")
    scales = call.numbers(2)
    if mode == "cubic" and attributes.get_float("cubic_coeff_a", -0.75) != -0.75:
        return _unknown(call, mode)
    return _interpolation(call, mode, coordinates, rounding, scales if scales is not None and scales.size else None)


def _unknown(call: Call, mode: str) -> Interpolation:
    return Interpolation(_scales(call), mode=f"{mode} of another kind")


_PLACES = {
    ("nearest", "asymmetric", "floor"): ("nearest", False),
    ("nearest", "half_pixel", "round_prefer_floor"): ("nearest-exact", False),
    ("nearest", "half_pixel", "round_prefer_ceil"): ("nearest-exact", False),
}


def _interpolation(call: Call, mode: str, coordinates: str, rounding: str, scales: Any) -> Op | None:
    """torch's modes where they are; others keep the phases that they have room for."""
    if not call.source.plain and not call.source.order:
        return NO_MAP
    if mode == "nearest":
        name, corners = _PLACES.get((mode, coordinates, rounding), (f"{mode} of another kind", False))
        if name == "nearest-exact" and any(scale.denominator != 1 for scale in _scales(call)):
            name = "nearest of another kind"
    elif coordinates in ("half_pixel", "pytorch_half_pixel", "align_corners"):
        name, corners = mode, coordinates == "align_corners"
    else:
        name, corners = f"{mode} of another kind", False
    factors: tuple[Fraction, ...] = ()
    if scales is not None and any(scales[dim] != 1 for dim in call.source.order[:2]):
        return None
    if scales is not None:
        factors = tuple(_fraction(float(scales[dim])) for dim in call.source.order[2:])
    return Interpolation(_scales(call), mode=name, align_corners=corners, factors=factors)


def _fraction(factor: float) -> Fraction:
    near = Fraction(factor).limit_denominator(LARGEST)
    return near if abs(float(near) - factor) <= 1e-6 * factor else Fraction(factor)
