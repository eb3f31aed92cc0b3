"""What the rules talk about: ops and maps, described without tensors, nodes or torch.

A reader turns a node of a torch.fx or ONNX graph into one of these ops; a rule answers with the op to put there.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from enum import Enum
from fractions import Fraction
from typing import Any

from densify.lattice import Axis, DenseWindow, Lattice, Window


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


@dataclass(frozen=True)
class Map:
    """What is known of a tensor: its spatial axes, and whether the original still has them.

    Attributes:
        axes: the spatial axes in order; in the dense network they are always there.
        collapsed: the original's tensor is a vector per image, [B, K]; the dense network's is [B, K, *spatial].
        pooled: head="cam" took a pooling over the whole map away, so that every position stands for the map.
    """

    axes: tuple[Axis, ...]
    collapsed: bool = False
    pooled: bool = False

    @property
    def lattices(self) -> tuple[Lattice, ...]:
        return tuple(axis.lattice for axis in self.axes)

    @property
    def untouched(self) -> bool:
        """True where the dense network's tensor is the original's."""
        return not self.collapsed and not self.pooled and all(axis.lattice == (1, 0) for axis in self.axes)

    def with_axes(self, axes: tuple[Axis, ...]) -> Map:
        return replace(self, axes=axes)


@dataclass(frozen=True)
class Op:
    """Base of all descriptions."""


@dataclass(frozen=True)
class Windowed(Op):
    """An op that slides a window over the map.

    Attributes:
        windows: one :class:`Window` per spatial axis.
        chosen: per axis, whether the stride is to be removed.
    """

    windows: tuple[Window, ...]
    chosen: tuple[bool, ...] = ()

    @property
    def strided(self) -> bool:
        return any(window.stride > 1 for window in self.windows)


@dataclass(frozen=True)
class Conv(Windowed):
    """A convolution; `linear` marks a Linear layer on the flattened map, whose kernel is the window flattened."""

    linear: bool = False


@dataclass(frozen=True)
class MaxPool(Windowed):
    """A max pooling; its padding never wins."""


@dataclass(frozen=True)
class AvgPool(Windowed):
    """An average pooling with torch's rules for the divisor."""

    count_include_pad: bool = True
    divisor: int | None = None


@dataclass(frozen=True)
class PowerPool(Windowed):
    """A power-average pooling (LPPool) of the given norm."""

    norm: float = 2.0


@dataclass(frozen=True)
class Patches(Windowed):
    """Every window's samples side by side in the channels: pixel_unshuffle, space to depth.

    Attributes:
        order: which of them each channel of the result takes, counted [C, *kernel]; () for all in this order.
    """

    order: tuple[int, ...] = ()


@dataclass(frozen=True)
class Sliding(Windowed):
    """A window op from outside the package, see densify.sliding_window.

    Attributes:
        run: computes it without padding, at any stride and dilation.
        fill: what its padding holds.
    """

    run: Callable[..., Any] | None = None
    fill: float = 0.0


@dataclass(frozen=True)
class Pad(Op):
    """Padding in front of and behind each spatial axis, negative to crop.

    Attributes:
        sides: per axis (low, high), in samples of the original, at the reference size.
        mode: as in torch: "constant", "reflect", "replicate", "circular".
    """

    sides: tuple[tuple[int, int], ...]
    mode: str = "constant"


@dataclass(frozen=True)
class Crop(Op):
    """A slice of step 1 of the spatial axes; `sides` are what it takes away, as negative paddings."""

    sides: tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class Resize(Op):
    """An op that makes the map larger, or smaller by no window: interpolation, pixel shuffle, transposed convolution.

    Attributes:
        scales: per spatial axis, how many times as long its result is.
    """

    scales: tuple[Fraction, ...]


@dataclass(frozen=True)
class Select(Op):
    """What a rule puts in the place of an upsampling: the op itself on the first phases of every axis.

    Attributes:
        kept: how many phases per axis.
    """

    op: Op
    kept: tuple[int, ...]


@dataclass(frozen=True)
class DenseWindowed(Op):
    """What a rule puts in a windowed op's place.

    Attributes:
        op: the original's.
        windows: one :class:`DenseWindow` per spatial axis.
    """

    op: Windowed
    windows: tuple[DenseWindow, ...]


@dataclass(frozen=True)
class Pointwise(Op):
    """Each output sample depends on the input sample at the same place alone: activations, dropout, scaling."""


@dataclass(frozen=True)
class Channelwise(Op):
    """Like :class:`Pointwise`, but the op looks at the tensor's rank or channel axis: BatchNorm, LRN, softmax."""


@dataclass(frozen=True)
class Join(Op):
    """Several maps, sample by sample: add, mul, or cat over channels."""


@dataclass(frozen=True)
class GlobalPool(Op):
    """A statistic over the whole map; `keepdim` says whether the original keeps axes of size 1.

    `through` marks a pooling that head="cam" takes away.
    """

    keepdim: bool = True
    through: bool = False


@dataclass(frozen=True)
class AdaptivePool(Op):
    """Adaptive pooling to fixed sizes, not all 1.

    `window` says that a flatten reads the result: then the head has a window of that size.
    """

    sizes: tuple[int, ...]
    window: bool = False


@dataclass(frozen=True)
class PhaseWise(Op):
    """What a rule puts in the place of an op without a dilated form: the op itself, on every phase by itself."""

    op: Op


@dataclass(frozen=True)
class Flatten(Op):
    """[B, C, *spatial] -> [B, C * prod(spatial)].

    `window` is the map's size at the reference, where the op is looked at for inputs of another size.
    """

    window: tuple[int, ...] | None = None


@dataclass(frozen=True)
class Linear(Op):
    """A Linear layer on [B, K]."""


@dataclass(frozen=True)
class Rows(Op):
    """Any other op on vectors [B, K]: in the dense network it runs on the vector of every position.

    Attributes:
        fault: why it must not run on more vectors than there are images; "" where it may.
    """

    fault: str = ""


@dataclass(frozen=True)
class Same(Op):
    """A reshape to the shape that is there: its sizes, written out, are the original's."""


@dataclass(frozen=True)
class Unflatten(Op):
    """[B, C] -> [B, C, 1, ...]: a statistic gets its spatial axes back."""


@dataclass(frozen=True)
class Other(Op):
    """An op without a rule of its own: it runs on every phase by itself, which is what law 3 says of it.

    Attributes:
        scales: per spatial axis, how many times as long its result is; 0 for a statistic of the whole axis.
        layout: what its result is, see :class:`Layout`.
        fault: why it must not run on phases that are laid in the batch; "" where it may.
        mirrors: per spatial axis whether it turns the map around; () for none.
        strided: whether it is a layer with a stride, of a tensor that is no map.
    """

    scales: tuple[Fraction, ...]
    layout: Layout
    fault: str = ""
    mirrors: tuple[bool, ...] = ()
    strided: bool = False


@dataclass(frozen=True)
class Identity(Op):
    """What a rule puts in the place of an op that the dense network leaves out."""


@dataclass(frozen=True)
class ShapeOf(Op):
    """A program that reads a tensor's shape: it is told the original's.

    Attributes:
        total: it reads the number of elements.
        spatial: it reads more than the batch, the channels or the rank.
    """

    total: bool = False
    spatial: bool = True


@dataclass(frozen=True)
class Values(Op):
    """A program that makes a number or a condition of a tensor's values."""


@dataclass(frozen=True)
class Unsupported(Op):
    """An op that has no meaning on a lattice, or must not be rewritten."""

    reason: str
    remedy: str
