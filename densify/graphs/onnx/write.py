"""From a plan back to an ONNX graph: what both forms share.

Nodes that nothing changes stay the nodes they are, between values of the same names.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from math import prod
from typing import Any, ClassVar

import numpy as np
import onnx_ir as ir

from densify.graphs.onnx import layers
from densify.graphs.onnx.image import image_of
from densify.graphs.onnx.read import Reading
from densify.graphs.onnx.readers.pointwise import elementwise
from densify.graphs.onnx.registry import reader_of
from densify.graphs.onnx.tape import Number, Size, Tape, Tensor
from densify.graphs.onnx.values import writes_images
from densify.maps import Layout, Map
from densify.ops import Crop, DenseWindowed, GlobalPool, Op, Pad, PhaseWise, ShapeOf
from densify.plans import Plan, Step


class Writer:
    """Takes a graph apart node by node; what a rule changed goes through the writer of its op.

    Args:
        model: taken over; its nodes and values become the dense network's.
        reading: what it was read as.
        plan: what becomes of it.
        shifts: whether dilated max pooling is written as maxima of shifted views.
    """

    writers: ClassVar[Mapping[type[Op], Callable[[Any, ir.Node, Step, Any], Tensor | None]]] = {}
    in_batch = False  # whether maps are held with their phases in the batch

    def __init__(self, model: ir.Model, reading: Reading, plan: Plan, *, shifts: bool = False) -> None:
        self.model, self.reading, self.plan, self.shifts = model, reading, plan, shifts
        graph, image = model.graph, image_of(model)
        values = [*graph.inputs, *graph.initializers.values(), *(one for node in graph for one in node.outputs)]
        self.names = {id(value): str(value.name) for value in values}
        self.values = {str(value.name): value for value in values}  # as they are now
        self.untyped = [value for value in values if value.type is None and self.names[id(value)] in reading.known]
        for value in self.untyped:
            value.dtype = reading.known[self.names[id(value)]].dtype
        self.producers = {str(one.name): node for node in graph for one in node.outputs}
        self.idle = {id(node) for node in graph if not any(_used(one) for one in node.outputs)}
        self.tape = Tape([*self.values, *(str(node.name) for node in graph)], model.opset_imports[""])
        dims = [] if image.shape is None else list(image.shape)
        self.static = bool(dims) and all(isinstance(dims[dim], int) for dim in reading.order[2:])
        images = dims[reading.order[0]] if dims else None
        self.batch = images if isinstance(images, int) else None
        self.env: dict[str, Tensor] = {}  # tensors of the image as the dense network has them
        self.fragments: dict[str, Tensor] = {}  # the same with phases in the batch, where made or asked for
        self.sized: dict[tuple[str, tuple[int, ...]], ir.Value] = {}  # by eST, what follows from shapes
        self.sizes: dict[str, list[Size]] = {}
        self.ready = {str(one.name) for one in (*graph.inputs, *graph.initializers.values())}  # what nodes may read

    def finish(self, made: Tensor, step: Step) -> Tensor:
        """What an output still needs."""
        return made

    def run(self) -> ir.Model:
        """The dense network."""
        graph, image = self.model.graph, str(image_of(self.model).name)
        nodes, cut = list(graph), set[str]()  # what a head option leaves out, and what only that needs
        graph.remove(nodes)
        self.env[image] = self.tensor(image)
        for node in nodes:
            names = [str(value.name) for value in node.outputs]
            steps = [self.plan.steps[name] for name in names if name in self.plan.steps]
            known = any(name in self.reading.network.sites for name in names)
            if (known and not steps) or cut.intersection(self.name(one) for one in node.inputs if one is not None):
                cut.update(names)
            elif steps:
                self.write(node, steps[0])
            elif all(one is None or self.name(one) in self.ready for one in node.inputs):
                self.keep(node)
        self._outputs()
        self._assemble()
        return self.model

    def write(self, node: ir.Node, step: Step) -> None:
        """Write one op; the node that stands for it keeps its name."""
        op, begin = step.op, len(self.tape.nodes)
        assert op is not None
        made = self.writers.get(type(op), unchanged)(self, node, step, op)
        if made is not None:
            self.put(step.site.key, made)
        alike = [one for one in self.tape.nodes[begin:] if one.op_type == node.op_type]
        if alike and node.name not in [one.name for one in self.tape.nodes[begin:]]:
            alike[0].name = node.name
        self.ready.update(self.name(value) for value in node.outputs)

    def name(self, value: ir.Value) -> str:
        """The name that a value has in the original."""
        return self.names.get(id(value), str(value.name))

    def put(self, name: str, made: Tensor) -> None:
        """Let a tensor take the place and the name of the original's."""
        self.replace(name, made.value)
        self.env[name] = made

    def replace(self, name: str, value: ir.Value) -> None:
        """Let a value take the place and the name of the original's; one that has such a name already keeps it."""
        before, self.values[name] = self.values[name], value
        if value is not before and id(value) not in self.names:
            before.name, value.name = self.tape.name(), name
            if before.dtype is not None:
                value.dtype = before.dtype
            self.names[id(value)] = name

    def tensor(self, name: str) -> Tensor:
        """A tensor of the dense network that a node of the original makes, in its own order of dimensions."""
        step, value = self.plan.steps[name], self.values[name]
        shape, place = step.site.shape, self.reading.places[name]
        if place.layout is Layout.MIXED or shape is None or len(shape) < 2:
            return Tensor(self.tape, value, [None] * len(shape or ()))
        window = prod(axis.pending for axis in step.map.axes) if step.map.collapsed else 1
        return Tensor(self.tape, value, self.ordered_shape(name, self.plain_shape(step, shape[1] // window)))

    def plain_shape(self, step: Step, channels: int) -> list[Size | None]:
        """What is known of the shape of a dense map, [B, C, *spatial]."""
        return [self.batch, channels, *(axis.dense if self.static else None for axis in step.map.axes)]

    def ordered_shape(self, name: str, plain: list[Size | None]) -> list[Size | None]:
        """A shape [B, C, *spatial] in a tensor's own order of dimensions."""
        order = self.reading.places[name].order
        return [plain[order.index(dim)] for dim in range(len(plain))] if len(order) == len(plain) else plain

    def keep(self, node: ir.Node, step: Step | None = None) -> None:
        """Take the node as it is; it reads the dense network's tensors."""
        for index, one in enumerate(node.inputs):
            if one is not None and (given := self.argument(one, node, step)) is not one:
                node.replace_input_with(index, given)
        self.tape.adopt(node)
        self.ready.update(self.name(value) for value in node.outputs)

    def copy(self, node: ir.Node, read: Callable[[ir.Value], ir.Value], **attributes: Any) -> Sequence[ir.Value]:
        """The outputs of another node that does the same with other inputs."""
        return self.tape.copy(node, [None if one is None else read(one) for one in node.inputs], **attributes)

    def argument(self, value: ir.Value, node: ir.Node, step: Step | None = None) -> ir.Value:
        """What a kept node reads."""
        name = self.name(value)
        if not self.of_images(name):
            return self.values.get(name, value)
        typed = node.op_type == "CastLike" and name not in self.env  # it asks for the type alone
        return (self.fragment(name) if typed else self.space(name)).value

    def space(self, name: str) -> Tensor:
        """A tensor in the form in which the dense network has it, in its own order of dimensions."""
        if name not in self.env:
            one, made = self.plan.steps[name].map, self.fragments[name]
            if set(est_of(one)) != {1} or one.collapsed:  # else it is its own only fragment
                plain = made if one.collapsed else self.plain_of(name, made)
                made = self.ordered(name, layers.batch_to_space(plain, est_of(one)))
            self.put(name, made)
        return self.env[name]

    def plain(self, name: str) -> Tensor:
        """A tensor in the form in which the dense network has it, [B, C, *spatial]."""
        return self.plain_of(name, self.space(name))

    def plain_of(self, name: str, x: Tensor) -> Tensor:
        """[B, C, *spatial] of a tensor in its own order of dimensions."""
        place = self.reading.places[name]
        return x.transposed(place.order) if place.layout is Layout.MAP else x

    def ordered(self, name: str, x: Tensor) -> Tensor:
        """The way back from :meth:`plain_of`."""
        place = self.reading.places[name]
        if place.layout is not Layout.MAP:
            return x
        return x.transposed([place.order.index(dim) for dim in range(x.rank)])

    def fragment(self, name: str) -> Tensor:
        """A tensor of the image with its phases in the batch, of the original's rank."""
        if name not in self.fragments:
            self.fragments[name] = self.into_fragments(name, self.plan.steps[name].map)
        return self.fragments[name]

    def into_fragments(self, name: str, one: Map) -> Tensor:
        """A tensor of the dense network with its phases in the batch."""
        if one.untouched:
            return self.space(name)
        made = layers.space_to_batch(self.plain(name), est_of(one))
        return layers.vectors(made) if one.collapsed else self.ordered(name, made)

    def on_fragments(self, node: ir.Node, est: tuple[int, ...], read: Callable[[str], Tensor | None]) -> None:
        """A node on fragments.

        Args:
            read: gives other fragments than its inputs' own.
        """

        def given(value: ir.Value) -> ir.Value:
            name = self.name(value)
            if self.of_images(name):
                return (read(name) or self.fragment(name)).value
            return self.values.get(name, value) if self.is_number(node, name) else self.told(node, value, est)

        for before, made in zip(node.outputs, self.copy(node, given), strict=True):
            name = self.name(before)
            if name in self.plan.steps:
                self.fragments[name] = Tensor(self.tape, made, self._fragment_shape(name, prod(est)))

    def is_number(self, node: ir.Node, name: str) -> bool:
        """Whether what a node reads is no shape and no entry for every image: it then is what it is in the original."""
        return reader_of(node) is elementwise and name not in self.reading.per_image

    def told(self, node: ir.Node, value: ir.Value, est: tuple[int, ...]) -> ir.Value:
        """What a node on fragments is told of images and shapes, also where their number was written out."""
        name, index = self.name(value), [id(one) for one in node.inputs].index(id(value))
        known = self.reading.known.get(name)
        numbers = None if known is None else known.numbers
        if prod(est) > 1 and name in self.reading.per_image and reader_of(node) is elementwise:
            return layers.repeat_images(self.tape, self.values.get(name, value), prod(est))
        if prod(est) == 1 or name in self.reading.counted or not writes_images(node, index, numbers, self.batch):
            return self.number(value, est)
        assert numbers is not None
        return self.tape.constant(np.array([numbers[0] * prod(est), *numbers[1:]], np.int64))

    def _fragment_shape(self, name: str, count: int) -> list[Size | None]:
        """What is known of a tensor with its phases in the batch, in its own order of dimensions."""
        shape, place = self.plan.steps[name].site.shape or (), self.reading.places[name]
        if place.layout is Layout.MIXED:
            return [None] * len(shape)
        batch = None if self.batch is None else self.batch * count
        plain: list[Size | None] = [batch, shape[1], *(size if self.static else None for size in shape[2:])]
        return self.ordered_shape(name, plain)

    def entry(self, value: ir.Value, index: int) -> Size:
        """One number of a tensor of sizes."""
        numbers = ir.convenience.get_const_tensor(value)
        if numbers is not None:
            return int(numbers.numpy()[index])
        return Number(self.tape, self.tape.op("Gather", [value, self.tape.integers([index])], {"axis": 0}))

    def number(self, value: ir.Value, est: tuple[int, ...]) -> ir.Value:
        """What follows from shapes, for fragments of that eST: there are prod(est) times as many of them as images."""
        name = self.name(value)
        if name in self.ready and (name not in self.reading.counted or set(est) == {1}):
            return self.values.get(name, value)
        if (name, est) not in self.sized:
            node, step = self.producers[name], self.plan.steps.get(name)
            if step is not None:
                self.sized[name, est] = self.shape(node, step, prod(est))
            else:
                made = self.copy(node, lambda one: self.number(one, est))
                self.sized[name, est] = made[value.index() or 0]
        return self.sized[name, est]

    def shape(self, node: ir.Node, step: Step, fragments: int = 1) -> ir.Value:
        """The shape of a tensor as the original has it, where there are so many fragments of each image."""
        source, est = step.site.inputs[0], est_of(step.sources[0])
        if self.reading.places[source].layout is Layout.MIXED and not step.sources[0].untouched:
            return shape_of(self, node, step, self.fragment(source), (), fragments, prod(est))
        return shape_of(self, node, step, self.space(source), est, fragments)

    def of_images(self, name: str) -> bool:
        """Whether a name is that of a tensor of the image, with its phases."""
        step = self.plan.steps.get(name)
        return step is not None and not isinstance(step.op, ShapeOf)

    def original_sizes(self, key: str) -> list[Size]:
        """The original's spatial sizes of a map."""
        if key not in self.sizes:
            step = self.plan.steps[key]
            if step.op is None or step.map.untouched:
                x = self.plain(key)
                made: list[Size] = [x.size(dim) for dim in range(2, x.rank)]
            elif isinstance(step.op, DenseWindowed):
                made = layers.counts(self.original_sizes(step.site.inputs[0]), step.op.windows, step.op.op.same)
            elif isinstance(step.op, PhaseWise) and isinstance(step.op.op, GlobalPool):
                made = [1] * len(step.map.axes)
            elif isinstance(step.op, Pad | Crop):  # of a denser map with padding="valid" only
                made = layers.original_sizes(self.plain(key), est_of(step.map))
            else:
                made = self.original_sizes(step.site.inputs[0])
            self.sizes[key] = made
        return self.sizes[key]

    def _outputs(self) -> None:
        """The outputs, as the head option has them, under their names."""
        graph, ends = self.model.graph, self.plan.network.outputs
        before = [self.name(value) for value in graph.outputs]
        sites = self.reading.network.sites
        kept = [name for name in before if name in ends or name not in sites or isinstance(sites[name].op, ShapeOf)]
        names = [*kept, *(name for name in ends if name not in kept)]
        made = [self._output(name, ends[name]) if name in ends else self.values[name] for name in names]
        for name, value in zip(names, made, strict=True):
            if value.shape is None and (known := self.reading.known.get(name)) is not None and known.shape is not None:
                value.shape = ir.Shape([None] * len(known.shape))
        graph.outputs.clear()
        graph.outputs.extend(made)

    def _output(self, name: str, key: str) -> ir.Value:
        step = self.plan.steps[key]
        made = self.finish(self.space(key), step)
        if self.plan.head == "average":
            made = layers.average(self.plain_of(key, made), len(step.map.axes))
        value = made.value
        if value.name != name or value.producer() is None:
            value = made.op("Identity").value
            if name in self.values:
                self.values[name].name = self.tape.name()
            value.name = name
        before = self.producers[name].outputs if name in self.producers else ()
        declared = next((one.shape for one in before if self.name(one) == name), None)
        if not step.map.untouched or declared is None:
            declared = ir.Shape(size if isinstance(size, int) else None for size in made.shape)
        value.shape = declared
        return value

    def _assemble(self) -> None:
        """Put the nodes that are needed into the graph; what the original made for nobody stays."""
        needed, kept = {id(value) for value in self.model.graph.outputs}, []
        for node in reversed(self.tape.nodes):
            if id(node) in self.idle or any(id(value) in needed for value in node.outputs):
                kept.append(node)
                needed.update(id(one) for one in node.inputs if one is not None)
            else:
                node.resize_inputs(0)
        changed = {name for name, step in self.plan.steps.items() if not step.map.untouched}
        for value in self.untyped:
            value.type = None
        for value in (value for node in kept for value in node.outputs):
            if not value.is_graph_output() and (self.tape.wrote(value) or self.name(value) in changed):
                value.shape = value.type = None
        self.model.graph.extend(reversed(kept))


def _used(value: ir.Value) -> bool:
    return bool(value.uses()) or value.is_graph_output()


def est_of(source: Map) -> tuple[int, ...]:
    return tuple(axis.lattice.stride for axis in source.axes)


def unchanged(writer: Writer, node: ir.Node, step: Step, op: Op) -> Tensor | None:
    """The node itself."""
    writer.keep(node, step)
    for value in node.outputs:
        if (name := writer.name(value)) in writer.plan.steps:
            writer.env[name] = writer.tensor(name)
    return None


def shape_of(
    writer: Writer, node: ir.Node, step: Step, x: Tensor, est: tuple[int, ...], fragments: int = 1, made: int = 1
) -> ir.Value:
    """What a Shape or Size node reads of the original's tensor.

    Args:
        x: what the dense network has instead, in its own order of dimensions.
        est: how far the original's samples lie apart in it, per spatial axis.
        fragments: how many there are of each image for whom it is read.
        made: how many of them x has in its batch.
    """
    source, tape = step.sources[0], writer.tape
    place = writer.reading.places[step.site.inputs[0]]
    if source.collapsed and x.rank > 2:
        window = prod(axis.pending for axis in source.axes)
        sizes: list[Size] = [x.size(0) // made * fragments, x.channels() * window]
    else:
        whole = tape.op("Shape", [x.value])
        apart, images = [made, 1, *est], place.images
        divisors = [made if dim in images else 1 for dim in range(x.rank)]
        if place.layout is Layout.MAP:
            divisors, images = [apart[place.order.index(dim)] for dim in range(x.rank)], place.order[:1]
        if set(divisors) - {1}:
            more = np.array(divisors, np.int64) - 1
            if writer.plan.padding != "full" and more.any():
                whole = tape.op("Add", [whole, tape.constant(more)])
            whole = tape.op("Div", [whole, tape.constant(np.array(divisors, np.int64))])
        if fragments > 1:
            times = [fragments if dim in images else 1 for dim in range(x.rank)]
            whole = tape.op("Mul", [whole, tape.constant(np.array(times, np.int64))])
        if node.op_type == "Size":
            return tape.op("ReduceProd", [whole], {"keepdims": 0})
        start, end = node.attributes.get_int("start", 0), node.attributes.get_int("end", None)
        chosen = range(x.rank)[start:end]
        if list(chosen) == list(range(x.rank)):
            return whole
        bounds = [tape.integers([one]) for one in (chosen.start, chosen.stop)]
        return tape.op("Slice", [whole, *bounds])
    if node.op_type == "Size":
        return tape.op("ReduceProd", [tape.integers(sizes)], {"keepdims": 0})
    return tape.integers(sizes[node.attributes.get_int("start", 0) : node.attributes.get_int("end", None)])
