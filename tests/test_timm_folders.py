"""Folders as timm writes them, as models: what timm makes of them is the oracle."""

from __future__ import annotations

import json
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from cli import densify
from safetensors.torch import load_file, save_file
from timm_models import alive, altered, forbid_downloads, same_state, timm

from densify.checkpoint import load
from densify.errors import CheckpointError, UsageError
from densify.reference import resolve
from densify.weights import read_weights


@pytest.fixture(autouse=True)
def _no_download(monkeypatch: pytest.MonkeyPatch) -> None:
    forbid_downloads(monkeypatch)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A trained model of seven classes and one channel, as timm's own function writes it."""
    path = tmp_path_factory.mktemp("models") / "my.pth"  # a folder, whatever its name
    torch.manual_seed(5)
    model = alive("test_resnet", num_classes=7, in_chans=1)
    arguments = {"num_classes": 7, "in_chans": 1}
    timm.models.save_for_hf(model, path, safe_serialization=True, model_args=arguments)
    config = json.loads((path / "config.json").read_text())
    trained = {"input_size": [1, 96, 128], "mean": [0.25], "std": [0.5]}
    return altered(path, pretrained_cfg=config["pretrained_cfg"] | trained)


@pytest.fixture
def damaged(folder: Path, tmp_path: Path) -> Path:
    """A copy of the folder, to do harm to."""
    return Path(shutil.copytree(folder, tmp_path / "copy"))


@pytest.mark.parametrize("stored", ["model.safetensors", "pytorch_model.bin"])
def test_a_folder_is_what_timm_loads(stored: str, damaged: Path) -> None:
    if stored == "pytorch_model.bin":
        torch.save(load_file(damaged / "model.safetensors"), damaged / stored)
        (damaged / "model.safetensors").unlink()
    found = resolve(str(damaged))
    assert (found.kind, found.portable, found.weights) == ("timm", "timm:test_resnet", damaged / stored)
    assert (found.input_size, found.mean, found.std) == ((1, 96, 128), (0.25,), (0.5,))
    model = timm.create_model(f"local-dir:{damaged}", pretrained=True).eval()
    built = found.build_stored().eval()
    assert same_state(built, model)
    x = torch.randn(1, 1, 50, 70)
    torch.testing.assert_close(built(x), model(x))  # how a file is mapped changes the order of sums
    again = resolve(found.portable, found.arguments).build()
    assert {name: t.shape for name, t in again.state_dict().items()} == {
        name: t.shape for name, t in model.state_dict().items()
    }


def test_a_folders_file_needs_the_folder_no_more(damaged: Path, tmp_path: Path) -> None:
    dense, onnx, back = tmp_path / "dense.safetensors", tmp_path / "dense.onnx", tmp_path / "back.pth"
    weights = load_file(damaged / "model.safetensors")
    done = densify(
        "convert", damaged, "--start", "layer4", "--input-size", "1,48,64", "-o", dense, "-o", onnx, "--json"
    )
    assert done.status == 0, done.stderr
    assert f"with the weights of {damaged / 'model.safetensors'}" in done.stderr
    assert densify("verify", onnx, damaged).status == 0
    shutil.rmtree(damaged)
    for file in (dense, onnx):
        assert densify("verify", file).status == 0
    assert str(tmp_path) not in str(read_weights(dense).recipe)
    assert densify("inverse", onnx, "-o", back).status == 0
    state = torch.load(back, weights_only=True)["state_dict"]
    assert state.keys() == weights.keys()
    assert all(torch.equal(state[name], weights[name]) for name in weights)


def test_other_weights_come_before_the_folders(folder: Path, tmp_path: Path) -> None:
    other, dense = tmp_path / "other.pth", tmp_path / "dense.safetensors"
    model = alive("test_resnet", num_classes=7, in_chans=1)
    torch.save(model.state_dict(), other)
    assert densify("convert", folder, "--weights", other, "--output-stride", 8, "-o", dense, "-q").status == 0
    assert same_state(load(dense), model)
    assert densify("verify", dense, folder, "--weights", other, "-q").status == 0
    assert densify("verify", dense, folder, "-q").status == 1


def test_arguments_are_laid_over_a_folders(folder: Path) -> None:
    found = resolve(str(folder), {"num_classes": 0})
    assert found.arguments["in_chans"] == 1
    assert "fc.weight" not in found.build(meta=True).state_dict()
    with pytest.raises(CheckpointError, match="does not fit the model"):
        resolve(str(folder), {"num_classes": 5}).build_stored()


def test_a_flat_config(damaged: Path) -> None:
    """As timm wrote it until 2023."""
    flat = {"architecture": "test_resnet", "num_classes": 7, "input_size": [1, 96, 128], "mean": [0.25], "std": [0.5]}
    (damaged / "config.json").write_text(json.dumps(flat))
    found = resolve(str(damaged))
    assert (found.input_size, found.mean, found.std) == ((1, 96, 128), (0.25,), (0.5,))
    assert found.arguments == {"num_classes": 7, "in_chans": 1}
    assert same_state(found.build_stored(), timm.create_model(f"local-dir:{damaged}", pretrained=True))


def test_names_that_only_timm_knows(tmp_path: Path) -> None:
    """timm renames the tensors of other trainings' checkpoints when it loads them."""
    model = alive("test_convnext")
    timm.models.save_for_hf(model, tmp_path, safe_serialization=True)
    foreign = {f"visual.trunk.{name}": tensor for name, tensor in model.state_dict().items()}
    save_file(foreign, tmp_path / "model.safetensors")
    assert same_state(resolve(str(tmp_path)).build_stored(), model)
    foreign.popitem()
    save_file(foreign, tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"model\.safetensors does not fit the model"):
        resolve(str(tmp_path)).build_stored()


