"""Wall-clock times of two networks beside each other."""

from __future__ import annotations

import time
from collections.abc import Callable
from statistics import median
from typing import NamedTuple

LEAST, MOST = 5, 50
_ENOUGH = 3.0  # seconds in which all pairs beyond the least are run


class Timing(NamedTuple):
    """Medians over pairs of runs.

    Attributes:
        original, dense: seconds of one run.
        ratio: of the medians.
        pairs: how many there were.
    """

    original: float
    dense: float
    ratio: float
    pairs: int


def beside(original: Callable[[], object], dense: Callable[[], object]) -> Timing:
    """Run two programs in turn, so that what else the machine does meets both; the first pair is not counted.

    Args:
        original, dense: return when all that they started has ended.
    """
    begin, found = time.perf_counter(), list[tuple[float, float]]()
    _seconds(original), _seconds(dense)
    while len(found) < LEAST or (len(found) < MOST and time.perf_counter() - begin < _ENOUGH):
        found.append((_seconds(original), _seconds(dense)))
    before, after = (median(column) for column in zip(*found, strict=True))
    return Timing(before, after, after / before, len(found))


def _seconds(run: Callable[[], object]) -> float:
    begin = time.perf_counter()
    run()
    return time.perf_counter() - begin
