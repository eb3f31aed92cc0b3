"""What is known of tensors: their axes, where the original's samples lie, and what upsamplings made of them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from enum import Enum
from typing import NamedTuple

from densify.lattice import Axis, Lattice, number


class Layout(Enum):
    """What a tensor of the original is.

    Attributes:
        MAP: [B, C, *spatial].
        VECTOR: [B, K].
        MIXED: its spatial axes were moved, or joined in one; such a tensor exists phase by phase only.
    """

    MAP = "map"
    VECTOR = "vector"
    MIXED = "mixed"


class Merged(Enum):
    """What an upsampling that met a denser map made of a tensor.

    Attributes:
        NOT: laws 1 to 3 hold.
        AVERAGE: it is the average of the original's over its shifts (merge="average", linear ops alone since).
        NEW: a network of its own, to be trained: after any other op on an average, or after merge="resample".
    """

    NOT = ""
    AVERAGE = "average"
    NEW = "new"


class Lattices(tuple[Lattice, ...]):
    """The lattice of every spatial axis of a tensor, in order.

    Attributes:
        merged: "" where ``original[i] == dense[offset + i * stride]``; "average" where the tensor is the average of the
            original's over its shifts; "new" where it is that of a network of its own (see :class:`Merged`).
    """

    merged: str

    def __new__(cls, axes: Iterable[Lattice] = (), merged: Merged | str = Merged.NOT) -> Lattices:
        made = super().__new__(cls, axes)
        made.merged = merged.value if isinstance(merged, Merged) else merged
        return made

    def __getnewargs__(self) -> tuple[tuple[Lattice, ...], str]:
        return tuple(self), self.merged

    def __repr__(self) -> str:
        mark = f", merged={self.merged!r}" if self.merged else ""
        return f"({', '.join(map(repr, self))}{',' if len(self) == 1 and not mark else ''}{mark})"


@dataclass(frozen=True)
class Map:
    """What is known of a tensor: its spatial axes, and whether the original still has them.

    Attributes:
        axes: the spatial axes in order; in the dense network they are always there.
        collapsed: the original's tensor is a vector per image, [B, K]; the dense network's is [B, K, *spatial].
        pooled: head="cam" took a pooling over the whole map away, so that every position stands for the map.
        merged: whether an upsampling in front made one of several phases.
        wide: a sample may depend on the whole image.
    """

    axes: tuple[Axis, ...]
    collapsed: bool = False
    pooled: bool = False
    merged: Merged = Merged.NOT
    wide: bool = False

    @property
    def lattices(self) -> Lattices:
        return Lattices((axis.lattice for axis in self.axes), self.merged)

    @property
    def untouched(self) -> bool:
        """True where the dense network's tensor is the original's."""
        return not self.collapsed and not self.pooled and all(axis.lattice == (1, 0) for axis in self.axes)

    def with_axes(self, axes: tuple[Axis, ...]) -> Map:
        return replace(self, axes=axes)


class Position(NamedTuple):
    """Where the samples of one output axis look, in input pixels; pixel i covers [i - 0.5, i + 0.5].

    Attributes:
        step: between neighbouring samples.
        first: centre of what sample 0 sees, or None where it sees the whole (shifted) image.
        receptive_field: extent of what a sample sees, or None for the whole image.
    """

    step: int | float
    first: float | None
    receptive_field: int | None


def positions(one: Map) -> tuple[Position, ...]:
    """Positions of a map's samples."""
    return tuple(
        Position(number(axis.pitch), None, None)
        if axis.field is None
        else Position(number(axis.pitch), axis.field.centre, axis.field.extent)
        for axis in one.axes
    )
