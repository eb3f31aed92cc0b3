"""Run a traced graph at other image sizes, on the meta device."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn

from densify.graphs.fx.guards import guard


def probe(graph: fx.Graph, root: nn.Module) -> list[dict[str, Any]]:
    """How a graph follows the shape of the image, each axis but channels made longer: shapes of tensors, and numbers.

    Args:
        graph: as :func:`densify.graphs.fx.trace.trace` made it.
        root: the module tree on the meta device.

    Returns:
        For a batch twice as large, then for each spatial axis four times as long: a map of one sample follows twice the
        image only where padding helps it.
    """
    shape = image_of(graph).meta["value"].shape
    found = []
    for axis in (0, *range(2, len(shape))):
        longer = [size * (4 if dim else 2) if dim == axis else size for dim, size in enumerate(shape)]
        values = run_at(graph, root, longer)
        found.append({node.name: seen(value) for node, value in values.items()})
    return found


def seen(value: Any) -> Any:
    """What is compared between sizes: the shape of a tensor, a number, a shape; nothing of anything else."""
    if isinstance(value, Tensor):
        return value.shape
    numbers = isinstance(value, tuple | list) and all(isinstance(one, int) for one in value)
    return value if numbers or isinstance(value, int | float) else None


def image_of(graph: fx.Graph) -> fx.Node:
    """The node of the image."""
    image: fx.Node = next(iter(graph.find_nodes(op="placeholder")))
    return image


def run_at(
    graph: fx.Graph,
    root: nn.Module,
    shape: Sequence[int],
    last: fx.Node | None = None,
    dtype: torch.dtype | None = None,
) -> dict[fx.Node, Any]:
    """What the nodes of a graph are for an image of this shape: tensors on the meta device, and numbers.

    Nodes that do not run at this size are left out, and what depends on them.

    Args:
        last: the node to stop at.
        dtype: of the image; default that of the example, where the graph still has it.
    """
    image = image_of(graph)
    values: dict[fx.Node, Any] = {
        image: torch.empty(tuple(shape), dtype=dtype or image.meta["value"].dtype, device="meta")
    }
    runner = fx.Interpreter(fx.GraphModule(nn.Module(), fx.Graph()))
    runner.module = root
    for node in graph.nodes:
        if node.op == "placeholder":
            if node is not image and "value" in node.meta:
                values[node] = node.meta["value"]
            continue
        if node.op == "output" or node.target is guard or any(source not in values for source in node.all_input_nodes):
            continue
        args, kwargs = fx.map_arg((node.args, node.kwargs), values.__getitem__)
        try:
            with torch.no_grad(), torch.device("meta"):
                values[node] = getattr(runner, node.op)(node.target, args, kwargs)
        except Exception:  # a size that the model does not take: what hangs on this node stays unknown
            continue
        if node is last:
            break
    return values
