"""The nodes of an ONNX graph by themselves."""

from __future__ import annotations

from collections.abc import Mapping

import onnx_ir as ir
import torch
from torch import Tensor

from densify.graphs.onnx.image import image_of
from densify.graphs.onnx.part import part
from densify.graphs.onnx.read import Reading
from densify.graphs.onnx.values import Values
from densify.maps import Layout
from densify.onnx.file import OnnxSession
from densify.onnx.runtime import Runtime
from densify.ops import Transposed
from densify.shifts import Kernel


class OnnxOps:
    """:class:`densify.shifts.Ops` of an ONNX graph: its own nodes in ONNX Runtime, without optimisations.

    Args:
        runtime: where they run.
        model: the graph.
        reading: what it was read as.
        image: [B, C, *spatial].
    """

    def __init__(self, runtime: Runtime, model: ir.Model, reading: Reading, image: Tensor) -> None:
        self.runtime, self.model, self.reading = runtime, model, reading
        shape = [image.shape[reading.order.index(dim)] for dim in range(image.dim())]
        self.known = Values(model, image_of(model)).at(shape)
        self.producers = {str(value.name): node for node in model.graph for value in node.outputs}
        self._sessions: dict[tuple[str, ...], OnnxSession] = {}

    def sizes(self, key: str) -> tuple[int, ...]:
        """The spatial sizes of what a node makes."""
        shape = self.known[key].shape
        assert shape is not None
        return tuple(shape[dim] for dim in self.reading.places[key].order[2:])

    def run(self, key: str, given: Mapping[str, Tensor]) -> Tensor:
        """What a node makes of these tensors, [B, C, *spatial] like them."""
        own = {name: self._own(name, x) for name, x in given.items()}
        made, place = self._run(key, own), self.reading.places[key]
        return made.permute(*place.order) if self._is_map(key, made) else made

    def kernel(self, key: str, given: Mapping[str, Tensor]) -> Kernel:
        """What a transposed convolution computes with."""
        node, op = self.producers[key], self.reading.network.sites[key].op
        assert isinstance(op, Transposed)
        weight, *bias = [self._run(str(one.name), {}) for one in node.inputs[1:] if one is not None]
        return Kernel(weight, bias[0] if bias else None, node.attributes.get_int("group", 1), op.extra)

    def _own(self, name: str, x: Tensor) -> Tensor:
        """A tensor in the graph's own order of dimensions."""
        order = self.reading.places[name].order
        return x.permute([order.index(dim) for dim in range(x.dim())]) if self._is_map(name, x) else x

    def _is_map(self, name: str, x: Tensor) -> bool:
        place = self.reading.places[name]
        return place.layout is Layout.MAP and len(place.order) == x.dim()

    def _run(self, name: str, given: Mapping[str, Tensor]) -> Tensor:
        """A value of the graph, where these are others; all else follows from sizes and weights."""
        key = (name, *sorted(given))
        if key not in self._sessions:
            self._sessions[key] = self.runtime.session(
                part(self.model, [name], list(given), self.known, self.runtime.initializer), optimised=False
            )
        session = self._sessions[key]
        (made,) = session(*(given[one].contiguous().numpy() for one in session.inputs))
        return torch.from_numpy(made)
