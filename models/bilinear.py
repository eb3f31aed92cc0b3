"""Transposed convolutions that start as bilinear interpolation."""

from __future__ import annotations

import torch
from torch import nn


def start_bilinear(layer: nn.ConvTranspose2d) -> None:
    """Let map i of a layer of stride s and kernel 2s interpolate map i alone, as far as there are as many maps.

    Where two samples or more reach, the result at p is the bilinear interpolation at (p - s + 1/2) / s; beyond the
    border the samples are zeros.
    """
    side, step = layer.kernel_size[0], layer.stride[0]
    ramp = 1 - (torch.arange(side) - (side - 1) / 2).abs() / step
    with torch.no_grad():
        layer.weight.zero_()
        for channel in range(min(layer.in_channels, layer.out_channels)):
            layer.weight[channel, channel] = ramp[:, None] * ramp
