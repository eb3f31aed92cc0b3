"""Turn a trained strided CNN into an equivalent dense-prediction CNN, and back.

Importing this package does not import torch; the names below are loaded when they are first used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from densify import symmetry
    from densify.augmentation import DihedralTTA
    from densify.checkpoint import load
    from densify.conversion import Dense
    from densify.errors import DensifyError
    from densify.extending import pointwise, rule, sliding_window
    from densify.front import choices, convert, export, inspect, inverse, load_onnx, plan, save, verify
    from densify.lattice import Lattice
    from densify.layers.invariant import InvariantConv2d
    from densify.layers.scale import ScaleInvariantConv2d
    from densify.layers.symmetric import SymmetricLinear
    from densify.layers.symmetric_conv import SymmetricConv1d, SymmetricConv2d, SymmetricConv3d
    from densify.metrics import invariance_scores
    from densify.onnx.conversion import DenseOnnx
    from densify.onnx.model import OnnxModel
    from densify.pictures.comparing import Comparison, compare
    from densify.pictures.reporting import report

_PACKAGES = ("symmetry",)

_HOMES = {
    "Comparison": "pictures.comparing",
    "Dense": "conversion",
    "DenseOnnx": "onnx.conversion",
    "DensifyError": "errors",
    "DihedralTTA": "augmentation",
    "InvariantConv2d": "layers.invariant",
    "Lattice": "lattice",
    "OnnxModel": "onnx.model",
    "ScaleInvariantConv2d": "layers.scale",
    "SymmetricConv1d": "layers.symmetric_conv",
    "SymmetricConv2d": "layers.symmetric_conv",
    "SymmetricConv3d": "layers.symmetric_conv",
    "SymmetricLinear": "layers.symmetric",
    "choices": "front",
    "compare": "pictures.comparing",
    "convert": "front",
    "export": "front",
    "inspect": "front",
    "invariance_scores": "metrics",
    "inverse": "front",
    "load": "checkpoint",
    "load_onnx": "front",
    "plan": "front",
    "pointwise": "extending",
    "report": "pictures.reporting",
    "rule": "extending",
    "save": "front",
    "sliding_window": "extending",
    "verify": "front",
}

__all__ = [
    "Comparison",
    "Dense",
    "DenseOnnx",
    "DensifyError",
    "DihedralTTA",
    "InvariantConv2d",
    "Lattice",
    "OnnxModel",
    "ScaleInvariantConv2d",
    "SymmetricConv1d",
    "SymmetricConv2d",
    "SymmetricConv3d",
    "SymmetricLinear",
    "choices",
    "compare",
    "convert",
    "export",
    "inspect",
    "invariance_scores",
    "inverse",
    "load",
    "load_onnx",
    "plan",
    "pointwise",
    "report",
    "rule",
    "save",
    "sliding_window",
    "symmetry",
    "verify",
]


def __dir__() -> list[str]:
    return __all__


def __getattr__(name: str) -> Any:
    if name in _PACKAGES:
        return import_module(f"densify.{name}")
    if name not in _HOMES:
        raise AttributeError(f"module 'densify' has no attribute {name!r}")
    return getattr(import_module(f"densify.{_HOMES[name]}"), name)
