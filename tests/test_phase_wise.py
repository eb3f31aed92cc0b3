"""Ops without a dilated form run on every phase by itself: law 3 says what that is, and the tests do it by hand."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch
import torch.nn.functional as F
from small import images, seeded
from torch import Tensor, nn

import densify
from densify.errors import RefusedError


class Squeeze(nn.Module):
    """Squeeze-and-excitation, its vectors made maps again by a view."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how = how
        self.down, self.up = nn.Conv2d(8, 2, 1), nn.Conv2d(2, 8, 1)
        self.first, self.second = nn.Linear(8, 2), nn.Linear(2, 8)

    def forward(self, x: Tensor) -> Tensor:
        if self.how == "conv":
            s = F.adaptive_avg_pool2d(x, 1)
            scale: Tensor = torch.sigmoid(self.up(torch.relu(self.down(s))))
            return x * scale
        if self.how == "linear":
            s = self.second(torch.relu(self.first(x.mean((2, 3)))))
            return x * torch.sigmoid(s).view(x.size(0), x.size(1), 1, 1)
        if self.how == "unsqueeze":
            s = self.second(torch.relu(self.first(x.flatten(2).max(2)[0])))
            return x * torch.sigmoid(s).unsqueeze(-1).unsqueeze(-1)
        s = self.second(torch.relu(self.first(F.adaptive_max_pool2d(x, 1).flatten(1))))
        return x * torch.sigmoid(s)[:, :, None, None]


