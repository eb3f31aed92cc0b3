"""The segmentation networks in models/: the references' sizes, bilinear starts, and the chain VGG-16 -> 32s -> 16s
-> 8s.

Whole networks run on the meta device, without numbers; numbers are compared on networks of width 1 and 2.
"""

from __future__ import annotations

import sys
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import torchvision
from safetensors.torch import save_file
from torch import Tensor, nn

from densify.errors import CheckpointError, ConversionError, UsageError
from densify.fit import load_into
from densify.reference import resolve

MODELS = Path(__file__).resolve().parent.parent / "models"
FCN = ("fcn32s", "fcn16s", "fcn8s")
VGG16 = [1, 1, "M", 2, 2, "M", 4, 4, 4, "M", 8, 8, 8, "M", 8, 8, 8, "M"]  # maps in units of the width


def factory(name: str) -> Any:
    """The factory in models/fcn.py or models/unet.py, imported from its path as a user's file is."""
    file = "fcn" if name in FCN else "unet"
    return resolve(f"{MODELS / file}.py:{name}").factory


def module(name: str) -> Any:
    """The module of that factory."""
    return sys.modules[factory(name).__module__]


def on_meta(name: str, **arguments: object) -> nn.Module:
    with torch.device("meta"):
        model = factory(name)(**arguments)
    assert isinstance(model, nn.Module)
    return model.eval()


