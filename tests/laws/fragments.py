"""Law 3 as a program: the dense network computed by running the original's layers on fragments.

Nothing of densify is used. A map of the dense network is held as its fragments, one tensor per phase, each of the
original's size; a dense output is put together from them at the very end.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import product
from math import gcd
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from laws.blocks import Block, Computed, Slice
from laws.merges import UPSAMPLINGS, ResizeLike, lies, ratio, upsampled
from laws.windows import Geometry, Kind, conv_geometry, pool_geometry, slide

Phase = tuple[int, ...]
Met = tuple[str, int, int | Fraction, int]
Chooses = Callable[[str, int, int | Fraction, int], bool]


@dataclass(frozen=True)
class Fragments:
    """A map of the dense network.

    Attributes:
        parts: for every phase, the original's tensor for it.
        est: phases per spatial axis.
        step: input pixels between neighbouring samples of the original, per spatial axis.
        flat: a flatten with a window larger than one sample stands before; the map was kept.
        up: an upsampling stands before.
    """

    parts: dict[Phase, Tensor]
    est: tuple[int, ...]
    step: tuple[int | Fraction, ...]
    flat: bool = False
    up: bool = False

    def at(self, est: tuple[int, ...]) -> Fragments:
        """The phases that a coarser lattice has."""
        apart = [own // e for own, e in zip(self.est, est, strict=True)]
        kept = {
            phase: self.parts[tuple(r * k for r, k in zip(phase, apart, strict=True))]
            for phase in product(*map(range, est))
        }
        return Fragments(kept, est, self.step, self.flat, self.up)

    def dense(self) -> Tensor:
        """[B, C, *(n * e)]; a vector per image counts as a map of one sample."""
        whole: Tensor | None = None
        for phase, part in self.parts.items():
            part = part if part.dim() > 2 else part.reshape(*part.shape, *[1] * len(self.est))
            if whole is None:
                sizes = [n * e for n, e in zip(part.shape[2:], self.est, strict=True)]
                whole = part.new_full((*part.shape[:2], *sizes), float("nan"))
            index: tuple[Any, ...] = (..., *(slice(r, None, e) for r, e in zip(phase, self.est, strict=True)))
            whole[index] = part
        assert whole is not None
        return whole


def convolved(
    kind: Kind, geometry: Sequence[Geometry], source: Fragments, chosen: Sequence[bool], result_est: Sequence[int]
) -> dict[Phase, Tensor]:
    """All phases of a window op's output (DESIGN, law 3)."""
    parts = {}
    for phase in product(*(range(e) for e in result_est)):
        n = next(iter(source.parts.values())).shape[2:]
        reads = [
            g.windows(size, r, e, c) for g, size, r, e, c in zip(geometry, n, phase, source.est, chosen, strict=True)
        ]
        fragment = source.parts[tuple(at for at, _ in reads)]
        parts[phase] = slide(fragment, kind, geometry, [windows for _, windows in reads])
    return parts


class _Tracer(fx.Tracer):
    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        ours = isinstance(m, Block | Slice | Computed)
        return ours or super().is_leaf_module(m, module_qualified_name)


