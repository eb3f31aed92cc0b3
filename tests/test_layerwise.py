"""A verification that fails names the first layer that diverges, whatever is at fault; a healthy network none."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
import torch
from cli import DIGITS, WEIGHTS
from cli import densify as command
from laws.onnx import Node, graph, integers
from small import Residual, fixed_window, images, seeded
from test_merges import Scores
from test_onnx_merges import FRONT, TAILS
from test_onnx_merges import WEIGHTS as MERGED
from torch import Tensor, nn

import densify
from densify import lattice, layerwise
from densify.comparison import Check, Report, Tolerance, evaluating
from densify.conversion import Dense
from densify.merge_laws import Merges, has_merges
from densify.originals import REFERENCE, Reference
from densify.parts import DenseLayers, DenseParts
from densify.rules import windows

X = images(33, 47)
FORMS = ("dilated", "fragments")


def conversion(form: str = "dilated", **how: Any) -> tuple[nn.Module, Dense]:
    model = seeded(Residual())
    return model, densify.convert(model, X, start="main", form=form, **how)


# ---- what is at fault ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("layer", "form", "padding"),
    [(layer, form, "full") for layer in ("stem", "norm", "main", "shortcut", "last", "fc") for form in FORMS]
    + [(layer, "dilated", padding) for layer in ("main", "last") for padding in ("valid", "same")],
)
def test_a_weight_names_its_layer(layer: str, form: str, padding: str) -> None:
    model, dense = conversion(form, padding=padding)
    with torch.no_grad():
        dense.get_parameter(f"{layer}.bias").add_(1e-3)
    report = densify.verify(model, dense, [images(40, 61), X])
    found = report.divergence
    assert not report
    assert found is not None
    assert (found.layer, found.law, found.input, found.tolerance) == (layer, "grid", "input 1", 1e-12)
    assert found.where.startswith("small.py:")
    assert found.relative > found.tolerance
    if layer not in ("norm", "fc"):
        assert found.absolute == pytest.approx(1e-3)


@pytest.mark.parametrize("layer", ["stem", "main", "last", "fc"])
def test_rounding_is_no_fault(layer: str) -> None:
    """In float32 a fault of 1e-3 is found where it is, though every layer in front of it rounds otherwise."""
    model = seeded(Residual()).float()
    dense = densify.convert(model, X.float(), output_stride=1)
    with torch.no_grad():
        dense.get_parameter(f"{layer}.bias").add_(1e-3)
    found = densify.verify(model, dense, X.float()).divergence
    assert found is not None
    assert found.layer == layer
    assert found.tolerance >= 1e-5


@pytest.mark.parametrize("form", FORMS)
def test_a_module_that_stays_in_train_mode(form: str) -> None:
    model, dense = conversion(form)
    norm = dense.get_submodule("norm")
    norm.__dict__["train"] = lambda mode=True: norm
    norm.training = True
    found = densify.verify(model, dense, X).divergence
    assert found is not None
    assert (found.layer, found.op, found.law) == ("norm", "BatchNorm2d", "grid")


def test_a_weight_that_changes_no_output() -> None:
    """A layer that a dead one hides: the outputs agree, the weights do not, and the layer is named."""
    model = nn.Sequential(nn.Conv2d(3, 4, 3, 2), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.ReLU(), nn.Conv2d(4, 2, 1)).double()
    with torch.no_grad():
        model.get_parameter("2.bias").fill_(-1e6)
    dense = densify.convert(model.eval(), X, output_stride=1)
    with torch.no_grad():
        dense.get_parameter("0.bias").add_(1e-3)
    report = densify.verify(model, dense, X)
    assert [check.law for check in report.failed] == ["weights"]
    assert report.divergence is not None
    assert (report.divergence.layer, report.divergence.law) == ("0", "grid")


class Switched(Residual):
    """One more factor, where a flag says so."""

    scaled = False

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.norm(self.stem(x)))
        x = x * 1.5 if self.scaled else x
        x = torch.relu(self.main(x) + self.shortcut(x))
        made: Tensor = self.fc(torch.relu(self.last(self.pool(x))).mean(dim=(2, 3)))
        return made


def test_an_original_that_decides_otherwise_by_now() -> None:
    """The first module behind the place where the original runs other code than was recorded."""
    model = seeded(Switched())
    dense = densify.convert(model, X, start="main")
    model.__dict__["scaled"] = True
    found = densify.verify(model, dense, X).divergence
    assert found is not None
    assert (found.layer, found.law) == ("main", "grid")


@pytest.mark.parametrize("spoil", ["dilation", "padding"])
def test_a_wrong_rule(monkeypatch: pytest.MonkeyPatch, spoil: str) -> None:
    """A rule that reads at the wrong step, or from the wrong sample on."""
    right = lattice.densify_window

    def wrong(one: Any, source: Any, *, chosen: bool, padding: str) -> Any:
        made, after = right(one, source, chosen=chosen, padding=padding)
        if one.kernel == 3 and source.stride == 4:
            made = made._replace(est=2) if spoil == "dilation" else made._replace(pad_low=0)
        return made, after

    with monkeypatch.context() as patch:
        patch.setattr(windows, "densify_window", wrong)
        model, dense = conversion()
    found = densify.verify(model, dense, X).divergence
    assert found is not None
    assert (found.layer, found.law) == ("last", "grid")


def test_a_fault_in_other_phases_than_the_originals() -> None:
    model, dense = conversion()
    key = next(key for key, step in dense.plan.steps.items() if step.site.layer == "pool")
    layers = _layers(model, dense)
    right = layers.dense

    def wrong(x: Tensor, runtime: str = "") -> dict[str, Tensor]:
        made = right(x)
        return made | {key: torch.where(_phase(made[key], (1, 2), 4), made[key] + 0.5, made[key])}

    layers.dense = wrong  # type: ignore[method-assign]
    with evaluating(model, dense):
        report = layerwise.located(_failed("grid"), layers, {"x": X}, Tolerance())
        assert report.divergence is None
        found = layerwise.located(_failed("phases"), layers, {"x": X}, Tolerance()).divergence
    assert found is not None
    assert (found.layer, found.phase) == ("pool", (1, 2))
    assert found.absolute == pytest.approx(0.5)


def _phase(x: Tensor, phase: tuple[int, int], est: int) -> Tensor:
    rows, columns = (torch.arange(size) % est == r for size, r in zip(x.shape[2:], phase, strict=True))
    return rows[:, None] & columns


def test_a_head_that_is_not_its_convolutional_form() -> None:
    """Off the reference size the fully convolutional form stands for the class: its own faults are found at it."""
    model = seeded(fixed_window())
    dense = densify.convert(model, (1, 3, 16, 16), output_stride=2)
    assert densify.verify(model, dense, images(23, 18))
    linear = model.get_submodule("9")
    linear.__dict__["forward"] = lambda x: type(linear).forward(linear, x) + 1
    found = densify.verify(model, dense, images(23, 18)).divergence
    assert found is not None
    assert (found.layer, found.input, found.law) == ("9", REFERENCE, "head")


@pytest.mark.parametrize("merge", ["average", "resample"])
def test_behind_merges(merge: str) -> None:
    """What brute force makes of every shift says which upsampling is wrong; in front of it every layer agrees."""
    model = Scores().double().eval()
    dense = densify.convert(model, (1, 3, 32, 32), start="pool3", merge=merge)
    layers = _layers(model, dense)
    key = next(key for key, step in dense.plan.steps.items() if step.site.layer == "up2")
    right = layers.dense
    layers.dense = lambda x, runtime="": {  # type: ignore[method-assign]
        name: value + 1 if name == key else value for name, value in right(x).items()
    }
    x = images(35, 33)
    with evaluating(model, dense):
        found = layerwise.located(_failed("merges"), layers, {"x": x}, Tolerance()).divergence
    assert found is not None
    assert (found.layer, found.law) == ("up2", "merges")
    with torch.no_grad():
        dense.get_parameter("conv3.bias").add_(1e-3)
    found = densify.verify(model, dense, x).divergence
    assert found is not None
    assert (found.layer, found.law) == ("conv3", "grid")


# ---- healthy networks ----------------------------------------------------------------------------


class InPlace(nn.Module):
    """Ops in place behind every layer, a branch for each layout."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(3, 6, 3, 2, 1), nn.Conv2d(6, 6, 3, 2, 1)
        self.norm, self.relu, self.fc = nn.GroupNorm(2, 6), nn.ReLU(inplace=True), nn.Linear(6, 6)

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(self.norm(self.conv1(x)))
        gate = torch.sigmoid_(self.fc(x.mean((2, 3))))
        x = self.conv2(x * gate[:, :, None, None]).relu_()
        x += 1
        tokens = x.flatten(2).transpose(1, 2)
        x = (tokens @ tokens.transpose(1, 2)).softmax(-1).matmul(tokens).transpose(1, 2).reshape(x.shape) + x
        made: Tensor = self.relu(x)
        return made


