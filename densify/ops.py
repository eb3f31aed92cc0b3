"""What the rules talk about: ops, described without tensors, nodes or torch.

A reader turns a node of a torch.fx or ONNX graph into one of these ops; a rule answers with the op to put there.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from enum import StrEnum
from fractions import Fraction
from typing import Any

from densify.lattice import DenseWindow, Window
from densify.maps import Layout
from densify.merging import Spread


@dataclass(frozen=True)
class Op:
    """Base of all descriptions."""


@dataclass(frozen=True)
class Windowed(Op):
    """An op that slides a window over the map.

    Attributes:
        windows: one :class:`Window` per spatial axis.
        chosen: per axis, whether the stride is to be removed.
        same: where the padding follows the map's size so that ceil(size / stride) samples are made (TensorFlow's
            "same"), the side that an odd sample goes to: "upper" or "lower"; "" where the windows say it.
    """

    windows: tuple[Window, ...]
    chosen: tuple[bool, ...] = ()
    same: str = field(default="", kw_only=True)

    @property
    def strided(self) -> bool:
        return any(window.stride > 1 for window in self.windows)


@dataclass(frozen=True)
class Conv(Windowed):
    """A convolution; `linear` marks a Linear layer on the flattened map, whose kernel is the window flattened."""

    linear: bool = False


@dataclass(frozen=True)
class MaxPool(Windowed):
    """A max pooling; its padding never wins.

    Attributes:
        indices: it makes a second map, of where the maxima came from.
    """

    indices: bool = False


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
class Upsampling(Op):
    """An op that makes samples between those of the map, or fewer by no window; bases of the four below.

    Attributes:
        scales: per spatial axis, how many times as long its result is at the reference size.
        merge: what becomes of a denser map, see :data:`densify.merging.MERGES`.
    """

    scales: tuple[Fraction, ...]
    merge: str = "select"


@dataclass(frozen=True)
class Interpolation(Upsampling):
    """Interpolation, of torch's modes.

    Attributes:
        mode: "nearest", "nearest-exact", "linear", "cubic" or another, "area" say.
        align_corners: as in torch.
        factors: per spatial axis, the scale factor that places its samples; () where the sizes do.
    """

    mode: str = "nearest"
    align_corners: bool = False
    factors: tuple[Fraction, ...] = ()


@dataclass(frozen=True)
class Transposed(Upsampling):
    """A transposed convolution.

    Attributes:
        windows: one :class:`Window` per spatial axis, that of the convolution it is the transpose of.
        extra: per spatial axis, torch's output_padding.
    """

    windows: tuple[Window, ...] = ()
    extra: tuple[int, ...] = ()


@dataclass(frozen=True)
class Shuffle(Upsampling):
    """Pixel shuffle: the channels of a sample become samples."""


@dataclass(frozen=True)
class Unpool(Upsampling):
    """Max unpooling: every sample goes where the maximum came from, which a second map says.

    Attributes:
        strides: per spatial axis, the pooling's.
    """

    strides: tuple[int, ...] = ()


@dataclass(frozen=True)
class Merge(Op):
    """What a rule puts in the place of an upsampling that meets a denser map.

    Attributes:
        op: the original's.
        how: "select", "average" or "resample".
        spreads: per spatial axis, where the phases come to lie.
    """

    op: Upsampling
    how: str
    spreads: tuple[Spread, ...]

    @property
    def drops(self) -> bool:
        """Whether it leaves some phases out."""
        return self.how == "select" and any(spread.left < spread.est for spread in self.spreads)


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
class Chain(Op):
    """Several maps, one behind the other along one spatial axis.

    Attributes:
        axis: which, counted among the spatial ones.
    """

    axis: int


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


class Fault(StrEnum):
    """Why an op must not run on phases that are laid in the batch, in the words that users read.

    Attributes:
        MIXES: what it makes of an image depends on the others, or on how many there are.
        MOVED: the images of its result do not lie one behind another along the first dimension.
        ACROSS: it is a reduction, or the like, over the images.
        FIXED: it takes as many images as the example has, and no other number.
        RANDOM: it draws random numbers in eval mode.
    """

    MIXES = "it mixes the images of a batch, or counts them, and it would run on phases that are laid in the batch"
    MOVED = "it does not keep the images of a batch apart, along its first dimension"
    ACROSS = "it works across the images of a batch"
    FIXED = "it takes a batch of the example's size alone, and it would run on phases that are laid in the batch"
    RANDOM = "it draws random numbers in eval mode, so there is no original to be equal to"


@dataclass(frozen=True)
class Rows(Op):
    """Any other op on vectors [B, K]: in the dense network it runs on the vector of every position.

    Attributes:
        fault: why it must not run on more vectors than there are images, if so.
    """

    fault: Fault | None = None


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
        fault: why it must not run on phases that are laid in the batch, if so.
        mirrors: per spatial axis whether it turns the map around; () for none.
        strided: whether it is a layer with a stride, of a tensor that is no map.
    """

    scales: tuple[Fraction, ...]
    layout: Layout
    fault: Fault | None = None
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


ALWAYS_LINEAR = (AvgPool, Conv, Crop, Pad, Patches, Same, Shuffle, Transposed)
"""Ops of which an average of results is the result on the average, but for a constant."""
