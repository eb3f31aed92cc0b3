"""What a tensor is, told by how its shape grows with the image and with the number of images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import onnx_ir as ir

from densify.graphs.onnx.values import Known
from densify.maps import Layout

Found = tuple[Layout, tuple[int, ...], tuple[int, ...]]


@dataclass(frozen=True)
class Growth:
    """What is known of every value, by name, at several shapes of the image.

    Attributes:
        image: its shape at the reference size, [B, C, *spatial].
        known: at that size.
        doubled: for twice as many images.
        grown: per spatial axis, where that is twice as long.
    """

    image: tuple[int, ...]
    known: Mapping[str, Known]
    doubled: Mapping[str, Known]
    grown: Sequence[Mapping[str, Known]]

    def shape(self, value: ir.Value) -> tuple[int, ...] | None:
        """The shape of a value at the reference size, where it is known."""
        return _shape(self.known, value)

    def follows_batch(self, value: ir.Value) -> bool:
        """Whether twice as many images make the first dimension twice as long, and nothing else."""
        shape = self.shape(value)
        return bool(shape) and _shape(self.doubled, value) == (2 * shape[0], *shape[1:])  # type: ignore[index]

    def one_per_image(self, value: ir.Value) -> bool:
        """Whether the first dimension is as long as there are images."""
        return (self.shape(value) or (0,))[0] == self.image[0]

    def images(self, value: ir.Value) -> tuple[int, ...]:
        """The dimensions along which twice as many images make a tensor longer."""
        shape, longer = self.shape(value) or (), _shape(self.doubled, value)
        if longer is None or len(longer) != len(shape):
            return (0,)
        return tuple(dim for dim, (n, m) in enumerate(zip(shape, longer, strict=True)) if m > n)

    def per_image(self, name: str) -> bool:
        """Whether twice as many images make the first dimension of what is no tensor of the image twice as long."""
        one, other = self.known[name].shape, self.doubled.get(name)
        grown = None if other is None else other.shape
        return bool(one) and grown is not None and len(grown) > 1 and grown == (2 * one[0], *one[1:])  # type: ignore[index]

    def written_out(self, value: ir.Value) -> tuple[bool, ...]:
        """Per spatial axis of the image whether nothing is known of a value where it is longer: sizes are numbers."""
        return tuple(_shape(one, value) is None for one in self.grown)

    def layout(self, value: ir.Value, source: str, wide: tuple[int, ...], like: tuple[int, ...]) -> Found:
        """Layout, order of dimensions and sizes (0 for a statistic) of the result of an op without a rule.

        Where the graph takes no other size, a tensor of the same rank and size as the map counts as a map.

        Args:
            source: the first map that it reads.
            wide: the largest sizes among its maps.
            like: the first one's order of dimensions, which axes of one sample keep.
        """
        shape, count = self.shape(value) or (), len(wide)
        plain = tuple(range(2 + count))
        if not (self.follows_batch(value) and self.one_per_image(value)):
            return Layout.MIXED, (), wide
        grown = [_shape(one, value) for one in self.grown]
        kept = like if len(like) == len(shape) else plain
        moving = [[dim for dim, size in enumerate(shape) if other and other[dim] != size] for other in grown]
        single = [one for one in (kept, plain) if len(one) == len(shape) and all(shape[dim] == 1 for dim in one[2:])]
        still = max(wide) > 1 and not any(moving) and not self._grows(source) and not single
        if still or any(self.written_out(value)):
            if len(shape) == 2 + count and tuple(shape[dim] for dim in kept[2:]) == wide:
                return Layout.MAP, kept, wide
            return (Layout.VECTOR, (0, 1), (0,) * count) if len(shape) == 2 else (Layout.MIXED, (), wide)
        if len(shape) == 2 and not any(moving):
            return Layout.VECTOR, (0, 1), (0,) * count
        if len(shape) != 2 + count or any(len(dims) > 1 for dims in moving):
            return Layout.MIXED, (), wide
        if not any(moving):
            return (Layout.MAP, single[0], (0,) * count) if single else (Layout.MIXED, (), wide)
        spatial = [dims[0] if dims else kept[2 + axis] for axis, dims in enumerate(moving)]
        order = (0, *(dim for dim in range(1, len(shape)) if dim not in spatial), *spatial)
        statistics = [shape[dim] for dim, dims in zip(spatial, moving, strict=True) if not dims]
        if sorted(order) != list(plain) or set(statistics) - {1}:
            return Layout.MIXED, (), wide
        return Layout.MAP, order, tuple(shape[dim] if dims else 0 for dim, dims in zip(spatial, moving, strict=True))

    def _grows(self, name: str) -> bool:
        """Whether a larger image makes a tensor larger at all."""
        shapes = [None if one.get(name) is None else one[name].shape for one in self.grown]
        return any(shape not in (None, self.known[name].shape) for shape in shapes)


def _shape(known: Mapping[str, Known], value: ir.Value) -> tuple[int, ...] | None:
    found = known.get(str(value.name))
    return None if found is None else found.shape
