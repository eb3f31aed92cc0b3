"""The form "fragments": phases live in the batch, and the original's own nodes run on them.

After a layer that makes new phases (or mixes them, as a kept stride does) its result is put together and taken apart
again along the new lattice. Everything else runs untouched, on maps of the original's size; at the outputs the phases
move back into space.
"""

from __future__ import annotations

from math import prod
from typing import ClassVar

import onnx_ir as ir

from densify.graphs.onnx import layers
from densify.graphs.onnx.merging import merged
from densify.graphs.onnx.ops import channelwise, identity, joined, moved, rephased, rows, windowed
from densify.graphs.onnx.tape import Size, Tensor
from densify.graphs.onnx.write import Writer, est_of, shape_of
from densify.lattice import Lattice, densify_window
from densify.maps import Layout, Map
from densify.ops import Channelwise, DenseWindowed, Identity, Join, Merge, Op, PhaseWise, Rows, ShapeOf
from densify.plans import Step


def _windowed(writer: Writer, node: ir.Node, step: Step, op: DenseWindowed) -> Tensor | None:
    """Stride 1 on every fragment; where that makes or mixes phases, to space, subsample, and back."""
    moving = [window.stride > 1 and (window.chosen or window.est > 1) for window in op.windows]
    local = tuple(
        densify_window(window.window, Lattice(), chosen=moves, padding="full")[0]
        for window, moves in zip(op.windows, moving, strict=True)
    )
    made = windowed(writer, node, step, DenseWindowed(op.op, local))
    if made is None or not any(moving):
        return made
    key, before, after = step.site.key, est_of(step.sources[0]), est_of(step.map)
    takes = tuple(
        window.stride if moves and not window.chosen else 1 for window, moves in zip(op.windows, moving, strict=True)
    )
    space = layers.every(layers.batch_to_space(writer.plain_of(key, made), before), takes)
    return writer.ordered(key, layers.space_to_batch(space, after))


def _join(writer: Writer, node: ir.Node, step: Step, op: Op) -> Tensor:
    operands = {key: writer.space(key) for key in step.site.inputs}
    for key, made in rephased(writer, step).items():
        alone = step.map.collapsed and made.rank == 2  # a vector per image keeps axes of size 1
        operands[key] = layers.batch_to_space(made, (1,) * len(step.map.axes)) if alone else made
    return joined(writer, node, step, operands)


def _phase_wise(writer: Writer, node: ir.Node, step: Step, op: Op) -> None:
    """Fragments are phases already; a vector per image keeps axes of size 1, which the op itself does not know."""
    other = moved(writer, step)
    for key, source in zip(step.site.inputs, step.sources, strict=True):
        if source.collapsed:
            other[key] = layers.vectors(other.get(key) or writer.space(key))
    writer.on_fragments(node, est_of(step.map), other.get)
    for value in node.outputs:
        name = writer.name(value)
        if name in writer.plan.steps:
            made = writer.fragments[name]
            if writer.plan.steps[name].map.collapsed:
                made = layers.batch_to_space(made, (1,) * len(step.map.axes))
            writer.put(name, made)


def _merged(writer: Writer, node: ir.Node, step: Step, op: Merge) -> Tensor:
    made = merged(writer, node, step, op, at_once=False)
    return writer.ordered(step.site.key, layers.space_to_batch(made, est_of(step.map)))


def _shape_of(writer: Writer, node: ir.Node, step: Step, op: Op) -> None:
    """Fragments have the original's sizes, but there are more of them."""
    if step.sources[0].untouched:
        writer.keep(node, step)
    else:
        writer.replace(step.site.key, writer.shape(node, step))


class FragmentWriter(Writer):
    """Writes a plan with phases in the batch."""

    in_batch = True
    writers: ClassVar = {
        Channelwise: channelwise,
        DenseWindowed: _windowed,
        Identity: identity,
        Join: _join,
        Merge: _merged,
        PhaseWise: _phase_wise,
        Rows: rows,
        ShapeOf: _shape_of,
    }

    def argument(self, value: ir.Value, node: ir.Node, step: Step | None = None) -> ir.Value:
        """What follows from shapes alone is told how many fragments there are."""
        name = self.name(value)
        if self.of_images(name) or step is None or not step.sources or self.is_number(node, name):
            return super().argument(value, node, step)
        return self.told(node, value, est_of(step.sources[0]))

    def plain_shape(self, step: Step, channels: int) -> list[Size | None]:
        """Fragments have the original's sizes; there are more of them."""
        batch = None if self.batch is None else self.batch * prod(est_of(step.map))
        return [batch, channels, *(axis.size if self.static else None for axis in step.map.axes)]

    def into_fragments(self, name: str, one: Map) -> Tensor:
        """They are fragments already."""
        return self.env[name]

    def shape(self, node: ir.Node, step: Step, fragments: int = 1) -> ir.Value:
        """The shape of a tensor as the original has it, but for the number of fragments."""
        source, have = step.site.inputs[0], est_of(step.sources[0])
        mixed = self.reading.places[source].layout is Layout.MIXED
        est = () if mixed else (1,) * len(have)
        return shape_of(self, node, step, self.space(source), est, fragments, prod(have))

    def finish(self, made: Tensor, step: Step) -> Tensor:
        """At an output, phases move from the batch into space."""
        est, key = est_of(step.map), step.site.key
        if set(est) == {1}:
            return made
        return self.ordered(key, layers.batch_to_space(self.plain_of(key, made), est))
