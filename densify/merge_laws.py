"""The laws of networks whose upsamplings average or resample: what lies before each merge, and what is made of it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

from torch import Tensor

from densify.comparison import Check, Judge, Tolerance
from densify.maps import Merged
from densify.plans import Plan
from densify.sampling import check_grid, check_size
from densify.shifts import Ops, Shifts, borders


class Part(Protocol):
    """A part of a network that returns some of its tensors by name."""

    @property
    def plan(self) -> Plan:
        """What was changed in it."""

    def __call__(self, x: Tensor) -> Mapping[str, Tensor]:
        """The tensors for an image, both [B, C, *spatial]."""

    def errors(self, x: Tensor, made: Mapping[str, Tensor]) -> dict[str, float]:
        """The relative errors of what it made, against itself in float64, where that can be had."""


class Parts(Protocol):
    """Parts of a dense network, each up to some of its tensors, given by names and keys."""

    runtime: str

    @property
    def whole(self) -> Part:
        """The dense network itself."""

    def dense(self, ends: Mapping[str, str]) -> Part:
        """In the form that is checked."""

    def other(self, ends: Mapping[str, str]) -> Part:
        """In the other form."""

    def original(self, ends: Mapping[str, str]) -> Part:
        """With all strides of the original."""

    def ops(self, image: Tensor) -> Ops:
        """The original's ops."""


def has_merges(plan: Plan) -> bool:
    """Whether some tensor is made of several phases, so that law 1 does not hold for it."""
    return any(step.map.merged is not Merged.NOT for step in plan.steps.values())


class Merges:
    """The parts of a dense network before and behind its merges."""

    def __init__(self, parts: Parts) -> None:
        self.runtime, self.plan = parts.runtime, parts.whole.plan
        self.ends = borders(self.plan)
        self.plain, self.front, self.other = (make(self.ends) for make in (parts.original, parts.dense, parts.other))
        self.shifts = Shifts(self.plan, parts.ops)
        outputs = self.shifts.ends.keys() <= self.plan.outputs.keys()
        self.behind = parts.whole if outputs else parts.dense(self.shifts.ends)

    def check(self, x: Tensor, name: str, tolerance: Tolerance) -> list[Check]:
        """Laws 1 to 3 on the tensors in front of the merges; then the outputs against brute force."""
        want, have, other = (part(x) for part in (self.plain, self.front, self.other))
        judge = Judge(tolerance, lambda: self.plain.errors(x, want))
        checks = []
        for key, one in self.front.plan.outputs.items():
            if self.plan.steps[self.ends[key]].op is None:
                continue  # the image itself
            labels: dict[str, Any] = {"input": name, "runtime": self.runtime, "lattice": _lattice(one.lattices)}
            sizes = want[key].shape[2:]
            checks.append(check_grid(judge, want[key], have[key], one, output=key, **labels))
            checks.append(check_size(sizes, have[key], one, {"output": key, **labels}))
            checks.append(judge(other[key], have[key], law="phases", output=key, **labels))
        return checks + self._shifts(x, have, name, tolerance)

    def tensors(self, x: Tensor) -> dict[str, Tensor]:
        """What brute force makes of the maps in front of the merges, by key."""
        return self.shifts.tensors(x, {self.ends[key]: value for key, value in self.front(x).items()})

    def _shifts(self, x: Tensor, given: Mapping[str, Tensor], name: str, tolerance: Tolerance) -> list[Check]:
        expected = self.shifts(x, {self.ends[key]: value for key, value in given.items()})
        if not expected:
            return []
        made = self.behind(x)
        judge = Judge(tolerance, lambda: self.behind.errors(x, made))
        outputs = self.behind.plan.outputs
        return [
            judge(
                value, made[key], law="merges", output=key, input=name, runtime=self.runtime,
                lattice=_lattice(outputs[key].lattices),
            )
            for key, value in expected.items()
        ]  # fmt: skip


def _lattice(lattices: Any) -> tuple[Any, ...]:
    return tuple(map(tuple, lattices))
