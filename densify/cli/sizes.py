"""Sizes of random inputs that a network takes: some ask for multiples of 32, say."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from densify.conversion import Dense
from densify.graphs.fx.trace import on_meta

_MULTIPLES = (1, 2, 4, 8, 16, 32, 64)


class Sizes:
    """Which sizes a network runs at, tried without numbers.

    Args:
        model: a network, or a dense one.
        reference: shape of an input that it takes, [B, C, *spatial].
    """

    def __init__(self, model: nn.Module, reference: Sequence[int]) -> None:
        if isinstance(model, Dense):
            self._empty: nn.Module = Dense(on_meta(model.source), model.origin, model.conversion)
        else:
            self._empty = on_meta(model)
        self._empty.eval()
        like = next((p for p in self._empty.parameters() if p.is_floating_point()), torch.empty(0))
        self._dtype = like.dtype
        self._decides = self._runs(reference)  # else numbers decide, and every size counts as taken

    def nearest(self, shape: Sequence[int]) -> tuple[int, ...] | None:
        """The shape, its sizes rounded up to multiples of the least power of 2 that it takes; None where none does."""
        for step in _MULTIPLES:
            near = (*shape[:2], *(-(-n // step) * step for n in shape[2:]))
            if not self._decides or self._runs(near):
                return near
        return None

    def _runs(self, shape: Sequence[int]) -> bool:
        try:
            with torch.no_grad():
                self._empty(torch.empty(tuple(shape), dtype=self._dtype, device="meta"))
        except Exception:  # whatever a program raises at a size that it does not take
            return False
        return True
