"""What torch.fx does not record by itself: tensors made from numbers and sizes, and functions that are no torch ops."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import reduce
from typing import TYPE_CHECKING, Any
from unittest.mock import patch

import torch
from torch import Tensor, fx, nn
from torch.overrides import TorchFunctionMode, is_tensor_method_or_property

from densify.errors import ConversionError
from densify.graphs.fx.proxies import ExampleProxy

if TYPE_CHECKING:
    from densify.graphs.fx.tracer import ExampleTracer

SIZED = (torch.zeros, torch.ones, torch.empty, torch.rand, torch.randn)
"""Functions that take sizes one by one: their own parser refuses proxies there, so that torch.fx has to wrap them."""

MAKERS = {
    *SIZED,
    *(torch.full, torch.arange, torch.linspace, torch.logspace, torch.eye, torch.tensor, torch.as_tensor),
    *(torch.scalar_tensor, torch.randint, torch.randperm, torch.tril_indices, torch.triu_indices),
    *(torch.hann_window, torch.hamming_window, torch.blackman_window, torch.kaiser_window),
}
"""Functions that make tensors of nothing."""

_LARGEST = 4096


def whole_functions() -> tuple[Callable[..., Any], ...]:
    """The functions that timm wants kept whole, where it is loaded."""
    known = getattr(sys.modules.get("timm.layers"), "get_notrace_functions", None)
    return tuple(one for one in known() if callable(one)) if known is not None else ()


def written(constant: Tensor) -> Any:
    """The numbers of a tensor that a forward made by other means than torch's.

    Raises:
        ConversionError: there are too many of them to stand in a program.
    """
    if constant.is_meta or constant.numel() > _LARGEST:
        raise ConversionError(
            f"its forward makes a tensor of shape {tuple(constant.shape)} that torch.fx cannot follow. Make it once in "
            "__init__ with register_buffer(persistent=False)"
        )
    return constant.tolist()


class _Recorder(TorchFunctionMode):
    def __init__(self, tracer: ExampleTracer) -> None:
        super().__init__()
        self.tracer = tracer

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if self.tracer.running:
            return func(*args, **(kwargs or {}))
        return self.tracer.record(func, args, kwargs or {})


@contextmanager
def recording(tracer: ExampleTracer, root: nn.Module) -> Iterator[None]:
    """Show the tracer what torch.fx does not see.

    A custom autograd function is a call of its own, since its backward is not that of its forward's ops; a scripted
    function is one because it takes nothing but tensors. The builtins are replaced in the packages of the model's
    classes alone: torch itself must not take a proxy for a tensor.
    """
    apply, script = torch.autograd.Function.__dict__["apply"], torch.jit.ScriptFunction.__call__

    def applied(function: Any, *args: Any, **kwargs: Any) -> Any:
        if not _holds_proxies(args, kwargs):
            return apply.__get__(None, function)(*args, **kwargs)
        return tracer.create_proxy("call_function", _call_of(function, function.__name__), args, kwargs)

    def scripted(function: Any, *args: Any, **kwargs: Any) -> Any:
        if not _holds_proxies(args, kwargs):
            return script(function, *args, **kwargs)
        return tracer.create_proxy("call_function", _call_of(function, function.name), args, kwargs)

    # torch makes lists of its functions at first use and keeps them: let those not be the wrapped ones of a trace.
    with torch.device("meta"):
        is_tensor_method_or_property(torch.empty(0).add)
    with ExitStack() as stack:
        stack.enter_context(patch.object(torch.autograd.Function, "apply", classmethod(applied)))
        stack.enter_context(patch.object(torch.jit.ScriptFunction, "__call__", scripted))
        stack.enter_context(patch.object(torch, "is_tensor", lambda one: _is_instance(one, Tensor)))
        for names in _namespaces(root):
            stack.enter_context(_shadowed(names))
        stack.enter_context(_Recorder(tracer))
        yield


@contextmanager
def _shadowed(names: dict[str, Any]) -> Iterator[None]:
    """A module's global names with ours in front of python's."""
    added = _BUILTINS.keys() - names
    names.update({name: _BUILTINS[name] for name in added})
    try:
        yield
    finally:
        for name in added:
            del names[name]


def _namespaces(root: nn.Module) -> list[dict[str, Any]]:
    """The global names of all modules of the packages that the model's classes come from; not those of the tracer."""
    packages = {type(module).__module__.partition(".")[0] for module in root.modules()} - {"torch", "densify"}
    return [vars(module) for name, module in sys.modules.copy().items() if name.partition(".")[0] in packages]


def _is_instance(one: Any, kind: Any) -> bool:
    """A proxy is what its value is."""
    return isinstance(one.value if isinstance(one, ExampleProxy) and kind is not fx.Proxy else one, kind)


def _extreme(builtin: Callable[..., Any], symbolic: Callable[[Any, Any], Any]) -> Callable[..., Any]:
    """min or max, without a condition that another size would decide otherwise."""

    def call(*args: Any, **kwargs: Any) -> Any:
        items = args if len(args) > 1 else tuple(args[0]) if isinstance(args[0], ExampleProxy | tuple | list) else ()
        proxies = [one for one in items if isinstance(one, ExampleProxy)]
        if not proxies or kwargs or any(isinstance(one.value, Tensor) for one in proxies):
            return builtin(*args, **kwargs)
        return reduce(lambda a, b: proxies[0].tracer.create_proxy("call_function", symbolic, (a, b), {}), items)

    return call


def _length(one: Any) -> Any:
    """len, which python wants to be a number; a batch is of another size next time."""
    if isinstance(one, ExampleProxy) and isinstance(one.value, Tensor):
        return one.tracer.create_proxy("call_method", "size", (one, 0), {})
    return len(one)


_BUILTINS = {
    "len": _length,
    "isinstance": _is_instance,
    "min": _extreme(min, torch.sym_min),
    "max": _extreme(max, torch.sym_max),
}


def _holds_proxies(args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    return any(isinstance(one, fx.Proxy) for one in (*args, *kwargs.values()))


def _call_of(function: Any, name: str) -> Callable[..., Any]:
    """A function of that name that torch.fx can write into a program."""

    def call(*args: Any, **kwargs: Any) -> Any:
        run: Callable[..., Any] = getattr(function, "apply", function)
        return run(*args, **kwargs)

    call.__name__ = call.__qualname__ = name
    return call
