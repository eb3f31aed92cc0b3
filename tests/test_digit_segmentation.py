"""The segmentation network that the repository ships: its checkpoint fits, is small, and draws the held-out digits."""

from __future__ import annotations

import json
import runpy
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor, nn

from densify.reference import resolve

MODELS = Path(__file__).resolve().parent.parent / "models"
CHECKPOINT = MODELS / "digit_segmentation.safetensors"
REFERENCE = f"{MODELS / 'digit_segmentation.py'}:digit_segmentation"
SCENES = ("scene1", "scene2")


@pytest.fixture(scope="module")
def module() -> ModuleType:
    """models/digit_segmentation.py, imported from its path as a user's file is."""
    return sys.modules[resolve(REFERENCE).factory.__module__]


@pytest.fixture
def net() -> nn.Module:
    """The trained network in eval mode."""
    model = resolve(REFERENCE).build()
    model.load_state_dict(load_file(CHECKPOINT), strict=True)
    return model.eval()


def pixels(file: str) -> Tensor:
    """A sample image [H, W] or [H, W, 3] as bytes."""
    with Image.open(MODELS / "samples" / file) as image:
        return torch.from_numpy(np.array(image))


@torch.no_grad()
def drawn(module: ModuleType, net: nn.Module, scene: str) -> Tensor:
    """The classes [H, W] that the net gives the pixels of a sample scene."""
    image = pixels(f"{scene}.png").permute(2, 0, 1) / 255
    normalised = (image - torch.tensor(module.MEAN)[:, None, None]) / torch.tensor(module.STD)[:, None, None]
    answer: Tensor = net(normalised[None])[0].argmax(0)
    return answer


def mean_iou(module: ModuleType, net: nn.Module) -> float:
    """The mean IoU of the classes over both sample scenes."""
    answer = torch.cat([drawn(module, net, scene).flatten() for scene in SCENES])
    truth = torch.cat([pixels(f"{scene}_labels.png").flatten() for scene in SCENES])
    shares = []
    for kind in truth.unique():
        a, b = answer == kind, truth == kind
        shares.append(float((a & b).sum() / (a | b).sum()))
    return sum(shares) / len(shares)


def test_checkpoint_is_small_and_plain() -> None:
    assert CHECKPOINT.stat().st_size < 1_500_000
    with safe_open(CHECKPOINT, framework="pt") as file:
        assert file.metadata() == {"format": "pt"}


@pytest.mark.parametrize("scene", SCENES)
def test_labels_are_the_ink_of_the_scenes_digits(module: ModuleType, scene: str) -> None:
    """Around every digit's centre there are pixels of its class, and there are none elsewhere."""
    labels = pixels(f"{scene}_labels.png")
    assert labels.shape == pixels(f"{scene}.png").shape[:2]
    found = json.loads((MODELS / "samples" / "labels.json").read_text())[f"{scene}.png"]
    for at in found:
        window = labels[at["y"] - 12 : at["y"] + 12, at["x"] - 12 : at["x"] + 12]
        assert 40 < (window == at["class"]).sum() < 288
        window[:] = module.BACKGROUND
    assert (labels == module.BACKGROUND).all()


def test_sample_scenes_are_segmented(module: ModuleType, net: nn.Module) -> None:
    """The mean IoU is 0.878."""
    assert mean_iou(module, net) > 0.8


def test_segmenting_can_fail(module: ModuleType) -> None:
    """With untrained weights: the test above measures the training."""
    assert mean_iou(module, resolve(REFERENCE).build(seed=0).eval()) < 0.2


@torch.no_grad()
@pytest.mark.parametrize("size", [(1, 1), (37, 50), (128, 128)])
def test_every_pixel_is_answered(net: nn.Module, size: tuple[int, int]) -> None:
    assert net(torch.zeros(1, 3, *size)).shape == (1, 11, *size)


def test_the_picture_in_docs_is_what_the_script_draws(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """But for single samples that fall on the other side of a rounding on another machine."""
    monkeypatch.syspath_prepend(str(MODELS))
    monkeypatch.setattr("sys.argv", ["draw_score_maps.py", "-o", str(tmp_path / "drawn.png")])
    runpy.run_path(str(MODELS / "draw_score_maps.py"), run_name="__main__")
    files = (tmp_path / "drawn.png", MODELS.parent / "docs" / "score_maps.png")
    drawn, shown = (np.array(Image.open(file), float) for file in files)
    assert drawn.shape == shown.shape
    assert (abs(drawn - shown) > 2).mean() < 0.001
