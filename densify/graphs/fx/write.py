"""From a plan back to a torch.fx graph: one writer per kind of op that a rule puts there."""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import fx, nn

from densify import layers
from densify.graphs.fx.readers import spread
from densify.graphs.fx.registry import Call
from densify.lattice import DenseWindow
from densify.ops import (
    AdaptivePool,
    AvgPool,
    Conv,
    Crop,
    DenseWindowed,
    GlobalPool,
    Identity,
    Join,
    Layout,
    Map,
    MaxPool,
    Op,
    Pad,
    Patches,
    PhaseWise,
    PowerPool,
    Rows,
    Select,
    ShapeOf,
    Sliding,
)
from densify.planning import Network, Plan, Step
from densify.rules.joins import crops, spreads

_IN_PLACE = {operator.iadd, operator.isub, operator.imul, operator.itruediv}
_CONV_ARGUMENTS = "input weight bias stride padding dilation groups"


class Writer:
    """Copies a graph node by node; what a rule changed goes through the writer of its op.

    Args:
        graph: the original's, whose nodes the plan speaks of.
        root: the module tree that it was traced from.
        full: the network as read, before a head option cut it.
    """

    writers: ClassVar[Mapping[type[Op], Callable[[Any, fx.Node, Step, Any], fx.Node | None]]] = {}

    def __init__(self, graph: fx.Graph, root: nn.Module, full: Network, plan: Plan) -> None:
        self.old, self.root, self.full, self.plan = graph, root, full, plan
        self.new = fx.Graph()
        self.env: dict[fx.Node, fx.Node] = {}  # tensors in the form in which the dense network has them
        self.fragments: dict[fx.Node, fx.Node] = {}  # the same with phases in the batch, where made or asked for
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
                self.fragment(node)
        self.new.eliminate_dead_code(is_impure_node=self.has_effect)
        self.new.lint()
        return self.new

    def has_effect(self, node: fx.Node) -> bool:
        """Whether a node does something even where nobody uses its result: guards, and ops that work in place."""
        if node.op == "call_module":
            return bool(getattr(self.root.get_submodule(str(node.target)), "inplace", False))
        name = getattr(node.target, "__name__", str(node.target))
        in_place = name.endswith("_") or node.kwargs.get("inplace") is True or node.target in _IN_PLACE
        return node.op in ("placeholder", "output") or in_place or name in ("guard", "_assert", "_assert_is_none")

    def copy(self, node: fx.Node, **replaced: fx.Node) -> fx.Node:
        """The node as it is; `replaced` maps names of its inputs to other new nodes."""
        return self.new.node_copy(
            node, lambda source: replaced[source.name] if source.name in replaced else self.space(source)
        )

    def space(self, node: fx.Node) -> fx.Node:
        """A tensor in the form in which the dense network has it."""
        if node not in self.env:
            self.env[node] = self.call(
                layers.batch_to_space, self.fragments[node], est_of(self.plan.steps[node.name].map)
            )
        return self.env[node]

    def fragment(self, node: fx.Node) -> fx.Node:
        """A tensor with its phases in the batch, or what a program computes from the shape of such a tensor."""
        if node not in self.fragments:
            step = self.plan.steps.get(node.name)
            if step is not None and not isinstance(step.op, ShapeOf):
                self.fragments[node] = self._into_fragments(node, step.map)
            elif any(source.name in self.plan.steps for source in _ancestors(node)):
                self.fragments[node] = self.new.node_copy(node, self.fragment)
            else:
                self.fragments[node] = self.env[node]
        return self.fragments[node]

    def _into_fragments(self, node: fx.Node, one: Map) -> fx.Node:
        made = self.env[node]
        if set(est_of(one)) != {1}:
            made = self.call(layers.space_to_batch, made, est_of(one))
        return self.call(layers.vectors, made) if one.collapsed else made

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
                made = self.call(_item, shape, slice(2, None))
            else:
                made = self.original_sizes(step.site.inputs[0])
            self.sizes[key] = made
        return self.sizes[key]

    def output(self, node: fx.Node) -> None:
        """The outputs in the original's structure, as the head option has them."""
        moved = {
            self.by_name[key]: self.by_name[self.plan.network.outputs[name]] for name, key in self.full.outputs.items()
        }

        def place(source: fx.Node) -> fx.Node:
            kept = moved.get(source, source)
            if kept.name not in self.plan.steps:
                return self.space(kept)
            made = self.finish(self.space(kept), self.plan.steps[kept.name])
            if source in moved and self.plan.head == "average":
                return self.call(layers.average, made, len(self.plan.steps[kept.name].map.axes))
            return made

        self.new.output(fx.map_arg(node.args[0], place))


