"""Samples: what files become, at their own size, and what is refused before it costs memory or runs code."""

from __future__ import annotations

import io
import os
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from densify.errors import DensifyError, UnsafeError, UsageError
from densify.samples import random_inputs, read_samples, verification_sizes

RGB = (3, 32, 32)


def _image(path: Path, height: int = 5, width: int = 7, mode: str = "RGB") -> NDArray[np.uint8]:
    shape = (height, width) if mode == "L" else (height, width, len(mode))
    pixels = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    return pixels


# ---- images --------------------------------------------------------------------------------------


def test_image_keeps_its_size_and_is_scaled_to_one(tmp_path: Path) -> None:
    pixels = _image(tmp_path / "a.png")
    (sample,) = read_samples([tmp_path / "a.png"], RGB, dtype=torch.float64)
    assert sample.name.endswith("a.png")
    assert torch.equal(sample.tensor, torch.from_numpy(pixels).permute(2, 0, 1)[None] / torch.tensor(255.0).double())


def test_mean_and_std_are_per_channel(tmp_path: Path) -> None:
    _image(tmp_path / "a.png")
    mean, std = (0.1, 0.2, 0.3), (0.5, 0.25, 2.0)
    (plain,) = read_samples([tmp_path / "a.png"], RGB, dtype=torch.float64)
    (normal,) = read_samples([tmp_path / "a.png"], RGB, mean, std, dtype=torch.float64)
    back = normal.tensor * torch.tensor(std).double().view(-1, 1, 1) + torch.tensor(mean).double().view(-1, 1, 1)
    assert torch.allclose(back, plain.tensor, atol=1e-7, rtol=0)
    assert not torch.allclose(normal.tensor, plain.tensor)


@pytest.mark.parametrize(("mode", "channels"), [("L", 1), ("L", 3), ("RGB", 1), ("RGBA", 3), ("RGBA", 4)])
def test_channels_are_those_of_the_model(tmp_path: Path, mode: str, channels: int) -> None:
    _image(tmp_path / "a.png", mode=mode)
    (sample,) = read_samples([tmp_path / "a.png"], (channels, 32, 32))
    assert sample.tensor.shape == (1, channels, 5, 7)
    assert sample.tensor.dtype is torch.float32
    assert 0 <= sample.tensor.min() < sample.tensor.max() <= 1


def test_sixteen_bit_images_keep_their_bits(tmp_path: Path) -> None:
    pixels = np.array([[0, 1, 65535], [256, 300, 40000]], dtype=np.uint16)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    (sample,) = read_samples([tmp_path / "a.png"], (1, 8, 8), dtype=torch.float64)
    assert torch.equal(sample.tensor[0, 0], torch.from_numpy(pixels.astype(np.float64)) / 65535)


@pytest.mark.parametrize("suffix", [".jpg", ".bmp", ".webp", ".tif", ".ppm"])
def test_other_image_formats(tmp_path: Path, suffix: str) -> None:
    _image(tmp_path / f"a{suffix}")
    (sample,) = read_samples([tmp_path / f"a{suffix}"], RGB)
    assert sample.tensor.shape == (1, 3, 5, 7)


def test_too_many_pixels_are_unsafe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _image(tmp_path / "a.png", 20, 20)
    for limit in (300, 100):  # Pillow warns above its limit and raises above twice of it
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
        with pytest.raises(UnsafeError, match=r"a\.png: refused"):
            read_samples([tmp_path / "a.png"], RGB)


def test_formats_that_start_other_programs_are_no_images(tmp_path: Path) -> None:
    (tmp_path / "a.eps").write_text("%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 5 5\n%%EndComments\nshowpage\n")
    with pytest.raises(UsageError, match="is no image"):
        read_samples([tmp_path / "a.eps"], RGB)


@pytest.mark.parametrize("content", [b"", b"hello", b"\x89PNG\r\n\x1a\n", b"PK\x03\x04"])
@pytest.mark.parametrize("suffix", [".png", ".txt", ".npy", ".npz"])
def test_foreign_files_are_one_message(tmp_path: Path, content: bytes, suffix: str) -> None:
    path = tmp_path / f"a{suffix}"
    path.write_bytes(content)
    with pytest.raises(UsageError, match=rf"a\{suffix}: .*samples are .*\.npy and \.npz"):
        read_samples([path], RGB)


def test_missing_file_and_folder(tmp_path: Path) -> None:
    for path in (tmp_path / "nothing.png", tmp_path):
        with pytest.raises(UsageError, match="there is no such file"):
            read_samples([path], RGB)


