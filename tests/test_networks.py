"""The laws on real networks, with weights whose signal is alive, and the numbers of the paper."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import pytest
import torch
import torchvision.models as models
from laws.alive import assert_alive, enliven, images, relative_error
from laws.convolutional import fully_convolutional
from torch import Tensor, nn

from densify.conversion import Dense, convert, inspect, inverse, plan
from densify.lattice import Lattice


@dataclass(frozen=True)
class Case:
    """A network, a choice of layers, and the sizes to try: the reference, an odd one and one that is not square."""

    name: str
    choice: dict[str, Any]
    arguments: dict[str, Any]
    sizes: tuple[tuple[int, int], ...] = ((224, 224), (161, 161), (138, 195))
    window: bool = False

    @property
    def reference(self) -> tuple[int, int, int, int]:
        return (1, 3, *self.sizes[0])


_WINDOW = ((224, 224), (231, 231), (224, 257))
_PLAIN = {"init_weights": False}
_AUXILIARY = {"init_weights": False, "aux_logits": True}
CASES = [
    Case("alexnet", {"start": "features.5"}, {}, _WINDOW, window=True),
    Case("vgg11_bn", {"output_stride": 16}, _PLAIN, _WINDOW, window=True),
    Case("vgg16", {"start": "features.30"}, _PLAIN, _WINDOW, window=True),
    Case("resnet18", {"output_stride": 4}, {}),
    Case("resnet50", {"output_stride": 8}, {}),
    Case("squeezenet1_0", {"output_stride": 4}, {}),
    Case("squeezenet1_1", {"layers": ["features.2", "features.8"]}, {}),
    Case("densenet121", {"start": "features.transition2.pool"}, {}),
    Case("googlenet", {"output_stride": 8}, _AUXILIARY),
    Case("inception_v3", {"layers": ["Mixed_6a", "maxpool2"]}, _AUXILIARY, ((299, 299), (213, 213), (182, 219))),
]
NAMES = [case.name for case in CASES]


@pytest.fixture(scope="module", params=CASES, ids=NAMES)
def converted(request: pytest.FixtureRequest) -> tuple[Case, nn.Module, Dense]:
    case: Case = request.param
    model = enliven(getattr(models, case.name)(**case.arguments), (2, 3, *case.sizes[0]))
    assert_alive(model, case.reference)
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0  # in train mode the two networks draw other numbers
    return case, model, convert(model, case.reference, **case.choice, share=True)


def as_map(x: Tensor) -> Tensor:
    return x if x.dim() == 4 else x[..., None, None]


def original(case: Case, model: nn.Module, x: Tensor) -> Tensor:
    """What f computes; at other sizes a head of fixed window slides."""
    with torch.no_grad():
        sliding = case.window and tuple(x.shape[2:]) != case.sizes[0]
        return as_map(fully_convolutional(model, x) if sliding else model(x))


def grid(x: Tensor, lattices: Sequence[Lattice], like: Tensor) -> Tensor:
    rows, columns = (slice(o, o + e * (n - 1) + 1, e) for (e, o), n in zip(lattices, like.shape[2:], strict=True))
    return x[..., rows, columns]


def assert_close(made: Tensor, expected: Tensor, own_error: Callable[[], float]) -> None:
    """DESIGN section 3, last paragraph; `own_error` is the original's, float32 against float64."""
    assert made.shape == expected.shape
    error = relative_error(made, expected)
    if made.dtype == torch.float64:
        assert error <= 1e-12
    elif error > 1e-5:
        assert error <= 10 * own_error()


def assert_laws(case: Case, model: nn.Module, dense: Dense, x: Tensor) -> None:
    """Laws 1 and 2 on one input."""
    expected = original(case, model, x)
    with torch.no_grad():
        made = dense(x)
    (lattices,) = dense.lattices.values()
    assert max(lattices).stride > 1
    assert tuple(made.shape[2:]) == tuple(e * n for (e, _), n in zip(lattices, expected.shape[2:], strict=True))

    def own_error() -> float:
        return relative_error(expected, original(case, copy.deepcopy(model).double(), x.double()))

    assert_close(grid(made, lattices, expected), expected, own_error)


@pytest.mark.parametrize("which", [0, 1, 2], ids=["reference", "odd", "oblong"])
def test_grid_and_size(converted: tuple[Case, nn.Module, Dense], which: int) -> None:
    case, model, dense = converted
    assert_laws(case, model, dense, images((1, 3, *case.sizes[which]), 5))


