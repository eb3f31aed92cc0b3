"""The layers of ONNX graphs in ONNX Runtime, for :mod:`densify.layerwise`."""

from __future__ import annotations

from collections.abc import Sequence

import onnx_ir as ir
from torch import Tensor

from densify.comparison import difference
from densify.graphs.onnx.read import Reading
from densify.layerwise import comparable, phases_in_space
from densify.merge_laws import Merges
from densify.onnx.conversion import DenseOnnx
from densify.onnx.model import copied
from densify.onnx.runtime import Runtime, nudged, plain


class OnnxLayers:
    """:class:`densify.layerwise.Layers` of a dense graph.

    Args:
        runtime: where graphs run.
        source: the original.
        reference: what the dense graph must agree with on its grid: the original, or that with its head as
            convolutions.
        dense: the graph that is checked.
        other: the same in the other form, where that exists.
        merges: the parts around merges, where there are any.
    """

    def __init__(
        self,
        runtime: Runtime,
        source: ir.Model,
        reference: ir.Model,
        dense: DenseOnnx,
        other: ir.Model | None,
        merges: Merges | None,
    ) -> None:
        self.plan, self._runtime, self._dense = dense.plan, runtime, dense
        self._source, self._reference, self._other, self._merges = source, reference, other, merges
        self._keys = comparable(dense.plan)

    def itself(self, x: Tensor, runtime: str) -> dict[str, Tensor]:
        return self._made(self._source, x, optimised=False)

    def original(self, x: Tensor, runtime: str) -> dict[str, Tensor]:
        return self._made(self._reference, x, optimised=False)

    convolutional = original

    def dense(self, x: Tensor, runtime: str) -> dict[str, Tensor]:
        return self._made(self._dense.graph, x, optimised="no optimisations" not in runtime)

    def other(self, x: Tensor, runtime: str) -> dict[str, Tensor]:
        return {} if self._other is None else self._made(self._other, x, optimised=True)

    def behind(self, x: Tensor, runtime: str) -> dict[str, Tensor]:
        return {} if self._merges is None else self._merges.tensors(x)

    def rounding(self, x: Tensor) -> dict[str, float]:
        """By how much the original's layers change with the last bit of the image's numbers."""
        made, other = (self.original(image, "") for image in (x, nudged(x)))
        return {key: difference(value, other[key])[1] for key, value in made.items()}

    def _made(self, graph: ir.Model, x: Tensor, *, optimised: bool) -> dict[str, Tensor]:
        reading, names = self._dense.reading, {str(one.name) for node in graph.graph for one in node.outputs}
        keys = [key for key in self._keys if key in names]
        (made,) = self._runtime.run(_showing(graph, keys, reading), reading.order, [x], optimised=optimised)
        found = {}
        for key in keys:
            one = self.plan.steps[key].map
            value = phases_in_space(plain(made[key], reading.places[key].order, len(one.axes)), one, len(x))
            if value is not None:
                found[key] = value
        return found


def _showing(model: ir.Model, keys: Sequence[str], reading: Reading) -> ir.Model:
    """A graph that returns these values too."""
    made = copied(model)
    shown = {str(value.name) for value in made.graph.outputs}
    values = {str(value.name): value for node in made.graph for value in node.outputs}
    for key in keys:
        if key not in shown:
            values[key].dtype = reading.known[key].dtype
            made.graph.outputs.append(values[key])
    return made
