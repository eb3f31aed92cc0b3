"""FCN-32s, FCN-16s and FCN-8s on VGG-16: J. Long, E. Shelhamer, T. Darrell, *Fully Convolutional Networks for Semantic
Segmentation* (2015), layer by layer as the authors' reference networks for PASCAL VOC.

conv1_1 pads by 100, the poolings round sizes up, fc6 is a 7 x 7 convolution, and fixed bilinear interpolation leads
back to the size of the image: by 32, or once pool4 (and pool3) joined in by 16 (and 8). An image of 500 x 500 has
16 x 16, 34 x 34 and 70 x 70 scores. As in the reference, each network starts from the one before::

    fcn32s(start_from="vgg16.pth")  ->  fcn16s(start_from="fcn32s.pth")  ->  fcn8s(start_from="fcn16s.pth")

New score layers start at zero. So FCN-16s starts as FCN-32s but for interpolating in two steps, which cuts the corners
of the interpolation at the scores. Pixel p lies at t = (p - 25 / 2) / 32 in units of the scores. Along each axis the
two agree where t is 1/4 or more from the next score i; nearer, FCN-16s is (1/4 - |t - i|) / 2 times the second
difference of the scores at i above FCN-32s (scores beyond the border are zeros). FCN-8s starts from FCN-16s alike, with
the sum after pool4 in place of the scores and t = (p + 23 / 2) / 16.

The reference feeds BGR of 0 to 255 less a mean; MEAN and STD here are those of torchvision's VGG-16, where the chain
starts.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from densify.errors import CheckpointError
from densify.fit import fit, listed, load_into
from densify.weights import read_weights

from bilinear import start_bilinear

INPUT_SIZE = (3, 500, 500)  # channels, height, width; any height and width will do
MEAN = (0.485, 0.456, 0.406)  # of an RGB image in [0, 1]
STD = (0.229, 0.224, 0.225)
CLASSES = 21  # of PASCAL VOC, background included
WIDTH = 64  # maps of conv1_1 in VGG-16; those of the other layers are multiples

_STAGES = ((1, 2), (2, 2), (4, 3), (8, 3), (8, 3))  # maps in units of the width, number of convolutions
_HIDDEN = 64  # maps of fc6 and fc7 in units of the width
_TORCHVISION_CONVS = (0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28)  # features.N


class VGGScores(nn.Module):
    """VGG-16 as a fully convolutional network, up to the class scores at every 32nd pixel."""

    def __init__(self, classes: int = CLASSES, width: int = WIDTH) -> None:
        super().__init__()
        before, padding = 3, 100
        for stage, (multiple, convs) in enumerate(_STAGES, 1):
            for number in range(1, convs + 1):
                conv = nn.Conv2d(before, multiple * width, kernel_size=3, padding=padding)
                self.add_module(f"conv{stage}_{number}", conv)
                self.add_module(f"relu{stage}_{number}", nn.ReLU(inplace=True))
                before, padding = multiple * width, 1
            self.add_module(f"pool{stage}", nn.MaxPool2d(2, 2, ceil_mode=True))
        self.fc6 = nn.Conv2d(before, _HIDDEN * width, kernel_size=7)
        self.relu6 = nn.ReLU(inplace=True)
        self.drop6 = nn.Dropout()
        self.fc7 = nn.Conv2d(_HIDDEN * width, _HIDDEN * width, kernel_size=1)
        self.relu7 = nn.ReLU(inplace=True)
        self.drop7 = nn.Dropout()
        self.score_fr = score_layer(_HIDDEN * width, classes)

    def scores(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """pool3 and pool4, and the scores [B, classes, h, w], of images [B, 3, H, W]."""
        pools = []
        for stage, (_, convs) in enumerate(_STAGES, 1):
            for number in range(1, convs + 1):
                x = self.get_submodule(f"conv{stage}_{number}")(x)
                x = self.get_submodule(f"relu{stage}_{number}")(x)
            x = self.get_submodule(f"pool{stage}")(x)
            pools.append(x)
        x = self.drop6(self.relu6(self.fc6(x)))
        x = self.drop7(self.relu7(self.fc7(x)))
        return pools[2], pools[3], self.score_fr(x)


class FCN32s(VGGScores):
    """Images [B, 3, H, W] to class scores [B, classes, H, W]: those of VGG-16, interpolated by 32."""

    def __init__(self, classes: int = CLASSES, width: int = WIDTH) -> None:
        super().__init__(classes, width)
        self.upscore = upsampling(classes, 32)

    def forward(self, x: Tensor) -> Tensor:
        _, _, scores = self.scores(x)
        return cropped(self.upscore(scores), 19, x)


class FCN16s(VGGScores):
    """Images [B, 3, H, W] to class scores [B, classes, H, W]: pool4 joins in, interpolated by 16."""

    def __init__(self, classes: int = CLASSES, width: int = WIDTH) -> None:
        super().__init__(classes, width)
        self.upscore2 = upsampling(classes, 2)
        self.score_pool4 = score_layer(8 * width, classes)
        self.upscore16 = upsampling(classes, 16)

    def forward(self, x: Tensor) -> Tensor:
        _, pool4, scores = self.scores(x)
        up = self.upscore2(scores)
        fused = up + cropped(self.score_pool4(pool4), 5, up)
        return cropped(self.upscore16(fused), 27, x)


class FCN8s(VGGScores):
    """Images [B, 3, H, W] to class scores [B, classes, H, W]: pool4 and pool3 join in, interpolated by 8."""

    def __init__(self, classes: int = CLASSES, width: int = WIDTH) -> None:
        super().__init__(classes, width)
        self.upscore2 = upsampling(classes, 2)
        self.score_pool4 = score_layer(8 * width, classes)
        self.upscore_pool4 = upsampling(classes, 2)
        self.score_pool3 = score_layer(4 * width, classes)
        self.upscore8 = upsampling(classes, 8)

    def forward(self, x: Tensor) -> Tensor:
        pool3, pool4, scores = self.scores(x)
        up = self.upscore2(scores)
        up = self.upscore_pool4(up + cropped(self.score_pool4(pool4), 5, up))
        fused = up + cropped(self.score_pool3(pool3), 9, up)
        return cropped(self.upscore8(fused), 31, x)


def score_layer(maps: int, classes: int) -> nn.Conv2d:
    """Class scores of maps, zero at the start."""
    layer = nn.Conv2d(maps, classes, kernel_size=1)
    nn.init.zeros_(layer.weight)
    assert layer.bias is not None
    nn.init.zeros_(layer.bias)
    return layer


def upsampling(classes: int, factor: int) -> nn.ConvTranspose2d:
    """Bilinear interpolation of every class by itself; its kernel is not trained."""
    layer = nn.ConvTranspose2d(classes, classes, kernel_size=2 * factor, stride=factor, bias=False)
    start_bilinear(layer)
    layer.weight.requires_grad_(False)
    return layer


def cropped(x: Tensor, start: int, like: Tensor) -> Tensor:
    """The part of x that begins at (start, start) and has the size of the other tensor."""
    return x[:, :, start : start + like.shape[2], start : start + like.shape[3]]


def start(model: VGGScores, path: str, previous: type[VGGScores] | None = None) -> None:
    """Put into the model what a checkpoint of torchvision's VGG-16, or of the previous network, has of it."""
    weights = read_weights(path)
    own = model.state_dict()
    if "features.0.weight" in weights.tensors:
        given = of_vgg16(weights.tensors, own, weights.source)
    else:
        given = of_previous(weights.tensors, model, weights.source, previous)
    given = {name: tensor.to(own[name].device) for name, tensor in given.items() if name in own}
    load_into(model, {**own, **given}, weights.source)


