"""From torch.fx nodes to op descriptions: modules, functions and tensor methods alike.

A reader is a function ``(call) -> Op``, registered for the callables, module classes and method names it reads.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from math import prod
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from densify.errors import ConversionError
from densify.graphs.fx.trace import source_line
from densify.lattice import Window
from densify.ops import (
    AdaptivePool,
    AvgPool,
    Channelwise,
    Conv,
    Flatten,
    GlobalPool,
    Join,
    Linear,
    MaxPool,
    Op,
    Pointwise,
    ShapeOf,
    Unsupported,
)
from densify.planning import Network, Site


@dataclass(frozen=True)
class Call:
    """One node, its arguments by name whether it calls a module, a function or a method.

    Attributes:
        node: the torch.fx node.
        module: the module that it calls, or None.
        maps: the nodes among its arguments that hold maps.
    """

    node: fx.Node
    module: nn.Module | None
    maps: tuple[fx.Node, ...]

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


Reader = Callable[[Call], Op]
_READERS: dict[Any, Reader] = {}


def reads(*targets: Any) -> Callable[[Reader], Reader]:
    """Register a reader for functions, module classes, and (as strings) tensor methods."""

    def register(reader: Reader) -> Reader:
        for target in targets:
            if _READERS.setdefault(target, reader) is not reader:
                raise ValueError(f"{target} has a reader already")
        return reader

    return register


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
    node = call.node
    reader = _READERS.get(type(call.module) if call.module is not None else node.target)
    if call.module is not None and (call.module._forward_pre_hooks or call.module._forward_hooks):
        return Unsupported(
            "the module has forward hooks, which a rewritten layer would leave out",
            "Remove them (torch.nn.utils.remove_weight_norm and the like), or use torch.nn.utils.parametrizations",
        )
    if reader is not None:
        return reader(call)
    same = isinstance(call.result, Tensor) and call.result.shape[2:] == call.source.shape[2:]
    return Unsupported(f"there is no rule for {kind(call)}", "Choose layers behind it", keeps_size=same)


def kind(call: Call) -> str:
    """The op's name in torch."""
    if call.module is not None:
        return type(call.module).__name__
    target = call.node.target
    name = target if isinstance(target, str) else getattr(target, "__name__", str(target))
    return next((n for n in dir(F) if getattr(F, n) is target), name) if name in ("fn", "boolean_dispatch") else name


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


def _each(value: Any, count: int) -> list[Any]:
    values = list(value) if isinstance(value, tuple | list) else [value]
    return values * count if len(values) == 1 else values


