"""Dense and dpoa checkpoints: save, load, and what has changed since the source."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from densify.conversion import Dense, build
from densify.errors import CheckpointError, UnsafeError, UsageError
from densify.files import check_writable, write_atomically
from densify.fit import load_into
from densify.graphs.fx.trace import same_tensors
from densify.recipe import Recipe, digest
from densify.weights import RECIPE_KEY, Weights, read_weights


def save(model: nn.Module, path: str | Path, *, recipe: Recipe | None = None, overwrite: bool = False) -> None:
    """Write a network's weights: .safetensors, or .pth as {"state_dict", "densify"}.

    Args:
        model: a dense network, or a plain model, such as :func:`densify.inverse` returns.
        path: the suffix decides the format.
        recipe: kept in the file; a dense network brings its own.
        overwrite: replace an existing file.

    Raises:
        UsageError: an existing file, an unknown suffix, or a folder that cannot be written.
    """
    target = Path(path)
    check_writable([target], overwrite)
    if target.suffix not in (".safetensors", ".pth"):
        raise UsageError(f"{target}: save writes .safetensors and .pth; densify.export writes .onnx.")
    known = model.recipe if isinstance(model, Dense) else recipe
    write_atomically(target, lambda place: write_state(model.state_dict(), place, known), overwrite=overwrite)


def write_state(state: Mapping[str, Tensor], path: Path, recipe: Recipe | None) -> None:
    """Write a state_dict to `path`, in the format of its suffix, with the recipe as JSON."""
    if path.suffix == ".pth":
        content = {"state_dict": dict(state)}
        torch.save(content | {RECIPE_KEY: recipe.to_json()} if recipe is not None else content, path)
        return
    from safetensors.torch import save_file

    metadata = {"format": "pt"} | ({RECIPE_KEY: recipe.to_json()} if recipe is not None else {})
    save_file(_separate(state), path, metadata=metadata)


def _separate(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Contiguous tensors of which no two share memory, as the format demands."""
    seen: set[int] = set()
    made = {}
    for name, tensor in state.items():
        start = tensor.untyped_storage().data_ptr()
        whole = tensor.is_contiguous() and tensor.untyped_storage().nbytes() == tensor.nbytes
        made[name] = tensor if whole and (start not in seen or not start) else tensor.clone().contiguous()
        seen.add(start)
    return made


def load(path: str | Path, *, model: nn.Module | str | None = None, trust_code: bool = False) -> nn.Module:
    """Read a file that densify wrote: a dense network, or a plain model for a dpoa file.

    Args:
        path: .safetensors, .pth or .onnx.
        model: the original, where the file cannot know it (it was given as an object): a model, whose tensors are not
            touched, or its reference.
        trust_code: run the factory that the file's recipe names.

    Raises:
        UsageError: no such file, or the file does not know its model and `model` is not given.
        UnsafeError: the recipe names a factory, and neither `trust_code` nor the same reference allows to run it.
        CheckpointError: a file that densify did not write, or that does not fit its model.
    """
    return restore(read_weights(path), model=model, trust_code=trust_code)


def recipe_of(weights: Weights) -> Recipe:
    """The recipe of a file that densify wrote.

    Raises:
        CheckpointError: densify did not write it.
    """
    if weights.recipe is None:
        raise CheckpointError(
            f"{weights.source}: it holds no densify recipe, so densify did not write it. Give a file that "
            "`densify convert` or densify.save wrote. For plain weights of a dense network, load such a file "
            "(densify.load), then the weights (load_state_dict), and write it with densify.save."
        )
    return Recipe.from_json(weights.recipe, weights.source)


def restore(weights: Weights, *, model: nn.Module | str | None = None, trust_code: bool = False) -> nn.Module:
    """The network of a file's weights and recipe; errors as for :func:`load`."""
    recipe = recipe_of(weights)
    source = original(recipe, weights, model=model, trust_code=trust_code)
    if recipe.kind == "dpoa":
        return source.eval()
    dense = build(source.eval(), recipe.options, recipe.origin)
    if dense.lattices != {name: tuple(map(tuple, axes)) for name, axes in recipe.lattices.items()}:
        raise CheckpointError(
            f"{weights.source}: its lattices are {dict(recipe.lattices)}, its model now gives {dense.lattices}. The "
            "model's code is not that of the conversion: convert the original again."
        )
    return dense


def original(
    recipe: Recipe, weights: Weights, *, model: nn.Module | str | None = None, trust_code: bool = False
) -> nn.Module:
    """The original architecture of a file, filled with the file's weights; errors as for :func:`load`."""

    from densify.reference import resolve, runs_code

    if isinstance(model, nn.Module):
        source = same_tensors(model)
        load_into(source, weights.tensors, weights.source)
        return source
    text = model if model is not None else recipe.origin.model
    if text is not None and model is None and text.lower().endswith(".onnx"):
        raise UsageError(
            f"{weights.source}: it was made from an ONNX file ({text}), so that there is no torch model of it. Read it "
            "with densify.load_onnx, or go back to that file with densify.inverse."
        )
    if text is None:
        raise UsageError(
            f"{weights.source}: it was made from a model object and does not know its class. Give the model "
            "(model= in Python, --model REFERENCE on the command line)."
        )
    if runs_code(text) and not trust_code and text != model:
        raise UnsafeError(
            f"{weights.source}: loading it runs the code of {text}. Pass --trust-code (trust_code=True) if you trust "
            "it, or give the same reference yourself with --model (model=)."
        )
    try:
        found = resolve(text, recipe.origin.arguments)
    except UsageError as error:
        raise UsageError(
            f"{weights.source}: it was made from {text}, which is not to be found from here ({error}). Say where it is "
            "now with --model (model=)."
        ) from error
    if recipe.origin.code_sha256 not in (None, found.sha256) and model is None:
        raise CheckpointError(
            f"{weights.source}: {text} is not the file that it was converted from (its SHA-256 differs). Restore that "
            "file, or give the reference yourself with --model if the change does not matter."
        )
    return found.build_with(weights)


@dataclass(frozen=True)
class Change:
    """One parameter that differs from the source.

    Attributes:
        name: its state_dict key.
        largest: largest absolute difference, or None where the source's numbers are not at hand.
        relative: `largest` over the source's largest absolute value.
    """

    name: str
    largest: float | None = None
    relative: float | None = None


def changes(recipe: Recipe, state: Mapping[str, Tensor], source: Mapping[str, Tensor] | None = None) -> list[Change]:
    """Which tensors differ from the source's, by their digests; by how much where `source` gives its numbers.

    Raises:
        CheckpointError: `source` is not what the network was converted from.
    """
    known = recipe.origin.tensors
    if source is not None:
        other = [name for name in known if name not in source or digest(source[name]) != known[name]]
        if other:
            raise CheckpointError(
                f"the given source is not what the network was converted from: {len(other)} of {len(known)} tensors "
                f"differ, {other[0]} first. Give the checkpoint that was converted."
            )
    changed = [name for name in state if name in known and digest(state[name]) != known[name]]
    return [Change(name) if source is None else _difference(name, state[name], source[name]) for name in changed]


def _difference(name: str, now: Tensor, before: Tensor) -> Change:
    largest = (now.double() - before.double()).abs().max().item()
    scale = before.double().abs().max().item()
    return Change(name, largest, largest / scale if scale else float("inf"))
