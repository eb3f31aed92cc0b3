"""The pictures of a comparison and their scales, and the sheet that shows them side by side."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from densify.pictures.colours import Colours, palette

INK, SOFT, PAPER = (28, 30, 36), (98, 102, 112), (255, 255, 255)
_GAP, _MARGIN, _LEAST = 28, 36, 250  # pixels between panels, around the sheet, and what a panel's text needs at least
_TITLE, _TEXT = 19, 14  # sizes of letters
_BAR = 14  # height of a colour bar
_SCALE = _BAR + 14 + 2 * _TEXT  # of one with its numbers and words
_LABELS = 24  # as many labels have a name in the legend


@dataclass(frozen=True, eq=False)
class Scale:
    """How the numbers of some panels became colours.

    Attributes:
        words: what the numbers are.
        table: colours from the lowest to the highest.
        marks: the numbers that are written, in order: at the lower end, in the middle, at the upper end.
        labels: of a palette, the labels that occur.
    """

    words: str
    table: Colours
    marks: tuple[float, ...] = ()
    labels: tuple[int, ...] = ()


@dataclass(frozen=True, eq=False)
class Panel:
    """One picture.

    Attributes:
        key: "input", "original", "upsampled", "dense" or "difference".
        title, words: its heading, and a line below.
        pixels: [H, W, 3].
        scale: which of the scales its colours are of; None for a photograph.
    """

    key: str
    title: str
    words: str
    pixels: Colours
    scale: int | None = None


def written(number: float) -> str:
    """A number on a scale: four digits."""
    return f"{number:.4g}"


def bar(scale: Scale, width: int, height: int = _BAR) -> Colours:
    """The colours of a scale, [height, width, 3]."""
    places = np.arange(width) * len(scale.table) // width
    return np.repeat(scale.table[places][None], height, axis=0)


def sheet(
    heading: str, words: str, panels: Sequence[Panel], scales: Sequence[Scale], notes: Sequence[str]
) -> Image.Image:
    """All panels in a row, one scale under all that are in it, and notes below."""
    columns = [max(_LEAST, panel.pixels.shape[1]) for panel in panels]
    width = sum(columns) + _GAP * (len(panels) - 1) + 2 * _MARGIN
    large, small = ImageFont.load_default(_TITLE), ImageFont.load_default(_TEXT)
    lines = [line for note in notes for line in _folded(note, small, width - 2 * _MARGIN)]
    top = _MARGIN + _TITLE + 8 + _TEXT + 26
    panel_top = top + _TITLE + 6 + _TEXT + 10
    bars_top = panel_top + max(panel.pixels.shape[0] for panel in panels) + 18
    notes_top = bars_top + _SCALE + 16
    height = notes_top + len(lines) * (_TEXT + 7) + _MARGIN
    made = Image.new("RGB", (width, height), PAPER)
    pen = ImageDraw.Draw(made)
    pen.text((_MARGIN, _MARGIN), _cut(heading, large, width - 2 * _MARGIN), INK, large)
    pen.text((_MARGIN, _MARGIN + _TITLE + 8), _cut(words, small, width - 2 * _MARGIN), SOFT, small)
    lefts = [_MARGIN + sum(columns[:index]) + _GAP * index for index in range(len(panels))]
    for panel, left, column in zip(panels, lefts, columns, strict=True):
        pen.text((left, top), _cut(panel.title, large, column), INK, large)
        pen.text((left, top + _TITLE + 6), _cut(panel.words, small, column), SOFT, small)
        made.paste(Image.fromarray(panel.pixels), (left, panel_top))
        bottom = panel_top + panel.pixels.shape[0]
        pen.rectangle((left - 1, panel_top - 1, left + panel.pixels.shape[1], bottom), outline=(206, 208, 214))
    for number, scale in enumerate(scales):
        under = [index for index, panel in enumerate(panels) if panel.scale == number]
        end = lefts[under[-1]] + panels[under[-1]].pixels.shape[1]
        _draw_scale(made, scale, lefts[under[0]], bars_top, max(end - lefts[under[0]], columns[under[0]]), small)
    for index, line in enumerate(lines):
        pen.text((_MARGIN, notes_top + index * (_TEXT + 7)), line, SOFT, small)
    return made


def _draw_scale(made: Image.Image, scale: Scale, left: int, top: int, width: int, font: Font) -> None:
    pen = ImageDraw.Draw(made)
    if scale.labels:
        _draw_labels(pen, scale, left, top, width, font)
    else:
        made.paste(Image.fromarray(bar(scale, width)), (left, top))
        pen.rectangle((left - 1, top - 1, left + width, top + _BAR), outline=(206, 208, 214))
        count = len(scale.marks)
        for index, mark in enumerate(scale.marks):
            at = left + width * index / (count - 1) if count > 1 else left + width / 2
            anchor = "mt" if count == 1 or 0 < index < count - 1 else "lt" if index == 0 else "rt"
            pen.text((at, top + _BAR + 7), written(mark), INK, font, anchor=anchor)
    below = _BAR + 10 if scale.labels else _BAR + 14 + _TEXT
    pen.text((left, top + below), _cut(scale.words, font, width), SOFT, font)


def _draw_labels(pen: ImageDraw.ImageDraw, scale: Scale, left: int, top: int, width: int, font: Font) -> None:
    at = float(left)
    for label in scale.labels[:_LABELS]:
        name = str(label)
        need = _BAR + 5 + font.getlength(name) + 14
        if at + need > left + width - 12:
            pen.text((at, top - 1), "…", SOFT, font)
            return
        pen.rectangle((at, top, at + _BAR, top + _BAR), fill=tuple(map(int, scale.table[label])))
        pen.text((at + _BAR + 5, top - 1), name, INK, font)
        at += need


Font = ImageFont.FreeTypeFont | ImageFont.ImageFont


def _cut(text: str, font: Font, width: int) -> str:
    """The text, its middle left out where it is too long."""
    if font.getlength(text) <= width:
        return text
    keep = len(text)
    while keep > 2 and font.getlength(_shortened(text, keep)) > width:
        keep -= 1
    return _shortened(text, keep)


def _shortened(text: str, keep: int) -> str:
    return f"{text[: keep - keep // 2]}…{text[len(text) - keep // 2 :]}"


def _folded(text: str, font: Font, width: int) -> list[str]:
    """Lines of words that fit."""
    lines = [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}".strip()
        if font.getlength(longer) <= width:
            lines[-1] = longer
        else:
            lines.append(word)
    return lines


def labels_scale(words: str, found: Sequence[int]) -> Scale:
    """The palette of labels that occur."""
    return Scale(words, palette(max(found, default=0) + 1), labels=tuple(found))
