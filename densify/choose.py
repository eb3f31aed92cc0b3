"""Which strides to remove: ``start=``, ``layers=`` or ``output_stride=`` (docs/design.md, "Choosing").

The three resolve to (site, axis) pairs on one graph, so that the graphs of eval and train mode are chosen alike.
"""

from __future__ import annotations

import difflib
from dataclasses import dataclass

from densify.errors import UsageError
from densify.lattice import Pixels
from densify.ops import Other, Windowed
from densify.planning import walk
from densify.plans import Chosen, Network, Plan, Site


@dataclass(frozen=True)
class Choice:
    """What the user asked for; exactly one is given.

    Attributes:
        start: every stride from this layer on, wherever the step of the input is at least that of this layer's.
        layers: exactly these layers; a block's name means all strided ops inside; () converts the head alone.
        output_stride: every stride that leads past this step, in input pixels.
    """

    start: str | None = None
    layers: tuple[str, ...] | None = None
    output_stride: int | None = None

    def __post_init__(self) -> None:
        given = [name for name in ("start", "layers", "output_stride") if getattr(self, name) is not None]
        if len(given) != 1:
            asked = " and ".join(given) if given else "nothing"
            raise UsageError(
                f"{asked} given: choose layers by exactly one of start=LAYER, layers=[LAYER, ...], output_stride=N "
                "(layers=[] converts the head alone)."
            )
        if self.output_stride is not None and self.output_stride < 1:
            raise UsageError(f"output_stride={self.output_stride}: it must be at least 1 input pixel.")


@dataclass(frozen=True)
class Strided:
    """A layer with a stride, and the step of its input per axis in the original."""

    site: Site
    steps: tuple[Pixels, ...]

    @property
    def axes(self) -> list[tuple[int, Pixels, int]]:
        """(axis, step of the input, stride) for the strided axes."""
        assert isinstance(self.site.op, Windowed)
        windows = self.site.op.windows
        return [
            (i, step, w.stride) for i, (step, w) in enumerate(zip(self.steps, windows, strict=True)) if w.stride > 1
        ]


def strided_layers(survey: Plan) -> list[Strided]:
    """All ops with a stride, in graph order; `survey` is a plan in which nothing is chosen."""
    return [
        Strided(step.site, tuple(axis.step for axis in step.sources[0].axes))
        for step in survey.steps.values()
        if isinstance(step.site.op, Windowed) and step.site.op.strided
    ]


def thresholds(choice: Choice, survey: Plan) -> tuple[Pixels, ...] | None:
    """For ``start=``: the smallest step, per axis, of the inputs of the layer or block of that name."""
    if choice.start is None:
        return None
    steps = [
        tuple(axis.step for axis in step.sources[0].axes)
        for step in survey.steps.values()
        if step.sources and named(step.site, choice.start)
    ]
    if not steps:
        raise UsageError(unknown_layer(choice.start, strided_layers(survey), [survey]))
    return tuple(min(column) for column in zip(*steps, strict=True))


def choose(choice: Choice, survey: Plan, start: tuple[Pixels, ...] | None) -> Chosen:
    """The (site key, axis) pairs of one graph whose strides are removed; `start` as :func:`thresholds` gives it."""
    pairs = set()
    for layer in strided_layers(survey):
        for axis, step, stride in layer.axes:
            if (
                (start is not None and step >= start[axis])
                or (choice.output_stride is not None and step * stride > choice.output_stride)
                or any(named(layer.site, name) for name in choice.layers or ())
            ):
                pairs.add((layer.site.key, axis))
    return frozenset(pairs)


def check(choice: Choice, surveys: list[Plan], chosen: list[Chosen]) -> None:
    """Refuse names without a strided layer, and a choice that changes nothing, naming the layers there are.

    Raises:
        UsageError: with the strided layers, nearest spelling first.
    """
    layers = [layer for survey in surveys for layer in strided_layers(survey)]
    for name in choice.layers or ():
        if not any(named(layer.site, name) for layer in layers):
            raise UsageError(unknown_layer(name, layers, surveys))
    if choice.layers != () and not any(chosen):
        asked = f"start={choice.start!r}" if choice.start is not None else f"output_stride={choice.output_stride}"
        raise UsageError(f"{asked} leaves nothing to convert. {_listing('', layers, surveys)}")


def named(site: Site, name: str) -> bool:
    """Whether `name` is the layer's name or that of a block around it."""
    return site.layer == name or site.layer.startswith((f"{name}.", f"{name}/"))


def unknown_layer(name: str, layers: list[Strided], surveys: list[Plan]) -> str:
    """The message for a name that no strided layer has."""
    return f"no strided layer is called {name!r}. {_listing(name, layers, surveys)}"


def _listing(name: str, layers: list[Strided], surveys: list[Plan]) -> str:
    names = list(dict.fromkeys(layer.site.layer for layer in layers))
    sites = [step.site for survey in surveys for step in survey.steps.values()]
    others = {site.layer: site.where for site in sites if isinstance(site.op, Other) and site.op.strided}
    listed = ", ".join(f"{layer} ({where})" if where else layer for layer, where in others.items())
    more = f" These have strides too, but they read no map [B, C, *spatial]: {listed}." if others else ""
    if not names and not others:
        return "The model has no strided layer; layers=[] (--head-only) makes a classifier fully convolutional."
    if not names:
        return f"No strided layer can be chosen.{more}"
    near = difflib.get_close_matches(name, names, n=len(names), cutoff=0.0) if name else names
    return f"The strided layers are: {', '.join(near)}.{more}"


def survey(network: Network) -> Plan:
    """The original's own geometry: a plan in which nothing is chosen."""
    return walk(network)
