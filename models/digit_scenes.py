"""Scenes of handwritten digits: scikit-learn's 8x8 scans, enlarged and pasted into textured colour images.

An image here is a float32 array [height, width, 3] of RGB in [0, 1]; a digit's centre is (x, y) in pixels, where the
middle of the top left pixel is (0, 0). A map of labels is a uint8 array [height, width]: the class of the digit whose
ink covers a pixel at least by half, or BACKGROUND. Everything random comes from the generator that is passed in.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

Array = NDArray[np.float32]
Labels = NDArray[np.uint8]
Pixels = TypeVar("Pixels", Array, Labels)

SMALLEST, LARGEST = 20, 24  # side of a pasted digit in pixels
SPACING = 28  # least distance of two digits along the axis where they are farther apart
BACKGROUND = 10  # the label of a pixel without ink; 0 to 9 are the digits
COVERED = 0.5  # least share of ink in a pixel that counts as the digit's
HELD_OUT = 497  # of 1797 digits, never seen in training


@dataclass(frozen=True)
class Digits:
    """Ink [n, 8, 8] in [0, 1] and classes [n] of handwritten digits."""

    ink: Array
    classes: NDArray[np.int64]


@dataclass(frozen=True)
class Placed:
    """A digit in a scene: its class and its centre in pixels."""

    x: int
    y: int
    digit: int


@dataclass(frozen=True)
class Scene:
    """An image [height, width, 3], the labels [height, width] of its pixels, and the digits in it."""

    image: Array
    labels: Labels
    digits: tuple[Placed, ...]


def split_digits() -> tuple[Digits, Digits]:
    """scikit-learn's digits, parted into those for training and those held out, the classes in equal shares."""
    data: Any = load_digits()
    parts = train_test_split(
        (data.images / 16).astype(np.float32),
        data.target.astype(np.int64),
        test_size=HELD_OUT,
        random_state=0,
        stratify=data.target,
    )
    return Digits(parts[0], parts[2]), Digits(parts[1], parts[3])


def resized(plane: Array, width: int, height: int) -> Array:
    """A plane [h, w] resampled bicubically to [height, width]."""
    image = Image.fromarray(plane).resize((width, height), Image.Resampling.BICUBIC)
    return np.asarray(image, dtype=np.float32)


def texture(rng: np.random.Generator, height: int, width: int) -> Array:
    """A random background: coloured blotches of two sizes, faint stripes and grain around one brightness."""
    image = np.empty((height, width, 3), np.float32)
    image[:] = rng.uniform(0.15, 0.85) + rng.uniform(-0.15, 0.15, 3)
    for cell, strength in ((40, 0.15), (9, 0.08)):
        shape = (height // cell + 3, width // cell + 3)
        for channel in range(3):
            noise = rng.uniform(-strength, strength, shape).astype(np.float32)
            image[..., channel] += resized(noise, width, height)
    rows, columns = np.mgrid[:height, :width]
    angle, frequency = rng.uniform(0, np.pi), rng.uniform(0.2, 1.2)
    wave = np.sin(frequency * (np.cos(angle) * columns + np.sin(angle) * rows))
    image += (rng.uniform(0, 0.06) * wave)[..., None].astype(np.float32)
    image += rng.normal(0, 0.02, image.shape).astype(np.float32)
    return np.clip(image, 0, 1)


def ink_colour(rng: np.random.Generator, behind: Array) -> Array:
    """A colour whose brightness differs from what lies behind it by 0.3 at least."""
    brightness = float(behind.mean())
    darker, brighter = brightness - 0.3, brightness + 0.3
    goes_darker = darker > 0 and (brighter >= 1 or rng.random() < 0.5)
    level = rng.uniform(0, darker) if goes_darker else rng.uniform(brighter, 1)
    return np.clip(level + rng.uniform(-0.12, 0.12, 3), 0, 1).astype(np.float32)


def paste(rng: np.random.Generator, image: Array, ink: Array, x: int, y: int) -> tuple[slice, slice, Array]:
    """Draw one digit into the image, its centre at (x, y).

    Returns:
        The rows and the columns that it takes, and the share of ink [rows, columns] of its pixels.
    """
    width, height = rng.integers(SMALLEST, LARGEST + 1, 2)
    covered = np.clip(resized(ink, int(width), int(height)), 0, 1)
    top, left = y - int(height) // 2, x - int(width) // 2
    rows, columns = slice(top, top + int(height)), slice(left, left + int(width))
    window, alpha = image[rows, columns], covered[..., None]
    window[:] = window * (1 - alpha) + ink_colour(rng, window) * alpha
    return rows, columns, covered


def free_places(rng: np.random.Generator, height: int, width: int, count: int, margin: int) -> list[tuple[int, int]]:
    """Up to `count` centres (x, y), `margin` pixels inside the image and SPACING apart."""
    places: list[tuple[int, int]] = []
    for _ in range(20 * count):
        x, y = int(rng.integers(margin, width - margin)), int(rng.integers(margin, height - margin))
        if all(max(abs(x - a), abs(y - b)) >= SPACING for a, b in places):
            places.append((x, y))
        if len(places) == count:
            break
    return places


def scene(rng: np.random.Generator, digits: Digits, height: int, width: int, count: int, margin: int) -> Scene:
    """A textured image with up to `count` of the digits at random places."""
    image = texture(rng, height, width)
    labels = np.full((height, width), BACKGROUND, np.uint8)
    placed = []
    for x, y in free_places(rng, height, width, count, margin):
        chosen = int(rng.integers(len(digits.classes)))
        rows, columns, covered = paste(rng, image, digits.ink[chosen], x, y)
        labels[rows, columns][covered >= COVERED] = digits.classes[chosen]
        placed.append(Placed(x, y, int(digits.classes[chosen])))
    return Scene(image, labels, tuple(placed))


def crop(image: Pixels, x: int, y: int, side: int) -> Pixels:
    """The square patch [side, side, ...] around (x, y) of an image or of labels.

    For an even side, pixel side // 2 of the patch is (x, y).
    """
    top, left = y - side // 2, x - side // 2
    return image[top : top + side, left : left + side]
