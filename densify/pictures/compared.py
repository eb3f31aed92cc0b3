"""What two networks make of one image, in numbers: their maps, the difference, and where the main object is."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from densify.pictures.answers import Answers
from densify.pictures.colours import Colours, Numbers
from densify.pictures.localisation import Location, locate
from densify.pictures.placed import PlacedMap, coinciding, limits, upsampled
from densify.pictures.shown import Shown

COLOURS = {"first": "orange", "second": "cyan"}
"""Of the boxes and outlines of the two."""


@dataclass(frozen=True, eq=False)
class Compared:
    """What two networks make of one image, and how they differ.

    Attributes:
        names: of the two networks, short ones.
        heading: which networks they are.
        image: the image's name.
        pixels: the image, [H, W, 3].
        pixel_note: what else there is to say of these.
        found: what the two make of it.
        shown: what is shown of them.
        upsampling: how the first map is read where the second one has samples.
        located: whether the main object is looked for.
    """

    names: tuple[str, str]
    heading: str
    image: str
    pixels: Colours
    pixel_note: str
    found: Answers
    shown: Shown
    upsampling: str
    located: bool

    @cached_property
    def first(self) -> PlacedMap:
        """What is shown of the original's map, [1, h, w]."""
        return self.shown.of(self.found.first)

    @cached_property
    def second(self) -> PlacedMap:
        """What is shown of the dense map, [1, h, w]."""
        return self.shown.of(self.found.second)

    @cached_property
    def upsampled(self) -> PlacedMap:
        """What is shown of the original's map read where the dense one has samples, [1, h, w].

        The output itself is upsampled, so that a softmax or the largest channel is taken of what was read.
        """
        if self.found.first.same_places(self.found.second):
            return self.first
        return self.shown.of(upsampled(self.found.first, self.found.second, self.upsampling))

    @cached_property
    def difference(self) -> Numbers:
        """The dense map less the upsampled one, [h, w]; of labels 1 where they differ."""
        a, b = self.upsampled.values[0], self.second.values[0]
        if self.shown.labels:
            differ: Numbers = (a != b).astype(np.float64)
            return differ
        with np.errstate(invalid="ignore"):
            return np.where(a == b, 0.0, b - a)

    @cached_property
    def locations(self) -> dict[str, Location | None]:
        """The main object as each of the two maps shows it; empty where none is looked for."""
        size = self.pixels.shape[:2]
        return {"first": locate(self.first, size), "second": locate(self.second, size)} if self.located else {}

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers, strings and lists."""
        rows, columns = coinciding(self.found.second, self.found.first)
        shared = self.difference[rows][:, columns]
        return {
            "names": list(self.names),
            "image": self.image,
            "size": list(self.pixels.shape[:2]),
            "output": self.found.output,
            "shown": self.shown.words(self.found.second.values.shape[0]),
            "merged": self.found.merged,
            "first": _facts(self.first),
            "second": _facts(self.second),
            "upsampling": None if self.found.first.same_places(self.found.second) else self.upsampling,
            "difference": _difference_facts(self.difference, self.shown.labels),
            "shared": {"samples": int(shared.size), **_difference_facts(shared, self.shown.labels)},
            "located": self._located_facts(),
        }

    def _located_facts(self) -> dict[str, Any] | None:
        if not self.located:
            return None
        boxes = {key: None if one is None else list(one.box) for key, one in self.locations.items()}
        first, second = self.locations["first"], self.locations["second"]
        overlap = None if first is None or second is None else first.box.overlap(second.box)
        return {"boxes": boxes, "overlap": overlap}

    @property
    def words(self) -> tuple[str, ...]:
        """How the maps differ, and where the main object is."""
        facts = self.to_dict()
        located = [" ".join(_location_words(facts))] if self.located else []
        return (" ".join(_difference_words(facts)), *located)


def _difference_words(facts: dict[str, Any]) -> list[str]:
    """How the maps differ, everywhere and where both have a sample."""
    words = []
    for key, where in (("difference", "of the dense map"), ("shared", "that both maps have")):
        one = facts[key]
        count = one.get("samples", one["count"])
        if not count or (key == "shared" and facts["upsampling"] is None):
            continue
        if "differing" in one:
            words.append(f"Labels differ at {one['differing']} of the {count} samples {where}.")
        elif key == "shared":
            most = f"at most {one['largest']:.1e}" if one["largest"] else "0"
            words.append(f"At the {count} samples {where} the difference is {most}.")
        else:
            words.append(f"Difference: at most {one['largest']:.3g}, {one['mean']:.3g} on average.")
    return words


def _location_words(facts: dict[str, Any]) -> list[str]:
    """The boxes of the main object, in pixels."""
    located, names = facts["located"], facts["names"]
    words = ["Main object: above the mean, the largest connected part, its box."]
    for key, name in zip(("first", "second"), names, strict=True):
        box = located["boxes"][key]
        if box is None:
            words.append(f"{name}: none, the map is the same everywhere.")
            continue
        top, left, bottom, right = (round(edge + 0.5) for edge in box)
        words.append(f"{name} ({COLOURS[key]}): rows {top} to {bottom - 1}, columns {left} to {right - 1}.")
    if located["overlap"] is not None:
        words.append(f"Intersection over union: {located['overlap']:.2f}.")
    return words


def _facts(one: PlacedMap) -> dict[str, Any]:
    low, high = limits(one.values)
    return {
        "size": list(one.size), "first": list(one.first), "step": list(one.step), "smallest": low, "largest": high,
    }  # fmt: skip


def _difference_facts(difference: Numbers, labels: bool) -> dict[str, Any]:
    if labels:
        return {"count": int(difference.size), "differing": int(difference.sum())}
    finite = np.abs(difference[np.isfinite(difference)])
    largest, mean = (float(finite.max()), float(finite.mean())) if finite.size else (0.0, 0.0)
    return {"count": int(difference.size), "largest": largest, "mean": mean}
