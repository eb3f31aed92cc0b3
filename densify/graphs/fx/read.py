"""From a torch.fx graph to a :class:`densify.planning.Network`: every node described by its reader."""

from __future__ import annotations

from collections.abc import Iterable
from math import prod
from typing import Any

from torch import Tensor, fx, nn

from densify.errors import ConversionError
from densify.graphs.fx import readers as readers  # importing them registers them
from densify.graphs.fx.registry import Call, kind, reader_of
from densify.graphs.fx.trace import source_line
from densify.ops import Conv, Linear, Op, ShapeOf, Unsupported
from densify.planning import Network, Site


def network(graph: fx.Graph, root: nn.Module, *, training: bool) -> Network:
    """Describe a traced graph; `root` is the module tree that it was traced from."""
    sites: dict[str, Site] = {}
    maps: set[fx.Node] = set()
    names: dict[str, int] = {}
    for node in graph.nodes:
        if "constant" in node.meta:
            raise ConversionError(
                f"{node.meta['owner'] or 'the model'} ({source_line(node)}): its forward makes a constant tensor, "
                "which has no name in the state_dict. Make it once in __init__ with register_buffer(persistent=False)."
            )
        inputs = tuple(dict.fromkeys(n for n in node.all_input_nodes if n in maps))
        if node.op == "output" or not (inputs or (node.op == "placeholder" and _is_image(node.meta["value"]))):
            continue
        call = Call(node, root.get_submodule(str(node.target)) if node.op == "call_module" else None, inputs)
        op = None if node.op == "placeholder" else read(call)
        value = node.meta["value"]
        if not isinstance(op, ShapeOf):
            if not _holds_tensors(value):
                continue
            maps.add(node)
        sites[node.name] = Site(
            key=node.name,
            layer=_layer_name(call, names),
            kind=kind(call),
            op=op,
            inputs=tuple(n.name for n in inputs),
            shape=tuple(value.shape) if isinstance(value, Tensor) else None,
            where=source_line(node),
            work=_work(call, op),
        )
    return Network(sites, outputs(graph, maps), training)


def read(call: Call) -> Op:
    """The description of one node's op."""
    reader = reader_of(call)
    if call.module is not None and (call.module._forward_pre_hooks or call.module._forward_hooks):
        return Unsupported(
            "the module has forward hooks, which a rewritten layer would leave out",
            "Remove them (torch.nn.utils.remove_weight_norm and the like), or use torch.nn.utils.parametrizations",
        )
    if reader is not None:
        return reader(call)
    same = isinstance(call.result, Tensor) and call.result.shape[2:] == call.source.shape[2:]
    return Unsupported(f"there is no rule for {kind(call)}", "Choose layers behind it", keeps_size=same)


def outputs(graph: fx.Graph, maps: Iterable[fx.Node]) -> dict[str, str]:
    """Names and keys of all output tensors: "output", or one name per entry of a tuple, dict or named tuple."""
    known = set(maps)
    (returned,) = next(node for node in graph.nodes if node.op == "output").args

    def visit(value: Any, name: str) -> Iterable[tuple[str, str]]:
        if isinstance(value, fx.Node):
            if value in known:
                yield name, value.name
        elif isinstance(value, dict):
            for key, item in value.items():
                yield from visit(item, f"{name}.{key}" if name else str(key))
        elif isinstance(value, tuple | list):
            fields = getattr(value, "_fields", [str(i) for i in range(len(value))])
            for key, item in zip(fields, value, strict=True):
                yield from visit(item, f"{name}.{key}" if name else str(key))

    return {name or "output": key for name, key in visit(returned, "")}


def _is_image(value: Any) -> bool:
    return isinstance(value, Tensor) and value.dim() >= 3


def _holds_tensors(value: Any) -> bool:
    return isinstance(value, Tensor) or (
        isinstance(value, tuple | list) and bool(value) and all(isinstance(item, Tensor) for item in value)
    )


def _layer_name(call: Call, names: dict[str, int]) -> str:
    if call.node.op in ("call_module", "placeholder"):
        return str(call.node.target)
    owner = call.node.meta["owner"]
    base = f"{owner}.{kind(call)}" if owner else kind(call)
    count = names[base] = names.get(base, -1) + 1
    return f"{base}_{count}" if count else base


def _work(call: Call, op: Op | None) -> int:
    if not isinstance(op, Conv | Linear):
        return 0
    weight = call.module.weight if call.module is not None else call.value(call.arguments("input weight")["weight"])
    assert isinstance(weight, Tensor)
    return prod(weight.shape)
