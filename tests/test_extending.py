"""Rules from outside the package: docs/new-op.md, and that they obey the laws that densify's own obey."""

from __future__ import annotations

import copy
import pickle
import re
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from laws.integers import inputs
from runtimes import verify_everywhere
from small import images, seeded
from torch import Tensor, nn

import densify
from densify.errors import ConversionError, UsageError
from densify.graphs.fx import registry
from densify.graphs.fx.registry import Call
from densify.ops import GlobalPool, Op, Unsupported
from densify.samples import Sample

PAGE = (Path(__file__).parent.parent / "docs" / "new-op.md").read_text()


@pytest.fixture(autouse=True)
def _no_rule_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "_ADDED", {})


def test_the_page_runs_and_prints_what_it_says(capsys: pytest.CaptureFixture[str]) -> None:
    (code,) = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    exec(compile(code, "new-op.md", "exec"), {"__name__": "new_op"})
    said = [line.rpartition("# ")[2] for line in code.splitlines() if line.startswith("print(")]
    assert capsys.readouterr().out.splitlines() == said == ["Lattice(stride=4, offset=0)", "True"]


class Largest(nn.Module):
    """A max pooling that densify does not know as one."""

    def __init__(self, kernel: Any, stride: Any = 1, padding: Any = 0, dilation: Any = 1, ceil: bool = False) -> None:
        super().__init__()
        self.geometry: dict[str, Any] = {
            "kernel_size": kernel, "stride": stride, "padding": padding, "dilation": dilation, "ceil_mode": ceil,
        }  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        pooled: Tensor = F.max_pool2d(x, **self.geometry)
        return pooled


def largest(module: Largest, x: Tensor, stride: tuple[int, ...], dilation: tuple[int, ...]) -> Tensor:
    return F.max_pool2d(x, module.geometry["kernel_size"], stride, 0, dilation)


def blind(module: Largest, x: Tensor, stride: tuple[int, ...], dilation: tuple[int, ...]) -> Tensor:
    """Looks at the first two samples of its window only, however far apart they should be."""
    made = largest(module, x, stride, dilation)
    return F.max_pool2d(x, 2, stride)[..., : made.shape[2], : made.shape[3]]


def short(module: Largest, x: Tensor, stride: tuple[int, ...], dilation: tuple[int, ...]) -> Tensor:
    return largest(module, x, stride, dilation)[..., 1:]


def describe(run: Any) -> None:
    @densify.rule(Largest)
    def rule(call: Call) -> Op:
        assert isinstance(call.module, Largest)
        g = call.module.geometry
        shape = (g["kernel_size"], g["stride"], g["padding"], g["dilation"])
        return densify.sliding_window(call, *shape, ceil=g["ceil_mode"], fill=float("-inf"), run=run)


GEOMETRIES = [
    (2, 2),
    (3, 2, 1),
    (3, (2, 1), (1, 0)),
    ((1, 3), (1, 2), 0, (1, 2)),
    (2, 3, 1, 1, True),
    (3, 2, 0, 2, True),
]


@pytest.mark.parametrize("geometry", GEOMETRIES, ids=str)
@pytest.mark.parametrize("padding", ["full", "valid", "same"])
def test_a_rule_from_outside_makes_what_a_rule_inside_makes(geometry: tuple[Any, ...], padding: str) -> None:
    """A max pooling described from outside, against torch's own: every sample equal, whatever is chosen or kept."""
    describe(largest)

    def net(pool: Any) -> nn.Module:
        return seeded(nn.Sequential(nn.Conv2d(1, 2, 3, padding=1), pool(*geometry), nn.MaxPool2d(2), pool(*geometry)))

    ours, theirs = net(Largest), net(known)
    x = images(37, 41, channels=1)
    strided = [str(i) for i in (1, 2, 3) if i == 2 or max(torch.Size([1]) + torch.Size(_pair(geometry[1]))) > 1]
    for layers in (strided, ["1"], ["2"]):
        if set(layers) - set(strided):
            continue
        made, expected = (densify.convert(n, (1, 1, 33, 29), layers=layers, padding=padding) for n in (ours, theirs))
        assert made.lattices == expected.lattices
        assert torch.equal(made(x), expected(x))
        if padding == "full":
            fragments = densify.convert(ours, (1, 1, 33, 29), layers=layers, form="fragments")
            assert torch.equal(fragments(x), made(x))
            (lattice, other) = made.lattices["output"]
            assert torch.equal(made(x)[..., :: lattice.stride, :: other.stride], ours(x))


