"""What a file that densify wrote says of itself: enough to build, verify and go back without anything else."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import numpy as np
import torch
from torch import Tensor

from densify.choose import Choice
from densify.errors import CheckpointError

FORMAT = 1
KINDS = ("dense", "dpoa")


@dataclass(frozen=True)
class Origin:
    """Where a model came from.

    Attributes:
        model: its reference, such as "torchvision:vgg16"; None for a model that was given as an object.
        arguments: what its factory was called with.
        code_sha256: of a factory file.
        mean, std: preprocessing per channel, in units of [0, 1].
        tensors: SHA-256 of every source tensor, by state_dict key.
    """

    model: str | None = None
    arguments: Mapping[str, Any] = field(default_factory=dict)
    code_sha256: str | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    tensors: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Options:
    """How a model was converted: all that is needed to do it again.

    Attributes:
        shape: of the example, [B, C, *spatial]: the reference size.
        choice: which strides go.
        padding, head, form, merge: as for :func:`densify.convert`.
    """

    shape: tuple[int, ...]
    choice: Choice
    padding: str = "full"
    head: str = "dense"
    form: str = "dilated"
    merge: str = "select"


@dataclass(frozen=True)
class Recipe:
    """Everything about a dense network or a dpoa but its numbers.

    Attributes:
        kind: "dense", or "dpoa" for the original architecture with a dense network's parameters.
        origin, options: of the conversion.
        chosen: names of the layers whose strides were removed.
        lattices: per output and spatial axis, (eST, offset).
        positions: per output and spatial axis, (step, first centre, receptive field) in input pixels.
    """

    kind: str
    origin: Origin
    options: Options
    chosen: tuple[str, ...]
    lattices: Mapping[str, tuple[tuple[int, int], ...]]
    positions: Mapping[str, tuple[tuple[Any, ...], ...]]

    def of_kind(self, kind: str) -> Recipe:
        return replace(self, kind=kind)

    def to_json(self) -> str:
        """One line of JSON."""
        content = asdict(self)
        names = ("densify", "torch", "torchvision", "timm", "onnx")
        return json.dumps({"format": FORMAT, **content, "versions": {name: _version(name) for name in names}})

    @staticmethod
    def from_json(text: str, source: str) -> Recipe:
        """Read a recipe back; `source` is the file's name, for messages.

        Raises:
            CheckpointError: it is no recipe, or one of a later densify.
        """
        try:
            content = json.loads(text)
            made = content["format"]
        except (ValueError, KeyError, TypeError) as error:
            raise CheckpointError(f"{source}: its densify recipe cannot be read ({error}).") from error
        if made != FORMAT:
            raise CheckpointError(
                f"{source}: its recipe has format {made}, this densify reads {FORMAT}. Update densify."
            )
        try:
            return _read(content)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise CheckpointError(f"{source}: its densify recipe lacks something ({error!r}).") from error


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:  # densify run from its sources, or a library that is not there
        return "none"


def _read(content: dict[str, Any]) -> Recipe:
    origin, options = content["origin"], content["options"]
    choice = options["choice"]
    if content["kind"] not in KINDS:
        raise ValueError(f"kind {content['kind']!r}")
    return Recipe(
        kind=content["kind"],
        origin=Origin(
            origin["model"],
            origin["arguments"],
            origin["code_sha256"],
            None if origin["mean"] is None else tuple(origin["mean"]),
            None if origin["std"] is None else tuple(origin["std"]),
            origin["tensors"],
        ),
        options=Options(
            tuple(int(size) for size in options["shape"]),
            Choice(
                choice["start"], None if choice["layers"] is None else tuple(choice["layers"]), choice["output_stride"]
            ),
            options["padding"],
            options["head"],
            options["form"],
            options["merge"],
        ),
        chosen=tuple(content["chosen"]),
        lattices=_nested(content["lattices"]),
        positions=_nested(content["positions"]),
    )


def _nested(entries: dict[str, Any]) -> dict[str, tuple[tuple[Any, ...], ...]]:
    return {name: tuple(tuple(axis) for axis in axes) for name, axes in entries.items()}


def digests(state: Mapping[str, Tensor]) -> dict[str, str]:
    """SHA-256 of every tensor's numbers; tensors on the meta device have none and are left out."""
    return {name: digest(tensor) for name, tensor in state.items() if not tensor.is_meta}


def digest(tensor: Tensor) -> str:
    """SHA-256 of one tensor's numbers, in row-major order."""
    flat = tensor.detach().cpu().contiguous().reshape(-1)
    return digest_of(flat.view(torch.uint8).numpy())


def digest_of(data: np.ndarray) -> str:
    """SHA-256 of bytes."""
    return hashlib.sha256(data.data).hexdigest()