class Attention(nn.Module):
    """Self-attention over all positions."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.qkv, self.out = nn.LayerNorm(8), nn.Linear(8, 24), nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        batch, channels, height, width = x.shape
        tokens = self.norm(x.flatten(2).transpose(1, 2))
        q, k, v = self.qkv(tokens).reshape(batch, height * width, 3, 2, channels // 2).permute(2, 0, 3, 1, 4).unbind(0)
        weights = (q @ k.transpose(-2, -1) * (channels // 2) ** -0.5).softmax(-1)
        made = (weights @ v).transpose(1, 2).reshape(batch, height * width, channels)
        mixed: Tensor = self.out(made).transpose(1, 2).reshape(batch, channels, height, width)
        return x + mixed


class ChannelsLast(nn.Module):
    """ConvNeXt's block: permute, LayerNorm, Linear, back."""

    def __init__(self) -> None:
        super().__init__()
        self.depthwise = nn.Conv2d(8, 8, 7, padding=3, groups=8)
        self.norm, self.up, self.down = nn.LayerNorm(8), nn.Linear(8, 16), nn.Linear(16, 8)
        self.scale = nn.Parameter(torch.ones(8, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.down(F.gelu(self.up(self.norm(self.depthwise(x).permute(0, 2, 3, 1)))))
        return x + self.scale * y.permute(0, 3, 1, 2)


class Call(nn.Module):
    """Any function as a module."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


def shuffle(x: Tensor) -> Tensor:
    batch, channels, height, width = x.shape
    return x.view(batch, 2, channels // 2, height, width).transpose(1, 2).contiguous().view(batch, -1, height, width)


def response_norm(x: Tensor) -> Tensor:
    """ConvNeXt V2's global response normalisation."""
    total: Tensor = torch.linalg.vector_norm(x, dim=(2, 3), keepdim=True)
    return x * (total / (total.mean(1, keepdim=True) + 1e-6)) + x


def swap(x: Tensor) -> Tensor:
    first, second = torch.chunk(x, 2, dim=1)
    return torch.stack([second, first], dim=1).flatten(1, 2)


BLOCKS: dict[str, Callable[[], nn.Module]] = {
    "se conv": lambda: Squeeze("conv"),
    "se linear": lambda: Squeeze("linear"),
    "se index": lambda: Squeeze("index"),
    "se unsqueeze": lambda: Squeeze("unsqueeze"),
    "attention": Attention,
    "channels last": ChannelsLast,
    "group norm": lambda: nn.GroupNorm(2, 8),
    "instance norm": lambda: nn.InstanceNorm2d(8, affine=True),
    "spatial softmax": lambda: Call(lambda x: x.flatten(2).softmax(-1).view_as(x)),
    "softmax over a row": lambda: nn.Softmax(dim=3),
    "standardise": lambda: Call(lambda x: (x - x.mean((2, 3), keepdim=True)) / x.std((2, 3), keepdim=True)),
    "channel shuffle": lambda: Call(shuffle),
    "chunk and stack": lambda: Call(swap),
    "response norm": lambda: Call(response_norm),
    "cumulative sum": lambda: Call(lambda x: x.cumsum(2)),
    "flip": lambda: Call(lambda x: x.flip(3)),
    "roll": lambda: Call(lambda x: torch.roll(x, 1, dims=2)),
    "two in a row": lambda: nn.Sequential(nn.GroupNorm(2, 8), nn.SiLU(), nn.InstanceNorm2d(8)),
    "reflecting convolution": lambda: nn.Conv2d(8, 8, 3, padding=1, padding_mode="reflect"),
    "replicating convolution": lambda: nn.Conv2d(8, 8, (3, 5), padding=(1, 2), padding_mode="replicate"),
    "circular convolution": lambda: nn.Conv2d(8, 8, 3, padding=1, padding_mode="circular"),
    "padding by itself": lambda: nn.Sequential(nn.ZeroPad2d((1, 2, 0, 1)), nn.Conv2d(8, 8, (2, 4))),
    "a constant around": lambda: nn.Sequential(nn.ConstantPad2d(1, 0.5), nn.AvgPool2d(3, 1)),
    "reflection by itself": lambda: nn.Sequential(nn.ReflectionPad2d((2, 1, 0, 1)), nn.Conv2d(8, 8, (2, 4))),
    "crop and pad": lambda: Call(lambda x: F.pad(x[:, :, 1:, 2:-1], (2, 1, 1, 0))),
    "crop to a size": lambda: Call(lambda x: F.pad(x[..., : x.shape[3] - 1], (0, 1))),
    "run-time padding": lambda: Call(
        lambda x: F.avg_pool2d(F.pad(x, (x.shape[3] % 2, 2 - x.shape[3] % 2, 1, 1)), 3, 1)
    ),
    "even kernel": lambda: nn.Conv2d(8, 8, 4, padding="same"),
    "mean without keepdim": lambda: Call(lambda x: x - x.mean(1).unsqueeze(1)),
}


def phases(e: int) -> Iterator[tuple[int, int]]:
    return ((a, b) for a in range(e) for b in range(e))


@pytest.mark.parametrize("name", list(BLOCKS))
@pytest.mark.parametrize("form", ["dilated", "fragments"])
def test_every_phase_is_the_block_on_its_fragment(name: str, form: str) -> None:
    model = seeded(
        nn.Sequential(nn.Conv2d(3, 8, 3, stride=2, padding=1), nn.ReLU(), BLOCKS[name](), nn.Conv2d(8, 4, 1))
    )
    dense = densify.convert(model, (1, 3, 20, 28), start="0", form=form)
    for x in (images(20, 28), images(14, 22)):
        fine = torch.relu(F.conv2d(x, model[0].weight, model[0].bias, 1, 1))  # type: ignore[index]
        y = dense(x)
        assert y.shape == (2, 4, *x.shape[2:])
        for a, b in phases(2):
            expected = model[2:](fine[:, :, a::2, b::2])  # type: ignore[index]
            assert torch.allclose(y[:, :, a::2, b::2], expected, rtol=1e-11, atol=1e-11), (a, b)
        assert torch.allclose(y[:, :, ::2, ::2], model(x), rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize(
    "name", ["se conv", "se linear", "attention", "channels last", "group norm", "channel shuffle"]
)
def test_kept_strides_and_more_removed_ones_behind_it(name: str) -> None:
    model = seeded(
        nn.Sequential(
            nn.MaxPool2d(2), nn.Conv2d(3, 8, 3), BLOCKS[name](), nn.Conv2d(8, 8, 3, 2), BLOCKS[name](), nn.MaxPool2d(2)
        )
    )
    for layers in (["0"], ["0", "3"], ["0", "5"], ["0", "3", "5"]):
        dense = densify.convert(model, (1, 3, 33, 41), layers=layers)
        report = densify.verify(model, dense, [images(33, 41), images(38, 30)])
        assert report, report.failed


def test_what_was_not_touched_stays_as_it_is() -> None:
    model = seeded(nn.Sequential(nn.Conv2d(3, 8, 1), Attention(), nn.MaxPool2d(2)))
    dense = densify.convert(model, (1, 3, 12, 14), start="2")
    assert "space_to_batch" not in dense.code
    assert densify.verify(model, dense, images(12, 14))


def test_a_vector_made_a_map_in_front_of_what_is_touched() -> None:
    """On its way it is neither: a vector with one axis more."""
    model = seeded(nn.Sequential(nn.Conv2d(3, 8, 1), Squeeze("unsqueeze"), nn.MaxPool2d(2)))
    for form in ("dilated", "fragments"):
        dense = densify.convert(model, (1, 3, 12, 14), start="2", form=form)
        assert densify.verify(model, dense, images(12, 14))


def test_statistics_of_a_padded_map_whose_phases_are_incomplete() -> None:
    """With padding="valid" a statistic counts the samples that the padding added."""
    model = seeded(
        nn.Sequential(nn.MaxPool2d(2), nn.ZeroPad2d((1, 2, 0, 3)), nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1))
    )
    dense = densify.convert(model, (1, 3, 13, 14), start="0", padding="valid")
    for x in (images(13, 14), images(12, 17)):
        assert torch.allclose(dense(x)[:, :, ::2, ::2], model(x), rtol=1e-12)
        (one,) = densify.plan(model, x, start="0", padding="valid").outputs.values()
        assert tuple(dense(x).shape[2:]) == tuple(axis.dense for axis in one.axes)


def test_neighbouring_wraps_cancel() -> None:
    model = seeded(nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), ChannelsLast(), nn.Conv2d(8, 4, 1)))
    code = densify.convert(model, (1, 3, 20, 28), start="0").code
    calls = [line for line in code.splitlines() if "= densify_layers" in line]
    assert sum("space_to_batch" in line for line in calls) == 1
    assert sum("batch_to_space" in line for line in calls) == 1


