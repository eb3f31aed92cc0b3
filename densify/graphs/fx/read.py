"""From a torch.fx graph to a :class:`densify.plans.Network`: every node described by its reader."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from fractions import Fraction
from math import prod
from typing import Any

import torch.nn.functional as F
from torch import Tensor, fx, nn

from densify.errors import ConversionError
from densify.graphs.fx.guards import guard, rereads, source_line
from densify.graphs.fx.moves import mirrored, moves
from densify.graphs.fx.probe import probe, seen
from densify.graphs.fx.readers.linear import linear
from densify.graphs.fx.readers.pointwise import elementwise, random
from densify.graphs.fx.readers.shapes import describes, reads_shape
from densify.graphs.fx.readers.windows import has_stride
from densify.graphs.fx.registry import Call, kind, reader_of
from densify.maps import Layout
from densify.ops import (
    Channelwise,
    Conv,
    Flatten,
    Interpolation,
    Linear,
    Op,
    Other,
    Pad,
    Rows,
    ShapeOf,
    Transposed,
    Unflatten,
    Unsupported,
    Values,
    Windowed,
)
from densify.plans import Network, Site
from densify.structure import named


def network(graph: fx.Graph, root: nn.Module, *, training: bool, names: Names | None = None) -> Network:
    """Describe a traced graph.

    Args:
        root: the module tree that it was traced from, on the meta device.
        names: gives the layers their names; the one of eval mode, so that train mode calls the same calls the same.
    """
    reader = _Reader(graph, root, names or Names(), training)
    for node in graph.nodes:
        reader.visit(node)
    for node, views, later in rereads(graph, root):
        if node.name in reader.sites:
            reader.sites[node.name] = replace(reader.sites[node.name], views=views, rereads=later)
    return Network(reader.sites, outputs(graph, reader.layouts), training)


class Names:
    """Names of layers: the module's path; for a function the path of the calling module, the function, and a count.

    A call is known again by its module, function and source line, and by how often that line came before.
    """

    def __init__(self) -> None:
        self._given: dict[tuple[str, str, int], str] = {}
        self._counts: dict[str, int] = {}
        self._seen: dict[tuple[str, str], int] = {}

    def begin(self) -> None:
        """Another graph of the same model follows."""
        self._seen = {}

    def of(self, call: Call) -> str:
        """The name of a node's layer."""
        if call.node.op in ("call_module", "placeholder"):
            return str(call.node.target)
        owner = call.node.meta["owner"]
        base = f"{owner}.{kind(call)}" if owner else kind(call)
        place = (base, source_line(call.node))
        again = self._seen[place] = self._seen.get(place, -1) + 1
        if (*place, again) not in self._given:
            count = self._counts[base] = self._counts.get(base, -1) + 1
            self._given[(*place, again)] = f"{base}_{count}" if count else base
        return self._given[(*place, again)]