class FragmentInterpreter(fx.Interpreter):
    """Runs a plainly traced model on fragments.

    Args:
        model: the original.
        chooses: (layer, axis, step of the input, stride) -> whether the stride is removed there.
        window: extent of the map that a flatten takes in, where that is more than one sample.
        merge: what upsamplings do with a denser map.
    """

    def __init__(
        self, model: nn.Module, chooses: Chooses, window: tuple[int, ...] | None = None, merge: str = "select"
    ) -> None:
        super().__init__(fx.GraphModule(model, _Tracer().trace(model)), garbage_collect_values=False)
        self.chooses, self.window, self.merge = chooses, window, merge
        self.met: list[Met] = []
        self.calls: dict[str, int] = {}
        self.fits = True

    def call_module(self, target: Any, args: Any, kwargs: Any) -> Any:
        module, x = self.fetch_attr(target), args[0]
        if isinstance(module, nn.Conv1d | nn.Conv2d | nn.Conv3d):
            return self.conv(target, module, x)
        if isinstance(module, Slice):
            pairs = zip(module.offset, module.stride, strict=True)
            return self.slide(target, Kind("max"), [Geometry(1, s, low=-o) for o, s in pairs], x)
        if isinstance(module, nn.PixelUnshuffle):
            factor = module.downscale_factor
            if any(n % factor for n in next(iter(x.parts.values())).shape[2:]):
                raise RuntimeError("the map is no multiple of the factor")
            return self.slide(target, Kind("patches"), [Geometry(factor, factor)] * len(x.est), x)
        if isinstance(module, nn.MaxPool1d | nn.MaxPool2d | nn.MaxPool3d):
            sizes = (module.kernel_size, module.stride, module.padding, module.dilation, module.ceil_mode)
            return self.slide(target, Kind("max"), pool_geometry(len(x.est), *sizes), x)
        if isinstance(module, nn.AvgPool1d | nn.AvgPool2d | nn.AvgPool3d):
            sizes = (module.kernel_size, module.stride, module.padding, 1, module.ceil_mode)
            divisor = getattr(module, "divisor_override", None)
            kind = Kind("avg", count_include_pad=module.count_include_pad, divisor=divisor)
            return self.slide(target, kind, pool_geometry(len(x.est), *sizes), x)
        if isinstance(module, UPSAMPLINGS):
            return self.upsampled(module, *args)
        if isinstance(module, nn.Flatten):
            return self.flatten(x, module)
        if isinstance(module, nn.Linear) and x.flat:
            return self.linear(x, module)
        return self.each(module, args, kwargs)

    def call_function(self, target: Any, args: Any, kwargs: Any) -> Any:
        name = _POOLS.get(target)
        if name is None and target is torch.flatten:
            return self.flatten(args[0], target, *args[1:])
        if name is None:
            return self.each(target, args, kwargs)
        layer = f"{name}_{self.calls[name]}" if self.calls.setdefault(name, 0) else name
        self.calls[name] += 1
        order = _MAX_ARGUMENTS if name.startswith("max") else _AVG_ARGUMENTS
        given = _POOL_DEFAULTS | dict(zip(order.split(), args, strict=False)) | kwargs
        sizes = [given[key] for key in ("kernel_size", "stride", "padding", "dilation", "ceil_mode")]
        geometry = pool_geometry(len(args[0].est), *sizes)
        include, divisor = given["count_include_pad"], given["divisor_override"]
        kind = Kind(name[:3], count_include_pad=include, divisor=divisor)
        return self.slide(layer, kind, geometry, args[0])

    def call_method(self, target: Any, args: Any, kwargs: Any) -> Any:
        def run(x: Any, *rest: Any, **named: Any) -> Any:
            return getattr(x, target)(*rest, **named)

        return self.flatten(args[0], run, *args[1:]) if target == "flatten" else self.each(run, args, kwargs)

    def conv(self, layer: str, module: Any, x: Fragments) -> Fragments:
        """A convolution; reflections and the like are of the fragment's own samples."""
        padding = module.padding
        if module.padding_mode != "zeros":
            amounts = module._reversed_padding_repeated_twice
            x, padding = self.each(F.pad, (x, amounts, module.padding_mode), {}), 0
        weight = module.kernel() if isinstance(module, Computed) else module.weight
        geometry = conv_geometry(weight, module.stride, padding, module.dilation)
        return self.slide(layer, Kind("conv", weight, module.bias, module.groups), geometry, x)

    def slide(self, layer: str, kind: Kind, geometry: Sequence[Geometry], x: Fragments) -> Fragments:
        """A window op, its strides removed where `chooses` says so."""
        chosen = []
        for axis, (g, step) in enumerate(zip(geometry, x.step, strict=True)):
            self.met.append((layer, axis, step, g.stride))
            self.fits &= min(g.fitting(part.shape[2 + axis]) for part in x.parts.values()) > 0
            chosen.append(g.stride > 1 and self.chooses(layer, axis, step, g.stride))
        est = tuple(e * g.stride if c else e for e, g, c in zip(x.est, geometry, chosen, strict=True))
        steps = tuple(s * g.stride for s, g in zip(x.step, geometry, strict=True))
        return Fragments(convolved(kind, geometry, x, chosen, est), est, steps, up=x.up)

    def upsampled(self, module: nn.Module, x: Fragments, like: Fragments | None = None) -> Fragments:
        """An upsampling, by brute force."""
        given = lies(module, x.est, x.step, like.step if like is not None else None)
        averages = self.merge == "resample" and not isinstance(module, nn.Upsample | ResizeLike)
        merge = "average" if averages else self.merge
        parts = upsampled(module, x.parts, given, merge, like.parts if like is not None else {})
        steps = []
        for axis, own in enumerate(x.step):
            u = ratio(module, axis, own, like.step[axis] if like is not None else None)
            steps.append(own / u)
        return Fragments(parts, tuple(one.left for one in given), tuple(steps), up=True)

    def flatten(self, x: Fragments, function: Any, *rest: Any) -> Fragments:
        if self.window is None:
            made: Fragments = self.each(function, (x, *rest), {})
            return made
        return Fragments(x.parts, x.est, x.step, flat=True)

    def linear(self, x: Fragments, module: nn.Linear) -> Fragments:
        """A Linear layer at every place of a map: the first after the flatten reads the whole window."""
        channels = next(iter(x.parts.values())).shape[1]
        assert self.window is not None
        kernel = self.window if module.in_features > channels else (1,) * len(x.est)
        weight = module.weight.reshape(module.out_features, channels, *kernel)
        kind, geometry = Kind("conv", weight, module.bias), [Geometry(k) for k in kernel]
        parts = convolved(kind, geometry, x, (False,) * len(x.est), x.est)
        return Fragments(parts, x.est, x.step, flat=True)

    def each(self, function: Any, args: Any, kwargs: Any) -> Any:
        """Any other op, on every phase by itself."""
        found: list[Fragments] = []
        fx.node.map_aggregate((args, kwargs), lambda a: found.append(a) if isinstance(a, Fragments) else None)
        if not found:
            return function(*args, **kwargs)
        est = tuple(map(gcd, *(x.est for x in found))) if len(found) > 1 else found[0].est
        up = any(x.up for x in found)
        assert up or all(x.est == est for x in found), "maps on different lattices meet"
        parts = {}
        for phase in product(*map(range, est)):

            def own(a: Any, phase: Phase = phase) -> Any:
                return a.at(est).parts[phase] if isinstance(a, Fragments) else a

            values, named = fx.node.map_aggregate((args, kwargs), own)
            parts[phase] = function(*values, **named)
        return Fragments(parts, est, found[0].step, flat=any(x.flat for x in found), up=up)


