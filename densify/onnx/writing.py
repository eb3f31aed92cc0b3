"""Dense ONNX graphs as files."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from densify.errors import UsageError
from densify.files import check_writable, write_atomically
from densify.maps import Layout
from densify.onnx.conversion import DenseOnnx, build_for
from densify.onnx.export import ExportResult
from densify.onnx.metadata import Axes, axis_names, of_original, placement
from densify.onnx.model import ORIGINAL_KEY, OnnxModel, write_checked
from densify.onnx.packing import packed
from densify.targets import find, opset_for
from densify.weights import RECIPE_KEY


def metadata_of(dense: DenseOnnx) -> dict[str, str]:
    """What a file of a dense network says: its recipe, where its predictions lie, and the graph to go back to."""
    recipe = dense.recipe
    spatial = 0 if dense.options.head == "average" else len(dense.options.shape) - 2
    where = _placed(dense, recipe.lattices, recipe.positions, dict.fromkeys(dense.lattices, 2 + spatial))
    about = {RECIPE_KEY: recipe.to_json(), ORIGINAL_KEY: packed(dense.source.base, dense.graph)}
    return {**dense.source.metadata, **about, **where}


def metadata_of_original(dense: DenseOnnx) -> dict[str, str]:
    """What a file of the original with a dense network's weights says."""
    recipe = dense.recipe
    about = {**dense.source.metadata, RECIPE_KEY: recipe.of_kind("dpoa").to_json()}
    if dense.options.head != "dense":  # the original has other outputs
        return about
    places = dense.reading.places
    ranks = {name: 2 + len(axes) if places[name].layout is Layout.MAP else 2 for name, axes in recipe.lattices.items()}
    return about | _placed(dense, *of_original(recipe.lattices, recipe.positions), ranks)


def _placed(dense: DenseOnnx, lattices: Axes, positions: Axes, ranks: Mapping[str, int]) -> dict[str, str]:
    places = {name: dense.reading.places[key] for name, key in dense.plan.network.outputs.items()}
    return placement(
        lattices,
        positions,
        ranks,
        orders={name: place.order for name, place in places.items() if place.layout is Layout.MAP},
        mean=dense.origin.mean,
        std=dense.origin.std,
        at=dense.options.shape[2:] if dense.plan.follows_size else None,
    )


def save_graph(graph: DenseOnnx | OnnxModel, path: Path, *, overwrite: bool) -> tuple[Path, ...]:
    """Write a graph, read it back with ONNX's checker, and only then let it take its place.

    Returns:
        The file, and that of its weights where they pass 2 GiB.

    Raises:
        UsageError: it is not to be an .onnx file, or cannot be written there.
    """
    check_writable([path], overwrite)
    if path.suffix.lower() != ".onnx":
        raise UsageError(f"{path}: a graph is written as .onnx.")
    if isinstance(graph, DenseOnnx):
        graph.graph.metadata_props.update(metadata_of(graph))
    written: list[Path] = []
    write_atomically(path, lambda place: written.extend(write_checked(graph.graph, place)), overwrite=overwrite)
    return (path, *(path.resolve().with_name(file.name) for file in written[1:]))


def export_graph(
    dense: DenseOnnx,
    path: Path,
    *,
    target: str = "ort",
    opset: int | None = None,
    static: bool = False,
    half: bool = False,
    overwrite: bool = False,
) -> ExportResult:
    """Write a dense graph for a target; arguments and errors as :func:`densify.export`.

    The opset is the graph's own where none is asked for; in a file in float16 the original to go back to is in float16.
    """
    runtime = find(target)
    if opset is not None:
        opset_for(runtime, opset)
    made = build_for(dense.source, dense.options, dense.origin, runtime, opset=opset, static=static, half=half)
    files = save_graph(made, path, overwrite=overwrite)
    sizes = OnnxModel(made.graph, path.name).declared()
    order = made.reading.order
    names = {axis_names(len(order))[place]: sizes[dim] if sizes else None for place, dim in enumerate(order)}
    return ExportResult(
        files=files,
        opset=made.opset,
        target=target,
        form=made.options.form,
        outputs=tuple(str(value.name) for value in made.graph.graph.outputs),
        dynamic={name: (1, None) for name, size in names.items() if name is not None and size is None},
        fixed={name: size for name, size in names.items() if name is not None and size is not None},
        weights=tuple(made.graph.graph.initializers),
    )