class _Reader:
    """Walks a graph and remembers, for every tensor that depends on the image, what it is."""

    def __init__(self, graph: fx.Graph, root: nn.Module, names: Names, training: bool) -> None:
        self.graph, self.root, self.training = graph, root, training
        self.batch = next(len(node.meta["value"]) for node in graph.nodes if node.op == "placeholder")
        self.batches, *self.grown = probe(graph, root)
        for node in graph.nodes:
            value = node.meta.get("value")
            node.meta["number"] = isinstance(value, int | float)
            node.meta["tensor"] = isinstance(value, Tensor)
            node.meta["counts"] = self.batches.get(node.name, seen(value)) != seen(value)  # images, in shape or number
        self.images = next((len(n.meta["value"]) for n in graph.nodes if _is_image(n)), 1)
        self.sites: dict[str, Site] = {}
        self.layouts: dict[fx.Node, Layout] = {}
        self.sizes: dict[fx.Node, tuple[int, ...]] = {}  # the original's, per spatial axis
        self.names = names
        names.begin()

    def visit(self, node: fx.Node) -> None:
        """Describe one node, where it holds a tensor that depends on the image, or reads the shape or values of one."""
        inputs = tuple(dict.fromkeys(n for n in node.all_input_nodes if n in self.layouts))
        value: Any = node.meta.get("value")
        if node.op == "output" or not (inputs or _is_image(node) or self._draws(node)):
            return
        if str(node.target) in _NEW or (node.target in ("to", "type_as") and node.args[0] not in self.layouts):
            return  # of the map it takes the type and the device alone
        module = self.root.get_submodule(str(node.target)) if node.op == "call_module" else None
        call = Call(node, module, inputs, self.training)
        op = None
        if not inputs and node.op != "placeholder":
            op = random(call)
            self._remember(node, Layout.MIXED, next(iter(self.sizes.values()), ()))
        elif node.op == "placeholder":
            self._remember(node, Layout.MAP, tuple(value.shape[2:]))
        else:
            if not (_tensors(value) or reads_shape(call) or _reads_values(call)):
                return
            op = self.read(call)
            found = moves(node, self.layouts, self.graph, self.root) if _shrinks(op) else None
            if found is not None:
                op, inputs = found.op, (found.source,)
                call = Call(node, module, inputs, self.training)
                self._leave_out(found.between, node)
            if isinstance(op, Interpolation) and not op.factors:
                inputs += self._like(call)
            if _tensors(value):
                self._place(call, op)
        self.sites[node.name] = Site(
            key=node.name,
            layer=self.names.of(call),
            kind=kind(call),
            op=op,
            inputs=tuple(n.name for n in inputs),
            shape=tuple(value.shape) if isinstance(value, Tensor) else None,
            where=source_line(node),
            work=_work(call, op, self.images),
            layout=self.layouts[node if node in self.layouts else inputs[0]],
            linear=op is not None and linear(call, op),
        )

    def _leave_out(self, between: tuple[fx.Node, ...], node: fx.Node) -> None:
        """Forget the nodes of a chain that nobody reads but the chain, which is one op now."""
        chain = {node}
        for one in reversed(between):
            if chain.issuperset(one.users):
                chain.add(one)
                del self.sites[one.name], self.layouts[one], self.sizes[one]

    def _draws(self, node: fx.Node) -> bool:
        """Whether a node makes random numbers, of no map, where there should be none."""
        return not self.training and bool(node.users) and reader_of(Call(node, None, ())) is random

    def read(self, call: Call) -> Op:
        """The description of one node's op."""
        if call.module is not None and (call.module._forward_pre_hooks or call.module._forward_hooks):
            return Unsupported(
                "the module has forward hooks, which a rewritten layer would leave out",
                "Remove them (torch.nn.utils.remove_weight_norm and the like), or use torch.nn.utils.parametrizations",
            )
        if not (_tensors(call.result) or reads_shape(call)):
            return Values()
        if call.node.meta.get("whole") and any(
            made.dim() == 0 or len(made) % self.batch for made in _tensors(call.result)
        ):
            return Unsupported(
                "it cannot be looked into, and returns a tensor that has no axis of images", "Return maps or vectors"
            )
        reader = reader_of(call)
        layouts = {self.layouts[node] for node in call.maps}
        before = call.maps[0]
        pieces = not isinstance(before.meta["value"], Tensor) and isinstance(self.sites[before.name].op, Other)
        maps = Layout.MIXED not in layouts and not pieces and self._follows_batch(call.node)
        known = reads_shape(call) or (reader is not None and maps)
        op = reader(call) if known and reader is not None else None
        numbers = any(node.meta["number"] and node.meta["counts"] for node in call.node.all_input_nodes)
        if numbers and reader is not elementwise and not reads_shape(call):
            op = None if isinstance(op, Windowed | Channelwise | Pad) else op
        counts = layouts == {Layout.VECTOR} and any(map(self._counts_images, call.node.all_input_nodes))
        if counts or (isinstance(op, Unflatten) and call.result.dim() != 2 + len(self.sizes[before])):
            op = None
        torn = isinstance(op, Channelwise) and layouts == {Layout.VECTOR} and not isinstance(call.result, Tensor)
        if op is not None and not torn:
            return op
        alone = layouts == {Layout.VECTOR} and len(call.maps) == 1 and not (pieces or counts)
        alone = alone and not call.node.meta.get("whole")
        if alone and isinstance(call.result, Tensor) and call.result.dim() == 2 and self._follows_batch(call.node):
            return Rows()
        wide = tuple(max(sizes) for sizes in zip(*(self.sizes[node] for node in call.maps), strict=True))
        first = next((s for s in (self.sizes[node] for node in call.maps) if max(s) > 1), wide)
        layout, sizes = self._found(call.node, first)
        if layout is Layout.MIXED:
            sizes = wide
        mirrors = mirrored(call.node, self.layouts, self.graph, self.root) if layout is Layout.MAP else ()
        scales = tuple(Fraction(n, max(m, 1)) for n, m in zip(sizes, wide, strict=True))
        return Other(scales, layout, mirrors=mirrors, strided=has_stride(call.module))

    def _like(self, call: Call) -> tuple[fx.Node, ...]:
        """The other map whose size an op is given, where it is."""
        stack, size = [n for n in call.node.all_input_nodes if n not in call.maps], tuple(call.result.shape[2:])
        while stack:
            node = stack.pop()
            site = self.sites.get(node.name)
            if site is None:
                stack += node.all_input_nodes
            elif isinstance(site.op, ShapeOf):
                other = next(n for n in node.all_input_nodes if n in self.layouts)
                if other not in call.maps and self.layouts[other] is Layout.MAP and self.sizes[other] == size:
                    return (other,)
        return ()

    def _place(self, call: Call, op: Op) -> None:
        """Remember what the result of a node is."""
        node, before = call.node, self.sizes[call.maps[0]]
        if isinstance(op, Other):
            wide = tuple(max(sizes) for sizes in zip(*(self.sizes[node] for node in call.maps), strict=True))
            sizes = tuple(int(n * scale) for n, scale in zip(wide, op.scales, strict=True))
            self._remember(node, op.layout, sizes)
            return
        first = _tensors(node.meta["value"])[0]
        count = len(before)
        if isinstance(op, Flatten | Linear | Rows) or (first.dim() == 2 and count > 0):
            self._remember(node, Layout.VECTOR, (1,) * count if not isinstance(op, Flatten) else before)
        else:
            self._remember(node, Layout.MAP, tuple(first.shape[-count:]))

    def _remember(self, node: fx.Node, layout: Layout, sizes: tuple[int, ...]) -> None:
        self.layouts[node], self.sizes[node] = layout, sizes

    def _counts_images(self, node: fx.Node) -> bool:
        """Whether a node is a tensor that a program made of no map, one entry or more per image."""
        return bool(node not in self.layouts and node.meta["tensor"] and node.meta["counts"])

    def _follows_batch(self, node: fx.Node) -> bool:
        """Whether a node's first axis is the images'; tuples are looked at entry by entry."""
        value = node.meta["value"]
        if not isinstance(value, Tensor):
            return True
        doubled = (2 * self.batch, *value.shape[1:])
        return value.shape[:1] == (self.batch,) and self.batches.get(node.name, doubled) == doubled

    def _found(self, node: fx.Node, before: tuple[int, ...]) -> tuple[Layout, tuple[int, ...]]:
        """What an unknown op's result is, and its sizes (0 where it is a statistic of that axis).

        Which axis follows the image's is seen at other image sizes; where the model takes none, a tensor of the same
        rank and size counts as a map.
        """
        count, value = len(before), node.meta["value"]
        if not isinstance(value, Tensor) or not self._follows_batch(node):
            return Layout.MIXED, before
        shape = tuple(value.shape)
        grown = [sizes[node.name] for sizes in self.grown if node.name in sizes]
        if len(grown) < count:
            if len(shape) == 2 + count and shape[2:] == before:
                return Layout.MAP, before
            return (Layout.VECTOR, (0,) * count) if len(shape) == 2 else (Layout.MIXED, before)
        moving = [[d for d, size in enumerate(shape) if other[d] != size] for other in grown]
        if len(shape) == 2 and not any(moving):
            return Layout.VECTOR, (0,) * count
        if len(shape) != 2 + count:
            return Layout.MIXED, before
        sizes = tuple(n if moving[axis] or n > 1 else 0 for axis, n in enumerate(shape[2:]))
        follows = moving == [[2 + axis] if n else [] for axis, n in enumerate(sizes)]
        return (Layout.MAP, sizes) if follows else (Layout.MIXED, before)


