"""The arithmetic of lattices: where the original's samples lie in a denser map, and what each sample sees.

Everything here is about one spatial axis. Nothing imports torch. Sizes may be symbolic integers (torch.export),
so the functions that run inside a network use only ``+ - * // %`` and :func:`larger`, never a comparison.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from fractions import Fraction
from math import ceil, gcd
from typing import NamedTuple

PADDINGS = ("full", "valid", "same")
Pixels = int | Fraction
"""A length in input pixels; broken where an upsampling makes samples finer than the image."""


def number(length: Pixels) -> int | float:
    """The same length, as JSON can hold it."""
    return length if isinstance(length, int) else float(length)


def pixels(length: Pixels) -> Pixels:
    """The same length, as an integer where it is one."""
    return int(length) if length == int(length) else length


class Lattice(NamedTuple):
    """Where the original's samples lie along one axis: ``original[i] == dense[offset + i * stride]``.

    Attributes:
        stride: the equivalent stride (eST), in dense samples.
        offset: the dense sample that is the original's first.
    """

    stride: int = 1
    offset: int = 0


def larger(a: int, b: int) -> int:
    """``max(a, b)`` without a comparison where a size is symbolic."""
    return max(a, b) if isinstance(a, int) and isinstance(b, int) else (a + b + abs(a - b)) // 2


def smaller(a: int, b: int) -> int:
    """``min(a, b)`` without a comparison where a size is symbolic."""
    return min(a, b) if isinstance(a, int) and isinstance(b, int) else (a + b - abs(a - b)) // 2


def divided_up(a: int, b: int) -> int:
    """a / b, rounded up, for a >= 0; -(-a // b) would be wrong in ONNX, whose integer division cuts towards zero."""
    return (a + b - 1) // b


class Window(NamedTuple):
    """One axis of a sliding-window op as the original has it; all lengths in samples of its input.

    Attributes:
        kernel, stride, dilation: as in torch.
        low, high: padding before the first and after the last sample.
        ceil: torch's ceil_mode.
    """

    kernel: int
    stride: int = 1
    low: int = 0
    high: int = 0
    dilation: int = 1
    ceil: bool = False

    @property
    def span(self) -> int:
        """Distance from the window's first to its last sample."""
        return self.dilation * (self.kernel - 1)

    def same(self, size: int, side: str) -> Window:
        """The window padded so that it makes ceil(size / stride) samples; an odd sample goes to `side`."""
        made = divided_up(size, self.stride)
        total = larger(0, (made - 1) * self.stride + self.span + 1 - size)
        low = total // 2 if side == "upper" else total - total // 2
        return self._replace(low=low, high=total - low)

    def starts(self, size: int) -> int:
        """How many windows fit at stride 1 into `size` padded samples (L in docs/design.md)."""
        return size + self.low + self.high - self.span

    def count(self, size: int) -> int:
        """Number of outputs for `size` inputs, exactly as torch counts them."""
        last = self.starts(size) - 1
        if not self.ceil:
            return last // self.stride + 1
        rounded_up = divided_up(last, self.stride) + 1
        if self.stride + self.high <= self.span + 1:
            return rounded_up  # then no window can start in the far padding, which torch would drop
        return smaller(rounded_up, divided_up(size + self.low, self.stride))


class Layout(NamedTuple):
    """What a window op does with one axis of a dense map of known size.

    Attributes:
        low, high: padding in dense samples, far-side windows of ceil mode included.
        rows: how many windows the op computes per period.
        total: how many samples there are after the far side was repeated, or None where nothing is repeated.
        period: samples in one period of the op's output: the last period is what is repeated.
        take: every take-th sample is kept.
    """

    low: int
    high: int
    total: int | None
    period: int
    take: int


class DenseWindow(NamedTuple):
    """One axis of a sliding-window op that reads its input at step eST: the paper's eConv and ePool (eqs. 3 and 4).

    The first six fields are the original's :class:`Window`.

    Attributes:
        est: eST of the input, in dense samples.
        chosen: the stride is removed.
        pad_low, pad_high: padding in dense samples.
        padding: "full", "valid" or "same".
        shift: the dense window that is the original's first.
    """

    kernel: int
    stride: int
    low: int
    high: int
    dilation: int
    ceil: bool
    est: int
    chosen: bool
    pad_low: int
    pad_high: int
    padding: str
    shift: int

    @property
    def window(self) -> Window:
        return Window(*self[:6])

    @property
    def spacing(self) -> int:
        """Dense samples between two taps of the kernel: the dilation to run with."""
        # A single tap has no neighbour, and kernels without dilation are the faster ones.
        return self.est * self.dilation if self.kernel > 1 else 1

    @property
    def move(self) -> int:
        """Dense samples between two windows: the stride to run with."""
        if self.chosen:
            return 1
        # The repeated windows of the far side lie on multiples of gcd(stride, eST) only.
        return gcd(self.stride, self.est) if self.padding == "full" and self.est > 1 else self.stride

    @property
    def untouched(self) -> bool:
        """True where the original op does exactly this."""
        return self.est == 1 and not self.chosen

    def original_size(self, size: int) -> int:
        """The original's size where the dense one is `size` ("full" and "valid" only)."""
        return size // self.est if self.padding == "full" else divided_up(size, self.est)

    def layout(self, size: int, original: int | None = None) -> Layout:
        """Padding, far side and subsampling for a dense map of `size` samples.

        `original` is the size of the original's map; it must be given for padding="same" in ceil mode.
        """
        window, est = self.window, self.est
        n = self.original_size(size) if original is None else original
        if self.padding == "full":
            rows = window.starts(n)
            outputs = window.count(n)
            existing = larger(rows, (outputs - 1) * self.stride + 1) if self.ceil else rows
            high = self.pad_high + est * (existing - rows)
            if self.untouched or (self.stride == 1 and not self.chosen):
                return Layout(self.pad_low, high, None, 1, 1)
            period = est // self.move
            take = 1 if self.chosen else self.stride // self.move
            return Layout(self.pad_low, high, period * self.stride * outputs, period, take)
        if not self.ceil:
            return Layout(self.pad_low, self.pad_high, None, 1, 1)
        starts = size + self.pad_low + self.pad_high - self.spacing * (self.kernel - 1)
        wanted = self.shift + est * self.stride * (window.count(n) - 1) + 1
        return Layout(self.pad_low, self.pad_high + larger(0, wanted - starts), None, 1, 1)

    def sources(self, size: int, original: int | None = None) -> list[tuple[int, bool]]:
        """For every output sample: which dense window (at stride 1) it is, and whether it repeats another's."""
        at = self.layout(size, original)
        windows = size + at.low + at.high - self.spacing * (self.kernel - 1)
        samples = [(window, False) for window in range(0, windows, self.move)]
        if at.total is not None:
            last = [(window, True) for window, _ in samples[-at.period :]]
            samples += last * ((at.total - len(samples)) // at.period)
        return samples[:: at.take]


def densify_window(window: Window, lattice: Lattice, *, chosen: bool, padding: str) -> tuple[DenseWindow, Lattice]:
    """The window op that puts the original's results on a lattice, and that lattice.

    A removed stride dilates only what follows, never the layer itself. With padding="same" every op after the first
    removed stride is padded to keep its size, as in the paper's experiments; a kept stride then takes
    less in front (or crops), so that the original's first window stays on the stride.
    """
    est, offset = lattice
    low, high = est * window.low, est * window.high
    if padding == "same" and est > 1:
        total = est * window.span
        low, high = max(total // 2, low), max(total - total // 2, high)
        if not chosen:
            low -= (offset + low - est * window.low) % window.stride
    shift = offset + low - est * window.low
    dense = DenseWindow(*window, est, chosen, low, high, padding, shift)
    if chosen:
        return dense, Lattice(est * window.stride, shift)
    return dense, Lattice(est, shift // window.stride)


class Field(NamedTuple):
    """First and last input pixel that sample 0 of a map sees; negative in the padding, between pixels behind an
    upsampling."""

    first: Pixels
    last: Pixels

    @property
    def centre(self) -> float:
        return float(self.first + self.last) / 2

    @property
    def extent(self) -> int:
        """How many pixels lie in it, those in part included."""
        return ceil(self.last - self.first) + 1


@dataclass(frozen=True)
class Axis:
    """What is known of one spatial axis of one tensor, at the reference size.

    Attributes:
        size: samples in the original (n).
        dense: samples in the dense network (N).
        lattice: where the original's samples lie in the dense map.
        step: input pixels between neighbouring samples of the original (S).
        field: receptive field of dense sample 0, or None for the whole map.
        repeated: for every dense sample, whether it is or saw a repeated window of the far side.
        exact: False where padding="same" changed what the original's border windows see.
        pending: extent of the window that a flatten took in and the next Linear will read.
        whole: every sample is made of the whole map, phase by phase: a statistic, bins, or one of them spread out. Its
            phases then stand for the shifts of the image that `step` says, whatever its size.
        mirrored: it runs against the image's axis.
        upsampled: an upsampling stands before.
    """

    size: int
    dense: int
    lattice: Lattice
    step: Pixels
    field: Field | None
    repeated: tuple[bool, ...]
    exact: bool = True
    pending: int = 1
    whole: bool = False
    mirrored: bool = False
    upsampled: bool = False

    @staticmethod
    def of_input(size: int) -> Axis:
        """An axis of the network's input."""
        return Axis(size, size, Lattice(), 1, Field(0, 0), (False,) * size)

    @property
    def pitch(self) -> Pixels:
        """Input pixels between neighbouring samples of the dense map."""
        return pixels(Fraction(self.step) / self.lattice.stride)

    @property
    def statistic(self) -> bool:
        """One sample for the whole map."""
        return self.whole and self.size == 1

    def phases_for(self, other: Axis) -> tuple[int, ...] | None:
        """For every phase of another map's axis, which phase of this one, made of the whole map, belongs to it: the one
        of the same shift in input pixels. None where some shift has none."""
        est, pitch = self.lattice.stride, self.pitch
        shifts = [phase * other.pitch for phase in range(other.lattice.stride)]
        return None if any(shift % pitch for shift in shifts) else tuple(int(shift / pitch) % est for shift in shifts)

    def through(self, dense: DenseWindow, lattice: Lattice) -> Axis:
        """The axis after a window op."""
        window = dense.window
        low = dense.layout(self.dense, self.size).low
        sources = dense.sources(self.dense, self.size)
        field = None
        if self.field is not None:
            reach = dense.spacing * (dense.kernel - 1) - low
            field = Field(self.field.first - low * self.pitch, self.field.last + reach * self.pitch)
        repeated = tuple(again or self._sees_repeated(source, low, dense) for source, again in sources)
        return replace(
            self,
            size=window.count(self.size),
            dense=len(sources),
            lattice=lattice,
            step=self.step * window.stride,
            field=field,
            repeated=repeated,
            exact=self.exact and self._keeps_borders(dense),
            pending=1,
            whole=self.whole and (window.stride == 1 or window.count(self.size) == 1),
        )

    def _sees_repeated(self, window: int, low: int, dense: DenseWindow) -> bool:
        taps = (window - low + j * dense.spacing for j in range(dense.kernel))
        return any(0 <= tap < self.dense and self.repeated[tap] for tap in taps)

    def _keeps_borders(self, dense: DenseWindow) -> bool:
        est, offset = self.lattice
        if dense.low and offset >= est:
            return False
        return not ((dense.high or dense.ceil) and self.dense > offset + est * self.size)

    def pooled(self, padding: str) -> Axis:
        """The axis after a statistic over the whole map, taken phase by phase: one sample per phase."""
        est, offset = self.lattice
        first = offset - offset % est
        phases = min(est, self.dense - first - est * (self.size - 1))
        repeated = tuple(any(self.repeated[first + phase :: est][: self.size]) for phase in range(phases))
        return replace(
            self,
            size=1,
            dense=phases,
            lattice=Lattice(est, offset % est),
            field=None,
            repeated=repeated,
            whole=True,
        )
