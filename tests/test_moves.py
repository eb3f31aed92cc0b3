"""Space to depth as networks write it: views, permutations and unfolds between two maps."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from laws.integers import inputs, integer_weights
from test_phase_wise import Call
from torch import Tensor, nn

import densify
from densify.errors import RefusedError


def viewed(x: Tensor) -> Tensor:
    batch, channels, height, width = x.shape
    parts = x.view(batch, channels, height // 4, 4, width // 4, 4)
    moved = parts.permute(0, 3, 5, 1, 2, 4).contiguous()
    made: Tensor = moved.view(batch, channels * 16, height // 4, width // 4)
    return made


def unflattened(x: Tensor) -> Tensor:
    parts: Tensor = x.unflatten(3, (-1, 2)).unflatten(2, (-1, 3)).movedim((3, 5), (4, 3))
    return parts.flatten(1, 2).transpose(1, 3).transpose(1, 2).reshape(x.shape[0], -1, x.shape[2] // 3, x.shape[3] // 2)


def unfolded_twice(x: Tensor) -> Tensor:
    return x.unfold(2, 3, 2).unfold(3, 2, 2).permute(0, 1, 4, 5, 2, 3).flatten(1, 3)


def patches(x: Tensor) -> Tensor:
    size = [(n + 2 - 3) // 2 + 1 for n in x.shape[2:]]
    return F.unfold(x, 3, padding=1, stride=2).view(x.shape[0], -1, *size)


def dilated_patches(x: Tensor) -> Tensor:
    made = F.unfold(x, (2, 3), dilation=2, padding=(0, 2), stride=(3, 1))
    return made.view(x.shape[0], -1, (x.shape[2] - 3) // 3 + 1, x.shape[3])


def halves(x: Tensor) -> Tensor:
    """Swin's and Focus's way, along one axis, in the order of the far half first."""
    first, second = x.unflatten(3, (-1, 2)).unbind(-1)
    return torch.cat([second, first], 1)


class Unfolded(nn.Module):
    """The module form, inside another module."""

    def __init__(self) -> None:
        super().__init__()
        self.unfold, self.unflatten = nn.Unfold(2, stride=2), nn.Flatten(2)

    def forward(self, x: Tensor) -> Tensor:
        made: Tensor = self.unfold(x).transpose(1, 2)
        made = made.view(len(x), x.shape[2] // 2, x.shape[3] // 2, -1)
        return made.permute(0, 3, 1, 2)


CHAINS: dict[str, tuple[Callable[[], nn.Module], int, tuple[int, int], int]] = {
    "view": (lambda: Call(viewed), 48, (4, 4), 0),
    "unflatten": (lambda: Call(unflattened), 18, (3, 2), 0),
    "tensor.unfold": (lambda: Call(unfolded_twice), 18, (2, 2), 0),
    "F.unfold": (lambda: Call(patches), 27, (2, 2), 1),
    "dilated F.unfold": (lambda: Call(dilated_patches), 18, (3, 1), 2),
    "nn.Unfold": (Unfolded, 12, (2, 2), 0),
    "unbind": (lambda: Call(halves), 6, (1, 2), 0),
}


def network(*parts: nn.Module) -> nn.Module:
    model = nn.Sequential(*parts).double().eval()
    integer_weights(model, random.Random(1))
    return model


@pytest.mark.parametrize("form", ["dilated", "fragments"])
@pytest.mark.parametrize("name", CHAINS)
def test_a_removed_stride_gives_the_original_of_every_shift(name: str, form: str) -> None:
    make, channels, strides, border = CHAINS[name]
    model = network(make(), nn.Conv2d(channels, 4, 1))
    dense = densify.convert(model, (1, 3, 24, 36), output_stride=1, form=form)
    assert dense.lattices["output"] == tuple((stride, 0) for stride in strides)
    for height, width, batch in ((24, 36, 1), (36, 48, 2)):
        x = inputs((batch, 3, height, width))
        made = dense(x)
        assert torch.equal(made[..., :: strides[0], :: strides[1]], model(x))
        for r in range(strides[0]):
            for q in range(strides[1]):
                phase = made[..., r :: strides[0], q :: strides[1]]
                shifted = model(x[..., r : r + height - 12, q : q + width - 12])
                inner = [slice(border, n - border) for n in shifted.shape[2:]]
                assert torch.equal(phase[..., inner[0], inner[1]], shifted[..., inner[0], inner[1]]), (r, q)


@pytest.mark.parametrize("name", CHAINS)
def test_a_kept_stride_in_both_forms(name: str) -> None:
    make, channels, _, _ = CHAINS[name]
    model = network(nn.Conv2d(3, 3, 3, 2, 1), make(), nn.Conv2d(channels, 4, 3, padding=1))
    forms = [densify.convert(model, (2, 3, 48, 72), layers=["0"], form=form) for form in ("dilated", "fragments")]
    x = inputs((3, 3, 72, 48))
    made, fragments = (dense(x) for dense in forms)
    assert torch.equal(made, fragments)
    report = densify.verify(model, forms[0], x)
    assert report, report.failed
    wider = densify.convert(model, (2, 3, 48, 72), output_stride=1)
    assert densify.verify(model, wider, x)


def test_one_and_three_axes() -> None:
    def line(x: Tensor) -> Tensor:
        made: Tensor = x.unflatten(2, (-1, 3))
        return made.transpose(2, 3).flatten(1, 2)

    def cube(x: Tensor) -> Tensor:
        batch, channels, depth, height, width = x.shape
        return (
            x.view(batch, channels, depth // 2, 2, height, width)
            .transpose(2, 3)
            .reshape(batch, -1, depth // 2, height, width)
        )

    for run, shape, conv in (
        (line, (1, 2, 24), nn.Conv1d(6, 2, 3)),
        (cube, (1, 2, 8, 9, 7), nn.Conv3d(4, 2, 3)),
    ):
        model = network(Call(run), conv)
        dense = densify.convert(model, shape, output_stride=1)
        assert densify.verify(model, dense, inputs(shape))


@pytest.mark.parametrize(
    "change",
    [
        lambda y: y.softmax(2),
        lambda y: y * 2,
        lambda y: y.flip(2),
        torch.relu,
        torch.abs,
        lambda y: torch.where(y > -3, y, 0),
        lambda y: y.roll(1, 2),
        lambda y: torch.cat([y[:, :, 1:], y[:, :, :1]], 2),
    ],
)
def test_what_does_more_than_move_whole_windows_is_refused(change: Callable[[Tensor], Tensor]) -> None:
    def run(x: Tensor) -> Tensor:
        y = x.unflatten(3, (-1, 2)).unflatten(2, (-1, 2))
        return change(y).permute(0, 1, 3, 5, 2, 4).flatten(1, 3)

    model = network(Call(run), nn.Conv2d(12, 4, 1))
    with pytest.raises((RefusedError, densify.errors.UsageError)):
        densify.convert(model, (1, 3, 24, 36), output_stride=1)


def padded(x: Tensor) -> Tensor:
    """Torchvision's Swin: the example is even, another map may not be."""
    height, width = x.shape[2:]
    y = F.pad(x.permute(0, 2, 3, 1), (0, 0, 0, width % 2, 0, height % 2))
    return torch.cat([y[:, i::2, j::2] for i in (0, 1) for j in (0, 1)], -1).permute(0, 3, 1, 2)


