"""What follows a merge: which ops leave an average an average, what verify can compare, and what it costs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import densify
from densify.errors import RefusedError

Tail = Callable[["Net", Tensor, Tensor, Tensor], Any]


class Net(nn.Module):
    """Two strided convolutions, x -> y -> z, and a tail of all three."""

    def __init__(self, tail: Tail) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.c1, self.c2 = nn.Conv2d(2, 4, 3, 2, 1), nn.Conv2d(4, 4, 3, 2, 1)
        self.up, self.down = nn.ConvTranspose2d(4, 4, 4, 2, 1), nn.Conv2d(4, 3, 3, 2, 1)
        self.point, self.cat = nn.Linear(4, 4), nn.Linear(8, 3)
        self.weight, self.bias = nn.Parameter(torch.randn(4, 2, 4, 4)), nn.Parameter(torch.randn(4))
        self.norm, self.tail = nn.BatchNorm2d(4), tail

    def forward(self, x: Tensor) -> Any:
        y = self.c1(x).relu()
        return self.tail(self, x, y, self.c2(y).relu())


def gate(net: Net, z: Tensor) -> Tensor:
    return torch.sigmoid(net.point(z.mean((2, 3))))[..., None, None]


def tokens(net: Net, y: Tensor, z: Tensor) -> Tensor:
    up = F.interpolate(z, scale_factor=2)
    made: Tensor = net.cat(torch.cat([up.permute(0, 2, 3, 1), y.permute(0, 2, 3, 1)], -1))
    return made.permute(0, 3, 1, 2)


AVERAGES: dict[str, Tail] = {
    "alone": lambda net, x, y, z: net.up(z),
    "sum with a skip": lambda net, x, y, z: net.up(z) + y,
    "difference, doubled": lambda net, x, y, z: 2 * (net.up(z) - y) / 3,
    "cat, up again": lambda net, x, y, z: net.up(torch.cat([net.up(z)[:, :2], y[:, :2]], 1)),
    "batch norm": lambda net, x, y, z: net.norm(net.up(z)),
    "average pooling": lambda net, x, y, z: F.avg_pool2d(net.up(z), 3, 1, 1),
    "up again": lambda net, x, y, z: F.interpolate(net.up(z), scale_factor=2, mode="bilinear"),
    "a skip that is not linear": lambda net, x, y, z: net.up(z) + y * y.relu(),
}
NEW: dict[str, Tail] = {
    "relu": lambda net, x, y, z: net.up(z).relu(),
    "product of maps": lambda net, x, y, z: net.up(z) * y,
    "square": lambda net, x, y, z: net.up(z) ** 2,
    "softmax": lambda net, x, y, z: net.up(z).softmax(1),
    "max pooling": lambda net, x, y, z: F.max_pool2d(net.up(z), 3, 1, 1),
    "rounded division": lambda net, x, y, z: torch.div(net.up(z), 0.1, rounding_mode="floor"),
    "quotient": lambda net, x, y, z: 1 / net.up(z),
    "stride": lambda net, x, y, z: net.down(net.up(z)),
    "strided average": lambda net, x, y, z: F.avg_pool2d(net.up(z), 2),
    "pixel unshuffle": lambda net, x, y, z: F.pixel_unshuffle(net.up(z), 2),
    "a deeper statistic joined": lambda net, x, y, z: net.up(z) + 5 * z.mean((2, 3), keepdim=True),
    "a gate of a deeper map": lambda net, x, y, z: F.interpolate(z, scale_factor=2) * gate(net, z),
    "a gated skip": lambda net, x, y, z: net.up(z) + y * torch.sigmoid(9 * z.mean((2, 3), keepdim=True)),
    "bins of a deeper map": lambda net, x, y, z: (
        net.up(z) + F.interpolate(F.adaptive_avg_pool2d(z, 2), size=y.shape[-2:])
    ),
    "tokens": lambda net, x, y, z: tokens(net, y, z),
    "computed weight and bias": lambda net, x, y, z: F.conv_transpose2d(
        z, net.weight * 2, net.bias + 1, stride=2, padding=1, groups=2
    ).relu(),
    "a vector per image": lambda net, x, y, z: net.point(
        F.adaptive_avg_pool2d(F.interpolate(z, scale_factor=2), 1).flatten(1)
    ),
}


def model_of(tail: Tail) -> nn.Module:
    model = Net(tail).double().eval()
    model.norm.running_mean = torch.randn(4).double()
    return model


def images(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


@pytest.mark.parametrize("name", [*AVERAGES, *NEW])
def test_marks_and_verification(name: str) -> None:
    """Marked as it is, and verified by brute force in both forms, at two sizes."""
    model = model_of((AVERAGES | NEW)[name])
    for form in ("dilated", "fragments"):
        dense = densify.convert(model, (1, 2, 24, 28), start="c1", merge="average", form=form)
        assert dense.lattices["output"].merged == ("average" if name in AVERAGES else "new")
        report = densify.verify(model, dense, [images(1, 2, 24, 28), images(2, 2, 32, 20)])
        assert report, report.failed
        assert "merges" in {check.law for check in report.checks}


@pytest.mark.parametrize("name", AVERAGES)
def test_an_average_is_one(name: str) -> None:
    """The original on every shifted image, in the middle of a large one."""
    model = model_of(AVERAGES[name])
    size, border = 96, 40
    large = images(1, 2, size + 4, size + 4)
    dense = densify.convert(model, (1, 2, size, size), start="c1", merge="average")
    with torch.no_grad():
        made = dense(large[..., :size, :size])
        shape = model(large[..., :size, :size]).shape
        scale = size // shape[-1]  # pixels per sample of the original
        est = dense.lattices["output"][0].stride
        pitch = scale // est
        total = torch.zeros_like(made)
        for a in range(4):
            for b in range(4):
                one = model(large[..., a : a + size, b : b + size])
                if pitch:
                    rows, columns = slice(a // pitch, None, est), slice(b // pitch, None, est)
                    kept = made[..., rows, columns].shape[2:]
                    total[..., rows, columns] += one[..., : kept[0], : kept[1]]
    inside = slice(border // pitch, (size - border) // pitch)
    expected = total[..., inside, inside] / (4 // est) ** 2
    assert (made[..., inside, inside] - expected).abs().max() <= 1e-12 * expected.abs().max()


@pytest.mark.parametrize("mode", ["nearest", "nearest-exact", "bilinear", "bicubic"])
@pytest.mark.parametrize("factor", [1.7777, 4 / 3, 0.3333])
def test_scale_factors_that_are_no_fractions(mode: str, factor: float) -> None:
    """On a map so long that the products of the numbers of their fraction would not fit an integer."""
    model = model_of(lambda net, x, y, z: F.interpolate(z, scale_factor=factor, mode=mode)).eval()
    dense = densify.convert(model, (1, 2, 1600, 16), start="c1", merge="resample")
    report = densify.verify(model, dense, images(1, 2, 1600, 16))
    assert report, report.failed
    assert ("merges", "output") in {(check.law, check.output) for check in report.checks}


def test_what_a_merge_drops_costs_nothing() -> None:
    model = model_of(lambda net, x, y, z: (net.up(z), z))
    costs = {
        merge: densify.plan(model, (1, 2, 32, 32), start="c1", merge=merge).cost for merge in ("select", "average")
    }
    kernels = 4 * 4 * 4 * 4  # of the transposed convolution, which reads 8 x 8 samples in the original
    assert costs["select"][0] == costs["average"][0]
    assert costs["average"][1] - costs["select"][1] == kernels * (32 * 32 - 16 * 16)


def test_antialiasing_goes_by_the_phase() -> None:
    model = model_of(lambda net, x, y, z: net.down(F.interpolate(z, scale_factor=0.5, mode="bilinear", antialias=True)))
    dense = densify.convert(model, (1, 2, 32, 32), layers=["down"])
    assert densify.verify(model, dense, images(1, 2, 48, 32))


def test_positions_of_a_resampled_map() -> None:
    """Nearest samples have no half-block lag, and neighbouring taps are neighbours in the dense map."""
    fields = {"nearest": (0.0, 7), "bilinear": (-1.5, 8)}
    for mode, (first, extent) in fields.items():
        model = model_of(lambda net, x, y, z, mode=mode: F.interpolate(z, scale_factor=4, mode=mode))  # type: ignore[misc]
        (at, _) = densify.convert(model, (1, 2, 48, 48), start="c1", merge="resample").positions["output"]
        assert (at.step, at.first, at.receptive_field) == (1, first, extent)


def test_a_strip_is_not_read_between_its_phases() -> None:
    """A statistic along one axis has phases that are no neighbours; `plan` names what the merges do."""
    model = model_of(lambda net, x, y, z: F.interpolate(z.mean(3, keepdim=True), size=x.shape[2:], mode="bilinear"))
    with pytest.raises(RefusedError, match="along one axis it meets a denser map"):
        densify.convert(model, (1, 2, 24, 28), start="c1", merge="resample")
    plain = densify.plan(model_of(lambda net, x, y, z: net.up(z)), (1, 2, 24, 28), start="c1", merge="average")
    assert plain.merges == {"up": "average"}
