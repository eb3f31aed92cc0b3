"""What merge="average" means, by brute force: the original's own ops on every shift, each result put in its place.

This is for verification: slow and plain, and shares no code with the layers that it checks.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from itertools import product
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx

from densify.conversion import Dense
from densify.graphs.fx.probe import run_at
from densify.graphs.fx.readers.upsampling import transposed_arguments
from densify.graphs.fx.registry import Call
from densify.maps import Map, Merged
from densify.ops import (
    DenseWindowed,
    Merge,
    ShapeOf,
    Transposed,
    Unpool,
)
from densify.planning import Step

_TRANSPOSED = {1: F.conv_transpose1d, 2: F.conv_transpose2d, 3: F.conv_transpose3d}
Parts = dict[tuple[int, ...], Tensor]


def borders(dense: Dense) -> dict[str, str]:
    """Names and keys of the tensors in front of all merges, with which :class:`Shifts` begins."""
    steps = dense.plan.steps
    needed = set[str]().union(*(dense.plan.network.ancestors(key) for key in dense.plan.network.outputs.values()))
    behind = [step for key, step in steps.items() if key in needed and step.map.merged is not Merged.NOT]
    keys = dict.fromkeys(key for step in behind for key in step.site.inputs)
    fronts = [
        steps[key] for key in keys if steps[key].map.merged is Merged.NOT and not isinstance(steps[key].op, ShapeOf)
    ]
    layers = Counter(step.site.layer for step in fronts)
    return {
        step.site.layer if layers[step.site.layer] == 1 else f"{step.site.layer} ({step.site.key})": step.site.key
        for step in fronts
    }


class Shifts:
    """The part of a network behind its merges, on every phase by itself.

    Args:
        dense: a network with merges that average.
    """

    def __init__(self, dense: Dense) -> None:
        self.dense, self.steps = dense, dense.plan.steps
        self.graph = dense.conversion.graphs[False]
        self.nodes = {node.name: node for node in self.graph.nodes}

    @property
    def ends(self) -> dict[str, str]:
        """Names and keys of the tensors to compare: the outputs, or where ops between have no shifts, merges."""
        made = self._reached()
        outputs = self.dense.plan.network.outputs
        merged = {name: key for name, key in outputs.items() if self.steps[key].map.merged is not Merged.NOT}
        ends = {name: key for name, key in merged.items() if key in made}
        if ends != merged:
            ends |= {self.steps[key].site.layer: key for key in made if isinstance(self.steps[key].op, Merge)}
        return ends

    def _reached(self) -> list[str]:
        """Keys of the tensors behind merges that follow from the shifts alone, in order.

        What does not: a stride behind a merge mixes phases, and a map that is resampled is no shift's.
        """
        made: list[str] = []
        for key, step in self.steps.items():
            if step.map.merged is Merged.NOT or isinstance(step.op, ShapeOf):
                continue
            mixes = isinstance(step.op, DenseWindowed) and any(
                (window.stride > 1 and window.est > 1) or window.chosen for window in step.op.windows
            )
            between = isinstance(step.op, Merge) and step.op.how == "resample"
            known = all(self._is_known(source) or source in made for source in step.site.inputs)
            if known and not (mixes or between):
                made.append(key)
        return made

    def _is_known(self, key: str) -> bool:
        return self.steps[key].map.merged is Merged.NOT or isinstance(self.steps[key].op, ShapeOf)

    def __call__(self, image: Tensor, given: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The tensors of :attr:`ends`.

        Args:
            image: [B, C, *spatial].
            given: the dense maps in front of the merges by key, see :func:`borders`.
        """
        numbers = run_at(self.graph, self.dense.conversion.root, image.shape, dtype=image.dtype)
        found = {key: _taken_apart(value, self.steps[key].map) for key, value in given.items()}
        for key in self._reached():
            found[key] = self._made(self.steps[key], found, numbers)
        return {name: _together(found[key], self.steps[key].map) for name, key in self.ends.items()}

    def _made(self, step: Step, found: Mapping[str, Parts], numbers: Mapping[fx.Node, Any]) -> Parts:
        """One op on every phase; merges at their places."""
        merge = step.op if isinstance(step.op, Merge) else None
        if merge is None:
            counts = [axis.lattice.stride for axis in step.map.axes]
        else:
            counts = [spread.est if merge.how == "average" else spread.left for spread in merge.spreads]
        sources = [key for key in step.site.inputs if key in found]
        parts = (
            (phase, self._run(step, {key: _phase_of(found[key], phase, step) for key in sources}, numbers))
            for phase in product(*map(range, counts))
        )
        if merge is None:
            return dict(parts)
        whole = _placed(parts, merge, counts)
        if isinstance(merge.op, Transposed) and merge.how == "average":
            whole = self._finished(step, merge, merge.op, whole)
        return _taken_apart(whole, step.map)

    def _run(self, step: Step, own: Mapping[str, Tensor], numbers: Mapping[fx.Node, Any]) -> Tensor:
        node = self.nodes[step.site.key]

        def value(source: fx.Node) -> Any:
            if source.name in own:
                return own[source.name]
            if source.op == "get_attr":
                return _attribute(self.dense.source, str(source.target))
            known = numbers.get(source)
            return known if known is not None and not isinstance(known, Tensor) else call(source)

        def call(source: fx.Node) -> Any:
            args, kwargs = fx.map_arg((source.args, source.kwargs), value)
            if source.op == "call_module":
                return self.dense.source.get_submodule(str(source.target))(*args, **kwargs)
            if source.op == "call_method":
                return getattr(args[0], str(source.target))(*args[1:], **kwargs)
            assert callable(source.target)
            return source.target(*args, **kwargs)

        if isinstance(step.op, Merge) and isinstance(step.op.op, Transposed) and step.op.how == "average":
            return self._uncropped(step, step.op.op, own[step.site.inputs[0]], value)
        made: Tensor = call(node)
        return made

    def _given(self, step: Step) -> dict[str, Any]:
        node = self.nodes[step.site.key]
        module = self.dense.source.get_submodule(str(node.target)) if node.op == "call_module" else None
        return transposed_arguments(Call(node, module, (self.nodes[step.site.inputs[0]],)))

    def _uncropped(self, step: Step, op: Transposed, x: Tensor, value: Any) -> Tensor:
        """A transposed convolution before its padding is cropped and its bias added."""
        given = fx.map_arg(self._given(step), value)
        strides, dilations = [w.stride for w in op.windows], [w.dilation for w in op.windows]
        extra = list(op.extra)
        if given["output_size"] is not None:
            wanted = list(given["output_size"])[-len(extra) :]
            sizes = zip(x.shape[2:], wanted, op.windows, strict=True)
            extra = [m - ((n - 1) * w.stride - 2 * w.low + w.span + 1) for n, m, w in sizes]
        return _TRANSPOSED[len(op.windows)](x, given["weight"], None, strides, 0, extra, given["groups"], dilations)

    def _finished(self, step: Step, merge: Merge, op: Transposed, y: Tensor) -> Tensor:
        for axis, (window, spread) in enumerate(zip(op.windows, merge.spreads, strict=True)):
            crop = window.low * spread.left
            y = y.narrow(2 + axis, crop, y.shape[2 + axis] - 2 * crop)
        bias = fx.map_arg(self._given(step)["bias"], lambda node: _attribute(self.dense.source, str(node.target)))
        return y if bias is None else y + bias.view(-1, *[1] * len(op.windows))


