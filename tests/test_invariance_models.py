"""The papers' networks in models/: parameters, sizes, initialisation, what the invariant stem keeps; and what they are
measured with, the invariance score and test-time augmentation. Whole networks run on the meta device."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import densify
from densify import DihedralTTA, InvariantConv2d, ScaleInvariantConv2d, invariance_scores
from densify.equivariance import TRANSFORMATIONS, equivariance
from densify.errors import ConversionError, UsageError
from densify.metrics import layer_invariance, rescaled
from densify.reference import resolve

MODELS = Path(__file__).resolve().parent.parent / "models"
FILES = {
    "alexnet": ("alexnet", "scale_invariant_alexnet", "mnist_scale_net", "mnist_scale_cnn"),
    "boundary_net": ("boundary_net", "invariant_boundary_net"),
}


def factory(name: str) -> Any:
    """A factory in models/, imported from its path as a user's file is."""
    file = next(file for file, names in FILES.items() if name in names)
    return resolve(f"{MODELS / file}.py:{name}").factory


def on_meta(name: str, **arguments: object) -> nn.Module:
    with torch.device("meta"):
        model: nn.Module = factory(name)(**arguments)
    return model.eval()


# ---- networks --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "parameters", "size", "output"),
    [
        ("alexnet", 60_965_224, (2, 3, 224, 224), (2, 1000)),
        ("scale_invariant_alexnet", 60_965_224, (1, 3, 224, 224), (1, 1000)),
        ("mnist_scale_net", 147_524, (3, 1, 28, 28), (3, 10)),
        ("mnist_scale_cnn", 147_524, (3, 1, 28, 28), (3, 10)),
        ("boundary_net", 1_260_658, (2, 1, 101, 90), (2, 2, 101, 90)),
        ("invariant_boundary_net", 1_260_658, (2, 1, 97, 64), (2, 2, 97, 64)),
    ],
)
def test_parameters_and_sizes(name: str, parameters: int, size: tuple[int, ...], output: tuple[int, ...]) -> None:
    model = on_meta(name)
    assert sum(one.numel() for one in model.parameters()) == parameters
    assert model(torch.empty(size, device="meta")).shape == output


@pytest.mark.parametrize(
    ("plain", "invariant", "kind", "count"),
    [
        ("alexnet", "scale_invariant_alexnet", ScaleInvariantConv2d, 5),
        ("mnist_scale_cnn", "mnist_scale_net", ScaleInvariantConv2d, 2),
        ("boundary_net", "invariant_boundary_net", InvariantConv2d, 2),
    ],
)
def test_invariant_networks_have_the_plain_ones_keys(plain: str, invariant: str, kind: type, count: int) -> None:
    one, other = on_meta(plain), on_meta(invariant)
    assert {k: v.shape for k, v in one.state_dict().items()} == {k: v.shape for k, v in other.state_dict().items()}
    assert sum(isinstance(module, kind) for module in other.modules()) == count


def test_layers_of_alexnet() -> None:
    model: Any = on_meta("alexnet")
    sizes = {}
    for name, module in model.named_children():
        module.register_forward_hook(lambda _, __, y, name=name: sizes.update({name: tuple(y.shape[1:])}))
    model(torch.empty(1, 3, 224, 224, device="meta"))
    assert (sizes["conv1"], sizes["pool1"], sizes["pool2"]) == ((96, 55, 55), (96, 27, 27), (256, 13, 13))
    assert (sizes["pool5"], sizes["fc6"]) == ((256, 6, 6), (4096,))
    assert [getattr(model, f"conv{i}").groups for i in range(1, 6)] == [1, 2, 1, 2, 2]
    a = torch.rand(1, 96, 2, 2, dtype=torch.float64)
    squares = nn.functional.pad(a**2, (0, 0, 0, 0, 2, 2))
    window = torch.stack([squares[:, i : i + 96] for i in range(5)]).sum(0)
    assert torch.allclose(model.norm1(a), a / (2 + 1e-4 * window) ** 0.75, rtol=1e-12)  # the paper's equation 1


def test_initialisation() -> None:
    model = factory("mnist_scale_net")()
    layers = (model.conv1, model.conv2, model.fc3, model.fc4)
    assert all(0.009 < float(layer.weight.detach().std()) < 0.011 for layer in layers)
    assert [set(layer.bias.tolist()) for layer in layers] == [{0}, {1}, {0}, {0}]
    whole = factory("alexnet")()
    assert [float(whole.get_parameter(f"conv{i}.bias").detach().mean()) for i in range(1, 6)] == [0, 1, 0, 1, 1]
    assert 0.0099 < float(whole.fc8.weight.detach().std()) < 0.0101


