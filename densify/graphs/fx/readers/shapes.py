"""Readers of ops on shapes: flattening, indexing, and what a program asks of a tensor."""

from __future__ import annotations

import operator
from math import prod
from typing import Any

import torch
from torch import Tensor, fx, nn

from densify.graphs.fx.registry import Call, reader_of, reads
from densify.lattice import Window
from densify.ops import (
    Channelwise,
    Crop,
    Flatten,
    MaxPool,
    Op,
    Pointwise,
    Same,
    ShapeOf,
    Unflatten,
)


@reads(nn.Flatten, torch.flatten, torch.reshape, torch.squeeze, "flatten", "view", "reshape", "squeeze")
def reshape(call: Call) -> Op | None:
    before, after = tuple(call.source.shape), tuple(call.result.shape)
    if after == before:
        return Same()
    if after == (before[0], prod(before[1:])):
        return Flatten()
    if len(before) == 2 and after[:2] == before and set(after[2:]) == {1}:
        return Unflatten()
    return None


@reads(operator.getitem)
def getitem(call: Call) -> Op | None:
    """An entry of a tuple of maps, some of the channels, or a part of the map: x[:, 2:4], x[..., 1:], x[..., ::2]."""
    if not isinstance(call.maps[0].meta["value"], Tensor):
        return Pointwise()
    entries = spread(call.node.args[1], call.source.dim())
    if entries is None or entries[0] != slice(None) or not isinstance(entries[1], slice):
        return None
    spatial = entries[2:]
    if all(entry == slice(None) for entry in spatial):
        return Channelwise()
    if entries[1] != slice(None) or not all(isinstance(entry, slice) for entry in spatial):
        return None
    bounds = [call.value(entry).indices(size) for entry, size in zip(spatial, call.source.shape[2:], strict=True)]
    if all(step == 1 for _, _, step in bounds):
        sizes = call.source.shape[2:]
        return Crop(tuple((-a, max(a, b) - size) for (a, b, _), size in zip(bounds, sizes, strict=True)))
    if any(not _open(entry) for entry in spatial):
        return None
    return MaxPool(tuple(Window(1, step, low=-start) for start, _, step in bounds))


def spread(index: Any, rank: int) -> list[Any] | None:
    """One entry per dimension of an index, its Ellipsis written out; None where it adds or mixes dimensions."""
    entries = list(index) if isinstance(index, tuple) else [index]
    if not all(isinstance(entry, slice | int) or entry is Ellipsis for entry in entries):
        return None
    if Ellipsis in entries:
        at = entries.index(Ellipsis)
        entries[at : at + 1] = [slice(None)] * (rank + 1 - len(entries))
    return entries + [slice(None)] * (rank - len(entries))


def _open(entry: slice) -> bool:
    """Whether a slice reaches to the end from a fixed start, whatever the size."""
    start = entry.start or 0
    return entry.stop is None and isinstance(start, int) and start >= 0


@reads(torch.chunk, torch.split, "chunk", "split")
def pieces(call: Call) -> Op | None:
    given = call.value(call.arguments("input size dim", dim=0))
    if given["dim"] % call.source.dim() == 1:
        return Channelwise()
    return None


@reads(getattr)
def attribute(call: Call) -> Op | None:
    """Attributes that are the tensor itself; what is not a tensor (dtype, device) is no business of a rule."""
    if reads_shape(call):
        return ShapeOf(spatial=not _reads_batch_only(call))
    return Pointwise() if call.node.args[1] in ("data", "real") else None


@reads("size", "dim", "ndimension", "numel", "nelement", torch.numel)
def shape_of(call: Call) -> Op | None:
    name = getattr(call.node.target, "__name__", str(call.node.target))
    return ShapeOf(total=name in ("numel", "nelement"), spatial=not _reads_batch_only(call))


def _reads_batch_only(call: Call) -> bool:
    """Whether a program asks for the batch or the channels alone, or for the rank."""
    node = call.node
    if node.target in ("dim", "ndimension") or (node.target is getattr and node.args[1] == "ndim"):
        return True
    if node.target == "size" and len(node.args) > 1:
        return node.args[1] in (0, 1)
    return all(user.target is operator.getitem and user.args[1] in (0, 1) for user in node.users)


_DESCRIPTIONS = "dtype device layout is_cuda is_cpu is_meta is_quantized requires_grad training is_mkldnn is_sparse"
_QUESTIONS = "is_floating_point is_complex get_device type element_size requires_grad_ is_same_size"


def describes(call: Call) -> bool:
    """Whether what a program takes out of a map, no tensor, is the same for its dense form."""
    node = call.node
    if node.target is getattr:
        return node.args[1] in _DESCRIPTIONS.split()
    return getattr(node.target, "__name__", str(node.target)) in _QUESTIONS.split()


def reads_shape(call: Call) -> bool:
    """Whether a program asks for a tensor's shape, in any of its ways."""
    node = call.node
    if node.target is getattr:
        return node.args[1] in ("shape", "ndim")
    return reader_of(call) is shape_of


def is_value(node: fx.Node, source: fx.Node) -> bool:
    """Whether a number fills the tensor that a node makes, and is no size of it."""
    name = getattr(node.target, "__name__", node.target)
    if name in ("full", "new_full"):
        return source in (node.kwargs.get("fill_value"), *node.args[2 if name == "new_full" else 1 :])
    return name in ("tensor", "as_tensor", "scalar_tensor", "new_tensor", "full_like")
