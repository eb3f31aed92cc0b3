"""From an ONNX graph to a :class:`densify.plans.Network`: every node described by its reader."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from math import prod

import numpy as np
import onnx_ir as ir

from densify import moves as chains
from densify.errors import ConversionError
from densify.graphs.onnx import apart, moves, readers, regions, resized  # noqa: F401  (importing the readers registers them)
from densify.graphs.onnx.growth import Growth
from densify.graphs.onnx.image import image_of, spatial_dims
from densify.graphs.onnx.linear import linear
from densify.graphs.onnx.part import reads_numbers
from densify.graphs.onnx.readers.windows import DYNAMIC, row_pool
from densify.graphs.onnx.registry import Call, Place, reader_of
from densify.graphs.onnx.values import Known, Values
from densify.maps import Layout
from densify.ops import (
    Chain,
    Conv,
    Fault,
    Flatten,
    Interpolation,
    Join,
    Linear,
    MaxPool,
    Op,
    Other,
    Rows,
    Transposed,
    Unsupported,
)
from densify.plans import Network, Site


@dataclass(frozen=True)
class Reading:
    """A graph as it was read.

    Attributes:
        network: its ops.
        places: by name, what the tensors of the image are.
        known: by name, what is known of every value at the reference size.
        counted: names of values that follow from shapes, the number of images among them.
        per_image: names of those that have an entry for every image.
        order: dimensions of the image in the order [B, C, *spatial].
    """

    network: Network
    places: Mapping[str, Place]
    known: Mapping[str, Known]
    counted: frozenset[str]
    per_image: frozenset[str]
    order: tuple[int, ...]


def read(model: ir.Model, shape: Sequence[int]) -> Reading:
    """Describe a graph.

    Args:
        shape: of the image at the reference size, in the graph's own order of dimensions.

    Raises:
        ConversionError: an input, an output or an operator that nothing can be said of.
    """
    reader = _Reader(model, tuple(shape))
    for node in model.graph:
        reader.visit(node)
    regions.settle(model, reader.sites, reader.places, reader.for_images)
    outputs = {}
    for value in model.graph.outputs:
        name = str(value.name)
        if name in reader.places:
            outputs[name] = name
    if not outputs:
        raise ConversionError("no output of the graph depends on its image.")
    counted = frozenset(reader.counted())
    grow = frozenset(name for name in counted if reader.growth.per_image(name))
    return Reading(Network(reader.sites, outputs), reader.places, reader.known, counted, grow, reader.order)


class _Reader:
    """Walks a graph and remembers, for every tensor that depends on the image, what it is."""

    def __init__(self, model: ir.Model, shape: tuple[int, ...]) -> None:
        image = image_of(model)
        self.image, self.order = str(image.name), spatial_dims(model)
        self.fixed = [image.shape is not None and isinstance(image.shape[dim], int) for dim in self.order]
        self.frozen = all(self.fixed[2:])
        self.model, self.values, self.seen = model, Values(model, image), dict[tuple[int, ...], dict[str, Known]]()
        self.version = self.values.version
        self.plain = tuple(shape[dim] for dim in self.order)
        self.known = self.at(self.plain)
        more = [self.at(_scaled(self.plain, dim)) for dim in (0, *range(2, len(shape)))]
        self.growth = Growth(self.plain, self.known, more[0], more[1:])
        self.made = {str(value.name): value for node in model.graph for value in node.outputs}
        self.places: dict[str, Place] = {}
        self.sites: dict[str, Site] = {}
        self.sized: dict[str, str] = {}  # what follows from a tensor's shape alone, and the site that it follows from
        self._place(image, Place(Layout.MAP, self.order, tuple(shape[dim] for dim in self.order[2:])), None, ())

    def at(self, shape: Sequence[int]) -> dict[str, Known]:
        """What is known of every value where the image has that shape, [B, C, *spatial]."""
        own = tuple(shape[self.order.index(dim)] for dim in range(len(shape)))
        if own not in self.seen:
            self.seen[own] = self.values.at(own)
        return self.seen[own]

    def for_images(self, times: int) -> tuple[dict[str, Known], int]:
        """What is known of every value for so many times as many images, and how many those are."""
        count = times * self.plain[0]
        return self.at((count, *self.plain[1:])), count

    def visit(self, node: ir.Node) -> None:
        """Describe one node, where it holds a tensor that depends on the image, or reads the shape of one."""
        maps = tuple(dict.fromkeys(name for name in reads_numbers(node) if name in self.places))
        captured = [name for name in _captured(node) if name in self.places]
        maps = maps or tuple(dict.fromkeys(captured))
        if not maps:
            source = next((self.sized[name] for name in _inputs(node) if name in self.sized), None)
            if source is not None:
                self.sized.update((str(value.name), source) for value in node.outputs)
            return
        call = Call(node, maps, self.places, self.known, self.version, self.frozen)
        used = [value for value in node.outputs if value.uses() or value.is_graph_output()]
        if node.domain not in ("", "ai.onnx"):
            op: Op = Unsupported(f"its domain {node.domain!r} is not ONNX's own", "Export it with ONNX's operators")
        elif captured or _graphs(node):
            op = Unsupported("control flow decides what becomes of the image", "Export the model without it")
        elif node.op_type in ("Shape", "Size"):
            op = self.read(call)
            self.sites[str(node.outputs[0].name)] = self._site(call, node.outputs[0], op, Layout.VECTOR, maps)
            self.sized[str(node.outputs[0].name)] = maps[0]
            return
        elif any(self.growth.shape(value) is None for value in used):
            op = Unsupported("no shape of its result follows from the image's", "Choose layers behind it")
        else:
            op = self.read(call)
        mixes = (op.fault or self._mixes(call)) if isinstance(op, Other | Rows) else None
        for value in used:
            found = self._measured(call, value, mixes) if isinstance(op, Other) else op
            found = replace(found, fault=mixes) if isinstance(found, Rows) else found
            inputs = self._operands(call) if isinstance(found, Other) else call.maps
            self._place(value, self._result(call, value, found), found, inputs, call)
            if isinstance(found, Other):
                self._moves(call, value, found)

    def counted(self) -> Iterator[str]:
        """Names of values whose numbers or shape change with the number of images, tensors of the image apart."""
        for name, known in self.known.items():
            other = self.growth.doubled.get(name)
            if name in self.places or name not in self.sized:
                continue
            if (
                other is None
                or other.shape != known.shape
                or known.numbers is None
                or other.numbers is None
                or not np.array_equal(other.numbers, known.numbers)
            ):
                yield name

    def read(self, call: Call) -> Op:
        """The description of one node's op."""
        weight = call.node.inputs[1] if call.node.op_type in ("Conv", "ConvTranspose") else None
        if weight is not None and str(weight.name) in call.maps:
            return DYNAMIC
        reader = reader_of(call.node)
        mixed = any(self.places[name].layout is Layout.MIXED for name in call.maps)
        op = reader(call) if reader is not None and (not mixed or call.node.op_type in ("Shape", "Size")) else None
        if call.node.op_type == "Slice" and not isinstance(op, Unsupported) and not self._slides(call, op):
            op = None
        if len(call.maps) > 1 and not isinstance(op, Join | Chain | Unsupported):
            op = None  # a scale or a bias that is made of the image, too
        if op is None and self._alone(call):
            return Rows()
        return op if op is not None else Other((), Layout.MIXED)

    def _slides(self, call: Call, op: Op | None) -> bool:
        """Whether a Slice takes all images, and with steps what a window takes of larger ones: bounds may be fixed."""
        if self.growth.images(call.node.outputs[0]) != call.source.order[:1]:
            return False
        dims, windows = call.source.order[2:], op.windows if isinstance(op, MaxPool) else ()
        for dim, window, other in zip(dims, windows, self.growth.grown, strict=bool(windows)):
            before, after = (other.get(str(one.name)) for one in (call.node.inputs[0], call.node.outputs[0]) if one)
            shapes = [None if one is None else one.shape for one in (before, after)]
            if not self.frozen and None not in shapes and window.count(shapes[0][dim]) != shapes[1][dim]:  # type: ignore[index]
                return False
        return True

    def _alone(self, call: Call) -> bool:
        """Whether a node reads one vector per image and makes one of it, row by row."""
        return (
            len(call.maps) == 1
            and call.source.layout is Layout.VECTOR
            and len(call.result) == 2
            and self.growth.follows_batch(call.node.outputs[0])
            and len(call.node.outputs) == 1
        )

    def _mixes(self, call: Call) -> Fault | None:
        """Why an op must not run on phases that are laid in the batch, for all that its numbers tell."""
        if any(self.places[name].layout is Layout.MAP and self.places[name].order[0] for name in call.maps):
            return Fault.MOVED
        more, count = self.for_images(3)
        return apart.fault(call.node, call.maps, self.known, more, (self.plain[0], count), self.version)

    def _measured(self, call: Call, value: ir.Value, mixes: Fault | None) -> Other:
        """What an op without a rule makes: where its dimensions follow the image's, and how large they are."""
        wide = self._wide(call)
        layout, _, sizes = self._found(call, value)
        scales = tuple(Fraction(n, max(m, 1)) for n, m in zip(sizes, wide, strict=True))
        return Other(scales, layout, fault=self._fault(call, value, mixes))

    def _fault(self, call: Call, value: ir.Value, mixes: Fault | None) -> Fault | None:
        """As :meth:`_mixes`, where the images are along the first dimension, one behind another."""
        if mixes is Fault.ACROSS:
            return mixes
        if self.growth.follows_batch(value) and self.growth.one_per_image(value):
            return mixes
        elsewhere = [name for name in call.maps if getattr(self.sites[name].op, "fault", None) is Fault.MOVED]
        kept = self.growth.follows_batch(value) and not mixes and not elsewhere
        return None if kept and call.node.op_type not in _BEHIND else Fault.MOVED

    def _operands(self, call: Call) -> tuple[str, ...]:
        """The maps that a node reads, and those that something is as large as that it reads: zeros to write into."""
        found = list(call.maps)
        for name in _inputs(call.node):
            source = self.sized.get(name, "")
            if source in self.places and self.places[source].layout is Layout.MAP and len(call.shape(name)) > 2:
                found += [source] if sorted(call.shape(name)) == sorted(call.shape(source)) else []
        return tuple(dict.fromkeys(found))

    def _wide(self, call: Call) -> tuple[int, ...]:
        """The largest size of each axis among them."""
        return tuple(map(max, zip(*(self.places[name].sizes for name in self._operands(call)), strict=True)))

    def _moves(self, call: Call, value: ir.Value, op: Other) -> None:
        """Describe the chain of nodes that ends in a map by what it does, where it only moves samples, or pools."""
        chain, name = moves.chain(call.node, self.places), str(value.name)
        if chain is None:
            return
        site, before = self.sites[name], self.places[chain.source].sizes
        fixed = [one or other for one, other in zip(self.fixed[2:], self.growth.written_out(value), strict=True)]
        for place in self._maps(value, fixed):
            places = {**self.places, name: place}
            trials = moves.trials(self.model, chain.source, name, places, self.at, self.plain, self.fixed)
            if any(n < m for n, m in zip(place.sizes, before, strict=True)):
                whole = row_pool(call) or chains.patches(trials, fixed=fixed)
                if whole is not None:
                    self._place(value, place, whole, (chain.source,), call)
                    for idle in moves.read_by_nobody(chain.between, value, self.made, self.sites, self.places):
                        del self.sites[idle]
                        self.places.pop(idle, None)
                    return
            elif op.layout is Layout.MAP and any(turned := chains.mirrored(trials)):
                self.sites[name] = replace(site, op=replace(op, mirrors=turned))

    def _maps(self, value: ir.Value, fixed: Sequence[bool]) -> list[Place]:
        """What a tensor is as a map; where sizes are fixed, its channels may come second or last."""
        place, shape = self.places[str(value.name)], self.growth.shape(value) or ()
        if place.layout is Layout.MAP:
            return [place]
        count = len(self.plain)
        if len(shape) != count or not any(fixed) or not self.growth.one_per_image(value):
            return []
        orders = [tuple(range(count)), (0, count - 1, *range(1, count - 1))]
        return [Place(Layout.MAP, order, tuple(shape[dim] for dim in order[2:])) for order in orders]

    def _found(self, call: Call, value: ir.Value) -> tuple[Layout, tuple[int, ...], tuple[int, ...]]:
        """Layout, order and sizes (0 for a statistic) of an unknown op's result."""
        wide = self._wide(call)
        if _strings_rows(call) or self._stays_mixed(call):
            return Layout.MIXED, (), wide
        return self.growth.layout(value, call.maps[0], wide, call.source.order)

    def _stays_mixed(self, call: Call) -> bool:
        """Whether an op leaves a tensor that is no map as large as it is."""
        mixed = [name for name in call.maps if self.places[name].layout is Layout.MIXED]
        return call.node.op_type != "Transpose" and any(call.shape(name) == call.result for name in mixed)

    def _result(self, call: Call, value: ir.Value, op: Op) -> Place:
        """What the result of a node is."""
        shape, before = self.growth.shape(value) or (), call.source
        if isinstance(op, Unsupported):
            return Place(Layout.MIXED, (), before.sizes)
        if isinstance(op, Other):
            layout, order, sizes = self._found(call, value)
            if layout is Layout.MIXED:
                return Place(layout, order, sizes, images=self.growth.images(value))
            return Place(layout, order, tuple(max(n, 1) for n in sizes))
        count = len(before.sizes)
        if isinstance(op, Flatten):
            flat = (before.order, before.sizes) if prod(before.sizes) > 1 else ()
            return Place(Layout.VECTOR, (0, 1), before.sizes, flat)
        if isinstance(op, Linear | Rows) or len(shape) == 2:
            return Place(Layout.VECTOR, (0, 1), (1,) * count, () if isinstance(op, Linear | Rows) else before.flat)
        if call.node.op_type == "Transpose":
            permutation = list(call.node.attributes.get_ints("perm", list(reversed(range(call.rank)))))
            return before.moved(permutation)
        order = before.order if before.layout is Layout.MAP else tuple(range(len(shape)))
        return Place(Layout.MAP, order, tuple(shape[dim] for dim in order[2:]))

    def _place(
        self, value: ir.Value, place: Place, op: Op | None, maps: tuple[str, ...], call: Call | None = None
    ) -> None:
        name = str(value.name)
        self.places[name] = place
        if call is None:
            shape = self.known[name].shape or ()
            standard = tuple(shape[dim] for dim in place.order)
            self.sites[name] = Site(name, name, "input", None, (), standard, layout=place.layout)
        else:
            assert op is not None
            self.sites[name] = self._site(call, value, op, place.layout, maps)

    def _site(self, call: Call, value: ir.Value, op: Op, layout: Layout, inputs: tuple[str, ...]) -> Site:
        place, shape = self.places.get(str(value.name)), self.growth.shape(value)
        if place is not None and place.layout is Layout.MAP and shape is not None:
            shape = tuple(shape[dim] for dim in place.order)
        if isinstance(op, Interpolation) and not op.factors:
            inputs += resized.like(call, self.sites, self.sized, self.growth)
        return Site(
            key=str(value.name),
            layer=str(call.node.name or value.name),
            kind=call.node.op_type,
            op=op,
            inputs=inputs,
            shape=shape,
            work=_work(call, op, self.plain[0]),
            layout=layout,
            linear=linear(call, op),
        )