_MAX_ARGUMENTS = "input kernel_size stride padding dilation ceil_mode"
_AVG_ARGUMENTS = "input kernel_size stride padding ceil_mode count_include_pad divisor_override"
_POOL_DEFAULTS: dict[str, Any] = {
    "stride": None,
    "padding": 0,
    "dilation": 1,
    "ceil_mode": False,
    "count_include_pad": True,
    "divisor_override": None,
}
_POOLS = {getattr(F, f"{name}_pool{n}d"): f"{name}_pool{n}d" for name in ("max", "avg") for n in (1, 2, 3)}


class Choice(NamedTuple):
    """A choice as users make it: exactly one is given."""

    start: str | None = None
    layers: tuple[str, ...] | None = None
    output_stride: int | None = None


Outputs = dict[str, Fragments]


def run(
    model: nn.Module, x: Tensor, chooses: Chooses, window: tuple[int, ...] | None = None, merge: str = "select"
) -> Outputs:
    """The outputs of the dense network, as fragments; one alone is called "output"."""
    one = (1,) * (x.dim() - 2)
    made = FragmentInterpreter(model, chooses, window, merge).run(Fragments({(0,) * len(one): x}, one, one))
    if isinstance(made, tuple):
        return {str(i): one for i, one in enumerate(made)}
    return made if isinstance(made, dict) else {"output": made}


def original(model: nn.Module, x: Tensor, window: tuple[int, ...] | None = None) -> dict[str, Tensor]:
    """What the fully convolutional original computes, its spatial axes kept."""
    return {name: made.dense() for name, made in run(model, x, lambda *_: False, window).items()}


def dense(
    model: nn.Module, x: Tensor, choice: Choice, window: tuple[int, ...] | None = None, merge: str = "select"
) -> Outputs:
    """The outputs of the dense network for a choice of layers."""
    return run(model, x, rule(choice, window_ops(model, x, window)), window, merge)


def window_ops(model: nn.Module, x: Tensor, window: tuple[int, ...] | None = None) -> list[Met]:
    """(layer, axis, step of the input, stride) for every window op of a model, in order."""
    return _original(model, x, window).met


def fits(model: nn.Module, x: Tensor, window: tuple[int, ...] | None = None) -> bool:
    """Whether a whole window fits into every map; in ceil mode torch runs without."""
    return _original(model, x, window).fits


def _original(model: nn.Module, x: Tensor, window: tuple[int, ...] | None) -> FragmentInterpreter:
    interpreter = FragmentInterpreter(model, lambda *_: False, window)
    one = (1,) * (x.dim() - 2)
    interpreter.run(Fragments({(0,) * len(one): x}, one, one))
    return interpreter


def rule(choice: Choice, met: Sequence[Met]) -> Chooses:
    """Which strides go: DESIGN, section 4, "Choosing"."""

    def named(layer: str, name: str) -> bool:
        return layer == name or layer.startswith(f"{name}.")

    if choice.start is not None:
        least = {
            axis: min(step for layer, at, step, _ in met if at == axis and named(layer, choice.start))
            for axis in {at for layer, at, _, _ in met if named(layer, choice.start)}
        }
        return lambda layer, axis, step, stride: step >= least[axis]
    if choice.output_stride is not None:
        wanted = choice.output_stride
        return lambda layer, axis, step, stride: step * stride > wanted
    names = choice.layers or ()
    return lambda layer, axis, step, stride: any(named(layer, name) for name in names)
