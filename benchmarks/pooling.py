"""Whole dense networks in ONNX Runtime and OpenVINO, dilated max pooling as one op or as maxima of shifted slices.

    python benchmarks/pooling.py

Random weights, batch 1, two threads, the smallest of four runs, both lowerings in turn (docs/targets.md).
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

import torch
import torchvision
from openvino import Core

import densify
from densify.exporting import write_network
from densify.onnx.file import OnnxSession
from densify.targets import find

THREADS, RUNS = 2, 4
NETS: dict[str, tuple[dict[str, Any], int]] = {
    "vgg16": ({"start": "features.16"}, 224),
    "alexnet": ({"output_stride": 4}, 224),
    "squeezenet1_1": ({"output_stride": 2}, 224),
    "googlenet": ({"output_stride": 4}, 160),
    "resnet18": ({"output_stride": 4}, 224),
}
LOWERINGS: tuple[Literal["native", "shifts"], ...] = ("native", "shifts")


def seconds(runs: dict[str, Callable[[], Any]]) -> dict[str, float]:
    """The smallest time of each, taken in turn."""
    best = dict.fromkeys(runs, float("inf"))
    for _ in range(RUNS):  # the first warms up: it is hardly ever the smallest
        for name, run in runs.items():
            start = time.perf_counter()
            run()
            best[name] = min(best[name], time.perf_counter() - start)
    return best


def compare(name: str, choice: dict[str, Any], size: int, folder: Path) -> str:
    """One row of the table."""
    torch.manual_seed(0)
    more = {"init_weights": False, "aux_logits": False} if name == "googlenet" else {}
    model = torchvision.models.get_model(name, weights=None, **more).eval()
    dense = densify.convert(model, (1, 3, 224, 224), share=True, **choice)
    x = torch.randn(1, 3, size, size).numpy()
    runs: dict[str, Callable[[], Any]] = {}
    settings = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": THREADS}
    for lowering in LOWERINGS:
        file = folder / f"{lowering}.onnx"
        target = replace(find("openvino"), refuses=(), max_pool=lowering)
        write_network(dense, file, (1, 3, 224, 224), target=target, opset=None, recipe=None)
        core: Any = Core()
        runs[f"ort {lowering}"] = partial(OnnxSession(file, optimised=True), x)
        runs[f"openvino {lowering}"] = partial(core.compile_model(str(file), "CPU", settings), x)
    best = seconds(runs)
    times = [f"{1e3 * best[f'{runtime} {lowering}']:.0f}" for runtime in ("ort", "openvino") for lowering in LOWERINGS]
    ((option, value),) = choice.items()
    return f"| {name}, {option}={value}, {size} x {size} | {' | '.join(times)} |"


def main() -> None:
    torch.set_num_threads(THREADS)
    print("| network | ONNX Runtime: native | shifts | OpenVINO: native | shifts |\n|---|---|---|---|---|")
    with TemporaryDirectory() as folder:
        for name, (choice, size) in NETS.items():
            print(compare(name, choice, size, Path(folder)), flush=True)


if __name__ == "__main__":
    main()
