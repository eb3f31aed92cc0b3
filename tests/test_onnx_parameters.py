"""What counts as a parameter of an ONNX file: what layers read as weights, and no other constant."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from laws.onnx import graph
from torch import Tensor, nn

import densify


class Mixed(nn.Module):
    """Layers with weights of many kinds, between constants that are none."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("centre", torch.tensor([0.4, 0.5, 0.6]).reshape(1, 3, 1, 1))
        self.conv, self.norm, self.act = nn.Conv2d(3, 8, 3, 2, 1, bias=False), nn.BatchNorm2d(8), nn.PReLU()
        self.deep = nn.Conv2d(8, 8, 5, padding=2, groups=8)
        self.tokens, self.line, self.scale = nn.LayerNorm(8), nn.Linear(8, 8), nn.Parameter(torch.rand(8))
        self.up, self.fc = nn.ConvTranspose2d(8, 6, 2, 2), nn.Linear(6, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = nn.functional.hardswish(self.act(self.norm(self.conv((x - self.get_buffer("centre")) / 0.25))))
        y = self.line(self.tokens(self.deep(x).permute(0, 2, 3, 1))) * self.scale
        x = self.up(x + nn.functional.gelu(y).permute(0, 3, 1, 2)) * 1.5 + 0.5
        made: Tensor = self.fc(x.mean((2, 3)))
        return made


def test_an_exported_network_has_the_parameters_of_the_module(tmp_path: Path) -> None:
    model, path = Mixed().eval(), tmp_path / "net.onnx"
    densify.export(model, path, (1, 3, 24, 34))
    file = densify.OnnxModel.load(path)
    assert file.total == sum(parameter.numel() for parameter in model.parameters())
    assert sum(tensor.size for tensor in file.weights.values() if tensor.dtype.is_floating_point()) > file.total
    by_layer = {name.rpartition("/")[0]: count for name, count in file.parameters.items() if "/Conv" in name}
    assert by_layer == {"conv": 216, "deep": 208, "up": 198}


@pytest.mark.parametrize("shared", [False, True])
def test_views_are_looked_through_and_shared_weights_count_once(shared: bool) -> None:
    weights = {
        "first": np.ones((3, 3, 1, 1), np.float32),
        "second": np.ones((3, 3, 1, 1), np.float32),
        "fc": np.ones((5, 3), np.float32),
        "half": np.array([0.5], np.float32),
        "low": np.array(0.0, np.float32),
        "high": np.array(6.0, np.float32),
        "std": np.ones((1, 3, 1, 1), np.float32),
    }
    source = graph(
        [
            ("Div", ["input", "std"], ["a"], {}),
            ("Conv", ["a", "first"], ["b"], {"strides": [2, 2]}),
            ("Clip", ["b", "low", "high"], ["c"], {}),
            ("Mul", ["c", "half"], ["d"], {}),
            ("Conv", ["d", "first" if shared else "second"], ["e"], {}),
            ("GlobalAveragePool", ["e"], ["f"], {}),
            ("Flatten", ["f"], ["g"], {}),
            ("Transpose", ["fc"], ["turned"], {"perm": [1, 0]}),
            ("MatMul", ["g", "turned"], ["output"], {}),
        ],
        weights,
        (1, 3, 12, 18),
    )
    assert source.parameters == {"b": 9, "e": 9, "output": 15}
    assert source.total == (24 if shared else 33)
