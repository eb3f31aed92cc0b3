"""What the nodes of a graph make of an image, for comparing layer by layer."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import Any

from torch import Tensor, fx, nn

from densify import layers

_Watched = tuple[str, Callable[[Tensor], Tensor]]


class _Watch(fx.Interpreter):
    """Runs a graph and keeps copies of some results as they are made: later ops may work in place.

    Args:
        watched: by node, names of its result, and what is still to be done with it.
    """

    def __init__(self, root: nn.Module, graph: fx.Graph, watched: Mapping[fx.Node, list[_Watched]]) -> None:
        super().__init__(root, graph=graph)
        self.watched, self.found = watched, dict[str, Tensor]()

    def run_node(self, n: fx.Node) -> Any:
        made = super().run_node(n)
        for name, finish in self.watched.get(n, ()):
            self.found[name] = finish(made).clone()
        return made


def recorded(model: nn.Module, graph: fx.Graph, keys: Collection[str], x: Tensor) -> dict[str, Tensor]:
    """The results of a traced graph's nodes by name; of modules what they make when the model itself runs."""
    watched: dict[fx.Node, list[_Watched]] = {n: [(n.name, _same)] for n in graph.nodes if n.name in keys}
    run = _Watch(model, graph, watched)
    run.run(x.clone())
    return run.found | {name: value for name, value in _called(model, graph, x).items() if name in run.found}


def _called(model: nn.Module, graph: fx.Graph, x: Tensor) -> dict[str, Tensor]:
    """What a model's modules make when it runs by itself, by the names of the nodes that call them."""
    names: dict[nn.Module, list[str]] = {}
    made: dict[nn.Module, list[Any]] = {}
    for node in graph.find_nodes(op="call_module"):
        names.setdefault(model.get_submodule(str(node.target)), []).append(node.name)

    def keep(module: nn.Module, given: Any, value: Any) -> None:
        made.setdefault(module, []).append(value.clone() if isinstance(value, Tensor) else None)

    handles = [module.register_forward_hook(keep) for module in names]
    try:
        model(x.clone())
    finally:
        for handle in handles:
            handle.remove()
    pairs = [(names[module], values) for module, values in made.items() if len(names[module]) == len(values)]
    return {name: value for both in pairs for name, value in zip(*both, strict=True) if value is not None}


def ends(program: nn.Module, graph: fx.Graph, x: Tensor) -> dict[str, Tensor]:
    """The outputs of a written graph that returns them in a dict, each as it was when it was made.

    Phases that move into space for the output alone are taken where they are made.
    """
    watched: dict[fx.Node, list[_Watched]] = {}
    output: Any = next(reversed(graph.nodes)).args[0]
    for name, node in output.items():
        moved = node.target is layers.batch_to_space and not any(isinstance(one, fx.Node) for one in node.args[1:])
        source, finish = (node.args[0], _into_space(*node.args[1:])) if moved else (node, _same)
        watched.setdefault(source, []).append((name, finish))
    run = _Watch(program, graph, watched)
    run.run(x.clone())
    return run.found


def _same(value: Tensor) -> Tensor:
    return value


def _into_space(*args: Any) -> Callable[[Tensor], Tensor]:
    def move(value: Tensor) -> Tensor:
        return layers.batch_to_space(value, *args)

    return move
