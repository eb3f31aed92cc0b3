"""`densify plan --measure`: how long the original and the dense network take, side by side."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from densify.choose import Choice
from densify.cli.models import device as found_device
from densify.conversion import convert
from densify.onnx.conversion import DenseOnnx
from densify.timing import Timing, beside


def measure_torch(
    model: nn.Module, size: tuple[int, ...], choice: Choice, how: Mapping[str, Any], device: str
) -> dict[str, Any]:
    """Times in torch, of one image.

    Args:
        model: with numbers, in eval mode.
        size: [C, *spatial].

    Raises:
        UsageError: no such device.
        ConversionError: as :func:`densify.convert`.
    """
    place = found_device(device)
    chosen: dict[str, Any] = {"start": choice.start, "layers": choice.layers, "output_stride": choice.output_stride}
    dense = convert(model, (1, *size), **chosen, **how).to(place)
    like = next((p for p in model.parameters() if p.is_floating_point()), torch.empty(0))
    x = torch.rand((1, *size), dtype=like.dtype, device=place)
    with torch.inference_mode():
        timing = beside(_run(model.to(place), x), _run(dense, x))
    return _facts(timing, "torch", place)


def measure_onnx(dense: DenseOnnx) -> dict[str, Any]:
    """Times in ONNX Runtime with all optimisations, of one image."""
    from densify.graphs.onnx.image import spatial_dims
    from densify.onnx.runtime import Runtime, ordered

    order = spatial_dims(dense.source.graph)
    x = ordered(torch.rand(dense.options.shape, dtype=dense.source.dtype), order).numpy()
    with Runtime(dense.source.name) as runtime:
        sessions = [runtime.ready(graph, optimised=True) for graph in (dense.source.graph, dense.graph)]
        timing = beside(*(lambda session=session: session(x) for session in sessions))
    return _facts(timing, "onnxruntime", torch.device("cpu"))


def _run(model: nn.Module, x: Tensor) -> Callable[[], object]:
    def run() -> None:
        model(x)
        if x.is_cuda:
            torch.cuda.synchronize(x.device)

    return run


def _facts(timing: Timing, runtime: str, place: torch.device) -> dict[str, Any]:
    name = torch.cuda.get_device_name(place) if place.type == "cuda" else place.type
    threads = torch.get_num_threads() if place.type == "cpu" else None
    return {"runtime": runtime, "device": name, "threads": threads, **timing._asdict()}
