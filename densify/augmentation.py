"""Test-time augmentation over the eight symmetries of the square: what an invariant network is compared with."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from densify.equivariance import TRANSFORMATIONS, inverse, transformed
from densify.errors import ConversionError, UsageError


class DihedralTTA(nn.Module):
    """A network that sees an image in all eight rotations and reflections, moves what it says back, and joins it.

    Its predictions are equivariant, at eight times the time. It makes maps [B, K, h, w] of maps, and vectors [B, K] of
    vectors.

    Args:
        model: images [B, C, H, W] to one tensor of scores of K classes, maps or vectors.
        reduction: "mean" of what the network makes; or "vote", for each class the share of the eight predictions whose
            largest score it has.

    Raises:
        UsageError: another reduction.
    """

    def __init__(self, model: nn.Module, reduction: str = "mean") -> None:
        super().__init__()
        if reduction not in ("mean", "vote"):
            raise UsageError(f'reduction={reduction!r}: give "mean" or "vote"')
        self.model, self.reduction = model, reduction

    def forward(self, x: Tensor) -> Tensor:
        """
        Raises:
            ConversionError: what the network makes of a turned image has another size than the turned output.
        """
        total: Tensor | None = None
        for name in TRANSFORMATIONS:
            y: Tensor = self.model(transformed(x, name))
            if y.dim() > 2:
                y = transformed(y, inverse(name))
            if self.reduction == "vote":
                y = F.one_hot(y.argmax(1), y.shape[1]).movedim(-1, 1).to(y.dtype)
            if total is not None and total.shape != y.shape:
                raise ConversionError(
                    f"the network makes maps of {tuple(y.shape[2:])} of an image turned by {name}, and of "
                    f"{tuple(total.shape[2:])} of the image itself: rows and columns must be treated alike"
                )
            total = y if total is None else total + y
        assert total is not None
        return total / len(TRANSFORMATIONS)

    def extra_repr(self) -> str:
        return f"reduction={self.reduction!r}"
