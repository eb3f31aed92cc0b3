"""From a plan back to a torch.fx graph: one writer per kind of op that a rule puts there."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from math import prod
from typing import Any, ClassVar

import torch
from torch import fx, nn

from densify import layers
from densify.errors import ConversionError
from densify.graphs.fx.guards import source_line
from densify.graphs.fx.readers.pointwise import elementwise
from densify.graphs.fx.readers.shapes import is_value
from densify.graphs.fx.registry import Call, in_place, reader_of
from densify.lattice import DenseWindow
from densify.maps import Layout, Map
from densify.ops import (
    AdaptivePool,
    AvgPool,
    Conv,
    Crop,
    DenseWindowed,
    GlobalPool,
    MaxPool,
    Op,
    Pad,
    Patches,
    PhaseWise,
    PowerPool,
    ShapeOf,
    Sliding,
    Values,
)
from densify.plans import Network, Plan, Step

_CONV_ARGUMENTS = "input weight bias stride padding dilation groups"


class Writer:
    """Copies a graph node by node; what a rule changed goes through the writer of its op.

    Args:
        graph: the original's, whose nodes the plan speaks of.
        root: the module tree that it was traced from.
        full: the network as read, before a head option cut it.
    """

    writers: ClassVar[Mapping[type[Op], Callable[[Any, fx.Node, Step, Any], fx.Node | None]]] = {}
    in_batch = False  # whether maps are held with their phases in the batch

    def __init__(self, graph: fx.Graph, root: nn.Module, full: Network, plan: Plan) -> None:
        self.old, self.root, self.full, self.plan = graph, root, full, plan
        self.new = fx.Graph()
        self.env: dict[fx.Node, fx.Node] = {}  # tensors in the form in which the dense network has them
        self.fragments: dict[fx.Node, fx.Node] = {}  # the same with phases in the batch, where made or asked for
        self.sized: dict[tuple[fx.Node, tuple[int, ...]], fx.Node] = {}  # by eST, what follows from shapes
        self.by_name = {node.name: node for node in graph.nodes}
        self.sizes: dict[str, Any] = {}

    def finish(self, made: fx.Node, step: Step) -> fx.Node:
        """What an output still needs."""
        return made

    def run(self) -> fx.Graph:
        """The dense network's graph."""
        cut: set[fx.Node] = set()  # what a head option leaves out, and what only that needs
        for node in self.old.nodes:
            step = self.plan.steps.get(node.name)
            if node.op == "output":
                self.output(node)
            elif (step is None and node.name in self.full.sites) or any(s in cut for s in node.all_input_nodes):
                cut.add(node)
            elif step is not None and step.op is not None:
                self.site(node, step)
            elif all(source in self.env for source in node.all_input_nodes):
                self.env[node] = self.copy(node)
            elif self.has_effect(node):
                self.fragment(node, self.est_around(node))
        self.new.eliminate_dead_code(is_impure_node=self.has_effect)
        self.new.lint()
        return self.new

    def has_effect(self, node: fx.Node) -> bool:
        """Whether a node does something even where nobody uses its result: guards, and ops that work in place."""
        name = getattr(node.target, "__name__", "")
        lasting = node.op in ("placeholder", "output") or name in ("guard", "_assert", "_assert_is_none")
        return lasting or in_place(node, self.root)

    def copy(self, node: fx.Node, **replaced: fx.Node) -> fx.Node:
        """The node as it is; `replaced` maps names of its inputs to other new nodes."""
        made = self.new.node_copy(
            node, lambda source: replaced[source.name] if source.name in replaced else self.argument(node, source)
        )
        if node.op == "get_attr" and node.meta.get("plain"):
            made.target = f"source.{node.target}"  # no parameter or buffer: an attribute of the original's class
        return made

    def argument(self, node: fx.Node, source: fx.Node) -> fx.Node:
        """What a node that is copied reads."""
        return self.space(source)

    def space(self, node: fx.Node) -> fx.Node:
        """A tensor in the form in which the dense network has it."""
        if node not in self.env and not self.of_images(node):
            if node.meta["counts"]:
                raise _counted(node)
            self.env[node] = self.fragment(node, self.est_around(node))
        if node not in self.env:
            made, one = self.fragments[node], self.plan.steps[node.name].map
            # Without phases, a tensor of any layout is its own only fragment.
            whole = set(est_of(one)) == {1} and not one.collapsed
            self.env[node] = made if whole else self.call(layers.batch_to_space, made, est_of(one))
        return self.env[node]

    def fragment(self, node: fx.Node, est: tuple[int, ...]) -> fx.Node:
        """A tensor with its phases in the batch.

        What a program computes from shapes alone is computed anew for fragments of that eST: prod(est) times as many.
        """
        step = self.plan.steps.get(node.name)
        if step is not None and self.of_images(node):
            if node not in self.fragments:
                self.fragments[node] = self.into_fragments(node, step.map)
            return self.fragments[node]
        number = step is not None and (isinstance(step.op, Values) or step.op == ShapeOf(total=True))
        sized = step is not None or any(source.name in self.plan.steps for source in ancestors(node))
        fixed = step is None and node.meta["tensor"] and not node.meta["counts"]  # a tensor of one shape
        if node in self.env and (number or fixed or not sized or set(est) == {1}):
            return self.env[node]
        if (node, est) not in self.sized:
            if step is not None and step.site.layout is not Layout.MIXED:
                self.sized[node, est] = self.shape(node, step, est)
            else:
                self.sized[node, est] = self.new.node_copy(node, lambda source: self.numbers(node, source, est))
        return self.sized[node, est]

    def into_fragments(self, node: fx.Node, one: Map) -> fx.Node:
        """A tensor of the dense network with its phases in the batch."""
        made = self.env[node]
        if set(est_of(one)) != {1}:
            made = self.call(layers.space_to_batch, made, est_of(one))
        return self.call(layers.vectors, made) if one.collapsed else made

    def of_images(self, node: fx.Node) -> bool:
        """Whether a node holds tensors of the image, with its phases."""
        step = self.plan.steps.get(node.name)
        return step is not None and not isinstance(step.op, ShapeOf | Values)

    def est_around(self, node: fx.Node) -> tuple[int, ...]:
        """The eST of the first tensor that a node follows from."""
        return next(est_of(self.plan.steps[s.name].map) for s in ancestors(node) if s.name in self.plan.steps)

    def numbers(self, node: fx.Node, source: fx.Node, est: tuple[int, ...]) -> fx.Node:
        """An argument on fragments: arithmetic on tensors takes the original's numbers, shapes count the fragments."""
        arithmetic = self.of_images(node) and reader_of(Call(node, None, ())) is elementwise
        if not (source.meta.get("number") and (arithmetic or is_value(node, source))):
            return self.fragment(source, est)
        if source.meta["counts"] and self.of_tokens(source):
            raise _counted(node)
        return self.space(source)

    def of_tokens(self, number: fx.Node) -> bool:
        """Whether a number is taken from the shape of a tensor that exists as fragments alone."""
        steps = [self.plan.steps.get(one.name) for one in (number, *ancestors(number))]
        shapes = [step for step in steps if step is not None and isinstance(step.op, ShapeOf)]
        return any(step.site.layout is Layout.MIXED and not step.sources[0].untouched for step in shapes)

    def shape(self, node: fx.Node, step: Step, est: tuple[int, ...]) -> fx.Node:
        """The original's shape of a map, where there are prod(est) times as many of them."""
        return shape_of(self, node, step, est_of(step.sources[0]), prod(est))

    def call(self, function: Callable[..., Any], *args: Any) -> fx.Node:
        return self.new.call_function(function, args)

    def site(self, node: fx.Node, step: Step) -> None:
        op = step.op
        assert op is not None
        made = self.writers.get(type(op), unchanged)(self, node, step, op)
        if made is not None:
            self.env[node] = made

    def original_sizes(self, key: str) -> Any:
        """A node that computes the original's spatial sizes of a map, made where it is first asked for."""
        if key not in self.sizes:
            step = self.plan.steps[key]
            if step.op is None or step.map.untouched:
                made: Any = self.call(layers.spatial_sizes, self.space(self.by_name[key]))
            elif isinstance(step.op, DenseWindowed):
                made = self.call(layers.counts, self.original_sizes(step.site.inputs[0]), step.op.windows)
            elif isinstance(step.op, PhaseWise) and isinstance(step.op.op, GlobalPool):
                made = (1,) * len(step.map.axes)
            elif isinstance(step.op, Pad | Crop):  # of a denser map with padding="valid" only
                shape = self.call(layers.original_shape, self.space(self.by_name[key]), est_of(step.map))
                made = self.call(item_of, shape, slice(2, None))
            else:
                made = self.original_sizes(step.site.inputs[0])
            self.sizes[key] = made
        return self.sizes[key]

    def output(self, node: fx.Node) -> None:
        """The outputs in the original's structure, as the head option has them."""
        moved = {
            self.by_name[key]: self.by_name[self.plan.network.outputs.get(name, key)]
            for name, key in self.full.outputs.items()
        }

        def place(source: fx.Node) -> fx.Node:
            kept = moved.get(source, source)
            if kept.name not in self.plan.steps:
                return self.space(kept)
            made = self.finish(self.space(kept), self.plan.steps[kept.name])
            if source in moved and self.plan.head == "average":
                return self.call(layers.average, made, len(self.plan.steps[kept.name].map.axes))
            return made

        ends = self.plan.network.outputs
        if ends.keys() == self.full.outputs.keys():
            self.new.output(fx.map_arg(node.args[0], place))
        else:  # tensors in the network's midst, see Conversion.cut
            self.new.output({name: place(self.by_name[key]) for name, key in ends.items()})