def of_vgg16(tensors: Mapping[str, Tensor], own: Mapping[str, Tensor], source: str) -> dict[str, Tensor]:
    """The convolutions of torchvision's VGG-16 and its first two Linear layers as kernels, under our names."""
    convs = [f"conv{stage}_{number}" for stage, (_, count) in enumerate(_STAGES, 1) for number in range(1, count + 1)]
    names = dict(zip((f"features.{index}" for index in _TORCHVISION_CONVS), convs, strict=True))
    names |= {"classifier.0": "fc6", "classifier.3": "fc7"}
    renamed = {}
    for name, tensor in tensors.items():
        layer, _, kind = name.rpartition(".")
        if layer != "classifier.6":
            renamed[f"{names.get(layer, layer)}.{kind}"] = tensor
    for name in ("fc6.weight", "fc7.weight"):
        matrix, kernel = renamed.get(name), own[name]
        if matrix is not None and matrix.shape == (kernel.shape[0], kernel[0].numel()):
            renamed[name] = matrix.reshape(kernel.shape)  # the Linear's columns are in the order of maps, rows, columns
    wanted = {f"{layer}.{kind}" for layer in names.values() for kind in ("weight", "bias")}
    return fit({name: tensor for name, tensor in own.items() if name in wanted}, renamed, source)


def of_previous(
    tensors: Mapping[str, Tensor], model: VGGScores, source: str, previous: type[VGGScores] | None
) -> dict[str, Tensor]:
    """The state of the previous network of the chain, with as many classes and maps as the model."""
    name = type(model).__name__
    if previous is None:
        raise CheckpointError(
            f"{source}: {name} starts from torchvision's VGG-16, and this is another network's checkpoint"
        )
    with torch.device("meta"):
        expected = previous(model.score_fr.out_channels, model.fc6.out_channels // _HIDDEN).state_dict()
    last = expected.keys() - model.state_dict().keys()
    if not last <= tensors.keys():
        raise CheckpointError(
            f"{source}: {name} starts from {previous.__name__} or torchvision's VGG-16, and this is the checkpoint of "
            f"neither: {previous.__name__} has {listed(sorted(last))}"
        )
    return fit(expected, tensors, source)


def fcn32s(classes: int = CLASSES, start_from: str | None = None, width: int = WIDTH) -> FCN32s:
    """FCN-32s, with fresh weights or from torchvision's VGG-16, whose 1000-class layer is dropped.

    Args:
        classes: number of classes.
        start_from: the checkpoint to start from.
        width: maps of the first layer, 64 in VGG-16; all others follow.

    Raises:
        UsageError, UnsafeError, CheckpointError: the checkpoint cannot be read, or does not fit.
    """
    model = FCN32s(classes, width)
    if start_from is not None:
        start(model, start_from)
    return model


def fcn16s(classes: int = CLASSES, start_from: str | None = None, width: int = WIDTH) -> FCN16s:
    """FCN-16s, with fresh weights or from FCN-32s (or VGG-16); arguments and errors as for `fcn32s`."""
    model = FCN16s(classes, width)
    if start_from is not None:
        start(model, start_from, FCN32s)
    return model


def fcn8s(classes: int = CLASSES, start_from: str | None = None, width: int = WIDTH) -> FCN8s:
    """FCN-8s, with fresh weights or from FCN-16s (or VGG-16); arguments and errors as for `fcn32s`."""
    model = FCN8s(classes, width)
    if start_from is not None:
        start(model, start_from, FCN16s)
    return model
