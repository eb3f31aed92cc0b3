"""Parts of dense ONNX graphs in ONNX Runtime, for :mod:`densify.merge_laws`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

import onnx_ir as ir
from torch import Tensor

from densify.comparison import difference
from densify.errors import UsageError
from densify.graphs.onnx.alone import OnnxOps
from densify.graphs.onnx.read import Reading
from densify.onnx.conversion import FORMS, DenseOnnx, OnnxConversion
from densify.onnx.model import OnnxModel, at_opset
from densify.onnx.runtime import Runtime, nudged, plain
from densify.planning import walk
from densify.plans import Network, Plan


@dataclass(frozen=True)
class OnnxPart:
    """A graph whose outputs are tensors of a network.

    Attributes:
        plan: with the names and keys of the tensors.
        names: of the graph's outputs, by those names.
    """

    runtime: Runtime
    graph: ir.Model
    reading: Reading
    plan: Plan
    names: Mapping[str, str]

    def __call__(self, x: Tensor) -> dict[str, Tensor]:
        (made,) = self.runtime.run(self.graph, self.reading.order, [x], optimised=True)
        found = {}
        for name, key in self.plan.network.outputs.items():
            place, axes = self.reading.places[key], self.plan.steps[key].map.axes
            found[name] = plain(made[self.names[name]], place.order, len(axes))
        return found

    def errors(self, x: Tensor, made: Mapping[str, Tensor]) -> dict[str, float]:
        """By how much they change with the last bit of the image's numbers."""
        found = self(nudged(x))
        return {name: difference(value, found[name])[1] for name, value in made.items()}


class OnnxParts:
    """The parts of a dense graph.

    Args:
        runtime: where they run.
        source: what the dense graph is compared with.
        dense: the graph.
        opset: one in which both forms can be written.

    Raises:
        UsageError: the dense graph was made of another.
    """

    runtime = "onnxruntime"

    def __init__(self, runtime: Runtime, source: OnnxModel, dense: DenseOnnx, opset: int) -> None:
        self._runtime, self._dense = runtime, dense
        self._own = _read(dense.source, dense, opset)
        self._theirs = self._own if source is dense.source else _read(source, dense, opset)

    @property
    def whole(self) -> OnnxPart:
        dense = self._dense
        names = {name: name for name in dense.plan.network.outputs}
        return OnnxPart(self._runtime, dense.graph, self._own.reading, self._own.plan, names)

    def dense(self, ends: Mapping[str, str]) -> OnnxPart:
        return self._part(self._own, self._dense.options.form, ends)

    def other(self, ends: Mapping[str, str]) -> OnnxPart:
        return self._part(self._own, "dilated" if self._dense.options.form == "fragments" else "fragments", ends)

    def original(self, ends: Mapping[str, str]) -> OnnxPart:
        return self._part(self._theirs, "dilated", ends, chosen=False)

    def ops(self, image: Tensor) -> OnnxOps:
        return OnnxOps(self._runtime, self._theirs.source.graph, self._theirs.reading, image)

    def _part(self, found: OnnxConversion, form: str, ends: Mapping[str, str], *, chosen: bool = True) -> OnnxPart:
        plan = found.plan
        needed = _needed(found.source.graph, ends.values())
        missing = [key for key in ends.values() if key not in plan.steps]
        if missing:
            raise UsageError(
                f"{found.source.name}: has no tensor {missing[0]!r}: the dense network was made of another graph."
            )
        sites = {key: site for key, site in plan.network.sites.items() if key in needed or site.op is None}
        strides = plan.chosen if chosen else frozenset()
        cut = walk(Network(sites, dict(ends)), strides, padding=plan.padding, merge=plan.merge)
        keyed = replace(cut, network=Network(sites, {key: key for key in ends.values()}))
        graph = FORMS[form](found.source.copy(), found.reading, keyed).run()
        return OnnxPart(self._runtime, graph, found.reading, cut, ends)


def _read(source: OnnxModel, dense: DenseOnnx, opset: int) -> OnnxConversion:
    return OnnxConversion(at_opset(source, opset) if opset > source.opset else source, dense.options)


def _needed(model: ir.Model, keys: Iterable[str]) -> set[str]:
    """Names of all values that these depend on, themselves included."""
    producers = {str(value.name): node for node in model.graph for value in node.outputs}
    seen, stack = set[str](), list(keys)
    while stack:
        name = stack.pop()
        if name not in seen:
            seen.add(name)
            node = producers.get(name)
            stack += [str(one.name) for one in node.inputs if one is not None] if node is not None else []
    return seen