def integer_stem(**arguments: object) -> Any:
    """The stem's two convolutions of the boundary network, on small integers, without normalisation."""
    model: Any = factory("invariant_boundary_net")(**arguments)
    convs = nn.Sequential(model.stem[0].conv, nn.ReLU(), model.stem[1].conv).double().eval().requires_grad_(False)
    for parameter in convs.parameters():
        parameter.copy_(torch.randint(-2, 3, parameter.shape).double())
    return convs


@pytest.mark.parametrize(
    ("arguments", "exact"),
    [
        ({}, ("identity", "rot180")),
        ({"flips": "paper"}, ("identity",)),
        ({"angles": 1}, ("identity",)),
    ],
)
def test_what_the_stem_keeps(arguments: dict[str, object], exact: tuple[str, ...]) -> None:
    errors = equivariance(integer_stem(**arguments), torch.randint(-3, 4, (1, 1, 11, 14)).double())
    assert tuple(name for name in TRANSFORMATIONS if errors[name] == 0) == exact


def test_the_boundary_network_trains_and_keeps_odd_sizes() -> None:
    model = factory("invariant_boundary_net")()
    y = model(torch.randn(2, 1, 33, 38))
    assert y.shape == (2, 2, 33, 38)
    y.square().mean().backward()
    assert all(parameter.grad is not None and parameter.grad.isfinite().all() for parameter in model.parameters())


def test_the_small_network_has_a_dense_form() -> None:
    model = factory("mnist_scale_cnn")().eval()
    dense = densify.convert(model, (1, 1, 28, 28), start="pool1")
    assert densify.verify(model, dense, [torch.rand(1, 1, 28, 28)])


# ---- test-time augmentation ------------------------------------------------------------------------


@pytest.mark.parametrize("reduction", ["mean", "vote"])
def test_augmented_predictions_turn_with_the_image(reduction: str) -> None:
    net = nn.Sequential(nn.Conv2d(2, 5, 3, padding=1), nn.ReLU(), nn.Conv2d(5, 3, 4)).double().eval()
    x = torch.randn(2, 2, 9, 12, dtype=torch.float64)
    assert max(equivariance(DihedralTTA(net, reduction), x).values()) <= 1e-12
    assert max(equivariance(net, x).values()) > 0.1


def test_augmentation_by_hand() -> None:
    net = nn.Conv2d(1, 3, 3, padding=1).eval()
    x = torch.randn(1, 1, 5, 7)
    maps = []
    for turns in range(4):
        for flipped in (False, True):
            image = x.flip(-1) if flipped else x
            y = torch.rot90(net(torch.rot90(image, turns, (2, 3))), -turns, (2, 3))
            maps.append(y.flip(-1) if flipped else y)
    stacked = torch.stack(maps)
    assert torch.allclose(DihedralTTA(net)(x), stacked.mean(0), atol=1e-6)
    votes = DihedralTTA(net, "vote")(x)
    assert votes.sum(1).allclose(torch.ones(()))
    assert votes.equal(torch.stack([(stacked.argmax(2) == k).float().mean(0) for k in range(3)], 1))


def test_vectors_are_averaged() -> None:
    net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten()).eval()
    x = torch.randn(2, 1, 6, 9)
    y = DihedralTTA(net)(x)
    assert y.shape == (2, 4)
    assert torch.allclose(DihedralTTA(net)(x.flip(-1)), y, atol=1e-6)


def test_augmentation_that_cannot_be() -> None:
    with pytest.raises(UsageError, match='give "mean" or "vote"'):
        DihedralTTA(nn.Identity(), "median")
    with pytest.raises(ConversionError, match="turned by rot90.*rows and columns"):
        DihedralTTA(nn.Conv2d(1, 1, (1, 3)))(torch.zeros(1, 1, 6, 6))


# ---- the invariance score --------------------------------------------------------------------------


