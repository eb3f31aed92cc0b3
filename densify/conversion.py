"""Turn a model into its dense equivalent, and back."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, fx, nn

from densify.choose import Choice, check, choose, survey, thresholds
from densify.errors import ConversionError, UsageError
from densify.graphs.fx import apart
from densify.graphs.fx.dilated import DilatedWriter
from densify.graphs.fx.fragments import FragmentWriter
from densify.graphs.fx.read import Names, network
from densify.graphs.fx.trace import copied, on_meta, same_tensors, trace
from densify.graphs.fx.write import ancestors
from densify.heads import HEADS, apply_head
from densify.lattice import PADDINGS
from densify.maps import Lattices, Position, positions
from densify.merging import MERGES
from densify.offers import Offers, offers
from densify.planning import walk
from densify.plans import Network, Plan, Survey
from densify.recipe import Options, Origin, Recipe, digests
from densify.shown import Shown
from densify.steps import working

if TYPE_CHECKING:
    from rich.console import Console

FORMS = {"dilated": DilatedWriter, "fragments": FragmentWriter}

Example = Tensor | Sequence[int]


class Dense(Shown, nn.Module):
    """A dense equivalent network.

    Its parameters and buffers are those of the original, under the same names: a checkpoint of the one is a
    checkpoint of the other. Made by :func:`convert`.

    Attributes:
        plan: what was changed.
        options: how it was converted.
        origin: where the original came from.
        source: an instance of the original's class that shares this network's tensors.
    """

    plan: Plan
    options: Options
    origin: Origin
    source: nn.Module
    conversion: Conversion
    graphs: dict[bool, fx.Graph | Exception]
    _runs: dict[bool, Callable[..., Any]]

    def __init__(self, source: nn.Module, origin: Origin, conversion: Conversion) -> None:
        super().__init__()
        # The very containers of the original: keys, order and storage are its own (law 4), whatever `.to()` does.
        # The source and the graphs are no submodules, so they go past nn.Module's registration.
        graphs = {mode: conversion.graph(mode) for mode in (False, True)}
        self.__dict__.update(
            _modules=source._modules,
            _parameters=source._parameters,
            _buffers=source._buffers,
            _non_persistent_buffers_set=source._non_persistent_buffers_set,
            training=source.training,
            source=source,
            origin=origin,
            options=conversion.options,
            plan=conversion.plans[False],
            conversion=conversion,
            graphs=graphs,
            _runs={mode: _compiled(graph) for mode, graph in graphs.items() if isinstance(graph, fx.Graph)},
        )

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Any:
        """Run on images [B, C, *spatial]; the outputs have the structure of the original's."""
        run = self._runs.get(self.training)
        if run is None:
            reason = self.graphs[self.training]
            raise ConversionError(f"this model has no dense form in train mode: {reason}")
        return run(self, x, *args, **kwargs)

    def train(self, mode: bool = True) -> Dense:
        """Set the mode, as the original's class does: it may keep some layers in eval mode."""
        self.source.train(mode)
        self.training = mode
        return self

    @property
    def lattices(self) -> dict[str, Lattices]:
        """For every output tensor, where the original's samples lie, per spatial axis.

        An output that upsamplings made of several phases is marked, see :class:`densify.maps.Lattices`.
        """
        return self.plan.lattices

    @property
    def positions(self) -> dict[str, tuple[Position, ...]]:
        """For every output tensor and spatial axis, where in the image the samples look."""
        return {name: positions(one) for name, one in self.plan.outputs.items()}

    @property
    def code(self) -> str:
        """The dense network's eval-mode program."""
        graph = self.graphs[False]
        assert isinstance(graph, fx.Graph)
        return graph.python_code("self").src

    @property
    def recipe(self) -> Recipe:
        """What a file of this network says of itself."""
        places = {name: tuple(tuple(axis) for axis in axes) for name, axes in self.positions.items()}
        return Recipe("dense", self.origin, self.options, self.plan.layers, self.lattices, places)

    def to_dict(self) -> dict[str, Any]:
        """What was converted and where predictions lie, as `densify convert --json` has it."""
        from densify.facts import dense_facts, plain

        facts: dict[str, Any] = plain(dense_facts(self))
        return facts

    def _show(self, screen: Console) -> None:
        from densify.display import show_dense

        show_dense({"model": self.origin.model or type(self.source).__name__, **self.to_dict()}, screen)

    def with_head(self, head: str) -> Dense:
        """The same network, sharing its tensors, with another head."""
        return build(same_tensors(self.source), replace(self.options, head=head), self.origin)

    def __deepcopy__(self, memo: dict[int, Any]) -> Dense:
        copied = Dense(copy.deepcopy(self.source, memo), self.origin, self.conversion)
        memo[id(self)] = copied
        return copied

    def __reduce__(self) -> tuple[Callable[..., Dense], tuple[nn.Module, Options, Origin]]:
        return build, (self.source, self.options, self.origin)

    def extra_repr(self) -> str:
        return f"lattices={self.lattices}, plan.layers={self.plan.layers}"


