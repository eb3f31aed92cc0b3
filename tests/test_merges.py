"""Upsamplings of dense maps: averages against the original on every shifted image, verification, refusals."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from itertools import product
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import densify
from densify import layers
from densify.errors import RefusedError
from densify.maps import Lattices, Merged, positions


class Scores(nn.Module):
    """A small FCN: two poolings and a convolution down, a skip, linear all the way up."""

    def __init__(self, *, relu: bool = False) -> None:
        super().__init__()
        self.conv1, self.pool1 = nn.Conv2d(3, 6, 3, padding=10), nn.MaxPool2d(2, ceil_mode=True)
        self.conv2, self.pool2 = nn.Conv2d(6, 6, 3, padding=1), nn.MaxPool2d(2, ceil_mode=True)
        self.conv3, self.pool3 = nn.Conv2d(6, 6, 3, padding=1), nn.MaxPool2d(2, ceil_mode=True)
        self.fc, self.skip = nn.Conv2d(6, 5, 3), nn.Conv2d(6, 5, 1)
        self.up2 = nn.ConvTranspose2d(5, 5, 4, 2)
        self.up4 = nn.ConvTranspose2d(5, 5, 8, 4, padding=2)
        self.relu = relu

    def forward(self, x: Tensor) -> Tensor:
        level = self.pool2(F.relu(self.conv2(self.pool1(F.relu(self.conv1(x))))))
        up = self.up2(self.fc(F.relu(self.pool3(F.relu(self.conv3(level))))))
        skip = self.skip(level)[:, :, 2 : 2 + up.shape[2], 2 : 2 + up.shape[3]]
        joined = up[:, :, : skip.shape[2], : skip.shape[3]] + skip
        y = self.up4(F.relu(joined) if self.relu else joined)
        made: Tensor = y[:, :, 5 : 5 + x.shape[2], 5 : 5 + x.shape[3]]
        return made


class Unpooled(nn.Module):
    """A pooling whose indices lead the way back."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.pool = nn.Conv2d(3, 6, 3, padding=1), nn.MaxPool2d(2, return_indices=True)
        self.conv2, self.conv3 = nn.Conv2d(6, 6, 3, padding=1), nn.Conv2d(6, 4, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv1(x)
        pooled, indices = self.pool(y)
        made: Tensor = self.conv3(F.max_unpool2d(F.relu(self.conv2(pooled)), indices, (2, 2), output_size=y.shape[2:]))
        return made


class Shuffled(nn.Module):
    """Sub-pixel convolution and an interpolation by a whole factor."""

    def __init__(self, mode: str) -> None:
        super().__init__()
        self.down = nn.Conv2d(3, 8, 5, stride=4, padding=2)
        self.up, self.shuffle = nn.Conv2d(8, 16, 3, padding=1), nn.PixelShuffle(2)
        self.mode, self.last = mode, nn.Conv2d(4, 3, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.shuffle(self.up(F.relu(self.down(x))))
        made: Tensor = self.last(F.interpolate(y, scale_factor=2, mode=self.mode))
        return made


AVERAGED: dict[str, tuple[Callable[[], nn.Module], str, int, int, int]] = {
    "transposed": (Scores, "pool2", 2, 4, 32),
    "unpool": (Unpooled, "pool", 1, 2, 8),
    "shuffle, nearest": (lambda: Shuffled("nearest"), "down", 1, 4, 16),
    "shuffle, bilinear": (lambda: Shuffled("bilinear"), "down", 1, 4, 16),
    "shuffle, bicubic": (lambda: Shuffled("bicubic"), "down", 1, 4, 24),
}


@pytest.mark.parametrize("name", AVERAGED)
def test_the_average_is_that_of_the_original_on_every_shifted_image(name: str) -> None:
    """Cycle spinning: the original runs whole on the image moved by every shift, and its results are moved back.

    Clear of the borders, where a shifted image holds other pixels.
    """
    build, start, step, shifts, border = AVERAGED[name]
    torch.manual_seed(0)
    model = build().double().eval()
    size = 2 * border + 37
    size -= size % (step * shifts)
    large = torch.randn(1, 3, size + step * shifts, size + step * shifts, dtype=torch.float64)
    image = large[..., :size, :size]
    dense = densify.convert(model, image, start=start, merge="average")
    assert dense.lattices["output"].merged == "average"
    with torch.no_grad():
        made, total = dense(image), torch.zeros_like(dense(image))
        for a, b in product(range(0, step * shifts, step), repeat=2):
            shifted = model(large[..., a : a + size, b : b + size])
            total[..., a:, b:] += shifted[..., : size - a, : size - b]
    inside = slice(border, size - border)
    made, expected = made[..., inside, inside], total[..., inside, inside] / shifts**2
    assert expected.abs().max() > 0.01
    assert (made - expected).abs().max() <= 1e-12 * expected.abs().max()
    assert (made - model(image)[..., inside, inside]).abs().max() > 0.01 * expected.abs().max()  # and not the original


@pytest.mark.parametrize("form", ["dilated", "fragments"])
@pytest.mark.parametrize("name", AVERAGED)
def test_verify_lists_the_laws_of_merges(name: str, form: str) -> None:
    build, start, *_ = AVERAGED[name]
    torch.manual_seed(0)
    model = build().double().eval()
    dense = densify.convert(model, (1, 3, 40, 44), start=start, merge="average", form=form)
    report = densify.verify(model, dense, [torch.randn(1, 3, 40, 44).double(), torch.randn(2, 3, 56, 36).double()])
    assert report, report.failed
    laws = {(check.law, check.output) for check in report.checks}
    assert {("size", "output"), ("forms", "output"), ("merges", "output")} <= laws
    assert ("grid", "output") not in laws
    assert {output for law, output in laws if law == "grid"}


def test_verify_finds_a_wrong_average(monkeypatch: pytest.MonkeyPatch) -> None:
    """In each way that it looks: the form with phases in the batch, and brute force."""
    right = layers.etransposed
    monkeypatch.setattr(layers, "etransposed", lambda *given: 1.001 * right(*given))
    model = Scores().double().eval()
    dense = densify.convert(model, (1, 3, 40, 44), start="pool2", merge="average")
    report = densify.verify(model, dense, torch.randn(1, 3, 40, 44).double())
    assert {check.law for check in report.failed} == {"forms", "merges"}


def test_what_is_not_linear_makes_a_network_of_its_own() -> None:
    for relu, mark in ((False, "average"), (True, "new")):
        dense = densify.convert(Scores(relu=relu).eval(), (1, 3, 40, 44), start="pool2", merge="average")
        assert dense.lattices["output"].merged == mark
        assert densify.verify(None, dense, torch.randn(1, 3, 40, 44))
        for other in (pickle.loads(pickle.dumps(dense)), copy.deepcopy(dense)):
            assert other.lattices == dense.lattices
            assert other.lattices["output"].merged == mark


class Hourglass(nn.Module):
    """Down, up, and down again: a stride behind an upsampling."""

    def __init__(self) -> None:
        super().__init__()
        self.down, self.up = nn.Conv2d(3, 4, 3, 2, 1), nn.ConvTranspose2d(4, 4, 2, 2)
        self.again, self.last = nn.Conv2d(4, 4, 3, 2, 1), nn.ConvTranspose2d(4, 3, 4, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        made: Tensor = self.last(F.relu(self.again(F.relu(self.up(F.relu(self.down(x)))))))
        return made


def test_a_stride_behind_a_merge_leaves_the_merge_to_check() -> None:
    """There the two forms are each other's test; the tensor right after the first merge has brute force."""
    model = Hourglass().double().eval()
    dense = densify.convert(model, (1, 3, 24, 28), output_stride=1, merge="average")
    report = densify.verify(model, dense, torch.randn(2, 3, 24, 28).double())
    assert report, report.failed
    assert {check.output for check in report.checks if check.law == "merges"} == {"up"}
    assert ("forms", "output") in {(check.law, check.output) for check in report.checks}


def test_lattices_say_what_was_merged() -> None:
    plain, merged = Lattices(((1, 0),)), Lattices(((1, 0),), Merged.AVERAGE)  # type: ignore[arg-type]
    assert plain == merged == ((1, 0),)
    assert repr(plain) == "((1, 0),)"
    assert "average" in repr(merged)
    assert pickle.loads(pickle.dumps(merged)).merged == "average"


class Joined(nn.Module):
    """Two branches of one image, at steps of their own."""

    def __init__(self, first: nn.Module, second: nn.Module, join: Any = torch.add) -> None:
        super().__init__()
        self.first, self.second, self.join = first, second, join

    def forward(self, x: Tensor) -> Tensor:
        a, b = self.first(x), self.second(x)
        made: Tensor = self.join(a[:, :, : b.shape[2], : b.shape[3]], b[:, :, : a.shape[2], : a.shape[3]])
        return made


def down(*strides: int) -> list[nn.Module]:
    return [nn.Conv2d(3, 3, 3, stride, 1) for stride in strides]


def refusal(model: nn.Module, **given: Any) -> str:
    with pytest.raises(RefusedError) as refused:
        densify.convert(model.eval(), (1, 3, 48, 48), **given)
    return str(refused.value)


def test_maps_behind_an_upsampling_meet_on_their_common_lattice() -> None:
    """Law 1 holds on it; the phases that only one of them has are left out."""
    up = nn.ConvTranspose2d(3, 3, 2, 2)
    model = Joined(nn.Sequential(*down(4, 2), up), nn.Sequential(*down(4))).double().eval()
    dense = densify.convert(model, (1, 3, 48, 52), layers=["first.0", "second.0"])
    assert [lattice.stride for lattice in dense.lattices["output"]] == [2, 2] or dense.lattices["output"][0].stride == 4
    assert densify.verify(model, dense, torch.randn(1, 3, 48, 52).double())
    fewer = densify.convert(model, (1, 3, 48, 52), layers=["first.0", "first.1"], merge="average")
    assert [lattice.stride for lattice in fewer.lattices["output"]] == [1, 1]
    assert densify.verify(model, fewer, torch.randn(1, 3, 60, 44).double())


def test_lattices_that_cannot_meet_are_refused_with_both_layers() -> None:
    model = Joined(nn.Sequential(*down(4), nn.Upsample(scale_factor=2)), nn.Sequential(*down(4)))
    text = refusal(model, output_stride=1)
    assert "lie on different lattices" in text
    assert "no shift of the image is one of them all" in text
    assert "(it reads getitem and getitem_1)" in text


def test_an_unknown_upsampling_is_refused_with_the_layer_that_it_reads() -> None:
    class Repeated(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.repeat_interleave(2, 2).repeat_interleave(2, 3)

    text = refusal(nn.Sequential(*down(2, 2), Repeated()), start="1")
    assert "makes the map 2 times as large" in text
    assert "(it reads 1)" in text


def test_select_explains_the_choice() -> None:
    """And offers what will work: a transposed convolution can be averaged, an interpolation to a size resampled."""
    text = refusal(Scores(), start="pool2")
    for part in ("up2", "(it reads fc)", "so do up4", 'Use merge="average"'):
        assert part in text
    assert 'merge="resample"' not in text
    sized = refusal(nn.Sequential(*down(2), nn.Upsample(size=(48, 48))), start="0")
    assert 'Use merge="resample"' in sized
    assert 'merge="average"' not in sized
    both = refusal(nn.Sequential(*down(2), nn.Upsample(scale_factor=2)), start="0")
    assert 'Use merge="average"' in both
    assert 'Use merge="resample"' in both


def test_averages_that_have_no_meaning_are_refused() -> None:
    for up in (nn.Upsample(scale_factor=1.5), nn.Upsample(size=(50, 50)), nn.UpsamplingBilinear2d(scale_factor=2)):
        text = refusal(nn.Sequential(*down(2), up), start="0", merge="average")
        assert "do not fall on its samples" in text
        assert 'Use merge="resample"' in text


def test_an_area_interpolation_is_not_resampled() -> None:
    text = refusal(nn.Sequential(*down(2), nn.Upsample(scale_factor=2, mode="area")), start="0", merge="resample")
    assert 'no rule for mode="area"' in text


def test_a_crop_that_would_cut_off_the_originals_samples_is_refused() -> None:
    """padding="same" moves them, so that a crop in front would take them away."""

    class Cropped(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x[:, :, 1:, 1:]

    text = refusal(nn.Sequential(*down(2), nn.Conv2d(3, 3, 3), Cropped()), start="0", padding="same")
    assert 'it pads or crops a map that padding="same" has moved (it reads 1)' in text


@pytest.mark.parametrize("merge", ["average", "resample"])
def test_phases_must_be_whole(merge: str) -> None:
    text = refusal(Scores(), start="pool2", merge=merge, padding="valid")
    assert 'padding="valid" leaves incomplete' in text


def test_output_sizes_of_another_map() -> None:
    """ConvTranspose2d called with output_size: torch's output_padding follows the sizes at run time."""

    class Sized(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.down, self.up = nn.Conv2d(3, 4, 3, 2, 1), nn.ConvTranspose2d(4, 3, 3, 2, 1)

        def forward(self, x: Tensor) -> Tensor:
            made: Tensor = self.up(self.down(x), output_size=x.shape[2:])
            return made

    model = Sized().double().eval()
    for form in ("dilated", "fragments"):
        dense = densify.convert(model, (1, 3, 21, 24), start="down", merge="average", form=form)
        report = densify.verify(model, dense, [torch.randn(1, 3, *size).double() for size in ((21, 24), (22, 23))])
        assert report, report.failed
        assert dense(torch.randn(1, 3, 22, 23).double()).shape == (1, 3, 22, 23)


def test_positions_behind_an_upsampling() -> None:
    """A transposed convolution with a centred kernel gives the pixels back to their places."""
    model = nn.Sequential(nn.Conv2d(3, 4, 2, 2), nn.ConvTranspose2d(4, 3, 4, 2, 1)).eval()
    dense = densify.convert(model, (1, 3, 24, 24), start="0", merge="average")
    assert [(at.step, at.first) for at in dense.positions["output"]] == [(1, 0.0), (1, 0.0)]
    finer = densify.inspect(nn.Sequential(nn.Conv2d(3, 4, 1), nn.Upsample(scale_factor=2)).eval(), (1, 3, 8, 8))
    assert positions(finer.outputs["output"])[0].step == 0.5
