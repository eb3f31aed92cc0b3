"""Rotation-invariant convolutions against a hand-written Conv2d(C, 4K), reshape and amax, and against the plain one;
and the paper's network with an invariant stem against the plain one and test-time augmentation.

    python benchmarks/invariant.py [--rounds N] [--device cuda]

All in turn in one run, in eval mode without gradients and with forward, backward and an SGD step; medians, and the
median of the ratios of neighbouring runs.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

from densify import DihedralTTA, InvariantConv2d

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "models"))
from boundary_net import boundary_net, invariant_boundary_net

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


def networks(device: torch.device, rounds: int) -> None:
    """Prediction of the paper's network: plain, with an invariant stem, and plain with test-time augmentation."""
    torch.manual_seed(0)
    x = torch.randn(1, 1, 256, 320, device=device)
    plain = boundary_net()
    invariant, paper = invariant_boundary_net(), invariant_boundary_net(flips="paper")
    names = ("plain", "invariant stem", "the paper's three flips", "plain, 8 times (vote)")
    found = times(
        [predicting(net.to(device).eval(), x) for net in (plain, invariant, paper, DihedralTTA(plain, "vote"))], rounds
    )
    print(f"\n{'models/boundary_net.py, 256x320':38}{'':>12}{'/ plain':>12}")
    for name, seconds in zip(names, found, strict=True):
        print(f"{name:38}{statistics.median(seconds) * 1000:9.1f} ms{median_ratio(seconds, found[0]):12.2f}")


def layers(device: torch.device, rounds: int) -> None:
    """One layer with 4 angles, the same by hand, and the plain convolution."""
    columns = ("angles=4", "by hand", "plain", "/ by hand", "/ plain")
    print(f"{'images, maps, size':38}" + "".join(f"{column:>12}" for column in columns))
    for images, channels, maps, size in SHAPES:
        torch.manual_seed(0)
        x = torch.randn(images, channels, size, size, device=device)
        found = [InvariantConv2d(channels, maps, 3, padding=1), HandWritten(channels, maps)]
        found.append(nn.Conv2d(channels, maps, 3, padding=1))
        for mode, kind in (("eval", predicting), ("training", training)):
            seconds = times([kind(layer.to(device).train(mode == "training"), x) for layer in found], rounds)
            numbers = [f"{statistics.median(one) * 1000:.2f} ms" for one in seconds]
            numbers += [f"{median_ratio(seconds[0], other):.3f}" for other in seconds[1:]]
            what = f"{images} x {channels}, {maps} maps, {size}x{size}" if mode == "eval" else ""
            print(f"{what:28}{mode:10}" + "".join(f"{number:>12}" for number in numbers))


def median_ratio(one: list[float], other: list[float]) -> float:
    return statistics.median(a / b for a, b in zip(one, other, strict=True))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args()
    device = torch.device(options.device)
    print(f"torch {torch.__version__}, {device}, {torch.get_num_threads()} threads, {options.rounds} rounds")
    layers(device, options.rounds)
    networks(device, options.rounds)


if __name__ == "__main__":
    main()
