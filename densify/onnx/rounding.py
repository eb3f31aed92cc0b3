"""Running a float16 ONNX file as a device with float16 arithmetic does: ONNX Runtime's CPU would not.

The CPU has few float16 kernels. It computes whole chains of ops in float32, and neither rounds nor overflows between
them; even a copy in float16 between two ops it makes in float32, but not two copies in a row.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import torch
from onnx.helper import make_node, make_tensor_value_info
from torch import Tensor

from densify.errors import ConversionError
from densify.onnx.file import load_onnx

_HALF = onnx.TensorProto.FLOAT16
_WIDE, _COPY, _MAGNITUDE, _PEAK = ".wide", ".copy", ".magnitude", ".peak"


class RoundingSession:
    """A float16 file in ONNX Runtime, every op's result rounded to float16.

    Attributes:
        overflow: which op was the first, of all runs, to make inf or NaN of finite numbers; "" for none.

    Raises:
        ConversionError: ONNX Runtime cannot load or run the model.
    """

    def __init__(self, path: Path) -> None:
        model = load_onnx(path)
        self.path, self.overflow = path, ""
        self._outputs = [value.name for value in model.graph.output]
        self._nodes = {name: node for node in model.graph.node for name in node.output if name in _halves(model)}
        _round_all(model, self._nodes)
        options = onnxruntime.SessionOptions()
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
        options.intra_op_num_threads = torch.get_num_threads()
        options.log_severity_level = 4
        options.add_session_config_entry("session.model_external_initializers_file_folder_path", str(path.parent))
        try:
            self._session = onnxruntime.InferenceSession(
                model.SerializeToString(), options, providers=["CPUExecutionProvider"]
            )
        except Exception as error:  # ONNX Runtime's exceptions have no common base but Exception
            raise ConversionError(f"{path}: ONNX Runtime cannot run it in float16 ({error}).") from None

    def __call__(self, x: Tensor) -> dict[str, Tensor]:
        """The outputs by name."""
        given = {self._session.get_inputs()[0].name: x.cpu().half().numpy()}
        try:
            made = dict(zip((v.name for v in self._session.get_outputs()), self._session.run(None, given), strict=True))
        except Exception as error:
            raise ConversionError(f"{self.path}: ONNX Runtime fails on {list(x.shape)} ({error}).") from None
        self.overflow = self.overflow or self._overflow(made)
        return {name: torch.from_numpy(np.asarray(made[name])) for name in self._outputs}

    def _overflow(self, made: Mapping[str, np.ndarray]) -> str:
        infinite = {name for name in self._nodes if not np.isfinite(made[name + _PEAK])}
        for name, node in self._nodes.items():
            # A padding of -inf has it from its constant, and what reads the padding has it from there.
            if name in infinite and node.op_type not in ("Constant", "Cast") and not infinite & set(node.input):
                return f"overflows in float16: {node.op_type} {name!r} is the first that is not finite"
        return ""


def _halves(model: onnx.ModelProto) -> set[str]:
    values = (*model.graph.value_info, *model.graph.output)
    return {value.name for value in values if value.type.tensor_type.elem_type == _HALF}


def _round_all(model: onnx.ModelProto, nodes: Mapping[str, onnx.NodeProto]) -> None:
    """Put copies in float16 behind every op, which the CPU does not pass by, and tell the largest magnitude of each."""
    ordered = []
    for node in model.graph.node:
        names = [name for name in node.output if name in nodes]
        known = onnx.NodeProto()
        known.CopyFrom(node)
        known.output[:] = [name + _WIDE if name in nodes else name for name in node.output]
        ordered.append(known)
        for name in names:
            ordered += [
                make_node("Identity", [name + _WIDE], [name + _COPY]),
                make_node("Identity", [name + _COPY], [name]),
                make_node("Abs", [name], [name + _MAGNITUDE]),
                make_node("ReduceMax", [name + _MAGNITUDE], [name + _PEAK], keepdims=0),
            ]
    del model.graph.node[:]
    model.graph.node.extend(ordered)
    model.graph.output.extend(make_tensor_value_info(name + _PEAK, _HALF, []) for name in nodes)
