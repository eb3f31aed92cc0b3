"""Whether operators that will run on fragments keep the images of a batch apart.

Phases are laid in the batch there, so an operator that mixes images would mix phases. What it does with a batch is in
its numbers alone: it runs on two batches that have some images in common, at other places, and what it makes of these
must agree. Operators that move the images to another dimension, and those that move them back, run together.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from math import prod
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir

from densify.graphs.onnx.part import part, run
from densify.graphs.onnx.values import Known

_LARGEST = 2**24  # numbers of a tensor: what is larger is not looked at
_SHAPES_ONLY = ("Cast", "Expand", "Flatten", "Identity", "Reshape", "Shape", "Squeeze", "Transpose", "Unsqueeze")
"""Operators that move images, if at all, where their shapes show it."""

MIXES = "it mixes the images of a batch, and it would run on phases that are laid in the batch"
FIXED = "it takes a batch of the example's size alone, and it would run on phases that are laid in the batch"


def fault(
    node: ir.Node,
    maps: Collection[str],
    known: Mapping[str, Known],
    doubled: Mapping[str, Known],
    images: int,
    version: int,
) -> str:
    """Why a node must not run on phases; "" where it may, or where nothing can be said.

    Args:
        maps: names of its inputs that are tensors of the image.
        known, doubled: what is known of every value, for `images` images and for twice as many.
        version: of ONNX's operators.
    """
    feeds = None if node.op_type in _SHAPES_ONLY else _feeds(node, maps, doubled, 2 * images)
    if feeds is None:
        return ""
    made = run(_alone(node, feeds[0], version), *feeds)
    if made is None:
        fewer = _feeds(node, maps, known, images)
        return "" if fewer is None or run(_alone(node, fewer[0], version), *fewer) is None else FIXED
    return "" if all(_agree(one, other, 2 * images) for one, other in zip(*made, strict=True)) else MIXES


def moved_back(
    model: ir.Model, entries: Mapping[str, int], exits: Mapping[str, int], doubled: Mapping[str, Known], images: int
) -> bool:
    """Whether what some values make of others keeps the images apart, wherever they are on the way.

    Args:
        entries, exits: the others and these by name, each with the dimension of its images.
        doubled: what is known of every value, for twice as many images.
        images: how many.
    """
    feeds: _Feeds = ({}, {})
    for seed, (name, dim) in enumerate(entries.items()):
        one = doubled.get(name)
        if one is None or one.shape is None or prod(one.shape) > _LARGEST or one.shape[dim] % (2 * images):
            return False
        _feed(feeds, name, one.shape, one.dtype, dim, one.shape[dim] // (2 * images), seed)
    made = run(part(model, list(exits), list(entries), doubled), *feeds)
    if made is None:
        return False
    shapes = [None if (one := doubled.get(name)) is None else one.shape for name in exits]
    return all(
        shape == one.shape and _agree(np.moveaxis(one, dim, 0), np.moveaxis(other, dim, 0), 2 * images)
        for one, other, shape, dim in zip(*made, shapes, exits.values(), strict=True)
    )


_Feeds = tuple[dict[str, np.ndarray], dict[str, np.ndarray]]


def _feeds(node: ir.Node, maps: Collection[str], known: Mapping[str, Known], images: int) -> _Feeds | None:
    """What a node reads of the images 0 to n - 1, and of 1 to n; None where that is not known, or much."""
    feeds: _Feeds = ({}, {})
    for value in node.inputs:
        if value is None:
            continue
        name = str(value.name)
        one, weight = known.get(name), ir.convenience.get_const_tensor(value)
        if name in maps and one is not None and one.shape and prod(one.shape) <= _LARGEST:
            _feed(feeds, name, one.shape, one.dtype, 0, one.shape[0] // images, seed=len(feeds[0]))
        elif name not in maps and one is not None and one.numbers is not None:
            feeds[0][name] = feeds[1][name] = one.numbers
        elif name not in maps and weight is not None and weight.size <= _LARGEST:
            feeds[0][name] = feeds[1][name] = weight.numpy()
        else:
            return None
    return feeds


def _feed(feeds: _Feeds, name: str, shape: tuple[int, ...], dtype: ir.DataType, dim: int, each: int, seed: int) -> None:
    """Give both batches a tensor with so many entries of each image along a dimension."""
    size = shape[dim]
    given = np.moveaxis(_random((*shape[:dim], size + each, *shape[dim + 1 :]), dtype, seed), dim, 0)
    for batch, one in zip(feeds, (given[:size], given[each:]), strict=True):
        batch[name] = np.ascontiguousarray(np.moveaxis(one, 0, dim))


def _random(shape: tuple[int, ...], dtype: ir.DataType, seed: int) -> np.ndarray:
    """Numbers that every type and most operators take: signed where they are broken, else 0 and 1."""
    rng = np.random.default_rng(seed)
    made = rng.standard_normal(shape) if dtype.is_floating_point() else rng.integers(0, 2, shape)
    return made.astype(dtype.numpy())


def _alone(node: ir.Node, feeds: Mapping[str, np.ndarray], version: int) -> onnx.ModelProto:
    """A node as a graph of its own."""
    proto: onnx.NodeProto = ir.to_proto(node)
    inputs = [
        onnx.helper.make_tensor_value_info(name, onnx.helper.np_dtype_to_tensor_dtype(one.dtype), one.shape)
        for name, one in feeds.items()
    ]
    outputs = [onnx.ValueInfoProto(name=name) for name in proto.output if name]
    graph = onnx.helper.make_graph([proto], "one", inputs, outputs)
    return onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", version)], ir_version=8)


def _agree(one: Any, other: Any, images: int) -> bool:
    """Whether the images that both batches have made the same; what is no tensor of images is of no matter."""
    if not isinstance(one, np.ndarray) or not one.ndim or one.shape[0] % images or other.shape != one.shape:
        return True
    each = one.shape[0] // images
    if not each or one.dtype.kind not in "biuf":
        return True
    first, second = one[each:].astype(np.float64), other[:-each].astype(np.float64)
    tolerance = np.abs(first[np.isfinite(first)]).max(initial=0.0) * (1e-4 if one.dtype.itemsize > 2 else 1e-2)
    return np.allclose(first, second, rtol=0, atol=tolerance, equal_nan=True)