def _attribute(root: Any, path: str) -> Any:
    for name in path.split("."):
        root = getattr(root, name)
    return root


def _taken_apart(x: Tensor, one: Map) -> Parts:
    """The phases of a dense map."""
    found = {}
    for phase in product(*(range(axis.lattice.stride) for axis in one.axes)):
        index: Any = (..., *(slice(r, None, axis.lattice.stride) for r, axis in zip(phase, one.axes, strict=True)))
        found[phase] = x[index]
    return found


def _together(parts: Parts, one: Map) -> Tensor:
    some = next(iter(parts.values()))
    sizes = [n * axis.lattice.stride for n, axis in zip(some.shape[2:], one.axes, strict=True)]
    whole = some.new_empty((*some.shape[:2], *sizes))
    for phase, part in parts.items():
        index: Any = (..., *(slice(r, None, axis.lattice.stride) for r, axis in zip(phase, one.axes, strict=True)))
        whole[index] = part
    return whole


def _phase_of(parts: Parts, phase: tuple[int, ...], step: Step) -> Tensor:
    """The phase of a map that belongs to one of the result: the same, or of a denser map that of the same shift."""
    have = [1 + max(column) for column in zip(*parts, strict=True)]
    merges = isinstance(step.op, Merge)
    est = have if merges else [axis.lattice.stride for axis in step.map.axes]
    return parts[tuple(r * (h // e) for r, h, e in zip(phase, have, est, strict=True))]


def _placed(parts: Iterable[tuple[tuple[int, ...], Tensor]], merge: Merge, counts: Sequence[int]) -> Tensor:
    """Every shift's result at its place, and the mean of those that reach a sample; in front of all, the next."""
    total = count = torch.empty(0)
    sizes: list[int] = []
    ends: list[int] = []
    for phase, part in parts:
        if not sizes:
            ends = [spread.left * n for spread, n in zip(merge.spreads, part.shape[2:], strict=True)]
            sizes = [end + max(spread.firsts) for spread, end in zip(merge.spreads, ends, strict=True)]
            total, count = part.new_zeros((*part.shape[:2], *sizes)), part.new_zeros((1, 1, *sizes))
        place: Any = [...]
        begun: Any = [...]
        for r, spread, n, size in zip(phase, merge.spreads, part.shape[2:], sizes, strict=True):
            start = min(r * spread.hop, size)
            # Where indices put the samples, they are not late, but nothing comes in front of the first window.
            late = start // spread.left if isinstance(merge.op, Unpool) else 0
            some = min(n - late, len(range(start, size, spread.left)))
            place.append(slice(start, start + some * spread.left, spread.left))
            begun.append(slice(late, late + some))
        total[tuple(place)] += part[tuple(begun)]
        count[tuple(place)] += 1
    total /= count.clamp(min=1)
    for axis, (spread, size, phases) in enumerate(zip(merge.spreads, sizes, counts, strict=True)):
        starts = [r * spread.hop for r in range(phases)]
        source = list(range(size))
        for t in range(min(max(starts), size)):
            later = range(t, size, spread.left)
            source[t] = next((s for s in later if any(s >= b and (s - b) % spread.left == 0 for b in starts)), t)
        total = total.index_select(2 + axis, torch.tensor(source[: ends[axis]], device=total.device))
    return total
