"""AlexNet with a flip-invariant layer: the paper's counts, and what of it is invariant."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from densify.layers.symmetric import SymmetricLinear
from densify.reference import resolve

MODEL = Path(__file__).resolve().parent.parent / "models" / "flip_alexnet.py"


def network(device: str) -> Any:
    """As a user's file is imported, with all defaults."""
    with torch.device(device):
        return resolve(f"{MODEL}:flip_alexnet").factory()


def test_its_parameters_are_as_many_as_the_paper_has() -> None:
    model = network("meta")
    assert sum(p.numel() for p in model.parameters()) == 41_847_116
    assert model.fc6.weight.numel() == 18_745_344
    assert model.fc6.weight.shape == (4068, 256, 6, 3)
    model.eval().fc6, model.fc7 = nn.Linear(9216, 4096, device="meta"), nn.Linear(4096, 4096, device="meta")
    assert sum(p.numel() for p in model.parameters()) == 60_965_224  # AlexNet itself
    assert model(torch.empty(2, 3, 224, 224, device="meta")).shape == (2, 1000)


def test_its_sixth_layer_does_not_tell_left_from_right() -> None:
    model = network("cpu").eval()
    layer = model.fc6
    assert isinstance(layer, SymmetricLinear)
    assert layer.check_invariance().error == 0  # two numbers are added in one order or the other: bit for bit
    maps = torch.randn(2, 256, 6, 6)
    scores, mirrored, upside_down = (model.fc8(layer_6_7(model, x)) for x in (maps, maps.flip(3), maps.flip(2)))
    assert torch.equal(scores, mirrored)
    assert not torch.allclose(scores, upside_down)
    assert layer.bias is not None
    for parameter, mean, std in ((layer.weight, 0, 0.01), (model.conv3.weight, 0, 0.01), (model.conv4.bias, 1, 0)):
        assert float(parameter.detach().mean()) == pytest.approx(mean, abs=5e-5 * math.sqrt(3))
        assert float(parameter.detach().std()) == pytest.approx(std, rel=0.01)


def layer_6_7(model: Any, maps: torch.Tensor) -> Any:
    return model.relu(model.fc7(model.relu(model.fc6(maps.flatten(1)))))
