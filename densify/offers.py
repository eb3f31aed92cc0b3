"""What a network offers to choose: every start layer and output stride that make a difference, each planned.

Nothing here imports torch.
"""

from __future__ import annotations

from dataclasses import dataclass

from densify.choose import Choice, Strided, choose, strided_layers, thresholds
from densify.errors import RefusedError
from densify.heads import apply_head
from densify.planning import walk
from densify.plans import Chosen, Network, Plan


@dataclass(frozen=True)
class Offer:
    """One set of strides that can be removed, and what becomes of the network.

    Attributes:
        layers: the layers that lose a stride, in graph order.
        starts: what to give as ``start=`` for it, in graph order; () where no start layer chooses exactly these.
        output_stride: what to give as ``output_stride=`` for it, or None where none does.
        plan: the conversion, or why there is none.
    """

    layers: tuple[str, ...]
    starts: tuple[str, ...]
    output_stride: int | None
    plan: Plan | RefusedError


def offers(
    network: Network, survey: Plan, *, padding: str = "full", head: str = "dense", merge: str = "select"
) -> list[Offer]:
    """Every set of strides that a start layer or an output stride chooses, the smallest first.

    Args:
        network: of eval mode.
        survey: its own geometry.

    Raises:
        RefusedError: the network has no head of that kind.
    """
    cut, layers = apply_head(network, head), strided_layers(survey)
    starts, strides = _starts(layers, survey), _output_strides(layers, survey)
    found = []
    for chosen in sorted({*starts, *strides}, key=len):
        plan: Plan | RefusedError
        try:
            plan = walk(cut, chosen, padding=padding, head=head, merge=merge)
        except RefusedError as error:
            plan = error
        keys = {key for key, _ in chosen}
        names = tuple(dict.fromkeys(layer.site.layer for layer in layers if layer.site.key in keys))
        found.append(Offer(names, starts.get(chosen, ()), strides.get(chosen), plan))
    return found


def _starts(layers: list[Strided], survey: Plan) -> dict[Chosen, tuple[str, ...]]:
    """By the strides that they choose, the strided layers to start from."""
    found: dict[Chosen, tuple[str, ...]] = {}
    for name in dict.fromkeys(layer.site.layer for layer in layers):
        choice = Choice(start=name)
        chosen = choose(choice, survey, thresholds(choice, survey))
        found[chosen] = (*found.get(chosen, ()), name)
    return found


def _output_strides(layers: list[Strided], survey: Plan) -> dict[Chosen, int]:
    """By the strides that they choose, the steps to keep to: 1, and those that the layers lead to."""
    steps = {1, *(int(step * stride) for layer in layers for _, step, stride in layer.axes)}
    found = {choose(Choice(output_stride=step), survey, None): step for step in sorted(steps) if step}
    return {chosen: step for chosen, step in found.items() if chosen}
