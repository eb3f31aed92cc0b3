"""What a network offers to choose: every start layer and output stride that make a difference, each planned.

Nothing here imports torch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, overload

from densify.choose import Choice, Strided, choose, strided_layers, thresholds
from densify.errors import RefusedError
from densify.heads import apply_head
from densify.planning import walk
from densify.plans import Chosen, Network, Plan
from densify.shown import Shown

if TYPE_CHECKING:
    from rich.console import Console


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


@dataclass(frozen=True, repr=False)
class Offers(Shown, Sequence[Offer]):
    """A sequence of offers, the fewest strides first. Printed or shown, it is the table of `densify plan MODEL`.

    Attributes:
        survey: the original's own geometry.
        found: the offers.
    """

    survey: Plan
    found: tuple[Offer, ...]

    @overload
    def __getitem__(self, index: int) -> Offer: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Offer]: ...
    def __getitem__(self, index: int | slice) -> Offer | Sequence[Offer]:
        return self.found[index]

    def __len__(self) -> int:
        return len(self.found)

    def __str__(self) -> str:
        return self._text()

    def __repr__(self) -> str:
        ways = [
            f"start={offer.starts[0]!r}" if offer.starts else f"output_stride={offer.output_stride}" for offer in self
        ]
        return f"Offers({', '.join(ways)})"

    def to_dict(self) -> dict[str, Any]:
        """As `densify plan MODEL --json` has it: plain numbers, texts, lists and dicts."""
        from densify.facts import offered, plain

        facts: dict[str, Any] = plain(offered(self))
        return facts

    def _show(self, screen: Console) -> None:
        from densify.display_choices import show_offers

        show_offers(self.to_dict(), screen)


def offers(
    network: Network, survey: Plan, *, padding: str = "full", head: str = "dense", merge: str = "select"
) -> Offers:
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
    return Offers(survey, tuple(found))


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
