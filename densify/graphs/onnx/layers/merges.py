"""Upsamplings of dense maps: where phases come to lie, the average of their shifts, and reading between samples."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

import numpy as np
import onnx_ir as ir

from densify.graphs.onnx.layers.phases import batch_to_space
from densify.graphs.onnx.tape import Size, Tape, Tensor, concatenated
from densify.lattice import Window, larger
from densify.merging import Spread


def spread_phases(y: Tensor, kept: Sequence[int], spreads: Sequence[Spread]) -> Tensor:
    """[B * prod(kept), C, *n] -> [B, C, *(n * left)]: what an upsampling made of the first phases, where it belongs.

    Where several phases fall on a sample, their mean; where none reaches (in front, with hops), the next of its phase.

    Args:
        y: fragments, the first `kept` phases per axis.
        spreads: where they come to lie.
    """
    if all(_in_place(spread, phases) for spread, phases in zip(spreads, kept, strict=True)):
        return batch_to_space(y, kept)
    count, channels = len(spreads), y.channels()
    sizes = [y.size(2 + axis) for axis in range(count)]
    batch = y.shape[0] // prod(kept) if isinstance(y.shape[0], int) else None
    y = y.reshaped([-1, *kept, channels, *sizes], [batch, *kept, channels, *sizes])
    for axis, (spread, phases) in enumerate(zip(spreads, kept, strict=True)):
        parts = [_phase(y, phase) for phase in range(phases)]
        dim = parts[0].rank - count + axis
        made = [_mean([(parts[phase], delay) for phase, delay in each], dim) for each in spread.shifts(phases)]
        y = _interleaved(made, dim)
    return y


def _in_place(spread: Spread, phases: int) -> bool:
    return all(each == [(phase, 0)] for phase, each in enumerate(spread.shifts(phases)))


def _phase(y: Tensor, phase: int) -> Tensor:
    """One of the phases that the second dimension counts."""
    index = y.tape.constant(np.array(phase, np.int64))
    return y.op("Gather", [index], [y.shape[0], *y.shape[2:]], axis=1)


def _interleaved(parts: Sequence[Tensor], dim: int) -> Tensor:
    """Samples of several tensors by turns along a dimension."""
    if len(parts) == 1:
        return parts[0]
    first, size = parts[0], parts[0].size(dim)
    whole = concatenated(parts, dim)
    sizes: list[Size] = [0 if d < dim else first.size(d) for d in range(first.rank)]
    known = first.changed({dim: size * len(parts)})
    apart = whole.reshaped([*sizes[:dim], len(parts), size, *sizes[dim + 1 :]])
    order = [*range(dim), dim + 1, dim, *range(dim + 2, apart.rank)]
    return apart.transposed(order).reshaped([*sizes[:dim], size * len(parts), *sizes[dim + 1 :]], known)


def _mean(delayed: Sequence[tuple[Tensor, int]], dim: int) -> Tensor:
    """The mean of maps that begin late, over those that have begun; in front of all of them the first to begin."""
    first, least = delayed[0][0], min(delay for _, delay in delayed)
    size, tape = first.size(dim), first.tape
    if not any(delay for _, delay in delayed):
        return _times(_sum([part for part, _ in delayed]), 1 / len(delayed))
    late = [_late(part, dim, delay, least) for part, delay in delayed]
    ones = tape.op("ConstantOfShape", [tape.integers([size])], {"value": ir.tensor(np.array([1], _number(first)))})
    line = Tensor(tape, ones, [size])
    reached = _sum([_late(line, 0, delay, least) for _, delay in delayed])
    flat = reached.reshaped([-1, *[1] * (first.rank - 1 - dim)]).value
    begun = _sum(late).op("Div", [flat]).sliced(dim, least, None)
    return _cut(begun.padded({dim: (least, 0)}, mode="edge"), dim, least)


def _late(part: Tensor, dim: int, delay: int, more: int) -> Tensor:
    """A tensor that begins later, with zeros in front, and is longer by some more of its last sample."""
    longer = part.padded({dim: (0, more)}, mode="edge")
    return _cut(longer.padded({dim: (delay, 0)}), dim, delay)


def _cut(x: Tensor, dim: int, end: int) -> Tensor:
    """Without the last samples; their number is written, as OpenVINO loses track of lengths that are computed."""
    return x.sliced(dim, 0, -end) if end else x


def _sum(parts: Sequence[Tensor]) -> Tensor:
    made = parts[0]
    for part in parts[1:]:
        made = made.op("Add", [part.value])
    return made


def _times(x: Tensor, factor: float) -> Tensor:
    return x if factor == 1 else x.op("Mul", [x.tape.constant(np.array(factor, _number(x)))])


def _number(x: Tensor) -> np.dtype:
    assert x.value.dtype is not None
    return x.value.dtype.numpy()


def etransposed(
    x: Tensor,
    weight: ir.Value,
    bias: ir.Value | None,
    windows: Sequence[Window],
    spreads: Sequence[Spread],
    extra: Sequence[int],
    channels: int,
    groups: int = 1,
) -> Tensor:
    """Transposed convolution of a dense map, averaged over the shifts that reach each sample (cycle spinning).

    Arguments as :func:`densify.layers.etransposed`: [B, C, *(n * e)] -> [B, channels, *(m * e / g)].
    """
    hops = [spread.hop for spread in spreads]
    taps = [spread.left * w.dilation if w.kernel > 1 else 1 for spread, w in zip(spreads, windows, strict=True)]
    y = transposed(x, weight, windows, hops, taps, channels, groups)
    for axis, (spread, window) in enumerate(zip(spreads, windows, strict=True)):
        n, dim = x.size(2 + axis) // spread.est, 2 + axis
        made = ((n - 1) * window.stride + (window.span + 1 + extra[axis])) * spread.left
        shifts_begin = max(spread.firsts) + 1
        alike = spread.left == 1 or spread.hop == 1
        length: Size = made if alike else larger(made, shifts_begin)  # type: ignore[arg-type]
        more = spread.left * (1 + extra[axis]) - (spread.est - 1) * spread.hop - 1 + (0 if alike else shifts_begin)
        y = y.padded({dim: (0, max(more, 0))}).sliced(dim, 0, length)
        y = _averaged(y, dim, spread)
        y = y.sliced(dim, window.low * spread.left, made - window.high * spread.left)
        y = y.padded({dim: (max(-window.low, 0) * spread.left, max(-window.high, 0) * spread.left)})
    return y if bias is None else _plus(y, bias)


def transposed(
    x: Tensor,
    weight: ir.Value,
    windows: Sequence[Window],
    strides: Sequence[int],
    dilations: Sequence[int],
    channels: int,
    groups: int,
) -> Tensor:
    """A transposed convolution without padding and bias."""
    sizes = [
        (size - 1) * s + d * (w.kernel - 1) + 1 if isinstance(size, int) else None
        for size, s, d, w in zip(x.shape[2:], strides, dilations, windows, strict=True)
    ]
    kernel = [w.kernel for w in windows]
    return x.op(
        "ConvTranspose", [weight], [x.shape[0], channels, *sizes],
        strides=list(strides), dilations=list(dilations), kernel_shape=kernel, group=groups,
    )  # fmt: skip


def _plus(y: Tensor, bias: ir.Value) -> Tensor:
    shape = y.tape.integers([1, -1, *[1] * (y.rank - 2)])
    return y.op("Add", [y.tape.op("Reshape", [bias, shape])])


def _averaged(y: Tensor, dim: int, spread: Spread) -> Tensor:
    """Sums over shifts divided by how many there are, along one axis; in front of all shifts the first of its phase."""
    if spread.est == 1:
        return y
    begin = spread.est * spread.hop  # from here on every shift reaches
    late = np.arange(begin)[:, None] - np.arange(spread.est) * spread.hop
    reached = ((late >= 0) & (late % spread.left == 0)).sum(1).clip(1)
    factors = Tensor(y.tape, y.tape.constant((1 / reached).astype(_number(y))), [begin])
    length = y.size(dim)
    line = factors.padded({0: (0, length)}, spread.left / spread.est).sliced(0, 0, length)
    y = y.op("Mul", [line.reshaped([-1, *[1] * (y.rank - 1 - dim)]).value])
    firsts = spread.firsts
    if firsts == list(range(spread.left)):
        return y
    least = max(firsts) + 1
    index = np.array([max(t, firsts[t % spread.left]) for t in range(least)], np.int64)
    head = y.op("Gather", [y.tape.constant(index)], y.changed({dim: least}), axis=dim)
    return concatenated([head, y.sliced(dim, least, None)], dim)


def transposed_shifts(
    x: Tensor,
    weight: ir.Value,
    bias: ir.Value | None,
    windows: Sequence[Window],
    spreads: Sequence[Spread],
    extra: Sequence[int],
    channels: int,
    groups: int = 1,
) -> Tensor:
    """What :func:`etransposed` computes, by the original op on fragments.

    [B * prod(e), C, *n] -> [B, K, *(m * e / g)].
    """
    y = transposed(x, weight, windows, [w.stride for w in windows], [w.dilation for w in windows], channels, groups)
    y = y.padded({2 + axis: (0, more) for axis, more in enumerate(extra)})
    y = spread_phases(y, [spread.est for spread in spreads], spreads)
    sides = {2 + i: (-w.low * s.left, -w.high * s.left) for i, (w, s) in enumerate(zip(windows, spreads, strict=True))}
    y = y.padded(sides)
    return y if bias is None else _plus(y, bias)


def resample(
    x: Tensor,
    spreads: Sequence[Spread],
    made: Sequence[Size],
    mode: str,
    align_corners: bool,
    factors: Sequence[tuple[int, int]] = (),
) -> Tensor:
    """An interpolation that reads the denser map where the original reads between its samples.

    Arguments as :func:`densify.layers.resample`, the factors as fractions that are exact.
    """
    for axis, (spread, size) in enumerate(zip(spreads, made, strict=True)):
        if factors and factors[axis] == (1, 1):
            continue  # nothing happens along this axis, at its far side neither
        dim, (est, left, _) = 2 + axis, spread
        n = x.size(dim) // est
        last = (n - 1) * est
        line = _Line.counting(x.tape, size * left)
        den, num = factors[axis] if factors else (size, n)  # neighbouring samples read num / den apart
        if mode == "nearest":
            x = _taken(x, dim, (line * (num * est) // (den * left)).clamped(last))
        elif mode == "nearest-exact":
            place = (line * 2 + left) * (num * est) - den * ((est - 1) * left)
            x = _taken(x, dim, (place // (den * (2 * left))).clamped(last))
        else:
            at = line.broken() / left
            ends = larger(size - 1, 1)  # type: ignore[arg-type]
            source = at * (n - 1) / ends if align_corners else (at + 0.5) * num / den - 0.5
            x = _between(x, dim, source * est, last, mode == "cubic")
    return x


class _Line:
    """Numbers along one axis, integers or doubles."""

    def __init__(self, tape: Tape, value: ir.Value, whole: bool = True) -> None:
        self.tape, self.value, self.whole = tape, value, whole

    @staticmethod
    def counting(tape: Tape, size: Size) -> _Line:
        """0, 1, ... size - 1."""
        ends = [
            tape.op("Reshape", [tape.integers([one]), tape.constant(np.array([], np.int64))]) for one in (0, size, 1)
        ]
        return _Line(tape, tape.op("Range", ends))

    def broken(self) -> _Line:
        """The same as doubles."""
        return _Line(
            self.tape, self.tape.op("Cast", [self.value], {"to": ir.DataType.DOUBLE}, ir.DataType.DOUBLE), False
        )

    def _with(self, kind: str, other: Size | float | _Line) -> _Line:
        if isinstance(other, _Line):
            given = other.value
        elif self.whole and not isinstance(other, float):
            given = self.tape.integers([other])
        elif isinstance(other, int | float):
            given = self.tape.constant(np.array([other], np.float64))
        else:
            double = ir.DataType.DOUBLE
            given = self.tape.op("Cast", [self.tape.integers([other])], {"to": double}, double)
        return _Line(self.tape, self.tape.op(kind, [self.value, given]), self.whole)

    def __add__(self, other: Size | float | _Line) -> _Line:
        return self._with("Add", other)

    def __sub__(self, other: Size | float | _Line) -> _Line:
        return self._with("Sub", other)

    def __mul__(self, other: Size | float) -> _Line:
        return self._with("Mul", other)

    def __truediv__(self, other: Size) -> _Line:
        return self._with("Div", other)

    def __floordiv__(self, other: Size) -> _Line:
        return self._with("Div", other)

    def clamped(self, last: Size) -> _Line:
        """Between 0 and the last sample."""
        return self._with("Max", 0)._with("Min", last)

    def floored(self) -> _Line:
        """Rounded down."""
        return _Line(self.tape, self.tape.op("Floor", [self.value]), False)

    def integers(self) -> _Line:
        """As integers."""
        integer = ir.DataType.INT64
        return _Line(self.tape, self.tape.op("Cast", [self.value], {"to": integer}, integer))


def _taken(x: Tensor, dim: int, line: _Line) -> Tensor:
    return x.op("Gather", [line.value], x.changed({dim: None}), axis=dim)


def _between(x: Tensor, dim: int, place: _Line, last: Size, cubic: bool) -> Tensor:
    """A map at broken coordinates along one axis; what lies outside 0 to `last` is the sample at the border."""
    place = place if cubic else place.clamped(last)
    base = place.floored()
    dtype = x.value.dtype
    assert dtype is not None
    part = Tensor(x.tape, x.tape.op("Cast", [(place - base).value], {"to": dtype}, dtype), [None])
    part = part.reshaped([-1, *[1] * (x.rank - 1 - dim)])
    weights = _keys(part) if cubic else [_affine(part, -1, 1), part]
    first, whole = (-1 if cubic else 0), base.integers()
    terms = [
        _taken(x, dim, (whole + (first + tap)).clamped(last)).op("Mul", [weight.value])
        for tap, weight in enumerate(weights)
    ]
    return _sum(terms)


def _affine(x: Tensor, factor: float, more: float) -> Tensor:
    made = x if factor == 1 else x.op("Mul", [x.tape.constant(np.array(factor, _number(x)))])
    return made if more == 0 else made.op("Add", [x.tape.constant(np.array(more, _number(x)))])


def _keys(part: Tensor) -> list[Tensor]:
    """The weights of the four samples around a place: Keys' cubic convolution (1981) with torch's a = -0.75."""
    a = -0.75

    def near(d: Tensor) -> Tensor:
        return _affine(_affine(d, a + 2, -(a + 3)).op("Mul", [d.value]).op("Mul", [d.value]), 1, 1)

    def far(d: Tensor) -> Tensor:
        return _affine(_affine(_affine(d, a, -5 * a).op("Mul", [d.value]), 1, 8 * a).op("Mul", [d.value]), 1, -4 * a)

    return [far(_affine(part, 1, 1)), near(part), near(_affine(part, -1, 1)), far(_affine(part, -1, 2))]
