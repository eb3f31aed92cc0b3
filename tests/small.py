"""Small networks for tests that are not about a particular architecture."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Residual(nn.Module):
    """A stem, a strided block with a shortcut, a pooling, and a head that pools the whole map."""

    def __init__(self, classes: int = 5) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3, stride=2, padding=1)
        self.norm = nn.BatchNorm2d(4)
        self.main = nn.Conv2d(4, 6, 3, stride=2, padding=1)
        self.shortcut = nn.Conv2d(4, 6, 1, stride=2)
        self.pool = nn.MaxPool2d(2)
        self.last = nn.Conv2d(6, 6, 3, padding=1)
        self.fc = nn.Linear(6, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.norm(self.stem(x)))
        x = torch.relu(self.main(x) + self.shortcut(x))
        x = torch.relu(self.last(self.pool(x)))
        scores: Tensor = self.fc(x.mean(dim=(2, 3)))
        return scores


def fixed_window() -> nn.Module:
    """A classifier whose head reads a window of 4 x 4."""
    return nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(4, 4, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
        nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Dropout(), nn.Linear(64, 8), nn.ReLU(), nn.Linear(8, 5),
    )  # fmt: skip


def seeded(model: nn.Module, seed: int = 0) -> nn.Module:
    """The model in float64 and eval mode, with weights from a seed."""
    generator = torch.Generator().manual_seed(seed)
    for tensor in model.parameters():
        tensor.data = (
            torch.randn(tensor.shape, generator=generator, dtype=torch.float64) / max(1, tensor[0].numel()) ** 0.5
        )
    return model.double().eval()


def images(*sizes: int, batch: int = 2, channels: int = 3, seed: int = 1) -> Tensor:
    """Random images in float64."""
    return torch.randn(batch, channels, *sizes, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