def outputs(graph: fx.Graph, maps: Iterable[fx.Node]) -> dict[str, str]:
    """Names and keys of all output tensors: "output", or one name per entry of a tuple, dict or named tuple.

    Raises:
        ConversionError: an output of another kind, or two of one name.
    """
    known = set(maps)
    (returned,) = next(node for node in graph.nodes if node.op == "output").args
    found: dict[str, str] = {}
    for name, node in named(returned, fx.Node):
        if not isinstance(node.meta["value"], Tensor):
            made = type(node.meta["value"]).__name__
            raise ConversionError(
                f"the model returns a {made}: it has to return tensors, tuples, lists or dicts of them."
            )
        if name in found:
            raise ConversionError(f'the model returns two outputs of the name "{name}". Give them different keys.')
        if node in known:
            found[name] = node.name
    return found


def _shrinks(op: Op) -> bool:
    """Whether an op without a rule makes a smaller map, as a chain of views does that ends in space to depth."""
    return isinstance(op, Other) and op.layout is Layout.MAP and any(0 < scale < 1 for scale in op.scales)


def _is_image(node: fx.Node) -> bool:
    value = node.meta.get("value")
    return node.op == "placeholder" and isinstance(value, Tensor) and value.dim() >= 3


_NEW = ("new_zeros", "new_ones", "new_full", "new_empty", "new_tensor")


def _tensors(value: Any) -> list[Tensor]:
    """The tensors of a nested structure."""
    return [tensor for _, tensor in named(value, Tensor)]


def _reads_values(call: Call) -> bool:
    """Whether a program makes numbers of a tensor's values."""
    return call.node.target is guard or (call.result is not None and not describes(call))


def _work(call: Call, op: Op | None, images: int) -> int:
    """See :class:`densify.plans.Site`."""
    known = isinstance(op, Conv | Linear | Transposed)
    if not known and not (isinstance(op, Other) and _weighs(call)):
        return 0
    weight = call.module.weight if call.module is not None else call.value(call.arguments("input weight")["weight"])
    assert isinstance(weight, Tensor)
    return prod(weight.shape) if known else prod(call.result.shape) // images * prod(weight.shape[1:])


def _weighs(call: Call) -> bool:
    """Whether an op is a convolution or a Linear layer, whatever its input is."""
    if call.module is not None:
        return isinstance(call.module, nn.Linear | nn.Conv1d | nn.Conv2d | nn.Conv3d)
    return call.node.target in (F.linear, F.conv1d, F.conv2d, F.conv3d)
