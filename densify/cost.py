"""What a plan costs, from shapes alone: arithmetic and memory. Nothing here imports torch."""

from __future__ import annotations

from math import prod
from typing import TYPE_CHECKING, NamedTuple

from densify.lattice import Axis
from densify.ops import Flatten, Identity, Merge, Op, Other, Same, Transposed, Unflatten

if TYPE_CHECKING:
    from densify.plans import Plan, Step

FLOPS = 2
"""Floating-point operations of one multiply-addition."""

_BYTES = 4  # of a number in float32
_VIEWS = (Flatten, Unflatten, Same)


class Cost(NamedTuple):
    """A figure of the original, and that of the dense network."""

    original: int
    dense: int


def work(step: Step) -> Cost:
    """Multiply-additions per image of one layer: of convolutions, transposed ones and Linear layers; of others 0."""
    site = step.site
    if isinstance(site.op, Other):
        before, after = (prod(getattr(axis, one) for axis in step.map.axes) for one in ("size", "dense"))
        return Cost(site.work, site.work * after // before)
    axes = (step.sources[0] if isinstance(site.op, Transposed) else step.map).axes if site.work else ()
    return Cost(site.work * prod(axis.size for axis in axes), site.work * prod(_computed(axes, step.op)))


def peak_memory(plan: Plan) -> Cost:
    """Bytes of the maps that are alive at once, at their most, while the program runs on one image.

    Every op makes one map, in float32, which is there from then on until the last op that reads it has run; the images
    and the outputs stay throughout. Views take nothing, nor do ops that a rule leaves out. Weights, what an op needs
    while it computes (padded or reordered copies), and what training keeps for the gradient are not counted.
    """
    return Cost(*(_peak(plan, dense=dense) for dense in (False, True)))


def _peak(plan: Plan, *, dense: bool) -> int:
    steps = plan.steps
    images = next(step.site.shape[0] for step in steps.values() if step.site.op is None and step.site.shape)
    owner: dict[str, str] = {}
    last: dict[str, str] = {}
    for key, step in steps.items():
        is_view = isinstance(step.site.op, _VIEWS) or (dense and isinstance(step.op, Identity))
        owner[key] = owner[step.site.inputs[0]] if is_view else key
        for read in (key, *step.site.inputs):
            last[owner[read]] = key
    kept = {owner[key] for key in plan.network.outputs.values()} | {k for k, s in steps.items() if s.site.op is None}
    ends: dict[str, list[str]] = {}
    for made, key in last.items():
        ends.setdefault(key, []).append(made)
    alive = most = 0
    sizes = {key: _bytes(step, images, dense=dense) for key, step in steps.items() if owner[key] == key}
    for key in steps:
        alive += sizes.get(key, 0)
        most = max(most, alive)
        alive -= sum(sizes[made] for made in ends.get(key, ()) if made not in kept)
    return most


def _bytes(step: Step, images: int, *, dense: bool) -> int:
    """Of one image's share of a map."""
    count, axes = prod(step.site.shape or (0,)) // images, step.map.axes
    if dense:
        count = count * prod(axis.dense for axis in axes)
        count //= 1 if step.map.pooled else prod(axis.size for axis in axes)
    return _BYTES * count


def _computed(axes: tuple[Axis, ...], op: Op | None) -> list[int]:
    """How many samples an op reads or makes: phases that a merge drops are not computed."""
    if isinstance(op, Merge) and op.how == "select":
        return [axis.size * spread.left for axis, spread in zip(axes, op.spreads, strict=True)]
    return [axis.dense for axis in axes]