def known(*geometry: Any) -> nn.Module:
    return nn.MaxPool2d(**Largest(*geometry).geometry)


def _pair(value: Any) -> tuple[int, int]:
    return (value, value) if isinstance(value, int) else value


def test_a_wrong_function_is_found() -> None:
    model = seeded(nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.MaxPool2d(2), Largest(3, 2, 1)))
    x = images(31, 27)
    for run, found in ((largest, True), (blind, False)):
        describe(run)
        dense = densify.convert(model, (1, 3, 32, 32), output_stride=1)
        assert bool(densify.verify(model, dense, x)) is found
    describe(short)
    with pytest.raises(ConversionError, match="made 25 samples along axis 1 where 26 are due"):
        densify.convert(model, (1, 3, 32, 32), output_stride=1)(x)


def test_a_wrong_geometry_is_found() -> None:
    @densify.rule(Largest)
    def rule(call: Call) -> Op:
        return densify.sliding_window(call, 3, 2, 0, run=largest)

    with pytest.raises(ConversionError, match="0: the rule of Largest expects a map of .15, 15.*Mend the geometry"):
        densify.convert(nn.Sequential(Largest(3, 2, 1)), (1, 3, 32, 32), output_stride=1)


def weighted(x: Tensor, weight: Tensor, stride: int, scale: float) -> Tensor:
    """A convolution whose weight is made on the way."""
    if x.sum() > 1e9:  # nothing that could be traced
        raise ValueError
    return F.conv2d(x, weight * 2, stride=stride) * scale


def dense_weighted(x: Tensor, weight: Tensor, stride: tuple[int, ...], dilation: tuple[int, ...]) -> Tensor:
    return F.conv2d(x, weight * 2, stride=stride, dilation=dilation) * 3


def gate(x: Tensor, by: Tensor) -> Tensor:
    return x * by.relu() if x.sum() < 1e9 else x


class Functions(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(3, 3, 2, 3))
        self.norm = nn.LayerNorm(6)

    def forward(self, x: Tensor) -> Tensor:
        x = weighted(x, self.weight, 2, scale=3)
        x = F.max_pool2d(gate(x, -x), 2)
        return weighted(x, self.weight, stride=2, scale=3)


@pytest.fixture
def functions() -> nn.Module:
    @densify.rule(weighted)
    def rule(call: Call) -> Op:
        given = call.arguments("x weight stride scale")
        return densify.sliding_window(call, call.value(given["weight"]).shape[2:], given["stride"], run=dense_weighted)

    densify.pointwise(gate)
    model = Functions().double().eval()
    model.weight.data = inputs((3, 3, 2, 3), 0)
    return model


def test_functions(functions: nn.Module) -> None:
    """By position and by keyword, with weights of the module's; exact on integers, at another size than the example."""
    x = inputs((2, 3, 45, 38), 1)
    for choice in ({"output_stride": 1}, {"output_stride": 4}, {"layers": ["weighted"]}):
        dense = densify.convert(functions, (1, 3, 32, 32), **choice)
        fragments = densify.convert(functions, (1, 3, 32, 32), **choice, form="fragments")
        (e, _), (e2, _) = dense.lattices["output"]
        with torch.no_grad():
            assert torch.equal(dense(x)[..., ::e, ::e2], functions(x))
            assert torch.equal(dense(x), fragments(x))
    again = pickle.loads(pickle.dumps(copy.deepcopy(dense)))
    with torch.no_grad():
        assert torch.equal(again(x), dense(x))


