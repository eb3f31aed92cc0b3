"""The many ways in which people write the same op: each is the original's, on the grid and off it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from small import images, seeded
from torch import Tensor, nn

import densify
from densify.errors import ConversionError, RefusedError

Program = Callable[["Parts", Tensor], Any]


class Parts(nn.Module):
    """Two convolutions, of which the first is strided, a vector layer, and a program that puts them together."""

    def __init__(self, program: Program) -> None:
        super().__init__()
        self.c1, self.c2 = nn.Conv2d(3, 4, 3, 2, 1), nn.Conv2d(4, 4, 3, 1, 1)
        self.fc, self.relu = nn.Linear(4, 6), nn.ReLU(inplace=True)
        self.scale = nn.Parameter(torch.ones(4))
        self.program = program

    def forward(self, x: Tensor) -> Any:
        return self.program(self, x)


def unused_in_place(m: Parts, x: Tensor) -> Tensor:
    y: Tensor = m.c1(x)
    m.relu(y)
    return m.c2(y)  # type: ignore[no-any-return]


def unused_functional(m: Parts, x: Tensor) -> Tensor:
    y: Tensor = m.c1(x)
    F.relu(y, inplace=True)
    return m.c2(y)  # type: ignore[no-any-return]


def augmented(m: Parts, x: Tensor) -> Tensor:
    y: Tensor = m.c1(x)
    z = y
    z *= 2
    return y - z / 3


def pooled_then_changed(m: Parts, x: Tensor) -> tuple[Tensor, Tensor]:
    y = m.c1(x)
    return F.relu(F.max_pool2d(y, 1, 2), inplace=True), y


def vectors_joined(m: Parts, x: Tensor) -> Tensor:
    y = m.c2(m.c1(x))
    return torch.cat([y.mean((2, 3)), y.amax((2, 3))], dim=-1)


PROGRAMS: dict[str, Program] = {
    "in place, result unused": unused_in_place,
    "in place, functional": unused_functional,
    "augmented assignment": augmented,
    "pooled, then changed in place": pooled_then_changed,
    "flatten of a vector": lambda m, x: torch.flatten(m.fc(m.c1(x).mean((2, 3))), 1),
    "view of a vector": lambda m, x: m.fc(m.c1(x).mean((2, 3))).view(-1, 6),
    "view of a map": lambda m, x: m.c2(y := m.c1(x)).view(y.shape[0], 4, y.shape[2], y.shape[3]) * 2,
    "view of a map, batch free": lambda m, x: m.c2(y := m.c1(x)).view(-1, 4, y.shape[2], y.shape[3]) * 2,
    "global max by size": lambda m, x: m.fc(torch.flatten(F.max_pool2d(y := m.c1(x), y.shape[2:]), 1)),
    "global average by size": lambda m, x: m.fc(F.avg_pool2d(y := m.c1(x), y.size()[2:]).flatten(1)),
    "data": lambda m, x: m.c2(m.c1(x).data),
    "dtype and device": lambda m, x: m.c1(x).to(x.dtype) + torch.ones((), dtype=x.dtype),
    "vectors joined from the end": vectors_joined,
    "one channel": lambda m, x: m.c2(m.c1(x))[:, 0].unsqueeze(1),
    "a softmax of a row of one channel": lambda m, x: m.c2(m.c1(x))[:, :1].softmax(2),
    "pieces": lambda m, x: torch.cat(m.c1(x).chunk(2, 1)[::-1], 1),
    "pieces returned": lambda m, x: m.c1(x).chunk(2, 1),
    "scaled channels": lambda m, x: m.c1(x) * m.scale[:, None, None] + m.scale.view(1, -1, 1, 1),
    "scaled vectors": lambda m, x: m.fc(m.c1(x).mean((2, 3)) * m.scale),
    "subtraction from a number": lambda m, x: 1 - m.c1(x),
    "gate": lambda m, x: (y := m.c1(x)) * y.mean((2, 3)).sigmoid().unsqueeze(-1).unsqueeze(-1),
    "parts of a vector": lambda m, x: m.fc(m.c1(x).mean((2, 3)))[:, 1:4],
    "twice the same": lambda m, x: {"a": (y := m.c1(x)), "b": [y, None]},
}


@pytest.mark.filterwarnings("ignore:Deterministic behavior")
@pytest.mark.parametrize("name", PROGRAMS)
@pytest.mark.parametrize("batch", [1, 2])
def test_a_program_means_what_it_says(name: str, batch: int) -> None:
    model = seeded(Parts(PROGRAMS[name]))
    dense = densify.convert(model, (batch, 3, 17, 22), output_stride=1)
    report = densify.verify(model, dense, [images(17, 22, batch=batch), images(24, 19, batch=batch)])
    assert report, report.failed
    assert {"grid", "size", "phases"} <= {check.law for check in report.checks}
    assert all(axis.stride >= 2 for axes in dense.lattices.values() for axis in axes)


def test_len_of_a_batch_is_that_of_the_input() -> None:
    model = seeded(Parts(lambda m, x: m.c1(x) / len(x)))
    dense = densify.convert(model, (2, 3, 17, 22), output_stride=1)
    for batch in (1, 2, 3):
        x = images(17, 22, batch=batch)
        assert densify.verify(model, dense, x)
        assert torch.allclose(dense(x)[:1] * batch, dense(x[:1]), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    ("program", "words"),
    [
        (lambda m, x: (y := m.c1(x)) / y.numel(), "number of elements"),
        (lambda m, x: F.max_pool2d(y := m.c1(x), (y.shape[2] // 2, 2)), "computed from the map's size"),
        (lambda m, x: F.conv2d(y := m.c1(x), m.c2.weight, padding=y.shape[2] // 5), "computed from the map's size"),
        (lambda m, x: F.avg_pool2d(y := m.c1(x), 2, divisor_override=y.shape[2]), "computed from the map's size"),
        (lambda m, x: F.lp_pool2d(y := m.c1(x), y.shape[3] // 5, 2), "computed from the map's size"),
        (lambda m, x: m.c1(x)[:, 0], "spatial axes are not those of a map"),
    ],
)
def test_what_cannot_be_right_everywhere_is_refused(program: Program, words: str) -> None:
    with pytest.raises(RefusedError, match=words):
        densify.convert(Parts(program), (2, 3, 17, 22), output_stride=1)


def test_outputs_that_have_no_name_are_refused() -> None:
    with pytest.raises(ConversionError, match='two outputs of the name "a.b"'):
        densify.convert(Parts(lambda m, x: {"a": {"b": x}, "a.b": m.c1(x)}), (2, 3, 17, 22), output_stride=1)


def test_hooks_of_the_model_itself_are_refused() -> None:
    model = Parts(lambda m, x: m.c1(x))
    model.register_forward_hook(lambda module, args, made: made * 2)
    with pytest.raises(ConversionError, match="forward hooks of its own"):
        densify.convert(model, (2, 3, 17, 22), output_stride=1)


def test_an_overridden_train_is_obeyed() -> None:
    class Frozen(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.norm = nn.Conv2d(3, 4, 3, 2, 1), nn.BatchNorm2d(4)

        def forward(self, x: Tensor) -> Tensor:
            made: Tensor = self.norm(self.conv(x))
            return made

        def train(self, mode: bool = True) -> Frozen:
            super().train(mode)
            self.norm.eval()
            return self

    dense = densify.convert(Frozen(), (2, 3, 17, 22), output_stride=1).train()
    assert dense.training
    assert dense.get_submodule("conv").training
    assert not dense.get_submodule("norm").training


def test_functional_layers_have_one_name_in_both_modes() -> None:
    class Auxiliary(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.side = nn.Conv2d(3, 4, 3, 1, 1), nn.Conv2d(4, 2, 1)

        def forward(self, x: Tensor) -> Any:
            x = self.conv(x)
            aux = self.side(F.max_pool2d(x, 2)) if self.training else None
            x = F.max_pool2d(x, 2)
            return (x, aux) if self.training else x

    dense = densify.convert(Auxiliary().eval(), (2, 3, 17, 22), layers=["max_pool2d"])
    assert dense(torch.zeros(2, 3, 16, 22)).shape[2:] == (16, 22)
    main, side = dense.train()(torch.zeros(2, 3, 16, 22))
    assert (main.shape[2:], side.shape[2:]) == ((16, 22), (8, 11))


def test_optional_inputs_keep_their_defaults() -> None:
    class Optional(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 3, 2, 1)

        def forward(self, x: Tensor, mask: Tensor | None = None, gain: float = 2.0) -> Tensor:
            x = self.conv(x) * gain
            return x if mask is None else x * mask

    model = seeded(Optional())
    dense = densify.convert(model, (2, 3, 17, 22), output_stride=1)
    assert densify.verify(model, dense, images(17, 22))
