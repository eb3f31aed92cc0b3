"""What a shell may complete, found without importing the libraries that it is about."""

from __future__ import annotations

import re
from importlib.util import find_spec
from pathlib import Path

_PREFIX = "torchvision:"
_FOLDERS = (".", "segmentation", "video")
_BUILDER = re.compile(r"^@register_model\(\)\n(?:[@ )].*\n)*def (\w+)", re.MULTILINE)


def models(incomplete: str) -> list[str]:
    """References to torchvision's models; none before a letter is typed, so that the shell offers files."""
    if not incomplete or not (incomplete.startswith(_PREFIX) or _PREFIX.startswith(incomplete)):
        return []
    return [f"{_PREFIX}{name}" for name in torchvision_names()]


def torchvision_names() -> list[str]:
    """The networks for classification, segmentation and video that torchvision's source registers."""
    spec = find_spec("torchvision")
    roots = [] if spec is None else [Path(place) / "models" for place in spec.submodule_search_locations or ()]
    files = [file for root in roots for folder in _FOLDERS for file in (root / folder).glob("*.py")]
    return sorted(name for file in files for name in _BUILDER.findall(file.read_text("utf-8")))
