"""Colours for maps, computed in CIE L*a*b* (1976, white D65) so that equal steps of a number look equally large.

Colours are sRGB, uint8 [..., 3]; tables are [256, 3].
"""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

Colours = NDArray[np.uint8]
Numbers = NDArray[np.floating[Any]]

UNSEEN: tuple[int, int, int] = (233, 233, 236)
"""Where no sample looks, and what is no finite number."""

_SIZE = 256
# Linear sRGB to CIE XYZ (IEC 61966-2-1).
_XYZ = np.array(
    [[0.4124564, 0.3575761, 0.1804375], [0.2126729, 0.7151522, 0.0721750], [0.0193339, 0.1191920, 0.9503041]]
)
_WHITE = _XYZ.sum(1)
_EDGE = 6 / 29  # below it CIE's cube root is a line

_NODES = 201  # on a path through L*a*b*

# Dark violet over teal to yellow: lightness rises evenly, chroma (a polynomial) stays within what sRGB can show.
_DARK, _LIGHT = 18.0, 94.0
_HUES = (305.0, 98.0)
_CHROMA = (-1072.0, 1803.0, -791.0, 63.0, 37.0)
# Blue over near-white to red: both arms equally dark and equally strong.
_BLUE, _RED, _MIDDLE, _ENDS, _STRENGTH, _TURN = 275.0, 30.0, 95.0, 42.0, 46.0, 1.95


def to_lab(colours: NDArray[np.generic]) -> Numbers:
    """L*, a*, b* of sRGB colours in 0 to 255."""
    encoded = np.asarray(colours, np.float64) / 255
    linear = np.where(encoded <= 0.04045, encoded / 12.92, ((encoded + 0.055) / 1.055) ** 2.4)
    ratio = linear @ _XYZ.T / _WHITE
    f = np.where(ratio > _EDGE**3, np.cbrt(ratio), ratio / (3 * _EDGE**2) + 4 / 29)
    return np.stack([116 * f[..., 1] - 16, 500 * (f[..., 0] - f[..., 1]), 200 * (f[..., 1] - f[..., 2])], axis=-1)


def from_lab(lab: Numbers) -> Numbers:
    """sRGB colours in 0 to 255, not rounded; below or above where sRGB cannot show them."""
    fy = (lab[..., 0] + 16) / 116
    f = np.stack([fy + lab[..., 1] / 500, fy, fy - lab[..., 2] / 200], axis=-1)
    xyz = np.where(f > _EDGE, f**3, 3 * _EDGE**2 * (f - 4 / 29)) * _WHITE
    linear = xyz @ np.linalg.inv(_XYZ).T
    curve = 1.055 * np.maximum(linear, 0.0031308) ** (1 / 2.4) - 0.055
    made: Numbers = np.where(linear <= 0.0031308, 12.92 * linear, curve) * 255
    return made


@cache
def sequential() -> Colours:
    """For numbers from low to high."""
    return _even(_sequential_path(), _SIZE)


@cache
def diverging() -> Colours:
    """For signed numbers: the two in the middle stand for 0."""
    blue, red = (_even(_arm(hue), _SIZE // 2) for hue in (_BLUE, _RED))
    return np.concatenate([blue[::-1], red])


def palette(count: int) -> Colours:
    """Distinct colours [count, 3] for labels: hues a golden angle apart, on three levels of lightness."""
    index = np.arange(count)
    level = index % 3
    lab = _polar(np.array([62.0, 42.0, 80.0])[level], np.array([48.0, 40.0, 42.0])[level], 40 + index * 137.508)
    return _rounded(lab)


def _sequential_path() -> Numbers:
    t = np.linspace(0, 1, _NODES)
    return _polar(_DARK + (_LIGHT - _DARK) * t, np.polyval(_CHROMA, t), _HUES[0] + (_HUES[1] - _HUES[0]) * t)


def _arm(hue: float) -> Numbers:
    t = np.linspace(0, 1, _NODES)
    return _polar(_MIDDLE + (_ENDS - _MIDDLE) * t, _STRENGTH * np.sin(_TURN * t), np.full_like(t, hue))


def _polar(lightness: Numbers, chroma: NDArray[np.generic], hue: Numbers) -> Numbers:
    """L*a*b* of lightness, chroma and hue in degrees."""
    angle = np.radians(hue)
    return np.stack([lightness, chroma * np.cos(angle), chroma * np.sin(angle)], axis=-1)


def _even(path: Numbers, count: int) -> Colours:
    """Colours along a path through L*a*b*, each as far from the next as that from its own."""
    fine = np.linspace(0, len(path) - 1, 64 * count)
    points = _along(path, fine)
    length = np.concatenate([[0], np.cumsum(np.linalg.norm(np.diff(points, axis=0), axis=1))])
    return _rounded(_along(path, np.interp(np.linspace(0, length[-1], count), length, fine)))


def _along(path: Numbers, at: Numbers) -> Numbers:
    places = np.arange(len(path))
    return np.stack([np.interp(at, places, path[:, channel]) for channel in range(3)], axis=-1)


def _rounded(lab: Numbers) -> Colours:
    return from_lab(lab).round().clip(0, 255).astype(np.uint8)