def _counted(node: fx.Node) -> ConversionError:
    return ConversionError(
        f"{node.meta['owner'] or 'the model'} ({source_line(node)}): it calculates with a number of images that is "
        "taken from a tensor of another layout than [B, C, *spatial]. Take it from the map."
    )


def ancestors(node: fx.Node) -> set[fx.Node]:
    """All nodes that a node follows from."""
    found, stack = set(), list(node.all_input_nodes)
    while stack:
        current = stack.pop()
        if current not in found:
            found.add(current)
            stack.extend(current.all_input_nodes)
    return found


def est_of(source: Map) -> tuple[int, ...]:
    return tuple(axis.lattice.stride for axis in source.axes)


def unchanged(writer: Writer, node: fx.Node, step: Step, op: Op) -> fx.Node:
    return writer.copy(node)


def identity(writer: Writer, node: fx.Node, step: Step, op: Op) -> fx.Node:
    """Its input; a pooling made a new tensor, which an op behind it may change in place."""
    x = writer.space(writer.by_name[step.site.inputs[0]])
    return writer.call(torch.clone, x) if isinstance(step.site.op, AdaptivePool | GlobalPool) else x


def rows(writer: Writer, node: fx.Node, step: Step, op: Op) -> fx.Node:
    source = step.site.inputs[0]
    x = writer.space(writer.by_name[source])
    return writer.call(layers.from_rows, writer.copy(node, **{source: writer.call(layers.to_rows, x)}), x)


