"""Models of timm for tests, which are skipped where timm is not installed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import nn

timm = pytest.importorskip("timm", reason="timm is not installed: pip install timm")


def forbid_downloads(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let timm's downloads fail the test."""

    def refuse(*args: object, **kwargs: object) -> None:
        raise AssertionError("a download nobody asked for")

    monkeypatch.setattr("timm.models._builder.load_state_dict_from_hf", refuse)
    monkeypatch.setattr("timm.models._builder.load_state_dict_from_url", refuse)


def alive(name: str, **arguments: object) -> nn.Module:
    """A model of timm in eval mode whose BatchNorm statistics are no identity."""
    model: nn.Module = timm.create_model(name, **arguments)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            assert module.running_mean is not None
            assert module.running_var is not None
            nn.init.normal_(module.running_mean, std=0.1)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
    return model.eval()


def same_state(a: nn.Module, b: nn.Module) -> bool:
    first, second = a.state_dict(), b.state_dict()
    return list(first) == list(second) and all(torch.equal(first[name], second[name]) for name in first)


def altered(folder: Path, **entries: object) -> Path:
    """The folder with these entries in its config.json, None taking one out."""
    config = json.loads((folder / "config.json").read_text()) | entries
    text = json.dumps({name: value for name, value in config.items() if value is not None})
    (folder / "config.json").write_text(text)
    return folder
