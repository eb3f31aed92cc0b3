"""The onnx package's own tests of single ops, in ONNX Runtime and OpenVINO: what they refuse, and what they get wrong.

    python benchmarks/node_tests.py

These are what densify/targets.py calls measured. Ops of convolutional networks only; OpenVINO computes in float32.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import onnx
import onnxruntime
from onnx.backend.test.case.node import collect_testcases
from openvino import Core

_NAMES = (
    "AveragePool BatchNormalization Clip Col2Im Concat Conv ConvTranspose DeformConv DepthToSpace Expand "
    "Gather Gemm GlobalAveragePool GlobalMaxPool GridSample InstanceNormalization LRN LayerNormalization "
    "LpPool MatMul MaxPool MaxUnpool Mod Pad Range ReduceMax ReduceMean Relu Reshape Resize RoiAlign "
    "ScatterElements ScatterND Slice Softmax SpaceToDepth Split Tile Transpose Where"
)
OPS = frozenset(_NAMES.split())


def onnx_runtime(model: onnx.ModelProto, inputs: Sequence[np.ndarray]) -> list[np.ndarray]:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    names = [value.name for value in session.get_inputs()]
    return list(session.run(None, dict(zip(names, inputs, strict=False))))


def openvino(model: onnx.ModelProto, inputs: Sequence[np.ndarray]) -> list[np.ndarray]:
    core: Any = Core()
    read = core.read_model(model.SerializeToString())
    compiled = core.compile_model(read, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    made = compiled.create_infer_request().infer(dict(enumerate(inputs)))
    return [np.array(made[port]) for port in compiled.outputs]


def outcome(run: Callable[..., list[np.ndarray]], case: Any) -> str:
    """ "" where the runtime passes, else what happens."""
    inputs, expected = case.data_sets[0]
    try:
        made = run(case.model, inputs)
    except Exception as error:  # both runtimes fail with errors of any kind
        return "refused: " + " ".join(str(error).split())[-100:]
    pairs = zip(made, expected, strict=False)
    same = all(a.shape == b.shape and np.allclose(a, b, rtol=1e-3, atol=1e-5, equal_nan=True) for a, b in pairs)
    return "" if same else "other values"


def main() -> None:
    warnings.simplefilter("ignore")  # the cases divide by zero on purpose
    for case in collect_testcases(None):
        assert case.model is not None
        node, *more = case.model.graph.node
        floats = case.data_sets and all(isinstance(x, np.ndarray) for x in case.data_sets[0][0])
        if more or node.op_type not in OPS or not floats or "float16" in case.name:
            continue
        for runtime in (onnx_runtime, openvino):
            if said := outcome(runtime, case):
                print(f"{runtime.__name__:12} {node.op_type:16} {case.name}: {said}", flush=True)


if __name__ == "__main__":
    main()