def windowed(writer: Writer, node: fx.Node, step: Step, op: Op) -> fx.Node:
    """eConv and ePool, or the op itself where nothing changed."""
    assert isinstance(op, DenseWindowed)
    linear = isinstance(op.op, Conv) and op.op.linear
    several = isinstance(op.op, Patches) and op.op.order  # nodes, which may ask for the batch: see moves.py
    if all(window.untouched for window in op.windows) and not linear and (not several or step.sources[0].untouched):
        return writer.copy(node)
    x = writer.space(writer.by_name[step.site.inputs[0]])
    if isinstance(op.op, Conv):
        return _conv(writer, node, op, x)
    if isinstance(op.op, Patches):
        return writer.call(layers.epatches, x, op.windows, op.op.order)
    if isinstance(op.op, Sliding):
        return _sliding(writer, node, step, op.windows, op.op)
    if isinstance(op.op, PowerPool):
        return writer.call(layers.epower_pool, x, op.windows, op.op.norm)
    if isinstance(op.op, MaxPool) and op.op.indices:
        return writer.call(layers.emax_pool_with_indices, x, op.windows, *_sizes(writer, step, op.windows))
    pool = (op.windows, op.op.count_include_pad, op.op.divisor) if isinstance(op.op, AvgPool) else (op.windows,)
    pool = (*pool, *_sizes(writer, step, op.windows))
    return writer.call(layers.emax_pool if isinstance(op.op, MaxPool) else layers.eavg_pool, x, *pool)


