"""What a plan says, as plain numbers, texts and lists: for tables and JSON alike."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict
from math import gcd, prod
from typing import TYPE_CHECKING, Any

from densify.cost import FLOPS, work
from densify.errors import RefusedError
from densify.lattice import DenseWindow, number
from densify.maps import positions
from densify.offers import Offer, Offers
from densify.ops import (
    AdaptivePool,
    Channelwise,
    DenseWindowed,
    Flatten,
    GlobalPool,
    Identity,
    Linear,
    Merge,
    PhaseWise,
    Pointwise,
    Rows,
    ShapeOf,
    Windowed,
)
from densify.plans import Plan, Step, Survey

if TYPE_CHECKING:
    from densify.conversion import Dense
    from densify.onnx.conversion import DenseOnnx

Facts = dict[str, Any]


def plain(value: Any) -> Any:
    """What JSON can say: lists for tuples, and null for what is not finite."""
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def survey_facts(survey: Survey, *, every: bool = False) -> Facts:
    """What there is in an original: its layers."""
    return {
        "input_size": survey.input_size,
        "parameters": survey.total,
        "flops": FLOPS * survey.cost.original,
        "layers": layers(survey, survey.parameters, every=every),
    }


def dense_facts(dense: Dense | DenseOnnx) -> Facts:
    """What was converted, and where its predictions lie."""
    return {
        "chosen": list(dense.plan.layers),
        "lattices": {name: [axis._asdict() for axis in axes] for name, axes in dense.lattices.items()},
        "merged": {name: axes.merged for name, axes in dense.lattices.items()},
        "positions": {name: [axis._asdict() for axis in axes] for name, axes in dense.positions.items()},
        "follows_size": list(dense.options.shape[2:]) if dense.plan.follows_size else None,
    }


def layers(plan: Plan, parameters: Mapping[str, int], *, every: bool = False) -> list[Facts]:
    """One entry per layer that moves or joins samples; pointwise ones too where `every` asks.

    Args:
        parameters: their number by the layer's name; a layer without is a function.
    """
    skipped = () if every else (Pointwise, Channelwise, Rows, ShapeOf)
    return [
        _layer(step, parameters)
        for step in plan.steps.values()
        if step.site.op is not None and not isinstance(step.site.op, skipped)
    ]


def _layer(step: Step, parameters: Mapping[str, int]) -> Facts:
    site, axes = step.site, step.map.axes
    windows = site.op.windows if isinstance(site.op, Windowed) else ()
    fields = [axis.field for axis in axes]
    return {
        "name": site.layer,
        "op": site.kind,
        "strided": any(window.stride > 1 for window in windows),
        "kernel": [window.kernel for window in windows],
        "stride": [window.stride for window in windows],
        "padding": [[window.low, window.high] for window in windows],
        "follows_size": isinstance(site.op, Windowed) and bool(site.op.same),
        "dilation": [window.dilation for window in windows],
        "output": None if site.shape is None else list(site.shape),
        "step": [number(axis.step) for axis in axes],
        "receptive_field": [None if field is None else field.extent for field in fields],
        "parameters": parameters.get(site.layer, 0),
        "flops": FLOPS * work(step).original,
        "where": site.where,
    }


def plan_facts(plan: Plan) -> Facts:
    """What would change, where the outputs come to lie, and what it would cost."""
    return {
        "input_size": plan.input_size,
        "padding": plan.padding,
        "head": plan.head,
        "chosen": list(plan.layers),
        "changes": [fact for fact in map(_change, plan.steps.values()) if fact is not None],
        "outputs": [_output(plan, name) for name in plan.outputs],
        "flops": _ratio(*(FLOPS * each for each in plan.cost)),
        "memory": _ratio(*plan.memory),
        "wrapped": [{"name": name, "op": kind} for name, kind in plan.wrapped.items()],
        "merge": plan.merge,
        "merges": [_merge(step, step.op) for step in plan.steps.values() if isinstance(step.op, Merge)],
        "wasted": [fact for step in plan.steps.values() for fact in _waste(step)],
        "exact": plan.exact,
        "follows_size": plan.follows_size,
    }


def _ratio(before: int, after: int) -> Facts:
    return {"original": before, "dense": after, "ratio": after / before if before else None}


def offered(found: Offers) -> Facts:
    """What there is to choose: the original's cost, and what each choice would give."""
    survey = found.survey
    outputs = {name: [axis.size for axis in one.axes] for name, one in survey.outputs.items()}
    own = {"flops": FLOPS * survey.cost.original, "memory": survey.memory.original, "outputs": outputs}
    choices = [_offer(offer) for offer in found]
    return {"input_size": survey.input_size, "original": own, "choices": choices}


