"""The arithmetic of upsamplings that meet a dense map: where the phases of their input come to lie in their output.

Everything here is about one spatial axis. Nothing imports torch.
"""

from __future__ import annotations

from fractions import Fraction
from math import gcd
from typing import NamedTuple

MERGES = ("select", "average", "resample")

LARGEST = 1000  # of the numbers of a scale factor, as a fraction, whose multiples are computed exactly


class Spread(NamedTuple):
    """One axis of an op that makes u samples of one, on a map of eST e; with g = gcd(u, e) its result has eST e / g.

    Sample o of what the op makes of phase r is sample ``o * left + r * hop`` of the result: r * S / e input pixels
    further, as phase r itself is.

    Attributes:
        est: eST of the op's input (e).
        left: eST of its result (e / g).
        hop: how many samples of the result lie between what is made of neighbouring phases (u / g).
    """

    est: int = 1
    left: int = 1
    hop: int = 1

    def place(self, phase: int) -> tuple[int, int]:
        """The phase of the result that a phase's samples belong to, and how many samples of it they come later."""
        return phase * self.hop % self.left, phase * self.hop // self.left

    @property
    def straight(self) -> bool:
        """Every phase stays what and where it is."""
        return self.est == self.left and all(self.place(phase) == (phase, 0) for phase in range(self.est))

    @property
    def firsts(self) -> list[int]:
        """For every phase of the result, its first sample that a shift reaches."""
        return [
            self.left * min(delay for _, delay in each) + target for target, each in enumerate(self.shifts(self.est))
        ]

    def shifts(self, count: int) -> list[list[tuple[int, int]]]:
        """For every phase of the result, which of the first `count` phases fall on it, each with its delay."""
        found: list[list[tuple[int, int]]] = [[] for _ in range(self.left)]
        for phase in range(count):
            target, delay = self.place(phase)
            found[target].append((phase, delay))
        return found


def spread_of(est: int, ratio: Fraction) -> Spread:
    """What becomes of a map of that eST where its step is divided by `ratio`; only phase 0 fits a broken one."""
    if ratio.denominator != 1:
        return Spread(est, 1, 1)
    shared = gcd(ratio.numerator, est)
    return Spread(est, est // shared, ratio.numerator // shared)


class Reach(NamedTuple):
    """Which samples of its input an upsampling reads for sample o of its output.

    Attributes:
        pitch: samples of the input between neighbouring ones of the output.
        first, final: it reads from ``floor(o * pitch + first)`` to ``floor(o * pitch + final)``.
        centre: where sample 0 lies, in samples of the input.
        cropped: how many samples in front of sample 0 it makes and takes away.
        before, behind: of an interpolation, how many samples it reads on either side of a place, rounded down.
        rounding: what is added to a place before that: 1/2 for the nearest sample.
    """

    pitch: Fraction
    first: Fraction
    final: Fraction
    centre: Fraction
    cropped: int = 0
    before: int = 0
    behind: int = 0
    rounding: Fraction = Fraction(0)

    def low(self, output: Fraction) -> Fraction:
        """The first input that an output reads, not yet rounded down."""
        return output * self.pitch + self.first + self.rounding

    def high(self, output: Fraction) -> Fraction:
        """The last input that an output reads, not yet rounded down."""
        return output * self.pitch + self.final + self.rounding