def _scaled(shape: tuple[int, ...], dim: int) -> tuple[int, ...]:
    return tuple(2 * size if axis == dim else size for axis, size in enumerate(shape))


_BEHIND = ("Concat", "Expand", "Tile")
"""Operators that may lay a second tensor of every image behind the first ones of all."""


def _strings_rows(call: Call) -> bool:
    """Whether a Reshape of a map [B, C, *spatial] changes sizes: it cuts channels, or lays them one behind another."""
    shape, result = call.shape(call.maps[0]), call.result
    changed = len(shape) == len(result) and shape[2:] != result[2:]
    return call.node.op_type == "Reshape" and call.source.plain and changed


def _inputs(node: ir.Node) -> list[str]:
    return [str(one.name) for one in node.inputs if one is not None]


def _graphs(node: ir.Node) -> list[ir.Graph]:
    found: list[ir.Graph] = []
    for one in node.attributes.values():
        if one.type is ir.AttributeType.GRAPH:
            found.append(one.as_graph())
        elif one.type is ir.AttributeType.GRAPHS:
            found.extend(one.as_graphs())
    return found


def _captured(node: ir.Node) -> Iterator[str]:
    """Names that the graphs inside a node read."""
    for graph in _graphs(node):
        for inner in graph.all_nodes():
            yield from _inputs(inner)


def _work(call: Call, op: Op, images: int) -> int:
    """See :class:`densify.plans.Site`."""
    weight = call.node.inputs[1] if len(call.node.inputs) > 1 else None
    if weight is None or str(weight.name) in call.maps:
        return 0
    if isinstance(op, Conv | Linear | Transposed):
        return prod(call.shape(str(weight.name)))
    if isinstance(op, Other) and call.node.op_type == "MatMul":
        return prod(call.result) // images * call.shape(str(weight.name))[-2]
    return 0
