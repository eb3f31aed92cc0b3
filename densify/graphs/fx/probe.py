"""Run a traced graph at other image sizes, on the meta device."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, fx, nn

from densify.graphs.fx.guards import guard


def probe(graph: fx.Graph, root: nn.Module) -> list[dict[str, tuple[int, ...]]]:
    """How the shapes of a graph's tensors follow the image's: shapes per node with each axis but channels made longer.

    Nodes that do not run at another size than the example's are left out, and what depends on them.

    Args:
        graph: as :func:`densify.graphs.fx.trace.trace` made it.
        root: the module tree on the meta device.

    Returns:
        For a batch twice as large, then for each spatial axis four times as long: a map of one sample follows twice the
        image only where padding helps it.
    """
    image = next(node.meta["value"] for node in graph.nodes if node.op == "placeholder")
    found = []
    for axis in (0, *range(2, image.dim())):
        shape = [size * (4 if dim else 2) if dim == axis else size for dim, size in enumerate(image.shape)]
        found.append(_shapes(graph, root, torch.empty(shape, dtype=image.dtype, device="meta")))
    return found


def _shapes(graph: fx.Graph, root: nn.Module, image: Tensor) -> dict[str, tuple[int, ...]]:
    values: dict[fx.Node, Any] = {}
    runner = fx.Interpreter(fx.GraphModule(nn.Module(), fx.Graph()))
    runner.module = root
    placed = False
    for node in graph.nodes:
        if node.op == "placeholder":
            values[node], placed = (node.meta["value"] if placed else image), True
            continue
        if node.op == "output" or node.target is guard or any(source not in values for source in node.all_input_nodes):
            continue
        args, kwargs = fx.map_arg((node.args, node.kwargs), values.__getitem__)
        try:
            with torch.no_grad(), torch.device("meta"):
                values[node] = getattr(runner, node.op)(node.target, args, kwargs)
        except Exception:  # a size that the model does not take: what hangs on this node stays unknown
            continue
    return {node.name: tuple(value.shape) for node, value in values.items() if isinstance(value, Tensor)}
