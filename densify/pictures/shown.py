"""What is shown of an output of many channels. Nothing here imports torch."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from densify.errors import UsageError
from densify.pictures.colours import Numbers
from densify.pictures.placed import PlacedMap

KINDS = ("channel", "class", "sum", "argmax")


@dataclass(frozen=True)
class Shown:
    """One number per sample of a map [C, h, w].

    Attributes:
        kind: "channel": its numbers; "class": its share in the softmax over all channels; "sum": of all channels, as in
            the paper's localisation; "argmax": the channel with the largest number, a label.
        index: of the channel or class.
        why: what else there is to say of the choice.
    """

    kind: str
    index: int | None = None
    why: str = ""

    @staticmethod
    def parse(text: str) -> Shown:
        """Of a text such as "sum", "argmax", "channel:3" or "class:3".

        Raises:
            UsageError: it is none.
        """
        kind, _, index = text.partition(":")
        indexed = kind in ("channel", "class")
        if kind not in KINDS or indexed != index.isdecimal() or (index and not indexed):
            raise UsageError(f'show="{text}": has to be "sum", "argmax", "channel:N" or "class:N"')
        return Shown(kind, int(index) if index else None)

    @property
    def labels(self) -> bool:
        """Whether the numbers are labels, which have no order."""
        return self.kind == "argmax"

    def check(self, channels: int, output: str) -> None:
        """Refuse a channel that is not there.

        Raises:
            UsageError: with those that are.
        """
        if self.index is not None and self.index >= channels:
            raise UsageError(
                f"{self.kind} {self.index}: {output} has {channels} channels; give one from 0 to {channels - 1}"
            )

    def of(self, one: PlacedMap) -> PlacedMap:
        """The map [1, h, w] of what is shown."""
        return one.with_values(self._values(one.values)[None])

    def _values(self, values: Numbers) -> Numbers:
        made: Numbers
        if self.kind == "sum":
            made = values.sum(0)
        elif self.kind == "argmax":
            made = values.argmax(0).astype(np.float64)
        elif self.kind == "channel":
            made = values[self.index]
        else:
            with np.errstate(invalid="ignore"):
                shares = np.exp(values - values.max(0))
                made = shares[self.index] / shares.sum(0)
        return made

    def words(self, channels: int) -> str:
        """What the numbers are."""
        told = {
            "channel": f"channel {self.index} of {channels}",
            "class": f"class {self.index}: softmax over {channels} channels",
            "sum": f"sum over {channels} channels",
            "argmax": f"the largest of {channels} channels",
        }[self.kind]
        return f"{told}, {self.why}" if self.why else told


def default(one: PlacedMap, *, strength: bool) -> Shown:
    """What is shown where nobody says: of feature maps the sum, of a map with a sample for each pixel the labels, else
    the channel whose numbers vary most.

    Args:
        one: the dense map.
        strength: whether the channels are features, or the main object is looked for.
    """
    channels = one.values.shape[0]
    if channels == 1:
        return Shown("channel", 0)
    if strength:
        return Shown("sum")
    if max(one.step) <= 1:
        return Shown("argmax")
    spread = np.nan_to_num(one.values.reshape(channels, -1).std(1), nan=-1.0, posinf=-1.0)
    return replace(Shown("channel", int(spread.argmax())), why="which varies most")
