"""Record a model as a torch.fx graph while running every node on the example.

Control flow on shapes is decided by the example; every decided condition becomes a guard of the graph. The run
happens on the meta device, so that it costs neither time nor memory; a model that looks at values is run for real.
"""

from __future__ import annotations

import copy
import inspect
import math
import operator
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd
from torch.nn.utils.parametrize import type_before_parametrizations

from densify.errors import ConversionError
from densify.graphs.fx.registry import added


def same_tensors(model: nn.Module, convert: Callable[[Tensor], Tensor] | None = None) -> nn.Module:
    """A copy of a module tree that holds the same tensors, or `convert` of each."""
    memo: dict[int, Any] = {}
    for tensor in [*model.parameters(), *model.buffers()]:
        memo[id(tensor)] = tensor if convert is None else convert(tensor)
    return copy.deepcopy(model, memo)


def on_meta(model: nn.Module) -> nn.Module:
    """A copy of a module tree whose parameters and buffers hold no numbers."""

    def empty(tensor: Tensor) -> Tensor:
        meta = tensor.detach().to("meta")
        return nn.Parameter(meta, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else meta

    return same_tensors(model, empty)


def trace(model: nn.Module, example: Tensor, *, training: bool) -> fx.Graph:
    """The model's graph in train or eval mode.

    Every node carries ``meta["value"]``: its value on the example, tensors on the meta device where possible.

    Args:
        example: [B, C, *spatial].

    Raises:
        ConversionError: the model cannot be traced; the message names the source line.
    """
    if model._forward_hooks or model._forward_pre_hooks:
        raise ConversionError(
            f"{type(model).__name__} has forward hooks of its own, which its dense form would leave out. Remove them, "
            "or put them on a layer inside."
        )
    if isinstance(model, nn.DataParallel | nn.parallel.DistributedDataParallel):
        raise ConversionError(f"this is a {type(model).__name__} around a model: give its .module.")
    needed = [p for p in inspect.signature(model.forward).parameters.values() if p.default is p.empty]
    if len([p for p in needed if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]) > 1:
        names = ", ".join(p.name for p in needed)
        raise ConversionError(
            f"{type(model).__name__}.forward needs several inputs ({names}), and densify follows one image through a "
            "network. Give it a module whose forward takes the image alone."
        )
    if training and example.shape[0] == 1:
        example = torch.cat([example, example])  # BatchNorm refuses to learn from a single value
    try:
        return _trace(on_meta(model), example.to("meta"), training)
    except Exception:
        # Meta tensors have no values: only a run on real ones tells whether the model or the meta device is at fault.
        if example.is_meta:
            raise ConversionError(
                f"cannot trace {type(model).__name__} without its weights: its program looks at values, or it does not "
                "run on this example."
            ) from None
        root = copy.deepcopy(model)
        try:
            return _trace(root, example, training)
        except Exception as error:
            raise ConversionError(f"cannot trace {type(model).__name__}: {_explain(error, model, example)}") from error


def _trace(root: nn.Module, example: Tensor, training: bool) -> fx.Graph:
    root.train(training)
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        parameters = list(inspect.signature(root.forward).parameters.values())[1:]
        optional = {p.name: p.default for p in parameters if p.default is not inspect.Parameter.empty}
        return ExampleTracer(example).trace(root, optional)


def _explain(error: Exception, model: nn.Module, example: Tensor) -> str:
    """The innermost source line that belongs to neither torch nor densify, and what went wrong there."""
    place = ""
    frame = error.__traceback__
    while frame is not None:
        name = frame.tb_frame.f_code.co_filename
        if not any(part in name for part in _OWN):
            place = f"{name.rsplit('/', 1)[-1]}:{frame.tb_lineno}, in {frame.tb_frame.f_code.co_name}"
        frame = frame.tb_next
    message = str(error).strip().split("\n")[0] or type(error).__name__
    at = f" at {place}" if place else ""
    return f"{message}{at}, with an example of shape {tuple(example.shape)}. Does the model run on this example?"


class ExampleProxy(fx.Proxy):
    """A proxy that knows its value on the example."""

    tracer: ExampleTracer

    @property
    def value(self) -> Any:
        return self.node.meta["value"]

    def __getattr__(self, name: str) -> Any:
        if name == "shape" and self.node.op == "get_attr":
            return self.value.shape
        return super().__getattr__(name)

    def __len__(self) -> int:
        if isinstance(self.value, Tensor):
            batch: Any = self.tracer.create_proxy("call_method", "size", (self, 0), {})
            return int(batch)
        return len(self.value)

    def __iadd__(self, other: Any) -> Any:
        return self.tracer.create_proxy("call_function", operator.iadd, (self, other), {})

    def __isub__(self, other: Any) -> Any:
        return self.tracer.create_proxy("call_function", operator.isub, (self, other), {})

    def __imul__(self, other: Any) -> Any:
        return self.tracer.create_proxy("call_function", operator.imul, (self, other), {})

    def __itruediv__(self, other: Any) -> Any:
        return self.tracer.create_proxy("call_function", operator.itruediv, (self, other), {})

    def __int__(self) -> int:
        return int(self.tracer.decide(self, int(self.value)))

    def __index__(self) -> int:
        return int(self.tracer.decide(self, operator.index(self.value)))

    def __float__(self) -> float:
        return float(self.tracer.decide(self, float(self.value)))

    def __ceil__(self) -> Any:
        return self.tracer.create_proxy("call_function", math.ceil, (self,), {})

    def __floor__(self) -> Any:
        return self.tracer.create_proxy("call_function", math.floor, (self,), {})

    def __contains__(self, item: Any) -> bool:
        return item in self.value

    __hash__ = fx.Proxy.__hash__


class ExampleTracer(fx.Tracer):
    """A tracer that runs each node on the example as it records it.

    Args:
        example: the input, on the same device as the traced module's parameters.
    """

    def __init__(self, example: Tensor) -> None:
        functions = [target for target in added() if not isinstance(target, type)]
        super().__init__(autowrap_functions=tuple(functions))
        # A function is also called by way of its module: median.filter(x).
        self._autowrap_search += [m for f in functions if (m := inspect.getmodule(f)) is not None]
        self.record_stack_traces = True
        self.example = example
        self.running = False
        self.owners: list[str] = []
        self.names: dict[int, str] = {}

    def trace(self, root: Any, concrete_args: dict[str, Any] | None = None) -> fx.Graph:
        self.names = {id(t): name for name, t in [*root.named_parameters(), *root.named_buffers()]}
        return super().trace(root, concrete_args)

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

    def create_node(
        self, kind: str, target: Any, args: Any, kwargs: Any, name: Any = None, type_expr: Any = None
    ) -> Any:
        if kind == "output":
            args = fx.map_arg(args, self._opened)
        node = super().create_node(kind, target, args, kwargs, name, type_expr)
        node.meta["owner"] = self.owners[-1] if self.owners else ""
        if kind != "output":
            node.meta["value"] = self._run(node, target, args)
        return node

    def _opened(self, node: fx.Node) -> Any:
        """A tuple of tensors entry by entry, so that every output has a node of its own."""
        value = node.meta["value"]
        if not isinstance(value, tuple | list) or isinstance(value, torch.Size):
            return node
        return type(value)(
            self.create_node("call_function", operator.getitem, (node, i), {}) for i in range(len(value))
        )

    def _run(self, node: fx.Node, target: Any, args: Any) -> Any:
        if node.op == "placeholder":
            if any(n.op == "placeholder" and n is not node for n in self.graph.nodes):
                return args[0] if args else None  # an optional second input keeps its default
            return self.example
        values, keywords = fx.map_arg((node.args, node.kwargs), lambda n: n.meta["value"])
        self.running = True
        try:
            if node.op == "get_attr":
                return self._attribute(node, str(target))
            if node.op == "call_module":
                return self.root.get_submodule(str(target))(*values, **keywords)
            if node.op == "call_method":
                return getattr(values[0], str(target))(*values[1:], **keywords)
            with torch.device(self.example.device):
                return target(*values, **keywords)
        finally:
            self.running = False

    def _attribute(self, node: fx.Node, target: str) -> Any:
        value: Any = self.root
        for part in target.split("."):
            value = getattr(value, part)
        if isinstance(value, Tensor) and target not in self.names.values():
            node.meta["constant"] = value
        return value.to(self.example.device) if isinstance(value, Tensor) else value

    def call_module(self, m: nn.Module, forward: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        if self.running:
            return forward(*args, **kwargs)
        self.owners.append(self.path_of_module(m))
        try:
            return super().call_module(m, forward, args, kwargs)
        finally:
            self.owners.pop()

    def getattr(self, attr: str, attr_val: Any, parameter_proxy_cache: dict[str, Any]) -> Any:
        if not self.running and isinstance(attr_val, Tensor) and id(attr_val) in self.names:
            name = self.names[id(attr_val)]
            if name not in parameter_proxy_cache:
                parameter_proxy_cache[name] = self.create_proxy("get_attr", name, (), {})
            return parameter_proxy_cache[name]
        return attr_val

    def create_arg(self, a: Any) -> Any:
        """Named tuples stay what they are; torch.fx would make a call of their class."""
        if isinstance(a, tuple) and hasattr(a, "_fields"):
            return type(a)(*(self.create_arg(item) for item in a))
        return super().create_arg(a)

    def decide(self, proxy: ExampleProxy, value: int | float | bool) -> int | float | bool:
        """Take the example's value, and record the guard that holds other inputs to it."""
        self.create_proxy("call_function", guard, (proxy, value, source_line(proxy.node)), {})
        return value

    def to_bool(self, obj: fx.Proxy) -> bool:
        assert isinstance(obj, ExampleProxy)
        return bool(self.decide(obj, bool(obj.value)))

    def iter(self, obj: fx.Proxy) -> Iterator[Any]:
        assert isinstance(obj, ExampleProxy)
        return iter([self.create_proxy("call_function", operator.getitem, (obj, i), {}) for i in range(len(obj.value))])


_OWN = ("/torch/", "/densify/graphs/", "\\torch\\", "\\densify\\graphs\\", "<eval")


def source_line(node: fx.Node) -> str:
    """File and line of the program that made this node."""
    lines = [line.strip() for line in (node.stack_trace or "").splitlines() if line.strip().startswith("File")]
    lines = [line for line in lines if not any(part in line for part in _OWN)]
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


def probe(graph: fx.Graph, root: nn.Module) -> dict[str, tuple[tuple[int, ...], ...]]:
    """How the shapes of a graph's tensors follow the image's: per node its shape with each spatial axis doubled.

    Nodes that do not run at another size than the example's are left out, and what depends on them.

    Args:
        graph: as :func:`trace` made it.
        root: the module tree on the meta device.
    """
    image = next(node.meta["value"] for node in graph.nodes if node.op == "placeholder")
    found: list[dict[str, tuple[int, ...]]] = []
    for axis in range(2, image.dim()):
        shape = [size * 2 if dim == axis else size for dim, size in enumerate(image.shape)]
        found.append(_shapes(graph, root, torch.empty(shape, dtype=image.dtype, device="meta")))
    common = set.intersection(*(set(one) for one in found))
    return {name: tuple(one[name] for one in found) for name in common}


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