class Opaque(nn.Module):
    """Looks at values, so that nothing can be traced inside."""

    def forward(self, x: Tensor) -> Tensor:
        largest = x.amax((2, 3), keepdim=True)
        return x - largest if bool((largest > -1e9).all()) else x


@pytest.mark.parametrize("answer", [None, GlobalPool()], ids=["phase by phase", "statistic"])
def test_other_answers(answer: Op | None) -> None:
    class Statistic(Opaque):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) if answer is None else (-super().forward(x)).amax((2, 3), keepdim=True)

    densify.rule(Statistic)(lambda call: answer)
    model = seeded(nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.MaxPool2d(2), Statistic()))
    dense = densify.convert(model, (1, 3, 32, 32), output_stride=1)
    assert dense.plan.wrapped == {"2": "Statistic"}
    assert densify.verify(model, dense, images(31, 27))


def test_a_refusal_in_the_users_words() -> None:
    densify.rule(Opaque)(lambda call: Unsupported("its noise is new every time", "Take it out"))
    model = nn.Sequential(nn.Conv2d(3, 4, 3, stride=2), Opaque())
    with pytest.raises(ConversionError, match=r"1: its noise is new every time. Take it out."):
        densify.convert(model, (1, 3, 32, 32), output_stride=1)


def test_pointwise_on_vectors_too() -> None:
    """Behind a flatten its input is [B, K] in the original, and [B, K, *spatial] in the dense network."""

    class Rows(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x - x.amax(1, keepdim=True) if bool((x == x).all()) else x

    densify.pointwise(Rows)
    layers = [nn.Conv2d(3, 4, 3, 2, 1), Rows(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(64, 5), Rows()]
    model = seeded(nn.Sequential(*layers))
    dense = densify.convert(model, (1, 3, 16, 16), output_stride=1)
    assert densify.verify(model, dense, images(16, 16))


def test_export(tmp_path: Path) -> None:
    describe(largest)
    model = seeded(nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.MaxPool2d(2), Largest(3, 2, 1))).float()
    dense = densify.convert(model, (1, 3, 32, 32), output_stride=1)
    densify.export(dense, tmp_path / "dense.onnx")
    x = images(37, 41).float()
    assert verify_everywhere(tmp_path / "dense.onnx", dense, [Sample("odd", x)])


def test_what_a_rule_cannot_be_for() -> None:
    with pytest.raises(UsageError, match="densify has a rule for MaxPool2d"):
        densify.pointwise(nn.MaxPool2d)
    with pytest.raises(UsageError, match="the class Opaque, not for one instance"):
        densify.pointwise(Opaque())
    with pytest.raises(UsageError, match="a class of torch.nn.Module or a function, not for int"):
        densify.pointwise(int)
    with pytest.raises(UsageError, match="not for 'relu'"):
        densify.rule("relu")
    with pytest.raises(UsageError, match="_pair: torch.fx looks for no name that begins with _"):
        densify.pointwise(_pair)


def test_what_a_window_cannot_be() -> None:
    model = nn.Sequential(Largest(2, 2))
    for given, message in (
        ({"kernel": (2, 2, 2), "run": largest}, "kernel=.2, 2, 2.: the map has 2 spatial axes"),
        ({"kernel": 2, "run": lambda *a, **k: None}, "a function with a name"),
    ):

        def rule(call: Call, given: Any = given) -> Op:
            return densify.sliding_window(call, **given)

        densify.rule(Largest)(rule)
        with pytest.raises(UsageError, match=message):
            densify.convert(model, (1, 3, 32, 32), output_stride=1)


def test_of_two_rules_the_last_counts() -> None:
    describe(blind)
    describe(largest)
    model = seeded(nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.MaxPool2d(2), Largest(3, 2, 1)))
    assert densify.verify(model, densify.convert(model, (1, 3, 32, 32), output_stride=1), images(31, 27))
