"""The table from ONNX operators to readers, and how a node is looked at.

A reader is a function ``(call) -> Op | None``, registered for the operators that it reads.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from densify.graphs.onnx.values import Known
from densify.maps import Layout
from densify.ops import Fault, Op, Other


@dataclass(frozen=True)
class Place:
    """What a tensor of the image is.

    Attributes:
        layout: a map, a vector per image, or neither.
        order: of a map, its dimensions in the order [B, C, *spatial]: (0, 3, 1, 2) where channels come last.
        sizes: of its spatial axes in the original; 1 where it is a statistic.
        flat: of a vector that is a flattened map of more than one sample, the order and the sizes of that map.
        images: of what is neither, the dimensions along which more images make it longer.
    """

    layout: Layout
    order: tuple[int, ...]
    sizes: tuple[int, ...]
    flat: tuple[tuple[int, ...], ...] = ()
    images: tuple[int, ...] = (0,)

    @property
    def entries(self) -> tuple[Layout, tuple[int, ...], tuple[tuple[int, ...], ...]]:
        """What the entries of a tensor are: tensors that are alike in it can be joined entry by entry."""
        return self.layout, self.order, self.flat

    @property
    def plain(self) -> bool:
        """Whether it is a map [B, C, *spatial]."""
        return self.layout is Layout.MAP and self.order == tuple(range(len(self.order)))

    def moved(self, permutation: Sequence[int]) -> Place:
        """The place of the transposed tensor."""
        return Place(self.layout, tuple(permutation.index(dim) for dim in self.order), self.sizes)


@dataclass(frozen=True)
class Call:
    """One node.

    Attributes:
        node: the node.
        maps: names of its inputs that are tensors of the image, each once.
        places: what they are.
        known: what is known of every value at the reference size, by name.
        version: of ONNX's operators.
        frozen: whether the graph is made for images of one size alone.
    """

    node: ir.Node
    maps: tuple[str, ...]
    places: Mapping[str, Place]
    known: Mapping[str, Known]
    version: int
    frozen: bool = False

    @property
    def source(self) -> Place:
        """What the first tensor of the image is."""
        return self.places[self.maps[0]]

    @property
    def spatial(self) -> int:
        """Number of spatial axes."""
        return len(self.source.sizes)

    @property
    def rank(self) -> int:
        """Number of dimensions of the first tensor of the image."""
        return len(self.shape(self.maps[0]))

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of a value; () where it is not known."""
        return self.known[name].shape or () if name in self.known else ()

    @property
    def result(self) -> tuple[int, ...]:
        """The shape of the first output."""
        return self.shape(str(self.node.outputs[0].name))

    def numbers(self, index: int) -> np.ndarray | None:
        """The numbers of an input, where they follow from shapes and constants; None where it is not given, too."""
        one = self.node.inputs[index] if index < len(self.node.inputs) else None
        known = None if one is None else self.known.get(str(one.name))
        return None if known is None else known.numbers

    def given(self, index: int) -> bool:
        """Whether an input is given."""
        return index < len(self.node.inputs) and self.node.inputs[index] is not None

    def constants(self) -> list[tuple[int, ...]]:
        """The shapes of all inputs that are no tensors of the image."""
        names = [str(one.name) for one in self.node.inputs if one is not None]
        return [self.shape(name) for name in names if name not in self.maps]

    def integers(self, name: str, default: Sequence[int]) -> Sequence[int]:
        """An attribute of several numbers."""
        given = self.node.attributes.get(name)
        return default if given is None else list(given.as_ints())

    def axes(self, input_since: int) -> list[int] | None:
        """The axes that the node names: an attribute, since some version an input; None where it names none."""
        if self.version >= input_since:
            numbers = self.numbers(1)
            named = None if numbers is None else [int(axis) for axis in numbers]
        else:
            named = list(self.integers("axes", ())) or None
        return None if named is None else [axis % self.rank for axis in named]


ACROSS_IMAGES = Other((), Layout.MIXED, fault=Fault.ACROSS)
"""What a reader answers where it sees that an operator mixes images: then none may be phases."""

Reader = Callable[[Call], Op | None]
_READERS: dict[str, Reader] = {}


def reads(operators: str) -> Callable[[Reader], Reader]:
    """Register a reader for operators, named in one text."""

    def register(reader: Reader) -> Reader:
        for operator in operators.split():
            if _READERS.setdefault(operator, reader) is not reader:
                raise ValueError(f"{operator} has a reader already")
        return reader

    return register


def reader_of(node: ir.Node) -> Reader | None:
    """The reader of a node, if there is one."""
    return _READERS.get(node.op_type)
