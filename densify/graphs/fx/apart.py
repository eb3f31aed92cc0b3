"""Whether the ops that will run on fragments keep the images of a batch apart.

Phases are laid in the batch there, so an op that mixes images would mix phases, and one that counts them would count
phases. What an op does with a batch is in its numbers alone: each is run on two batches, of other sizes, that have some
images in common, at other places, and what it makes of these must agree, of whatever scale the others are.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, fx, nn

from densify.comparison import evaluating
from densify.graphs.fx.guards import guard
from densify.maps import Layout
from densify.ops import Fault, Other, Rows, ShapeOf
from densify.plans import Network, Site
from densify.steps import advancing

_BATCHES = ((0, 1, 2, 3, 4), (2, 0, 5, 4, 1, 6))  # by number; neither first nor last, nor one neighbour, is the same
_COMMON = (2, 0, 4, 1)
_HUGE = 1e4  # scale of images that the second batch alone has: a threshold may hide that images mix
_TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-4}


def check(network: Network, graph: fx.Graph, model: nn.Module, batch: int) -> Network:
    """The network, its ops that do not keep images apart marked with the reason.

    Args:
        network: as read from `graph`, of eval mode.
        model: with its weights; nothing is found on the meta device.
        batch: size of the example's batch.
    """
    open_ops = [node for node in graph.nodes if _is_open(network.sites.get(node.name), node)]
    tensors = [*model.parameters(), *model.buffers()]
    if not open_ops or any(tensor.is_meta for tensor in tensors):
        return network
    with evaluating(model), torch.random.fork_rng(devices=[]):
        faults: dict[str, Fault] = {}
        for signed in (False, True):  # a mask may be of the sign; a root is of the positive alone
            faults |= _Pair(network, graph, model, _BATCHES, signed=signed).faults()
        found = _Pair(network, graph, model, _BATCHES, signed=True, scale=_HUGE).faults()
        faults |= {key: fault for key, fault in found.items() if fault is not Fault.FIXED and key not in faults}
        if any(fault is Fault.FIXED for fault in faults.values()):
            runs = _Pair(network, graph, model, (range(batch), range(batch)), signed=False).runs()
            faults = {key: fault for key, fault in faults.items() if fault is not Fault.FIXED or key in runs}
    marked = {key: replace(network.sites[key], op=_marked(network.sites[key], fault)) for key, fault in faults.items()}
    return replace(network, sites={**network.sites, **marked})


def _is_open(site: Site | None, node: fx.Node) -> bool:
    """Whether an op would see all phases at once; what was recorded as a whole sees one at a time."""
    op = site.op if site is not None else None
    return isinstance(op, Other | Rows) and "empty" not in str(node.target) and not node.meta.get("whole")


def _marked(site: Site, fault: Fault) -> Other | Rows:
    assert isinstance(site.op, Other | Rows)
    return replace(site.op, fault=fault)


class _Pair:
    """Two runs of a graph's open ops on random numbers.

    Args:
        batches: which images each run has, by number.
        signed: whether some of the numbers are negative.
        scale: of the images that the second batch alone has.
    """

    def __init__(
        self,
        network: Network,
        graph: fx.Graph,
        model: nn.Module,
        batches: tuple[Sequence[int], ...],
        *,
        signed: bool,
        scale: float = 3.0,
    ) -> None:
        self.signed, self.scale = signed, scale
        self.network, self.graph, self.batches = network, graph, [list(batch) for batch in batches]
        self.places = {key: place for place, key in enumerate(network.sites)}
        self.device = next((tensor.device for tensor in model.parameters()), torch.device("cpu"))
        self.runner = fx.Interpreter(fx.GraphModule(nn.Module(), fx.Graph()))
        self.runner.module = model

    def faults(self) -> dict[str, Fault]:
        """What is wrong with the open ops, by key."""
        found: dict[str, Fault] = {}

        def see(node: fx.Node, one: Any, other: Any) -> bool:
            if one is None:
                found[node.name] = Fault.FIXED
            elif self.network.sites[node.name].layout is not Layout.MIXED and not self._agree(one, other):
                found[node.name] = Fault.RANDOM if self._random(node) else Fault.MIXES
            return node.name not in found

        self._walk(see)
        return found

    def runs(self) -> set[str]:
        """Keys of the open ops that run at all."""
        found: set[str] = set()

        def see(node: fx.Node, one: Any, other: Any) -> bool:
            found.update([node.name] if one is not None else [])
            return one is not None

        self._walk(see)
        return found

    def _walk(self, see: Callable[[fx.Node, Any, Any], bool]) -> None:
        """Run what hangs on open ops, node by node; where `see` says no, fresh numbers stand for the node's."""
        self.values: dict[fx.Node, tuple[Any, Any]] = {}
        left = {node: len(node.users) for node in self.graph.nodes}
        failed: set[fx.Node] = set()
        for node in advancing("looking at every op", list(self.graph.nodes)):
            site = self.network.sites.get(node.name)
            is_open = _is_open(site, node)
            fresh = site is not None and site.layout is not Layout.MIXED and _floats(node.meta["value"])
            if failed & set(node.all_input_nodes) or node.meta.get("whole"):
                failed.update(() if fresh else (node,))
                continue
            if node.op in ("placeholder", "output") or node.target is guard:
                continue
            if site is not None and not is_open and not isinstance(site.op, ShapeOf) and _floats(node.meta["value"]):
                continue
            try:
                pair = (self._run(node, 0), self._run(node, 1))
            except Exception:  # another batch may be what it does not take, or the device what it does not run on
                pair = (None, None)
            if (not is_open and pair[0] is not None) or (is_open and see(node, *pair)):
                self.values[node] = pair
            elif not fresh:
                failed.add(node)
            for source in node.all_input_nodes:
                left[source] -= 1
                if not left[source]:
                    self.values.pop(source, None)

    def _run(self, node: fx.Node, run: int) -> Any:
        args, kwargs = fx.map_arg((node.args, node.kwargs), lambda source: self._value(source, run))
        torch.manual_seed(run)
        with torch.device(self.device):
            return getattr(self.runner, node.op)(node.target, args, kwargs)

    def _value(self, node: fx.Node, run: int) -> Any:
        if node in self.values:
            return self.values[node][run]
        return self._fresh(node, run) if node.name in self.places else node.meta["value"]

    def _fresh(self, node: fx.Node, run: int) -> Any:
        """Random numbers of the node's shape; those of one batch alone are smaller, or of another scale."""
        generator = torch.Generator().manual_seed(self.places[node.name])
        images = self.batches[run]

        def one(like: Tensor) -> Tensor:
            made = 0.5 + torch.rand(1 + max(max(batch) for batch in self.batches), *like.shape[1:], generator=generator)
            made[3:4], made[5:] = made[3:4] / 10, made[5:] * self.scale
            if self.signed:
                made *= torch.rand(made.shape, generator=generator).sub(0.4).sign()
            return made[images].to(self.device, like.dtype)

        value = node.meta["value"]
        return one(value) if isinstance(value, Tensor) else tuple(map(one, value))

    def _agree(self, one: Any, other: Any) -> bool:
        if not isinstance(one, Tensor):
            return all(self._agree(*pair) for pair in zip(one, other, strict=True))
        sizes = [len(batch) for batch in self.batches]
        if [len(made) if made.dim() else 0 for made in (one, other)] != sizes or other.shape[1:] != one.shape[1:]:
            return False
        if one.is_complex():
            return self._agree(torch.view_as_real(one), torch.view_as_real(other))
        share = _TOLERANCE.get(one.dtype, 1e-2)
        one, other = (
            made[[batch.index(image) for image in _COMMON]].double()
            for made, batch in zip((one, other), self.batches, strict=True)
        )
        tolerance = share * float(one.abs().nan_to_num(0, 0, 0).max()) if one.numel() else 0.0
        return torch.allclose(one, other, rtol=0, atol=tolerance, equal_nan=True)

    def _random(self, node: fx.Node) -> bool:
        """Whether the op alone, given the same twice, answers otherwise."""
        args, kwargs = fx.map_arg((node.args, node.kwargs), lambda source: self._value(source, 0))
        made = []
        for seed in (0, 1):
            torch.manual_seed(seed)
            made.append(getattr(self.runner, node.op)(node.target, args, kwargs))
        pairs = [made] if isinstance(made[0], Tensor) else zip(*made, strict=True)
        return not all(torch.equal(*pair) for pair in pairs)


def _floats(value: Any) -> bool:
    items = value if isinstance(value, tuple | list) else [value]
    return all(isinstance(item, Tensor) and item.is_floating_point() for item in items)
