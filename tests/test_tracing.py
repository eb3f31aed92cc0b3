"""What programs do beside layers: tensors made on the way, conditions, what torch.fx alone does not record."""

from __future__ import annotations

import copy
import io
import pickle
import subprocess
import sys
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from programs import (
    BLOCKS,
    REFERENCE,
    SCRIPTED,
    Block,
    Left,
    Surrounded,
    around,
    assert_phases,
    images,
    integer,
    position,
)
from runtimes import sessions
from torch import Tensor, nn

import densify
from densify.errors import ConversionError, RefusedError, UsageError


@pytest.mark.parametrize("form", ["dilated", "fragments"])
@pytest.mark.parametrize("name", BLOCKS)
def test_a_program_runs_on_every_phase(name: str, form: str) -> None:
    assert_phases(around(Block(BLOCKS[name])), form=form, shapes=((2, 17, 22), (3, 24, 20)))


@pytest.mark.parametrize("form", ["dilated", "fragments"])
def test_a_learned_embedding_lies_on_every_phase(form: str) -> None:
    model = around(Block(lambda m, x: m.conv(x + m.embedding)))
    assert_phases(model, form=form, shapes=((2, 17, 22), (1, 18, 22)))


@pytest.mark.parametrize("form", ["dilated", "fragments"])
def test_what_cannot_be_recorded_is_left_whole(form: str) -> None:
    """It looks at its whole batch: every phase has its own."""
    for block in (Left(), Surrounded()):
        assert_phases(around(block), form=form, shapes=((2, 17, 22), (3, 24, 20)))


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("form", ["dilated", "fragments"])
def test_a_scripted_function_is_an_op(form: str) -> None:
    double = torch.jit.CompilationUnit(SCRIPTED).double
    assert isinstance(double, torch.jit.ScriptFunction)
    assert_phases(around(Block(lambda m, x: double(x))), form=form, shapes=((2, 17, 22),))


@pytest.mark.parametrize("form", ["dilated", "fragments"])
@pytest.mark.parametrize(
    "program",
    [
        lambda m, x: m.conv(x).flatten(2).cumsum(2).view(x.shape[0], 4, -1, (x.shape[3] + 1) // 2),
        lambda m, x: (y := m.conv(x)) + x.new_ones(x.shape[0], 1, *y.shape[2:]),
        lambda m, x: torch.cat([y := m.conv(x), torch.ones(x.shape[0], 1, *y.shape[2:], dtype=x.dtype)], 1),
    ],
)
def test_the_batch_is_read_where_no_phase_is(program: Callable[[Any, Tensor], Tensor], form: str) -> None:
    class Model(Block):
        def __init__(self) -> None:
            super().__init__(program)
            self.conv = nn.Conv2d(3, 4, 3, 2, 1)

    model = integer(Model())
    dense = densify.convert(model, REFERENCE, output_stride=1, form=form)
    assert densify.verify(model, dense, [images(17, 22), images(24, 19, batch=3)])


def test_gradients_of_what_is_recorded_are_the_originals() -> None:
    for name in ("contexts", "autograd function", "assignments"):
        model = around(Block(BLOCKS[name]))
        dense = densify.convert(model, REFERENCE, start="0")
        model(images(17, 22)).square().sum().backward()
        dense(images(17, 22))[..., ::2, ::2].square().sum().backward()
        for (key, mine), theirs in zip(dense.named_parameters(), model.parameters(), strict=True):
            assert (mine.grad is None) == (theirs.grad is None), (name, key)
            assert mine.grad is None or torch.equal(mine.grad, theirs.grad), (name, key)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["coordinates", "attribute", "of numbers", "listed attribute"])
def test_constants_survive_copies_and_files(name: str, tmp_path: Path) -> None:
    model = around(Block(BLOCKS[name]))
    dense = densify.convert(model, REFERENCE, start="0")
    x = images(20, 27)
    assert torch.equal(copy.deepcopy(dense)(x), dense(x))
    densify.save(dense, tmp_path / "dense.safetensors")
    loaded = densify.load(tmp_path / "dense.safetensors", model=around(Block(BLOCKS[name])))
    assert torch.equal(loaded(x), dense(x))
    if name in ("coordinates", "of numbers"):
        assert dense.float()(x.float()).dtype == torch.float32


class Level(nn.Module):
    """Has a constant that is no buffer."""

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self.conv, self.mean = nn.Conv2d(3, 4, 3, 2, 1), torch.tensor([1.0, 2.0, 4.0], dtype=dtype)

    def forward(self, x: Tensor) -> OrderedDict[str, Tensor]:
        x = self.conv(x - self.mean.view(1, 3, 1, 1))
        return OrderedDict(out=x, grid=x + torch.arange(x.shape[3], dtype=x.dtype))


def test_a_constant_of_the_root_is_pickled() -> None:
    model = integer(Level(torch.float64))
    dense = densify.convert(model, REFERENCE, output_stride=1)
    again = pickle.load(io.BytesIO(pickle.dumps(dense)))
    assert densify.verify(model, again, images(20, 27))


@pytest.mark.filterwarnings("ignore")
def test_constants_are_exported(tmp_path: Path) -> None:
    dense = densify.convert(integer(Level(torch.float32)).float(), REFERENCE, output_stride=1)
    done = densify.export(dense, tmp_path / "dense.onnx")
    x = images(20, 27).float()
    for runtime, session in sessions(tmp_path / "dense.onnx", reference=True):
        made = dict(zip(done.outputs, session(x.numpy()), strict=True))
        for name, expected in dense(x).items():
            assert torch.allclose(torch.from_numpy(made[name]), expected), (runtime, name)


