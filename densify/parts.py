"""Parts of dense networks in torch, for :mod:`densify.merge_laws`."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass, replace

from torch import Tensor, nn

from densify.comparison import difference, named_outputs
from densify.conversion import Dense
from densify.graphs.fx.alone import FxOps
from densify.graphs.fx.trace import same_tensors
from densify.plans import Plan


@dataclass(frozen=True)
class DensePart:
    """A dense network, asked for its tensors by name."""

    dense: Dense

    @property
    def plan(self) -> Plan:
        return self.dense.plan

    def __call__(self, x: Tensor) -> dict[str, Tensor]:
        return dict(named_outputs(self.dense(x.clone())))

    def errors(self, x: Tensor, made: Mapping[str, Tensor]) -> dict[str, float]:
        precise = DensePart(copy.deepcopy(self.dense).double())
        return {key: difference(one, made[key])[1] for key, one in precise(x.double()).items()}


class DenseParts:
    """The parts of a dense network.

    Args:
        model: what it was converted from.
        dense: the network.
    """

    runtime = "torch"

    def __init__(self, model: nn.Module, dense: Dense) -> None:
        self.model, self._dense = model, dense

    @property
    def whole(self) -> DensePart:
        return DensePart(self._dense)

    def dense(self, ends: Mapping[str, str]) -> DensePart:
        return self._part(self._dense.source, self._dense.options.form, ends)

    def other(self, ends: Mapping[str, str]) -> DensePart:
        other = "dilated" if self._dense.options.form == "fragments" else "fragments"
        return self._part(self._dense.source, other, ends)

    def original(self, ends: Mapping[str, str]) -> DensePart:
        return self._part(self.model, "dilated", ends, chosen=False)

    def ops(self, image: Tensor) -> FxOps:
        made = self._dense.conversion
        return FxOps(self._dense.source, made.graphs[False], made.root, self._dense.plan.network, image)

    def _part(self, source: nn.Module, form: str, ends: Mapping[str, str], *, chosen: bool = True) -> DensePart:
        part = self._dense.conversion.cut(ends, chosen=chosen)
        part.options = replace(part.options, form=form)
        return DensePart(Dense(same_tensors(source), self._dense.origin, part).eval())
