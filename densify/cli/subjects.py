"""The networks that a command compares, as the user names them: files that densify wrote, and originals."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import nn

from densify.cli.models import Asked, input_size, is_file, restored
from densify.cli.options import Voice


@dataclass(frozen=True)
class Subject:
    """One network.

    Attributes:
        text: as the user gave it.
        model: the network in torch, in eval mode.
        size: reference size (C, spatial ...).
        mean, std: preprocessing.
        recipe: what its file says of itself, as JSON; an original has none.
    """

    text: str
    model: nn.Module
    size: tuple[int, ...]
    mean: tuple[float, ...] | None
    std: tuple[float, ...] | None
    recipe: str | None = None

    @property
    def onnx(self) -> Path | None:
        """The ONNX file that the network was read from."""
        return Path(self.text) if self.text.lower().endswith(".onnx") else None


@dataclass(frozen=True)
class Reading:
    """How networks are read.

    Attributes:
        asked: the originals among them, by their texts.
        model: the reference of files that do not know theirs.
        trust: whether the code that files name may run.
        size: the reference size, where the user gives it.
    """

    asked: dict[str, Asked]
    model: str | None
    trust: bool
    size: tuple[int, ...] | None
    voice: Voice

    def subjects(self, texts: Sequence[str]) -> list[Subject]:
        """Files first, then originals; errors as `restored` and :meth:`densify.cli.models.Asked.build`."""
        trusted = self.model or next(iter(self.asked), None)
        files = [self._file(text, trusted) for text in texts if is_file(text)]
        known = self.size or (files[0].size if files else None)
        return [*files, *(self._original(one, known) for one in self.asked.values())]

    def _file(self, path: str, reference: str | None) -> Subject:
        self.voice.say(f"reading {path}")
        network, recipe, said = restored(path, reference, self.trust)
        return Subject(path, network, recipe.options.shape[1:], recipe.origin.mean, recipe.origin.std, said)

    def _original(self, asked: Asked, size: tuple[int, ...] | None) -> Subject:
        found = asked.resolve()
        network = asked.build(found, self.voice)
        return Subject(asked.model, network, input_size(size, found), found.mean, found.std)
