"""The tracer: runs each node on the example as it records it, and records what torch.fx alone does not see."""

from __future__ import annotations

import inspect
import operator
import sys
from collections.abc import Callable, Iterator
from typing import Any, cast

import torch
import torch.utils._pytree as pytree
from torch import Tensor, fx, nn
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd
from torch.nn.utils.parametrize import type_before_parametrizations

from densify.errors import ConversionError
from densify.graphs.fx.guards import check_assignments, guard, looks_at_values, source_line
from densify.graphs.fx.proxies import ExampleProxy, instruction
from densify.graphs.fx.readers.windows import has_stride
from densify.graphs.fx.recording import MAKERS, SIZED, recording, whole_functions, written
from densify.graphs.fx.registry import added


class ExampleTracer(fx.Tracer):
    """A tracer that runs each node on the example as it records it.

    What cannot be recorded inside a module without strides is recorded as a call of the module as a whole.

    Args:
        example: the input, on the same device as the traced module's parameters.
        device: where the model computes; the example's own device, or meta where it stands for it.
    """

    def __init__(self, example: Tensor, device: torch.device) -> None:
        functions = [target for target in added() if not isinstance(target, type)]
        self.known: tuple[Callable[..., Any], ...] = (*SIZED, *whole_functions(), *functions)
        super().__init__(autowrap_functions=self.known)
        # A function is also called by way of its module: median.filter(x).
        self._autowrap_search += [torch, *(m for f in functions if (m := inspect.getmodule(f)) is not None)]
        self.record_stack_traces = True
        self.example, self.device = example, device
        self.running = self.done = False
        self.modules: list[nn.Module] = []
        self.names: dict[int, str] = {}
        self.parameters: dict[str, Any] = {}
        self.autocast = _autocast()

    def trace(self, root: Any, concrete_args: dict[str, Any] | None = None) -> fx.Graph:
        self.names = {id(t): name for name, t in [*root.named_parameters(), *root.named_buffers()]}
        try:
            with recording(self, root):
                graph = super().trace(root, concrete_args)
        finally:
            self.done = True
        for node in graph.nodes:
            # A written program would ask torch.fx to wrap its own functions, and must not.
            if node.meta.pop("is_wrapped", False) and node.target not in self.known:
                node.meta["whole"] = True
        check_assignments(graph)
        return graph

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        """A module with a rule from outside is one node; a convolution that pads by reflection and the like is traced
        into its padding and itself."""
        if type_before_parametrizations(m) in added():
            return True
        if isinstance(m, _ConvNd) and not isinstance(m, _ConvTransposeNd) and m.padding_mode != "zeros":
            return False
        return super().is_leaf_module(m, module_qualified_name)

    def proxy(self, node: fx.Node) -> ExampleProxy:
        return ExampleProxy(node, self)

    def create_proxy(self, kind: str, target: Any, args: Any, kwargs: Any, *rest: Any, **named: Any) -> Any:
        """As torch.fx does; what changes its first argument then stands for it, under all its names."""
        if kind == "placeholder" and target.startswith("*"):
            return _NoOptions() if target.startswith("**") else _NoArguments()
        reshapes = kind == "call_method" and target in _RESHAPING
        if reshapes:
            target = target[:-1]
        if target in ("item", "tolist", "numpy") and any(map(self._may_be_whole, self.modules)):
            raise fx.proxy.TraceError(f".{target}() makes numbers of a tensor")
        made: Any = super().create_proxy(kind, target, args, kwargs, *rest, **named)
        if not kind.startswith("call"):
            return made
        if not torch.is_grad_enabled() and isinstance(made.value, Tensor) and made.value.is_floating_point():
            made = super().create_proxy("call_method", "detach", (made,), {})
        name = getattr(target, "__name__", str(target))
        changes = reshapes or (kind != "call_module" and name.endswith("_") and not name.endswith("__"))
        if changes and args and type(args[0]) is ExampleProxy:
            args[0].node = made.node
            return args[0]
        return made

    def create_node(
        self, kind: str, target: Any, args: Any, kwargs: Any, name: Any = None, type_expr: Any = None
    ) -> Any:
        if kind == "output":
            args = fx.map_arg(args, self._opened)
        self._withdraw_guards((args, kwargs))
        if kwargs.get("out") is not None:
            raise ConversionError("it writes into a tensor that it is given (out=...): assign what it returns instead")
        node = super().create_node(kind, target, args, kwargs, name, type_expr)
        node.meta["owner"] = self.path_of_module(self.modules[-1]) if self.modules else ""
        if _autocast() != self.autocast:
            raise ConversionError("autocast is switched on inside forward: put it around the call of the network")
        if kind != "output":
            node.meta["value"] = self._run(node, target, args)
        return node

    def _withdraw_guards(self, arguments: Any) -> None:
        """torch's functions look at their integer arguments before they hand a call to the tracer, which records the
        very proxies: what was asked by the same instruction decided nothing."""
        used: set[fx.Node] = set()
        fx.map_arg(arguments, used.add)
        places, frame = set(), sys._getframe(1)
        while frame is not None and "asked" in next(reversed(self.graph.nodes), self.graph._root).meta:
            places.add(instruction(frame))
            frame = frame.f_back  # type: ignore[assignment]
        for node in list(reversed(self.graph.nodes)):
            if node.meta.get("asked") not in places or node.args[0] not in used:
                return
            self.graph.erase_node(node)

    def _opened(self, node: fx.Node) -> Any:
        """A structure of tensors entry by entry, so that every output has a node of its own."""
        value = node.meta["value"]
        if isinstance(value, dict):
            return {key: self.create_node("call_function", operator.getitem, (node, key), {}) for key in value}
        if not isinstance(value, tuple | list) or isinstance(value, torch.Size):
            return node
        entries = [self.create_node("call_function", operator.getitem, (node, i), {}) for i in range(len(value))]
        return type(value)(*entries) if hasattr(value, "_fields") else type(value)(entries)

    def _run(self, node: fx.Node, target: Any, args: Any) -> Any:
        if node.op == "placeholder":
            if any(n.op == "placeholder" and n is not node for n in self.graph.nodes):
                return args[0] if args else None  # an optional second input keeps its default
            return self.example
        values, keywords = fx.map_arg((node.args, node.kwargs), lambda n: n.meta["value"])
        if target is getattr and isinstance(values[0], Tensor) and values[1] == "device":
            return self.device
        values, keywords = self._placed(values), self._placed(keywords)
        self.running = True
        try:
            with torch.no_grad(), torch.device(self.example.device):
                if node.op == "get_attr":
                    return self._attribute(node, str(target))
                if node.op == "call_module":
                    return self.root.get_submodule(str(target))(*values, **keywords)
                if node.op == "call_method":
                    return getattr(values[0], str(target))(*values[1:], **keywords)
                return target(*values, **keywords)
        finally:
            self.running = False

    def _placed(self, arguments: Any) -> Any:
        """Arguments whose devices are the example's."""

        def place(one: Any) -> Any:
            return self.example.device if isinstance(one, torch.device) else one

        if isinstance(arguments, dict):
            placed = {key: place(one) for key, one in arguments.items()}
            return placed | {"device": self.example.device} if placed.get("device") is not None else placed
        return tuple(map(place, arguments))

    def _attribute(self, node: fx.Node, target: str) -> Any:
        value: Any = self.root
        for part in target.split("."):
            value = getattr(value, part)
        if isinstance(value, Tensor) and target not in self.names.values():
            node.meta["plain"] = True
        return value.to(self.example.device) if isinstance(value, Tensor) else value

    def call_module(self, m: nn.Module, forward: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        """As torch.fx does; a module that cannot be recorded is one node, where no stride is lost by that."""
        if self.running:
            return forward(*args, **kwargs)
        compiled = getattr(m, "_orig_mod", None)
        if isinstance(compiled, nn.Module):
            return compiled(*args, **kwargs)
        for one in pytree.tree_leaves((args, kwargs)):
            if isinstance(one, ExampleProxy):
                self.create_arg(one)  # an attribute is recorded where it is first used: before what may be forgotten
        last, stack = next(iter(reversed(self.graph.nodes))), self.module_stack.copy()
        self.modules.append(m)
        try:
            return super().call_module(m, forward, args, kwargs)
        except Exception as error:
            if not self._may_be_whole(m):
                raise
            self._forget(last)
            self.module_stack = stack
            try:
                made = self.create_proxy("call_module", self.path_of_module(m), args, kwargs)
            except Exception:
                raise error from None
            made.node.meta["whole"] = True
            return made
        finally:
            self.modules.pop()

    def _may_be_whole(self, m: nn.Module) -> bool:
        """Whether nothing is lost where a module is one op: a stride inside could not be chosen."""
        return not self.is_leaf_module(m, "") and not any(map(has_stride, m.modules()))

    def _forget(self, last: fx.Node) -> None:
        """Take back what was recorded behind a node."""
        for node in reversed(list(self.graph.nodes)):
            if node is last:
                break
            self.graph.erase_node(node)
        kept = set(self.graph.nodes)
        for name in [name for name, proxy in self.parameters.items() if proxy.node not in kept]:
            del self.parameters[name]

    def getattr(self, attr: str, attr_val: Any, parameter_proxy_cache: dict[str, Any]) -> Any:
        if not self.running and isinstance(attr_val, Tensor) and id(attr_val) in self.names:
            name = self.names[id(attr_val)]
            if name not in self.parameters:
                self.parameters[name] = self.create_proxy("get_attr", name, (), {})
            return self.parameters[name]
        return attr_val

    def create_arg(self, a: Any) -> Any:
        """Named tuples stay what they are; torch.fx would make a call of their class."""
        if isinstance(a, fx.Proxy):
            return a.node
        if isinstance(a, tuple) and hasattr(a, "_fields"):
            return type(a)(*(self.create_arg(item) for item in a))
        if isinstance(a, Tensor) and id(a) not in self.names and a not in self.tensor_attrs:
            return self.create_node("call_function", torch.tensor, (written(a),), {"dtype": a.dtype})
        return super().create_arg(a)

    def record(self, function: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        """Call a function that torch.fx does not see, as a node where its arguments can be written down."""
        held = [a for a in pytree.tree_leaves((args, kwargs)) if isinstance(a, Tensor)]
        if function not in MAKERS:
            if not any(id(a) in self.names or a in self.tensor_attrs for a in held):
                return function(*args, **kwargs)
            with torch.no_grad():
                made = function(*args, **kwargs)
            if not isinstance(made, Tensor | fx.Proxy):
                return made
        try:
            if torch.overrides.is_tensor_method_or_property(function):
                return self.create_proxy("call_method", function.__name__, args, kwargs)
            return self.create_proxy("call_function", function, args, kwargs)
        except NotImplementedError:  # torch.fx's word for an argument that it cannot write down
            return function(*args, **kwargs)

    def decide(self, proxy: ExampleProxy, kind: Callable[[Any], Any]) -> int | float | bool:
        """Take the example's value, and record the guard that holds other inputs to it.

        What follows from the values of a tensor is no matter of the example: a module that looks at them is left whole
        where it can be.
        """
        value: int | float | bool = kind(proxy.value)
        if looks_at_values(proxy.node) and any(map(self._may_be_whole, self.modules)):
            raise fx.proxy.TraceError(f"it looks at values at {source_line(proxy.node)}")
        self.create_proxy("call_function", guard, (proxy, value, source_line(proxy.node)), {})
        return value

    def to_bool(self, obj: fx.Proxy) -> bool:
        return bool(self.decide(cast(ExampleProxy, obj), bool))

    def iter(self, obj: fx.Proxy) -> Iterator[Any]:
        count = len(cast(ExampleProxy, obj))
        return iter([self.create_proxy("call_function", operator.getitem, (obj, i), {}) for i in range(count)])


class _NoOptions(dict[str, Any]):
    """What is given for **kwargs: nothing, and no tree to torch.fx, as a dict would be."""


class _NoArguments(tuple[Any, ...]):
    """What is given for *args."""


_RESHAPING = ("unsqueeze_", "squeeze_", "transpose_", "t_", "swapaxes_", "swapdims_")
"""Methods that change the shape of a tensor, not what it holds: recorded as those that make a view."""


def _autocast() -> tuple[bool, ...]:
    return tuple(torch.is_autocast_enabled(device) for device in ("cpu", "cuda"))
