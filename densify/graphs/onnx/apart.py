"""Whether operators that will run on fragments keep the images of a batch apart.

Phases are laid in the batch there, so an operator that mixes images would mix phases. What it does with a batch is in
its numbers alone. It runs on some images; then all but one are others (of other scales, not a number): what it makes of
that one must not change by a bit. It runs on the images in other places: what it makes of each must agree. Operators
that move the images to another dimension, and those that move them back, run together.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from math import prod
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir

from densify.graphs.onnx.part import part, run
from densify.graphs.onnx.values import Known
from densify.ops import Fault

_LARGEST = 2**24  # numbers of a tensor: what is larger is not looked at
_SHAPES_ONLY = ("Cast", "Expand", "Flatten", "Identity", "Reshape", "Shape", "Squeeze", "Transpose", "Unsqueeze")
"""Operators that move images, if at all, where their shapes show it."""


def fault(
    node: ir.Node,
    maps: Collection[str],
    known: Mapping[str, Known],
    more: Mapping[str, Known],
    images: tuple[int, int],
    version: int,
) -> Fault | None:
    """Why a node must not run on phases; None where it may, or where nothing can be said.

    Args:
        maps: names of its inputs that are tensors of the image.
        known, more: what is known of every value, for as many images as the first of `images` says, and for more.
        images: how many those are.
        version: of ONNX's operators.
    """
    if node.op_type in _SHAPES_ONLY:
        return None
    read = [str(value.name) for value in node.inputs if value is not None]
    entries = {name: 0 for name in read if name in maps}
    given = _batches(entries, more, images[1])
    others = _others(node, maps, more)
    if given is None or others is None:
        return None
    made = run(_alone(node, {**given[0], **others}, version), *({**one, **others} for one in given))
    if made[0] is None or made[-1] is None:
        fewer, few = _batches(entries, known, images[0]), _others(node, maps, known)
        if fewer is None or few is None:
            return None
        (runs,) = run(_alone(node, {**fewer[0], **few}, version), {**fewer[0], **few})
        return None if runs is None else Fault.FIXED
    return None if _apart(made, [0] * len(made[0]), images[1]) else Fault.MIXES


def moved_back(
    model: ir.Model, entries: Mapping[str, int], exits: Mapping[str, int], known: Mapping[str, Known], images: int
) -> bool:
    """Whether what some values make of others keeps the images apart, wherever they are on the way.

    Args:
        entries, exits: the others and these by name, each with the dimension of its images.
        known: what is known of every value, for that many images.
        images: how many, several.
    """
    given = _batches(entries, known, images)
    if given is None:
        return False
    made = run(part(model, list(exits), list(entries), known), *given)
    if made[0] is None or made[-1] is None:
        return False
    shapes = [None if (one := known.get(name)) is None else one.shape for name in exits]
    whole = all(one.shape == shape for one, shape in zip(made[0], shapes, strict=True))
    return whole and _apart(made, list(exits.values()), images)


_Batch = dict[str, np.ndarray]
_SCALES = (1.0, 1e4, np.nan)  # of the images beside the one that stays


def _batches(entries: Mapping[str, int], known: Mapping[str, Known], images: int) -> list[_Batch] | None:
    """Some images; others around the one in the middle, of every scale; and the first ones, each a place further.

    None where an entry is not known, or large.
    """
    found: list[_Batch] = [{} for _ in range(2 + len(_SCALES))]
    for seed, (name, dim) in enumerate(entries.items()):
        one = known.get(name)
        if one is None or not one.shape or prod(one.shape) > _LARGEST or one.shape[dim] % images:
            return None
        each, size = one.shape[dim] // images, one.shape[dim]
        long = (*one.shape[:dim], size + each, *one.shape[dim + 1 :])
        drawn = np.moveaxis(_random(long, one.dtype, seed), dim, 0)
        stays = slice(images // 2 * each, (images // 2 + 1) * each)
        batches = [drawn[each:]]
        for scale in _SCALES:
            around = np.moveaxis(_random(one.shape, one.dtype, 1000 + seed, scale), dim, 0).copy()
            around[stays] = batches[0][stays]
            batches.append(around)
        for batch, values in zip(found, [*batches, drawn[:size]], strict=True):
            batch[name] = np.ascontiguousarray(np.moveaxis(values, 0, dim))
    return found


def _others(node: ir.Node, maps: Collection[str], known: Mapping[str, Known]) -> _Batch | None:
    """What a node reads besides; None where that is not known, or large."""
    found = {}
    for value in node.inputs:
        if value is None or (name := str(value.name)) in maps:
            continue
        one, weight = known.get(name), ir.convenience.get_const_tensor(value)
        if one is not None and one.numbers is not None:
            found[name] = one.numbers
        elif weight is not None and weight.size <= _LARGEST:
            found[name] = weight.numpy()
        else:
            return None
    return found


def _random(shape: tuple[int, ...], dtype: ir.DataType, seed: int, scale: float = 1.0) -> np.ndarray:
    """Numbers that every type and most operators take: signed, of several magnitudes, where broken; else 0 and 1."""
    rng = np.random.default_rng(seed)
    if not dtype.is_floating_point():
        return rng.integers(0, 2, shape).astype(dtype.numpy())
    made = rng.standard_normal(shape) * 10 ** rng.uniform(-1, 2, shape) * scale
    return made.clip(-6e4, 6e4).astype(dtype.numpy())


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


def _apart(made: Sequence[Sequence[Any] | None], dims: Sequence[int], images: int) -> bool:
    """Whether results on the batches of :func:`_batches` keep the images apart; what is no tensor of them may differ.

    Args:
        dims: of each result, the dimension of its images.
    """
    first, *around, moved = [None if one is None else [_by_image(*pair, images) for pair in zip(one, dims, strict=True)]
                             for one in made]  # fmt: skip
    assert first is not None
    assert moved is not None
    for index, one in enumerate(first):
        if one is None:
            continue
        if one.dtype.kind == "f" and not np.isfinite(one[images // 2]).any():
            return False  # nothing was tried
        for other in around:
            same = None if other is None else other[index]
            if same is not None and not np.array_equal(one[images // 2], same[images // 2], equal_nan=True):
                return False
        if moved[index] is None or not _close(one[:-1], moved[index][1:]):
            return False
    return True


def _by_image(value: Any, dim: int, images: int) -> Any:
    """[images, numbers of each]; None of what has no entries for each."""
    if not isinstance(value, np.ndarray) or value.ndim <= dim or value.dtype.kind not in "biuf":
        return None
    if not value.shape[dim] or value.shape[dim] % images:
        return None
    return np.moveaxis(value, dim, 0).reshape(images, -1)


def _close(one: np.ndarray, other: np.ndarray) -> bool:
    """Whether numbers agree as far as the order of sums goes, which their places in a batch may decide."""
    if one.dtype.kind != "f":
        return bool((one == other).all())
    wide = 1e-4 if one.dtype.itemsize > 2 else 1e-2
    largest = np.abs(np.where(np.isfinite(one), one, 0)).max(initial=0.0)
    return np.allclose(one.astype(float), other.astype(float), rtol=wide, atol=wide * largest, equal_nan=True)
