"""Heads: what an adaptive pooling means depends on what reads it."""

from __future__ import annotations

import pytest
import torch
from small import images, seeded
from torch import nn

import densify
from densify.errors import RefusedError


@pytest.mark.parametrize("size", [(14, 14), (22, 23)])
@pytest.mark.parametrize("form", ["dilated", "fragments"])
def test_adaptive_pooling_without_a_flatten_is_taken_phase_by_phase(size: tuple[int, int], form: str) -> None:
    model = seeded(nn.Sequential(nn.Conv2d(3, 4, 3, 2, 1), nn.AdaptiveAvgPool2d(7), nn.Conv2d(4, 2, 1)))
    dense = densify.convert(model, (1, 3, 14, 14), start="0", form=form)
    x = images(*size)
    assert dense(x).shape == (2, 2, 14, 14)
    assert torch.allclose(dense(x)[..., ::2, ::2], model(x), rtol=1e-12, atol=1e-12)


def test_incomplete_phases_have_no_bins() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3, 2, 1), nn.AdaptiveAvgPool2d(3), nn.Conv2d(4, 2, 1))
    with pytest.raises(RefusedError, match='padding="valid" leaves incomplete'):
        densify.convert(model, (1, 3, 14, 14), start="0", padding="valid")


def test_before_anything_was_removed_it_stays_as_it_is() -> None:
    model = seeded(nn.Sequential(nn.AdaptiveAvgPool2d(7), nn.Conv2d(3, 2, 1), nn.MaxPool2d(2)))
    dense = densify.convert(model, (1, 3, 20, 20), start="2", padding="valid")
    x = images(31, 18)
    assert torch.equal(dense(x)[..., ::2, ::2], model(x))


def test_averages_of_large_half_precision_numbers_do_not_overflow() -> None:
    model = nn.Sequential(nn.Conv2d(1, 1, 1, bias=False), nn.AvgPool2d(2)).eval()
    nn.init.ones_(model[0].weight)  # type: ignore[arg-type]
    dense = densify.convert(model.half(), (1, 1, 8, 8), output_stride=1)
    x = torch.full((1, 1, 8, 8), 30000.0, dtype=torch.float16)
    assert torch.equal(dense(x)[..., ::2, ::2], model(x))