def test_weights(converted: tuple[Case, nn.Module, Dense]) -> None:
    """Law 4, auxiliary heads included, both ways."""
    case, model, dense = converted
    mine, theirs = dense.state_dict(), model.state_dict()
    assert list(mine) == list(theirs)
    for name, tensor in theirs.items():
        assert mine[name].shape == tensor.shape
        assert mine[name].dtype == tensor.dtype
        assert mine[name].data_ptr() == tensor.data_ptr(), f"{name} is not shared"
    dense.load_state_dict(theirs, strict=True)
    with torch.device("meta"):
        fresh = getattr(models, case.name)(**case.arguments)
    fresh.load_state_dict(mine, strict=True, assign=True)
    back = inverse(dense, share=True)
    assert type(back) is type(model)
    assert all(tensor.data_ptr() == theirs[name].data_ptr() for name, tensor in back.state_dict().items())


def test_copies_and_double(converted: tuple[Case, nn.Module, Dense]) -> None:
    """deepcopy and .to(): the copy in float64 is equal to the original in float64, the dense network stays."""
    case, _, dense = converted
    size = case.sizes[1]
    double = copy.deepcopy(dense).to(torch.float64)
    assert next(dense.parameters()).dtype == torch.float32
    assert list(double.state_dict()) == list(dense.state_dict())
    assert_laws(case, inverse(double, share=True), double, images((1, 3, *size), 6, torch.float64))


