"""Proxies that know their value on the example, so that a program may ask them what it asks tensors and sizes."""

from __future__ import annotations

import math
import operator
import sys
from collections.abc import Callable
from types import FrameType
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, fx
from torch.fx.proxy import Attribute

from densify.graphs.fx.registry import IN_PLACE

if TYPE_CHECKING:
    from densify.graphs.fx.tracer import ExampleTracer

_DEVICES = ("is_cpu", "is_cuda", "is_mps", "is_xpu", "is_meta")


def instruction(frame: FrameType) -> tuple[int, int]:
    """The instruction that a frame is at."""
    return id(frame), frame.f_lasti


def assigned(x: Tensor, index: Any, value: Any) -> Tensor:
    """``x[index] = value`` on a copy of x."""
    x = x.clone()
    x[index] = value
    return x


class ExampleProxy(fx.Proxy):
    """A proxy that knows its value on the example.

    An op in place, and an assignment to a part, make the proxy that they change stand for their result.
    """

    tracer: ExampleTracer

    @property
    def value(self) -> Any:
        return self.node.meta["value"]

    def __getattr__(self, name: str) -> Any:
        """An attribute of the value, recorded; the few that no result depends on are given as they are."""
        value = self.value
        if isinstance(value, Tensor):
            if name == "shape" and self.node.op == "get_attr":
                return value.shape
            if name in ("requires_grad", "grad_fn"):
                return None if name == "grad_fn" else False
            if name in _DEVICES:
                return name == f"is_{self.tracer.device.type}"
        if isinstance(value, torch.device):
            return getattr(value, name)
        if name.startswith("__array") or not hasattr(value, name):
            raise AttributeError(f"'{type(value).__name__}' object has no attribute '{name}'")
        return ExampleAttribute(self, name)

    def __setitem__(self, index: Any, value: Any) -> None:
        self.node = self._call(assigned, index, value).node

    def __len__(self) -> int:
        if isinstance(self.value, Tensor):
            batch: Any = self.tracer.create_proxy("call_method", "size", (self, 0), {})
            return int(batch)
        return len(self.value)

    def _call(self, function: Any, *args: Any) -> Any:
        return self.tracer.create_proxy("call_function", function, (self, *args), {})

    def __int__(self) -> int:
        return int(self.tracer.decide(self, int))

    def __index__(self) -> int:
        value = int(self.tracer.decide(self, operator.index))
        next(reversed(self.tracer.graph.nodes)).meta["asked"] = instruction(sys._getframe(1))
        return value

    def __float__(self) -> float:
        return float(self.tracer.decide(self, float))

    def __ceil__(self) -> Any:
        return self._call(math.ceil)

    def __floor__(self) -> Any:
        return self._call(math.floor)

    def __round__(self, *digits: Any) -> Any:
        return self._call(round, *digits)

    def __divmod__(self, other: Any) -> Any:
        return (self // other, self % other)

    def __rdivmod__(self, other: Any) -> Any:
        return (other // self, other % self)

    def __contains__(self, item: Any) -> bool:
        if isinstance(self.value, Tensor):
            return bool((self == item).any())
        return any(one is item or bool(one == item) for one in self)

    def __format__(self, spec: str) -> str:
        """Its name, whatever the format: a text that is made of the example's sizes must not decide anything."""
        return repr(self)

    def __eq__(self, other: object) -> Any:
        """Recorded; behind a trace, a proxy that a program kept in a cache equals nothing."""
        return self is other if self.tracer.done else self._call(operator.eq, other)

    def __hash__(self) -> int:
        """That of what is looked up in sets and dicts by its value, guarded; of anything else its identity."""
        value = self.value
        if self.tracer.done or isinstance(value, Tensor):
            return id(self)
        if isinstance(value, int | float):
            return hash(self.tracer.decide(self, type(value)))
        if isinstance(value, tuple):
            return hash(tuple(self))
        return hash(value) if isinstance(value, torch.dtype | torch.device | str) else id(self)


def _in_place(function: Callable[[Any, Any], Any]) -> Callable[[ExampleProxy, Any], Any]:
    def method(self: ExampleProxy, other: Any) -> Any:
        made = self._call(function, other)
        if not isinstance(self.value, Tensor):
            return made
        self.node = made.node  # under its other names too
        return self

    return method


for _operator in IN_PLACE:
    setattr(ExampleProxy, f"__{_operator.__name__}__", _in_place(_operator))


class ExampleAttribute(Attribute, ExampleProxy):
    """An attribute of a proxy, recorded when it is used and is no method."""

    def __setitem__(self, index: Any, value: Any) -> None:
        raise TypeError(f"an assignment to a part of .{self.attr} is not recorded: assign to the tensor itself")
