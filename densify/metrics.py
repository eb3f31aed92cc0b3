"""How invariant the units of a network are: the score of I. Goodfellow et al., *Measuring Invariances in Deep Networks*
(2009), with which A. Akbari measures scale-invariant layers.

    images = torch.rand(500, 1, 28, 28)
    scaled = [lambda x, s=s: rescaled(x, s) for s in (0.5, 0.8, 1.2)]
    scores = layer_invariance(model, images, scaled, ["conv1", "conv2"])
    scores["conv1"].nanmean()
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from densify.comparison import evaluating
from densify.errors import UsageError


def invariance_scores(activations: Tensor, transformed: Tensor, *, rate: float = 0.01) -> Tensor:
    """L / G for every unit: how often it fires on transformations of the inputs that it fires on (L), over how often it
    fires on all inputs (G).

    A unit fires where it is at least its threshold, the largest value for which more than `rate` of the inputs make it
    fire (at 0.01, the 99th percentile). A unit that is always the same, or that cannot be told from silence on that
    many inputs, has no score: NaN. A unit that fires at random has about 1; one that keeps firing has 1 / G.

    Args:
        activations: [N, units], or maps [N, K, *spatial], of which every map is a unit with its maximum.
        transformed: the same of T transformations of each input, [T, N, ...].
        rate: what G exceeds.

    Returns:
        [units].

    Raises:
        UsageError: shapes that do not fit each other, no inputs, or a rate that leaves none.
    """
    if transformed.dim() != activations.dim() + 1 or transformed.shape[1:3] != activations.shape[:2]:
        raise UsageError(
            f"activations {tuple(activations.shape)} of N inputs need transformed ones [T, N, ...] of the same units, "
            f"not {tuple(transformed.shape)}"
        )
    if not 0 <= rate < 1 or 0 in transformed.shape[:2]:
        raise UsageError(f"rate={rate} with {len(activations)} inputs: give some inputs, and a rate from 0 to below 1")
    units, moved = activations, transformed
    if activations.dim() > 2:
        units, moved = units.flatten(2).amax(2), moved.flatten(3).amax(3)
    firing = math.floor(round(rate * len(units), 9)) + 1
    threshold = units.topk(firing, 0).values[-1]
    fires = units >= threshold
    kept = (fires & (moved >= threshold)).sum((0, 1)).double() / (fires.sum(0) * len(moved))
    scores = kept / fires.double().mean(0)
    return torch.where(threshold > units.amin(0), scores, math.nan)


def layer_invariance(
    model: nn.Module,
    inputs: Tensor,
    transformations: Sequence[Callable[[Tensor], Tensor]],
    layers: Sequence[str],
    *,
    rate: float = 0.01,
) -> dict[str, Tensor]:
    """:func:`invariance_scores` of the outputs of some layers, in eval mode; of maps, every map is a unit.

    Args:
        model: run on all inputs at once.
        inputs: [N, C, *spatial].
        transformations: each maps the inputs to as many others.
        layers: names of submodules whose output is one tensor.
        rate: what each unit's firing rate exceeds.

    Raises:
        UsageError: a layer that the model does not have, or that it did not run.
    """
    modules = dict(model.named_modules())
    missing = [name for name in layers if name not in modules]
    if missing:
        raise UsageError(f"the model has no layer {missing[0]!r}; it has {', '.join(filter(None, modules))}")
    seen: dict[str, list[Tensor]] = {name: [] for name in layers}

    def keep(name: str) -> Callable[[nn.Module, object, Tensor], None]:
        def hook(_: nn.Module, __: object, output: Tensor) -> None:
            seen[name].append(output.flatten(2).amax(2) if output.dim() > 2 else output)

        return hook

    hooks = [modules[name].register_forward_hook(keep(name)) for name in layers]
    try:
        with evaluating(model):
            for transformation in (lambda x: x, *transformations):
                model(transformation(inputs))
    finally:
        for hook in hooks:
            hook.remove()
    idle = [name for name, outputs in seen.items() if len(outputs) != 1 + len(transformations)]
    if idle:
        raise UsageError(f"the layer {idle[0]!r} does not run once for each call of the model: name another")
    return {name: invariance_scores(found[0], torch.stack(found[1:]), rate=rate) for name, found in seen.items()}


def rescaled(images: Tensor, scale: float) -> Tensor:
    """Images [N, C, H, W] zoomed about their centre, at the same size: what comes from outside is zero."""
    theta = torch.eye(2, 3, dtype=images.dtype, device=images.device) / scale
    grid = F.affine_grid(theta.expand(len(images), 2, 3), list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, align_corners=False)
