"""What layers with tied weights share: free weights as parameters, and how they spread over a plain layer's weight."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Self, TypeVar

import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn.utils.parametrize import type_before_parametrizations

from densify.errors import Refusal, SymmetryError
from densify.symmetry.constraints import Constraint, Demand, demands, several
from densify.symmetry.solving import solved

Constraints = Constraint | Sequence[Constraint]
Support = Tensor | npt.NDArray[Any] | None
Plain = TypeVar("Plain", nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)


class SymmetricLayer(nn.Module):
    """Free weights, and how they spread over the weight of a plain layer.

    Attributes:
        constraints: what is asked of the weight.
        solution: the weights that have it.
        bias_solution: the biases that have it: b = T'b under equivariance (paper, section 6), all under invariance.
        weight: [*solution.free_shape], the free weights.
        bias: [*bias_solution.free_shape], the free biases, or None.
    """

    bias: nn.Parameter | None

    def __init__(
        self,
        shape: tuple[int, ...],
        out_rank: int,
        constraints: Constraints,
        names: Sequence[str] | None,
        support: Support,
        bias: bool,
        device: Any,
        dtype: torch.dtype | None,
    ) -> None:
        super().__init__()
        try:
            asked = several(constraints)
            wanted = demands(shape, asked, names)
            _check_sides(wanted, out_rank)
            solution = solved(shape, wanted, support)
        except SymmetryError as error:
            why = error.refusal
            raise SymmetryError(
                Refusal(f"{type(self).__name__} of weights {shape}", f"{why.layer}: {why.reason}", why.remedy)
            ) from None
        if solution.only_zero:
            raise SymmetryError(
                Refusal(
                    f"{type(self).__name__} of weights {shape}",
                    f"only w = 0 has this symmetry ({', '.join(demand.name for demand in wanted) or 'the support'})",
                    "Check the places and factors of the transformation.",
                )
            )
        self.constraints, self.solution = asked, solution
        names_of = [demand.name for demand in wanted]
        numbered = (f"{name} ({i})" if name in names_of[:i] else name for i, name in enumerate(names_of))
        self._demands = dict(zip(numbered, wanted, strict=True))
        of_bias = [Demand(d.left, d.left_axes, None, (), d.interior) for d in wanted if d.left is not None]
        self.bias_solution = solved(shape[:out_rank], of_bias)
        self.weight = nn.Parameter(torch.empty(solution.free_shape, device=device, dtype=dtype))
        free_bias = torch.empty(self.bias_solution.free_shape, device=device, dtype=dtype) if bias else None
        self.register_parameter("bias", None if free_bias is None else nn.Parameter(free_bias))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Weights and biases as those of a plain layer: uniform up to 1 / sqrt(the inputs of an output)."""
        bound = 1 / math.sqrt(max(1, self._fan_in()))
        for parameter in self.parameters():
            nn.init.uniform_(parameter, -bound, bound)

    def expanded_weight(self) -> Tensor:
        """The weight of the plain layer, in the shape that the constraints count the axes of."""
        return self.solution.expand(self.weight)

    def expanded_bias(self) -> Tensor | None:
        """The bias of the plain layer, [out]."""
        return None if self.bias is None else self.bias_solution.expand(self.bias).flatten()

    def project_(self, weight: Tensor, bias: Tensor | None) -> Self:
        """Take over a plain layer's weights: the nearest ones with the symmetry."""
        with torch.no_grad():
            self.weight.copy_(self.solution.coordinates(weight.reshape(self.solution.shape)))
            if self.bias is not None and bias is not None:
                self.bias.copy_(self.bias_solution.coordinates(bias.reshape(self.bias_solution.shape)))
        return self

    def _take(self, plain: Any) -> Self:
        """Project a plain layer's weights; trained where those are, and in the layer's mode."""
        with torch.enable_grad():  # what a parametrization computes needs a gradient where its originals do
            weight, bias = plain.weight, plain.bias
        self.project_(weight, bias)
        self.weight.requires_grad_(weight.requires_grad)
        if self.bias is not None:
            self.bias.requires_grad_(bias.requires_grad)
        return self.train(plain.training)

    def _fan_in(self) -> int:
        return math.prod(self.solution.shape[len(self.bias_solution.shape) :])

    def extra_repr(self) -> str:
        return f"{', '.join(self._demands)}; {self.solution}; bias={self.bias is not None}"

    def _into(self, plain: Plain) -> Plain:
        """A plain layer with copies of the expanded weight and bias, and this layer's mode."""
        with torch.no_grad():
            weight, bias = self.expanded_weight().reshape(plain.weight.shape), self.expanded_bias()
            plain.weight = nn.Parameter(_copied(weight), requires_grad=self.weight.requires_grad)
            if bias is not None and self.bias is not None:
                plain.bias = nn.Parameter(_copied(bias), requires_grad=self.bias.requires_grad)
        return plain.train(self.training)


def _copied(x: Tensor) -> Tensor:
    """With storage of its own: expanded weights are the free ones themselves where nothing is tied."""
    return x.clone(memory_format=torch.contiguous_format)


def check_kind(layer: nn.Module, kind: type[nn.Module], made: type[nn.Module]) -> None:
    """
    Raises:
        SymmetryError: a layer of another kind than what such a layer is made of, or with a forward of its own.
    """
    found = type_before_parametrizations(layer)
    if found is kind:
        return
    derived = f"plain {kind.__name__}, but a class derived from it" if isinstance(layer, kind) else kind.__name__
    remedy = f"{made.__name__} is made of torch.nn.{kind.__name__} alone."
    raise SymmetryError(Refusal(found.__name__, f"it is no {derived}", remedy))


def _check_sides(wanted: Sequence[Demand], out_rank: int) -> None:
    """
    Raises:
        SymmetryError: a transformation of the input acts on axes of outputs, or the other way.
    """
    for demand in wanted:
        if any(axis < out_rank for axis in demand.right_axes) or any(axis >= out_rank for axis in demand.left_axes):
            raise SymmetryError(
                Refusal(
                    demand.name,
                    f"axes 0 to {out_rank - 1} of the weight are outputs, the others inputs",
                    "Name axes of the input in axes, those of the output in out_axes.",
                )
            )
