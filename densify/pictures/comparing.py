"""Two networks on one image, side by side: the original's map, its upsampling, the dense map, and the difference."""

from __future__ import annotations

import io
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

import numpy as np
from PIL import Image
from torch import Tensor

from densify.errors import UndrawableError, UsageError
from densify.files import write_bytes
from densify.pictures.answers import Answers, Network, answers
from densify.pictures.colours import Colours, diverging, sequential
from densify.pictures.compared import Compared
from densify.pictures.localisation import Location, outline
from densify.pictures.panels import Panel, Scale, labels_scale, sheet
from densify.pictures.placed import UPSAMPLINGS, PlacedMap, canvas_indices, coloured, limits, painted
from densify.pictures.shown import Shown, default

_SIDE = 360  # pixels of a panel's longer side, about
_MARKS = {"first": (255, 138, 0), "second": (0, 214, 255)}  # of boxes and outlines
_EQUAL = (245, 245, 245)


class Comparison(Compared):
    """What two networks make of one image, in pictures. Made by :func:`compare`."""

    @cached_property
    def scales(self) -> tuple[Scale, Scale]:
        """The one scale of what is compared, and that of the difference."""
        words = self.shown.words(self.found.second.values.shape[0])
        if self.shown.labels:
            present = np.unique(np.concatenate([m.values.ravel() for m in (self.first, self.upsampled, self.second)]))
            labels = labels_scale(f"{words}: one scale for all maps", [int(label) for label in present])
            return labels, Scale("coloured: labels differ", labels.table, labels=())
        whole = self.shown.kind == "class"
        low, high = (0.0, 1.0) if whole else limits(self.first.values, self.second.values)
        marks = (low,) if low == high else (low, (low + high) / 2, high)
        most = max(abs(bound) for bound in limits(self.difference))
        return (
            Scale(f"{words}: one scale for all maps", sequential(), marks),
            Scale("a scale of its own, 0 in the middle", diverging(), (-most, 0.0, most) if most else (0.0,)),
        )

    @cached_property
    def panels(self) -> tuple[Panel, ...]:
        """Input, original, upsampled, dense, difference; no upsampling where both have samples at the same places."""
        a, b = self.names
        same = self.found.first.same_places(self.found.second)
        made = [
            Panel("input", "input", _size(self.pixels.shape[:2], "pixels"), self._input()),
            Panel("first", a, _grid_words(self.first), self._map(self.first, "first"), 0),
        ]
        if not same:
            how = {"linear": "linear between its samples", "nearest": "the nearest of its samples"}[self.upsampling]
            made.append(Panel("upsampled", "upsampled", f"{a}, {how}", self._map(self.upsampled, ""), 0))
        made.append(Panel("second", b, _grid_words(self.second), self._map(self.second, "second"), 0))
        minus = f"{b} - {a if same else 'upsampled'}"
        words = f"{b}, where the labels differ" if self.shown.labels else minus
        made.append(Panel("difference", "difference", words, self._difference_pixels(), 1))
        return tuple(made)

    @cached_property
    def notes(self) -> tuple[str, ...]:
        """What there is to know of the pictures."""
        facts = self.to_dict()
        notes = ["Every sample fills the step around the pixel that it looks at."]
        if any((canvas_indices(self.second, axis, n, n) < 0).any() for axis, n in enumerate(self.pixels.shape[:2])):
            notes[0] += " Grey: no sample looks there."
        if facts["merged"]:
            notes.append(_MERGED[facts["merged"]])
        return (*notes, *self.words, *([self.pixel_note] if self.pixel_note else []))

    def picture(self) -> Image.Image:
        """All panels on one sheet."""
        drawn = [scale for scale in self.scales if scale.labels or scale.marks]
        words = f"{self.image}   ·   {self.found.output}: {self.shown.words(self.found.second.values.shape[0])}"
        return sheet(self.heading, words, self.panels, drawn, self.notes)

    def save(self, path: str | Path, *, overwrite: bool = False) -> None:
        """Write the sheet as a PNG.

        Raises:
            UsageError: another suffix, an existing file, or a folder that cannot be written.
        """
        target = check_picture(Path(path))
        write_bytes(target, png(self.picture()), overwrite=overwrite)

    def _repr_png_(self) -> bytes:
        return png(self.picture())

    def _canvas(self) -> tuple[int, int]:
        """(height, width) of every panel: the image, each pixel as often as it fits, or less than once."""
        height, width = self.pixels.shape[:2]
        times = _SIDE / max(height, width)
        times = max(1, round(times)) if times > 0.6 else times
        return max(1, round(height * times)), max(1, round(width * times))

    def _input(self) -> Colours:
        height, width = self._canvas()
        larger = height > self.pixels.shape[0]
        how = Image.Resampling.NEAREST if larger else Image.Resampling.LANCZOS
        drawn = np.array(Image.fromarray(self.pixels).resize((width, height), how))
        for key, one in self.locations.items():
            if one is not None:
                self._draw_box(drawn, one, _MARKS[key])
        return drawn

    def _map(self, one: PlacedMap, key: str) -> Colours:
        values, scale = one.values[0], self.scales[0]
        cells = (
            scale.table[values.astype(np.intp)]
            if self.shown.labels
            else coloured(values, scale.marks[0], scale.marks[-1], scale.table)
        )
        drawn = self._painted(one, cells)
        location = self.locations.get(key)
        if location is not None:
            mask = painted(one, location.mask, self.pixels.shape[:2], self._canvas(), False)
            drawn[outline(mask.astype(bool), 4)] = (20, 20, 20)
            drawn[outline(mask.astype(bool), 2)] = _MARKS[key]
        return drawn

    def _difference_pixels(self) -> Colours:
        if self.shown.labels:
            own = self.scales[0].table[self.second.values[0].astype(np.intp)]
            cells = np.where(self.difference[..., None] > 0, own, np.array(_EQUAL, np.uint8))
        else:
            scale = self.scales[1]
            cells = coloured(self.difference, scale.marks[0], scale.marks[-1], scale.table)
        return self._painted(self.second, cells)

    def _painted(self, one: PlacedMap, cells: Colours) -> Colours:
        return painted(one, cells, self.pixels.shape[:2], self._canvas()).astype(np.uint8)

    def _draw_box(self, drawn: Colours, one: Location, colour: tuple[int, int, int]) -> None:
        """A box of two pixels' width, dark around."""
        (height, width), image = drawn.shape[:2], self.pixels.shape
        top, bottom = (round((edge + 0.5) * height / image[0]) for edge in (one.box.top, one.box.bottom))
        left, right = (round((edge + 0.5) * width / image[1]) for edge in (one.box.left, one.box.right))
        mask = np.zeros((height, width), bool)
        mask[top:bottom, left:right] = True
        drawn[outline(mask, 4)] = (20, 20, 20)
        drawn[outline(mask, 3)] = colour


