"""Moving phases and positions between space and batch, and keeping operands of joins together."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

import numpy as np
import onnx_ir as ir

from densify.graphs.onnx.tape import Size, Tape, Tensor
from densify.lattice import smaller


def space_to_batch(
    x: Tensor, est: Sequence[int], sizes: Sequence[Size] | None = None, first: Sequence[int] = ()
) -> Tensor:
    """[B, C, *(n * e)] -> [B * prod(e), C, *n]; arguments as :func:`densify.layers.space_to_batch`."""
    if set(est) == {1}:
        return x
    if sizes is not None:
        for axis, (n, e) in enumerate(zip(sizes, est, strict=True)):
            dim = 2 + axis
            have = x.size(dim) - first[axis]
            x = x.sliced(dim, first[axis], first[axis] + smaller_size(n * e, have))
            x = x.padded({dim: (0, n * e - x.size(dim))})
    count, channels = len(est), x.channels()
    made = [None if not isinstance(n, int) else n // e for n, e in zip(x.shape[2:], est, strict=True)]
    batch = x.shape[0] * prod(est) if isinstance(x.shape[0], int) else None
    known = [batch, channels, *made]
    if count == 2 and est[0] == est[1]:
        packed = x.op("SpaceToDepth", (), [x.shape[0], channels * prod(est), *made], blocksize=est[0])
        return packed.reshaped([-1, channels, 0, 0], known)
    apart = [length for axis, e in enumerate(est) for length in (x.size(2 + axis) // e, e)]
    order = [0, *(3 + 2 * i for i in range(count)), 1, *(2 + 2 * i for i in range(count))]
    return x.reshaped([0, channels, *apart]).transposed(order).reshaped([-1, channels, *apart[::2]], known)


def repeat_images(tape: Tape, value: ir.Value, times: int) -> ir.Value:
    """[B, ...] -> [B * times, ...]: what an image has of its own, for every fragment of it."""
    number = tape.integers([tape.size_of(value, 0) * times])
    rows = [tape.op("Squeeze", [one]) for one in (tape.integers([0]), number, tape.integers([1]))]
    places = tape.op("Div", [tape.op("Range", rows), tape.integers([times])])
    return tape.op("Gather", [value, places], {"axis": 0})


def complete_phases(x: Tensor, est: Sequence[int], sizes: Sequence[Size], first: Sequence[int]) -> list[Size]:
    """How many phases of a dense map have all n samples, per spatial axis."""
    return [
        smaller_size(e, x.size(2 + axis) - start - e * (n - 1))
        for axis, (n, e, start) in enumerate(zip(sizes, est, first, strict=True))
    ]


def smaller_size(a: Size, b: Size) -> Size:
    """The smaller of two sizes."""
    made: Size = smaller(a, b)  # type: ignore[arg-type]
    return made


def batch_to_space(x: Tensor, est: Sequence[int], kept: Sequence[Size] = ()) -> Tensor:
    """[B * prod(e), C, *n] -> [B, C, *(n * e)]; [B * prod(e), C] counts as n = 1.

    `kept` crops every axis to so many samples.
    """
    count, channels = len(est), x.channels()
    if x.rank == 2:
        x = x.reshaped([0, channels, *[1] * count])
    if set(est) != {1}:
        batch = x.shape[0] // prod(est) if isinstance(x.shape[0], int) else None
        known = [
            batch,
            channels,
            *(n * e if isinstance(n, int) else None for n, e in zip(x.shape[2:], est, strict=True)),
        ]
        if count == 2 and est[0] == est[1]:
            packed = x.reshaped([-1, channels * prod(est), 0, 0], [batch, channels * prod(est), *x.shape[2:]])
            x = packed.op("DepthToSpace", (), known, blocksize=est[0])
        else:
            sizes = [x.size(2 + axis) for axis in range(count)]
            order = [0, 1 + count, *(side for i in range(count) for side in (2 + count + i, 1 + i))]
            apart = x.reshaped([-1, *est, channels, *sizes]).transposed(order)
            x = apart.reshaped([0, channels, *(n * e for n, e in zip(sizes, est, strict=True))], known)
    for axis, length in enumerate(kept):
        x = x.sliced(2 + axis, 0, length)
    return x


def to_rows(x: Tensor) -> Tensor:
    """[B, K, *spatial] -> [B * prod(spatial), K]: the vector of every position becomes an entry of the batch."""
    last = x.transposed([0, *range(2, x.rank), 1])
    return last.reshaped([-1, x.channels()])


def from_rows(rows: Tensor, like: Tensor) -> Tensor:
    """The way back from :func:`to_rows`, for the map `like` that the rows were taken from."""
    sizes = [like.size(dim) for dim in range(2, like.rank)]
    last = rows.reshaped([-1, *sizes, rows.channels()], [like.shape[0], *sizes, rows.channels()])
    return last.transposed([0, like.rank - 1, *range(1, like.rank - 1)])


def first_phases(x: Tensor, est: Sequence[int], kept: Sequence[int]) -> Tensor:
    """[B, C, *(n * e)] -> [B, C, *(n * kept)]: the first phases of every axis, the others dropped."""
    for axis, (e, count) in enumerate(zip(est, kept, strict=True)):
        if e == count:
            continue
        dim = 2 + axis
        if count == 1:
            x = x.sliced(dim, 0, None, e)
            continue
        n = x.size(dim) // e
        apart: list[Size] = [0, x.channels(), *(x.size(d) for d in range(2, x.rank))]
        y = x.reshaped([*apart[:dim], n, e, *apart[dim + 1 :]]).sliced(dim + 1, 0, count)
        x = y.reshaped([*apart[:dim], n * count, *apart[dim + 1 :]])
    return x


def vectors(x: Tensor) -> Tensor:
    """[B, K, 1, ...] -> [B, K]: a statistic as the original has it."""
    return x.reshaped([0, x.channels()], [x.shape[0], x.channels()])


def align(maps: Sequence[Tensor], starts: Sequence[Sequence[int]]) -> list[Tensor]:
    """Crop maps to the samples that all have: `starts` leading ones go, then what is longer than the shortest."""
    for axis in range(len(starts[0])):
        dim = 2 + axis
        length: Size | None = None
        for x, start in zip(maps, starts, strict=True):
            left = x.size(dim) - start[axis]
            length = left if length is None else smaller_size(length, left)
        assert length is not None
        maps = [x.sliced(dim, start[axis], start[axis] + length) for x, start in zip(maps, starts, strict=True)]
    return list(maps)


def rephase(x: Tensor, est: Sequence[int], taken: Sequence[Sequence[int]]) -> Tensor:
    """[B * prod(e), ...] -> [B * prod(e'), ...]: per spatial axis, the fragment of which phase each new phase takes."""
    rest: list[Size] = [x.size(dim) for dim in range(1, x.rank)]
    y = x.reshaped([-1, *est, *rest])
    for axis, phases in enumerate(taken):
        index = x.tape.constant(np.array(phases, np.int64))
        y = y.op("Gather", [index], y.changed({1 + axis: len(phases)}), axis=1 + axis)
    batch = x.shape[0] // prod(est) * prod(map(len, taken)) if isinstance(x.shape[0], int) else None
    return y.reshaped([-1, *rest], [batch, *rest])


def tile(x: Tensor, likes: Sequence[Tensor | None]) -> Tensor:
    """Repeat a map [B, C, *e] along the axes for which a map [.., *(n * e)] is given: every phase meets its own."""
    times: list[Size] = [1, 1]
    for axis, like in enumerate(likes):
        times.append(1 if like is None else like.size(2 + axis) // x.size(2 + axis))
    sizes = {2 + axis: like.shape[2 + axis] for axis, like in enumerate(likes) if like is not None}
    return x.op("Tile", [x.tape.integers(times)], x.changed(sizes))


def every(x: Tensor, steps: Sequence[int]) -> Tensor:
    """Every so-manieth sample per spatial axis: [B, C, *n] -> [B, C, *ceil(n / step)]."""
    for axis, step in enumerate(steps):
        x = x.sliced(2 + axis, 0, None, step)
    return x


def average(x: Tensor, spatial: int) -> Tensor:
    """[B, K, *spatial] -> [B, K]: the mean over the map of predictions (paper, sections 3.3 and 3.4)."""
    whole = x.op("GlobalAveragePool", (), [*x.shape[:2], *[1] * spatial])
    return vectors(whole)


def original_sizes(x: Tensor, est: Sequence[int]) -> list[Size]:
    """The original's spatial sizes, from a dense map."""
    return [(x.size(2 + axis) + (e - 1)) // e for axis, e in enumerate(est)]
