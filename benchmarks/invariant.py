"""Rotation-invariant convolutions against a hand-written Conv2d(C, 4K), reshape and amax, and against the plain one.

    python benchmarks/invariant.py [--rounds N] [--device cuda]

All in turn in one run, in eval mode without gradients and with forward, backward and an SGD step; medians, and the
median of the ratios of neighbouring runs.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor, nn

from densify import InvariantConv2d

SHAPES = ((8, 64, 64, 56), (1, 32, 32, 224), (1, 256, 256, 28))  # images, maps before and after, height and width


class HandWritten(nn.Module):
    """Four times the kernels, and the maximum over each four."""

    def __init__(self, channels: int, maps: int) -> None:
        super().__init__()
        self.maps = maps
        self.conv = nn.Conv2d(channels, 4 * maps, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.conv(x)
        return y.reshape(y.shape[0], self.maps, 4, *y.shape[2:]).amax(2)


def times(runs: list[Callable[[], object]], rounds: int) -> list[list[float]]:
    """Seconds of each in every round, in turn; a first round warms up."""
    found: list[list[float]] = [[] for _ in runs]
    for number in range(rounds + 1):
        for run, seconds in zip(runs, found, strict=True):
            start = time.perf_counter()
            run()
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            if number:
                seconds.append(time.perf_counter() - start)
    return found


def training(layer: nn.Module, x: Tensor) -> Callable[[], object]:
    optimiser = torch.optim.SGD(layer.parameters(), lr=1e-6)

    def step() -> None:
        optimiser.zero_grad()
        layer(x).sum().backward()
        optimiser.step()

    return step


def predicting(layer: nn.Module, x: Tensor) -> Callable[[], object]:
    def run() -> None:
        with torch.no_grad():
            layer(x)

    return run


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args()
    rounds, device = options.rounds, torch.device(options.device)
    print(f"torch {torch.__version__}, {device}, {torch.get_num_threads()} threads, {rounds} rounds")
    print(
        f"{'images, maps, size':28}{'':10}{'angles=4':>10}{'by hand':>10}{'plain':>10}{'/ by hand':>11}{'/ plain':>9}"
    )
    for images, channels, maps, size in SHAPES:
        torch.manual_seed(0)
        x = torch.randn(images, channels, size, size, device=device)
        layers = [InvariantConv2d(channels, maps, 3, padding=1), HandWritten(channels, maps)]
        layers.append(nn.Conv2d(channels, maps, 3, padding=1))
        for mode, kind in (("eval", predicting), ("training", training)):
            found = times([kind(layer.to(device).train(mode == "training"), x) for layer in layers], rounds)
            medians = [statistics.median(seconds) * 1000 for seconds in found]
            ratios = [statistics.median(a / b for a, b in zip(found[0], other, strict=True)) for other in found[1:]]
            what = f"{images} x {channels}, {maps} maps, {size}x{size}" if mode == "eval" else ""
            print(
                f"{what:28}{mode:10}"
                + "".join(f"{ms:7.1f} ms" for ms in medians)
                + f"{ratios[0]:11.3f}{ratios[1]:9.2f}"
            )


if __name__ == "__main__":
    main()