def noisy(model: nn.Module) -> nn.Module:
    """The model with weights in its score layers, which start at zero, and more signal in the others."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.startswith("score"):
                parameter.normal_()
            elif parameter.requires_grad and parameter.ndim > 1:
                parameter.mul_(2)
    return model.eval()


class VGG(nn.Module):
    """A VGG-16 with torchvision's layers under torchvision's names, narrow."""

    def __init__(self, width: int) -> None:
        super().__init__()
        hidden = 64 * width
        self.features: nn.Sequential = torchvision.models.vgg.make_layers(
            [m * width if isinstance(m, int) else m for m in VGG16]
        )
        self.classifier = nn.Sequential(
            nn.Linear(8 * width * 49, hidden), nn.ReLU(), nn.Dropout(),
            nn.Linear(hidden, hidden), nn.ReLU(), nn.Dropout(), nn.Linear(hidden, 10),
        )  # fmt: skip


def vgg16(width: int, seed: int = 0) -> VGG:
    torch.manual_seed(seed)
    return VGG(width).eval()


def saved(model: nn.Module, path: Path) -> str:
    save_file({name: tensor.contiguous() for name, tensor in model.state_dict().items()}, path)
    return str(path)


def seen(model: nn.Module, layer: str, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """What the layer reads and what it makes while the model answers x, and the answer."""
    pairs: list[tuple[Tensor, Tensor]] = []
    handle = model.get_submodule(layer).register_forward_hook(lambda _, given, made: pairs.append((given[0], made)))
    with torch.no_grad():
        answer: Tensor = model(x)
    handle.remove()
    ((given, made),) = pairs
    return given, made, answer


# ---- FCN -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("fcn32s", 134_260_544 + (4096 + 1) * 21 + 21**2 * 64**2),
        ("fcn16s", 134_260_544 + (4096 + 512 + 2) * 21 + 21**2 * (4**2 + 32**2)),
        ("fcn8s", 134_260_544 + (4096 + 512 + 256 + 3) * 21 + 21**2 * (4**2 + 4**2 + 16**2)),
    ],
)
def test_fcn_has_vgg16s_parameters_and_the_new_layers(name: str, parameters: int) -> None:
    """VGG-16 has 138,357,544, of which the layer of 1000 classes holds 4,097,000."""
    assert sum(p.numel() for p in on_meta(name).parameters()) == parameters


@pytest.mark.parametrize(
    ("name", "layer", "scores", "upscored"),
    [("fcn32s", "upscore", 16, 544), ("fcn16s", "upscore16", 34, 560), ("fcn8s", "upscore8", 70, 568)],
)
def test_fcn_sizes_at_500(name: str, layer: str, scores: int, upscored: int) -> None:
    model = on_meta(name)
    given, made, answer = seen(model, layer, torch.empty(1, 3, 500, 500, device="meta"))
    assert given.shape == (1, 21, scores, scores)
    assert made.shape == (1, 21, upscored, upscored)
    assert answer.shape == (1, 21, 500, 500)


def test_fcn_pools_at_500() -> None:
    """698, 349, 175, 88, 44, 22: with sizes rounded down there would be 15 scores."""
    model, x = on_meta("fcn8s"), torch.empty(1, 3, 500, 500, device="meta")
    sizes = [seen(model, f"pool{stage}", x)[1].shape[-1] for stage in range(1, 6)]
    assert [seen(model, "conv1_1", x)[1].shape[-1], *sizes] == [698, 349, 175, 88, 44, 22]


@pytest.mark.parametrize("name", FCN)
@pytest.mark.parametrize("size", [(1, 1), (33, 47), (64, 50)])
def test_fcn_answers_every_pixel(name: str, size: tuple[int, int]) -> None:
    model = noisy(factory(name)(classes=5, width=1))
    x = torch.randn(2, 3, *size)
    with torch.no_grad():
        answer, other = model(x), model(x + 1)
    assert answer.shape == (2, 5, *size)
    assert (answer - other).abs().max() > 1e-3 * answer.abs().max()


@pytest.mark.parametrize("name", FCN)
def test_fcn_scores_start_at_zero_and_interpolation_stays_fixed(name: str) -> None:
    model = factory(name)(width=1).eval()
    assert not model(torch.randn(1, 3, 9, 9)).any()
    fixed = {name for name, parameter in model.named_parameters() if not parameter.requires_grad}
    assert fixed == {name for name in model.state_dict() if name.startswith("upscore")}


@pytest.mark.parametrize(("name", "layer", "factor"), [("fcn32s", "upscore", 32), ("fcn16s", "upscore2", 2)])
def test_upsampling_is_bilinear(name: str, layer: str, factor: int) -> None:
    """Inside it is torch's own bilinear interpolation; towards the border it fades to zero."""
    up = factory(name)(classes=3, width=1).double().get_submodule(layer)
    x = torch.randn(2, 3, 5, 7, dtype=torch.float64)
    with torch.no_grad():
        made = up(x)
    wanted = F.interpolate(x, scale_factor=factor, mode="bilinear", align_corners=False)
    edge = slice(factor // 2, -(factor // 2))
    torch.testing.assert_close(made[..., factor:-factor, factor:-factor], wanted[..., edge, edge])
    assert (made[..., 0, 0].abs() < wanted[..., 0, 0].abs()).all()


@pytest.mark.parametrize("name", [*FCN, "unet", "unet_same"])
def test_sizes_stay_symbolic(name: str) -> None:
    """A trace, made without any example, answers images of several sizes."""
    model = noisy(factory(name)(width=1))
    traced = torch.fx.symbolic_trace(model)
    channels = 3 if name in FCN else 1
    for size in ((188, 204), (220, 188)):
        x = torch.randn(1, channels, *size)
        assert torch.equal(traced(x), model(x))


# ---- the chain -----------------------------------------------------------------------------------


def test_names_and_shapes_of_torchvisions_vgg16() -> None:
    with torch.device("meta"):
        theirs = torchvision.models.vgg16(weights=None).state_dict()
    ours = on_meta("fcn32s").state_dict()
    taken = module("fcn32s").of_vgg16(theirs, ours, "vgg16")
    assert {name: t.shape for name, t in taken.items()} == {
        name: t.shape for name, t in ours.items() if not name.startswith(("score", "upscore"))
    }


@torch.no_grad()
def test_fcn32s_computes_what_vgg16_does(tmp_path: Path) -> None:
    """On a map of 7 x 7, fc6 and fc7 are the Linear layers; the convolutions agree where no pooling rounded up."""
    theirs = vgg16(width=1).double()
    model = factory("fcn32s")(classes=4, start_from=saved(theirs, tmp_path / "vgg16.safetensors"), width=1).eval()
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}  # the new layers' own
    model, theirs = model.double(), theirs.float().double()
    features = torch.randn(2, 8, 7, 7, dtype=torch.float64)
    ours = model.fc7(model.relu6(model.fc6(features))).flatten(1)
    torch.testing.assert_close(ours, theirs.classifier[:4](features.flatten(1)))
    x = torch.randn(1, 3, 256, 256, dtype=torch.float64)
    _, pool4, _ = model.scores(x)
    padded = theirs.features[:24](F.pad(x, (99, 99, 99, 99)))  # conv1_1 pads by 1 itself
    torch.testing.assert_close(pool4[..., 10:18, 10:18], padded[..., 10:18, 10:18])


