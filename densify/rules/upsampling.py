"""Upsamplings: where a dense map meets an op that makes samples between its own."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from fractions import Fraction
from math import floor

from densify.lattice import Axis, Field, Lattice, pixels
from densify.maps import Map
from densify.merging import Reach, Spread, spread_of
from densify.ops import (
    Interpolation,
    Merge,
    PhaseWise,
    Shuffle,
    Transposed,
    Unpool,
    Upsampling,
)
from densify.rules.registry import Refused, Rewrite, rule

_HALF = Fraction(1, 2)


@rule(Interpolation, Transposed, Shuffle, Unpool)
def upsampling(op: Upsampling, source: Map, other: Map | None = None, *, padding: str) -> Rewrite:
    """With g = gcd(scale, e), one of every g phases is kept (select), or all are averaged; or the map is resampled.

    merge="resample" averages where there is nothing to interpolate.

    The scale is the ratio of the steps where an interpolation takes the size of another map. One that is no whole
    number keeps phase 0 alone: there the result is the original's. What is made of the whole map keeps all phases.
    """
    if source.collapsed:
        raise Refused("it makes a map of a flattened one", "Choose layers behind it")
    if padding != "full" and any(axis.lattice.stride > 1 for axis in source.axes):
        raise Refused(f'it resizes phases, which padding="{padding}" leaves incomplete', 'Use padding="full"')
    if isinstance(op, Unpool) and (other is None or other.lattices != source.lattices):
        raise Refused("its indices lie on another lattice than its map", "Choose the layers between them as well")
    spreads = _spreads(op, source, other)
    if all(spread.est == spread.left for spread in spreads):
        how = "select"
    else:
        between = op.merge == "resample" and isinstance(op, Interpolation)
        how = "average" if op.merge == "resample" and not between else op.merge
        _check(op, how)
        if (how == "resample" or isinstance(op, Transposed)) and any(axis.whole for axis in source.axes):
            raise Refused(
                "along one axis it meets a denser map, along another what was made of the whole map, phase by phase",
                "Choose layers behind it, or use two ops",
            )
    axes = tuple(
        _upsampled(op, i, axis, spread, how, other)
        for i, (axis, spread) in enumerate(zip(source.axes, spreads, strict=True))
    )
    made = source.with_axes(axes)
    straight = all(spread.straight for spread in spreads)
    return Rewrite(PhaseWise(op) if straight else Merge(op, how, spreads), made)


def _spreads(op: Upsampling, source: Map, other: Map | None) -> tuple[Spread, ...]:
    like = other if isinstance(op, Interpolation) else None
    found = []
    for i, axis in enumerate(source.axes):
        est = axis.lattice.stride
        found.append(Spread(est, est, 1) if axis.whole else spread_of(est, _ratio(op, i, axis, like)))
    return tuple(found)


def _ratio(op: Upsampling, index: int, axis: Axis, like: Map | None) -> Fraction:
    """How many samples the op makes of one."""
    if isinstance(op, Transposed):
        return Fraction(op.windows[index].stride)
    if isinstance(op, Unpool):
        return Fraction(op.strides[index])
    if like is not None:
        return Fraction(axis.step) / Fraction(like.axes[index].step)
    return op.factors[index] if isinstance(op, Interpolation) and op.factors else op.scales[index]


def _check(op: Upsampling, how: str) -> None:
    """Whether a merge has a meaning for the op."""
    if not isinstance(op, Interpolation):
        return
    if how == "resample" and op.mode not in ("nearest", "nearest-exact", "linear", "cubic"):
        raise Refused(f'merge="resample" has no rule for mode="{op.mode}"', "Use another mode of interpolation")
    if how == "average" and not whole_factors(op):
        raise Refused(
            "the shifts of what it makes do not fall on its samples, so that they have no average: that takes a whole "
            "scale_factor, and no align_corners",
            'Use merge="resample", which averages elsewhere',
        )


def whole_factors(op: Interpolation) -> bool:
    """Whether a map that is moved by a sample gives a result that is moved by whole samples."""
    fractions = any(factor.denominator > 1 for factor in op.factors)
    return bool(op.factors) and not (op.align_corners or fractions or op.mode.endswith("antialiased"))


def _upsampled(op: Upsampling, index: int, axis: Axis, spread: Spread, how: str, other: Map | None) -> Axis:
    """One axis of the result."""
    est, left, _ = spread
    like = other.axes[index] if other is not None and isinstance(op, Interpolation) else None
    size = _size(op, index, axis.size) if like is None else like.size
    if size < 1:
        raise Refused(f"it makes no sample of a map of {axis.size} samples", "Give a larger example")
    if axis.whole:
        seen = tuple(any(axis.repeated[phase::est]) for phase in range(est))
        return replace(axis, size=size, dense=size * est, repeated=seen * size)
    reach = _reach(op, index, axis.size, size)
    reads = [list(_reads(t, spread, reach, how)) for t in range(max(size, op.scales[index].numerator) * left)]
    repeated = tuple(not each or any(_any_repeated(axis, *one) for one in each) for each in reads[: size * left])
    ratio = _ratio(op, index, axis, other if isinstance(op, Interpolation) else None)
    return replace(
        axis,
        size=size,
        dense=size * left,
        lattice=Lattice(left),
        step=pixels(axis.step / ratio),
        field=_field(axis, reach, reads, at_first=how == "resample" and getattr(op, "mode", "") == "nearest"),
        repeated=repeated,
        upsampled=True,
    )


def _size(op: Upsampling, index: int, size: int) -> int:
    """How many samples the op makes."""
    if isinstance(op, Transposed):
        window = op.windows[index]
        return (size - 1) * window.stride - window.low - window.high + window.span + op.extra[index] + 1
    if isinstance(op, Interpolation) and op.factors:
        return floor(size * float(op.factors[index]))
    return round(size * op.scales[index])


def _reach(op: Upsampling, index: int, size: int, made: int) -> Reach:
    """Which samples the op reads for each that it makes."""
    if isinstance(op, Transposed):
        window = op.windows[index]
        pitch = Fraction(1, window.stride)
        low, high = (window.low - window.span + window.stride - 1) * pitch, window.low * pitch
        return Reach(pitch, low, high, (window.low - Fraction(window.span, 2)) * pitch, window.low)
    if not isinstance(op, Interpolation):
        pitch = Fraction(1, op.strides[index]) if isinstance(op, Unpool) else 1 / op.scales[index]
        return Reach(pitch, Fraction(0), Fraction(0), pitch / 2 - _HALF)
    if op.align_corners:
        pitch, start = Fraction(size - 1, made - 1) if made > 1 else Fraction(0), Fraction(0)
    else:
        pitch = 1 / op.factors[index] if op.factors else Fraction(size, made)
        start = pitch / 2 - _HALF
    middle = pitch / 2 - _HALF
    if op.mode == "nearest":
        return Reach(pitch, Fraction(0), Fraction(0), middle)
    if op.mode == "nearest-exact":
        return Reach(pitch, middle, middle, middle, rounding=_HALF)
    before, behind = (1, 2) if op.mode.startswith("cubic") else (0, 1)
    return Reach(pitch, start - before, start + behind, start, before=before, behind=behind)


def _reads(t: int, spread: Spread, reach: Reach, how: str) -> Iterator[tuple[int, int, int]]:
    """What sample t of the result reads: first and last sample of the dense input, and how far apart they lie."""
    est, left, _ = spread
    if how == "resample":
        place = floor(est * (Fraction(t, left) * reach.pitch + reach.first + reach.before) + reach.rounding)
        yield place - reach.before, place + reach.behind, 1
        return
    for phase, delay in spread.shifts(left if how == "select" else est)[t % left]:
        at = Fraction(t // left - delay)
        if at >= (-reach.cropped if how == "average" else 0):
            yield est * floor(reach.low(at)) + phase, est * floor(reach.high(at)) + phase, est


def _any_repeated(axis: Axis, first: int, last: int, apart: int) -> bool:
    return any(axis.repeated[index] for index in range(first, last + 1, apart) if 0 <= index < axis.dense)


def _field(axis: Axis, reach: Reach, reads: list[list[tuple[int, int, int]]], *, at_first: bool) -> Field | None:
    """The receptive field of sample 0, as wide as that of the sample that sees most.

    Args:
        at_first: sample 0 lies at sample 0 of the input, and not in the middle of what is made of that.
    """
    if axis.field is None:
        return None
    spans = [max(one[1] for one in each) - min(one[0] for one in each) for each in reads if each]
    extent = axis.field.last - axis.field.first + axis.pitch * max(spans)
    middle = Fraction(axis.field.first + axis.field.last) / 2 + axis.step * (0 if at_first else reach.centre)
    return Field(pixels(middle - Fraction(extent) / 2), pixels(middle + Fraction(extent) / 2))
