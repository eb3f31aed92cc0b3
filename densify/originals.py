"""What a dense network is compared with: the original, or its convolutional form where the head reads a window."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from functools import cached_property

import torch
from torch import Tensor, nn

from densify.choose import Choice
from densify.comparison import Check, Judge, Tolerance, difference, named_outputs
from densify.conversion import Dense, build
from densify.graphs.fx.trace import same_tensors
from densify.maps import Map
from densify.ops import AdaptivePool, Flatten, Identity
from densify.plans import Plan
from densify.recipe import Options, Origin

REFERENCE = "reference size"  # the name of an input


class Reference:
    """The function that a dense network must agree with on its grid."""

    def __init__(self, original: nn.Module, dense: Dense) -> None:
        self.original, self.options = original, dense.options
        self.direct = dense.options.head in ("dense", "average") and not fixed_window(dense.plan)
        self.plan = dense.plan

    @cached_property
    def convolutional(self) -> Dense:
        """The original with its head converted and nothing else."""
        options = Options(self.options.shape, Choice(layers=()), "full", self.options.head)
        return build(same_tensors(self.original), options, Origin()).eval()

    def __call__(self, x: Tensor) -> dict[str, Tensor]:
        """The original's outputs; vectors gain spatial axes of size 1."""
        if not self.is_class(x):
            return dict(named_outputs(self.convolutional(x.clone())))
        made = dict(named_outputs(self.original(x.clone())))
        return {name: _with_axes(value, self.plan.outputs.get(name)) for name, value in made.items()}

    def in_double(self) -> Reference:
        """The same function in float64."""
        precise = copy.copy(self)
        precise.__dict__.pop("convolutional", None)
        precise.original = copy.deepcopy(self.original).double().eval()
        return precise

    def check(self, tolerance: Tolerance) -> list[Check]:
        """Where the fully convolutional form stands for the original: it must be the original at the reference."""
        if self.direct or self.options.head not in ("dense", "average"):
            return []
        x = self.image
        expected = self(x)
        actual = dict(named_outputs(self.convolutional(x.clone())))
        judge = Judge(tolerance, lambda: rounding(self, x, expected))
        labels = {"law": "head", "input": REFERENCE, "runtime": "torch", "lattice": ()}
        return [judge(expected[name], actual[name], output=name, **labels) for name in expected if name in actual]

    @property
    def image(self) -> Tensor:
        """A random image of the reference size."""
        generator = torch.Generator().manual_seed(0)
        like = next(self.original.parameters())
        return torch.randn(self.options.shape, generator=generator, dtype=torch.float64).to(like)

    def is_class(self, x: Tensor) -> bool:
        """Whether the original's own class is meant for an image of this size."""
        at_reference = tuple(x.shape[1:]) == tuple(self.options.shape[1:])
        return self.direct or (self.options.head == "dense" and at_reference)


def fixed_window(plan: Plan) -> bool:
    """Whether the head reads a window of fixed size, so that the original's class runs at the reference size alone."""
    for step in plan.steps.values():
        if isinstance(step.site.op, AdaptivePool) and isinstance(step.op, Identity):
            return True
        if isinstance(step.site.op, Flatten):
            source = step.sources[0]
            if not (source.collapsed or source.pooled or all(axis.statistic for axis in source.axes)):
                return True
    return False


def rounding(reference: Reference, x: Tensor, expected: Mapping[str, Tensor]) -> dict[str, float]:
    """The reference's own error in its precision, against float64, per output."""
    precise = reference.in_double()(x.double())
    return {key: difference(precise[key], value)[1] for key, value in expected.items() if key in precise}


def _with_axes(value: Tensor, one: Map | None) -> Tensor:
    if one is None or not one.collapsed:
        return value
    return value.reshape(*value.shape, *[1] * len(one.axes))