def two_steps(pixels: int, scores: int, factor: int, shift: float) -> tuple[Tensor, Tensor]:
    """Matrices [pixels, scores] of the interpolation in one step, and of what two steps add to it: models/fcn.py's
    docstring as a formula, t = (p + shift) / factor."""
    t = (torch.arange(pixels, dtype=torch.float64) + shift) / factor
    columns = torch.arange(scores, dtype=torch.float64)
    one = (1 - (t[:, None] - columns).abs()).clamp(min=0)
    nearest = t.round()
    second = (columns == nearest[:, None] - 1) * 1.0 + (columns == nearest[:, None] + 1) * 1.0
    second = second - 2.0 * (columns == nearest[:, None])
    more = ((0.25 - (t - nearest).abs()).clamp(min=0) / 2)[:, None] * second
    return one, more


@pytest.mark.parametrize(
    ("before", "after", "layer", "factor", "shift"),
    [("fcn32s", "fcn16s", "upscore", 32, -12.5), ("fcn16s", "fcn8s", "upscore16", 16, 11.5)],
)
@torch.no_grad()
def test_each_network_starts_as_the_one_before(
    tmp_path: Path, before: str, after: str, layer: str, factor: int, shift: float
) -> None:
    """Equal where the docstring says so, and different by what it says elsewhere."""
    old = noisy(factory(before)(classes=3, width=1))
    new = factory(after)(classes=3, start_from=saved(old, tmp_path / "old.safetensors"), width=1).double().eval()
    x = torch.randn(1, 3, 201, 150, dtype=torch.float64)
    scores, _, was = seen(old.double(), layer, x)
    rows, more_rows = two_steps(201, scores.shape[2], factor, shift)
    columns, more_columns = two_steps(150, scores.shape[3], factor, shift)
    torch.testing.assert_close(was, rows @ scores @ columns.T)
    now = new(x)
    torch.testing.assert_close(now, (rows + more_rows) @ scores @ (columns + more_columns).T)
    agree = ~more_rows.any(1)[:, None] & ~more_columns.any(1)
    assert agree.double().mean() > 0.2
    torch.testing.assert_close(now[..., agree], was[..., agree])
    assert (now - was).abs().max() > 1e-3 * was.abs().max()


@pytest.mark.parametrize("name", FCN)
def test_every_network_starts_from_vgg16(tmp_path: Path, name: str) -> None:
    path = saved(vgg16(width=1), tmp_path / "vgg16.safetensors")
    model = factory(name)(classes=2, start_from=path, width=1)
    torch.testing.assert_close(model.conv5_3.weight, vgg16(width=1).get_parameter("features.28.weight"))
    assert model.conv5_3.weight.requires_grad
    assert not model.score_fr.weight.any()


def test_a_started_network_can_be_built_on_meta(tmp_path: Path) -> None:
    path = saved(vgg16(width=1), tmp_path / "vgg16.safetensors")
    assert all(p.is_meta for p in on_meta("fcn16s", start_from=path, width=1).parameters())


