"""The form "fragments": phases live in the batch, and the original's own layers run on them.

After a layer that makes new phases (or mixes them, as a kept stride does) its result is put together and taken apart
again along the new lattice. Everything else runs untouched, on maps of the original's size; at the outputs the phases
move back into space. No op here is dilated, so this form is the other's test and runs where dilated pooling does not.
"""

from __future__ import annotations

from math import prod
from typing import ClassVar

import torch
from torch import Tensor, fx

from densify import layers
from densify.graphs.fx.merging import merged
from densify.graphs.fx.phases import on_fragments, rephased
from densify.graphs.fx.write import Writer, est_of, identity, item_of, joined, rows, shape_of, windowed
from densify.lattice import Lattice, densify_window
from densify.maps import Layout, Map
from densify.ops import (
    Channelwise,
    DenseWindowed,
    Identity,
    Join,
    MaxPool,
    Merge,
    Op,
    Other,
    PhaseWise,
    Rows,
    ShapeOf,
)
from densify.plans import Step


def _windowed(writer: Writer, node: fx.Node, step: Step, op: Op) -> fx.Node:
    """Stride 1 on every fragment; where that makes or mixes phases, to space, subsample, and back."""
    assert isinstance(op, DenseWindowed)
    moving = [window.stride > 1 and (window.chosen or window.est > 1) for window in op.windows]
    local = tuple(
        densify_window(window.window, Lattice(), chosen=moves, padding="full")[0]
        for window, moves in zip(op.windows, moving, strict=True)
    )
    made = windowed(writer, node, step, DenseWindowed(op.op, local))
    if not any(moving):
        return made
    before, after = est_of(step.sources[0]), est_of(step.map)
    takes = tuple(
        window.stride if moves and not window.chosen else 1 for window, moves in zip(op.windows, moving, strict=True)
    )

    def again(one: fx.Node) -> fx.Node:
        if set(before) != {1}:
            one = writer.call(layers.batch_to_space, one, before)
        if set(takes) != {1}:
            one = writer.call(layers.every, one, takes)
        return writer.call(layers.space_to_batch, one, after)

    if isinstance(op.op, MaxPool) and op.op.indices:
        return writer.call(_pair, *(again(writer.call(item_of, made, index)) for index in (0, 1)))
    return again(made)


def _pair(values: Tensor, indices: Tensor) -> tuple[Tensor, Tensor]:
    return values, indices


def _join(writer: Writer, node: fx.Node, step: Step, op: Op) -> fx.Node:
    operands = {key: writer.space(writer.by_name[key]) for key in step.site.inputs}
    return joined(writer, node, operands | rephased(writer, step))


def _phase_wise(writer: Writer, node: fx.Node, step: Step, op: Op) -> fx.Node:
    """Fragments are phases already; a vector per image keeps axes of size 1, which the op itself does not know."""
    moved = rephased(writer, step) if isinstance(step.site.op, Other) else {}
    for key, source in zip(step.site.inputs, step.sources, strict=True):
        if source.collapsed and writer.plan.steps[key].site.shape is not None:
            moved[key] = writer.call(layers.vectors, moved.get(key) or writer.space(writer.by_name[key]))

    def read(source: fx.Node) -> fx.Node:
        return moved.get(source.name) or writer.argument(node, source)

    made = on_fragments(writer, node, est_of(step.map), read)
    ones = (1,) * len(step.map.axes)
    whole = step.site.shape is None  # a tuple, whose entries come next
    return writer.call(layers.batch_to_space, made, ones) if step.map.collapsed and not whole else made


def _shape_of(writer: Writer, node: fx.Node, step: Step, op: Op) -> fx.Node:
    """Fragments have the original's sizes, but there are more of them."""
    if step.sources[0].untouched or step.site.layout is Layout.MIXED:
        return writer.copy(node)
    return writer.shape(node, step, (1,) * len(step.map.axes))


def _merged(writer: Writer, node: fx.Node, step: Step, op: Op) -> fx.Node:
    assert isinstance(op, Merge)
    made, est = merged(writer, node, step, op, at_once=False), est_of(step.map)
    return made if set(est) == {1} else writer.call(layers.space_to_batch, made, est)


class FragmentWriter(Writer):
    """Writes a plan with phases in the batch."""

    in_batch = True
    writers: ClassVar = {
        DenseWindowed: _windowed,
        Identity: identity,
        Join: _join,
        PhaseWise: _phase_wise,
        Merge: _merged,
        Rows: rows,
        ShapeOf: _shape_of,
    }

    def argument(self, node: fx.Node, source: fx.Node) -> fx.Node:
        """What follows from shapes alone is told how many fragments there are; a factor of an image is one of all its
        fragments."""
        step = self.plan.steps.get(node.name)
        if step is None or not step.sources or source.name in step.site.inputs:
            return self.space(source)
        if isinstance(step.op, Channelwise | Join) and source.meta["counts"] and source.meta["tensor"]:
            return self.call(torch.repeat_interleave, self.space(source), prod(est_of(step.sources[0])), 0)
        return self.numbers(node, source, est_of(step.sources[0]))

    def into_fragments(self, node: fx.Node, one: Map) -> fx.Node:
        """They are fragments already."""
        return self.env[node]

    def shape(self, node: fx.Node, step: Step, est: tuple[int, ...]) -> fx.Node:
        """The shape of a map as the original has it, but for the number of fragments."""
        have = est_of(step.sources[0])
        return shape_of(self, node, step, (1,) * len(have), prod(est), prod(have))

    def finish(self, made: fx.Node, step: Step) -> fx.Node:
        """At an output, phases move from the batch into space."""
        est = est_of(step.map)
        return made if set(est) == {1} else self.call(layers.batch_to_space, made, est)