_MERGED = {
    "average": "The dense map is the average of the original over its shifts.",
    "new": "The dense map is that of a network of its own, to be trained.",
}


def _grid_words(one: PlacedMap) -> str:
    steps = [f"{step:g}" for step in one.step]
    every = steps[0] if len(set(steps)) == 1 else "x".join(steps)
    return f"{_size(one.size, 'samples')}, every {'pixel' if every == '1' else f'{every} pixels'}"


def _size(size: Sequence[int], noun: str) -> str:
    return f"{' x '.join(map(str, size))} {noun}"


def compare(
    model: Network | None,
    dense: Network,
    image: Tensor,
    *,
    show: str | None = None,
    output: str | None = None,
    upsampling: str = "linear",
    locate: bool = False,
    heading: str | None = None,
    image_name: str = "image",
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
) -> Comparison:
    """Two networks on one image, side by side.

    Args:
        model: the original; None for the dense network's own. Two networks of one kind are compared as they are.
        dense: a dense network, a torch one or an ONNX graph.
        image: [1, C, H, W], as the networks take it.
        show: of each sample "sum" (over channels), "argmax", "channel:N", or "class:N" (of the softmax over channels);
            by default of features, and with `locate`, the sum, of a map with a sample for each pixel the labels, else
            the channel that varies most.
        output: which one, of several; by default the first that has places in the image.
        upsampling: "linear" between the original's samples, or "nearest".
        locate: mark the main object: what is above the mean of what is shown, of that the largest connected part, and
            its box (section 3.2 of the paper).
        heading: which networks they are, for the pictures.
        image_name: for the pictures.
        mean, std: what was done to an image in [0, 1], to be undone where it is drawn; by default the dense network's.

    Raises:
        UsageError: an output or channel that does not exist, or networks of different kinds.
        UndrawableError: no image of two axes, or outputs that have no places in it.
    """
    if image.dim() != 4 or image.shape[0] != 1:
        raise UndrawableError(f"the image is {list(image.shape)}; pictures are of one image [1, C, height, width].")
    if upsampling not in UPSAMPLINGS:
        raise UsageError(f"upsampling={upsampling!r}: has to be one of {', '.join(UPSAMPLINGS)}.")
    wanted = None if show is None else Shown.parse(show)
    found = _chosen(answers(model, dense, image), output)
    view = wanted or default(found.second, strength=found.features or locate)
    for one in (found.first, found.second):
        view.check(one.values.shape[0], found.output)
    if view.labels and locate:
        raise UsageError(
            'the main object is where a number is large, which labels are not: show another thing than "argmax"'
        )
    origin = getattr(dense, "origin", None)
    pixels, note = as_pixels(image[0], mean or getattr(origin, "mean", None), std or getattr(origin, "std", None))
    names = ("first", "second") if found.alike else ("original", "dense")
    return Comparison(
        names, heading or " and ".join(names), image_name, pixels, note, found, view, upsampling, locate
    )  # fmt: skip