def test_what_does_not_fit_is_said(tmp_path: Path) -> None:
    paths = {name: saved(factory(name)(width=1), tmp_path / f"{name}.safetensors") for name in FCN}
    batchnorm = tmp_path / "bn.pth"
    torch.save({**vgg16(1).state_dict(), "features.1.running_mean": torch.zeros(1)}, batchnorm)
    vgg = saved(vgg16(width=1), tmp_path / "vgg16.safetensors")
    with pytest.raises(CheckpointError, match="FCN8s starts from FCN16s or torchvision's VGG-16.*upscore16.weight"):
        factory("fcn8s")(start_from=paths["fcn32s"], width=1)
    with pytest.raises(CheckpointError, match="FCN32s starts from torchvision's VGG-16"):
        factory("fcn32s")(start_from=paths["fcn32s"], width=1)
    with pytest.raises(CheckpointError, match=r"score_fr.weight is \[21, 64, 1, 1\], the model has \[5, 64, 1, 1\]"):
        factory("fcn16s")(classes=5, start_from=paths["fcn32s"], width=1)
    with pytest.raises(CheckpointError, match=r"conv1_1.weight is \[1, 3, 3, 3\], the model has \[2, 3, 3, 3\]"):
        factory("fcn32s")(start_from=vgg, width=2)
    with pytest.raises(CheckpointError, match=r"unexpected \(1\): features.1.running_mean"):
        factory("fcn32s")(start_from=str(batchnorm), width=1)
    narrow = vgg16(width=1)
    narrow.classifier[0] = nn.Linear(8 * 36, 64)
    with pytest.raises(CheckpointError, match=r"fc6.weight is \[64, 288\], the model has \[64, 8, 7, 7\]"):
        factory("fcn32s")(start_from=saved(narrow, tmp_path / "narrow.safetensors"), width=1)
    with pytest.raises(UsageError, match="there is no such file"):
        factory("fcn32s")(start_from=str(tmp_path / "none.pth"), width=1)
    with pytest.raises(ConversionError, match="FCN8s starts from FCN16s"):
        resolve(f"{MODELS}/fcn.py:fcn8s", {"start_from": paths["fcn32s"], "width": 1}).build()


# ---- U-Net ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "size", "answered"), [("unet", 572, 388), ("unet_same", 512, 512)])
def test_unet_sizes_and_parameters(name: str, size: int, answered: int) -> None:
    model = on_meta(name)
    assert model(torch.empty(1, 1, size, size, device="meta")).shape == (1, 2, answered, answered)
    levels = [1, 64, 128, 256, 512, 1024]
    pairs = list(pairwise(levels))
    down = sum(9 * (a * b + b * b) + 2 * b for a, b in pairs)
    up = sum(4 * a * b + a + 9 * 3 * a * a + 2 * a for a, b in pairs[1:])
    assert sum(p.numel() for p in model.parameters()) == down + up + 64 * 2 + 2 == 31_030_658


def test_unet_arguments() -> None:
    model = factory("unet_same")(channels=3, classes=5, width=2)
    assert model(torch.randn(2, 3, 35, 50)).shape == (2, 5, 32, 48)


@torch.no_grad()
def test_unets_agree_where_no_padding_is_seen() -> None:
    """The crops of the skips are in their middle: the network without padding computes, 92 pixels in, what the one with
    padding does on a grid that begins 14 pixels in (before pool4 the convolutions cut off 2 + 4 + 8 + 16 pixels, and
    30 = 14 mod 16)."""
    valid, same = factory("unet")(width=2).double().eval(), factory("unet_same")(width=2).double().eval()
    load_into(same, valid.state_dict(), "valid")
    x = torch.randn(1, 1, 284, 300, dtype=torch.float64)
    a, b = valid(x), same(x[..., 14:270, 14:286])
    assert a.shape == (1, 2, 100, 116)
    torch.testing.assert_close(a[..., 22:78, 22:94], b[..., 100:156, 100:172])


def test_unet_starts_with_the_papers_variance() -> None:
    state = factory("unet")(width=8).state_dict()
    assert abs(float(state["down4.2.weight"].std()) / (2 / (9 * 64)) ** 0.5 - 1) < 0.05
    assert abs(float(state["up4.weight"].std()) / (2 / 128) ** 0.5 - 1) < 0.05
    assert not state["up4.bias"].any()
