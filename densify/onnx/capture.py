"""Capturing a torch model as an exported program, with as many axes of its input dynamic as it allows."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from densify.errors import ConversionError
from densify.onnx.metadata import axis_names


def capture(model: nn.Module, example: Tensor, any_size: bool, static: bool) -> ExportedProgram:
    """The model as an exported program, with as many dynamic axes as it allows, or with none.

    torch.export binds an axis of size 1 to that size, so a single example is doubled; a model that binds the batch
    all the same, or cannot take two, gets the example as it is.
    """
    example = example.detach()
    doubled = example if example.shape[0] > 1 else torch.cat([example, example])
    every = frozenset(axis for axis, name in enumerate(axis_names(example.dim())) if name and (any_size or axis < 2))
    attempts = [(doubled, every), (example, every - {0}), (doubled, frozenset({0})), (example, frozenset())]
    reason: Exception | None = None
    for tensor, axes in attempts[-1:] if static else attempts:
        try:
            program = _trace(model, tensor, axes)
        except Exception as error:  # torch.export lets errors of many kinds through, the model's own among them
            reason = reason or error
            continue
        if tensor is example or not isinstance(input_shape(program)[0], int):
            return program
    raise ConversionError(
        f"the model cannot be exported: {summary(reason)}. ONNX export needs a model that torch.export accepts."
    )


def _trace(model: nn.Module, example: Tensor, axes: frozenset[int]) -> ExportedProgram:
    """torch.export with these axes dynamic, less those that the model turns out to bind to the example's size."""
    while True:
        program = torch.export.export(model, (example,), dynamic_shapes=(dict.fromkeys(axes, Dim.AUTO),))
        # A bound axis keeps its symbol in the graph's shapes, so that it looks dynamic there: export it as fixed.
        bound = {axis for axis in axes if isinstance(input_shape(program)[axis], int)}
        if not bound:
            return program
        axes -= bound


def input_shape(program: ExportedProgram) -> list[int | torch.SymInt]:
    """The input's sizes: symbolic where any size will do."""
    name = program.graph_signature.user_inputs[0]
    shape = next(node.meta["val"].shape for node in program.graph.nodes if node.name == name)
    known = [size if isinstance(size, int) else size.node.maybe_as_int() for size in shape]
    return [size if number is None else number for size, number in zip(shape, known, strict=True)]


def summary(error: BaseException | None) -> str:
    """The first line that says something, without its final full stop."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines or [type(error).__name__])[0].rstrip(".")[:300]
