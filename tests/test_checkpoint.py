"""Dense and dpoa files: what is kept, what comes back, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from small import Residual, images, seeded
from torch import nn

import densify
from densify.checkpoint import changes, recipe_of
from densify.errors import CheckpointError, UnsafeError, UsageError
from densify.recipe import Origin, Recipe
from densify.weights import read_weights

X = images(33, 47)
SUFFIXES = (".safetensors", ".pth")
FACTORY = """
import torch
from torch import nn
INPUT_SIZE = (3, 33, 47)
def net(width=4):
    return nn.Sequential(nn.Conv2d(3, width, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(width, 2, 3))
"""


@pytest.fixture
def dense() -> densify.Dense:
    return densify.convert(seeded(Residual()), X, start="pool", padding="same", head="features")


@pytest.fixture
def from_file(tmp_path: Path) -> densify.Dense:
    """A dense network that knows the factory that it was built by."""
    from densify.choose import Choice
    from densify.conversion import build
    from densify.recipe import Options, digests
    from densify.reference import resolve

    path = tmp_path / "factory.py"
    path.write_text(FACTORY)
    found = resolve(f"{path}:net", {"width": 5})
    model = found.build(seed=0).eval()
    origin = Origin(found.text, found.arguments, found.sha256, None, None, digests(model.state_dict()))
    return build(model, Options((1, 3, 33, 47), Choice(start="2")), origin)


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_dense_network_comes_back(dense: densify.Dense, tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"dense{suffix}"
    densify.save(dense, path)
    original = Residual()
    before = original.stem.weight.clone()
    back = densify.load(path, model=original)
    assert isinstance(back, densify.Dense)
    assert torch.equal(back(X), dense(X))
    assert (back.lattices, back.positions, back.options) == (dense.lattices, dense.positions, dense.options)
    assert torch.equal(original.stem.weight, before)


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_the_file_is_a_plain_checkpoint_of_the_original(dense: densify.Dense, tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"dense{suffix}"
    densify.save(dense, path)
    if suffix == ".pth":
        state = torch.load(path, weights_only=True)["state_dict"]
    else:
        with safe_open(path, "pt") as file:
            state = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
            assert file.metadata()["format"] == "pt"
    Residual().double().load_state_dict(state, strict=True)


def test_the_recipe_survives_json(dense: densify.Dense) -> None:
    assert Recipe.from_json(dense.recipe.to_json(), "here") == dense.recipe
    other = json.loads(dense.recipe.to_json()) | {"format": 99}
    with pytest.raises(CheckpointError, match="format 99"):
        Recipe.from_json(json.dumps(other), "here")
    for broken in ("", "[]", '{"format": 1}', '{"format": 1, "origin": 3}'):
        with pytest.raises(CheckpointError, match=r"^here: its densify recipe"):
            Recipe.from_json(broken, "here")


def test_an_object_has_no_reference(dense: densify.Dense, tmp_path: Path) -> None:
    densify.save(dense, tmp_path / "dense.pth")
    with pytest.raises(UsageError, match="--model REFERENCE"):
        densify.load(tmp_path / "dense.pth")


def test_code_runs_only_with_leave(from_file: densify.Dense, tmp_path: Path) -> None:
    path = tmp_path / "dense.safetensors"
    densify.save(from_file, path)
    with pytest.raises(UnsafeError, match=r"runs the code of .*factory.py:net.*--trust-code"):
        densify.load(path)
    x = torch.randn(1, 3, 30, 41)
    trusted = densify.load(path, trust_code=True)
    named = densify.load(path, model=f"{tmp_path / 'factory.py'}:net")
    assert torch.equal(trusted(x), from_file(x))
    assert torch.equal(named(x), from_file(x))


def test_changed_code_is_refused(from_file: densify.Dense, tmp_path: Path) -> None:
    path = tmp_path / "dense.safetensors"
    densify.save(from_file, path)
    (tmp_path / "factory.py").write_text(FACTORY + "\n# another file\n")
    with pytest.raises(CheckpointError, match="SHA-256 differs"):
        densify.load(path, trust_code=True)


def test_weights_of_another_model_are_refused(dense: densify.Dense, tmp_path: Path) -> None:
    densify.save(dense, tmp_path / "dense.pth")
    with pytest.raises(CheckpointError, match="fc.weight"):
        densify.load(tmp_path / "dense.pth", model=Residual(classes=7))


def test_a_file_that_densify_did_not_write_is_refused(tmp_path: Path) -> None:
    torch.save(Residual().state_dict(), tmp_path / "plain.pth")
    with pytest.raises(CheckpointError, match="no densify recipe"):
        densify.load(tmp_path / "plain.pth", model=Residual())


def test_nothing_is_overwritten_unasked(dense: densify.Dense, tmp_path: Path) -> None:
    path = tmp_path / "dense.pth"
    path.write_text("mine")
    with pytest.raises(UsageError, match="exists already"):
        densify.save(dense, path)
    assert path.read_text() == "mine"
    densify.save(dense, path, overwrite=True)
    assert recipe_of(read_weights(path)) == dense.recipe


def test_dpoa_keeps_the_recipe_and_loads_as_the_original(from_file: densify.Dense, tmp_path: Path) -> None:
    path = tmp_path / "dpoa.safetensors"
    densify.save(densify.inverse(from_file), path, recipe=from_file.recipe.of_kind("dpoa"))
    back = densify.load(path, trust_code=True)
    assert type(back) is nn.Sequential
    assert densify.verify(back, from_file, torch.randn(1, 3, 33, 47))


def test_changes_name_the_trained_parameters_and_by_how_much(dense: densify.Dense) -> None:
    source = {key: value.clone() for key, value in dense.state_dict().items()}
    assert changes(dense.recipe, dense.state_dict()) == []
    with torch.no_grad():
        dense.get_parameter("last.bias")[2] += 0.5
    (named,) = changes(dense.recipe, dense.state_dict())
    assert (named.name, named.largest) == ("last.bias", None)
    (measured,) = changes(dense.recipe, dense.state_dict(), source)
    assert measured.largest == 0.5
    assert measured.relative == 0.5 / source["last.bias"].abs().max().item()
    with pytest.raises(CheckpointError, match="not what the network was converted from"):
        changes(dense.recipe, dense.state_dict(), dense.state_dict())


def test_tied_weights_are_written_under_both_names(tmp_path: Path) -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first = nn.Conv2d(3, 3, 3, padding=1)
            self.second = nn.Conv2d(3, 3, 3, padding=1)
            self.second.weight = self.first.weight
            self.pool = nn.MaxPool2d(2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            made: torch.Tensor = self.second(self.pool(self.first(x)))
            return made

    dense = densify.convert(Tied().double().eval(), X, start="pool")
    densify.save(dense, tmp_path / "tied.safetensors")
    back = densify.load(tmp_path / "tied.safetensors", model=Tied())
    assert torch.equal(back(X), dense(X))
    assert back.first.weight is back.second.weight  # type: ignore[union-attr]
