"""AlexNet and VGG as fully convolutional networks, written by hand: what f means at other sizes."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn


def fully_convolutional(model: nn.Module, x: Tensor) -> Tensor:
    """[B, 3, H, W] -> [B, K, h, w]: the features, then every Linear layer as a convolution."""
    x = model.get_submodule("features")(x)
    classifier = model.get_submodule("classifier")
    first = True
    for layer in classifier.children():
        if isinstance(layer, nn.Linear):
            side = round((layer.in_features / x.shape[1]) ** 0.5) if first else 1
            weight = layer.weight.unflatten(1, (x.shape[1], side, side))
            x = F.conv2d(x, weight, layer.bias)
            first = False
        else:
            x = layer(x)
    return x
