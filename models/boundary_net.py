"""Boundaries of neurons in electron micrographs, plain and with an invariant stem: H. Gao, S. Ji, *Efficient and
Invariant Convolutional Neural Networks for Dense Prediction* (2017), figure 5.

Stem, Inception A, Reduction A, Inception B, Reduction B and Inception C follow each other; the outputs of Stem,
Inception A and Inception B are deconvolved to the size of the image and concatenated, and a 1 x 1 convolution makes the
scores. The two 3 x 3 convolutions of Stem may be invariant: 4 angles first, then flips, each with maxout.

The paper gives the modules' names and this order. What it leaves open was chosen here:

- The modules are those of Inception-v4 (Szegedy et al., 2016) with fewer maps; every convolution is followed by batch
  normalisation and ReLU, in invariant ones behind maxout. Maps: Stem 16 and 24, at half size from its pooling on;
  Inception A 128; Reduction A 256 at a quarter; Inception B 256; Reduction B 384 at an eighth; Inception C 384;
  16 from each deconvolution.
- Inception C is deconvolved and concatenated too: as printed, nothing would read it and Reduction B in front of it.
- Sizes need not be multiples of 8: deconvolved maps are cropped to the image.
- Flips default to all four, with which the stem is equivariant under 0 and 180 degrees; with the paper's three it is
  under nothing but the identity (docs/papers.md).
"""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor, nn

from densify import InvariantConv2d

INPUT_SIZE = (1, 224, 224)  # channels, height, width; any height and width will do
CLASSES = 2  # inside a neuron, boundary
UP = 16  # maps of each deconvolution


class Unit(nn.Sequential):
    """A convolution, batch normalisation and ReLU."""

    def __init__(self, conv: nn.Conv2d) -> None:
        super().__init__()
        self.conv, self.norm, self.relu = conv, nn.BatchNorm2d(conv.out_channels), nn.ReLU(inplace=True)


def unit(before: int, maps: int, kernel: tuple[int, int], stride: int = 1) -> Unit:
    """A convolution that keeps the size but for its stride."""
    padding = (kernel[0] // 2, kernel[1] // 2)
    return Unit(nn.Conv2d(before, maps, kernel, stride, padding, bias=False))


def chain(before: int, *units: tuple[int, tuple[int, int]], stride: int = 1) -> nn.Sequential:
    """Units of so many maps and such kernels, one behind the other; the last has the stride."""
    layers = []
    for number, (maps, kernel) in enumerate(units, 1):
        layers.append(unit(before, maps, kernel, stride if number == len(units) else 1))
        before = maps
    return nn.Sequential(*layers)


class Branches(nn.Module):
    """Several branches of the same map, concatenated."""

    def __init__(self, *branches: nn.Module) -> None:
        super().__init__()
        self.branches = nn.ModuleList(branches)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([branch(x) for branch in self.branches], 1)


def pooled(before: int, maps: int) -> nn.Sequential:
    """The mean of every 3 x 3 samples, then a 1 x 1 unit."""
    return nn.Sequential(nn.AvgPool2d(3, 1, 1, count_include_pad=False), unit(before, maps, (1, 1)))


def inception_a(before: int) -> Branches:
    """128 maps."""
    return Branches(
        pooled(before, 32),
        chain(before, (32, (1, 1))),
        chain(before, (24, (1, 1)), (32, (3, 3))),
        chain(before, (24, (1, 1)), (32, (3, 3)), (32, (3, 3))),
    )


def reduction_a(before: int) -> Branches:
    """128 more maps, half the size."""
    return Branches(
        nn.MaxPool2d(3, 2, 1),
        chain(before, (64, (3, 3)), stride=2),
        chain(before, (32, (1, 1)), (48, (3, 3)), (64, (3, 3)), stride=2),
    )


def inception_b(before: int) -> Branches:
    """256 maps; kernels of 7 x 7 as two of one row and one column."""
    return Branches(
        pooled(before, 32),
        chain(before, (96, (1, 1))),
        chain(before, (48, (1, 1)), (56, (1, 7)), (64, (7, 1))),
        chain(before, (48, (1, 1)), (48, (7, 1)), (56, (1, 7)), (56, (7, 1)), (64, (1, 7))),
    )


def reduction_b(before: int) -> Branches:
    """128 more maps, half the size."""
    return Branches(
        nn.MaxPool2d(3, 2, 1),
        chain(before, (48, (1, 1)), (48, (3, 3)), stride=2),
        chain(before, (64, (1, 1)), (64, (1, 7)), (80, (7, 1)), (80, (3, 3)), stride=2),
    )


def inception_c(before: int) -> Branches:
    """384 maps."""
    wide, tall = (64, (1, 3)), (64, (3, 1))
    stacked = chain(before, (96, (1, 1)), (112, (3, 1)), (128, (1, 3)))
    return Branches(
        pooled(before, 64),
        chain(before, (64, (1, 1))),
        nn.Sequential(unit(before, 96, (1, 1)), Branches(chain(96, wide), chain(96, tall))),
        nn.Sequential(stacked, Branches(chain(128, wide), chain(128, tall))),
    )


class BoundaryNet(nn.Module):
    """Images [B, 1, H, W] to class scores [B, classes, H, W].

    Args:
        first, second: the stem's 3 x 3 convolutions, to 16 and to 24 maps.
        classes: number of classes.
    """

    def __init__(self, first: nn.Conv2d, second: nn.Conv2d, classes: int = CLASSES) -> None:
        super().__init__()
        self.stem = nn.Sequential(Unit(first), Unit(second), nn.MaxPool2d(3, 2, 1))
        self.inception_a, self.reduction_a = inception_a(24), reduction_a(128)
        self.inception_b, self.reduction_b = inception_b(256), reduction_b(256)
        self.inception_c = inception_c(384)
        self.up_stem = nn.ConvTranspose2d(24, UP, kernel_size=2, stride=2)
        self.up_a = nn.ConvTranspose2d(128, UP, kernel_size=2, stride=2)
        self.up_b = nn.ConvTranspose2d(256, UP, kernel_size=4, stride=4)
        self.up_c = nn.ConvTranspose2d(384, UP, kernel_size=8, stride=8)
        self.score = nn.Conv2d(4 * UP, classes, kernel_size=1)

    def forward(self, x: Tensor) -> Tensor:
        stem = self.stem(x)
        a = self.inception_a(stem)
        b = self.inception_b(self.reduction_a(a))
        c = self.inception_c(self.reduction_b(b))
        ups = [self.up_stem(stem), self.up_a(a), self.up_b(b), self.up_c(c)]
        joined = torch.cat([up[:, :, : x.shape[2], : x.shape[3]] for up in ups], 1)
        scores: Tensor = self.score(joined)
        return scores


def boundary_net(classes: int = CLASSES) -> BoundaryNet:
    """The network with plain convolutions, with fresh weights."""
    conv = partial(nn.Conv2d, kernel_size=3, padding=1, bias=False)
    return BoundaryNet(conv(1, 16), conv(16, 24), classes)


def invariant_boundary_net(classes: int = CLASSES, angles: int = 4, flips: str = "all") -> BoundaryNet:
    """The network with an invariant stem and the same parameters, with fresh weights.

    Args:
        classes: number of classes.
        angles: under which the first convolution rotates its kernels.
        flips: of the second one's kernels; "paper" for the paper's three.
    """
    conv = partial(InvariantConv2d, kernel_size=3, padding=1, bias=False)
    return BoundaryNet(conv(1, 16, angles=angles), conv(16, 24, angles=1, flips=flips), classes)