@reads(nn.Conv1d, nn.Conv2d, nn.Conv3d, F.conv1d, F.conv2d, F.conv3d)
def conv(call: Call) -> Op:
    names = "input weight bias stride padding dilation groups"
    given = call.value(call.arguments(names, stride=1, padding=0, dilation=1))
    if getattr(call.module, "padding_mode", "zeros") != "zeros":
        return Unsupported("there is no rule for padding_mode other than zeros", "Choose layers behind it")
    count = call.spatial
    kernel = given["weight"].shape[2:]
    strides, dilations = _each(given["stride"], count), _each(given["dilation"], count)
    if given["padding"] in ("same", "valid"):
        totals = [d * (k - 1) if given["padding"] == "same" else 0 for k, d in zip(kernel, dilations, strict=True)]
        sides = [(total // 2, total - total // 2) for total in totals]
    else:
        sides = [(p, p) for p in _each(given["padding"], count)]
    return Conv(
        tuple(
            Window(k, s, low, high, d) for k, s, (low, high), d in zip(kernel, strides, sides, dilations, strict=True)
        )
    )


def _pool_windows(given: dict[str, Any], count: int) -> tuple[Window, ...]:
    kernels = _each(given["kernel_size"], count)
    strides = _each(given["stride"], count) if given["stride"] not in (None, (), []) else kernels
    paddings, dilations = _each(given["padding"], count), _each(given["dilation"], count)
    return tuple(
        Window(k, s, p, p, d, bool(given["ceil_mode"]))
        for k, s, p, d in zip(kernels, strides, paddings, dilations, strict=True)
    )


@reads(nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d, F.max_pool1d, F.max_pool2d, F.max_pool3d)
@reads(torch.max_pool1d, torch.max_pool2d, torch.max_pool3d)
def max_pool(call: Call) -> Op:
    names = "input kernel_size stride padding dilation ceil_mode return_indices"
    given = call.value(call.arguments(names, stride=None, padding=0, dilation=1, ceil_mode=False, return_indices=False))
    if given["return_indices"]:
        return Unsupported("there is no rule for a max pooling that returns indices", "Choose layers behind it")
    return MaxPool(_pool_windows(given, call.spatial))


@reads(nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d, F.avg_pool1d, F.avg_pool2d, F.avg_pool3d)
def avg_pool(call: Call) -> Op:
    names = "input kernel_size stride padding ceil_mode count_include_pad divisor_override"
    written = call.arguments(names, stride=None, padding=0, ceil_mode=False, count_include_pad=True)
    if any(isinstance(size, fx.Node) for size in _each(written["kernel_size"], 1)):
        if tuple(_each(call.value(written["kernel_size"]), call.spatial)) == tuple(call.source.shape[2:]):
            return GlobalPool()
        return Unsupported("the kernel's size depends on the input's size", "Choose layers behind it")
    given = call.value(written) | {"dilation": 1}
    windows = _pool_windows(given, call.spatial)
    return AvgPool(windows, count_include_pad=bool(given["count_include_pad"]), divisor=given.get("divisor_override"))


_ADAPTIVE = [f"{kind}{n}" for kind in ("AvgPool", "MaxPool") for n in (1, 2, 3)]


@reads(*(getattr(nn, f"Adaptive{name}d") for name in _ADAPTIVE))
@reads(*(getattr(F, f"adaptive_{kind}_pool{n}d") for kind in ("avg", "max") for n in (1, 2, 3)))
def adaptive_pool(call: Call) -> Op:
    if not isinstance(call.result, Tensor):
        return Unsupported("there is no rule for a pooling that returns indices", "Choose layers behind it")
    sizes = tuple(call.result.shape[2:])
    return GlobalPool() if prod(sizes) == 1 else AdaptivePool(sizes)


@reads(*everywhere("mean sum amax amin"))
def reduction(call: Call) -> Op:
    given = call.value(call.arguments("input dim keepdim", dim=None, keepdim=False))
    rank = call.source.dim()
    dims = {d % rank for d in _each(given["dim"], 1)} if given["dim"] is not None else set(range(rank))
    if rank > 2 and dims == set(range(2, rank)):
        return GlobalPool(keepdim=bool(given["keepdim"]))
    if dims == {1} and given["keepdim"]:
        return Channelwise()
    return Unsupported(f"there is no rule for a reduction over the axes {sorted(dims)}", "Choose layers behind it")


@reads(nn.Flatten, torch.flatten, torch.reshape, torch.squeeze, "flatten", "view", "reshape", "squeeze")
def reshape(call: Call) -> Op:
    before, after = tuple(call.source.shape), tuple(call.result.shape)
    if after == before:
        return Pointwise()
    if after == (before[0], prod(before[1:])):
        return Flatten()
    return Unsupported(f"there is no rule for reshaping {before} to {after}", "Choose layers behind it")


@reads(nn.Linear, F.linear)
def linear(call: Call) -> Op:
    if call.source.dim() == 2:
        return Linear()
    return Unsupported("a Linear layer on a map that was not flattened", "Choose layers behind it")


_ELEMENTWISE = (
    "relu relu6 sigmoid tanh gelu silu mish elu selu celu leaky_relu prelu rrelu hardtanh hardswish hardsigmoid "
    "hardshrink softplus softsign softshrink tanhshrink threshold logsigmoid exp expm1 log log1p sqrt rsqrt abs neg "
    "sign square pow reciprocal clamp clamp_min clamp_max clip erf sin cos nan_to_num dropout alpha_dropout "
    "feature_alpha_dropout dropout1d dropout2d dropout3d where clone detach"
)
_MODULES = (
    "ReLU ReLU6 Sigmoid Tanh GELU SiLU Mish ELU SELU CELU LeakyReLU PReLU RReLU Hardtanh Hardswish Hardsigmoid "
    "Hardshrink Softplus Softsign Softshrink Tanhshrink Threshold LogSigmoid Dropout Dropout1d Dropout2d Dropout3d "
    "AlphaDropout FeatureAlphaDropout Identity"
)
_ARITHMETIC = "add sub mul div true_divide maximum minimum subtract multiply divide fmax fmin"
_OPERATORS = "add sub mul truediv iadd isub imul itruediv neg pow"


@reads(*everywhere(_ELEMENTWISE), *(getattr(nn, name) for name in _MODULES.split()), "contiguous", "to", "float")
@reads(*everywhere(_ARITHMETIC), *(getattr(operator, name) for name in _OPERATORS.split()))
def elementwise(call: Call) -> Op:
    if len(call.maps) > 1:
        return Join()
    others = [n.meta["value"] for n in call.node.all_input_nodes if n not in call.maps]
    tensors = [other for other in others if isinstance(other, Tensor) and other.dim() > 0]
    rank = call.source.dim()
    if any(size > 1 for other in tensors for size in other.shape[max(2 - rank + other.dim(), 0) :] if rank > 2):
        return Unsupported(
            "it combines the map with a tensor that has spatial extent of its own",
            "Choose layers behind it",
            keeps_size=call.result.shape == call.source.shape,
        )
    return Channelwise() if tensors or isinstance(call.module, nn.PReLU) else Pointwise()


@reads(torch.cat, torch.concat)
def cat(call: Call) -> Op:
    given = call.value(call.arguments("tensors dim", dim=0))
    if given["dim"] % call.source.dim() == 1 and len(call.maps) == len(given["tensors"]):
        return Join()
    if len(set(call.node.args[0])) < len(call.node.args[0]) and given["dim"] % call.source.dim() == 1:  # type: ignore[arg-type]
        return Join()
    return Unsupported("there is no rule for a concatenation along this axis", "Choose layers behind it")


@reads(nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm, F.batch_norm)
@reads(nn.LocalResponseNorm, nn.CrossMapLRN2d, F.local_response_norm)
def across_channels(call: Call) -> Op:
    return Channelwise()


@reads(nn.Softmax, nn.LogSoftmax, *everywhere("softmax log_softmax"))
def softmax(call: Call) -> Op:
    given = call.value(call.arguments("input dim", dim=None))
    dim = given["dim"] if given["dim"] is not None else 1
    if dim % call.source.dim() == 1:
        return Channelwise()
    return Unsupported("there is no rule for a softmax over space", "Choose layers behind it")


@reads(operator.getitem)
def getitem(call: Call) -> Op:
    """An entry of a tuple of maps, or some of the channels: x[:, 0], x[:, 2:4]."""
    if not isinstance(call.maps[0].meta["value"], Tensor):
        return Pointwise()
    index = call.node.args[1]
    entries = list(index) if isinstance(index, tuple) else [index]
    if all(entry == slice(None) for entry in [*entries[:1], *entries[2:]]):
        return Channelwise()
    return Unsupported("there is no rule for an index into space", "Choose layers behind it")


@reads(torch.chunk, torch.split, "chunk", "split")
def pieces(call: Call) -> Op:
    given = call.value(call.arguments("input size dim", dim=0))
    if given["dim"] % call.source.dim() == 1:
        return Channelwise()
    return Unsupported("there is no rule for cutting along this axis", "Choose layers behind it")


@reads(torch.unsqueeze, "unsqueeze")
def unsqueeze(call: Call) -> Op:
    """A channel axis put back, as Inception's transform_input does: x[:, 0].unsqueeze(1)."""
    if call.value(call.arguments("input dim"))["dim"] == 1:
        return Channelwise()
    return Unsupported("there is no rule for adding an axis here", "Choose layers behind it")


@reads(getattr, "size", "dim")
def shape_of(call: Call) -> Op:
    return ShapeOf()