@pytest.mark.parametrize(
    ("program", "error", "words"),
    [
        (lambda m, x: x / larger(x).item(), RefusedError, "a number or a condition of a map"),
        (
            lambda m, x: torch.add(x, 1, out=torch.empty_like(x)),
            ConversionError,
            "writes into a tensor that it is given",
        ),
        (lambda m, x: by_images(x), RefusedError, r"test_tracing.py:\d+\): it mixes the images of a batch, or counts"),
        (lambda m, x: seen_by_a_view(x), ConversionError, r"test_tracing.py:\d+: an assignment to a part"),
        (lambda m, x: F.adaptive_avg_pool2d(x, x), ConversionError, r"test_tracing.py:\d+, in <lambda>"),
    ],
)
def test_what_cannot_be_recorded_names_its_line(program: Any, error: type[Exception], words: str) -> None:
    class Model(Block):
        def forward(self, x: Tensor) -> Any:
            return program(self, self.first(x))

        def __init__(self) -> None:
            super().__init__(program)
            self.first = nn.Conv2d(3, 4, 3, 2, 1)

    with pytest.raises(error, match=words):
        densify.convert(Model(), REFERENCE, output_stride=1)


def larger(x: Tensor) -> Tensor:
    return x.abs().max()


def by_images(x: Tensor) -> Tensor:
    rows = x.flatten(2).cumsum(2)
    return (rows * rows.shape[0]).view(x.shape)


def test_a_cache_of_the_model_is_not_poisoned() -> None:
    model = around(Block(lambda m, x: x + position(x.shape[2], x.shape[3])))
    for _ in range(2):
        dense = densify.convert(model, REFERENCE, output_stride=1)
        assert densify.verify(model, dense, images(17, 22))
    dense.train()(images(17, 22))


class DropPath(nn.Module):
    """Stochastic depth: one draw per image."""

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return x
        return x * x.new_empty(x.shape[0], 1, 1, 1).bernoulli_(0.5)


@pytest.mark.parametrize(("padding", "form"), [("full", "dilated"), ("full", "fragments"), ("valid", "dilated")])
def test_all_phases_of_an_image_take_the_same_draw(padding: str, form: str) -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3, 2), DropPath()).double()
    dense = densify.convert(model, REFERENCE, output_stride=1, padding=padding, form=form).train()
    with torch.no_grad():
        made = dense(images(17, 22, batch=16)).flatten(1)
    alive = made != 0
    assert (alive.all(1) | ~alive.any(1)).all()
    assert 0 < int(alive.all(1).sum()) < 16


def test_strides_over_what_is_no_map_are_listed() -> None:
    class Clip(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.pool = nn.Conv2d(3, 4, 3, 2, 1), nn.MaxPool2d(2)

        def forward(self, x: Tensor) -> Tensor:
            return self.pool(self.conv(x.transpose(2, 3)))  # type: ignore[no-any-return]

    words = (
        r"No strided layer can be chosen. These .* no map \[B, C, \*spatial\]: conv \(test_tracing.py:\d+\), pool \("
    )
    with pytest.raises(UsageError, match=words):
        densify.convert(Clip(), REFERENCE, output_stride=1)


def test_what_counts_fragments_in_train_mode_has_no_form_there() -> None:
    class Model(Block):
        def __init__(self) -> None:
            super().__init__(lambda m, x: x)
            self.first = nn.Conv2d(3, 4, 3, 2, 1)

        def forward(self, x: Tensor) -> Tensor:
            x = self.first(x)
            return by_images(x) if self.training else x

    dense = densify.convert(Model().double().eval(), REFERENCE, output_stride=1)
    with pytest.raises(
        ConversionError, match=r"train mode: .*test_tracing.py:\d+\): it calculates with a number of im"
    ):
        dense.train()(images(17, 22))


def seen_by_a_view(x: Tensor) -> Tensor:
    part = x[:, :2]
    x[:, :, 0] = 5.0
    return part


def test_autocast_inside_is_refused_where_strides_are() -> None:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 3, 2, 1)

        def forward(self, x: Tensor) -> Tensor:
            with torch.autocast("cpu", dtype=torch.bfloat16):
                return self.conv(x)  # type: ignore[no-any-return]

    with pytest.raises(ConversionError, match=r"autocast is switched on inside forward.*test_tracing.py:\d+"):
        densify.convert(Model(), REFERENCE, output_stride=1)


def test_a_trace_leaves_torch_as_it_was() -> None:
    program = (
        "import torch, densify\n"
        "net = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3, 2), torch.nn.ReLU(), torch.nn.MaxPool2d(2))\n"
        "densify.convert(net, (1, 3, 17, 22), output_stride=1)\n"
        "with torch.device('meta'):\n"
        "    assert torch.nn.Linear(2, 2).weight.is_meta and torch.zeros(1).is_meta\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True)


def test_results_that_are_kept_are_named() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3, 2), nn.MaxPool2d(2))
    model[0].kept = model[0](torch.zeros(1, 3, 9, 9))
    for share in (False, True):
        with pytest.raises(ConversionError, match=r"0.kept is a tensor with the history of its gradient"):
            densify.convert(model, REFERENCE, output_stride=1, share=share)
