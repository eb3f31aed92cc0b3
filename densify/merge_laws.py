"""The laws of networks whose upsamplings average or resample: what lies before each merge, and what is made of it."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from torch import Tensor, nn

from densify.comparison import Check, Judge, Tolerance, difference, named_outputs
from densify.conversion import Dense
from densify.graphs.fx.trace import same_tensors
from densify.maps import Merged
from densify.sampling import check_grid, check_size
from densify.shifts import Shifts, borders


def has_merges(dense: Dense) -> bool:
    """Whether some tensor is made of several phases, so that law 1 does not hold for it."""
    return any(step.map.merged is not Merged.NOT for step in dense.plan.steps.values())


class Merges:
    """The parts of a dense network before and behind its merges.

    Args:
        original: what it was converted from.
        dense: the network.
    """

    def __init__(self, original: nn.Module, dense: Dense) -> None:
        self.dense, self.original = dense, original
        self.ends = borders(dense.plan)
        self.front = self._part(dense.source, dense.options.form)
        other = "dilated" if dense.options.form == "fragments" else "fragments"
        self.other = self._part(dense.source, other)
        self.plain = self._part(original, "dilated", chosen=False)
        self.shifts = Shifts(dense)
        outputs = self.shifts.ends.keys() <= dense.plan.outputs.keys()
        self.behind = dense if outputs else self._part(dense.source, dense.options.form, ends=self.shifts.ends)

    def _part(
        self, source: nn.Module, form: str, *, chosen: bool = True, ends: Mapping[str, str] | None = None
    ) -> Dense:
        part = self.dense.conversion.cut(self.ends if ends is None else ends, chosen=chosen)
        part.options = replace(part.options, form=form)
        return Dense(same_tensors(source), self.dense.origin, part).eval()

    def check(self, x: Tensor, name: str, tolerance: Tolerance) -> list[Check]:
        """Laws 1 to 3 on the tensors in front of the merges; then the outputs against brute force."""
        want, have, other = (self._run(part, x) for part in (self.plain, self.front, self.other))
        judge = Judge(tolerance, lambda: self._rounding(x, want))
        checks = []
        for key, one in self.front.plan.outputs.items():
            if self.dense.plan.steps[self.ends[key]].op is None:
                continue  # the image itself
            labels: dict[str, Any] = {"input": name, "runtime": "torch", "lattice": tuple(map(tuple, one.lattices))}
            sizes = want[key].shape[2:]
            checks.append(check_grid(judge, want[key], have[key], one, output=key, **labels))
            checks.append(check_size(sizes, have[key], one, {"output": key, **labels}))
            checks.append(judge(other[key], have[key], law="phases", output=key, **labels))
        return checks + self._shifts(x, have, name, tolerance)

    def _shifts(self, x: Tensor, given: Mapping[str, Tensor], name: str, tolerance: Tolerance) -> list[Check]:
        expected = self.shifts(x, {self.ends[key]: value for key, value in given.items()})
        if not expected:
            return []
        made = self._run(self.behind, x)
        judge = Judge(tolerance, lambda: self._rounding_behind(x, made))
        return [
            judge(
                value, made[key], law="merges", output=key, input=name, runtime="torch",
                lattice=tuple(map(tuple, self.behind.plan.outputs[key].lattices)),
            )
            for key, value in expected.items()
        ]  # fmt: skip

    def _run(self, part: nn.Module, x: Tensor) -> dict[str, Tensor]:
        return dict(named_outputs(part(x.clone())))

    def _rounding(self, x: Tensor, values: Mapping[str, Tensor]) -> dict[str, float]:
        """The original's own errors in its precision."""
        precise = self._part(copy.deepcopy(self.original).double(), "dilated", chosen=False)
        return {key: difference(one, values[key])[1] for key, one in self._run(precise, x.double()).items()}

    def _rounding_behind(self, x: Tensor, values: Mapping[str, Tensor]) -> dict[str, float]:
        precise = copy.deepcopy(self.behind).double()
        return {key: difference(one, values[key])[1] for key, one in self._run(precise, x.double()).items()}