def _ancestors(node: fx.Node) -> set[fx.Node]:
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
    if all(window.untouched for window in op.windows) and not linear:
        return writer.copy(node)
    x = writer.space(writer.by_name[step.site.inputs[0]])
    if isinstance(op.op, Conv):
        return _conv(writer, node, op, x)
    if isinstance(op.op, Patches):
        return writer.call(layers.epatches, x, op.windows)
    if isinstance(op.op, Sliding):
        return _sliding(writer, node, step, op.windows, op.op)
    if isinstance(op.op, PowerPool):
        return writer.call(layers.epower_pool, x, op.windows, op.op.norm)
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


def _phase_wise(writer: Writer, node: fx.Node, step: Step, op: Op) -> fx.Node | None:
    """The op itself on fragments. Nothing moves back into space before somebody needs it there: wraps that follow on
    each other cancel."""
    source = step.sources[0]
    if all(one.untouched for one in (*step.sources, step.map)) and all(
        writer.by_name[key] in writer.env for key in step.site.inputs
    ):
        return writer.copy(node)
    if writer.plan.padding == "full" or set(est_of(source)) == {1}:
        writer.fragments[node] = writer.new.node_copy(node, writer.fragment)
        return None
    key, est = step.site.inputs[0], est_of(source)
    x, sizes = writer.space(writer.by_name[key]), writer.original_sizes(key)
    first = tuple(axis.lattice.offset - axis.lattice.offset % axis.lattice.stride for axis in source.axes)
    fragments = writer.call(layers.space_to_batch, x, est, sizes, first)
    kept = writer.call(layers.complete_phases, x, est, sizes, first)
    return writer.call(layers.batch_to_space, writer.copy(node, **{key: fragments}), est, kept)


def _scaled(writer: Writer, amount: Any, est: int) -> Any:
    """A number of samples of the original, or the node that computes it, in dense samples."""
    if amount is None or est == 1 or amount == 0:
        return fx.map_arg(amount, writer.space)
    return amount * est if isinstance(amount, int) else writer.call(operator.mul, writer.space(amount), est)


