"""The ops of a traced network by themselves."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor, fx, nn

from densify.graphs.fx.probe import run_at
from densify.graphs.fx.readers.upsampling import transposed_arguments
from densify.graphs.fx.registry import Call
from densify.ops import Transposed
from densify.plans import Network
from densify.shifts import Kernel


class FxOps:
    """:class:`densify.shifts.Ops` of a traced network.

    Args:
        source: the module, with its weights.
        graph: as it was traced in eval mode.
        root: the module tree on the meta device.
        network: how the graph was read.
        image: [B, C, *spatial].
    """

    def __init__(self, source: nn.Module, graph: fx.Graph, root: nn.Module, network: Network, image: Tensor) -> None:
        self.source, self.network = source, network
        self.nodes = {node.name: node for node in graph.nodes}
        self.values = run_at(graph, root, image.shape, dtype=image.dtype)

    def sizes(self, key: str) -> tuple[int, ...]:
        """The spatial sizes of what an op makes."""
        return tuple(self.values[self.nodes[key]].shape[2:])

    def run(self, key: str, given: Mapping[str, Tensor]) -> Tensor:
        """What an op makes of these tensors."""
        made: Tensor = self._call(self.nodes[key], self._reader(given))
        return made

    def kernel(self, key: str, given: Mapping[str, Tensor]) -> Kernel:
        """What a transposed convolution computes with; the size that it is told may be one of these tensors'."""
        node, site = self.nodes[key], self.network.sites[key]
        module = self.source.get_submodule(str(node.target)) if node.op == "call_module" else None
        written = transposed_arguments(Call(node, module, (self.nodes[site.inputs[0]],)))
        read = self._reader(given)
        weight, bias, groups, wanted = (
            fx.map_arg(written[name], read) for name in ("weight", "bias", "groups", "output_size")
        )
        op = site.op
        assert isinstance(op, Transposed)
        extra = op.extra
        if wanted is not None:
            pairs = zip(given[site.inputs[0]].shape[2:], list(wanted)[-len(extra) :], op.windows, strict=True)
            extra = tuple(m - ((n - 1) * w.stride - 2 * w.low + w.span + 1) for n, m, w in pairs)
        return Kernel(weight, bias, groups, extra)

    def _reader(self, given: Mapping[str, Any]) -> Callable[[fx.Node], Any]:
        """What a node is: one of these tensors, a number that follows from sizes, or what is made of weights."""

        def read(node: fx.Node) -> Any:
            if node.name in given:
                return given[node.name]
            if node.op == "get_attr":
                return _attribute(self.source, str(node.target))
            known = self.values.get(node)
            return known if known is not None and not isinstance(known, Tensor) else self._call(node, read)

        return read

    def _call(self, node: fx.Node, read: Callable[[fx.Node], Any]) -> Any:
        args, kwargs = fx.map_arg((node.args, node.kwargs), read)
        if node.op == "call_module":
            return self.source.get_submodule(str(node.target))(*args, **kwargs)
        if node.op == "call_method":
            return getattr(args[0], str(node.target))(*args[1:], **kwargs)
        assert callable(node.target)
        return node.target(*args, **kwargs)


def _attribute(root: Any, path: str) -> Any:
    for name in path.split("."):
        root = getattr(root, name)
    return root
