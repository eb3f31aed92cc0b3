"""What runs exported files in the tests: ONNX Runtime, the onnx package's reference evaluator, and OpenVINO."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
import torch
from onnx.reference import ReferenceEvaluator
from torch import Tensor, nn

from densify.comparison import DEFAULT_TOLERANCE, Report, compare, difference, evaluating
from densify.onnx.file import OnnxSession
from densify.onnx.model import write_checked
from densify.samples import Sample
from densify.targets import find, refusals
from densify.verification import errors_of_precision, verify_onnx

Session = Callable[[np.ndarray], list[np.ndarray]]

ORT = {"onnxruntime, all optimisations", "onnxruntime, no optimisations"}
EVERYTHING = ORT | {"onnx reference", "openvino"}


def sessions(path: Path, *, reference: bool) -> Iterator[tuple[str, Session]]:
    """All that runs a file: OpenVINO where its list refuses nothing of it, the (slow) reference evaluator if asked."""
    for optimised in (True, False):
        runtime = OnnxSession(path, optimised=optimised)
        yield f"onnxruntime, {'all' if optimised else 'no'} optimisations", runtime
    yield from others(path, reference=reference)


def others(path: Path, *, reference: bool) -> Iterator[tuple[str, Session]]:
    """What runs a file besides ONNX Runtime."""
    model = ir.load(path)
    if not refusals(model, find("openvino")):
        yield "openvino", openvino(path)
    if reference and not any(map(misread, model.graph)):
        yield "onnx reference", partial(_evaluate, ReferenceEvaluator(str(path)))


def misread(node: ir.Node) -> bool:
    """Whether onnx 1.23's reference evaluator computes a node otherwise than ONNX Runtime and its own documentation."""
    pads, strides = (node.attributes.get_ints(name, []) for name in ("pads", "strides"))
    if node.op_type == "ConvTranspose":
        weight = node.inputs[1]
        kernel = weight.shape.numpy()[2:] if weight is not None and weight.shape is not None else ()
        wide = any(stride > size for stride, size in zip(strides, kernel, strict=False))
        return wide or node.attributes.get_int("group", 1) > 1
    uneven = pads[: len(pads) // 2] != pads[len(pads) // 2 :]
    uneven = uneven or node.attributes.get_string("auto_pad", "NOTSET").startswith("SAME")
    return node.op_type == "LRN" or (node.op_type == "MaxPool" and uneven)


def agree(model: ir.Model, samples: Sequence[np.ndarray]) -> set[str]:
    """What else runs a graph, and makes of these inputs what ONNX Runtime does, to 1e-5."""
    found = set()
    with TemporaryDirectory() as folder:
        path = Path(folder) / "written.onnx"
        write_checked(model, path)
        right = OnnxSession(path, optimised=False)
        for runtime, session in others(path, reference=True):
            for x in samples:
                for want, have in zip(right(x), session(x), strict=True):
                    assert have.shape == want.shape, runtime
                    assert difference(torch.from_numpy(want), torch.from_numpy(have))[1] <= 1e-5, runtime
            found.add(runtime)
    return found


def openvino(path: Path) -> Session:
    """A file in OpenVINO on the CPU, in float32 whatever the CPU could do faster. Outside CI it may be missing."""
    if "CI" not in os.environ:
        pytest.importorskip("openvino")
    from openvino import Core

    core: Any = Core()
    compiled = core.compile_model(str(path), "CPU", {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": 1})
    return lambda x: [np.array(value) for value in compiled(x).values()]


def _evaluate(evaluator: ReferenceEvaluator, x: np.ndarray) -> list[np.ndarray]:
    (name,) = evaluator.input_names
    with np.errstate(all="ignore"):  # a mean over no shifts is taken, and left out
        return [np.asarray(value) for value in evaluator.run(None, {name: x})]


def verify_everywhere(path: Path, network: nn.Module, samples: Sequence[Sample], *, reference: bool = True) -> Report:
    """`verify_onnx`, and the same in the other runtimes."""
    report = verify_onnx(path, network, samples)
    names = OnnxSession(path, optimised=False).outputs
    with evaluating(network):
        for runtime, session in others(path, reference=reference):

            def run(x: Tensor, session: Session = session) -> dict[str, Tensor]:
                return dict(zip(names, map(torch.from_numpy, session(x.numpy())), strict=True))

            report += compare(
                network, run, samples, law="onnx", runtime=runtime, tolerance=DEFAULT_TOLERANCE,
                own_errors=partial(errors_of_precision, network),
            )  # fmt: skip
    return report
