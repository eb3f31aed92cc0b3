"""Taking the original's samples out of a dense map, and checking them: laws 1 and 2."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from densify.comparison import Check, Judge
from densify.maps import Map


def sample_grid(dense: Tensor, one: Map, expected: Sequence[int]) -> Tensor:
    """The original's samples of a dense map; `expected` are the original's spatial sizes."""
    for index, (axis, size) in enumerate(zip(one.axes, expected, strict=True)):
        stride, offset = axis.lattice
        dim = dense.dim() - len(one.axes) + index
        dense = dense.narrow(dim, min(offset, dense.shape[dim]), max(dense.shape[dim] - offset, 0))
        dense = dense[(slice(None),) * dim + (slice(None, None, stride),)].narrow(
            dim, 0, min(size, -(-dense.shape[dim] // stride))
        )
    return dense


def check_grid(
    judge: Judge, want: Tensor, have: Tensor, one: Map, image: tuple[int, ...] | None = None, **labels: Any
) -> Check:
    """Law 1: the dense map on its lattice is the original's.

    Args:
        image: spatial sizes of the input, where the map may be exact clear of the borders only.
    """
    shape, note = tuple(have.shape), ""
    have = sample_grid(have, one, want.shape[want.dim() - len(one.axes) :])
    if image is not None and not all(axis.exact for axis in one.axes):
        want, have, note = clear_of_borders(want, have, one, image)
    check = judge(want, have, law="grid", shape=shape, **labels)
    return replace(check, note=note) if note else check


def check_size(sizes: Sequence[int], have: Tensor, one: Map, labels: dict[str, Any]) -> Check:
    wanted = tuple(size * axis.lattice.stride for size, axis in zip(sizes, one.axes, strict=True))
    made = tuple(have.shape[have.dim() - len(wanted) :])
    equal = made == wanted
    return Check(
        law="size", expected=wanted, actual=made, absolute=0.0 if equal else math.inf, worst=(), tolerance=0.0,
        relative=0.0 if equal else math.inf, passed=equal, **labels,
    )  # fmt: skip


def clear_of_borders(want: Tensor, have: Tensor, one: Map, image: tuple[int, ...]) -> tuple[Tensor, Tensor, str]:
    """Only the samples whose receptive fields lie inside the image."""
    for index, (axis, size) in enumerate(zip(one.axes, image, strict=True)):
        dim = want.dim() - len(one.axes) + index
        stride, offset = axis.lattice
        count = min(want.shape[dim], have.shape[dim])
        clear = [
            i
            for i in range(count)
            if axis.field is not None
            and axis.field.first + (offset + i * stride) * axis.pitch >= 0
            and axis.field.last + (offset + i * stride) * axis.pitch < size
        ]
        index_tensor = torch.tensor(clear, dtype=torch.long, device=want.device)
        want, have = want.index_select(dim, index_tensor), have.index_select(dim, index_tensor)
    note = "clear of the borders only" if want.numel() else "no sample is clear of the borders: nothing to compare"
    return want, have, note