def by_hand(activations: Tensor, transformed: Tensor) -> list[float]:
    """The score, input by input: the threshold is the largest value that more than 1% of the inputs reach."""
    scores = []
    for unit in range(activations.shape[1]):
        values = activations[:, unit].tolist()
        rates = {t: sum(v >= t for v in values) / len(values) for t in values}
        threshold = max(t for t in values if rates[t] > 0.01)
        firing = [n for n, value in enumerate(values) if value >= threshold]
        local = [float(one[n, unit]) >= threshold for one in transformed for n in firing]
        scores.append(sum(local) / len(local) / rates[threshold])
    return scores


@pytest.mark.parametrize("inputs", [1, 50, 99, 100, 101, 999])
def test_scores_by_hand(inputs: int) -> None:
    activations = torch.randn(inputs, 4, dtype=torch.float64).round(decimals=1)
    activations[:, 3] = activations[:, 3].relu()
    transformed = activations + 0.3 * torch.randn(5, inputs, 4, dtype=torch.float64).round(decimals=1)
    scores, expected = invariance_scores(activations, transformed), by_hand(activations, transformed)
    for unit, (score, hand) in enumerate(zip(scores.tolist(), expected, strict=True)):
        silent = activations[:, unit].sort(descending=True).values[inputs // 100] == activations[:, unit].min()
        assert score != score if silent else score == pytest.approx(hand, rel=1e-12)


def test_scores_of_units_whose_answer_is_known() -> None:
    base = torch.randn(1000)
    always, noise, silent = base, torch.randn(1000), torch.zeros(1000)
    rare = torch.zeros(1000)
    rare[:5] = 1  # fires on fewer than 1%
    activations = torch.stack([always, noise, silent, rare], 1)
    transformed = torch.stack([torch.stack([always, torch.randn(1000), silent, rare], 1) for _ in range(200)])
    scores = invariance_scores(activations, transformed)
    assert scores[0] == pytest.approx(1000 / 11)
    assert 0.8 < scores[1] < 1.2
    assert scores[2:].isnan().all()
    maps = activations[:, :, None, None] * torch.tensor([[0.1, 1.0]])
    wide = transformed[..., None, None] * torch.tensor([[1.0], [0.5]])
    assert invariance_scores(maps.abs(), wide.abs())[0] == invariance_scores(activations.abs(), transformed.abs())[0]


def test_scores_of_layers() -> None:
    """Those of what the layers make, in eval mode: of maps their maxima."""
    net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Dropout(), nn.Linear(144, 5)).train()
    images = torch.randn(60, 1, 8, 8)
    zooms = [partial(rescaled, scale=scale) for scale in (0.6, 1.6)]
    scores = layer_invariance(net, images, zooms, ["0", "4"], rate=0.2)
    assert net.training
    assert net[1].num_batches_tracked == 0
    net.eval()
    moved = torch.stack([zoom(images) for zoom in zooms])
    with torch.no_grad():
        maps = invariance_scores(net[0](images), torch.stack([net[0](one) for one in moved]), rate=0.2)
        vectors = invariance_scores(net(images), torch.stack([net(one) for one in moved]), rate=0.2)
    assert scores["0"].equal(maps)
    assert scores["4"].equal(vectors)


def test_zooming() -> None:
    images = torch.randn(2, 3, 7, 9)
    assert torch.allclose(rescaled(images, 1), images, atol=1e-5)
    constant = torch.ones(1, 1, 8, 8)
    assert rescaled(constant, 0.5)[0, 0, 3:5, 3:5].eq(1).all()
    assert rescaled(constant, 0.5)[0, 0, 0].eq(0).all()
    assert torch.allclose(rescaled(constant, 2)[0, 0], torch.ones(8, 8))


def test_scores_that_cannot_be() -> None:
    with pytest.raises(UsageError, match=r"need transformed ones \[T, N, ...\]"):
        invariance_scores(torch.zeros(5, 3), torch.zeros(5, 3))
    with pytest.raises(UsageError, match="a rate from 0 to below 1"):
        invariance_scores(torch.zeros(5, 3), torch.zeros(2, 5, 3), rate=1)
    net = nn.Sequential(nn.Conv2d(1, 2, 3))
    with pytest.raises(UsageError, match="no layer 'conv9'; it has 0"):
        layer_invariance(net, torch.zeros(3, 1, 5, 5), [], ["conv9"])
    twice = nn.Conv2d(1, 1, 3)
    with pytest.raises(UsageError, match="'0' does not run once"):
        layer_invariance(nn.Sequential(twice, twice), torch.zeros(3, 1, 5, 5), [lambda x: x], ["0"])
