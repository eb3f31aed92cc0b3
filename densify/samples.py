"""Inputs to try a model on: images and arrays from files, read without trusting them, and random ones."""

from __future__ import annotations

import math
import warnings
import zipfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, cast

import numpy as np
import torch
from numpy.lib import format as npy
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from densify.errors import DensifyError, UnsafeError, UsageError

# Named one by one: Pillow would also hand some formats to outside programs.
IMAGE_FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "TIFF", "GIF", "PPM")
_READS = f"{', '.join(IMAGE_FORMATS)} images, .npy and .npz"
_MAX_BYTES = 4 * 2**30
_BOMB_BYTES, _BOMB_RATIO = 64 * 2**20, 100  # no sample shrinks so much and is so large
_MODES = {1: "L", 3: "RGB", 4: "RGBA"}


@dataclass(frozen=True, eq=False)
class Sample:
    """One input: its name for tables, and the tensor [B, C, spatial ...]."""

    name: str
    tensor: Tensor


def named_inputs(inputs: object, shape: Sequence[int]) -> list[Sample]:
    """Tensors, one or several, as samples: those without a name are "input 0", "input 1" and so on.

    Args:
        inputs: tensors or samples, or one tensor.
        shape: [B, C, *spatial] of the network's example; C and the number of axes are used.

    Raises:
        UsageError: none at all, an empty one, what is no tensor, or one that is no batch of such images.
    """
    several = isinstance(inputs, Iterable) and not isinstance(inputs, Tensor | np.ndarray)
    given: list[object] = list(inputs) if isinstance(inputs, Iterable) and several else [inputs]
    wanted = f"give tensors [B, {', '.join(map(str, shape[1:]))}], of other sizes too where the network takes them"
    if not given:
        raise UsageError(f"there is no input: {wanted}.")
    made = [one if isinstance(one, Sample) else Sample(f"input {i}", cast(Tensor, one)) for i, one in enumerate(given)]
    for name, x in cast(list[tuple[str, object]], [(sample.name, sample.tensor) for sample in made]):
        if not isinstance(x, Tensor):
            hint = "torch.from_numpy makes a tensor of it; " if isinstance(x, np.ndarray) else ""
            raise UsageError(f"{name}: this is no tensor, but of type {type(x).__name__}. {hint}{wanted}.")
        if x.dim() != len(shape) or x.shape[1] != shape[1] or not x.numel():
            why = "it is empty" if not x.numel() else f"the network was converted for {list(shape)}"
            raise UsageError(f"{name}: its shape is {list(x.shape)}, and {why}: {wanted}.")
    return made


def read_samples(
    paths: Sequence[Path | str],
    input_size: Sequence[int],
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    dtype: torch.dtype = torch.float32,
) -> list[Sample]:
    """Read samples at their own size: nothing is resized or cropped.

    Images become [1, C, H, W] in [0, 1] (grey where C is 1), then (x - mean) / std per channel. Arrays of
    .npy and .npz files, [C, spatial ...] or [B, C, spatial ...], are taken as they are.

    Args:
        paths: the files; an .npz gives one sample for each of its arrays.
        input_size: the model's reference size [C, spatial ...]; C and the number of axes are used.
        mean, std: per channel, in units of [0, 1]; None leaves the values as they are.
        dtype: of the tensors.

    Raises:
        UsageError: a missing file, no image, or an array that the model cannot take or that is not finite.
        UnsafeError: an array of Python objects, or a file that declares far more data than it should.
    """
    return [s for path in paths for s in _read(Path(path), tuple(input_size), mean, std, dtype)]


def random_inputs(
    input_size: Sequence[int],
    sizes: Sequence[Sequence[int]],
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
    batch: int = 1,
) -> list[Sample]:
    """Normally distributed inputs [batch, C, spatial ...], one for each of the spatial `sizes`, the same for the
    same seed."""
    generator = torch.Generator().manual_seed(seed)
    return [
        Sample(
            f"random {'x'.join(map(str, size))}",
            torch.randn(batch, input_size[0], *size, generator=generator, dtype=torch.float64).to(dtype),
        )
        for size in sizes
    ]


