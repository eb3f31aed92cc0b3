"""ONNX graphs for tests: written by hand or exported, run in ONNX Runtime, and converted as a torch network was."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
from onnx import TensorProto, helper
from torch import Tensor, nn

import densify
from densify.choose import survey
from densify.conversion import Dense
from densify.graphs.onnx.read import Reading, read
from densify.heads import apply_head
from densify.onnx.conversion import FORMS
from densify.onnx.model import OnnxModel
from densify.onnx.runtime import Runtime
from densify.ops import Windowed
from densify.planning import walk
from densify.plans import Network, Plan

Node = tuple[str, Sequence[str], Sequence[str], Mapping[str, Any]]


def graph(
    nodes: Sequence[Node],
    weights: Mapping[str, Any],
    shape: Sequence[int | str],
    outputs: Sequence[str] = ("output",),
    opset: int = 17,
) -> OnnxModel:
    """A graph with the input "input".

    Args:
        nodes: operator, names of inputs and outputs, attributes.
        weights: initializers by name.
        shape: of the input; names for what is open.
    """
    made = helper.make_graph(
        [helper.make_node(kind, inputs, made, name=made[0], **attributes) for kind, inputs, made, attributes in nodes],
        "test",
        [helper.make_tensor_value_info("input", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in outputs],
        [onnx.numpy_helper.from_array(np.asarray(value), name) for name, value in weights.items()],
    )
    model = helper.make_model(made, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)
    known = onnx.shape_inference.infer_shapes(model)  # an output has to say how many dimensions it has
    del known.graph.value_info[:]
    return OnnxModel(ir.from_proto(known), "test.onnx")


def integers(*shape: int, seed: int = 0, least: int = -2, most: int = 2) -> np.ndarray:
    """Small integers as float32, on which sums are exact."""
    return np.random.default_rng(seed).integers(least, most + 1, shape).astype(np.float32)


def exported(model: nn.Module, shape: tuple[int, ...], folder: Path) -> OnnxModel:
    """A torch model as an ONNX graph."""
    path = folder / "original.onnx"
    densify.export(model, path, example=shape, overwrite=True)
    return OnnxModel.load(path)


def run(model: ir.Model, x: Tensor, *, optimised: bool = True) -> dict[str, Tensor]:
    """A graph in ONNX Runtime on one input, as the graph takes it."""
    with Runtime("the graph") as runtime:
        (made,) = runtime.run(model, range(x.dim()), [x], optimised=optimised)
    return made


def as_converted(source: OnnxModel, dense: Dense) -> tuple[Reading, Plan]:
    """The plan of an exported graph in which the strides are removed that were removed in the torch network.

    Raises:
        ValueError: the export has other strided ops, in another order.
    """
    reading = read(source.graph, source.shape_at(dense.options.shape[1:]))
    network = apply_head(reading.network, dense.plan.head)
    mine, theirs = _strides(dense.plan.network), _strides(survey(network).network)
    for alone in (False, True):  # what takes a whole axis may be a statistic of it here and a window there
        one = [key for key in mine if not alone or key in dense.plan.chosen or not _alone(dense.plan.network, *key)]
        other = [key for key in theirs if not alone or not _alone(network, *key)]
        if [mine[key] for key in one] == [theirs[key] for key in other]:
            names = dict(zip(one, other, strict=True))
            chosen = frozenset(names[key] for key in dense.plan.chosen if key in names)
            plan = walk(network, chosen, merge=dense.plan.merge, head=dense.plan.head, padding=dense.plan.padding)
            return reading, plan
    raise ValueError(f"{list(mine.values())} became {list(theirs.values())}")


def written(source: OnnxModel, reading: Reading, plan: Plan, form: str, **options: Any) -> ir.Model:
    """The dense graph of a plan."""
    return FORMS[form](source.copy(), reading, plan, **options).run()


def _strides(network: Network) -> dict[tuple[str, int], int]:
    """The strides by op and axis, axis by axis: a slice of several axes is exported as one of each."""
    found = [
        ((site.key, axis), window.stride)
        for site in network.sites.values()
        if isinstance(site.op, Windowed)
        for axis, window in enumerate(site.op.windows)
        if window.stride > 1
    ]
    return dict(sorted(found, key=lambda one: one[0][1]))  # in the order of the ops along each axis


def _alone(network: Network, key: str, axis: int) -> bool:
    """Whether an op makes one sample along an axis."""
    shape = network.sites[key].shape
    return shape is not None and shape[2 + axis] == 1