def test_train_mode(converted: tuple[Case, nn.Module, Dense]) -> None:
    """With frozen BatchNorm and no dropout every output, auxiliary ones too, has the original's on its grid."""
    case, model, dense = converted
    for network in (model, dense):
        network.train()
        for module in network.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.eval()
    x = images((2, 3, *case.sizes[0]), 7)
    try:
        with torch.no_grad():
            expected, made = model(x), dense(x)
    finally:
        model.eval()
        dense.eval()
    assert type(made) is type(expected)
    pairs = zip(made, expected, strict=True) if isinstance(expected, tuple) else [(made, expected)]
    for one, other in pairs:
        e = [big // small for big, small in zip(one.shape[2:], as_map(other).shape[2:], strict=True)]
        sampled = one[..., :: e[0], :: e[1]]
        assert relative_error(sampled, as_map(other)) < 1e-5
    assert dense.training is model.training is False


@pytest.mark.parametrize("name", ["resnet18", "squeezenet1_0", "densenet121"])
def test_gradient(name: str) -> None:
    """Law 5: a loss that looks at phase 0 alone, for every parameter."""
    case = CASES[NAMES.index(name)]
    shape = (1, 3, 70, 97)
    model = enliven(getattr(models, name)(**case.arguments), (2, *shape[1:])).double()
    dense = convert(model, shape, **case.choice, share=True)
    x = images(shape, 9, torch.float64)
    expected, made = model(x), dense(x)[..., 0, 0]
    upstream = torch.randn(expected.shape, dtype=torch.float64)
    theirs = torch.autograd.grad((expected * upstream).sum(), list(model.parameters()))
    mine = torch.autograd.grad((made * upstream).sum(), list(model.parameters()))
    largest = max(gradient.abs().max().item() for gradient in theirs)
    assert min(gradient.abs().max().item() for gradient in theirs) > 0, "a parameter has no gradient"
    for one, other in zip(mine, theirs, strict=True):
        assert (one - other).abs().max().item() <= 1e-12 * largest


@pytest.mark.parametrize("name", ["resnet18", "googlenet"])
def test_pickle(name: str) -> None:
    case = CASES[NAMES.index(name)]
    shape = (1, 3, 96, 96)
    model = getattr(models, name)(**case.arguments).eval()
    dense = convert(model, shape, **case.choice)
    again = pickle.loads(pickle.dumps(dense))
    x = images(shape, 8)
    with torch.no_grad():
        assert torch.equal(again(x), dense(x))
    assert again.lattices == dense.lattices
    assert list(again.state_dict()) == list(model.state_dict())


class SlimVgg(nn.Module):
    """VGG-16 whose classifier is narrow, so that a dense map of its scores costs little; its geometry is VGG's."""

    def __init__(self) -> None:
        super().__init__()
        whole = models.vgg16(init_weights=False)
        self.features, self.avgpool = whole.features, whole.avgpool
        self.classifier = nn.Sequential(nn.Linear(512 * 49, 32), nn.ReLU(), nn.Linear(32, 10))

    def forward(self, x: Tensor) -> Tensor:
        scores: Tensor = self.classifier(torch.flatten(self.avgpool(self.features(x)), 1))
        return scores


@pytest.fixture(scope="module")
def slim() -> nn.Module:
    model = enliven(SlimVgg(), (2, 3, 224, 224))
    assert_alive(model, (1, 3, 224, 224))
    return model


@pytest.mark.parametrize(
    ("padding", "size", "samples", "where"),
    [("same", 256, 31, [13, 17]), ("same", 224, 27, [13]), ("valid", 256, 5, [0, 4]), ("full", 256, 8, [0, 4])],
)
def test_vgg_from_pool4(slim: nn.Module, padding: str, size: int, samples: int, where: list[int]) -> None:
    """The paper's maps of scores, with the original's predictions where it says."""
    dense = convert(slim, (1, 3, 224, 224), start="features.23", padding=padding, share=True)
    x = images((1, 3, size, size), 9)
    with torch.no_grad():
        made, expected = dense(x), fully_convolutional(slim, x)
    assert tuple(made.shape) == (1, 10, samples, samples)
    assert tuple(expected.shape[2:]) == (len(where), len(where))
    assert relative_error(made[:, :, where][..., where], expected) < 1e-5
    assert (made[:, :, 1] - made[:, :, 0]).abs().max() > 0.01 * made.abs().max()


@pytest.mark.parametrize(("size", "counts"), [(256, [3, 5, 9, 17, 33]), (384, [11, 21, 41, 81, 161])])
def test_valid_counts(size: int, counts: list[int]) -> None:
    """Scores per axis where pool5, pool4 ... pool1 is the first dense layer (PAPERS, part A)."""
    with torch.device("meta"):
        model = nn.Sequential(models.vgg16(init_weights=False).features, nn.Conv2d(512, 4096, 7))
    pools = [f"0.{name}" for name, module in model[0].named_children() if isinstance(module, nn.MaxPool2d)]
    for pool, count in zip(reversed(pools), counts, strict=True):
        (one,) = plan(model, (1, 3, size, size), start=pool, padding="valid").outputs.values()
        assert [axis.dense for axis in one.axes] == [count, count]


def test_original_counts() -> None:
    with torch.device("meta"):
        model = nn.Sequential(models.vgg16(init_weights=False).features, nn.Conv2d(512, 4096, 7))
    for size, count in ((256, 2), (384, 6)):
        (one,) = inspect(model, (1, 3, size, size)).outputs.values()
        assert [axis.size for axis in one.axes] == [count, count]


@pytest.mark.parametrize(
    ("name", "key", "field"),
    [("vgg16", "features_30", 212), ("vgg16", "classifier_0", 404), ("alexnet", "classifier_1", 355)],
)
def test_receptive_fields(name: str, key: str, field: int) -> None:
    with torch.device("meta"):
        model = getattr(models, name)()
    for axis in inspect(model, (1, 3, 224, 224)).steps[key].map.axes:
        assert axis.field is not None
        assert axis.field.last - axis.field.first + 1 == field


def test_positions() -> None:
    with torch.device("meta"):
        model = models.vgg16(init_weights=False)
    one = convert(model, (1, 3, 224, 224), start="features.23", head="features", share=True).positions["output"]
    assert [(at.step, at.receptive_field) for at in one] == [(8, 212), (8, 212)]
    assert [at.first for at in one] == [15.5, 15.5]


@pytest.mark.parametrize(("stride", "replaced"), [(8, [False, True, True]), (16, [False, False, True])])
def test_resnet50_equals_torchvision_dilated(stride: int, replaced: list[bool]) -> None:
    """torchvision's own dilated ResNet-50, feature map for feature map, at sizes divisible by 32."""
    model = enliven(models.resnet50(), (2, 3, 128, 128))
    theirs = models.resnet50(replace_stride_with_dilation=replaced).eval()
    theirs.load_state_dict(model.state_dict(), strict=True)
    dense = convert(model, (1, 3, 128, 128), output_stride=stride, head="features", share=True)
    features = nn.Sequential(*list(theirs.children())[:-2])
    for size in ((128, 128), (160, 96)):
        x = images((1, 3, *size), 10)
        with torch.no_grad():
            made, expected = dense(x), features(x)
        assert made.shape == expected.shape
        assert relative_error(made, expected) <= 4 * torch.finfo(torch.float32).eps
