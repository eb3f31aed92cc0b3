"""Moving phases and positions between space and batch, and keeping operands of joins together."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from math import prod
from typing import Any

import torch
import torch.nn.functional as F
import torch.utils._pytree as pytree
from torch import Tensor

from densify.lattice import divided_up


def space_to_batch(
    x: Tensor, est: Sequence[int], sizes: Sequence[int] | None = None, first: Sequence[int] = ()
) -> Tensor:
    """[B, C, *(n * e)] -> [B * prod(e), C, *n]: every phase becomes a fragment in the batch.

    Args:
        x: dense map.
        est: eST per spatial axis.
        sizes: the original's sizes n, where the map is not n * e long. It is cropped or filled up with zeros; the
            fragments that then are incomplete must be dropped, see :func:`complete_phases`.
        first: with `sizes`, how many leading samples to crop.
    """
    if sizes is not None:
        for axis, (n, e) in enumerate(zip(sizes, est, strict=True)):
            x = x.narrow(2 + axis, first[axis], min(n * e, x.shape[2 + axis] - first[axis]))
        short = [n * e - x.shape[2 + axis] for axis, (n, e) in enumerate(zip(sizes, est, strict=True))]
        x = F.pad(x, [side for missing in reversed(short) for side in (0, missing)])
    batch, channels = x.shape[:2]
    split = [length for axis, e in enumerate(est) for length in (x.shape[2 + axis] // e, e)]
    count = len(est)
    order = [0, *(3 + 2 * i for i in range(count)), 1, *(2 + 2 * i for i in range(count))]
    made = x.reshape(batch, channels, *split).permute(order).reshape(batch * prod(est), channels, *split[::2])
    return made.contiguous()  # as the original's tensors are, which its program may view


def complete_phases(x: Tensor, est: Sequence[int], sizes: Sequence[int], first: Sequence[int]) -> list[int]:
    """How many phases of a dense map have all n samples, per spatial axis."""
    return [
        min(e, x.shape[2 + axis] - start - e * (n - 1))
        for axis, (n, e, start) in enumerate(zip(sizes, est, first, strict=True))
    ]


def each_phase(op: Callable[..., Any], phases: int, takes: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    """An op that may look at a batch as a whole, on the fragments of one phase at a time.

    Args:
        op: takes and makes tensors whose first axis is the batch, or a multiple of it.
        phases: prod(eST); the batch counts them fastest, see :func:`space_to_batch`.
        takes: for every argument whether it is taken apart, in the structure of ``(args, kwargs)``.
        args, kwargs: of the op.
    """
    images = 0

    def part(take: bool, one: Any, phase: int) -> Any:
        nonlocal images
        if not take:
            return one
        images = next(leaf.shape[0] for leaf in pytree.tree_leaves(one) if isinstance(leaf, Tensor)) // phases
        return pytree.tree_map(lambda leaf: leaf[phase::phases] if isinstance(leaf, Tensor) else leaf, one)

    def joined(*parts: Any) -> Any:
        if not isinstance(parts[0], Tensor):
            return parts[0]
        return torch.stack([one.unflatten(0, (images, -1)) for one in parts], 1).flatten(0, 2)

    made = []
    for phase in range(phases):
        given, named = pytree.tree_map(partial(part, phase=phase), takes, (tuple(args), dict(kwargs)))
        made.append(op(*given, **named))
    return pytree.tree_map(joined, *made)


def batch_to_space(x: Tensor, est: Sequence[int], kept: Sequence[int] = ()) -> Tensor:
    """[B * prod(e), C, *n] -> [B, C, *(n * e)]; [B * prod(e), C] counts as n = 1.

    `kept` crops every axis to so many samples.
    """
    count = len(est)
    fragments, channels = x.shape[:2]
    sizes = list(x.shape[2:]) or [1] * count
    order = [0, 1 + count, *(side for i in range(count) for side in (2 + count + i, 1 + i))]
    shape = [n * e for n, e in zip(sizes, est, strict=True)]
    y = x.reshape(fragments // prod(est), *est, channels, *sizes).permute(order)
    y = y.reshape(fragments // prod(est), channels, *shape)
    for axis, length in enumerate(kept):
        y = y.narrow(2 + axis, 0, length)
    return y


def to_rows(x: Tensor) -> Tensor:
    """[B, K, *spatial] -> [B * prod(spatial), K]: the vector of every position becomes an entry of the batch."""
    return x.movedim(1, -1).reshape(-1, x.shape[1])


def from_rows(rows: Tensor, like: Tensor) -> Tensor:
    """The way back from :func:`to_rows`, for the map `like` that the rows were taken from."""
    return rows.reshape(like.shape[0], *like.shape[2:], rows.shape[1]).movedim(-1, 1)


def first_phases(x: Tensor, est: Sequence[int], kept: Sequence[int]) -> Tensor:
    """[B, C, *(n * e)] -> [B, C, *(n * kept)]: the first phases of every axis, the others dropped."""
    for axis, (e, count) in enumerate(zip(est, kept, strict=True)):
        dim = 2 + axis
        x = x.unflatten(dim, (x.shape[dim] // e, e)).narrow(dim + 1, 0, count).flatten(dim, dim + 1)
    return x


def vectors(x: Tensor) -> Tensor:
    """[B, K, 1, ...] -> [B, K]: a statistic as the original has it."""
    return x.flatten(1)


def align(maps: Sequence[Tensor], starts: Sequence[Sequence[int]]) -> list[Tensor]:
    """Crop maps to the samples that all have: `starts` leading ones go, then what is longer than the shortest."""
    for axis in range(len(starts[0])):
        dim = 2 + axis
        length = min(x.shape[dim] - start[axis] for x, start in zip(maps, starts, strict=True))
        maps = [x.narrow(dim, start[axis], length) for x, start in zip(maps, starts, strict=True)]
    return list(maps)


def rephase(x: Tensor, est: Sequence[int], taken: Sequence[Sequence[int]]) -> Tensor:
    """[B * prod(e), ...] -> [B * prod(e'), ...]: per spatial axis, the fragment of which phase each new phase takes."""
    y: Tensor = x.unflatten(0, (x.shape[0] // prod(est), *est))
    for axis, phases in enumerate(taken):
        y = y.index_select(1 + axis, torch.tensor(phases, device=x.device))
    return y.flatten(0, len(est))


def tile(x: Tensor, likes: Sequence[Tensor | None]) -> Tensor:
    """Repeat a map [B, C, *e] along the axes for which a map [.., *(n * e)] is given: every phase meets its own."""
    times = (1 if like is None else like.shape[2 + i] // x.shape[2 + i] for i, like in enumerate(likes))
    return x.repeat(1, 1, *times)


def every(x: Tensor, steps: Sequence[int]) -> Tensor:
    """Every so-manieth sample per spatial axis: [B, C, *n] -> [B, C, *ceil(n / step)]."""
    for axis, step in enumerate(steps):
        x = x[(slice(None),) * (2 + axis) + (slice(None, None, step),)]
    return x


def average(x: Tensor, spatial: int) -> Tensor:
    """[B, K, *spatial] -> [B, K]: the mean over the map of predictions (paper, sections 3.3 and 3.4)."""
    return x.mean(dim=tuple(range(x.dim() - spatial, x.dim())))


def kernel_of(weight: Tensor, kernel: Sequence[int]) -> Tensor:
    """A Linear layer's weight [K, C * prod(kernel)] seen as a convolution's [K, C, *kernel]; no copy."""
    return weight.view(weight.shape[0], -1, *kernel)


def original_shape(
    x: Tensor, est: Sequence[int], flattened: Sequence[int] | None = None, fragments: int = 1, made: int = 1
) -> tuple[int, ...]:
    """The shape that the original's program would read: sizes divided by eST.

    Args:
        x: dense map, or fragments of it.
        est: eST per spatial axis.
        flattened: the window that a flatten took in, where the original's tensor is a vector.
        fragments: how many phases per image the program that reads the shape runs on.
        made: how many of them x has in its batch.
    """
    batch = x.shape[0] // made * fragments
    if flattened is not None:
        return torch.Size((batch, x.shape[1] * prod(flattened)))
    return torch.Size((batch, x.shape[1], *(divided_up(x.shape[2 + axis], e) for axis, e in enumerate(est))))


def original_dim(x: Tensor, collapsed: bool) -> int:
    """The rank that the original's program would read."""
    return 2 if collapsed else x.dim()