def _pad(writer: Writer, node: fx.Node, step: Step, op: Op) -> fx.Node:
    """The same padding, e times as wide."""
    est = est_of(step.sources[0])
    if set(est) == {1}:
        return writer.copy(node)
    module = writer.root.get_submodule(str(node.target)) if node.op == "call_module" else None
    value = getattr(module, "value", 0.0)
    amounts: Any = getattr(module, "padding", None)
    if module is None:
        given = Call(node, None, ()).arguments("input pad mode value", value=None)
        amounts, value = given["pad"], given["value"]
    scaled = [_scaled(writer, amount, est[-1 - i // 2]) for i, amount in enumerate(amounts)]
    return writer.call(F.pad, writer.space(writer.by_name[step.site.inputs[0]]), scaled, "constant", value)


def _crop(writer: Writer, node: fx.Node, step: Step, op: Op) -> fx.Node:
    """The same slices, their bounds times e."""
    est = est_of(step.sources[0])
    entries = spread(node.args[1], 2 + len(est)) or []
    bounds = [(entry.start, entry.stop) for entry in entries[2:]]
    scaled = [slice(*(_scaled(writer, one, e) for one in pair)) for pair, e in zip(bounds, est, strict=True)]
    x = writer.space(writer.by_name[step.site.inputs[0]])
    return writer.call(operator.getitem, x, (slice(None), slice(None), *scaled))


def _select(writer: Writer, node: fx.Node, step: Step, op: Op) -> fx.Node:
    """The op itself on the first phases."""
    assert isinstance(op, Select)
    key = step.site.inputs[0]
    x = writer.space(writer.by_name[key])
    x = writer.call(layers.first_phases, x, est_of(step.sources[0]), op.kept)
    if set(op.kept) == {1}:
        return writer.copy(node, **{key: x})
    made = writer.copy(node, **{key: writer.call(layers.space_to_batch, x, op.kept)})
    return writer.call(layers.batch_to_space, made, op.kept)


def joined(writer: Writer, node: fx.Node, operands: Mapping[str, fx.Node]) -> fx.Node:
    """The join itself. A cat's dim may count from the end, where a vector has other axes here."""
    if node.target not in (torch.cat, torch.concat):
        return writer.copy(node, **operands)
    tensors = Call(node, None, ()).arguments("tensors dim")["tensors"]
    return writer.call(torch.cat, fx.map_arg(tensors, lambda source: operands[source.name]), 1)


def _join(writer: Writer, node: fx.Node, step: Step, op: Op) -> fx.Node:
    keys, sources = step.site.inputs, step.sources
    operands = {key: writer.space(writer.by_name[key]) for key in keys}
    if all(source.untouched for source in sources):
        return writer.copy(node)
    if len(keys) == 1:
        return joined(writer, node, operands)
    if any(spreads(axes) for axes in zip(*(source.axes for source in sources), strict=True)):
        wide = next(
            k for source, k in zip(sources, keys, strict=True) if not all(axis.statistic for axis in source.axes)
        )
        for key, source in zip(keys, sources, strict=True):
            if all(axis.statistic for axis in source.axes):
                operands[key] = writer.call(layers.tile, operands[key], operands[wide], est_of(source))
    if writer.plan.padding != "full" and any(axis.lattice.stride > 1 for axis in step.map.axes):
        aligned = writer.call(layers.align, tuple(operands.values()), tuple(crops(sources)))
        operands = {key: writer.new.call_function(_item, (aligned, i)) for i, key in enumerate(keys)}
    return joined(writer, node, operands)


def _shape_of(writer: Writer, node: fx.Node, step: Step, op: Op) -> fx.Node | None:
    return shape_of(writer, node, step, est_of(step.sources[0]))


def shape_of(writer: Writer, node: fx.Node, step: Step, est: tuple[int, ...]) -> fx.Node | None:
    """The original's shape of a map whose samples lie `est` apart."""
    source = step.sources[0]
    if step.site.layout is Layout.MIXED and not source.untouched:
        return None
    asked = node.args[1] if node.target is getattr else getattr(node.target, "__name__", node.target)
    if source.untouched:
        return writer.copy(node)
    x = writer.space(writer.by_name[step.site.inputs[0]])
    if asked in ("dim", "ndim", "ndimension"):
        return writer.call(layers.original_dim, x, source.collapsed)
    flattened = tuple(axis.pending for axis in source.axes) if source.collapsed else None
    shape = writer.call(layers.original_shape, x, est, flattened)
    dims = [*node.args[1:], *node.kwargs.values()] if asked == "size" else []
    return writer.new.call_function(_item, (shape, dims[0])) if dims else shape


def _item(values: Any, index: int | slice) -> Any:
    """One entry of a sequence, or some."""
    return values[index]


class DilatedWriter(Writer):
    """The form "dilated": eConv and ePool, phase by phase where an op has no dilated form."""

    writers: ClassVar = {
        DenseWindowed: windowed,
        Identity: identity,
        Join: _join,
        Pad: _pad,
        Crop: _crop,
        Select: _select,
        PhaseWise: _phase_wise,
        Rows: rows,
        ShapeOf: _shape_of,
    }