def _chosen(found: dict[str, Answers | str], output: str | None) -> Answers:
    if output is not None and output not in found:
        raise UsageError(f"output {output}: there is none of that name; there are {', '.join(found) or 'none'}.")
    asked = found if output is None else {output: found[output]}
    for one in asked.values():
        if isinstance(one, Answers):
            return one
    raise UndrawableError("nothing can be drawn: " + "; ".join(f"{name}: {why}" for name, why in asked.items()))


def as_pixels(image: Tensor, mean: Sequence[float] | None, std: Sequence[float] | None) -> tuple[Colours, str]:
    """An input [C, H, W] as it looked before mean and std, [H, W, 3], and what else there is to say of that."""
    values = image.detach().double().cpu().numpy()
    for numbers, done in ((std, np.multiply), (mean, np.add)):
        if numbers is not None:
            values = done(values, np.array(numbers).reshape(-1, 1, 1))
    note = ""
    if values.shape[0] not in (1, 3, 4):
        values, note = values.mean(0, keepdims=True), f"The input is the mean of its {values.shape[0]} channels."
    low, high = limits(values)
    if low < -0.01 or high > 1.01:
        values = (values - low) / (high - low)
        note += f" The input is stretched: black is {low:.3g}, white {high:.3g}."
    shade = (values[:3].clip(0, 1) * 255).round().astype(np.uint8).transpose(1, 2, 0)
    return np.repeat(shade, 3, axis=2) if shade.shape[2] == 1 else shade, note.strip()


def check_picture(path: Path) -> Path:
    """Refuse a picture in another format than PNG.

    Raises:
        UsageError: naming it.
    """
    if path.suffix.lower() != ".png":
        raise UsageError(f"{path}: pictures are written as PNG; name a .png file")
    return path


def png(picture: Image.Image) -> bytes:
    """A picture as a PNG file."""
    stream = io.BytesIO()
    picture.save(stream, "PNG", optimize=True)
    return stream.getvalue()
