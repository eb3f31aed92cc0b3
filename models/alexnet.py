"""AlexNet, plain and scale-invariant, and the network for MNIST-scale: A. Akbari, *ImageNet Object Recognition with
Scale-Invariant Deep Convolutional Neural Network*; A. Krizhevsky, I. Sutskever, G. Hinton, *ImageNet Classification
with Deep Convolutional Neural Networks* (2012).

Five convolutions, of which the second, fourth and fifth are in two groups that the authors put on two GPUs, and three
fully connected layers: 60,965,224 parameters, with scale-invariant convolutions (densify.ScaleInvariantConv2d) too.

What the first paper leaves open, and how it is read here: max pooling "on the first two layers" alone would leave
13 x 13 maps in front of fc6 and 200 million parameters, so that conv5 has one too, as in the second paper; images of
224 pixels need a padding of 2 in conv1 to give 55 x 55 maps. Local response normalisation takes alpha = 1e-4 per map,
which torch divides by the 5 maps of a window. Weights start as N(0, 0.01^2), biases at 1 in conv2, conv4 and conv5 and
at 0 elsewhere. Training: momentum 0.9, weight decay 5e-4, learning rate 0.01, divided by 10 when the error stops
falling, batches of 128, random crops of 224 of 256 pixels and their mirror images.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor, nn

from densify import ScaleInvariantConv2d

INPUT_SIZE = (3, 224, 224)  # channels, height, width
CLASSES = 1000
SCALES = (1.0, 0.63, 0.7937, 1.2599, 1.5874, 2.0)  # the paper's six, from 0.6 to 2, a third of an octave apart

Convolution = Callable[..., nn.Conv2d]


class AlexNet(nn.Module):
    """Images [B, 3, 224, 224] to class scores [B, classes].

    Args:
        convolution: makes the convolutions.
        classes: number of classes.
    """

    def __init__(self, convolution: Convolution = nn.Conv2d, classes: int = CLASSES) -> None:
        super().__init__()
        self.conv1 = convolution(3, 96, kernel_size=11, stride=4, padding=2)
        self.norm1 = nn.LocalResponseNorm(5, alpha=5e-4, beta=0.75, k=2)
        self.pool1 = nn.MaxPool2d(3, 2)
        self.conv2 = convolution(96, 256, kernel_size=5, padding=2, groups=2)
        self.norm2 = nn.LocalResponseNorm(5, alpha=5e-4, beta=0.75, k=2)
        self.pool2 = nn.MaxPool2d(3, 2)
        self.conv3 = convolution(256, 384, kernel_size=3, padding=1)
        self.conv4 = convolution(384, 384, kernel_size=3, padding=1, groups=2)
        self.conv5 = convolution(384, 256, kernel_size=3, padding=1, groups=2)
        self.pool5 = nn.MaxPool2d(3, 2)
        self.drop6 = nn.Dropout(0.5)
        self.fc6 = nn.Linear(256 * 6 * 6, 4096)
        self.drop7 = nn.Dropout(0.5)
        self.fc7 = nn.Linear(4096, 4096)
        self.fc8 = nn.Linear(4096, classes)
        start(self, ones=("conv2", "conv4", "conv5"))

    def features(self, x: Tensor) -> Tensor:
        """Maps [B, 256, 6, 6] of images [B, 3, 224, 224]."""
        x = self.pool1(self.norm1(torch.relu(self.conv1(x))))
        x = self.pool2(self.norm2(torch.relu(self.conv2(x))))
        x = torch.relu(self.conv4(torch.relu(self.conv3(x))))
        x = self.pool5(torch.relu(self.conv5(x)))
        return x

    def forward(self, x: Tensor) -> Tensor:
        x = self.features(x).flatten(1)
        x = torch.relu(self.fc6(self.drop6(x)))
        x = torch.relu(self.fc7(self.drop7(x)))
        scores: Tensor = self.fc8(x)
        return scores


def start(model: nn.Module, ones: Sequence[str]) -> None:
    """The paper's initialisation: weights N(0, 0.01^2), biases 0, and 1 in the layers named."""
    for name, layer in model.named_modules():
        if isinstance(layer, nn.Conv2d | nn.Linear):
            nn.init.normal_(layer.weight, std=0.01)
            assert layer.bias is not None
            nn.init.constant_(layer.bias, float(name in ones))


def alexnet(classes: int = CLASSES) -> AlexNet:
    """AlexNet with two groups and local response normalisation, with fresh weights."""
    return AlexNet(classes=classes)


def scale_invariant_alexnet(classes: int = CLASSES, scales: Sequence[float] = SCALES) -> AlexNet:
    """AlexNet with the same parameters, all five convolutions scale-invariant, with fresh weights."""
    return AlexNet(partial(ScaleInvariantConv2d, scales=scales), classes)


def mnist_scale_net(scales: Sequence[float] = SCALES) -> nn.Sequential:
    """The network for MNIST-scale: digits [B, 1, 28, 28] to class scores [B, 10]; 147,524 parameters.

    Two scale-invariant convolutions of 36 maps 7 x 7 and 64 maps 5 x 5, each with max pooling, then 150 units. What the
    paper leaves open: convolutions without padding, pooling by 2 and by 3 rounded up, biases of 1 in the second.
    """
    return small(partial(ScaleInvariantConv2d, scales=scales))


def mnist_scale_cnn() -> nn.Sequential:
    """`mnist_scale_net` with plain convolutions, which the paper compares it with."""
    return small(nn.Conv2d)


def small(convolution: Convolution) -> nn.Sequential:
    """The network for MNIST-scale, with these convolutions."""
    model = nn.Sequential(
        OrderedDict(
            conv1=convolution(1, 36, kernel_size=7),
            relu1=nn.ReLU(),
            pool1=nn.MaxPool2d(2),
            conv2=convolution(36, 64, kernel_size=5),
            relu2=nn.ReLU(),
            pool2=nn.MaxPool2d(3, ceil_mode=True),
            flatten=nn.Flatten(),
            fc3=nn.Linear(64 * 3 * 3, 150),
            relu3=nn.ReLU(),
            fc4=nn.Linear(150, 10),
        )
    )
    start(model, ones=("conv2",))
    return model