def _sizes(writer: Writer, step: Step, windows: Sequence[DenseWindow]) -> tuple[Any, ...]:
    """The original's sizes, where a layer needs them beside its windows."""
    if any(window.ceil and window.padding == "same" and window.est > 1 for window in windows):
        return (writer.original_sizes(step.site.inputs[0]),)
    return ()


def _sliding(writer: Writer, node: fx.Node, step: Step, windows: tuple[DenseWindow, ...], op: Sliding) -> fx.Node:
    """A user's function between padding and far side."""
    key, sizes = step.site.inputs[0], _sizes(writer, step, windows)
    x = writer.space(writer.by_name[key])
    operands = [writer.call(layers.padded, x, windows, op.fill, *sizes)]
    if node.op == "call_module":
        operands.insert(0, writer.new.create_node("get_attr", str(node.target)))
    else:
        operands += [writer.space(other) for other in node.all_input_nodes if other.name != key]
    stride, dilation = tuple(w.move for w in windows), tuple(w.spacing for w in windows)
    assert op.run is not None
    made = writer.new.call_function(op.run, tuple(operands), {"stride": stride, "dilation": dilation})
    return writer.call(layers.finished, made, x, windows, *sizes)


def _conv(writer: Writer, node: fx.Node, op: DenseWindowed, x: fx.Node) -> fx.Node:
    module = writer.root.get_submodule(str(node.target)) if node.op == "call_module" else None
    given = Call(node, module, ()).arguments(_CONV_ARGUMENTS, bias=None, groups=1)
    if module is None:
        weight, bias = (fx.map_arg(given[name], lambda source: writer.space(source)) for name in ("weight", "bias"))
    else:
        weight = writer.new.create_node("get_attr", f"{node.target}.weight")
        bias = writer.new.create_node("get_attr", f"{node.target}.bias") if given["bias"] is not None else None
    assert isinstance(op.op, Conv)
    if op.op.linear:
        weight = writer.call(layers.kernel_of, weight, tuple(window.kernel for window in op.windows))
    groups = fx.map_arg(given["groups"], writer.space)
    return writer.call(layers.econv, x, weight, bias, op.windows, groups)


def joined(writer: Writer, node: fx.Node, operands: Mapping[str, fx.Node]) -> fx.Node:
    """The join itself. A cat's dim may count from the end, where a vector has other axes here."""
    if node.target not in (torch.cat, torch.concat):
        return writer.copy(node, **operands)
    tensors = Call(node, None, ()).arguments("tensors dim")["tensors"]
    return writer.call(torch.cat, fx.map_arg(tensors, lambda source: operands[source.name]), 1)


def shape_of(writer: Writer, node: fx.Node, step: Step, est: tuple[int, ...], *batch: int) -> fx.Node:
    """The original's shape of a map whose samples lie `est` apart; `batch` as in :func:`layers.original_shape`."""
    source = step.sources[0]
    asked = node.args[1] if node.target is getattr else getattr(node.target, "__name__", node.target)
    x = writer.space(writer.by_name[step.site.inputs[0]])
    if asked in ("dim", "ndim", "ndimension"):
        return writer.call(layers.original_dim, x, source.collapsed)
    flattened = tuple(axis.pending for axis in source.axes) if source.collapsed else None
    shape = writer.call(layers.original_shape, x, est, flattened, *batch)
    dims = [*node.args[1:], *node.kwargs.values()] if asked == "size" else []
    return writer.new.call_function(item_of, (shape, dims[0])) if dims else shape


def item_of(values: Any, index: int | slice) -> Any:
    """One entry of a sequence, or some."""
    return values[index]
