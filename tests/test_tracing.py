"""What programs do beside layers: tensors made on the way, conditions, what torch.fx alone does not record."""

from __future__ import annotations

import copy
import functools
import io
import math
import pickle
import subprocess
import sys
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import densify
from densify.errors import ConversionError, RefusedError, UsageError

REFERENCE = (2, 3, 17, 22)


class Straight(torch.autograd.Function):
    """Rounding that lets the gradient through."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return (x / 4).floor() * 4

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        return gradients[0] * 2


@torch.fx.wrap
def larger_half(x: Tensor, factor: int) -> Tensor:
    """Looks at the values of its whole batch."""
    return x * factor if float(x.detach().sum()) > 0 else x + factor


class Block(nn.Module):
    """A function of a map as a module, with a constant that is no buffer, a convolution and an embedding."""

    def __init__(self, function: Callable[[Any, Tensor], Any]) -> None:
        super().__init__()
        self.function = function
        self.levels = torch.tensor([1.0, 2.0, 4.0, 8.0], dtype=torch.float64)
        self.listed = [torch.tensor([3.0, 1.0, 0.0, 2.0], dtype=torch.float64)]
        self.conv, self.wide = nn.Conv2d(4, 4, 3, 1, 1), nn.Conv2d(6, 4, 1)
        self.relu_ = nn.ReLU()
        self.embedding = nn.Parameter(torch.zeros(1, 4, 9, 11))

    def forward(self, x: Tensor) -> Any:
        return self.function(self, x)


def coordinates(m: Block, x: Tensor) -> Tensor:
    batch, _, height, width = x.shape
    rows = torch.arange(height, dtype=x.dtype, device=x.device)
    columns = torch.linspace(0, width - 1, width, dtype=x.dtype, device=x.device)
    grid = torch.stack(torch.meshgrid(rows, columns, indexing="ij")).expand(batch, -1, -1, -1)
    made: Tensor = m.wide(torch.cat([x, grid], dim=1))
    return made


def checked(m: Block, x: Tensor) -> Tensor:
    assert isinstance(x, Tensor)
    assert torch.is_tensor(x)
    anything: Any = x
    assert not isinstance(anything, list | tuple)
    assert isinstance(x.shape, tuple)
    assert isinstance(x.shape[2], int), f"{x.shape[2]:d}"
    assert len(x.shape) == x.ndim == 4
    assert x.shape[-2:] == x.size()[2:]
    assert hasattr(x, "device")
    assert not hasattr(x, "sample")
    torch._assert(x.shape[1] == 4, f"{x.shape} {x.dtype}")
    return x if x.is_cuda or x.device.type == "cuda" else x * 2


def sizes(m: Block, x: Tensor) -> Tensor:
    _, _, *rest = x.shape
    half = (math.ceil(rest[0] / 2), round(x.shape[3] / 2 + 0.1), divmod(rest[1], 2)[1])
    x = x * min(rest) + max(0, 3 - rest[0], half[0]) - x.shape[2:].numel() + sum(half) - x.shape[0]
    return F.pad(x, (half[2], 2 - half[2])).reshape(*x.shape[:2], rest[0], -1)[..., :-2]


def contexts(m: Block, x: Tensor) -> Tensor:
    with torch.no_grad():
        y = m.conv(x)
    with torch.autocast(x.device.type, enabled=False):
        return torch.utils.checkpoint.checkpoint(m.conv, x + y, use_reentrant=False)  # type: ignore[no-any-return]


def assigned(m: Block, x: Tensor) -> Tensor:
    made = torch.zeros_like(x)
    made[:, :, 1:] = x[:, :, :-1]
    made[..., :1] += 3
    x[:, 1, 0] = 5.0
    return made - x


def several(m: Block, x: Tensor) -> Tensor:
    batch, channels, height, width = x.shape
    tokens = x.permute(0, 2, 3, 1).reshape(batch * height, width, channels)
    made = {"first": (tokens.cumsum(1), [tokens * 2])}
    return sum([made["first"][0], *made["first"][1]]).reshape(batch, height, width, -1).permute(0, 3, 1, 2)  # type: ignore[union-attr]


def transposed(x: Tensor) -> Tensor:
    alias = x
    x.transpose_(2, 3).transpose_(2, 3).unsqueeze_(0).squeeze_(0)
    return alias.cumsum(3) + x


@functools.lru_cache
def position(height: int, width: int) -> Tensor:
    made: Tensor = torch.arange(height, dtype=torch.float64)[:, None] * torch.ones(width, dtype=torch.float64)
    return made


def tokens(x: Tensor) -> Tensor:
    rows = x.flatten(2).transpose(1, 2)
    rows = rows * rows.size(-1) / rows.shape[2] ** 0.5 + rows.shape[1] * rows.cumsum(1)
    made: Tensor = rows.transpose(1, 2).view(x.shape)
    return made


def powers(x: Tensor) -> Tensor:
    alias = x
    x **= 2
    x %= 7
    x //= 2
    return alias + x


class Given(nn.Module):
    """Looks at values, and is given numbers, a shape and tensors beside the map."""

    def forward(self, x: Tensor, scale: Tensor, count: int, shape: torch.Size, pair: Any) -> Tensor:
        if x.sum() > 1e30 or pair[1] is not None:
            return x
        made: Tensor = x * scale + count + pair[0] + torch.ones(shape, dtype=x.dtype).cumsum(0)
        return made


class Surrounded(nn.Module):
    """Gives a module that cannot be recorded what is no map, as long as there are phases."""

    def __init__(self) -> None:
        super().__init__()
        self.scale, self.given = nn.Parameter(torch.ones(4, 1, 1)), Given()

    def forward(self, x: Tensor, **options: Any) -> Tensor:
        if options.get("plain"):
            return x
        return self.given(x, self.scale, x.shape[0], x.shape, (x, None))  # type: ignore[no-any-return]


class Numbers(nn.Module):
    """Leaves torch, looks at values, and answers with a dict."""

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        made = torch.from_numpy(np.abs(x.detach().numpy()))
        return {"abs": made / 2.0 ** int(made.max().item() > 40), "same": x}


class Left(nn.Module):
    """Holds a module that cannot be recorded."""

    def __init__(self) -> None:
        super().__init__()
        self.numbers = Numbers()

    def forward(self, x: Tensor) -> Tensor:
        made = self.numbers(x)
        return made["abs"] - made["same"]  # type: ignore[no-any-return]


SCRIPTED = "def double(x: Tensor) -> Tensor:\n    return x * 2 + 1\n"
BLOCKS: dict[str, Callable[[Block, Tensor], Any]] = {
    "coordinates": coordinates,
    "checks": checked,
    "arithmetic on sizes": sizes,
    "contexts": contexts,
    "assignments": assigned,
    "nested values": several,
    "of the batch": lambda m, x: x + torch.ones(x.shape[0], 4, 1, 1, device=x.device, dtype=x.dtype),
    "of all sizes": lambda m, x: x * torch.full((1, 1, x.size(2), 1), 2, dtype=x.dtype) + x.new_ones(x.shape),
    "of another tensor": lambda m, x: torch.where(torch.tril(torch.ones_like(x)) > 0, x, -x),
    "a mask between two maps": lambda m, x: torch.where(torch.arange(x.shape[3]) > 3, x, m.conv(x)),
    "of numbers": lambda m, x: x - torch.tensor([1, 2, 0, 4]).view(1, 4, 1, 1).to(x),
    "of an array": lambda m, x: x - torch.from_numpy(np.array([1.0, 2.0, 0.0, 4.0])).view(1, 4, 1, 1),
    "attribute": lambda m, x: x * m.levels.view(1, 4, 1, 1) + m.levels[1],
    "listed attribute": lambda m, x: x * m.listed[0].to(x)[:, None, None],
    "indices": lambda m, x: x[:, torch.tensor([3, 1, 0, 2])],
    "autograd function": lambda m, x: Straight.apply(m.conv(x)),
    "wrapped function": lambda m, x: larger_half(x, 3),
    "scaled by a size of tokens": lambda m, x: tokens(x),
    "the batch as a number": lambda m, x: x + x.new_tensor([x.shape[0]]) - torch.full((1, 1), x.shape[0]).to(x) * x,
    "shapes in place": lambda m, x: (y := m.conv(x).unsqueeze_(1)).sum(1) + y.squeeze_(1).transpose_(2, 3).mT,
    "shapes in place, twice": lambda m, x: transposed(m.conv(x)),
    "named like methods": lambda m, x: (y := m.relu_(x)) + x * y,
    "a size of tokens beside a map": lambda m, x: (t := x.flatten(2).cumsum(2)).view(x.shape) + m.conv(x) * t.shape[2],
    "numbers of images": lambda m, x: (
        x * torch.linspace(0, x.shape[0], 4).to(x).view(1, 4, 1, 1) + m.levels.view(1, 4, 1, 1) * x.shape[0]
    ),
    "types looked up": lambda m, x: x * 2 if x.dtype in {torch.float64} and x.shape[1:2] in {(4,)} else -x,
    "masks": lambda m, x: torch.where((x > x.shape[0]) & (x.flip(3) >= 0), x, x.shape[1] * x),
    "looked up": lambda m, x: x * {4: 2}.get(x.shape[1], 3) if x.shape[1] in {4, 5} and 4 in x.shape else -x,
    "operators in place": lambda m, x: powers(m.conv(x)),
    "batch in a view": lambda m, x: x.flatten(2).cumsum(2).view(x.shape[0], 4, x.shape[2], x.shape[3]),
}


def integer(model: nn.Module, seed: int = 0) -> nn.Module:
    """The model in float64 and eval mode, with small integers for weights."""
    generator = torch.Generator().manual_seed(seed)
    for tensor in model.parameters():
        tensor.data = torch.randint(-2, 3, tensor.shape, generator=generator).double()
    return model.eval()


def images(*sizes: int, batch: int = 2, seed: int = 1) -> Tensor:
    return torch.randint(-4, 5, (batch, 3, *sizes), generator=torch.Generator().manual_seed(seed)).double()


def around(block: nn.Module) -> nn.Sequential:
    made = integer(nn.Sequential(nn.Conv2d(3, 4, 3, 2, 1), block, nn.Conv2d(4, 4, 3, 1, 1)))
    assert isinstance(made, nn.Sequential)
    return made


def assert_phases(model: nn.Sequential, *, form: str, shapes: tuple[tuple[int, ...], ...]) -> None:
    """Laws 1 and 3: the layers behind the chosen one, on every fragment by itself."""
    dense = densify.convert(model, REFERENCE, start="0", form=form)
    assert list(dense.state_dict()) == list(model.state_dict())
    for batch, *size in shapes:
        x = images(*size, batch=batch)
        first = model[0]
        assert isinstance(first, nn.Conv2d)
        n = [-(-length // 2) for length in size]
        fine = F.conv2d(F.pad(x, (1, 3, 1, 3)), first.weight, first.bias)
        fine = fine[..., : size[0] + 1, : size[1] + 1]
        made = dense(x)
        assert made.shape[2:] == (2 * n[0], 2 * n[1])
        assert torch.equal(made[..., ::2, ::2], model(x)), "law 1"
        for a in range(2 - size[0] % 2):
            for b in range(2 - size[1] % 2):
                assert torch.equal(made[..., a::2, b::2], model[1:](fine[..., a : 2 * n[0] : 2, b : 2 * n[1] : 2])), (
                    a,
                    b,
                )


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
    from densify.onnx_file import OnnxSession

    x = images(20, 27).float()
    made = dict(zip(done.outputs, OnnxSession(tmp_path / "dense.onnx", optimised=True)(x.numpy()), strict=True))
    for name, expected in dense(x).items():
        assert torch.allclose(torch.from_numpy(made[name]), expected), name


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
