"""The digit model that the repository ships: its checkpoint fits, is small, and reads the held-out sample digits."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file

MODELS = Path(__file__).resolve().parent.parent / "models"
CHECKPOINT = MODELS / "digits.safetensors"
LABELS: dict[str, list[dict[str, int]]] = json.loads((MODELS / "samples" / "labels.json").read_text())


@pytest.fixture(scope="module")
def digits() -> ModuleType:
    """models/digits.py, imported from its path as a user's file is."""
    spec = importlib.util.spec_from_file_location("digits_under_test", MODELS / "digits.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def net(digits: ModuleType) -> torch.nn.Module:
    """The trained network in eval mode."""
    model: torch.nn.Module = digits.digit_net()
    model.load_state_dict(load_file(CHECKPOINT), strict=True)
    return model.eval()


def pixels(name: str) -> torch.Tensor:
    """A sample [3, H, W], RGB in [0, 1]."""
    with Image.open(MODELS / "samples" / name) as image:
        return torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1) / 255


def patches(digits: ModuleType, name: str) -> torch.Tensor:
    """The normalised crops [n, 3, 32, 32] around the digits of a sample."""
    image = (pixels(name) - torch.tensor(digits.MEAN)[:, None, None]) / torch.tensor(digits.STD)[:, None, None]
    half = digits.INPUT_SIZE[1] // 2
    return torch.stack(
        [image[:, at["y"] - half : at["y"] + half, at["x"] - half : at["x"] + half] for at in LABELS[name]]
    )


def misread(digits: ModuleType, net: torch.nn.Module, name: str) -> list[tuple[int, int]]:
    """The sample's digits that the net takes for another, as (truth, answer)."""
    with torch.no_grad():
        answers = net(patches(digits, name)).argmax(1).tolist()
    truths = [at["class"] for at in LABELS[name]]
    return [(truth, answer) for truth, answer in zip(truths, answers, strict=True) if truth != answer]


def test_checkpoint_is_small_and_plain() -> None:
    assert CHECKPOINT.stat().st_size < 1_000_000
    with safe_open(CHECKPOINT, framework="pt") as file:
        assert file.metadata() == {"format": "pt"}


def test_samples_are_as_described(digits: ModuleType) -> None:
    assert {name: len(found) for name, found in LABELS.items()} == {"scene1.png": 9, "scene2.png": 12, "patch.png": 1}
    shapes = {name: pixels(name).shape for name in LABELS}
    assert shapes == {"scene1.png": (3, 119, 161), "scene2.png": (3, 144, 200), "patch.png": digits.INPUT_SIZE}


@pytest.mark.parametrize("name", sorted(LABELS))
def test_every_sample_digit_is_read(digits: ModuleType, net: torch.nn.Module, name: str) -> None:
    """22 of 22: 9 in the first scene, 12 in the second, and the patch."""
    assert misread(digits, net, name) == []


def test_background_is_told_from_digits(digits: ModuleType, net: torch.nn.Module) -> None:
    """A flat grey patch holds no digit."""
    with torch.no_grad():
        assert net(torch.zeros(1, *digits.INPUT_SIZE)).argmax(1).tolist() == [digits.BACKGROUND]


def test_reading_can_fail(digits: ModuleType) -> None:
    """With untrained weights most digits are misread: the tests above measure the training."""
    assert len(misread(digits, digits.digit_net().eval(), "scene2.png")) > 6
