"""Draw the lattices of docs/how-it-works.md, as SVG files beside this script: `python docs/drawings/draw.py`."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

HERE = Path(__file__).resolve().parent
PAPER, INK, SOFT, OWN, BETWEEN = "#ffffff", "#222222", "#9a9a9a", "#1f4e9c", "#7fa8e0"
STEP = 44  # pixels between neighbouring samples
RADIUS = 12


def document(width: int, height: int, title: str, parts: Iterable[str]) -> str:
    """An SVG on white paper of its own, to be read on dark pages too."""
    size = f'viewBox="0 0 {width} {height}" width="{width}" height="{height}"'
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" {size} font-family="sans-serif" font-size="14" role="img">',
            f"<title>{title}</title>",
            f'<rect width="{width}" height="{height}" rx="8" fill="{PAPER}"/>',
            *parts,
            "</svg>\n",
        ]
    )


def text(x: float, y: float, words: str, anchor: str = "start", colour: str = INK) -> str:
    return f'<text x="{x:g}" y="{y:g}" fill="{colour}" text-anchor="{anchor}">{words}</text>'


def line(x1: float, y1: float, x2: float, y2: float, colour: str) -> str:
    return f'<line x1="{x1:g}" y1="{y1:g}" x2="{x2:g}" y2="{y2:g}" stroke="{colour}" stroke-width="1.5"/>'


def sample(x: float, y: float, own: bool, colour: str = OWN) -> str:
    """A filled circle for a sample that the original has, a ring for one in between."""
    fill = colour if own else PAPER
    return f'<circle cx="{x:g}" cy="{y:g}" r="{RADIUS}" fill="{fill}" stroke="{colour}" stroke-width="2"/>'


def pooled(y: float, stride: int) -> list[str]:
    """Eight samples, and what a pooling of kernel 2 makes of them, each result under its first sample."""
    below, left = y + 84, 150
    parts = [text(20, y + 5, "input"), text(20, below + 5, f"pool, stride {stride}")]
    for i in range(0, 8, stride):
        own = i % 2 == 0
        for tap in (i, min(i + 1, 7)):
            parts.append(line(left + tap * STEP, y, left + i * STEP, below, INK if own else SOFT))
        parts.append(sample(left + i * STEP, below, own))
        parts.append(text(left + i * STEP, below + 32, str(i // stride), "middle"))
    return parts + [sample(left + i * STEP, y, True, SOFT) for i in range(8)]


def stride() -> str:
    """A pooling in the original, and without its stride."""
    first = [text(20, 30, "original"), *pooled(64, 2)]
    second = [text(20, 224, "dense: eST 2, Lattice(stride=2, offset=0)"), *pooled(258, 1)]
    return document(500, 396, "A pooling with stride 2 and with stride 1", [*first, *second])


def read(y: float, est: int, place: int, words: str) -> list[str]:
    """Where the taps of a convolution of kernel 3 lie on a map of this eST, `place` being in the middle."""
    left, below = 150, y + 84
    count = 4 * est
    spacing = 2 * STEP / est
    parts = [text(20, y - 46, words), text(20, y + 5, "map"), text(20, below + 5, "conv 3")]
    for tap in (-1, 0, 1):
        i = place + tap * est
        parts.append(line(left + i * spacing, y, left + place * spacing, below, INK))
        parts.append(text(left + i * spacing, y - RADIUS - 6, f"w{tap + 1}", "middle"))
    parts += [sample(left + i * spacing, y, i % est == 0) for i in range(count)]
    return [*parts, sample(left + place * spacing, below, place % est == 0)]


def econv() -> str:
    """A convolution on the original's map, and on the dense one."""
    parts = [*read(76, 1, 1, "original: dilation 1"), *read(252, 2, 2, "dense: dilation 2, on the lattice")]
    return document(500, 540, "Taps of a convolution", [*parts, *read(428, 2, 3, "dense: dilation 2, in between")])


def lattice() -> str:
    """A dense map of eST 4 along both axes, its phases written as remainders."""
    parts = [text(20, 30, "eST 4 x 4: phases (row, column)")]
    for row in range(8):
        for column in range(8):
            x, y, phase = 20 + column * STEP, 46 + row * STEP, (row % 4, column % 4)
            colour = OWN if phase == (0, 0) else BETWEEN if phase == (1, 2) else PAPER
            parts.append(
                f'<rect x="{x}" y="{y}" width="{STEP - 4}" height="{STEP - 4}" rx="4" fill="{colour}" stroke="{SOFT}"/>'
            )
            words = f"{phase[0]},{phase[1]}"
            parts.append(text(x + STEP / 2 - 2, y + STEP / 2 + 3, words, "middle", PAPER if colour == OWN else INK))
    legend = [("the original's samples: phase 0,0", OWN), ("another phase: the image shifted", BETWEEN)]
    for i, (words, colour) in enumerate(legend):
        y = 424 + 28 * i
        parts += [f'<rect x="20" y="{y}" width="20" height="20" rx="4" fill="{colour}"/>', text(50, y + 15, words)]
    return document(390, 488, "The phases of a dense map", parts)


DRAWINGS = {"stride.svg": stride, "econv.svg": econv, "lattice.svg": lattice}


if __name__ == "__main__":
    for name, draw in DRAWINGS.items():
        (HERE / name).write_text(draw())
