"""Linear layers and convolutions whose weights are tied by a symmetry (`densify.symmetry`), with free weights alone.

A layer that does not tell maps of 6 x 6 from their mirror images, and has half the weights of a Linear layer; made new,
or from a trained layer, whose weights are projected (means over those that become one):

>>> from densify.layers.symmetric import SymmetricLinear
>>> from densify.symmetry import Flip, Invariant
>>> layer = SymmetricLinear((8, 6, 6), 10, Invariant(Flip(), "w"))
>>> layer.weight.shape, bool(layer.check_invariance())
(torch.Size([10, 8, 6, 3]), True)
>>> SymmetricLinear.from_linear(layer.lower(), Invariant(Flip(), "w"), in_shape=(8, 6, 6)).weight.equal(layer.weight)
True

What the symmetry says of the input alone is done to the input: samples that meet one weight are added first, which is
less work than the plain layer's. Only where outputs are tied as well is the weight expanded, by index.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from densify.equivariance import error_of, noise, tolerance_of
from densify.errors import Refusal, SymmetryError, UsageError
from densify.layers.tied import Constraints, Support, SymmetricLayer, check_kind
from densify.symmetry.checking import MeasuredSymmetry
from densify.symmetry.constraints import Demand, along, where_used


class SymmetricLinear(SymmetricLayer):
    """A Linear layer that is invariant or equivariant: called as torch's, on flattened maps [*, features].

    Ten outputs that are the same for maps of 6 channels, 5 x 5, and for their mirror images::

        layer = SymmetricLinear((6, 5, 5), 10, Invariant(Flip(), "w"))
        y = layer(x.flatten(1))  # x: [B, 6, 5, 5], y: [B, 10]

    Args:
        in_features: one number, or the shape of the map before it was flattened, such as (channels, height, width).
        out_features: the same of the outputs.
        constraints: on a weight of shape [*out_features, *in_features]. With one number of outputs its axes have names:
            "n" are the outputs, "c" channels, "h" height, "w" width, "d" depth. Otherwise they are numbered from 0.
        bias: whether there is one. Under equivariance it has the symmetry, b = T'b.
        names: own names of the weight's axes, a letter each: "nchw" are four.
        support: bool, broadcast to the weight: weights outside are zero.

    Raises:
        SymmetryError: a symmetry that a weight of this shape cannot have.
    """

    def __init__(
        self,
        in_features: int | Sequence[int],
        out_features: int | Sequence[int],
        constraints: Constraints,
        bias: bool = True,
        *,
        names: Sequence[str] | None = None,
        support: Support = None,
        device: Any = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        ins = (in_features,) if isinstance(in_features, int) else tuple(in_features)
        outs = (out_features,) if isinstance(out_features, int) else tuple(out_features)
        super().__init__(
            (*outs, *ins), len(outs), constraints, names or _names(ins, outs), support, bias, device, dtype
        )
        self.in_shape, self.out_shape = ins, outs
        self.in_features, self.out_features = math.prod(ins), math.prod(outs)

    @classmethod
    def from_linear(
        cls,
        linear: nn.Linear,
        constraints: Constraints,
        *,
        in_shape: Sequence[int] | None = None,
        out_shape: Sequence[int] | None = None,
        names: Sequence[str] | None = None,
        support: Support = None,
    ) -> SymmetricLinear:
        """A layer with the weights of a plain one, projected on those that have the symmetry.

        Args:
            linear: stays as it is. Its weight may be parametrized; what is frozen stays frozen.
            in_shape, out_shape: the shapes that its features are in; None for one axis each.

        Raises:
            SymmetryError: not a Linear layer, one with a forward of its own, features that are not in these shapes, or
                as for the class.
        """
        check_kind(linear, nn.Linear, cls)
        ins = _shape(linear, in_shape, linear.in_features)
        outs = _shape(linear, out_shape, linear.out_features)
        made = cls(
            ins, outs, constraints, linear.bias is not None, names=names, support=support,
            device=linear.weight.device, dtype=linear.weight.dtype,
        )  # fmt: skip
        return made._take(linear)

    def forward(self, x: Tensor) -> Tensor:
        """[*, in_features] -> [*, out_features].

        Samples that meet one weight are added in the input's type: in float16, where numbers end at 65504, what is near
        that over the number of such samples overflows. The layer that :meth:`lower` makes multiplies first.

        Raises:
            UsageError: an input of another last axis, such as a map that is not flattened.
        """
        first = len(self.out_shape)
        of_input = [factor for factor in self.solution.factors if factor.axes[0] >= first]
        others = [factor for factor in self.solution.factors if factor.axes[0] < first]
        try:
            shaped = x.unflatten(-1, self.in_shape)
        except RuntimeError as error:
            raise UsageError(
                f"SymmetricLinear: an input of shape {list(x.shape)}, and the layer reads {self.in_features} features "
                f"in the last axis. Flatten a map {list(self.in_shape)} first: x.flatten(1)."
            ) from error
        folded = self.solution.fold(shaped, of_input, first).flatten(x.dim() - 1)
        weight = self.solution.spread(self.weight, others).reshape(self.out_features, -1)
        return F.linear(folded, weight, self.expanded_bias())

    def lower(self) -> nn.Linear:
        """A plain Linear layer with the expanded weight: the same numbers, up to the order of sums.

        Behind a flatten, `densify.convert` takes this one: the tied layer makes a map again of what was flattened.
        """
        return self._into(nn.Linear(self.in_features, self.out_features, self.bias is not None, device="meta"))

    def check_equivariance(self, x: Tensor | None = None) -> MeasuredSymmetry:
        """How far f(Tx) is T'f(x), or f(x) under invariance, for every constraint.

        Args:
            x: [B, in_features]; default normal random numbers.
        """
        x = noise(4, self.in_features, like=self.weight) if x is None else x
        errors = {}
        for name, demand in self._demands.items():
            with torch.no_grad():
                errors[name] = self._error(demand, x.unflatten(-1, self.in_shape))
        return MeasuredSymmetry(errors, tolerance_of(self.weight.dtype))

    check_invariance = check_equivariance

    def _error(self, demand: Demand, x: Tensor) -> float:
        inner = tuple(axis - len(self.out_shape) + 1 for axis in demand.right_axes)
        outer = tuple(axis + 1 for axis in demand.left_axes)
        if demand.interior:
            x = where_used(x, demand.right, inner, rows=False)
        expected = along(self(x.flatten(1)).unflatten(-1, self.out_shape), demand.left, outer)
        actual = self(along(x, demand.right, inner).flatten(1)).unflatten(-1, self.out_shape)
        if demand.interior:
            expected, actual = (where_used(y, demand.left, outer, rows=True) for y in (expected, actual))
        return error_of(expected, actual)


def _shape(linear: nn.Linear, shape: Sequence[int] | None, features: int) -> tuple[int, ...]:
    """The shape that features are in.

    Raises:
        SymmetryError: they are not as many.
    """
    given = (features,) if shape is None else tuple(shape)
    if math.prod(given) != features:
        raise SymmetryError(
            Refusal(
                f"Linear({linear.in_features}, {linear.out_features})",
                f"its {features} features are not of shape {given}",
                "Give the shape of the map that is flattened in front of it.",
            )
        )
    return given


def _names(ins: tuple[int, ...], outs: tuple[int, ...]) -> str | None:
    """Of the weight's axes: n for outputs, then c, d, h, w."""
    inside = {1: "c", 2: "cw", 3: "chw", 4: "cdhw"}.get(len(ins))
    return "n" + inside if len(outs) == 1 and inside is not None else None
