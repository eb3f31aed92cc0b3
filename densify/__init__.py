"""Turn a trained strided CNN into an equivalent dense-prediction CNN, and back.

Importing this package does not import torch; the names below are loaded when they are first used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from densify.checkpoint import load, save
    from densify.conversion import Dense, convert, inspect, inverse, plan
    from densify.errors import DensifyError
    from densify.exporting import export
    from densify.extending import pointwise, rule, sliding_window
    from densify.lattice import Lattice
    from densify.verification import verify

_HOMES = {
    "Dense": "conversion",
    "DensifyError": "errors",
    "Lattice": "lattice",
    "convert": "conversion",
    "export": "exporting",
    "inspect": "conversion",
    "inverse": "conversion",
    "load": "checkpoint",
    "plan": "conversion",
    "pointwise": "extending",
    "rule": "extending",
    "save": "checkpoint",
    "sliding_window": "extending",
    "verify": "verification",
}

__all__ = [
    "Dense",
    "DensifyError",
    "Lattice",
    "convert",
    "export",
    "inspect",
    "inverse",
    "load",
    "plan",
    "pointwise",
    "rule",
    "save",
    "sliding_window",
    "verify",
]


def __dir__() -> list[str]:
    return __all__


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'densify' has no attribute {name!r}")
    return getattr(import_module(f"densify.{_HOMES[name]}"), name)