def _layers(model: nn.Module, dense: Dense) -> DenseLayers:
    merges = Merges(DenseParts(model, dense)) if has_merges(dense.plan) else None
    return DenseLayers(Reference(model, dense), dense, merges)


def _failed(law: str, name: str = "x") -> Report:
    return Report((Check(law, "output", name, "torch", (), (), (), 1.0, 1.0, (), 0.0, False),))


NETWORKS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...], dict[str, Any]]] = {
    "branches": (Residual, (33, 47), {"output_stride": 1}),
    "in place": (InPlace, (21, 34), {"output_stride": 1}),
    "a window": (fixed_window, (16, 16), {"output_stride": 1}),
    "merges": (Scores, (33, 35), {"start": "pool2", "merge": "average"}),
    "features": (Residual, (33, 47), {"start": "main", "head": "features"}),
    "cam": (Residual, (33, 47), {"start": "main", "head": "cam"}),
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", NETWORKS)
def test_every_layer_of_a_healthy_network_agrees(name: str, form: str) -> None:
    make, size, how = NETWORKS[name]
    model = seeded(make())
    dense = densify.convert(model, (1, 3, *size), form=form, **how)
    layers, x = _layers(model, dense), images(*size)
    with evaluating(model, dense):
        assert densify.verify(model, dense, x)
        for law in ("grid", "size", "phases", "forms", "merges"):
            assert layerwise.located(_failed(law), layers, {"x": x}, Tolerance(1e-11)).divergence is None, law
        compared = layers.original(x).keys() & layers.dense(x).keys()
    ops = [s for s in dense.plan.steps.values() if s.site.op is not None and s.map.axes]
    assert len(compared) >= len(ops) / 2  # of tokens and sizes there is nothing to say


# ---- ONNX graphs ---------------------------------------------------------------------------------

NODES: list[Node] = [
    ("Conv", ["input", "first"], ["a"], {"pads": [1, 1, 1, 1]}),
    ("MaxPool", ["a"], ["b"], {"kernel_shape": [3, 3], "strides": [2, 2], "pads": [1, 1, 1, 1]}),
    ("Conv", ["b", "second"], ["c"], {"strides": [2, 2]}),
    ("Relu", ["c"], ["d"], {}),
    ("Conv", ["d", "third"], ["output"], {"pads": [2, 2, 2, 2], "dilations": [2, 2]}),
]
KERNELS = {name: integers(4, 3 if not i else 4, 3, 3, seed=i) for i, name in enumerate(("first", "second", "third"))}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(("weight", "node"), [("first", "a"), ("second", "c"), ("third", "output")])
def test_an_initializer_names_its_node(weight: str, node: str, form: str) -> None:
    source = graph(NODES, KERNELS, ("N", 3, "H", "W"))
    dense = densify.convert(source, (1, 3, 33, 40), output_stride=1, form=form)
    assert densify.verify(None, dense, images(33, 40).float())
    value = dense.graph.graph.initializers[weight]
    assert value.const_value is not None
    changed = np.array(value.const_value.numpy())
    changed[1, 2, 0, 1] += 0.25
    value.const_value = ir.tensor(changed, name=weight)
    report = densify.verify(None, dense, images(33, 40).float())
    found = report.divergence
    assert {"weights", "grid", "phases"} <= {check.law for check in report.failed}
    assert found is not None
    assert (found.layer, found.law) == (_layer(dense, node), "grid")
    assert found.relative > found.tolerance >= 1e-5


def _layer(dense: Any, key: str) -> str:
    layer: str = dense.plan.steps[key].site.layer
    return layer


def test_a_graph_with_a_head_of_fixed_window() -> None:
    """The original that is given is not what the dense graph was made of: the head's own check says so first."""
    nodes: list[Node] = [*NODES[:2], ("Flatten", ["b"], ["f"], {}), ("Gemm", ["f", "matrix"], ["output"], {})]
    weights = {"first": KERNELS["first"], "matrix": integers(4 * 3 * 5, 2)}
    source, other = (graph(nodes, weights, ("N", 3, 6, 10)) for _ in range(2))
    dense = densify.convert(source, output_stride=1)
    value = other.graph.graph.initializers["first"]
    assert value.const_value is not None
    value.const_value = ir.tensor(value.const_value.numpy() * np.float32(2), name="first")
    found = densify.verify(other, dense, images(6, 10).float()).divergence
    assert found is not None
    assert (found.layer, found.law) == (_layer(dense, "a"), "head")


def test_a_graph_with_merges() -> None:
    source = graph([*FRONT, *TAILS["a skip and a convolution"]], MERGED, ("N", 2, "H", "W"))
    dense = densify.convert(source, (1, 2, 16, 20), output_stride=1, merge="average")
    assert densify.verify(None, dense, images(16, 20, channels=2).float())
    value = dense.graph.graph.initializers["kernel"]
    assert value.const_value is not None
    value.const_value = ir.tensor(np.asarray(value.const_value.numpy()) + np.float32(1), name="kernel")
    report = densify.verify(None, dense, images(16, 20, channels=2).float())
    found = report.divergence
    assert found is not None
    assert found.layer == _layer(dense, "u")


# ---- what is shown -------------------------------------------------------------------------------


def test_the_command_names_the_layer(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    state = load_file(WEIGHTS)
    state["conv2.weight"] = state["conv2.weight"] * 1.01
    save_file(state, tmp_path / "other.safetensors")
    dense = tmp_path / "dense.safetensors"
    assert command("convert", DIGITS, "--weights", WEIGHTS, "--start", "pool2", "-o", dense, "-q").status == 0
    other = ("verify", dense, DIGITS, "--weights", tmp_path / "other.safetensors")
    made = command(*other)
    assert made.status == 1
    assert "first layer that diverges: conv2 (Conv2d, digits.py:" in made.stdout
    assert "precision allows 1.0e-05" in made.stdout
    found = command(*other, "--json").document["divergence"]
    assert (found["layer"], found["law"]) == ("conv2", "grid")
    assert json.loads(json.dumps(found)) == found
    assert command("verify", dense, DIGITS, "--weights", WEIGHTS, "--json").document["divergence"] is None


def test_reports_join() -> None:
    model, dense = conversion()
    with torch.no_grad():
        dense.get_parameter("last.bias").add_(1)
    bad, good = densify.verify(model, dense, X), densify.verify(None, dense, X)
    assert bad.divergence is not None
    assert (good + bad).divergence == (bad + good).divergence == bad.divergence
    assert replace(bad, divergence=None).to_dict()["divergence"] is None