def convert(
    model: nn.Module,
    example: Example,
    *,
    start: str | None = None,
    layers: Sequence[str] | None = None,
    output_stride: int | None = None,
    padding: str = "full",
    head: str = "dense",
    form: str = "dilated",
    merge: str = "select",
    share: bool = False,
) -> Dense:
    """The dense equivalent of a model (Wu, Xie, Luo: Dense CNN Learning with Equivalent Mappings).

    Exactly one of `start`, `layers` and `output_stride` says which strides are removed. `model` is left untouched.

    Args:
        model: any traceable CNN.
        example: input [B, C, *spatial], or its shape; it sets the reference size.
        start: remove every stride from this layer on, wherever the step of the input is at least that layer's.
        layers: remove exactly these layers' strides; a block's name means all inside; [] converts the head alone.
        output_stride: remove every stride that leads past this step, in input pixels.
        padding: "full": e * n samples where the original has n; "valid": only windows that the original's padding
            allows; "same": as in the paper's experiments.
        head: "dense": the map of predictions; "average": its mean; "features": the map before the classifier's
            pooling; "cam": the classifier at every position, without the pooling.
        form: "dilated": eConv and ePool; "fragments": the original's own layers, phases in the batch. Both compute
            the same.
        merge: what an upsampling does with a denser map. "select" keeps the phases that its result has room for, so
            that every sample is the original's; "average" runs it on all of them and takes the mean of the shifts that
            reach a sample; "resample" does so too, but lets interpolations read the denser map where the original
            reads between its samples.
        share: use the model's own tensors instead of copies.

    Returns:
        The dense network, in the model's mode.

    Raises:
        UsageError: the choice names no layer or changes nothing, or an option is unknown.
        ConversionError: the model cannot be traced, or ops in it have no meaning on a lattice (all are listed).
    """
    choice = _choice(start, layers, output_stride)
    if isinstance(model, Dense):
        raise UsageError("this network is dense already: convert its original (densify.inverse) anew.")
    source = same_tensors(model) if share else copied(model)
    origin = Origin(tensors=digests(model.state_dict()))
    return build(source, Options(shape_of(example), choice, padding, head, form, merge), origin, example)


def plan(
    model: nn.Module,
    example: Example,
    *,
    start: str | None = None,
    layers: Sequence[str] | None = None,
    output_stride: int | None = None,
    padding: str = "full",
    head: str = "dense",
    form: str = "dilated",
    merge: str = "select",
) -> Plan:
    """What :func:`convert` would change and what it would cost; changes nothing and needs no weights.

    Arguments and errors as for :func:`convert`; the model may be on the meta device.
    """
    choice = _choice(start, layers, output_stride)
    return Conversion(model, Options(shape_of(example), choice, padding, head, form, merge), example).plans[False]


