"""Small integers as weights and images, on which float64 arithmetic is exact."""

from __future__ import annotations

import random

import torch
from torch import Tensor, nn

EPS = 2.0**-10  # of batch normalisation: a running variance of 4^k - EPS makes its factor a power of two


def inputs(shape: tuple[int, ...], seed: int = 0) -> Tensor:
    """Small integers as images."""
    return torch.randint(-3, 4, shape, generator=torch.Generator().manual_seed(seed)).double()


def integer_weights(module: nn.Module, rng: random.Random) -> None:
    """Small integers as weights; batch normalisation that multiplies by powers of two."""
    generator = torch.Generator().manual_seed(rng.randrange(2**31))

    def draw(shape: torch.Size, low: int, high: int) -> Tensor:
        return torch.randint(low, high + 1, shape, generator=generator).double()

    for part in module.modules():
        if isinstance(part, nn.Conv1d | nn.Conv2d | nn.Conv3d | nn.Linear):
            part.weight.data = draw(part.weight.shape, -1, 1)
            flat = part.weight.data.view(part.weight.shape[0], -1)
            flat[:, 0] += flat.abs().sum(1) == 0  # no channel is dead
            if part.bias is not None:
                part.bias.data = draw(part.bias.shape, -2, 2)
        elif isinstance(part, nn.ConvTranspose1d | nn.ConvTranspose2d | nn.ConvTranspose3d):
            part.weight.data = draw(part.weight.shape, -1, 1)
            part.weight.data[:, 0] += (
                part.weight.data.abs().flatten(1).sum(1).eq(0).view(-1, *[1] * (part.weight.dim() - 2))
            )
            if part.bias is not None:
                part.bias.data = draw(part.bias.shape, -2, 2)
        elif isinstance(part, nn.GroupNorm | nn.LayerNorm | nn.InstanceNorm1d | nn.InstanceNorm2d | nn.InstanceNorm3d):
            # Not exact anyway: fractions keep the kinks of what follows, where gradients jump, away from integers.
            part.weight.data = 0.5 + torch.rand(part.weight.shape, generator=generator, dtype=torch.float64)
            part.bias.data = torch.rand(part.bias.shape, generator=generator, dtype=torch.float64)
        elif isinstance(part, nn.BatchNorm1d | nn.BatchNorm2d | nn.BatchNorm3d):
            assert part.running_mean is not None
            assert part.running_var is not None
            part.running_mean = draw(part.running_mean.shape, -2, 2)
            part.running_var = 4.0 ** draw(part.running_var.shape, -1, 1) - EPS
            part.weight.data = 2.0 ** draw(part.weight.shape, 0, 1)
            part.bias.data = draw(part.bias.shape, -1, 3)
