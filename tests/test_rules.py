"""The laws of every window op, over random geometry, exactly."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from laws.oracle import check_square, weights_for

from densify.lattice import Lattice, Window
from densify.ops import AvgPool, Conv, MaxPool, Windowed


@st.composite
def window(draw: st.DrawFn, family: str, dimensions: int, ceil: bool) -> Window:
    """One axis of an op, as torch accepts it."""
    kernel = draw(st.integers(1, 5 if dimensions < 3 else 3))
    stride = draw(st.integers(1, 4 if dimensions < 3 else 3))
    dilation = draw(st.integers(1, 3)) if family != "avg" else 1
    span = dilation * (kernel - 1)
    if family == "conv":
        if draw(st.booleans()):
            return Window(kernel, stride, draw(st.integers(0, 4)), draw(st.integers(0, 4)), dilation)
        stride = 1
        return Window(kernel, stride, span // 2, span - span // 2, dilation)
    padding = draw(st.integers(0, kernel // 2))
    return Window(kernel, stride, padding, padding, dilation, ceil)


@st.composite
def op(draw: st.DrawFn, family: str, dimensions: int) -> Windowed:
    """An op, any of its strides chosen."""
    ceil = family != "conv" and draw(st.booleans())
    windows = tuple(draw(window(family, dimensions, ceil)) for _ in range(dimensions))
    chosen = tuple(w.stride > 1 and draw(st.booleans()) for w in windows)
    if family == "conv":
        return Conv(windows, chosen)
    if family == "max":
        return MaxPool(windows, chosen)
    divisor = draw(st.none() | st.integers(1, 9)) if dimensions > 1 else None
    return AvgPool(windows, chosen, draw(st.booleans()), divisor)


def sizes_and_lattices(data: st.DataObject, one: Windowed) -> tuple[list[int], list[Lattice]]:
    """An original size at which every window fits, and an eST per axis."""
    dimensions = len(one.windows)
    sizes, lattices = [], []
    for w in one.windows:
        # More than one dilation, or all taps of a window may lie in the padding, where torch itself answers -inf.
        least = max(w.dilation + 1, w.span + 1 - w.low - w.high)
        if dimensions == 3 and isinstance(one, AvgPool):
            least = w.kernel  # torch asks for that in 3-D alone
        sizes.append(data.draw(st.integers(least, least + {1: 12, 2: 7, 3: 3}[dimensions])))
        lattices.append(Lattice(data.draw(st.integers(1, {1: 6, 2: 6, 3: 2}[dimensions])), 0))
    return sizes, lattices


FAMILIES = [(f, n) for f in ("conv", "max", "avg") for n in (1, 2, 3)]


@pytest.mark.parametrize(("family", "dimensions"), FAMILIES)
@settings(max_examples=120)
@given(data=st.data())
def test_full(family: str, dimensions: int, data: st.DataObject) -> None:
    one = data.draw(op(family, dimensions))
    sizes, lattices = sizes_and_lattices(data, one)
    weights = weights_for(one, data.draw(st.sampled_from([1, 2, 4])))
    check_square(one, lattices, sizes, given=weights)


@pytest.mark.parametrize("padding", ["valid", "same"])
@pytest.mark.parametrize(("family", "dimensions"), FAMILIES)
@settings(max_examples=60)
@given(data=st.data())
def test_other_paddings(family: str, dimensions: int, padding: str, data: st.DataObject) -> None:
    """On incomplete phases, and for "same" on moved lattices."""
    one = data.draw(op(family, dimensions))
    sizes, lattices = sizes_and_lattices(data, one)
    if padding == "same":
        lattices = [Lattice(e, data.draw(st.integers(0, e - 1))) for e, _ in lattices]
    extra = [data.draw(st.integers(0, e - 1)) for e, _ in lattices]
    check_square(one, lattices, sizes, padding=padding, extra=extra)


def test_random_geometry_reaches_the_far_side() -> None:
    """Sizes that a stride does not divide, windows past the end in ceil mode, a window that torch drops."""
    drops = Window(2, 3, 1, 1, 1, True)
    assert drops.count(3) == 2, "torch drops the window that starts in the far padding"
    for size in range(3, 12):
        for est in (1, 2, 3, 4, 6):
            for stride in (1, 2, 3, 4):
                for chosen in (False, stride > 1):
                    one = MaxPool((Window(2, stride, 1, 1, 1, True),), (chosen,))
                    check_square(one, [Lattice(est)], [size])