def inspect(model: nn.Module, example: Example) -> Survey:
    """The original's own geometry, as a plan in which nothing is changed."""
    tensor = example if isinstance(example, Tensor) else blank(model, shape_of(example))
    found = survey(network(trace(model, tensor, training=False), model, training=False))
    counts = {name: sum(p.numel() for p in module.parameters()) for name, module in model.named_modules()}
    return Survey.of(found, counts, counts[""])


def choices(
    model: nn.Module, example: Example, *, padding: str = "full", head: str = "dense", merge: str = "select"
) -> Offers:
    """What there is to choose: every start layer and output stride that make a difference, each planned.

    Arguments as for :func:`convert`; needs no weights.

    Raises:
        UsageError: an unknown option.
        ConversionError: the model cannot be traced, or not be converted whatever is chosen.
    """
    check_options(Options(shape_of(example), Choice(layers=()), padding, head, merge=merge))
    tensor = example if isinstance(example, Tensor) else blank(model, shape_of(example))
    graph = trace(model, tensor, training=False)
    read = apart.check(network(graph, on_meta(model), training=False), graph, model, len(tensor))
    return offers(read, survey(read), padding=padding, head=head, merge=merge)


def inverse(dense: Dense, *, share: bool = False) -> nn.Module:
    """The original architecture with the dense network's parameters (dpoa).

    Returns:
        An instance of the original's class, with copies of the tensors unless `share`.
    """
    if not isinstance(dense, Dense):
        raise UsageError(f"inverse takes a dense network, as convert returns it; this is a {type(dense).__name__}.")
    source = same_tensors(dense.source) if share else copy.deepcopy(dense.source)
    return source.train(dense.training) if source.training != dense.training else source


def shape_of(example: Example) -> tuple[int, ...]:
    """The shape of an example, [B, C, *spatial].

    Raises:
        UsageError: it is not a batch of images.
    """
    shape = example.shape if isinstance(example, Tensor) else example
    if not isinstance(shape, Sequence) or not all(isinstance(size, int) for size in shape):
        raise UsageError(
            f"the example is of type {type(example).__name__}: give a tensor, or its shape, such as (1, 3, 224, 224)."
        )
    shape = tuple(shape)
    if len(shape) not in (3, 4, 5) or any(size < 1 for size in shape):
        raise UsageError(f"the example's shape is {shape}: give [batch, channels, *spatial] with 1 to 3 spatial axes.")
    return shape


def blank(model: nn.Module, shape: Sequence[int]) -> Tensor:
    """A tensor of a shape, of the model's dtype and on its device."""
    like = next((tensor for tensor in model.parameters() if tensor.is_floating_point()), torch.empty(0))
    return torch.zeros(tuple(shape), dtype=like.dtype, device=like.device)


def build(source: nn.Module, options: Options, origin: Origin, example: Example | None = None) -> Dense:
    """Convert a module tree in place of a copy: the dense network takes it over.

    Raises:
        UsageError, ConversionError: as :func:`convert`.
    """
    conversion = Conversion(source, options, example if example is not None else options.shape)
    return Dense(source, origin, conversion)


