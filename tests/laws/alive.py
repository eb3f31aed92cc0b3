"""Weights whose signal is alive: networks whose activations died would pass any comparison."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
_WEIGHTED = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear)


def images(shape: Sequence[int], seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    """Noise with structure at several scales."""
    generator = torch.Generator().manual_seed(seed)
    whole = torch.zeros(tuple(shape))
    for scale in (1, 4, 16):
        small = torch.randn(*shape[:2], *(max(1, n // scale) for n in shape[2:]), generator=generator)
        whole += nn.functional.interpolate(small, size=tuple(shape[2:]))
    return (whole / 2).to(dtype)


def enliven(model: nn.Module, shape: Sequence[int], seed: int = 0) -> nn.Module:
    """Give a model weights that carry a signal; returns it in eval mode.

    BatchNorm statistics are measured on data and then perturbed, its gains are away from zero, and every convolution
    and Linear layer is scaled so that its results have about unit deviation. Its biases leave most of an activation's
    inputs positive: random networks of a hundred layers are chaotic otherwise, and their outputs rounding noise. Gains
    that begin near zero (ConvNeXt's layer scales) would hide whole blocks: they become those of a trained network.
    """
    generator = torch.Generator().manual_seed(seed)
    for module in model.modules():
        if isinstance(module, _WEIGHTED):
            fan_in = module.weight[0].numel()
            module.weight.data = torch.randn(module.weight.shape, generator=generator) * (2.0 / fan_in) ** 0.5
            if module.bias is not None:
                module.bias.data = torch.randn(module.bias.shape, generator=generator) * 0.1
        elif isinstance(module, _NORMS):
            module.weight.data = 0.5 + torch.rand(module.weight.shape, generator=generator) / 2
            module.bias.data = 1 + torch.randn(module.bias.shape, generator=generator) * 0.2
        else:
            for own in module.parameters(recurse=False):
                if own.dim() in (1, 3) and 0 < own.abs().max() < 1e-3:
                    own.data = 0.5 + torch.rand(own.shape, generator=generator)
    _measure(model, images(shape, seed + 1))
    for module in model.modules():
        if isinstance(module, _NORMS):
            assert module.running_mean is not None
            assert module.running_var is not None
            deviation = module.running_var.sqrt()
            module.running_mean += 0.1 * deviation * torch.randn(deviation.shape, generator=generator)
            module.running_var *= torch.exp(0.2 * torch.randn(deviation.shape, generator=generator))
    return model.eval()


def _measure(model: nn.Module, x: Tensor) -> None:
    """One pass in which every layer takes its scale or statistics from the data that reaches it."""

    def weighted(module: Any, args: Any, result: Tensor) -> Tensor:
        deviation = result.std().clamp(min=1e-3)
        module.weight.data /= deviation
        if module.bias is not None:
            module.bias.data /= deviation
        return result / deviation

    def norm(module: Any, args: tuple[Tensor, ...]) -> None:
        dims = [0, *range(2, args[0].dim())]
        module.running_mean.data = args[0].mean(dims)
        module.running_var.data = args[0].var(dims, correction=0) + 1e-2

    handles = [m.register_forward_hook(weighted) for m in model.modules() if isinstance(m, _WEIGHTED)]
    handles += [m.register_forward_pre_hook(norm) for m in model.modules() if isinstance(m, _NORMS)]
    model.eval().training = True  # auxiliary heads, which the whole network's mode decides, get their statistics too
    with torch.no_grad():
        model(x)
    for handle in handles:
        handle.remove()


def assert_alive(model: nn.Module, shape: Sequence[int]) -> None:
    """Two inputs change the output by more than 1%."""
    dtype = next(model.parameters()).dtype
    with torch.no_grad():
        one, other = model(images(shape, 11, dtype)), model(images(shape, 12, dtype))
    assert torch.isfinite(one).all()
    change = (one - other).abs().max() / one.abs().max()
    assert change > 0.01, f"two inputs change the output by {change.item():.2%} only"


def relative_error(made: Tensor, expected: Tensor) -> float:
    """max|a - b| / max|b|, in float64."""
    made, expected = made.double(), expected.double()
    return float((made - expected).abs().max() / expected.abs().max())
