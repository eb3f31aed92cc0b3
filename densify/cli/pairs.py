"""Two networks to show side by side, and the image: from what the user names."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from densify.cli.models import dtype_of
from densify.cli.options import Voice
from densify.cli.subjects import Reading
from densify.conversion import Dense
from densify.errors import UsageError
from densify.onnx.conversion import opened
from densify.onnx.model import OnnxModel, reference_shape
from densify.pictures.answers import Network
from densify.samples import Sample, read_samples


@dataclass(frozen=True)
class Pair:
    """Two networks.

    Attributes:
        original: None for the dense network's own.
        dense: or, of two of one kind, the second.
        heading: which they are.
        size: of an image at the reference, (C, spatial ...).
        mean, std: preprocessing.
        dtype: that they compute in.
    """

    original: Network | None
    dense: Network
    heading: str
    size: tuple[int, ...]
    mean: tuple[float, ...] | None
    std: tuple[float, ...] | None
    dtype: torch.dtype

    def read_image(self, path: Path, mean: tuple[float, ...] | None, std: tuple[float, ...] | None) -> Sample:
        """The one image of a file.

        Raises:
            UsageError: it holds several; else as :func:`densify.samples.read_samples`.
        """
        found = read_samples([path], self.size, mean, std, self.dtype)
        if len(found) > 1 or found[0].tensor.shape[0] != 1:
            count = sum(sample.tensor.shape[0] for sample in found)
            raise UsageError(f"{path}: holds {count} images; a picture is of one: save it as an .npy file of its own")
        return found[0]


def of_modules(texts: Sequence[str], reading: Reading) -> Pair:
    """Networks in torch; errors as :meth:`densify.cli.subjects.Reading.subjects`.

    Raises:
        UsageError: an original alone.
    """
    subjects = {subject.text: subject for subject in reading.subjects(texts)}
    given = [subjects[text] for text in texts]
    dense = next((one for one in given if isinstance(one.model, Dense)), given[-1])
    original = next((one for one in given if one is not dense), None)
    if original is None and not isinstance(dense.model, Dense):
        raise UsageError(f"{texts[0]}: is an original; name the dense file, or another original, to compare with")
    return Pair(
        None if original is None else original.model, dense.model, _heading(texts), reading.size or dense.size,
        dense.mean, dense.std, dtype_of(dense.model),
    )  # fmt: skip


def of_graphs(texts: Sequence[str], size: tuple[int, ...] | None, voice: Voice) -> Pair:
    """ONNX files as graphs; errors as :meth:`densify.OnnxModel.load`.

    Raises:
        UsageError: a torch network among them, or an original alone.
    """
    from densify.cli.graphs import as_precise

    given: list[OnnxModel] = []
    for text in texts:
        if not text.lower().endswith(".onnx"):
            raise UsageError(f"{text}: an ONNX file is compared with an ONNX file; name one")
        voice.say(f"reading {text}")
        given.append(OnnxModel.load(text))
    graphs = [opened(file) if file.is_dense else file for file in given]
    dense = next((one for one in graphs if not isinstance(one, OnnxModel)), graphs[-1])
    original = next((one for one in graphs if one is not dense), None)
    if isinstance(dense, OnnxModel):
        if original is None:
            raise UsageError(f"{texts[0]}: is an original; name the dense file, or another original, to compare with")
        recipe = dense.recipe
        mean, std = (None, None) if recipe is None else (recipe.origin.mean, recipe.origin.std)
        shape = reference_shape(dense, size)
        return Pair(original, dense, _heading(texts), shape[1:], mean, std, dense.dtype)
    if isinstance(original, OnnxModel):
        original = as_precise(original, dense, voice)
    shape, origin = dense.options.shape, dense.origin
    return Pair(original, dense, _heading(texts), shape[1:], origin.mean, origin.std, dense.source.dtype)


def _heading(texts: Sequence[str]) -> str:
    names = [Path(text).name for text in texts]
    return " and ".join(names) if len(names) > 1 else f"{names[0]} and its own original"
