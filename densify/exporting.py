"""Export of dense networks and plain models to ONNX, for a target."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor, fx, nn

from densify.comparison import evaluating, named_outputs
from densify.conversion import Dense, blank, build
from densify.errors import ConversionError, TargetError, UsageError
from densify.files import check_writable, write_atomically
from densify.graphs.fx.guards import guard
from densify.graphs.fx.trace import same_tensors, trace
from densify.onnx.export import ExportResult, export_onnx
from densify.onnx.metadata import Axes, of_original, placement
from densify.recipe import Recipe
from densify.steps import working
from densify.targets import Target, find
from densify.weights import RECIPE_KEY


def export(
    model: nn.Module,
    path: str | Path,
    example: Tensor | Sequence[int] | None = None,
    *,
    target: str = "ort",
    opset: int | None = None,
    static: bool = False,
    half: bool = False,
    recipe: Recipe | None = None,
    overwrite: bool = False,
) -> ExportResult:
    """Write a dense network or a plain model to one ONNX file, dynamic in batch and size wherever the model allows.

    Weights past 2 GiB lie in a second file beside it, `path`.data, found by its relative name.

    The file is checked for its names and weights before it takes its place; compare its numbers with
    :func:`densify.verification.verify_onnx`.

    Args:
        model: exported as it is in eval mode.
        path: of the file.
        example: a legal input [B, C, *spatial] or its shape; a dense network knows its own.
        target: the runtime that it is written for, "ort", "openvino", "tensorrt" or "portable" (docs/targets.md). It
            decides how max pooling is written, and the form: "portable" writes the fragments form of any dense network.
        opset: the ONNX opset; default the target's.
        static: fix batch and size to the example's, for runtimes that want it: every shape in the file is known.
        half: bring a float32 network to float16: weights, input and outputs. Sizes are still computed exactly.
        recipe: kept in the file's metadata; a dense network brings its own.
        overwrite: replace an existing file.

    Raises:
        UsageError: no example for a plain model, an unknown target, an opset that cannot be produced or that the
            target does not read, or a file that cannot be written.
        ConversionError: the model cannot be exported, it holds what the target refuses, or weights or constants that
            float16 cannot hold.
    """
    runtime = find(target)
    known = model.recipe if isinstance(model, Dense) else recipe
    shape = known.options.shape if example is None and known is not None else example
    if shape is None:
        raise UsageError("a plain model needs an example (or its shape) to be exported: densify.export(..., example=).")
    file, results = Path(path), []
    check_writable([file], overwrite)
    if file.suffix != ".onnx":
        raise UsageError(f"{file}: export writes .onnx; densify.save writes .safetensors and .pth.")

    def write(place: Path) -> None:
        settings: dict[str, Any] = {"opset": opset, "recipe": known, "static": static, "half": half}
        results.append(write_network(model, place, shape, target=runtime, **settings))

    write_atomically(file, write, overwrite=overwrite)
    beside = [file.resolve().with_name(one.name) for one in results[0].files[1:]]
    return replace(results[0], files=(file, *beside))


def write_network(
    model: nn.Module,
    path: Path,
    example: Tensor | Sequence[int],
    *,
    target: Target,
    opset: int | None,
    recipe: Recipe | None,
    static: bool = False,
    half: bool = False,
) -> ExportResult:
    """Write to `path` itself; the outputs get the names that `lattices` has. Arguments and errors as :func:`export`.

    Where the target takes the fragments form alone, or refuses the form that a dense network has, its fragments form is
    written, from the same tensors.
    """
    network = model if target.form is None else _in_fragments(model, target)
    settings: dict[str, Any] = {"target": target, "opset": opset, "recipe": recipe, "static": static, "half": half}
    try:
        return _write(network, path, example, **settings)
    except TargetError as refused:
        if not isinstance(network, Dense) or network.options.form == "fragments" or network.options.padding != "full":
            raise
        try:
            return _write(_in_fragments(network, target), path, example, **settings)
        except TargetError:
            raise refused from None


def _in_fragments(model: nn.Module, target: Target) -> nn.Module:
    """A dense network in the fragments form, with the same tensors; others as they are.

    Raises:
        UsageError: its padding allows no such form.
    """
    if not isinstance(model, Dense) or model.options.form == "fragments":
        return model
    if model.options.padding != "full":
        raise UsageError(
            f'the target "{target.name}" takes the fragments form, which padding="{model.options.padding}" does not '
            'have: convert with padding="full", or write for another target.'
        )
    return build(same_tensors(model.source), replace(model.options, form="fragments"), model.origin)


def _write(
    model: nn.Module,
    path: Path,
    example: Tensor | Sequence[int],
    *,
    target: Target,
    opset: int | None,
    recipe: Recipe | None,
    static: bool,
    half: bool,
) -> ExportResult:
    tensor = example if isinstance(example, Tensor) else blank(model, example)
    ranks = _ranks(model, tensor)
    with working("exporting"):
        return export_onnx(
            model,
            path,
            tensor,
            target=target,
            opset=opset,
            metadata={} if recipe is None else _metadata(model, recipe, ranks),
            output_names=list(ranks),
            any_size=not _decides(model, tensor),
            static=static,
            half=half,
        )


def _ranks(model: nn.Module, example: Tensor) -> dict[str, int]:
    """The outputs by the names that `lattices` has, and how many axes each has."""
    if isinstance(model, Dense):
        return {name: 2 + len(axes) for name, axes in model.lattices.items()}
    with evaluating(model):
        return {name: value.dim() for name, value in named_outputs(model(example))}


def _metadata(model: nn.Module, recipe: Recipe, ranks: Mapping[str, int]) -> dict[str, str]:
    """The recipe, and where the predictions lie; not of an original's, where the dense head makes something else."""
    places: tuple[Axes, Axes] = recipe.lattices, recipe.positions
    if not isinstance(model, Dense):
        places = of_original(*places) if recipe.options.head == "dense" else ({}, {})
    origin = recipe.origin
    return {RECIPE_KEY: recipe.to_json(), **placement(*places, ranks, mean=origin.mean, std=origin.std)}


def _decides(model: nn.Module, example: Tensor) -> bool:
    """Whether the model's program decides something by the example: an ONNX graph has nothing to hold others to it."""
    if isinstance(model, Dense):
        graph = model.graphs[False]
    else:
        try:
            graph = trace(model, example, training=False)
        except ConversionError:  # then torch.export is on its own, and reports the bounds that it finds
            return False
    return isinstance(graph, fx.Graph) and any(node.target is guard for node in graph.nodes)
