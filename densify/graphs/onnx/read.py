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
from densify.graphs.onnx import apart, moves, readers  # noqa: F401  (importing the readers registers them)
from densify.graphs.onnx.image import image_of, spatial_dims
from densify.graphs.onnx.linear import linear
from densify.graphs.onnx.readers.windows import DYNAMIC, row_pool
from densify.graphs.onnx.registry import ACROSS_IMAGES, Call, Place, reader_of
from densify.graphs.onnx.values import Known, Values
from densify.maps import Layout
from densify.ops import (
    Chain,
    Conv,
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
    reader.settle()
    outputs = {}
    for value in model.graph.outputs:
        name = str(value.name)
        if name in reader.places:
            outputs[name] = name
    if not outputs:
        raise ConversionError("no output of the graph depends on its image.")
    counted = frozenset(reader.counted())
    grow = frozenset(name for name in counted if reader.grows(name))
    return Reading(Network(reader.sites, outputs), reader.places, reader.known, counted, grow, reader.order)


class _Reader:
    """Walks a graph and remembers, for every tensor that depends on the image, what it is."""

    def __init__(self, model: ir.Model, shape: tuple[int, ...]) -> None:
        image = image_of(model)
        self.image, self.order = str(image.name), spatial_dims(model)
        self.frozen = image.shape is not None and all(isinstance(image.shape[dim], int) for dim in self.order[2:])
        self.model, self.values, self.seen = model, Values(model, image), dict[tuple[int, ...], dict[str, Known]]()
        self.version = self.values.version
        self.plain = tuple(shape[dim] for dim in self.order)
        self.known = self.at(self.plain)
        self.doubled = self.at(_scaled(self.plain, 0))
        self.grown = [self.at(_scaled(self.plain, dim)) for dim in range(2, len(shape))]
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

    def visit(self, node: ir.Node) -> None:
        """Describe one node, where it holds a tensor that depends on the image, or reads the shape of one."""
        read = _inputs(node)[:1] if node.op_type == "CastLike" else _inputs(node)  # of the other only the type
        maps = tuple(dict.fromkeys(name for name in read if name in self.places))
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
        elif any(self._shape(value) is None for value in used):
            op = Unsupported("no shape of its result follows from the image's", "Choose layers behind it")
        else:
            op = self.read(call)
        mixes = (op.fault or self._mixes(call)) if isinstance(op, Other | Rows) else ""
        for value in used:
            found = self._measured(call, value, mixes) if isinstance(op, Other) else op
            found = replace(found, fault=mixes) if isinstance(found, Rows) else found
            inputs = self._operands(call) if isinstance(found, Other) else call.maps
            self._place(value, self._result(call, value, found), found, inputs, call)
            if isinstance(found, Other) and found.layout is Layout.MAP:
                self._moves(call, value, found)

    def settle(self) -> None:
        """Let ops run on fragments that move the images to another dimension, where those behind move them back."""
        moved = {name for name, site in self.sites.items() if isinstance(site.op, Other) and site.op.fault == _NO_BATCH}
        while moved:
            region, nodes = self._region(moved.pop(), moved)
            moved -= region
            reads = {name for node in nodes for name in _inputs(node) if name in self.places}
            exits = {name for node in nodes for one in node.outputs if (name := str(one.name)) in self.sites} - region
            others = [self.sites[name].op for name in exits]
            back = exits and all(isinstance(op, Other) for op in others)
            if not back or any(self.made[name].is_graph_output() for name in region):
                continue
            before, behind = ({name: self._first(name) for name in sorted(names)} for names in (reads - region, exits))
            if apart.moved_back(self.model, before, behind, self.doubled, self.plain[0]):
                for name in region | exits:
                    site = self.sites[name]
                    self.sites[name] = replace(site, op=replace(site.op, fault=""))  # type: ignore[type-var]

    def _region(self, name: str, moved: set[str]) -> tuple[set[str], list[ir.Node]]:
        """The values whose images lie elsewhere that hang together with one of them, and the nodes between them."""
        region, stack, nodes = {name}, [name], dict[int, ir.Node]()
        while stack:
            value = self.made[stack.pop()]
            for node in (value.producer(), *value.consumers()):
                if node is None or id(node) in nodes or node.op_type in ("Shape", "Size"):
                    continue
                nodes[id(node)] = node
                found = {str(one.name) for one in (*node.inputs, *node.outputs) if one is not None} & moved - region
                region |= found
                stack += found
        return region, list(nodes.values())

    def _first(self, name: str) -> int:
        """The dimension of a tensor's images."""
        place = self.places[name]
        return place.order[0] if place.layout is Layout.MAP else 0

    def counted(self) -> Iterator[str]:
        """Names of values whose numbers or shape change with the number of images, tensors of the image apart."""
        for name, known in self.known.items():
            other = self.doubled.get(name)
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

    def grows(self, name: str) -> bool:
        """Whether twice as many images make the first dimension of what is no tensor of the image twice as long."""
        one, other = self.known[name].shape, self.doubled.get(name)
        grown = None if other is None else other.shape
        return bool(one) and grown is not None and len(grown) > 1 and grown == (2 * one[0], *one[1:])  # type: ignore[index]

    def read(self, call: Call) -> Op:
        """The description of one node's op."""
        weight = call.node.inputs[1] if call.node.op_type in ("Conv", "ConvTranspose") else None
        if weight is not None and str(weight.name) in call.maps:
            return DYNAMIC
        reader = reader_of(call.node)
        mixed = any(self.places[name].layout is Layout.MIXED for name in call.maps)
        op = reader(call) if reader is not None and (not mixed or call.node.op_type in ("Shape", "Size")) else None
        op = None if call.node.op_type == "Slice" and isinstance(op, MaxPool) and not self._slides(call, op) else op
        if len(call.maps) > 1 and not isinstance(op, Join | Chain | Unsupported):
            op = None  # a scale or a bias that is made of the image, too
        if op is None and self._alone(call):
            return Rows()
        return op if op is not None else Other((), Layout.MIXED)

    def _slides(self, call: Call, op: MaxPool) -> bool:
        """Whether a Slice with steps takes what a window takes on larger images, too: its bounds may be numbers."""
        dims = call.source.order[2:]
        for dim, window, other in zip(dims, op.windows, self.grown, strict=True):
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
            and self._follows_batch(call.node.outputs[0])
            and len(call.node.outputs) == 1
        )

    def _shape(self, value: ir.Value) -> tuple[int, ...] | None:
        known = self.known.get(str(value.name))
        return None if known is None else known.shape

    def _follows_batch(self, value: ir.Value) -> bool:
        """Whether twice as many images make the first dimension twice as long, and nothing else."""
        shape, doubled = self._shape(value), self.doubled.get(str(value.name))
        return bool(shape) and doubled is not None and doubled.shape == (2 * shape[0], *shape[1:])  # type: ignore[index]

    def _images(self, value: ir.Value) -> tuple[int, ...]:
        """The dimensions along which twice as many images make a tensor longer."""
        shape, doubled = self._shape(value) or (), self.doubled.get(str(value.name))
        longer = None if doubled is None else doubled.shape
        if longer is None or len(longer) != len(shape):
            return (0,)
        return tuple(dim for dim, (n, m) in enumerate(zip(shape, longer, strict=True)) if m > n)

    def _one_per_image(self, value: ir.Value) -> bool:
        """Whether the first dimension is as long as there are images."""
        return (self._shape(value) or (0,))[0] == self.plain[0]

    def _mixes(self, call: Call) -> str:
        """Why an op must not run on phases that are laid in the batch, for all that its numbers tell; "" if it may."""
        images = (self.known[self.image].shape or (1,))[self.order[0]]
        return apart.fault(call.node, call.maps, self.known, self.doubled, images, self.version)

    def _measured(self, call: Call, value: ir.Value, mixes: str) -> Other:
        """What an op without a rule makes: where its dimensions follow the image's, and how large they are."""
        wide = self._wide(call)
        layout, _, sizes = self._found(call, value, wide)
        scales = tuple(Fraction(n, max(m, 1)) for n, m in zip(sizes, wide, strict=True))
        known = self._follows_batch(value) or mixes == ACROSS_IMAGES.fault
        several = mixes == apart.MIXES and not self._one_per_image(value)  # of each image, maybe not one behind another
        return Other(scales, layout, fault=mixes if known and not several else _NO_BATCH)

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
        site, pooling = self.sites[name], row_pool(call)
        frozen = self.values.images is not None
        trials = moves.trials(self.model, chain.source, name, self.places, self.at, self.plain, frozen=frozen)
        if any(0 < scale < 1 for scale in op.scales):
            whole = pooling or chains.patches(trials, fixed=self.frozen)
            if whole is not None:
                self.sites[name] = replace(site, op=whole, inputs=(chain.source,), linear=linear(call, whole))
                self._leave_out(chain.between, value)
        elif any(turned := chains.mirrored(trials)):
            self.sites[name] = replace(site, op=replace(op, mirrors=turned))

    def _leave_out(self, between: Sequence[str], last: ir.Value) -> None:
        """Forget the values of a chain that nobody reads but the chain, which is one op now."""
        chain = {id(last.producer())}

        def within(value: ir.Value) -> bool:
            """Whether all that reads a value is the chain, or tells the chain of shapes alone."""
            if value.is_graph_output():
                return False
            told = [node for node in value.consumers() if id(node) not in chain]
            return all(str(one.name) not in self.places and within(one) for node in told for one in node.outputs)

        for name in [one for one in reversed(self.sites) if one in between]:
            value = self.made[name]
            if within(value):
                chain.add(id(value.producer()))
                del self.sites[name], self.places[name]
                for shape in (node for node in value.consumers() if id(node) not in chain):
                    del self.sites[str(shape.outputs[0].name)]

    def _found(
        self, call: Call, value: ir.Value, wide: tuple[int, ...]
    ) -> tuple[Layout, tuple[int, ...], tuple[int, ...]]:
        """Layout, order and sizes (0 for a statistic) of an unknown op's result."""
        shape, count = self._shape(value) or (), len(wide)
        plain = tuple(range(2 + count))
        single = self._follows_batch(value) and self._one_per_image(value)
        if not single or _strings_rows(call) or self._stays_mixed(call):
            return Layout.MIXED, (), wide
        grown = [known.shape for one in self.grown if (known := one.get(str(value.name))) is not None]
        if len(grown) < count or None in grown:
            if len(shape) == 2 + count and shape[2:] == wide:
                return Layout.MAP, plain, wide
            return (Layout.VECTOR, (0, 1), (0,) * count) if len(shape) == 2 else (Layout.MIXED, (), wide)
        moving = [[d for d, size in enumerate(shape) if other is not None and other[d] != size] for other in grown]
        if len(shape) == 2 and not any(moving):
            return Layout.VECTOR, (0, 1), (0,) * count
        if len(shape) != 2 + count or any(len(dims) > 1 for dims in moving):
            return Layout.MIXED, (), wide
        if not any(moving):
            sizes = tuple(n if n > 1 else 0 for n in shape[2:])
            return (Layout.MAP, plain, (0,) * count) if not any(sizes) else (Layout.MIXED, (), wide)
        like = call.source.order if len(call.source.order) == len(shape) else plain
        spatial = [dims[0] if dims else like[2 + axis] for axis, dims in enumerate(moving)]
        order = (0, *(dim for dim in range(1, len(shape)) if dim not in spatial), *spatial)
        if sorted(order) != list(plain) or any(
            shape[dim] != 1 for dim, dims in zip(spatial, moving, strict=True) if not dims
        ):
            return Layout.MIXED, (), wide
        return Layout.MAP, order, tuple(shape[dim] if dims else 0 for dim, dims in zip(spatial, moving, strict=True))

    def _stays_mixed(self, call: Call) -> bool:
        """Whether an op leaves a tensor that is no map as large as it is."""
        mixed = [name for name in call.maps if self.places[name].layout is Layout.MIXED]
        return call.node.op_type != "Transpose" and any(call.shape(name) == call.result for name in mixed)

    def _result(self, call: Call, value: ir.Value, op: Op) -> Place:
        """What the result of a node is."""
        shape, before = self._shape(value) or (), call.source
        if isinstance(op, Unsupported):
            return Place(Layout.MIXED, (), before.sizes)
        if isinstance(op, Other):
            wide = self._wide(call)
            layout, order, sizes = self._found(call, value, wide)
            if layout is Layout.MIXED:
                return Place(layout, order, sizes, images=self._images(value))
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
        place, shape = self.places.get(str(value.name)), self._shape(value)
        if place is not None and place.layout is Layout.MAP and shape is not None:
            shape = tuple(shape[dim] for dim in place.order)
        if isinstance(op, Interpolation) and not op.factors:
            inputs += self._like(call)
        return Site(
            key=str(value.name),
            layer=str(call.node.name or value.name),
            kind=call.node.op_type,
            op=op,
            inputs=inputs,
            shape=shape,
            work=_work(call, op),
            layout=layout,
            linear=linear(call, op),
        )

    def _like(self, call: Call) -> tuple[str, ...]:
        """The other map whose size a Resize is given, where it is."""
        made = tuple(call.result[dim] for dim in call.source.order[2:])
        stack = [one.producer() for one in call.node.inputs[1:] if one is not None and str(one.name) in self.sized]
        while stack:
            node = stack.pop()
            if node is None:
                continue
            if node.op_type == "Shape" and str(node.outputs[0].name) in self.sites:
                other = _inputs(node)[0]
                place = self.places[other]
                if other not in call.maps and place.layout is Layout.MAP and place.sizes == made:
                    return (other,)
            else:
                stack += [one.producer() for one in node.inputs if one is not None]
        return self._as_large(call)

    def _as_large(self, call: Call) -> tuple[str, ...]:
        """The first map that is as large as the result of a Resize at every size tried: exporters write sizes anew."""
        name, dims = str(call.node.outputs[0].name), call.source.order[2:]
        for other, place in self.places.items():
            if other in (name, *call.maps) or place.layout is not Layout.MAP or place.order != call.source.order:
                continue
            pairs = [(one.get(name), one.get(other)) for one in (self.known, *self.grown)]
            shapes = [(a.shape, b.shape) for a, b in pairs if a is not None and b is not None]
            if len(shapes) == len(pairs) and all(
                a and b and [a[d] for d in dims] == [b[d] for d in dims] for a, b in shapes
            ):
                return (other,)
        return ()


_NO_BATCH = "it does not keep the images of a batch apart, along its first dimension"


def _scaled(shape: tuple[int, ...], dim: int) -> tuple[int, ...]:
    return tuple(2 * size if axis == dim else size for axis, size in enumerate(shape))


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


def _work(call: Call, op: Op) -> int:
    if not isinstance(op, Conv | Linear | Transposed):
        return 0
    return prod(call.shape(str(call.node.inputs[1].name))) if call.node.inputs[1] is not None else 0