def _offer(offer: Offer) -> Facts:
    """What one choice would give, or why it is refused."""
    fact: Facts = {"layers": list(offer.layers), "starts": list(offer.starts), "output_stride": offer.output_stride}
    if isinstance(offer.plan, RefusedError):
        return fact | {"refused": [asdict(refusal) for refusal in offer.plan.refusals]}
    facts = plan_facts(offer.plan)
    same = ("outputs", "flops", "memory", "wrapped", "merges", "exact")
    return fact | {"refused": None, **{name: facts[name] for name in same}}


def _change(step: Step) -> Facts | None:
    """What is put in one op's place; None where the original's op stays."""
    fact: Facts = {"name": step.site.layer, "op": step.site.kind}
    if isinstance(step.op, DenseWindowed):
        linear = isinstance(step.site.op, Linear)
        values = _window_changes(step.op.windows)
        if not values and not linear:
            return None
        kernel = [window.kernel for window in step.op.windows]
        return fact | {"becomes": "convolution" if linear else "dense window", "kernel": kernel, **values}
    if isinstance(step.op, PhaseWise):
        if all(source.untouched for source in step.sources):
            return None
        return fact | {"becomes": "phase by phase"}
    if isinstance(step.op, Merge):
        return fact | {"becomes": _MERGES[step.op.how]}
    if isinstance(step.op, Identity) and isinstance(step.site.op, AdaptivePool | Flatten | GlobalPool):
        return fact | {"becomes": "left out"}
    return None


_MERGES = {
    "select": "some of the phases",
    "average": "the average over shifts",
    "resample": "read from the denser map",
}


def _merge(step: Step, op: Merge) -> Facts:
    """An upsampling that meets a denser map: eST before and after, and the step of that map in input pixels."""
    return {
        "name": step.site.layer,
        "op": step.site.kind,
        "how": op.how,
        "from": [spread.est for spread in op.spreads],
        "to": [spread.left for spread in op.spreads],
        "step": [number(axis.pitch) for axis in step.sources[0].axes],
    }


def _window_changes(windows: tuple[DenseWindow, ...]) -> Facts:
    """Per property that changes along some axis: its values before and after, per axis."""
    pairs = {
        "stride": [(window.stride, 1 if window.chosen else window.stride) for window in windows],
        "dilation": [(window.dilation, window.spacing) for window in windows],
        "padding": [(window.low, window.pad_low) for window in windows],
    }
    return {
        name: {"from": [a for a, _ in both], "to": [b for _, b in both]}
        for name, both in pairs.items()
        if any(a != b for a, b in both) and not (name == "dilation" and all(window.kernel == 1 for window in windows))
    }


def _output(plan: Plan, name: str) -> Facts:
    one = plan.outputs[name]
    places = positions(one)
    return {
        "name": name,
        "original": [axis.size for axis in one.axes],
        "dense": [axis.dense for axis in one.axes],
        "predictions": prod(axis.dense for axis in one.axes),
        "lattice": [axis.lattice._asdict() for axis in one.axes],
        "positions": [place._asdict() for place in places],
        "repeated": [sum(axis.repeated) for axis in one.axes],
        "averaged": plan.head == "average",
        "merged": one.merged.value,
    }


def _waste(step: Step) -> list[Facts]:
    """Kept strides that skip phases of their input: along an axis only every gcd(stride, eST)-th is used."""
    if not isinstance(step.op, DenseWindowed):
        return []
    return [
        {
            "name": step.site.layer,
            "axis": axis,
            "phases": window.est,
            "used": window.est // gcd(window.stride, window.est),
        }
        for axis, window in enumerate(step.op.windows)
        if not window.chosen and gcd(window.stride, window.est) > 1
    ]
