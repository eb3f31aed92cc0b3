"""Graphs in ONNX Runtime, without a file of the user's: several, of the same weights, on the same images."""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import onnx
import onnx_ir as ir
import torch
from torch import Tensor

from densify.onnx.file import OnnxSession, unmap
from densify.onnx.model import Kept
from densify.onnx.rounding import RoundingSession
from densify.steps import advancing

Outputs = dict[str, Tensor]


class Runtime:
    """Runs graphs in ONNX Runtime. Their weights lie in one file beside them, which they share.

    Args:
        name: what they are called in messages.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self._folder = TemporaryDirectory()
        self._path = Path(self._folder.name)
        self._places: dict[int, tuple[ir.TensorProtocol, int]] = {}
        self._links: dict[Path, str] = {}
        self._length = 0

    def __enter__(self) -> Runtime:
        return self

    def __exit__(self, *reason: object) -> None:
        self._folder.cleanup()

    def run(
        self, model: ir.Model, order: Sequence[int], samples: Sequence[Tensor], *, optimised: bool
    ) -> list[Outputs]:
        """The outputs of a graph by name, for images [B, C, *spatial].

        Args:
            order: dimensions of the graph's image in that order.
            optimised: with all of ONNX Runtime's graph optimisations, or none.
        """
        session = self.ready(model, optimised=optimised)
        found = []
        for x in advancing("running in ONNX Runtime", samples):
            made = zip(session.outputs, session(ordered(x, order).numpy()), strict=True)
            found.append({name: torch.from_numpy(value) for name, value in made})
        return found

    def ready(self, model: ir.Model, *, optimised: bool) -> OnnxSession:
        """A graph, ready to run."""
        return self.session(self._light(model), optimised=optimised)

    def session(self, proto: onnx.ModelProto, *, optimised: bool) -> OnnxSession:
        """A graph, ready to run; its weights are those of :meth:`initializer`."""
        return OnnxSession(self._written(proto), optimised=optimised, name=self.name)

    def rounding(self, model: ir.Model) -> RoundingSession:
        """A float16 graph, ready to run with every op's result rounded."""
        return RoundingSession(self._written(onnx.shape_inference.infer_shapes(self._light(model))))

    def _written(self, proto: onnx.ModelProto) -> Path:
        path = self._path / "model.onnx"
        path.write_bytes(proto.SerializeToString())
        return path

    def initializer(self, name: str, tensor: ir.TensorProtocol) -> onnx.TensorProto:
        """A weight for a graph that is run here; a large one lies in the shared file."""
        made = onnx.TensorProto(name=name, data_type=tensor.dtype.value, dims=tensor.shape.numpy())
        if tensor.nbytes <= _SMALL:
            made.raw_data = tensor.tobytes()
            return made
        made.data_location = onnx.TensorProto.EXTERNAL
        location, begin = self._place(tensor)
        for key, entry in (("location", location), ("offset", begin), ("length", tensor.nbytes)):
            made.external_data.add(key=key, value=str(entry))
        return made

    def _light(self, model: ir.Model) -> onnx.ModelProto:
        """The graph with its large weights in the shared file."""
        initializers = dict(model.graph.initializers)
        model.graph.initializers.clear()
        try:
            proto: onnx.ModelProto = ir.to_proto(model)
        finally:
            model.graph.initializers.update(initializers)
        for name, value in initializers.items():
            assert value.const_value is not None
            proto.graph.initializer.append(self.initializer(name, value.const_value))
        return proto

    def _linked(self, tensor: Kept) -> tuple[str, int]:
        """A weight that lies in a temporary file already, which gets a second name here."""
        source = Path(tensor.path)
        name = self._links.setdefault(source, f"weights{len(self._links)}.data")
        if not (self._path / name).exists():
            try:
                os.link(source.resolve(), self._path / name)
            except OSError:  # on another disk
                shutil.copyfile(source, self._path / name)
        return name, tensor.offset or 0

    def _place(self, tensor: ir.TensorProtocol) -> tuple[str, int]:
        """The file in which the numbers of a weight lie, and where they begin."""
        if isinstance(tensor, Kept):
            return self._linked(tensor)
        if id(tensor) not in self._places:
            begin = -(-self._length // _PAGE) * _PAGE
            with (self._path / _WEIGHTS).open("ab") as file:
                file.write(bytes(begin - self._length))
                file.write(tensor.tobytes())
                unmap(tensor)
            self._places[id(tensor)] = (tensor, begin)  # held, so that no other gets its number
            self._length = begin + tensor.nbytes
        return _WEIGHTS, self._places[id(tensor)][1]


_WEIGHTS = "weights.data"
_SMALL, _PAGE = 1024, 4096  # bytes of a weight that stays in the graph; at multiples of a page the file can be mapped


def ordered(x: Tensor, order: Sequence[int]) -> Tensor:
    """An image [B, C, *spatial] as a graph takes it.

    Args:
        order: dimensions of the graph's image in the order [B, C, *spatial].
    """
    return x.permute([order.index(dim) for dim in range(len(order))]).contiguous()


def nudged(x: Tensor) -> Tensor:
    """An image whose numbers are others by their last bit.

    What changes by it stands for a graph's own rounding error: there are no convolutions in float64 to compare with.
    """
    up = torch.rand(x.shape, generator=torch.Generator().manual_seed(0)) < 0.5
    infinity = torch.tensor(torch.inf, dtype=x.dtype)
    return torch.nextafter(x, torch.where(up, infinity, -infinity))


def plain(x: Tensor, order: Sequence[int], count: int) -> Tensor:
    """A graph's tensor as [B, C, *spatial]; vectors gain spatial axes of size 1.

    Args:
        order: its dimensions in that order.
        count: of spatial axes.
    """
    if x.dim() == 2 and count:
        return x.reshape(*x.shape, *[1] * count)
    return x.permute(*order) if len(order) == x.dim() else x
