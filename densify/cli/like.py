"""`densify convert --like`: the choices of a file that densify wrote, once more."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from densify.checkpoint import recipe_of
from densify.cli.models import read_file
from densify.errors import CheckpointError, ConversionError, UsageError
from densify.onnx.file import read_metadata
from densify.recipe import Recipe
from densify.weights import RECIPE_KEY

REWRITING = ("padding", "head", "form", "merge")


def recipe_in(path: Path) -> Recipe:
    """What a file that densify wrote says of its conversion.

    Raises:
        UsageError: there is no such file, or it is none that densify writes.
        CheckpointError: densify did not write it, or it is damaged.
    """
    if path.suffix.lower() != ".onnx":
        return recipe_of(read_file(path))
    if not path.is_file():
        raise UsageError(f"{path}: there is no such file; --like takes one that `densify convert` wrote")
    text = read_metadata(path).get(RECIPE_KEY)
    if text is None:
        raise CheckpointError(f"{path}: it holds no densify recipe; --like takes a file that `densify convert` wrote")
    return Recipe.from_json(text, str(path))


def rewriting_of(recipe: Recipe, given: Mapping[str, str], explicit: Collection[str]) -> dict[str, str]:
    """How to convert: as the recipe says, and where the user says otherwise, so.

    Args:
        given: the values of this command's options.
        explicit: names of those that the user gave.
    """
    return {name: given[name] if name in explicit else getattr(recipe.options, name) for name in REWRITING}


@contextmanager
def fitting(like: Path | None, model: str) -> Iterator[None]:
    """Errors of a conversion say whose choices they are about.

    Raises:
        UsageError, ConversionError: as the conversion raises them.
    """
    try:
        yield
    except (UsageError, ConversionError) as error:
        if like is None:
            raise
        kind = UsageError if isinstance(error, UsageError) else ConversionError
        raise kind(
            f"{like}: its choices do not fit {model}: {error}\nGive the choices themselves instead of --like"
        ) from error
