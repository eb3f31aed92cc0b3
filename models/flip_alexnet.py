"""AlexNet whose first fully connected layer does not tell left from right: section 5 of *Invariance and Equivariance
Induced Weight Sharing Schemes*.

AlexNet is that of A. Krizhevsky, I. Sutskever, G. Hinton, *ImageNet Classification with Deep Convolutional Neural
Networks* (2012). Its sixth layer reads 256 maps of 6 x 6; here it has 6 * 6 * 113 = 4068 outputs (the paper prints
6 * 113) in place of 4096, and w[n, c, h, w] = w[n, c, h, 5 - w]: 18,745,344 free weights instead of 37,748,736. All in
all 41,847,116 parameters instead of 60,965,224.

The paper trains with a weight decay of 1e-3 in place of 5e-4, all else being as for AlexNet: momentum 0.9, batches of
128, learning rates from 0.01 down to 1e-5, each until the validation accuracy holds steady.
"""

from __future__ import annotations

from torch import Tensor, nn

from densify import SymmetricLinear
from densify.symmetry import Flip, Invariant

INPUT_SIZE = (3, 224, 224)  # channels, height, width
HIDDEN = 6 * 6 * 113  # outputs of the flip-invariant layer

_BIASES_OF_ONE = ("conv2", "conv4", "conv5", "fc6", "fc7")


class FlipAlexNet(nn.Module):
    """Images [B, 3, 224, 224], less the mean colour, to class scores [B, classes]."""

    def __init__(self, classes: int = 1000) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 96, kernel_size=11, stride=4, padding=2)
        self.conv2 = nn.Conv2d(96, 256, kernel_size=5, padding=2, groups=2)
        self.conv3 = nn.Conv2d(256, 384, kernel_size=3, padding=1)
        self.conv4 = nn.Conv2d(384, 384, kernel_size=3, padding=1, groups=2)
        self.conv5 = nn.Conv2d(384, 256, kernel_size=3, padding=1, groups=2)
        self.relu = nn.ReLU()
        self.norm = nn.LocalResponseNorm(5, alpha=5e-4, beta=0.75, k=2.0)  # the paper's alpha of 1e-4, times its n
        self.pool = nn.MaxPool2d(3, 2)
        self.fc6 = SymmetricLinear((256, 6, 6), HIDDEN, Invariant(Flip(), "w"))
        self.fc7 = nn.Linear(HIDDEN, 4096)
        self.fc8 = nn.Linear(4096, classes)
        self.drop = nn.Dropout()
        for name, layer in self.named_children():
            if isinstance(layer, nn.Conv2d | nn.Linear | SymmetricLinear):
                nn.init.normal_(layer.weight, std=0.01)
                assert layer.bias is not None
                nn.init.constant_(layer.bias, float(name in _BIASES_OF_ONE))

    def forward(self, x: Tensor) -> Tensor:
        x = self.pool(self.norm(self.relu(self.conv1(x))))
        x = self.pool(self.norm(self.relu(self.conv2(x))))
        x = self.relu(self.conv4(self.relu(self.conv3(x))))
        x = self.pool(self.relu(self.conv5(x)))
        x = self.drop(self.relu(self.fc6(x.flatten(1))))
        x = self.drop(self.relu(self.fc7(x)))
        scores: Tensor = self.fc8(x)
        return scores


def flip_alexnet(classes: int = 1000) -> FlipAlexNet:
    """The paper's network.

    Args:
        classes: number of classes.
    """
    return FlipAlexNet(classes)
