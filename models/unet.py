"""U-Net: O. Ronneberger, P. Fischer, T. Brox, *U-Net: Convolutional Networks for Biomedical Image Segmentation* (2015).

``unet()`` is the paper's network: its convolutions do not pad, so 572 x 572 pixels give 388 x 388 scores, those of the
pixels 92 and more from the border. The poolings need even sizes; other images are answered too, but their far border is
cut off unevenly. ``unet_same()`` pads every convolution by 1; for height and width that are multiples of 16 the scores
have the size of the image, otherwise that of the next smaller multiple.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

INPUT_SIZE = (1, 572, 572)  # channels, height, width


class UNet(nn.Module):
    """Images [B, channels, H, W] to class scores [B, classes, h, w].

    Four times down (two convolutions, then a pooling), two convolutions at the bottom, four times up: an up-convolution
    that halves the number of maps, the maps of the same level from the way down put before its own, two convolutions.
    """

    def __init__(self, channels: int = 1, classes: int = 2, width: int = 64, padding: int = 0) -> None:
        super().__init__()
        self.down1 = two_convolutions(channels, width, padding)
        self.pool1 = nn.MaxPool2d(2, 2)
        self.down2 = two_convolutions(width, 2 * width, padding)
        self.pool2 = nn.MaxPool2d(2, 2)
        self.down3 = two_convolutions(2 * width, 4 * width, padding)
        self.pool3 = nn.MaxPool2d(2, 2)
        self.down4 = two_convolutions(4 * width, 8 * width, padding)
        self.drop4 = nn.Dropout()
        self.pool4 = nn.MaxPool2d(2, 2)
        self.bottom = two_convolutions(8 * width, 16 * width, padding)
        self.drop = nn.Dropout()
        self.up4 = nn.ConvTranspose2d(16 * width, 8 * width, kernel_size=2, stride=2)
        self.join4 = two_convolutions(16 * width, 8 * width, padding)
        self.up3 = nn.ConvTranspose2d(8 * width, 4 * width, kernel_size=2, stride=2)
        self.join3 = two_convolutions(8 * width, 4 * width, padding)
        self.up2 = nn.ConvTranspose2d(4 * width, 2 * width, kernel_size=2, stride=2)
        self.join2 = two_convolutions(4 * width, 2 * width, padding)
        self.up1 = nn.ConvTranspose2d(2 * width, width, kernel_size=2, stride=2)
        self.join1 = two_convolutions(2 * width, width, padding)
        self.score = nn.Conv2d(width, classes, kernel_size=1)
        for layer in self.modules():
            if isinstance(layer, nn.Conv2d | nn.ConvTranspose2d):
                start_gaussian(layer)

    def forward(self, x: Tensor) -> Tensor:
        level1 = self.down1(x)
        level2 = self.down2(self.pool1(level1))
        level3 = self.down3(self.pool2(level2))
        level4 = self.drop4(self.down4(self.pool3(level3)))
        x = self.drop(self.bottom(self.pool4(level4)))
        x = self.join4(beside(level4, self.up4(x)))
        x = self.join3(beside(level3, self.up3(x)))
        x = self.join2(beside(level2, self.up2(x)))
        x = self.join1(beside(level1, self.up1(x)))
        scores: Tensor = self.score(x)
        return scores


def two_convolutions(before: int, maps: int, padding: int) -> nn.Sequential:
    """3 x 3 convolution and ReLU, twice."""
    return nn.Sequential(
        nn.Conv2d(before, maps, kernel_size=3, padding=padding),
        nn.ReLU(inplace=True),
        nn.Conv2d(maps, maps, kernel_size=3, padding=padding),
        nn.ReLU(inplace=True),
    )


def start_gaussian(layer: nn.Conv2d | nn.ConvTranspose2d) -> None:
    """Normal weights of variance 2 / N, as in the paper: N numbers make one output of the layer. No bias."""
    reading = layer.weight.shape[1] if isinstance(layer, nn.Conv2d) else layer.weight.shape[0]
    taps = layer.kernel_size[0] * layer.kernel_size[1] if isinstance(layer, nn.Conv2d) else 1
    nn.init.normal_(layer.weight, std=(2 / (reading * taps)) ** 0.5)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)


def beside(skip: Tensor, x: Tensor) -> Tensor:
    """The middle of the maps skip, of the size of x, and x: [B, C + c, h, w]."""
    height, width = x.shape[2], x.shape[3]
    top, left = (skip.shape[2] - height) // 2, (skip.shape[3] - width) // 2
    return torch.cat([skip[:, :, top : top + height, left : left + width], x], dim=1)


def unet(channels: int = 1, classes: int = 2, width: int = 64) -> UNet:
    """The paper's U-Net, without padding.

    Args:
        channels: of the images.
        classes: number of classes.
        width: maps of the first level; each level below has twice as many.
    """
    return UNet(channels, classes, width)


def unet_same(channels: int = 1, classes: int = 2, width: int = 64) -> UNet:
    """U-Net with convolutions that keep the size; arguments as for `unet`."""
    return UNet(channels, classes, width, padding=1)
