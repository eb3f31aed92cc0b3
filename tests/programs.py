"""Blocks with programs around their layers, and what is right of them: laws 1 and 3 behind one convolution."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import densify

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