def test_a_folder_bound_to_its_size(tmp_path: Path) -> None:
    model = timm.create_model("test_vit", img_size=96)
    timm.models.save_for_hf(model, tmp_path, safe_serialization=True)
    config = json.loads((tmp_path / "config.json").read_text())
    bound = {"input_size": [3, 96, 96], "fixed_input_size": True}
    altered(tmp_path, model_args=None, pretrained_cfg=config["pretrained_cfg"] | bound)  # older files say no more
    found = resolve(str(tmp_path))
    assert found.input_size == (3, 96, 96)
    assert found.arguments["img_size"] == [96, 96]
    assert same_state(found.build_stored(), model)


def test_random_weights_for_a_folder(folder: Path, tmp_path: Path) -> None:
    dense = tmp_path / "dense.safetensors"
    made = densify("convert", folder, "--init", "random", "--seed", 3, "--output-stride", 8, "-o", dense, "-q")
    assert made.status == 0
    assert same_state(load(dense), resolve(str(folder)).build(seed=3))


def test_a_survey_needs_no_weights(damaged: Path) -> None:
    (damaged / "model.safetensors").unlink()
    done = densify("plan", damaged, "--output-stride", 8, "--json")
    assert done.status == 0, done.stderr
    assert done.document["input_size"] == [1, 96, 128]


# ---- bad folders ---------------------------------------------------------------------------------


def _metadata(**entries: object) -> Callable[[Path], object]:
    return lambda path: altered(path, pretrained_cfg=entries)


def _truncated(path: Path) -> None:
    content = (path / "model.safetensors").read_bytes()
    (path / "model.safetensors").write_bytes(content[: len(content) // 2])


def _unsafe(path: Path) -> None:
    (path / "model.safetensors").unlink()
    (path / "pytorch_model.bin").write_bytes(pickle.dumps({"a": print}))


def _config(text: str) -> Callable[[Path], object]:
    return lambda path: (path / "config.json").write_text(text)


BAD: dict[str, tuple[Callable[[Path], Any], int, str]] = {
    "no config": (lambda path: (path / "config.json").unlink(), 2, "there is no config.json in this folder"),
    "broken": (_config('{"architecture": '), 3, "cannot be read as JSON"),
    "no text": (lambda path: (path / "config.json").write_bytes(b"\xff\xfe\x00"), 3, "cannot be read as JSON"),
    "nested": (_config("[" * 100000), 3, "cannot be read as JSON"),
    "a list": (_config("[]"), 3, "holds a list"),
    "another library": (_config('{"model_type": "resnet"}'), 2, "but resnet of another library"),
    "unknown": (lambda path: altered(path, architecture="resnet5O"), 2, "has no model 'resnet5O'; the nearest names"),
    "no name": (lambda path: altered(path, architecture=["a"]), 3, "architecture is ['a']"),
    "a path": (lambda path: altered(path, architecture="local-dir:."), 2, "has no model 'local-dir:"),
    "no classes": (lambda path: altered(path, num_classes="ten"), 3, "num_classes is 'ten'"),
    "other classes": (lambda path: altered(path, num_classes=6), 3, "num_classes is 6, but 7 in model_args"),
    "argument": (lambda path: altered(path, model_args={"depth": 3}), 2, "unexpected keyword argument 'depth'"),
    "size": (_metadata(input_size=[3, 0, 224]), 3, "input_size is [3, 0, 224]; it has to be [channels, height, width]"),
    "mean": (_metadata(mean=["a"]), 3, "mean is ['a']; it has to be a list of numbers"),
    "std": (_metadata(std=[0, 1, 1]), 3, "it divides"),
    "truncated": (_truncated, 3, "truncated, damaged"),
    "empty": (lambda path: (path / "model.safetensors").write_bytes(b""), 3, "the file is empty"),
    "unsafe": (_unsafe, 4, "refused: reading it would run code"),
    "no weights": (lambda path: (path / "model.safetensors").unlink(), 2, "the folder holds no model.safetensors"),
}


@pytest.mark.parametrize("harm", BAD)
def test_bad_folders(harm: str, damaged: Path, tmp_path: Path) -> None:
    spoil, status, message = BAD[harm]
    spoil(damaged)
    done = densify("convert", damaged, "--output-stride", 8, "-o", tmp_path / "dense.safetensors", columns=400)
    assert (done.status, done.stdout) == (status, "")
    errors = [line for line in done.stderr.splitlines() if line.startswith("error:")]
    assert len(errors) == 1
    assert message in errors[0]
    assert str(damaged) in errors[0]
    assert "Traceback" not in done.stderr
    assert list(tmp_path.iterdir()) == [damaged]


def test_weights_of_another_model(damaged: Path) -> None:
    save_file({"conv.weight": torch.ones(1)}, damaged / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"does not fit the model:\n  missing"):
        resolve(str(damaged)).build_stored()


@pytest.mark.parametrize("name", ["pretrained", "checkpoint_path", "pretrained_cfg"])
def test_a_folder_cannot_fetch_weights(name: str, damaged: Path) -> None:
    altered(damaged, model_args={name: "x"})
    with pytest.raises(UsageError, match=rf"not as a model argument \({name}\)"):
        resolve(str(damaged))


def test_a_folder_has_nothing_to_download(folder: Path) -> None:
    with pytest.raises(UsageError, match="the weights of a folder are its own"):
        resolve(str(folder)).build(pretrained=True)