class Conversion:
    """Both modes' graphs of one model, read and planned; holds no numbers.

    Attributes:
        options: how it is converted.
        root: the model on the meta device.
        graphs, networks: by mode (False for eval), as traced, and the ops as read.
        plans: by mode, what becomes of them.
        failures: by mode, why there is no plan (train mode only: a failure of eval mode is raised).
    """

    def __init__(self, model: nn.Module, options: Options, example: Example) -> None:
        check_options(options)
        self.options = options
        self.root = on_meta(model)
        self._names = Names()
        self.graphs: dict[bool, fx.Graph] = {}
        self.networks: dict[bool, Network] = {}
        self.plans: dict[bool, Plan] = {}
        self.failures: dict[bool, Exception] = {}
        tensor = example if isinstance(example, Tensor) else blank(model, options.shape)
        self._read(model, tensor, training=False)
        try:
            self._read(model, tensor, training=True)
        except ConversionError as error:
            self.failures[True] = error
        surveys = {mode: survey(one) for mode, one in self.networks.items()}
        start = thresholds(options.choice, surveys[False])
        chosen = {mode: choose(options.choice, one, start) for mode, one in surveys.items()}
        check(options.choice, list(surveys.values()), list(chosen.values()))
        for mode, one in self.networks.items():
            try:
                cut = apply_head(one, options.head)
                self.plans[mode] = walk(
                    cut, chosen[mode], padding=options.padding, head=options.head, merge=options.merge
                )
            except ConversionError as error:
                if not mode:
                    raise
                self.failures[mode] = error

    def _read(self, model: nn.Module, example: Tensor, *, training: bool) -> None:
        with working("tracing"):
            graph = trace(model, example, training=training)
        read = network(graph, self.root, training=training, names=self._names)
        if not training:  # in train mode BatchNorm mixes images, and dropout is random, as they should
            read = apart.check(read, graph, model, len(example))
        for node in graph.nodes:
            node.meta.pop("value", None)  # what it was traced with may be large
        self.graphs[training], self.networks[training] = graph, read

    def cut(self, ends: Mapping[str, str], *, chosen: bool = True) -> Conversion:
        """The same network up to some of its tensors, in eval mode alone.

        Args:
            ends: names and keys of the tensors; the network returns them in a dict.
            chosen: False for the original itself, with all its strides.
        """
        part, plan = copy.copy(self), self.plans[False]
        sites = plan.network.sites if chosen else self.networks[False].sites
        nodes = [node for node in self.graphs[False].nodes if node.name in ends.values()]
        needed = {node.name for end in nodes for node in (end, *ancestors(end))}  # sizes of other maps, say
        cut = Network({key: site for key, site in sites.items() if key in needed or site.op is None}, dict(ends))
        if chosen:  # the very plan, whatever the rules say by now
            steps = {key: plan.steps[key] for key in cut.sites}
            part.plans = {False: replace(plan, network=cut, steps=steps, head="dense")}
        else:
            part.plans = {False: walk(cut, padding=plan.padding, merge=plan.merge)}
        part.failures = {True: ConversionError("a part of a network has no train mode.")}
        return part

    def graph(self, mode: bool) -> fx.Graph | Exception:
        """The dense graph of one mode, or why there is none."""
        if mode in self.failures:
            return self.failures[mode]
        writer = FORMS[self.options.form]
        try:
            return writer(self.graphs[mode], self.root, self.networks[mode], self.plans[mode]).run()
        except ConversionError as error:
            if not mode:
                raise
            return error


def _compiled(graph: fx.Graph) -> Callable[..., Any]:
    """The graph's program as a function of the module and its inputs."""
    program = graph.python_code("self")
    names: dict[str, Any] = dict(program.globals)
    exec(compile(program.src, "<dense network>", "exec"), names)
    return names["forward"]  # type: ignore[no-any-return]


def _choice(start: str | None, layers: Sequence[str] | None, output_stride: int | None) -> Choice:
    if isinstance(layers, str):
        raise UsageError(f"layers={layers!r}: give a list of names, such as layers=[{layers!r}].")
    return Choice(start, None if layers is None else tuple(layers), output_stride)


def check_options(options: Options) -> None:
    """Refuse unknown options, and those that do not go together."""
    known: dict[str, Iterable[str]] = {"padding": PADDINGS, "head": HEADS, "form": FORMS, "merge": MERGES}
    for name, values in known.items():
        if getattr(options, name) not in values:
            raise UsageError(f"{name}={getattr(options, name)!r} is not one of {', '.join(values)}.")
    if options.form == "fragments" and options.padding != "full":
        raise UsageError(
            f'form="fragments" needs complete phases, which padding="{options.padding}" does not make: use "full".'
        )