def cropped(x: Tensor) -> Tensor:
    """From the front, to an even size."""
    y = x.permute(0, 2, 3, 1)[:, x.shape[2] % 2 :, x.shape[3] % 2 :]
    return F.pixel_unshuffle(y.permute(0, 3, 1, 2), 2)


def rounded(x: Tensor) -> Tensor:
    """Every other sample of an even map, of an odd one but the last."""
    y = F.interpolate(x.permute(0, 2, 3, 1).permute(0, 3, 1, 2), scale_factor=0.5)
    return torch.cat([y, -y, y, y], 1)


@pytest.mark.parametrize("run", [padded, cropped, rounded])
def test_what_is_another_window_at_another_size_is_refused_or_right(run: Callable[[Tensor], Tensor]) -> None:
    model = network(nn.Conv2d(3, 3, 3, 2, 1), Call(run), nn.Conv2d(12, 4, 1))
    try:
        dense = densify.convert(model, (1, 3, 32, 40), output_stride=1)
    except RefusedError:
        return
    for size in ((32, 40), (34, 42), (37, 43), (31, 45)):
        x, strides = inputs((1, 3, *size)), [stride for stride, _ in dense.lattices["output"]]
        assert torch.equal(dense(x)[:, :, :: strides[0], :: strides[1]], model(x))


def test_a_chain_that_is_read_on_the_way_stays_what_it_is() -> None:
    def run(x: Tensor) -> Tensor:
        y = F.unfold(x, 2, stride=2)
        made = y.view(x.shape[0], -1, x.shape[2] // 2, x.shape[3] // 2)
        return made * y.mean((1, 2)).view(-1, 1, 1, 1)

    model = network(nn.Conv2d(3, 3, 3, 2, 1), Call(run), nn.Conv2d(12, 4, 1))
    dense = densify.convert(model, (1, 3, 48, 72), layers=["0"])
    assert densify.verify(model, dense, inputs((2, 3, 72, 48)))


def test_two_samples_that_are_rolled_are_not_mirrored() -> None:
    """On two samples a roll and a flip are the same; at other sizes they are not."""

    class Rolled(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.roll(1, 2)

    model = nn.Sequential(nn.Conv2d(3, 3, 3, 2, 1), Rolled(), nn.Conv2d(3, 3, 2, 2)).double().eval()
    dense = densify.convert(model, (1, 3, 4, 8), output_stride=1)
    assert densify.verify(model, dense, [torch.randn(1, 3, *size).double() for size in ((4, 8), (12, 9))])
