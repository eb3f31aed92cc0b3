"""A random network: a program over named layers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from torch import Tensor, nn


class Step(NamedTuple):
    """One line of a network's program: a layer by name, or a function of the values computed so far."""

    sources: tuple[int, ...]
    layer: str = ""
    function: Callable[..., Any] | None = None


class RandomNet(nn.Module):
    """A network made by :func:`laws.nets.random_net`.

    Attributes:
        program: its steps; value 0 is the input.
        returns: the values that it returns, by name in a dict or by number in a tuple; none for the last value alone.
        window: what a flatten takes in at the reference size, where that is more than one sample.
        reference: shape of the reference input.
        stages: names of the layers that stride together.
        kinds: what was put in, by the names that the tests count.
        exact: whether all its arithmetic is exact.
        exact_gradient: whether that of its gradients is.
        statistic: whether a statistic over the whole map is taken.
        plain: whether it has window ops, pointwise ops and statistics alone.
    """

    def __init__(self) -> None:
        super().__init__()
        self.program: list[Step] = []
        self.returns: dict[str, int] = {}
        self.window: tuple[int, ...] | None = None
        self.reference: tuple[int, ...] = ()
        self.stages: list[tuple[str, ...]] = []
        self.kinds: set[str] = set()
        self.exact = True
        self.exact_gradient = True
        self.statistic = False
        self.plain = True

    def values(self, x: Tensor) -> list[Tensor]:
        """Everything that it computes, in order."""
        values = [x]
        for step in self.program:
            operands = [values[i] for i in step.sources]
            made = self.get_submodule(step.layer)(*operands) if step.function is None else step.function(*operands)
            values.append(made)
        return values

    def forward(self, x: Tensor) -> Any:
        values = self.values(x)
        returned = {name: values[place] for name, place in self.returns.items()}
        if "0" in returned:
            return tuple(returned.values())
        return returned or values[-1]


class Value(NamedTuple):
    """A value of the program: its place and its channels."""

    place: int
    channels: int
