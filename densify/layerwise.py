"""Where a law failed: the first layer whose result diverges, found by comparing layer by layer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from math import prod
from typing import Any, Protocol

from torch import Tensor

from densify.comparison import Check, Divergence, Judge, Report, Tolerance
from densify.errors import DensifyError
from densify.maps import Layout, Map, Merged
from densify.ops import ShapeOf, Values
from densify.planning import at_sizes
from densify.plans import Plan, Step
from densify.sampling import check_grid, check_size

Tensors = Mapping[str, Tensor]


class Layers(Protocol):
    """What the layers of a dense network and of its originals make of an image, by key; all [B, C, *spatial].

    Attributes:
        plan: of the dense network.
    """

    plan: Plan

    def itself(self, x: Tensor, runtime: str) -> Tensors:
        """The original's own layers."""

    def original(self, x: Tensor, runtime: str) -> Tensors:
        """Those of what the dense network must agree with on its grid."""

    def convolutional(self, x: Tensor, runtime: str) -> Tensors:
        """Those of the original with its head as convolutions."""

    def dense(self, x: Tensor, runtime: str) -> Tensors:
        """Those of the network that is checked."""

    def other(self, x: Tensor, runtime: str) -> Tensors:
        """Those of the other form."""

    def behind(self, x: Tensor, runtime: str) -> Tensors:
        """What brute force makes behind the merges."""

    def rounding(self, x: Tensor) -> Mapping[str, float]:
        """The original's own rounding errors."""


_SIDES = {  # by law, in the order in which they are asked
    "head": ("itself", "convolutional"),
    "grid": ("original", "dense"),
    "size": ("original", "dense"),
    "phases": ("other", "dense"),
    "forms": ("other", "dense"),
    "merges": ("behind", "dense"),
}


def located(report: Report, layers: Layers, images: Mapping[str, Tensor], tolerance: Tolerance) -> Report:
    """A report with the first layer that diverges, where a law failed.

    Args:
        images: the inputs by name, [B, C, *spatial].
    """
    found = [[check for check in report.failed if check.law == law] for law in _SIDES]
    # Other weights may change a layer and no output.
    found.append([check for check in report.checks if check.law == "grid"])
    for checks in found:
        known = [check for check in checks if check.input in images]
        if not known:
            continue
        check = min(known, key=lambda one: images[one.input].numel())
        try:
            divergence = _first(layers, check, images[check.input], tolerance)
        except (RuntimeError, DensifyError):  # the report stands, with or without the layer
            continue
        if divergence is not None:
            return replace(report, divergence=divergence)
    return report


def comparable(plan: Plan) -> list[str]:
    """Keys of the maps and vectors of a plan, in order; other tensors exist phase by phase only."""
    return [key for key, step in plan.steps.items() if _is_comparable(step)]


def _is_comparable(step: Step) -> bool:
    site, one = step.site, step.map
    if site.op is None or site.shape is None or isinstance(step.op, ShapeOf | Values):
        return False
    if site.layout is Layout.VECTOR or one.collapsed:
        return one.collapsed and len(site.shape) == 2 and all(axis.pending == 1 for axis in one.axes)
    return site.layout is Layout.MAP and len(site.shape) == 2 + len(one.axes)


def _first(layers: Layers, failed: Check, x: Tensor, tolerance: Tolerance) -> Divergence | None:
    law, image = failed.law, tuple(x.shape[2:])
    want, have = (getattr(layers, side)(x, failed.runtime) for side in _SIDES[law])
    judge = Judge(tolerance, lambda: layers.rounding(x))
    for key, step in at_sizes(layers.plan, image).steps.items():
        if key not in want or key not in have:
            continue
        check = _compared(judge, failed, key, want[key], have[key], step.map, image)
        if check is not None and not check.passed:
            return _divergence(check, step)
    return None


def _compared(
    judge: Judge, failed: Check, key: str, want: Tensor, have: Tensor, one: Map, image: tuple[int, ...]
) -> Check | None:
    law = failed.law
    labels: dict[str, Any] = {"output": key, "input": failed.input, "runtime": failed.runtime, "lattice": ()}
    if law not in ("grid", "size"):
        return judge(want, have, law=law, **labels)
    if one.merged is not Merged.NOT:
        return None
    return check_grid(judge, want, have, one, image, **labels) if law == "grid" else check_size(
        want.shape[2:], have, one, labels
    )  # fmt: skip


def _divergence(check: Check, step: Step) -> Divergence:
    est = [axis.lattice.stride if check.law not in ("head", "grid") else 1 for axis in step.map.axes]
    return Divergence(
        layer=step.site.layer, op=step.site.kind, where=step.site.where, law=check.law, input=check.input,
        runtime=check.runtime, phase=tuple(i % e for i, e in zip(check.worst[2:], est, strict=False)),
        expected=check.expected, actual=check.actual, absolute=check.absolute, relative=check.relative,
        worst=check.worst, tolerance=check.tolerance,
    )  # fmt: skip


def with_axes(value: Tensor, axes: int) -> Tensor:
    """A vector per image [B, K] as a map of one sample."""
    return value.reshape(*value.shape, *[1] * axes) if value.dim() == 2 else value


def phases_in_space(value: Tensor, one: Map, images: int) -> Tensor | None:
    """A tensor that may hold its phases in the batch; None where its batch is neither that of images nor theirs."""
    from densify import layers

    est = [axis.lattice.stride for axis in one.axes]
    if len(value) == images:
        return value
    return layers.batch_to_space(value, est) if len(value) == images * prod(est) else None


def each(keys: Sequence[str]) -> dict[str, str]:
    """Tensors named by their keys."""
    return {key: key for key in keys}
