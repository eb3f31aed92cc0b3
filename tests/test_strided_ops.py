"""Strided ops that are no convolution or pooling, and upsamplings inside a network."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from small import images, seeded
from test_phase_wise import Call
from torch import Tensor, nn

import densify
from densify.errors import RefusedError


class Blur(nn.Module):
    """Anti-aliased subsampling: reflection and a fixed depthwise kernel of stride 2, as timm and others write it."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("kernel", torch.tensor([1.0, 2.0, 1.0])[:, None] * torch.tensor([1.0, 2.0, 1.0]) / 16)

    def forward(self, x: Tensor) -> Tensor:
        kernel = self.kernel[None, None].expand(x.shape[1], -1, -1, -1)  # type: ignore[index]
        return F.conv2d(F.pad(x, (1, 1, 1, 1), "reflect"), kernel, stride=2, groups=x.shape[1])


class Same(nn.Conv2d):
    """TensorFlow's padding, computed from the size at run time."""

    def forward(self, x: Tensor) -> Tensor:
        total = [
            max((math.ceil(size / s) - 1) * s + k - size, 0)
            for size, k, s in zip(x.shape[2:], self.kernel_size, self.stride, strict=True)
        ]
        x = F.pad(x, [total[1] // 2, total[1] - total[1] // 2, total[0] // 2, total[0] - total[0] // 2])
        return F.conv2d(x, self.weight, self.bias, self.stride)


class Standardised(nn.Conv2d):
    """A convolution whose weight is computed in forward."""

    def forward(self, x: Tensor) -> Tensor:
        weight = self.weight - self.weight.mean((1, 2, 3), keepdim=True)
        return F.conv2d(x, weight / (weight.std((1, 2, 3), keepdim=True) + 1e-5), self.bias, self.stride, self.padding)


STRIDED: dict[str, Callable[[], nn.Module]] = {
    "slicing": lambda: Call(lambda x: x[..., ::2, ::2]),
    "slicing from 1": lambda: Call(lambda x: x[:, :, 1::2, ::3]),
    "pixel unshuffle": lambda: nn.Sequential(nn.PixelUnshuffle(2), nn.Conv2d(16, 4, 1)),
    "power pool": lambda: nn.Sequential(nn.Softplus(), nn.LPPool2d(2, 3, 2)),
    "power pool ceil": lambda: nn.Sequential(nn.Softplus(), nn.LPPool2d(3, 2, 2, ceil_mode=True)),
    "blur": Blur,
    "run-time same": lambda: Same(4, 4, 3, 2),
    "standardised weight": lambda: Standardised(4, 4, 3, 2, 1),
    "reflecting convolution": lambda: nn.Conv2d(4, 4, 3, 2, 1, padding_mode="reflect"),
    "one axis": lambda: nn.MaxPool2d((2, 1)),
    "other axis": lambda: nn.Conv2d(4, 4, (1, 3), (1, 2), (0, 1)),
}
SIZES = {"pixel unshuffle": ((32, 48), (24, 16)), "run-time same": ((31, 45), (23, 29))}


@pytest.mark.parametrize("name", STRIDED)
@pytest.mark.parametrize("layers", [["1"], ["1", "3"], ["3"], ["0", "1", "3"], ["0"]])
def test_chosen_and_kept(name: str, layers: list[str]) -> None:
    model = seeded(nn.Sequential(nn.Conv2d(3, 4, 3, 2, 1), STRIDED[name](), nn.Conv2d(4, 4, 3, 1, 1), STRIDED[name]()))
    sizes = SIZES.get(name, ((33, 47), (28, 38)))
    dense = densify.convert(model, (1, 3, *sizes[0]), layers=layers)
    report = densify.verify(model, dense, [images(*size) for size in sizes])
    assert report, report.failed
    assert {"grid", "size", "phases"} <= {check.law for check in report.checks}


class Branches(nn.Module):
    """Two resolutions that exchange their maps, as in HRNet."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.stem, self.down = nn.Conv2d(3, 4, 3, 1, 1), nn.Conv2d(4, 4, 3, 2, 1)
        self.fine, self.coarse = nn.Conv2d(4, 4, 3, 1, 1), nn.Conv2d(4, 4, 3, 1, 1)
        self.last, self.how = nn.Conv2d(4, 4, 3, 2, 1), how
        self.up = nn.ConvTranspose2d(4, 4, 2, 2)
        self.spread = nn.Conv2d(4, 16, 1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        a = torch.relu(self.stem(x))
        b = torch.relu(self.down(a))
        if self.how == "transposed":
            c = self.up(b)
        elif self.how == "shuffle":
            c = F.pixel_shuffle(self.spread(b), 2)
        else:
            c = F.interpolate(b, size=a.shape[2:], mode=self.how)
        a = torch.relu(self.fine(a)) + c
        return self.last(a), torch.relu(self.coarse(b))


@pytest.mark.parametrize("how", ["nearest", "bilinear", "bicubic", "transposed", "shuffle"])
@pytest.mark.parametrize("layers", [["down", "last"], ["down"], ["last"]])
def test_upsamplings_inside_keep_what_has_a_meaning(how: str, layers: list[str]) -> None:
    model = seeded(Branches(how))
    dense = densify.convert(model, (1, 3, 24, 36), layers=layers)
    report = densify.verify(model, dense, [images(24, 36), images(30, 20)])
    assert report, report.failed
    strides = {name: axes[0].stride for name, axes in dense.lattices.items()}
    assert strides == {"0": 2 if "last" in layers else 1, "1": 2 if "down" in layers else 1}


def test_density_that_would_be_lost_everywhere_is_refused() -> None:
    model = nn.Sequential(nn.MaxPool2d(2), nn.Upsample(scale_factor=2))
    with pytest.raises(RefusedError, match="1: it meets the denser map as an upsampling"):
        densify.convert(model, (1, 3, 20, 28), start="0")


def test_a_module_called_twice_has_one_set_of_weights() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.conv, self.pool = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 3, 1, 1), nn.MaxPool2d(2)

        def forward(self, x: Tensor) -> Tensor:
            x = self.conv(self.pool(self.conv(self.first(x))))
            made: Tensor = self.conv(self.pool(x))
            return made

    model = seeded(Twice())
    dense = densify.convert(model, (1, 3, 33, 47), layers=["pool"])
    assert dense.lattices == {"output": ((4, 0), (4, 0))}
    assert densify.verify(model, dense, [images(33, 47)])
    assert list(dense.state_dict()) == list(model.state_dict())


@pytest.mark.parametrize("dimensions", [1, 3])
def test_other_dimensions(dimensions: int) -> None:
    conv, pool = (nn.Conv1d, nn.MaxPool1d) if dimensions == 1 else (nn.Conv3d, nn.MaxPool3d)
    model = seeded(nn.Sequential(conv(3, 4, 3, 2, 1), nn.GroupNorm(2, 4), pool(3, 2, 1), conv(4, 2, 3, 1, 1)))
    size = (45,) if dimensions == 1 else (9, 14, 11)
    dense = densify.convert(model, (1, 3, *size), start="0")
    assert densify.verify(model, dense, [images(*size)])
