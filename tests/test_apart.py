"""Ops that mix the images of a batch, draw random numbers, or change what is read again: refused on phases."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from small import images, seeded
from test_phase_wise import Call
from torch import Tensor, nn

import densify
from densify.errors import ConversionError, RefusedError

Program = Callable[[Tensor], Tensor]


def around(program: Program | nn.Module) -> nn.Module:
    """A program between a convolution and a pooling, both strided."""
    block = program if isinstance(program, nn.Module) else Call(program)
    return seeded(nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.Softplus(), block, nn.MaxPool2d(3, 2, 1)))


def one_by_one(x: Tensor) -> Tensor:
    y = torch.zeros_like(x)
    for i in range(x.shape[0]):
        y[i] = 2 * x[i]
    return y


MIXING: dict[str, Program] = {
    "mean image": lambda x: x - x.mean(0),
    "mean image, keepdim": lambda x: x - x.mean(0, keepdim=True),
    "mean of all": lambda x: x / x.mean(),
    "least of all": lambda x: x - x.min(),
    "norm of all": lambda x: x / torch.norm(x),
    "normalised over images": lambda x: F.normalize(x, dim=0),
    "flipped": lambda x: x.flip(0),
    "flipped, space too": lambda x: x.flip((0, 2)),
    "rolled": lambda x: torch.roll(x, 1, 0),
    "rolled as one": lambda x: torch.roll(x, 1),
    "running sum": lambda x: x.cumsum(0),
    "sorted": lambda x: x.sort(0)[0],
    "rolled by two": lambda x: torch.roll(x, 2, 0),
    "one by one": lambda x: one_by_one(x),
    "the last alone": lambda x: torch.cat([x[:-1], x[-1:] * 2]),
    "numbered, in an einsum": lambda x: torch.einsum("bchw,b->bchw", x, torch.arange(1.0, x.shape[0] + 1).to(x)),
    "padded with their number": lambda x: F.pad(x, (1, 1, 1, 1), value=x.shape[0]),
    "normalised by their number": lambda x: F.local_response_norm(x, 3, k=x.shape[0]),
    "a mask flipped": lambda x: torch.where((x > 0.7).flip(0), x, -x),
    "mixed behind a threshold": lambda x: x * (x.mean(0, keepdim=True) < 100),
    "mixed beside large numbers": lambda x: x - x.amax(0, keepdim=True).clamp(min=50),
    "counted": lambda x: x + torch.full_like(x, x.shape[0]),
    "first image": lambda x: x + x[0],
    "last image": lambda x: x - x[-1:],
    "tokens of all images": lambda x: x.flatten(2).transpose(0, 1).softmax(1).transpose(0, 1).view(x.shape),
    "deviation between images": lambda x: torch.cat([x, x.std(0).mean().expand(x.shape[0], 1, *x.shape[2:])], 1),
    "inner products of vectors": lambda x: x * F.normalize(x.mean((2, 3)), dim=0)[:, :, None, None],
}


@pytest.mark.parametrize("name", MIXING)
@pytest.mark.parametrize("batch", [1, 2])
def test_mixing_images_is_refused_where_phases_are_images(name: str, batch: int) -> None:
    model = around(MIXING[name])
    for choice in ({"output_stride": 1}, {"layers": ["0"]}):
        with pytest.raises(RefusedError, match="2.*it mixes the images of a batch, or counts them"):
            densify.convert(model, (batch, 3, 17, 22), **choice)


def test_mixing_images_before_the_first_phase_is_the_originals_business() -> None:
    model = around(MIXING["mean of all"])
    dense = densify.convert(model, (2, 3, 17, 22), layers=["3"])
    assert densify.verify(model, dense, images(17, 22))


def test_images_side_by_side_are_kept_apart() -> None:
    model = around(lambda x: torch.cat([x, 2 * x]).chunk(2)[1] + torch.stack([x, x * x]).sum(0))
    dense = densify.convert(model, (2, 3, 17, 22), output_stride=1)
    assert densify.verify(model, dense, [images(17, 22), images(20, 19, batch=3)])


@pytest.mark.parametrize("batch", [1, 2])
def test_vectors_with_the_images_along_another_axis(batch: int) -> None:
    model = around(lambda x: x * (x.mean((2, 3)).t().sigmoid() - 2).t()[:, :, None, None])
    dense = densify.convert(model, (batch, 3, 17, 22), output_stride=1)
    assert densify.verify(model, dense, [images(17, 22), images(20, 19, batch=3)])


@pytest.mark.parametrize(
    ("block", "words"),
    [
        (nn.BatchNorm2d(8, track_running_stats=False), "statistics from the batch in eval mode too"),
        (lambda x: F.batch_norm(x, None, None, training=True), "statistics from the batch in eval mode too"),
        (lambda x: F.dropout(x), "it drops in eval mode too"),
        (lambda x: x + torch.randn_like(x), "draws random numbers in eval mode"),
        (lambda x: F.gumbel_softmax(x, dim=1), "draws random numbers in eval mode"),
        (lambda x: x.view(2, 8, -1).softmax(-1).view(2, 8, *x.shape[2:]), "takes a batch of the example's size alone"),
        (lambda x: x * x.stride(1), "makes a number or a condition of a map"),
        (lambda x: x + torch.rand(x.shape), "draws random numbers in eval mode"),
        (lambda x: x + x.new_empty(x.shape).normal_(), "draws random numbers in eval mode"),
    ],
)
def test_what_has_no_original_to_be_equal_to_is_refused(block: nn.Module | Program, words: str) -> None:
    with pytest.raises(RefusedError, match=words):
        densify.convert(around(block), (2, 3, 17, 22), output_stride=1)


class Dropping(nn.Module):
    """Dropout as a function."""

    def forward(self, x: Tensor) -> Tensor:
        return F.dropout(x, training=self.training)


def test_train_mode_drops_as_it_should() -> None:
    dense = densify.convert(around(Dropping()), (2, 3, 17, 22), output_stride=1)
    x = images(17, 22)
    assert torch.equal(dense(x), dense(x))
    dense.train()
    assert not torch.equal(dense(x), dense(x))


def view_changed(x: Tensor) -> Tensor:
    x.flatten(2).mul_(2)
    return x


def permuted_changed(x: Tensor) -> Tensor:
    y = x.permute(0, 2, 3, 1)
    y += 1
    return x


def slice_changed(x: Tensor) -> Tensor:
    x[:, :, ::2].mul_(3)
    return x


def read_before_and_after(x: Tensor) -> Tensor:
    before = F.group_norm(x, 2)
    F.relu_(x.sub_(1))
    return before + F.group_norm(x, 2)


@pytest.mark.parametrize("program", [view_changed, permuted_changed, slice_changed])
def test_changes_that_a_copy_would_not_see_are_refused(program: Program) -> None:
    with pytest.raises(RefusedError, match="changes a tensor in place that is read again"):
        densify.convert(around(program), (2, 3, 17, 22), output_stride=1)
    dense = densify.convert(around(program), (2, 3, 17, 22), layers=["3"])
    assert densify.verify(around(program), dense, images(17, 22))


def cropped_changed(x: Tensor) -> Tensor:
    x[:, :, 1:].mul_(2)
    return x


def changed_and_read(x: Tensor) -> Tensor:
    y = F.group_norm(x, 2)
    return y.sub_(1) + y


def numbered(x: Tensor) -> Tensor:
    """By what every image has of its own: the same for all its phases."""
    return x * torch.arange(1.0, x.shape[0] + 1, dtype=x.dtype)[:, None, None, None]


@pytest.mark.parametrize("form", ["dilated", "fragments"])
def test_a_factor_of_an_image_is_one_of_all_its_phases(form: str) -> None:
    model = around(numbered)
    dense = densify.convert(model, (1, 3, 17, 22), output_stride=1, form=form)
    x = images(17, 22, batch=3)
    for i in range(3):
        part = nn.Sequential(
            *list(model.children())[:2], Call(partial(torch.mul, other=i + 1.0)), nn.MaxPool2d(3, 2, 1)
        )
        alone = densify.convert(part, (1, 3, 17, 22), output_stride=1)
        assert torch.allclose(dense(x)[i : i + 1], alone(x[i : i + 1]), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("program", [cropped_changed, changed_and_read, read_before_and_after])
def test_changes_in_place_that_are_seen(program: Program) -> None:
    model = around(program)
    dense = densify.convert(model, (2, 3, 17, 22), output_stride=1)
    assert densify.verify(model, dense, [images(17, 22), images(20, 19)])


class PerImage(nn.Module):
    """Generalised mean pooling by the map's size, and a weight for every image, as dynamic convolutions have it."""

    def __init__(self) -> None:
        super().__init__()
        self.weights = nn.Linear(8, 8 * 9)

    def forward(self, x: Tensor) -> Tensor:
        batch, channels, height, width = x.shape
        pooled = F.avg_pool2d(x.pow(3), (x.size(-2), x.size(-1))).pow(1 / 3)
        weight = self.weights(pooled.flatten(1)).view(batch * channels, 1, 3, 3)
        made = F.conv2d(x.reshape(1, -1, height, width), weight, padding=1, groups=batch * channels)
        return made.view(x.shape)


def test_integers_given_to_torchs_functions_are_no_guards() -> None:
    model = around(PerImage())
    dense = densify.convert(model, (1, 3, 17, 22), output_stride=1)
    assert densify.verify(model, dense, [images(17, 22), images(20, 19, batch=3)])


def test_integers_that_decide_are_guards() -> None:
    def program(x: Tensor) -> Tensor:
        for _ in range(x.shape[2]):
            x = F.avg_pool2d(x, 1) * 1.5
        return x

    dense = densify.convert(around(program), (1, 3, 17, 22), output_stride=1)
    with pytest.raises(ConversionError, match="another way through the model"):
        dense(images(20, 22))