@pytest.mark.parametrize("input_size", [(2, 8, 8), (3, 8), (3, 8, 8, 8)])
def test_model_that_takes_no_images(tmp_path: Path, input_size: tuple[int, ...]) -> None:
    _image(tmp_path / "a.png")
    with pytest.raises(UsageError, match=r"no input for a model.*\.npy"):
        read_samples([tmp_path / "a.png"], input_size)


def test_preprocessing_that_does_not_fit(tmp_path: Path) -> None:
    _image(tmp_path / "a.png")
    with pytest.raises(UsageError, match="mean has 2 values for 3 channels"):
        read_samples([tmp_path / "a.png"], RGB, mean=(0.5, 0.5))
    with pytest.raises(UsageError, match="must not be 0"):
        read_samples([tmp_path / "a.png"], RGB, std=(1.0, 0.0, 1.0))


# ---- arrays --------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["float32", "float64", "float16", "uint8", "int64", "bool", ">f4"])
@pytest.mark.parametrize("order", ["C", "F"])
def test_arrays_are_taken_as_they_are(tmp_path: Path, dtype: str, order: str) -> None:
    array = np.asarray(np.random.default_rng(0).integers(0, 2, (2, 3, 5, 7)), dtype=dtype, order=order)  # type: ignore[call-overload]
    np.save(tmp_path / "a.npy", array)
    (sample,) = read_samples([tmp_path / "a.npy"], RGB, mean=(9, 9, 9), std=(9, 9, 9))
    assert torch.equal(sample.tensor, torch.from_numpy(array.astype("float32", order="C")))


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_every_array_of_an_npz(tmp_path: Path, save: object) -> None:
    assert callable(save)
    save(tmp_path / "a.npz", one=np.ones((3, 4, 5), np.float32), two=np.zeros((2, 3, 6, 7), np.float32))
    one, two = read_samples([tmp_path / "a.npz"], RGB)
    assert one.name.endswith("a.npz[one]")
    assert one.tensor.shape == (1, 3, 4, 5)
    assert two.tensor.shape == (2, 3, 6, 7)


@pytest.mark.parametrize("input_size", [(2, 9), (2, 9, 9, 9)])
def test_arrays_of_one_and_three_axes(tmp_path: Path, input_size: tuple[int, ...]) -> None:
    np.save(tmp_path / "a.npy", np.ones(input_size))
    (sample,) = read_samples([tmp_path / "a.npy"], input_size)
    assert sample.tensor.shape == (1, *input_size)


@pytest.mark.parametrize("shape", [(5, 7), (1, 5, 7), (2, 1, 5, 7), (1, 1, 3, 5, 7), (3, 0, 7), ()])
def test_arrays_of_other_shapes_are_refused(tmp_path: Path, shape: tuple[int, ...]) -> None:
    np.save(tmp_path / "a.npy", np.ones(shape))
    with pytest.raises(UsageError, match=r"a\.npy: an array of shape .*; the model takes \[3, H, W\]"):
        read_samples([tmp_path / "a.npy"], RGB)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_values_that_are_not_finite_are_refused(tmp_path: Path, bad: float) -> None:
    array = np.ones((3, 5, 7))
    array[1, 2, 3] = bad
    np.save(tmp_path / "a.npy", array)
    with pytest.raises(UsageError, match="not finite"):
        read_samples([tmp_path / "a.npy"], RGB)


@pytest.mark.parametrize("array", [np.ones((3, 5, 7), complex), np.full((3, 5, 7), "text"), np.zeros(3, "i4,f4")])
def test_other_kinds_of_numbers_are_refused(tmp_path: Path, array: object) -> None:
    np.save(tmp_path / "a.npy", array)  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="save real numbers"):
        read_samples([tmp_path / "a.npy"], RGB)


