"""Maps concatenated along a spatial axis: every phase of the result is the chain of the same phases."""

from __future__ import annotations

import pytest
import torch
from laws.integers import inputs
from torch import Tensor, nn

import densify
from densify.errors import RefusedError


class Chained(nn.Module):
    """A pooling, then two maps one behind the other along one axis, and a convolution across the seam."""

    def __init__(self, dim: int, *, strided: bool = False) -> None:
        super().__init__()
        self.dim = dim
        self.pool = nn.MaxPool2d(2)
        self.one, self.two = nn.Conv2d(2, 3, 3, padding=1), nn.Conv2d(2, 3, 1, stride=(1, 2) if strided else 1)
        self.last = nn.Conv2d(3, 2, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.pool(x)
        made: Tensor = self.last(torch.cat([self.one(x), self.two(x)], self.dim))
        return made


def _integers(net: nn.Module) -> nn.Module:
    for place, parameter in enumerate(net.parameters()):
        parameter.data = inputs(tuple(parameter.shape), place)
    return net.double().eval()


@pytest.mark.parametrize("dim", [2, -1])
@pytest.mark.parametrize("form", ["dilated", "fragments"])
def test_chains_are_exact_on_every_phase(dim: int, form: str) -> None:
    net = _integers(Chained(dim))
    dense = densify.convert(net, (1, 2, 17, 22), output_stride=1, form=form)
    for size in ((17, 22), (24, 19)):
        x = inputs((2, 2, *size), 3)
        with torch.no_grad():
            made = dense(x)
            for row in range(2):
                for column in range(2):  # the image moved, the far side repeated as the far side of the pooling is
                    even = x[..., : size[0] // 2 * 2, : size[1] // 2 * 2]
                    moved = nn.functional.pad(even, (0, 2, 0, 2), mode="replicate")[..., row:, column:]
                    expected = net(moved[..., : even.shape[2], : even.shape[3]])
                    phase = made[..., row::2, column::2]
                    inner = (..., slice(0, 4), slice(0, 4))
                    assert phase.shape == expected.shape
                    assert torch.equal(phase[inner], expected[inner])
        assert densify.verify(net, dense, x)


def test_maps_of_other_steps_are_not_chained() -> None:
    net = _integers(Chained(3, strided=True))
    with pytest.raises(RefusedError, match=r"its operands lie on different lattices.*Choose as well: two"):
        densify.convert(net, (1, 2, 17, 22), layers=["pool"])
