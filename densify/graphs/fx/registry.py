"""The table from torch callables to readers, and how a node's arguments are looked at.

A reader is a function ``(call) -> Op | None``, registered for the callables, module classes and method names it reads.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torch.nn.utils.parametrize import type_before_parametrizations

from densify.errors import UsageError
from densify.ops import Op


@dataclass(frozen=True)
class Call:
    """One node, its arguments by name whether it calls a module, a function or a method.

    Attributes:
        node: the torch.fx node.
        module: the module that it calls, or None.
        maps: the nodes among its arguments that hold maps.
        training: whether its graph is that of train mode.
    """

    node: fx.Node
    module: nn.Module | None
    maps: tuple[fx.Node, ...]
    training: bool = False

    def arguments(self, names: str, **defaults: Any) -> dict[str, Any]:
        """The node's arguments under the function's parameter names; a module's attributes stand for its own."""
        keys = names.split()
        given = dict(zip(keys, self.node.args, strict=False)) | dict(self.node.kwargs)
        if self.module is not None:
            given |= {key: getattr(self.module, key) for key in keys[1:] if hasattr(self.module, key)}
        return defaults | given

    def value(self, argument: Any) -> Any:
        """An argument's value on the example."""
        return fx.map_arg(argument, lambda node: node.meta["value"])

    @property
    def source(self) -> Tensor:
        """The first map's value on the example."""
        value: Tensor = self.maps[0].meta["value"]
        return value

    @property
    def result(self) -> Any:
        return self.node.meta["value"]

    @property
    def spatial(self) -> int:
        """Number of spatial axes of the first map."""
        return self.source.dim() - 2


Reader = Callable[[Call], Op | None]
_READERS: dict[Any, Reader] = {}
_ADDED: dict[Any, Reader] = {}  # by users, see densify.extending


def reads(*targets: Any) -> Callable[[Reader], Reader]:
    """Register a reader for functions, module classes, and, as strings, tensor methods.

    A function of a library that need not be imported here is registered by its qualified name.
    """

    def register(reader: Reader) -> Reader:
        for target in targets:
            if _READERS.setdefault(target, reader) is not reader:
                raise ValueError(f"{target} has a reader already")
        return reader

    return register


def add(*targets: Any) -> Callable[[Reader], Reader]:
    """Register a user's reader; of two for one target the last counts.

    Raises:
        UsageError: a target that is no module class and no function, or one that densify has a rule for.
    """
    for target in targets:
        what = getattr(target, "__name__", repr(target))
        if isinstance(target, nn.Module):
            raise UsageError(f"a rule is for the class {type(target).__name__}, not for one instance of it.")
        if not callable(target) or (isinstance(target, type) and not issubclass(target, nn.Module)):
            raise UsageError(f"a rule is for a class of torch.nn.Module or a function, not for {what}.")
        if not isinstance(target, type) and what.startswith("_"):
            raise UsageError(f"{what}: torch.fx looks for no name that begins with _; give the function another one.")
        if target in _READERS:
            raise UsageError(f"densify has a rule for {what}: give a subclass, or a function of your own, another one.")

    def register(reader: Reader) -> Reader:
        _ADDED.update(dict.fromkeys(targets, reader))
        return reader

    return register


def added() -> list[Any]:
    """The modules and functions that users gave rules: a tracer does not look inside."""
    return list(_ADDED)


def everywhere(names: str) -> list[Any]:
    """The functions, in-place forms and tensor methods that torch and python offer under these names."""
    found: dict[Any, None] = {}
    for name in names.split():
        for form in (name, f"{name}_"):
            for namespace in (torch, F, torch.special):
                if callable(getattr(namespace, form, None)):
                    found[getattr(namespace, form)] = None
            if hasattr(Tensor, form):
                found[form] = None
    return list(found)


def reader_of(call: Call) -> Reader | None:
    """The reader of a node, if there is one."""
    target: Any = call.node.target
    if call.module is not None:
        target = type_before_parametrizations(call.module)
    elif not isinstance(target, str):
        qualified = f"{getattr(target, '__module__', '')}.{getattr(target, '__name__', '')}"
        return _ADDED.get(target) or _READERS.get(target) or _READERS.get(qualified)
    return _ADDED.get(target) or _READERS.get(target)


def kind(call: Call) -> str:
    """The op's name in torch."""
    if call.module is not None:
        return type(call.module).__name__
    target = call.node.target
    name = target if isinstance(target, str) else getattr(target, "__name__", str(target))
    return next((n for n in dir(F) if getattr(F, n) is target), name) if name in ("fn", "boolean_dispatch") else name


def in_place(node: fx.Node, root: nn.Module) -> bool:
    """Whether a node changes its first argument."""
    if node.op == "call_module":
        return bool(getattr(root.get_submodule(str(node.target)), "inplace", False))
    name = getattr(node.target, "__name__", str(node.target))
    marked = name.endswith("_") and not name.endswith("__")
    return marked or node.kwargs.get("inplace") is True or node.target in IN_PLACE


IN_PLACE = (
    operator.iadd, operator.isub, operator.imul, operator.itruediv, operator.ifloordiv, operator.imod, operator.ipow,
    operator.imatmul, operator.iand, operator.ior, operator.ixor,
)  # fmt: skip
"""Python's operators that change their first operand, where it can be changed."""