def verification_sizes(reference: Sequence[int]) -> list[tuple[int, ...]]:
    """The spatial sizes at which a conversion is verified: the reference size, a larger one, and one that is
    odd along every axis and not square.

    None is smaller than the reference, which is the smallest that a head of fixed window may take.
    """
    larger = tuple(n + max(1, n // 7) for n in reference)
    odd: list[int] = []
    for axis, n in enumerate(reference):
        size = n + (axis + 1) * max(1, n // 16) | 1
        while size in odd:
            size += 2
        odd.append(size)
    return [tuple(reference), larger, tuple(odd)]


def _read(
    path: Path,
    input_size: tuple[int, ...],
    mean: Sequence[float] | None,
    std: Sequence[float] | None,
    dtype: torch.dtype,
) -> Iterator[Sample]:
    if not path.is_file():
        raise UsageError(f"{path}: there is no such file; samples are {_READS}")
    suffix = path.suffix.lower()
    try:
        if suffix == ".npy":
            with path.open("rb") as file:
                yield _array_sample(str(path), _read_npy(file, path.stat().st_size, str(path)), input_size, dtype)
        elif suffix == ".npz":
            for name, array in _read_npz(path):
                yield _array_sample(name, array, input_size, dtype)
        else:
            yield Sample(str(path), _normalized(_read_image(path, input_size), mean, std, path).to(dtype))
    except DensifyError:
        raise
    except Exception as error:  # a damaged file makes the decoders raise nearly anything
        raise UsageError(f"{path}: cannot be read as a sample ({error}); samples are {_READS}") from error


# ---- images --------------------------------------------------------------------------------------


def _read_image(path: Path, input_size: tuple[int, ...]) -> Tensor:
    """The image as [1, C, H, W] in [0, 1], float64."""
    channels = input_size[0]
    if len(input_size) != 3 or channels not in _MODES:
        raise UsageError(f"{path}: an image is no input for a model that takes {_shape(input_size)}; give .npy files")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(path, formats=IMAGE_FORMATS) as image:
                pixels = _pixels(image, channels)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise UnsafeError(f"{path}: refused: {error} Cut the image into smaller ones") from error
    except UnidentifiedImageError as error:
        raise UsageError(f"{path}: is no image; samples are {_READS}") from error
    return torch.from_numpy(pixels).permute(2, 0, 1).unsqueeze(0).contiguous()


def _pixels(image: Image.Image, channels: int) -> NDArray[np.float64]:
    """[H, W, C] in [0, 1]. Grey images of 16 bits keep them, where Pillow's own conversion would clip."""
    if image.mode.startswith("I"):
        grey = np.asarray(image, dtype=np.float64)[..., None] / 65535
        return np.repeat(grey, channels, axis=2)
    pixels = np.asarray(image.convert(_MODES[channels]), dtype=np.float64) / 255
    return pixels.reshape(image.height, image.width, channels)


def _normalized(image: Tensor, mean: Sequence[float] | None, std: Sequence[float] | None, path: Path) -> Tensor:
    for name, values in (("mean", mean), ("std", std)):
        if values is not None and len(values) not in (1, image.shape[1]):
            raise UsageError(f"{path}: {name} has {len(values)} values for {image.shape[1]} channels; give as many")
    if std is not None and 0 in std:
        raise UsageError(f"{path}: std is {tuple(std)}; it divides, hence must not be 0")
    shift = torch.tensor(mean if mean is not None else (0.0,), dtype=image.dtype).reshape(-1, 1, 1)
    scale = torch.tensor(std if std is not None else (1.0,), dtype=image.dtype).reshape(-1, 1, 1)
    return (image - shift) / scale


# ---- arrays --------------------------------------------------------------------------------------

Array = NDArray[np.generic]


def _read_npy(file: IO[bytes], size: int, name: str) -> Array:
    """One array from a seekable stream of `size` bytes; its header is checked before anything is allocated."""
    version = npy.read_magic(file)
    if version not in ((1, 0), (2, 0)):
        raise UsageError(f"{name}: version {version} of the npy format; save plain numbers with numpy.save")
    shape, _, dtype = (npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0)(file)
    if dtype.hasobject:
        raise UnsafeError(f"{name}: refused: an array of Python objects, which are pickled code; save plain numbers")
    if dtype.kind not in "fiub":
        raise UsageError(f"{name}: holds {dtype}; save real numbers")
    declared = math.prod(shape) * dtype.itemsize
    if declared > _MAX_BYTES:
        raise UnsafeError(f"{name}: refused: its header declares {declared / 2**30:.0f} GiB; give smaller samples")
    held = size - file.tell()
    if declared != held:
        raise UsageError(f"{name}: truncated or damaged: it holds {held} bytes of data, its header declares {declared}")
    file.seek(0)
    return np.asarray(npy.read_array(file, allow_pickle=False))


def _read_npz(path: Path) -> Iterator[tuple[str, Array]]:
    """Every array of the archive, under the name "file[array]"."""
    with zipfile.ZipFile(path) as archive:
        entries = archive.infolist()
        declared = sum(entry.file_size for entry in entries)
        packed = max(1, path.stat().st_size)
        if declared > _MAX_BYTES or (declared > _BOMB_BYTES and declared > _BOMB_RATIO * packed):
            raise UnsafeError(
                f"{path}: refused: {packed} bytes that unpack to {declared}, as a zip bomb does; give smaller samples"
            )
        if not entries:
            raise UsageError(f"{path}: holds no arrays; samples are {_READS}")
        for entry in entries:
            name = f"{path}[{entry.filename.removesuffix('.npy')}]"
            with archive.open(entry) as file:
                yield name, _read_npy(file, entry.file_size, name)


def _array_sample(name: str, array: Array, input_size: tuple[int, ...], dtype: torch.dtype) -> Sample:
    """The array as one sample; [C, ...] becomes [1, C, ...]."""
    axes = len(input_size)
    batched = array[None] if array.ndim == axes else array
    if batched.ndim != axes + 1 or batched.shape[1] != input_size[0] or not batched.size:
        raise UsageError(
            f"{name}: an array of shape {list(array.shape)}; the model takes {_shape(input_size)}, "
            "with or without a batch axis before it"
        )
    plain = np.ascontiguousarray(batched, dtype=np.float64)
    if not np.isfinite(plain).all():
        raise UsageError(f"{name}: holds values that are not finite, with which nothing can be compared; take them out")
    return Sample(name, torch.from_numpy(plain).to(dtype))


def _shape(input_size: tuple[int, ...]) -> str:
    axes = {1: "L", 2: "HW", 3: "DHW"}.get(len(input_size) - 1, "")
    return f"[{', '.join([str(input_size[0]), *axes])}]"
