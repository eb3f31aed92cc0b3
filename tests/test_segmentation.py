"""Segmentation networks, dense: the FCNs of the paper, U-Nets, torchvision's; training, the way back, ONNX."""

from __future__ import annotations

import copy
from itertools import product
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
import torchvision
from laws.alive import enliven, images
from runtimes import ORT, verify_everywhere
from test_segmentation_models import factory, noisy
from torch import Tensor, nn

import densify
from densify.ops import Merge
from densify.plans import Plan
from densify.samples import Sample

FCN = ("fcn32s", "fcn16s", "fcn8s")


class SegNet(nn.Module):
    """Two poolings, and the way back by their indices: V. Badrinarayanan et al., *SegNet* (2015), small.

    Args:
        sized: the unpoolings are told the sizes that the poolings read, as odd maps need.
    """

    def __init__(self, *, sized: bool) -> None:
        super().__init__()
        self.sized = sized
        self.encode1, self.encode2 = nn.Conv2d(3, 6, 3, padding=1), nn.Conv2d(6, 8, 3, padding=1)
        self.bottom = nn.Sequential(nn.Conv2d(8, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU())
        self.pool = nn.MaxPool2d(2, 2, return_indices=True)
        self.unpool = nn.MaxUnpool2d(2, 2)
        self.decode2, self.decode1 = nn.Conv2d(8, 6, 3, padding=1), nn.Conv2d(6, 4, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        level1 = torch.relu(self.encode1(x))
        pooled, indices1 = self.pool(level1)
        level2 = torch.relu(self.encode2(pooled))
        pooled, indices2 = nn.functional.max_pool2d(level2, 2, return_indices=True)
        y = self.unpool(self.bottom(pooled), indices2, output_size=level2.shape[2:] if self.sized else None)
        y = torch.relu(self.decode2(y))
        made: Tensor = self.decode1(self.unpool(y, indices1, output_size=level1.shape if self.sized else None))
        return made


SMALL: dict[str, dict[str, Any]] = {
    "fcn32s": {"classes": 3, "width": 2},
    "fcn16s": {"classes": 3, "width": 2},
    "fcn8s": {"classes": 3, "width": 2},
    "unet": {"width": 3},
    "unet_same": {"width": 3},
    "segnet": {"sized": False},
    "segnet, sized": {"sized": True},
}
SHAPES: dict[str, list[tuple[int, ...]]] = {  # the reference, then others, odd and not square
    "fcn32s": [(1, 3, 64, 64), (2, 3, 81, 50)],
    "fcn16s": [(1, 3, 64, 64), (2, 3, 81, 50)],
    "fcn8s": [(1, 3, 64, 64), (2, 3, 81, 50)],
    "unet": [(1, 1, 204, 204), (2, 1, 211, 236)],
    "unet_same": [(1, 1, 48, 48), (2, 1, 51, 70)],
    "segnet": [(1, 3, 24, 28), (2, 3, 36, 16)],
    "segnet, sized": [(1, 3, 21, 26), (2, 3, 35, 18)],
}
START = dict.fromkeys(FCN, "pool3") | {"unet": "pool3", "unet_same": "pool2", "segnet": "pool", "segnet, sized": "pool"}


def small(name: str) -> nn.Module:
    """The network, narrow, all its layers alive."""
    torch.manual_seed(0)
    build = SegNet if name.startswith("segnet") else factory(name)
    model: nn.Module = build(**SMALL[name])
    return noisy(model) if name in FCN else model.eval()


def merges(plan: Plan) -> list[tuple[int, int, int, int]]:
    """Per upsampling: eST before and after, samples and their step in pixels before, along the first axis."""
    steps = [step for step in plan.steps.values() if isinstance(step.op, Merge)]
    found = []
    for step in steps:
        assert isinstance(step.op, Merge)
        axis = step.sources[0].axes[0]
        found.append((step.op.spreads[0].est, step.op.spreads[0].left, axis.dense, int(axis.pitch)))
    return found


PAPER = {
    "fcn32s": [(8, 1, 128, 4)],
    "fcn16s": [(8, 4, 128, 4), (4, 1, 136, 4)],
    "fcn8s": [(8, 4, 128, 4), (4, 2, 136, 4), (2, 1, 140, 4)],
}


@pytest.mark.parametrize("name", FCN)
def test_dense_fcns_have_scores_at_every_fourth_pixel(name: str) -> None:
    """All maps that meet lie 4 pixels apart (paper, section 3.1); 16, 34 and 70 scores become 8, 4 and 2 times as many
    along each axis, and the output has the image's size."""
    with torch.device("meta"):
        model = factory(name)()
    plan = densify.plan(model, (1, 3, 500, 500), start="pool3", merge="average")
    assert merges(plan) == PAPER[name]
    assert [axis.dense for axis in plan.outputs["output"].axes] == [500, 500]
    assert plan.lattices["output"].merged == "average"


@pytest.mark.parametrize("name", FCN)
def test_dense_fcns_are_the_average_over_all_shifts(name: str) -> None:
    """The original on 8 x 8 shifted images, its scores moved back and averaged: skips align to the sample."""
    model = small(name).double()
    border = 288  # half the receptive field (404), the shifts (28), and the kernel of the last upsampling (64)
    size = 2 * border + 21
    large = images((1, 3, size + 32, size + 32), 3).double()
    dense = densify.convert(model, (1, 3, size, size), start="pool3", merge="average")
    inside = slice(border, size - border)
    with torch.no_grad():
        image = large[..., :size, :size]
        made, once = dense(image)[..., inside, inside], model(image)[..., inside, inside]
        total = torch.zeros_like(made)
        for a, b in product(range(0, 32, 4), repeat=2):
            shifted = model(large[..., a : a + size, b : b + size])
            total += shifted[..., border - a : size - border - a, border - b : size - border - b]
    expected = total / 64
    assert (made - expected).abs().max() <= 1e-12 * expected.abs().max()
    assert (made - once).abs().max() > 1e-3 * expected.abs().max()


@pytest.mark.parametrize("form", ["dilated", "fragments"])
@pytest.mark.parametrize("name", SMALL)
def test_laws(name: str, form: str) -> None:
    model = small(name)
    dense = densify.convert(model, SHAPES[name][0], start=START[name], merge="average", form=form)
    report = densify.verify(model, dense, [images(shape) for shape in SHAPES[name]])
    assert report, report.failed
    laws = {check.law for check in report.checks}
    assert laws == {"weights", "size", "phases", "forms", "grid", "merges"}
    assert dense.lattices["output"].merged == ("average" if name in FCN else "new")


TORCHVISION = {  # networks with an auxiliary output, and from which step on strides go
    "fcn_resnet50": (4, True),
    "deeplabv3_resnet50": (4, False),
    "deeplabv3_mobilenet_v3_large": (8, True),
    "lraspp_mobilenet_v3_large": (8, False),
}


@pytest.mark.parametrize("name", TORCHVISION)
def test_torchvisions_networks(name: str) -> None:
    output_stride, auxiliary = TORCHVISION[name]
    given: dict[str, Any] = {"aux_loss": True} if auxiliary else {}
    torch.manual_seed(0)
    model = torchvision.models.get_model(name, weights=None, weights_backbone=None, num_classes=5, **given)
    enliven(model, (4, 3, 96, 96))
    dense = densify.convert(model, (1, 3, 65, 98), output_stride=output_stride, merge="resample", share=True)
    assert list(dense.lattices) == ["out", *["aux"] * auxiliary]
    report = densify.verify(model, dense, images((1, 3, 96, 65)))
    assert report, report.failed


@pytest.mark.parametrize("name", ["fcn8s", "unet_same", "segnet"])
def test_a_step_of_training_changes_what_the_originals_does(name: str) -> None:
    """And inverse gives all of it back."""
    model = small(name).train()
    dense = densify.convert(model, SHAPES[name][0], start=START[name], merge="average")
    dense.train()
    changed = [_step(copy.deepcopy(model), name), _step(dense, name)]
    assert changed[0] == changed[1]
    trainable = {key for key, parameter in model.named_parameters() if parameter.requires_grad}
    assert changed[0] == trainable
    fast = densify.inverse(dense)
    assert type(fast) is type(model)
    for key, value in fast.state_dict().items():
        assert torch.equal(value, dense.state_dict()[key])
    for key, parameter in fast.named_parameters():
        assert torch.equal(parameter, model.get_parameter(key)) == (key not in trainable)


def _step(model: nn.Module, name: str) -> set[str]:
    """The parameters that one step of an optimiser changes, all of them finite."""
    before = copy.deepcopy(dict(model.named_parameters()))
    optimiser = torch.optim.SGD(model.parameters(), lr=0.1)
    torch.manual_seed(1)
    scores: Tensor = model(images((2, *SHAPES[name][0][1:])))
    target = torch.randint(0, scores.shape[1], (2, *scores.shape[2:]))
    nn.functional.cross_entropy(scores, target).backward()
    optimiser.step()
    after = dict(model.named_parameters())
    assert all(parameter.isfinite().all() for parameter in after.values())
    return {key for key, parameter in after.items() if not torch.equal(parameter, before[key])}


@pytest.mark.parametrize("form", ["dilated", "fragments"])
@pytest.mark.parametrize("name", SMALL)
def test_onnx(name: str, form: str, tmp_path: Path) -> None:
    """Both forms in all runtimes, at another size and batch than the example's; export compares them by itself."""
    model = small(name)
    dense = densify.convert(model, SHAPES[name][0], start=START[name], merge="average", form=form)
    file = tmp_path / "net.onnx"
    densify.export(dense, file)
    samples = [Sample(str(shape), images(shape)) for shape in SHAPES[name]]
    report = verify_everywhere(file, dense, samples, reference=False)
    if name == "fcn8s":  # the FCNs pool in ceil mode, which OpenVINO does not take
        densify.export(dense, tmp_path / "openvino.onnx", target="openvino")
        report += verify_everywhere(tmp_path / "openvino.onnx", dense, samples, reference=False)
    assert report, report.failed
    assert {check.runtime for check in report.checks} == ORT | ({"openvino"} if name not in FCN[:2] else set())
    assert {i.name for i in onnx.load(file).graph.initializer} >= set(dict(model.named_parameters()))
