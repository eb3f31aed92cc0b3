"""What lies behind merges, by brute force: the original's own ops on every phase, merges put together plainly."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import product
from typing import Protocol

import torch.nn.functional as F
from torch import Tensor

from densify.maps import Layout, Merged
from densify.ops import DenseWindowed, Interpolation, Merge, ShapeOf, Transposed
from densify.placing import Parts, Phase, placed, read_between, taken_apart, together
from densify.plans import Plan, Step
from densify.rules.joins import common, phases_to_take

_TRANSPOSED = {1: F.conv_transpose1d, 2: F.conv_transpose2d, 3: F.conv_transpose3d}


@dataclass(frozen=True)
class Kernel:
    """What a transposed convolution computes with.

    Attributes:
        weight: [C, K / groups, *spatial].
        bias: [K], or None.
        groups: of channels.
        extra: samples that it makes more than its windows reach, per spatial axis.
    """

    weight: Tensor
    bias: Tensor | None
    groups: int
    extra: tuple[int, ...]


class Ops(Protocol):
    """An original's ops by themselves, as they are for images of one shape."""

    def sizes(self, key: str) -> tuple[int, ...]:
        """The spatial sizes of what an op makes."""

    def run(self, key: str, given: Mapping[str, Tensor]) -> Tensor:
        """What an op makes of these tensors, by key; the others that it reads follow from sizes and weights.

        Maps are [B, C, *spatial].
        """

    def kernel(self, key: str, given: Mapping[str, Tensor]) -> Kernel:
        """What a transposed convolution computes with when it reads these tensors."""


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
    """The part of a network behind its merges, on every phase by itself.

    Args:
        plan: the dense network's.
        ops: the original's, for an image.
    """

    def __init__(self, plan: Plan, ops: Callable[[Tensor], Ops]) -> None:
        self.plan, self.steps, self.ops = plan, plan.steps, ops
        self.reached = self._reached()

    @property
    def ends(self) -> dict[str, str]:
        """Names and keys of the tensors to compare: the outputs, or where a stride mixes phases before, the merges."""
        outputs = self.plan.network.outputs
        merged = {name: key for name, key in outputs.items() if self.steps[key].map.merged is not Merged.NOT}
        ends = {name: key for name, key in merged.items() if key in self.reached}
        if ends != merged:
            ends |= {self.steps[key].site.layer: key for key in self.reached if isinstance(self.steps[key].op, Merge)}
        return ends

    def _reached(self) -> list[str]:
        """Keys of the tail that follow from phases alone: a stride makes or mixes them, a window of a head has none."""
        behind, made = tail(self.plan), list[str]()
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
        """The tensors of :attr:`ends`; arguments as for :meth:`tensors`."""
        found = self.tensors(image, given)
        return {name: found[key] for name, key in self.ends.items()}

    def tensors(self, image: Tensor, given: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """All that follows from phases alone, by key.

        Args:
            image: [B, C, *spatial].
            given: the dense maps in front of the merges by key, see :func:`borders`.
        """
        ops = self.ops(image)
        found = {key: taken_apart(value, self.steps[key].map) for key, value in given.items()}
        for key in self.reached:
            make = _merge if isinstance(self.steps[key].op, Merge) else _each
            found[key] = make(self.steps[key], found, ops)
        return {key: together(found[key], self.steps[key].map) for key in self.reached}


def _each(step: Step, found: Mapping[str, Parts], ops: Ops) -> Parts:
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
        made[phase] = ops.run(step.site.key, own)
    return made


def _merge(step: Step, found: Mapping[str, Parts], ops: Ops) -> Parts:
    """An upsampling: what the original makes of every phase at its place, or the dense map read in between."""
    merge, key = step.op, step.site.key
    assert isinstance(merge, Merge)
    if isinstance(merge.op, Interpolation) and merge.how == "resample":
        x = together(found[step.site.inputs[0]], step.sources[0])
        return taken_apart(read_between(x, merge, merge.op, ops.sizes(key)), step.map)
    averaged = isinstance(merge.op, Transposed) and merge.how == "average"
    read = step.site.inputs[:1] if isinstance(merge.op, Interpolation) else step.site.inputs

    def run(phase: Phase) -> Tensor:
        own = {one: found[one][phase] for one in read}
        return _uncropped(step, own, ops) if averaged else ops.run(key, own)

    counts = [spread.est if merge.how == "average" else spread.left for spread in merge.spreads]
    whole = placed(((phase, run(phase)) for phase in product(*map(range, counts))), merge, counts)
    if averaged:
        first = {one: found[one][(0,) * len(counts)] for one in read}
        whole = _finished(step, merge, whole, ops.kernel(key, first).bias)
    return taken_apart(whole, step.map)


def _uncropped(step: Step, own: Mapping[str, Tensor], ops: Ops) -> Tensor:
    """A transposed convolution of one phase, before its padding is cropped and its bias added."""
    op, kernel = step.site.op, ops.kernel(step.site.key, own)
    assert isinstance(op, Transposed)
    strides, dilations = [w.stride for w in op.windows], [w.dilation for w in op.windows]
    x, extra = own[step.site.inputs[0]], kernel.extra
    return _TRANSPOSED[len(extra)](x, kernel.weight, None, strides, 0, extra, kernel.groups, dilations)


def _finished(step: Step, merge: Merge, y: Tensor, bias: Tensor | None) -> Tensor:
    op, crops = step.site.op, list[int]()
    assert isinstance(op, Transposed)
    for window, spread in zip(op.windows, merge.spreads, strict=True):
        crops = [-window.low * spread.left, -window.high * spread.left, *crops]
    y = F.pad(y, crops)
    return y if bias is None else y + bias.view(-1, *[1] * len(op.windows))
