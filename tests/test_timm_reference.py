"""timm's models by name, through Python and the command line. Nothing here needs a network."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from cli import densify
from safetensors.torch import load_file, save_file
from timm_models import alive, forbid_downloads, same_state, timm

from densify.checkpoint import load, recipe_of, write_state
from densify.errors import ConversionError, DensifyError, UsageError
from densify.reference import resolve
from densify.weights import Weights, read_weights

IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


@pytest.fixture(autouse=True)
def _no_download(monkeypatch: pytest.MonkeyPatch) -> None:
    forbid_downloads(monkeypatch)


# ---- timm:NAME -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "arguments", "size"),
    [
        ("resnet50", {}, (3, 224, 224)),
        ("resnet10t", {}, (3, 176, 176)),
        ("convnext_base.clip_laion2b_augreg_ft_in12k_in1k_384", {}, (3, 384, 384)),
        ("test_vit", {"img_size": 96}, (3, 96, 96)),
        ("test_vit", {"img_size": [96, 64]}, (3, 96, 64)),
    ],
)
def test_metadata(name: str, arguments: dict[str, object], size: tuple[int, ...]) -> None:
    found = resolve(f"timm:{name}", arguments)
    assert (found.kind, found.input_size, found.sha256) == ("timm", size, None)
    assert found.portable == f"timm:{name}"
    assert found.mean is not None
    assert found.std is not None
    assert len(found.mean) == len(found.std) == 3
    assert ((found.mean, found.std) == IMAGENET) == name.startswith("resnet")


def test_other_channels_have_no_known_mean() -> None:
    found = resolve("timm:resnet50", {"in_chans": 4})
    assert (found.input_size, found.mean, found.std) == ((4, 224, 224), None, None)


@pytest.mark.parametrize("name", ["test_resnet", "test_byobnet", "test_convnext", "test_nfnet", "test_mambaout"])
def test_building_with_weights_gives_timms_own_model(name: str) -> None:
    """Built on the meta device where that is possible: nothing that is no weight may be lost on the way."""
    model = alive(name)
    found = resolve(f"timm:{name}")
    assert found.input_size is not None
    built = found.build_with(Weights("a.pth", dict(model.state_dict()))).eval()
    x = torch.randn(1, *found.input_size)
    assert same_state(built, model)
    assert torch.equal(built(x), model(x))
    assert not torch.equal(found.build(seed=1).eval()(x), model(x))


def test_arguments_reach_timm() -> None:
    model = resolve("timm:test_resnet", {"num_classes": 3, "global_pool": "max"}).build(meta=True)
    assert model.get_parameter("fc.weight").shape == (3, 96)
    with pytest.raises(UsageError, match=r"unexpected keyword argument 'classes'; check --model-arg"):
        resolve("timm:test_resnet", {"classes": 3}).build()
    with pytest.raises(ConversionError, match="building the model failed"):
        resolve("timm:test_resnet", {"act_layer": 3}).build()


@pytest.mark.parametrize(
    ("reference", "message"),
    [
        ("timm:resnet5O", r"timm [\d.]+ has no model 'resnet5O'; the nearest names are resnet50"),
        ("timm:resnet50.a1_in1x", r"no weights 'a1_in1x' of resnet50; the nearest names are resnet50\.a1_in1k"),
        ("timm:hf-hub:timm/resnet50", "has no model 'hf-hub:timm/resnet50'"),
        ("timm:local-dir:.", "has no model"),
        ("timm:", "not a model reference"),
    ],
)
def test_names_that_timm_does_not_know(reference: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        resolve(reference)


@pytest.mark.parametrize("name", ["pretrained", "checkpoint_path", "pretrained_cfg_overlay", "cache_dir", "model_name"])
def test_arguments_that_fetch_weights_are_refused(name: str) -> None:
    with pytest.raises(UsageError, match=rf"not as a model argument \({name}\)"):
        resolve("timm:test_resnet", {name: "x"})


# ---- timm's own weights --------------------------------------------------------------------------


def test_pretrained_takes_timms_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UsageError, match="a download nobody asked for"):  # the tests' guard works
        resolve("timm:test_resnet").build(pretrained=True)
    model = alive("test_resnet")
    monkeypatch.setattr("timm.models._builder.load_state_dict_from_hf", lambda *_, **__: dict(model.state_dict()))
    found = resolve("timm:test_resnet.r160_in1k").pretrained()
    assert same_state(found.build(pretrained=True), model)
    headless = resolve("timm:test_resnet", {"num_classes": 0}).build(pretrained=True)
    assert torch.equal(headless.get_parameter("conv1.0.weight"), model.get_parameter("conv1.0.weight"))
    with pytest.raises(UsageError, match=r"for 1000 classes, and for 5 the classifier would stay random.*--weights"):
        resolve("timm:test_resnet", {"num_classes": 5}).build(pretrained=True)


def test_no_connection_is_one_message(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """huggingface_hub's own offline mode: it fails as without a connection, at once."""
    from huggingface_hub import constants
    from timm.models._hub import load_state_dict_from_hf

    monkeypatch.setattr("timm.models._builder.load_state_dict_from_hf", load_state_dict_from_hf)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    out = tmp_path / "dense.safetensors"
    done = densify("convert", "timm:test_resnet", "--pretrained", "--output-stride", 8, "-o", out)
    assert done.status == 2
    assert "error: timm:test_resnet: timm's weights could not be downloaded" in done.stderr
    assert done.stderr.strip().endswith("try again with a connection, or give the checkpoint with --weights FILE")
    assert not out.exists()


