"""Folders as timm writes them (Hugging Face-style): config.json beside model.safetensors or pytorch_model.bin.

They are data: reading one runs no code, and what config.json may set is what builds a network, never where weights
come from.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from densify.errors import CheckpointError, UsageError

CONFIG = "config.json"
WEIGHTS = ("model.safetensors", "pytorch_model.bin")  # in timm's order

_ANY_SIZE = ("dynamic_img_size", "strict_img_size", "use_naflex")  # timm's: not bound to one input size


@dataclass(frozen=True)
class Folder:
    """What a folder says of its model.

    Attributes:
        path: the folder.
        architecture: timm's name of it.
        arguments: what timm builds it with.
        metadata: timm's pretrained_cfg, of which input_size, mean and std are checked.
        weights: the file with its weights, or None.
    """

    path: Path
    architecture: str
    arguments: dict[str, object]
    metadata: Mapping[str, Any] = field(repr=False)
    weights: Path | None


def read_folder(path: Path) -> Folder:
    """Read a folder's config.json.

    Raises:
        UsageError: there is none, or it is none of timm's.
        CheckpointError: it cannot be read, or an entry is not what it has to be.
    """
    file = path / CONFIG
    config = _read(file)
    if "architecture" not in config:
        other = config.get("architectures") or config.get("model_type")
        raise UsageError(
            f"{file}: names no architecture of timm{f', but {other} of another library' if other else ''}; give the "
            "folder of a timm model, or write a factory and give it as path/to/file.py:factory with --weights FILE"
        )
    architecture = _entry(file, config, "architecture", str, "")
    metadata = _entry(file, config, "pretrained_cfg", dict, config)  # older timm wrote one flat dictionary
    weights = next((path / name for name in WEIGHTS if (path / name).is_file()), None)
    return Folder(path, architecture, _arguments(file, config, metadata), _checked(file, metadata), weights)


def _read(file: Path) -> dict[str, Any]:
    if not file.is_file():
        raise UsageError(
            f"{file.parent}: there is no {CONFIG} in this folder; a folder that names a model holds {CONFIG} and "
            f"{' or '.join(WEIGHTS)}, as timm writes them"
        )
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{file}: cannot be read as JSON ({error}); copy or download it again") from error
    if not isinstance(config, dict):
        raise CheckpointError(f"{file}: holds a {type(config).__name__}; it has to be a dictionary, as timm writes it")
    return config


def _arguments(file: Path, config: Mapping[str, Any], metadata: Mapping[str, Any]) -> dict[str, object]:
    """What timm's own loading of the folder calls the architecture with, said in full."""
    saved: dict[str, object] = _entry(file, config, "model_args", dict, {})
    classes = _entry(file, config, "num_classes", int, _entry(file, metadata, "num_classes", int, -1))
    if saved.get("num_classes", classes) != classes >= 0:
        raise CheckpointError(
            f"{file}: num_classes is {classes}, but {saved['num_classes']} in model_args; correct the wrong one"
        )
    size = _checked(file, metadata).get("input_size")
    found: dict[str, object] = {"num_classes": classes} if classes >= 0 else {}
    if size is not None:
        found["in_chans"] = size[0]
        if metadata.get("fixed_input_size") and not any(name in saved for name in _ANY_SIZE):
            found["img_size"] = list(size[1:])
    return {**found, **saved}


def _checked(file: Path, metadata: Mapping[str, Any]) -> Mapping[str, Any]:
    size = _entry(file, metadata, "input_size", list, None)
    if size is not None and (len(size) != 3 or not all(type(n) is int and n > 0 for n in size)):
        raise CheckpointError(f"{file}: input_size is {size}; it has to be [channels, height, width]")
    for name in ("mean", "std"):
        numbers = _entry(file, metadata, name, list, [])
        if not all(isinstance(n, int | float) and math.isfinite(n) for n in numbers):
            raise CheckpointError(f"{file}: {name} is {numbers}; it has to be a list of numbers")
        if name == "std" and 0 in numbers:
            raise CheckpointError(f"{file}: std is {numbers}; it divides, hence must not be 0")
    return metadata


def _entry(file: Path, entries: Mapping[str, Any], name: str, kind: type, default: Any) -> Any:
    value = entries.get(name)
    if value is None:
        return default
    if not isinstance(value, kind):
        raise CheckpointError(f"{file}: {name} is {value!r}; it has to be of type {kind.__name__}")
    return value
