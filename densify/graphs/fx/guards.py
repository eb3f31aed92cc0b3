"""What a program decides while it is recorded, as guards with their source lines; and what it changes in place."""

from __future__ import annotations

import operator
from collections.abc import Iterable
from typing import Any

from torch import Tensor, fx, nn

from densify.errors import ConversionError
from densify.graphs.fx.proxies import assigned
from densify.graphs.fx.registry import in_place

OWN = ("/torch/", "/densify/graphs/", "\\torch\\", "\\densify\\graphs\\", "<eval")


def source_line(node: fx.Node) -> str:
    """File and line of the program that made this node."""
    lines = [line.strip() for line in (node.stack_trace or "").splitlines() if line.strip().startswith("File")]
    lines = [line for line in lines if not any(part in line for part in OWN)]
    if not lines:
        return ""
    file, number = lines[-1].split(",")[:2]
    return f"{file.removeprefix('File ').strip(chr(34)).rsplit('/', 1)[-1]}:{number.removeprefix(' line ')}"


def guard(value: Any, expected: Any, place: str) -> None:
    """Raise if a condition that the example decided comes out otherwise.

    Raises:
        ConversionError: the input takes another way through the model than the example did.
    """
    value = type(expected)(value)
    if value != expected:
        raise ConversionError(
            f"this input takes another way through the model than the example that it was converted with: the "
            f"condition at {place} was {expected} and is {value}. Convert with an example of this size."
        )


_GEOMETRY = {
    *("size", "dim", "ndimension", "numel", "nelement", "stride", "is_contiguous", "is_floating_point", "is_complex"),
    *("element_size", "get_device", "type", "storage_offset", "getattr"),
}


def looks_at_values(node: fx.Node) -> bool:
    """Whether a condition follows from the values of a tensor, not from its shape and type alone."""
    if isinstance(node.meta["value"], Tensor):
        return True
    stack, seen = [node], set()
    while stack:
        current = stack.pop()
        if current in seen:
            continue
        seen.add(current)
        if getattr(current.target, "__name__", current.target) in _GEOMETRY:
            continue
        if any(isinstance(source.meta["value"], Tensor) for source in current.all_input_nodes):
            return True
        stack.extend(current.all_input_nodes)
    return False


def check_assignments(graph: fx.Graph) -> None:
    """An assignment to a part of a tensor, which is recorded as a new tensor, must not be seen by a view of the old.

    Raises:
        ConversionError: it is.
    """
    order = {node: place for place, node in enumerate(graph.nodes)}
    for node in [node for node in order if node.target is assigned]:
        changed = node.all_input_nodes[0]
        storage = changed.meta["value"].untyped_storage()._cdata
        for other in list(order)[: order[node]]:
            value = other.meta["value"]
            if (
                isinstance(value, Tensor)
                and value.untyped_storage()._cdata == storage
                and (other.op == "get_attr" or any(order[user] > order[node] for user in other.users))
            ):
                raise ConversionError(
                    f"{source_line(node)}: an assignment to a part of a tensor, of which another name or view is used "
                    "behind it, or which belongs to the model. Assign to a copy (.clone())"
                )


def rereads(graph: fx.Graph, root: nn.Module) -> Iterable[tuple[fx.Node, tuple[str, ...], tuple[str, ...]]]:
    """The nodes that change a tensor which is read again, the tensor's other views up to there, and who reads later."""
    order = {node: place for place, node in enumerate(graph.nodes)}
    for node in graph.nodes:
        if not (in_place(node, root) and node.args and isinstance(node.args[0], fx.Node)):
            continue
        changed = _storage(node.args[0])
        views = [n for n in order if order[n] < order[node] and changed is not None and _storage(n) == changed]
        later = [user for view in views for user in view.users if order[user] > order[node]]
        later = [user for user in later if not _writes_back(user, node)]
        if later:
            yield node, tuple(n.name for n in views[1:]), tuple(n.name for n in later)


def _writes_back(user: fx.Node, node: fx.Node) -> bool:
    """Whether a change of a part is assigned to that part, as ``x[i] += y`` does; the part is then seen in any case."""
    part = node.args[0]
    return (
        user.target is assigned and isinstance(part, fx.Node) and part.target is operator.getitem
        and user.args == (part.args[0], part.args[1], node)
    )  # fmt: skip


def _storage(node: fx.Node) -> int | None:
    value = node.meta.get("value")
    return value.untyped_storage()._cdata if isinstance(value, Tensor) else None