def test_a_model_without_weights_of_its_own() -> None:
    assert not timm.get_pretrained_cfg("cs3darknet_s").has_weights
    with pytest.raises(UsageError, match="timm has no weights for it"):
        resolve("timm:cs3darknet_s").build(pretrained=True)


# ---- the commands --------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["test_resnet", "mobilenetv3_small_050"])
def test_there_and_back(name: str, tmp_path: Path) -> None:
    model = alive(name)
    source, dense, back = (tmp_path / f"{part}.safetensors" for part in ("source", "dense", "back"))
    save_file(dict(model.state_dict()), source)
    given = ("--weights", source)
    done = densify(
        "convert", f"timm:{name}", *given, "--output-stride", 8, "--input-size", "3,32,64", "-o", dense, "--json"
    )
    assert done.status == 0, done.stderr
    assert done.document["lattices"]["output"] == [{"stride": 4, "offset": 0}] * 2
    assert "--trust-code" not in done.stderr  # the library is the person's own
    assert recipe_of(read_weights(dense)).origin.model == f"timm:{name}"
    verified = densify("verify", dense, f"timm:{name}", *given)
    assert verified.status == 0, verified.stderr
    inverted = densify("inverse", dense, *given, "-o", back, "--json")
    assert inverted.status == 0, inverted.stderr
    assert inverted.document["changed"] == []
    plain = timm.create_model(name)
    plain.load_state_dict(load_file(back), strict=True)
    assert same_state(plain, model)


def test_verify_tells_other_weights(tmp_path: Path) -> None:
    dense = tmp_path / "dense.safetensors"
    made = densify(
        "convert", "timm:test_resnet", "--init", "random", "--seed", 1, "--output-stride", 8, "-o", dense, "-q"
    )
    assert made.status == 0
    for seed, status in ((1, 0), (2, 1)):
        done = densify("verify", dense, "timm:test_resnet", "--init", "random", "--seed", seed)
        assert done.status == status, done.stderr


@pytest.mark.parametrize("command", ["inspect", "plan"])
def test_a_survey_needs_no_weights(command: str) -> None:
    choice = ("--output-stride", 8) if command == "plan" else ()
    done = densify(command, "timm:test_resnet", *choice, "--json")
    assert done.status == 0, done.stderr
    assert done.document["input_size"] == [3, 160, 160]


def test_a_recipe_cannot_fetch_weights(tmp_path: Path) -> None:
    """A file from elsewhere is data: it may name a model of timm, not what timm reads or downloads."""
    dense = tmp_path / "dense.safetensors"
    assert (
        densify("convert", "timm:test_resnet", "--init", "random", "--output-stride", 8, "-o", dense, "-q").status == 0
    )
    weights = read_weights(dense)
    recipe = recipe_of(weights)
    for arguments in ({"pretrained": True}, {"checkpoint_path": "x.pth"}):
        origin = type(recipe.origin)(recipe.origin.model, arguments, tensors=recipe.origin.tensors)
        bad = tmp_path / "bad.safetensors"
        write_state(dict(weights.tensors), bad, type(recipe)(**{**vars(recipe), "origin": origin}))
        with pytest.raises(DensifyError, match="not as a model argument"):
            load(bad)
