"""Memory and time of training the flip-tied layer of the paper (256 x 6 x 6 to 4068), beside a plain Linear layer.

    python benchmarks/symmetric.py [BATCH]

One step is forward, backward and SGD with momentum, on a batch of 128 and on two threads. Bytes are what torch holds at
the most, by its profiler, from making the layer to the second step: the same in every run. Resident memory is that of a
process of its own, less what it had before the layer was made. Times are medians of steps in turn.
"""

from __future__ import annotations

import argparse
import math
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from itertools import accumulate
from pathlib import Path
from resource import RUSAGE_SELF, getrusage
from typing import Any

import torch
from torch import nn
from torch.profiler import ProfilerActivity, profile

from densify import SymmetricLinear
from densify.symmetry import Flip, Invariant

SHAPE, OUTPUTS, THREADS, RUNS = (256, 6, 6), 4068, 2, 15
LAYERS: dict[str, Callable[[Sequence[int], int], nn.Module]] = {
    "plain": lambda shape, outputs: nn.Linear(math.prod(shape), outputs),
    "tied": lambda shape, outputs: SymmetricLinear(shape, outputs, Invariant(Flip(), "w")),
}


def training(name: str, batch: int, shape: Sequence[int] = SHAPE, outputs: int = OUTPUTS) -> Callable[[], None]:
    """A step of training of a new layer."""
    layer = LAYERS[name](shape, outputs)
    optimizer = torch.optim.SGD(layer.parameters(), lr=1e-4, momentum=0.9)
    x, upstream = torch.randn(batch, math.prod(shape), requires_grad=True), torch.randn(batch, outputs)

    def step() -> None:
        optimizer.zero_grad()
        x.grad = None
        layer(x).backward(upstream)
        optimizer.step()

    return step


def peak(name: str, batch: int, shape: Sequence[int] = SHAPE, outputs: int = OUTPUTS) -> int:
    """Bytes that torch holds at the most, from making the layer to the end of the second step."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as found:
        step = training(name, batch, shape, outputs)
        step()
        step()
    results: Any = found.profiler
    events = [event for event in results.kineto_results.events() if event.name() == "[memory]"]
    ordered = sorted(events, key=lambda event: event.start_ns())
    most: int = max(accumulate(event.nbytes() for event in ordered))
    return most


def resident(name: str, batch: int) -> int:
    """Bytes by which a process grows that trains the layer."""
    made = subprocess.run(
        [sys.executable, __file__, str(batch), "--resident", name],
        cwd=Path(__file__).resolve().parent.parent, capture_output=True, text=True, check=True,
    )  # fmt: skip
    return int(made.stdout)


def growth(name: str, batch: int) -> int:
    """The same, of this process; a small layer was trained before, so that all libraries are there."""
    small = nn.Linear(8, 8)
    small(torch.randn(2, 8)).sum().backward()
    torch.optim.SGD(small.parameters(), momentum=0.9).step()
    before = getrusage(RUSAGE_SELF).ru_maxrss
    step = training(name, batch)
    for _ in range(3):
        step()
    return (getrusage(RUSAGE_SELF).ru_maxrss - before) * 1024


def times(batch: int) -> dict[str, float]:
    """Median seconds of a step, in turn."""
    steps = {name: training(name, batch) for name in LAYERS}
    found: dict[str, list[float]] = {name: [] for name in steps}
    for run in range(RUNS + 1):
        for name, step in steps.items():
            start = time.perf_counter()
            step()
            if run:  # the first warms up
                found[name].append(time.perf_counter() - start)
    return {name: statistics.median(values) for name, values in found.items()}


def main(batch: int) -> None:
    print(f"| batch of {batch} | parameters | bytes at most, MB | resident, MB | step, ms |\n|---|---|---|---|---|")
    grown = {name: resident(name, batch) for name in LAYERS}  # first: a child counts what its parent once held
    seconds = times(batch)
    rows = {}
    for name, make in LAYERS.items():
        count = sum(p.numel() for p in make(SHAPE, OUTPUTS).parameters())
        rows[name] = [count, peak(name, batch) / 1e6, grown[name] / 1e6, 1e3 * seconds[name]]
        print(f"| {name} | {count:,} | " + " | ".join(f"{number:.0f}" for number in rows[name][1:]) + " |")
    print("| tied / plain | " + " | ".join(f"{b / a:.2f}" for a, b in zip(*rows.values(), strict=True)) + " |")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("batch", nargs="?", type=int, default=128)
    parser.add_argument("--resident", choices=LAYERS, help="train this layer, and print by how much memory grew")
    asked = parser.parse_args()
    torch.set_num_threads(THREADS)
    if asked.resident:
        print(growth(asked.resident, asked.batch))
    else:
        main(asked.batch)