class _Evil:
    """Makes a folder when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("suffix", [".npy", ".npz"])
def test_pickled_arrays_are_unsafe_and_not_run(tmp_path: Path, suffix: str) -> None:
    array = np.array([_Evil(tmp_path / "pwned")], dtype=object)
    path = tmp_path / f"a{suffix}"
    (np.save if suffix == ".npy" else np.savez)(path, array)
    with pytest.raises(UnsafeError, match="Python objects"):
        read_samples([path], RGB)
    assert not (tmp_path / "pwned").exists()
    np.load(path, allow_pickle=True)[() if suffix == ".npy" else "arr_0"]  # the trap works: this is what was not done
    assert (tmp_path / "pwned").exists()


def _header(shape: tuple[int, ...], data: bytes = b"") -> bytes:
    stream = io.BytesIO()
    np.lib.format.write_array_header_1_0(stream, {"descr": "<f4", "fortran_order": False, "shape": shape})
    return stream.getvalue() + data


def test_header_that_declares_more_than_there_is(tmp_path: Path) -> None:
    (tmp_path / "a.npy").write_bytes(_header((3, 10**6, 10**6)))
    with pytest.raises(UnsafeError, match="declares 11176 GiB"):
        read_samples([tmp_path / "a.npy"], RGB)
    for data in (b"1234" * 2, b"1234" * 4):
        (tmp_path / "a.npy").write_bytes(_header((3, 1, 1), data))
        with pytest.raises(UsageError, match=r"truncated or damaged: it holds .* its header declares 12"):
            read_samples([tmp_path / "a.npy"], RGB)
    (tmp_path / "a.npy").write_bytes(_header((3, 1, 1), b"\0" * 12))
    assert len(read_samples([tmp_path / "a.npy"], RGB)) == 1


@pytest.mark.parametrize("size", [65 * 2**20, 5 * 2**30])
def test_zip_bombs_are_unsafe(tmp_path: Path, size: int) -> None:
    """Once honest (zeros that do shrink a thousandfold), once with a size that is merely declared."""
    path = tmp_path / "a.npz"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a.npy", _header((3, 1, 1)) + bytes(min(size, 65 * 2**20)))
    if size > 2**32:
        raw = bytearray(path.read_bytes())
        at = raw.rindex(b"PK\x01\x02") + 24
        raw[at : at + 4] = (2**32 - 2).to_bytes(4, "little")
        path.write_bytes(raw)
    with pytest.raises(UnsafeError, match="zip bomb"):
        read_samples([path], RGB)


@pytest.mark.parametrize("name", ["a.npy", "a.npz", "a.png", "a.jpg"])
def test_damage_never_leaks_another_error(tmp_path: Path, name: str) -> None:
    """Cut off anywhere, or with a few bytes changed: read all the same, or one of densify's errors."""
    path = tmp_path / name
    if name == "a.npy":
        np.save(path, np.ones((3, 4, 5), np.float32))
    elif name == "a.npz":
        np.savez_compressed(path, a=np.ones((3, 4, 5), np.float32), b=np.ones((3, 4, 5), np.float32))
    else:
        _image(path)
    whole, rng = path.read_bytes(), np.random.default_rng(1)
    messages = []
    for round_ in range(60):
        damaged = bytearray(whole[: rng.integers(len(whole))] if round_ % 3 == 0 else whole)
        for at in rng.integers(len(damaged), size=3) if damaged else ():
            damaged[at] = rng.integers(256)
        path.write_bytes(damaged)
        try:
            read_samples([path], RGB)
        except DensifyError as error:
            messages.append(str(error))
    assert len(messages) > 20
    assert all(name in message for message in messages)


# ---- random inputs -------------------------------------------------------------------------------


def test_random_inputs_repeat_and_differ() -> None:
    sizes = [(8, 8), (9, 11)]
    first, again, other = (random_inputs((3, 8, 8), sizes, seed) for seed in (0, 0, 1))
    assert [tuple(s.tensor.shape) for s in first] == [(1, 3, 8, 8), (1, 3, 9, 11)]
    assert [s.name for s in first] == ["random 8x8", "random 9x11"]
    assert all(torch.equal(a.tensor, b.tensor) for a, b in zip(first, again, strict=True))
    assert not any(torch.equal(a.tensor, b.tensor) for a, b in zip(first, other, strict=True))
    assert random_inputs((3, 8, 8), sizes, batch=2, dtype=torch.float64)[0].tensor.dtype is torch.float64


def test_random_inputs_leave_the_global_state_alone() -> None:
    state = torch.get_rng_state()
    random_inputs((1, 4), [(4,)])
    assert torch.equal(state, torch.get_rng_state())


@pytest.mark.parametrize(
    "reference", [(224, 224), (299, 299), (28, 28), (1, 1), (32, 100), (100, 90), (64,), (8, 8, 8)]
)
def test_verification_sizes(reference: tuple[int, ...]) -> None:
    first, larger, odd = verification_sizes(reference)
    assert first == reference
    assert all(a > n and b > n for a, b, n in zip(larger, odd, reference, strict=True))
    assert all(n % 2 for n in odd)
    assert len(set(odd)) == len(odd)
    assert len({first, larger, odd}) == 3
