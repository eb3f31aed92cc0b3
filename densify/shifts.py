"""What lies behind merges, by brute force: the original's own ops on every phase, merges put together plainly."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from itertools import product
from typing import Any

import torch.nn.functional as F
from torch import Tensor, fx

from densify.conversion import Dense
from densify.graphs.fx.probe import run_at
from densify.graphs.fx.readers.upsampling import transposed_arguments
from densify.graphs.fx.registry import Call
from densify.maps import Layout, Merged
from densify.ops import DenseWindowed, Interpolation, Merge, ShapeOf, Transposed
from densify.placing import Parts, Phase, placed, read_between, taken_apart, together
from densify.plans import Plan, Step
from densify.rules.joins import common, phases_to_take

_TRANSPOSED = {1: F.conv_transpose1d, 2: F.conv_transpose2d, 3: F.conv_transpose3d}


def tail(plan: Plan) -> list[str]:
    """Keys of what lies behind merges, in order, and of tensors that are no maps on the way there."""
    steps, network = plan.steps, plan.network
    needed = set[str]().union(*(network.ancestors(key) for key in network.outputs.values()))
    found = {key for key in needed if steps[key].map.merged is not Merged.NOT}
    read = {source for key in found for source in steps[key].site.inputs}
    for key in reversed(list(steps)):
        site = steps[key].site
        if key in read and (site.layout is Layout.MIXED or site.shape is None) and site.op is not None:
            found.add(key)
            read |= set(site.inputs)
    return [key for key in steps if key in found and not isinstance(steps[key].op, ShapeOf)]


def borders(plan: Plan) -> dict[str, str]:
    """Names and keys of the tensors in front of all merges, with which :class:`Shifts` begins."""
    behind = tail(plan)
    keys = dict.fromkeys(source for key in behind for source in plan.steps[key].site.inputs)
    fronts = [plan.steps[key] for key in keys if key not in behind and not isinstance(plan.steps[key].op, ShapeOf)]
    layers = Counter(step.site.layer for step in fronts)
    return {
        step.site.layer if layers[step.site.layer] == 1 else f"{step.site.layer} ({step.site.key})": step.site.key
        for step in fronts
    }


class Shifts:
    """The part of a network behind its merges, on every phase by itself."""

    def __init__(self, dense: Dense) -> None:
        self.dense, self.steps = dense, dense.plan.steps
        self.graph = dense.conversion.graphs[False]
        self.nodes = {node.name: node for node in self.graph.nodes}
        self.reached = self._reached()

    @property
    def ends(self) -> dict[str, str]:
        """Names and keys of the tensors to compare: the outputs, or where a stride mixes phases before, the merges."""
        outputs = self.dense.plan.network.outputs
        merged = {name: key for name, key in outputs.items() if self.steps[key].map.merged is not Merged.NOT}
        ends = {name: key for name, key in merged.items() if key in self.reached}
        if ends != merged:
            ends |= {self.steps[key].site.layer: key for key in self.reached if isinstance(self.steps[key].op, Merge)}
        return ends

    def _reached(self) -> list[str]:
        """Keys of the tail that follow from phases alone: a stride makes or mixes them, a window of a head has none."""
        behind, made = tail(self.dense.plan), list[str]()
        for key in behind:
            step = self.steps[key]
            mixes = isinstance(step.op, DenseWindowed) and any(
                (window.stride > 1 and window.est > 1) or window.chosen for window in step.op.windows
            )
            flat = any(one.collapsed and not all(axis.statistic for axis in one.axes) for one in step.sources)
            known = all(source in made or source not in behind for source in step.site.inputs)
            if known and not mixes and not flat:
                made.append(key)
        return made

    def __call__(self, image: Tensor, given: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The tensors of :attr:`ends`.

        Args:
            image: [B, C, *spatial].
            given: the dense maps in front of the merges by key, see :func:`borders`.
        """
        sizes = run_at(self.graph, self.dense.conversion.root, image.shape, dtype=image.dtype)
        found = {key: taken_apart(value, self.steps[key].map) for key, value in given.items()}
        for key in self.reached:
            step = self.steps[key]
            make = self._merge if isinstance(step.op, Merge) else self._each
            found[key] = make(step, found, sizes)
        return {name: together(found[key], self.steps[key].map) for name, key in self.ends.items()}

    def _each(self, step: Step, found: Mapping[str, Parts], sizes: Mapping[fx.Node, Any]) -> Parts:
        """An op on every phase, with the phases of its operands that have the same shift."""
        wide = [common(axes) for axes in zip(*(source.axes for source in step.sources), strict=True)]
        taken = {
            key: [phases_to_take(*pair) for pair in zip(source.axes, wide, strict=True)]
            for key, source in zip(step.site.inputs, step.sources, strict=True)
            if key in found
        }
        made: Parts = {}
        for phase in product(*(range(axis.lattice.stride) for axis in step.map.axes)):
            own = {
                key: found[key][tuple(each[r] for each, r in zip(phases, phase, strict=True))]
                for key, phases in taken.items()
            }
            made[phase] = self._call(self.nodes[step.site.key], self._values(own, sizes))
        return made

    def _merge(self, step: Step, found: Mapping[str, Parts], sizes: Mapping[fx.Node, Any]) -> Parts:
        """An upsampling: what the original makes of every phase at its place, or the dense map read in between."""
        merge, node = step.op, self.nodes[step.site.key]
        assert isinstance(merge, Merge)
        if isinstance(merge.op, Interpolation) and merge.how == "resample":
            x = together(found[step.site.inputs[0]], step.sources[0])
            return taken_apart(read_between(x, merge, merge.op, sizes[node].shape[2:]), step.map)
        averaged = isinstance(merge.op, Transposed) and merge.how == "average"
        read = step.site.inputs[:1] if isinstance(merge.op, Interpolation) else step.site.inputs

        def run(phase: Phase) -> Tensor:
            value = self._values({key: found[key][phase] for key in read}, sizes)
            made: Tensor = self._uncropped(step, value) if averaged else self._call(node, value)
            return made

        counts = [spread.est if merge.how == "average" else spread.left for spread in merge.spreads]
        whole = placed(((phase, run(phase)) for phase in product(*map(range, counts))), merge, counts)
        if averaged:
            whole = self._finished(step, merge, whole, self._values({}, sizes))
        return taken_apart(whole, step.map)

    def _values(self, own: Mapping[str, Any], sizes: Mapping[fx.Node, Any]) -> Callable[[fx.Node], Any]:
        """What a node is: a phase of a map, a number that follows from sizes, or what the program makes of weights."""

        def value(node: fx.Node) -> Any:
            if node.name in own:
                return own[node.name]
            if node.op == "get_attr":
                return _attribute(self.dense.source, str(node.target))
            known = sizes.get(node)
            return known if known is not None and not isinstance(known, Tensor) else self._call(node, value)

        return value

    def _call(self, node: fx.Node, value: Callable[[fx.Node], Any]) -> Any:
        args, kwargs = fx.map_arg((node.args, node.kwargs), value)
        if node.op == "call_module":
            return self.dense.source.get_submodule(str(node.target))(*args, **kwargs)
        if node.op == "call_method":
            return getattr(args[0], str(node.target))(*args[1:], **kwargs)
        assert callable(node.target)
        return node.target(*args, **kwargs)

    def _given(self, step: Step, value: Callable[[fx.Node], Any], *names: str) -> dict[str, Any]:
        """Arguments of a transposed convolution."""
        node = self.nodes[step.site.key]
        module = self.dense.source.get_submodule(str(node.target)) if node.op == "call_module" else None
        given = transposed_arguments(Call(node, module, (self.nodes[step.site.inputs[0]],)))
        return {name: fx.map_arg(given[name], value) for name in names}

    def _uncropped(self, step: Step, value: Callable[[fx.Node], Any]) -> Tensor:
        """A transposed convolution of one phase, before its padding is cropped and its bias added."""
        op, x = step.site.op, value(self.nodes[step.site.inputs[0]])
        assert isinstance(op, Transposed)
        given = self._given(step, value, "weight", "groups", "output_size")
        extra = list(op.extra)
        if given["output_size"] is not None:
            wanted = list(given["output_size"])[-len(extra) :]
            pairs = zip(x.shape[2:], wanted, op.windows, strict=True)
            extra = [m - ((n - 1) * w.stride - 2 * w.low + w.span + 1) for n, m, w in pairs]
        strides, dilations = [w.stride for w in op.windows], [w.dilation for w in op.windows]
        return _TRANSPOSED[len(extra)](x, given["weight"], None, strides, 0, extra, given["groups"], dilations)

    def _finished(self, step: Step, merge: Merge, y: Tensor, value: Callable[[fx.Node], Any]) -> Tensor:
        op = step.site.op
        assert isinstance(op, Transposed)
        for axis, (window, spread) in enumerate(zip(op.windows, merge.spreads, strict=True)):
            crop = window.low * spread.left
            y = y.narrow(2 + axis, crop, y.shape[2 + axis] - 2 * crop)
        bias = self._given(step, value, "bias")["bias"]
        return y if bias is None else y + bias.view(-1, *[1] * len(op.windows))


def _attribute(root: Any, path: str) -> Any:
    for name in path.split("."):
        root = getattr(root, name)
    return root
