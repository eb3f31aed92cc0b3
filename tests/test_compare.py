"""`densify compare`: two networks on one image, in Python and as a command."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from cli import DIGITS, SCENE, WEIGHTS, densify
from laws.onnx import Node, graph, integers
from PIL import Image
from small import Residual, fixed_window, images, seeded
from torch import nn

import densify as package
from densify.errors import UsageError
from densify.onnx.file import save_onnx
from densify.pictures.comparing import as_pixels, compare


@pytest.fixture(scope="module")
def dense(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("dense") / "dense.safetensors"
    made = densify("convert", DIGITS, "--weights", WEIGHTS, "--start", "pool2", "-o", path, "-q")
    assert made.status == 0, made.stderr
    return path


@pytest.fixture
def net(tmp_path: Path) -> Path:
    """An ONNX file that no torch code is known of."""
    nodes: list[Node] = [
        ("Conv", ["input", "stem"], ["a"], {"strides": [2, 2], "pads": [1, 1, 1, 1]}),
        ("MaxPool", ["a"], ["pool"], {"kernel_shape": [2, 2], "strides": [2, 2]}),
        ("Conv", ["pool", "last"], ["output"], {}),
    ]
    weights = {"stem": integers(4, 3, 3, 3), "last": integers(6, 4, 3, 3, seed=1)}
    path = tmp_path / "net.onnx"
    save_onnx(graph(nodes, weights, ("N", 3, "H", "W")).graph, path)
    return path


def strided() -> nn.Module:
    return seeded(
        nn.Sequential(nn.Conv2d(3, 6, 3, stride=2, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(6, 4, 3))
    )


# ---- in Python -----------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["linear", "nearest"])
@pytest.mark.parametrize("size", [(33, 47), (40, 31)])
def test_where_the_original_has_samples_the_difference_is_0(size: tuple[int, int], how: str) -> None:
    model, x = strided(), images(*size, batch=1)
    dense = package.convert(model, (1, 3, 32, 32), output_stride=1)
    made = compare(model, dense, x, show="channel:1", upsampling=how)
    first, second = made.to_dict()["first"], made.to_dict()["second"]
    assert second["size"] == [4 * n for n in first["size"]]
    assert first["step"] == [4, 4]
    assert second["step"] == [1, 1]
    assert np.array_equal(made.found.first.values, model(x)[0].detach().numpy())
    assert np.array_equal(made.found.second.values, dense(x)[0].detach().numpy())
    assert np.abs(made.difference[::4, ::4]).max() <= 1e-12 * np.abs(made.second.values).max()
    assert np.abs(made.difference).max() > 0.01  # what lies between is no interpolation
    shared = made.to_dict()["shared"]
    assert shared["samples"] == math.prod(first["size"])
    assert shared["largest"] == np.abs(made.difference[::4, ::4]).max()


def test_other_weights_are_seen_on_the_grid() -> None:
    model, x = strided(), images(33, 47, batch=1)
    dense = package.convert(model, (1, 3, 32, 32), output_stride=2)
    with torch.no_grad():
        model.get_parameter("3.bias").add_(1)
    assert compare(model, dense, x, show="channel:0").to_dict()["shared"]["largest"] == pytest.approx(1)
    assert compare(None, dense, x, show="channel:0").to_dict()["shared"]["largest"] < 1e-12


def test_samples_are_drawn_where_they_look() -> None:
    """A network that passes every fourth pixel on: its samples lie on those pixels."""
    model = nn.Sequential(nn.MaxPool2d(1, stride=4)).eval()
    dense = package.convert(model, (1, 1, 12, 16), output_stride=1)
    x = torch.linspace(0, 1, 12 * 20, dtype=torch.float64).reshape(1, 1, 12, 20)
    made = compare(model, dense, x)
    panels = {panel.key: panel.pixels for panel in made.panels}
    times = panels["input"].shape[0] // 12
    assert np.array_equal(
        panels["second"], np.repeat(np.repeat(panels["second"][::times, ::times], times, 0), times, 1)
    )
    shown = made.scales[0].table
    for y, x_ in ((0, 0), (4, 8), (8, 16)):
        here = panels["first"][y * times + times // 2, x_ * times + times // 2]
        assert np.array_equal(here, panels["second"][y * times + times // 2, x_ * times + times // 2])
        assert (here == shown).all(-1).any()
    assert made.panels[0].scale is None
    assert {panel.scale for panel in made.panels[1:4]} == {0}  # one scale for all that is compared
    assert made.panels[4].scale == 1


def test_one_scale_holds_both_maps_and_the_difference_has_its_own() -> None:
    model, x = strided(), images(33, 47, batch=1)
    made = compare(model, package.convert(model, (1, 3, 32, 32), output_stride=1), x, show="sum")
    both = np.concatenate([made.first.values.ravel(), made.second.values.ravel()])
    values, difference = made.scales
    most = float(np.abs(made.difference).max())
    assert (values.marks[0], values.marks[-1]) == (both.min(), both.max())
    assert list(difference.marks) == [-most, 0, most]
    share = compare(model, package.convert(model, (1, 3, 32, 32), output_stride=1), x, show="class:1")
    assert share.scales[0].marks == (0, 0.5, 1)


def test_labels_are_compared_as_labels() -> None:
    model, x = strided(), images(33, 47, batch=1)
    made = compare(model, package.convert(model, (1, 3, 32, 32), output_stride=1), x, show="argmax")
    assert set(np.unique(made.second.values)) <= {0, 1, 2, 3}
    assert made.to_dict()["shared"]["differing"] == 0
    assert 0 < made.to_dict()["difference"]["differing"] == int(made.difference.sum())
    unchanged = made.panels[-1].pixels[made.panels[-1].pixels.shape[0] // 2]
    assert (unchanged == 245).all(-1).any()


def test_heads_of_fixed_window_and_averages() -> None:
    model, x = seeded(fixed_window()), images(24, 29, batch=1)
    dense = package.convert(model, (1, 3, 16, 16), output_stride=1)
    made = compare(model, dense, x, show="sum").to_dict()
    assert made["shared"]["largest"] < 1e-12
    averaged = compare(None, package.convert(model, (1, 3, 16, 16), output_stride=1, head="average"), x, show="sum")
    assert averaged.to_dict()["second"] == made["second"]


def test_features_show_their_sum_and_the_main_object() -> None:
    x = torch.zeros(1, 3, 64, 80, dtype=torch.float64)
    x[:, :, 16:40, 24:56] = 1
    pool = nn.Sequential(nn.AvgPool2d(8), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 2)).double().eval()
    dense = package.convert(pool, (1, 3, 64, 80), output_stride=2, head="features")
    made = compare(None, dense, x, locate=True)
    assert made.shown.kind == "sum"
    facts = made.to_dict()["located"]
    assert facts["boxes"]["first"] == [15.5, 23.5, 39.5, 55.5]
    assert 0.5 < facts["overlap"] <= 1
    assert (made.panels[0].pixels == (255, 138, 0)).all(-1).any()
    assert "Intersection over union" in " ".join(made.words)


def test_networks_of_one_kind() -> None:
    model, x = strided(), images(33, 47, batch=1)
    dense = package.convert(model, (1, 3, 32, 32), output_stride=2)
    made = compare(dense, dense, x)
    assert made.names == ("first", "second")
    assert [panel.key for panel in made.panels] == ["input", "first", "second", "difference"]
    assert not made.difference.any()
    assert made.scales[1].marks == (0.0,)
    assert not compare(model, package.inverse(dense), x).difference.any()
    assert np.array_equal(compare(dense, model, x).difference, compare(model, dense, x).difference)


def test_upsamplings_that_average_are_said() -> None:
    model = seeded(nn.Sequential(nn.Conv2d(3, 4, 3, stride=2, padding=1), nn.ConvTranspose2d(4, 3, 2, stride=2)))
    dense = package.convert(model, (1, 3, 32, 32), output_stride=1, merge="average")
    made = compare(model, dense, images(32, 40, batch=1))
    assert made.shown.kind == "argmax"
    assert "average of the original over its shifts" in " ".join(made.notes)


def test_inputs_are_drawn_as_they_were() -> None:
    shot = np.random.default_rng(0).integers(0, 256, (5, 7, 3)).astype(np.uint8)
    x = (torch.from_numpy(shot).permute(2, 0, 1) / 255 - 0.5) / 0.25
    drawn, note = as_pixels(x, (0.5, 0.5, 0.5), (0.25,))
    assert np.array_equal(drawn, shot)
    assert note == ""
    drawn, note = as_pixels(torch.linspace(-2, 3, 48).reshape(2, 4, 6), None, None)
    assert drawn.shape == (4, 6, 3)
    assert "mean of its 2 channels" in note
    assert "stretched" in note


def test_what_cannot_be_drawn_is_refused() -> None:
    model, x = seeded(Residual()), images(32, 40, batch=1)
    dense = package.convert(model, (1, 3, 32, 32), output_stride=4)
    with pytest.raises(UsageError, match="each prediction sees the whole image.*--head features"):
        compare(model, dense, x)
    flat = package.convert(seeded(nn.Sequential(nn.Conv1d(3, 4, 3, stride=2))), (1, 3, 32), output_stride=1)
    with pytest.raises(UsageError, match=r"\[1, C, height, width\]"):
        compare(None, flat, x[0])
    plain = package.convert(strided(), (1, 3, 32, 32), output_stride=1)
    for wanted, words in (
        ({"output": "aux"}, "output aux"),
        ({"show": "channel:4"}, "from 0 to 3"),
        ({"upsampling": "cubic"}, "linear, nearest"),
        ({"show": "argmax", "locate": True}, "labels"),
    ):
        with pytest.raises(UsageError, match=words):
            compare(None, plain, x, **wanted)
    with pytest.raises(UsageError, match="original"):
        compare(None, model, x)


# ---- as a command --------------------------------------------------------------------------------


def test_a_picture_of_a_file_and_its_own_original(dense: Path, tmp_path: Path) -> None:
    out = tmp_path / "picture.png"
    made = densify("compare", dense, SCENE, "--trust-code", "--channel", 7, "-o", out, "--json")
    assert made.status == 0, made.stderr
    document = made.document
    assert document["shown"] == "channel 7 of 11"
    assert document["first"]["step"] == [8, 8]
    assert document["second"]["step"] == [2, 2]
    assert document["shared"]["largest"] < 1e-4
    assert document["written"] == str(out)
    with Image.open(out) as picture:
        picture.load()
        assert picture.format == "PNG"
        assert picture.width > 1200
    assert [path.name for path in tmp_path.iterdir()] == ["picture.png"]


def test_a_picture_says_in_words_what_it_shows(dense: Path, tmp_path: Path) -> None:
    made = densify("compare", dense, SCENE, "--trust-code", "--sum", "--locate", "-o", tmp_path / "p.png")
    assert made.status == 0, made.stderr
    assert "sum over 11 channels" in made.stdout
    assert "11x17" in made.stdout
    assert "Intersection over union" in made.stdout
    assert "wrote" in made.stderr


def test_a_file_and_a_model(dense: Path, tmp_path: Path) -> None:
    given = ("compare", DIGITS, dense, SCENE, "--weights", WEIGHTS, "--json", "-q")
    one = densify(*given, "-o", tmp_path / "a.png")
    two = densify("compare", dense, SCENE, "--trust-code", "--json", "-q", "-o", tmp_path / "b.png")
    assert (one.status, one.stderr, two.status) == (0, "", 0)
    assert {**one.document, "compared": 0, "written": 0} == {**two.document, "compared": 0, "written": 0}


def test_onnx_files_are_compared_as_graphs(net: Path, tmp_path: Path) -> None:
    out, photo = tmp_path / "dense.onnx", tmp_path / "photo.npy"
    made = densify("convert", net, "--input-size", "3,33,40", "--output-stride", 1, "-o", out)
    assert made.status == 0, made.stderr
    np.save(photo, np.random.default_rng(0).normal(size=(3, 35, 41)).astype(np.float32))
    pictures = [tmp_path / f"{name}.png" for name in "abc"]
    own = densify("compare", out, photo, "-o", pictures[0], "--channel", 2, "--json")
    assert own.status == 0, own.stderr
    assert own.document["shared"]["largest"] == 0  # small integers times the same numbers
    assert own.document["second"]["size"] == [4 * n for n in own.document["first"]["size"]]
    given = densify("compare", net, out, photo, "-o", pictures[1], "--channel", 2, "--json")
    assert given.document["difference"] == own.document["difference"]
    equal = densify("compare", net, net, photo, "-o", pictures[2], "--json", "--input-size", "3,35,41")
    assert equal.status == 0, equal.stderr
    assert equal.document["difference"]["largest"] == 0


REFUSED: dict[str, tuple[list[str], int, str]] = {
    "two things": (["DENSE", SCENE, "--sum", "--channel", "1", "-o", "p.png"], 2, "--channel and --sum do not go"),
    "no such channel": (["DENSE", SCENE, "--class", "11", "-o", "p.png", "--model", DIGITS], 2, "from 0 to 10"),
    "negative": (["DENSE", SCENE, "--class", "-1", "-o", "p.png"], 2, "counted from 0"),
    "no such output": (["DENSE", SCENE, "--map", "aux", "-o", "p.png", "--model", DIGITS], 2, "there are output"),
    "format": (["DENSE", SCENE, "-o", "p.jpg"], 2, "name a .png file"),
    "folder": (["DENSE", SCENE, "-o", "nowhere/p.png"], 2, "there is no folder"),
    "the image itself": (["DENSE", "own.png", "-o", "own.png", "--overwrite"], 2, "what the command reads"),
    "existing": (["DENSE", SCENE, "-o", "own.png"], 2, "--overwrite"),
    "no image": (["DENSE", "none.png", "-o", "p.png", "--model", DIGITS], 2, "there is no such file"),
    "several": (["DENSE", "two.npy", "-o", "p.png", "--model", DIGITS], 2, "holds 2 images"),
    "code": (["DENSE", SCENE, "-o", "p.png"], 4, "--trust-code"),
    "an original alone": ([DIGITS, SCENE, "--weights", WEIGHTS, "-o", "p.png"], 2, "name the dense file"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_bad_input_is_refused_and_leaves_nothing(
    case: str, dense: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Image.new("RGB", (40, 40)).save("own.png")
    np.save("two.npy", np.zeros((2, 3, 40, 40)))
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    given, status, words = REFUSED[case]
    made = densify("compare", *(str(dense) if part == "DENSE" else part for part in given))
    assert made.status == status, made.stderr
    assert words in made.stderr
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