def test_gradients_are_the_originals() -> None:
    model = seeded(
        nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), Attention(), Squeeze("linear"), nn.GroupNorm(2, 8), nn.Conv2d(8, 4, 1))
    )
    dense = densify.convert(model, (1, 3, 14, 18), start="0")
    x = images(14, 18)
    model(x).square().sum().backward()
    dense(x)[..., ::2, ::2].square().sum().backward()
    for (name, a), b in zip(model.named_parameters(), dense.parameters(), strict=True):
        if a.grad is None:
            assert b.grad is None
        else:
            assert torch.allclose(a.grad, b.grad, rtol=1e-9, atol=1e-9 * float(a.grad.abs().max())), name  # type: ignore[arg-type]


def test_the_oracle_sees_statistics_over_all_phases() -> None:
    model = seeded(nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.GroupNorm(2, 8)))
    x = images(20, 28)
    fine = F.conv2d(x, model[0].weight, model[0].bias, 1, 1)  # type: ignore[index]
    wrong = model[1](fine)  # type: ignore[index]
    assert not torch.allclose(wrong[:, :, ::2, ::2], model(x), rtol=1e-3)


def test_a_change_of_size_is_refused_with_its_place() -> None:
    model = nn.Sequential(nn.MaxPool2d(2), Call(lambda x: x.repeat(1, 1, 2, 2)))
    with pytest.raises(RefusedError, match=r"1.repeat \(test_phase_wise.py:\d+\): it makes the map 2 times as large"):
        densify.convert(model, (1, 3, 20, 28), start="0")


def test_incomplete_phases_are_refused() -> None:
    model = nn.Sequential(nn.MaxPool2d(2), nn.GroupNorm(1, 3))
    with pytest.raises(RefusedError, match='padding="valid" leaves phases incomplete'):
        densify.convert(model, (1, 3, 20, 28), start="0", padding="valid")


def test_random_regions_are_refused() -> None:
    with pytest.raises(RefusedError, match="its regions are random"):
        densify.convert(nn.Sequential(nn.MaxPool2d(2), nn.FractionalMaxPool2d(2, 3)), (1, 3, 20, 28), start="0")


def test_an_output_of_mixed_axes_is_refused() -> None:
    model = nn.Sequential(nn.MaxPool2d(2), Call(lambda x: x.permute(0, 2, 3, 1)))
    with pytest.raises(RefusedError, match="whose spatial axes are not those of a map"):
        densify.convert(model, (1, 3, 20, 28), start="0")


def test_cropping_more_than_a_padding_leaves_is_refused() -> None:
    """One sample of the original, cropped and padded again: of its phases, "valid" has the first alone."""
    model = seeded(nn.Sequential(nn.Conv2d(3, 4, 3, stride=2), Call(lambda x: F.pad(x, (1, -1))), nn.Conv2d(4, 4, 1)))
    with pytest.raises(RefusedError, match='crops 1 samples, of whose phases padding="valid" leaves 1'):
        densify.convert(model, (1, 3, 9, 3), output_stride=1, padding="valid")
    dense = densify.convert(model, (1, 3, 9, 3), output_stride=1)
    assert densify.verify(model, dense, images(9, 3))
