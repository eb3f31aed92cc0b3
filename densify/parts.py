"""Parts of dense networks in torch, for :mod:`densify.merge_laws`."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass, replace

from torch import Tensor, fx, nn

from densify.comparison import difference, named_outputs
from densify.conversion import Dense
from densify.graphs.fx.alone import FxOps
from densify.graphs.fx.trace import same_tensors
from densify.graphs.fx.watch import ends, recorded
from densify.layerwise import comparable, each, with_axes
from densify.merge_laws import Merges
from densify.originals import Reference
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

    def as_made(self, x: Tensor) -> dict[str, Tensor]:
        """As a call, but each tensor as it was before later ops worked on it in place."""
        graph = self.dense.graphs[False]
        assert isinstance(graph, fx.Graph)
        return ends(self.dense, graph, x)

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


class DenseLayers:
    """:class:`densify.layerwise.Layers` of a dense network.

    Args:
        reference: what it must agree with.
        dense: the network.
        merges: its parts around merges, where it has any.
    """

    def __init__(self, reference: Reference, dense: Dense, merges: Merges | None) -> None:
        self.plan, self._reference, self._dense, self._merges = dense.plan, reference, dense, merges
        self._parts = DenseParts(reference.original, dense)
        self._keys = comparable(dense.plan)

    def itself(self, x: Tensor, runtime: str = "") -> dict[str, Tensor]:
        found = recorded(self._reference.original, self._dense.conversion.graphs[False], self._keys, x)
        return {key: with_axes(value, x.dim() - 2) for key, value in found.items()}

    def original(self, x: Tensor, runtime: str = "") -> dict[str, Tensor]:
        return self.itself(x) if self._reference.is_class(x) else self.convolutional(x)

    def convolutional(self, x: Tensor, runtime: str = "") -> dict[str, Tensor]:
        made = self._reference.convolutional
        return DenseParts(made.source, made).dense(each(comparable(made.plan))).as_made(x)

    def dense(self, x: Tensor, runtime: str = "") -> dict[str, Tensor]:
        return self._parts.dense(each(self._keys)).as_made(x)

    def other(self, x: Tensor, runtime: str = "") -> dict[str, Tensor]:
        return self._parts.other(each(self._keys)).as_made(x)

    def behind(self, x: Tensor, runtime: str = "") -> dict[str, Tensor]:
        return {} if self._merges is None else self._merges.tensors(x)

    def rounding(self, x: Tensor) -> dict[str, float]:
        """The original's layers against themselves in float64."""
        made, precise = self.original(x), DenseLayers(self._reference.in_double(), self._dense, None)
        return {key: difference(value, made[key])[1] for key, value in precise.original(x.double()).items()}
