"""ONNX files made dense without torch code of the model, and back."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import onnx_ir as ir
import torch

from densify.choose import Choice, check, choose, survey, thresholds
from densify.conversion import check_options
from densify.errors import CheckpointError, TargetError, UsageError
from densify.facts import dense_facts, plain
from densify.graphs.onnx.dilated import DilatedWriter
from densify.graphs.onnx.fragments import FragmentWriter
from densify.graphs.onnx.image import spatial_dims
from densify.graphs.onnx.read import Reading, read
from densify.heads import apply_head
from densify.maps import Lattices, Position, positions
from densify.offers import Offers, offers
from densify.onnx.file import raw_bytes, unmap
from densify.onnx.graph import fold_sizes
from densify.onnx.half import graph_to_half
from densify.onnx.model import OnnxModel, at_opset, reference_shape
from densify.onnx.packing import inverse_onnx
from densify.planning import walk
from densify.plans import Plan, Survey
from densify.recipe import Options, Origin, Recipe, digest_of
from densify.shown import Shown
from densify.targets import Target
from densify.targets import check as check_target

if TYPE_CHECKING:
    from rich.console import Console

FORMS = {"dilated": DilatedWriter, "fragments": FragmentWriter}


@dataclass(frozen=True)
class DenseOnnx(Shown):
    """A dense equivalent of an ONNX graph. Made by :func:`convert_onnx`.

    Attributes:
        source: what it was made from, with this network's weights.
        graph: the dense network.
        reading: the source, as it was read.
        plan: what was changed.
        options, origin: how it was converted, and from what.
    """

    source: OnnxModel
    graph: ir.Model
    reading: Reading
    plan: Plan
    options: Options
    origin: Origin

    @property
    def opset(self) -> int:
        """The version of ONNX's operators that it needs."""
        return self.graph.opset_imports[""]

    @property
    def lattices(self) -> dict[str, Lattices]:
        """For every output, where the original's samples lie, per spatial axis."""
        return self.plan.lattices

    @property
    def positions(self) -> dict[str, tuple[Position, ...]]:
        """For every output and spatial axis, where in the image the samples look."""
        return {name: positions(one) for name, one in self.plan.outputs.items()}

    @property
    def recipe(self) -> Recipe:
        """What a file of this network says of itself."""
        places = {name: tuple(tuple(axis) for axis in axes) for name, axes in self.positions.items()}
        return Recipe("dense", self.origin, self.options, self.plan.layers, self.lattices, places)

    def __repr__(self) -> str:
        return f"DenseOnnx({self.source.name}, lattices={self.lattices}, plan.layers={self.plan.layers})"

    def to_dict(self) -> dict[str, Any]:
        """What was converted and where predictions lie, as `densify convert --json` has it."""
        facts: dict[str, Any] = plain(dense_facts(self))
        return facts

    def _show(self, screen: Console) -> None:
        from densify.display import show_dense

        show_dense({"model": self.source.name, **self.to_dict()}, screen)

    def changed(self, **options: object) -> DenseOnnx:
        """The same graph, converted with other options."""
        return build_onnx(self.source, replace(self.options, **options), self.origin)  # type: ignore[arg-type]


@dataclass
class OnnxConversion:
    """One graph, read and planned; nothing is changed yet."""

    source: OnnxModel
    options: Options
    reading: Reading = field(init=False)
    plan: Plan = field(init=False)

    def __post_init__(self) -> None:
        options = self.options
        self.reading = read(self.source.graph, self.source.shape_at(options.shape[1:]))
        found = survey(self.reading.network)
        chosen = choose(options.choice, found, thresholds(options.choice, found))
        check(options.choice, [found], [chosen])
        cut = apply_head(self.reading.network, options.head)
        self.plan = walk(cut, chosen, padding=options.padding, head=options.head, merge=options.merge)


def build_onnx(
    source: OnnxModel, options: Options, origin: Origin, *, shifts: bool = False, opset: int | None = None
) -> DenseOnnx:
    """Convert a graph; errors as :func:`densify.convert`.

    Args:
        shifts: whether dilated max pooling is written as maxima of shifted views.
        opset: of the dense graph; default the source's, or the first that has what is written.

    Raises:
        UsageError: the opset is older than the source's, or than what is written.
    """
    if opset is not None and opset < source.opset:
        raise UsageError(
            f"opset {opset}: {source.name} is of {source.opset}, and is not taken back. Ask for a later one."
        )
    found = OnnxConversion(source if opset in (None, source.opset) else at_opset(source, opset), options)
    writer = FORMS[options.form](found.source.copy(), found.reading, found.plan, shifts=shifts)
    graph, required = writer.run(), writer.tape.required
    if required > found.source.opset:
        if opset is not None:
            raise UsageError(f"opset {opset}: what is written needs {required}. Ask for that, or leave it out.")
        return build_onnx(source, options, origin, shifts=shifts, opset=required)
    return DenseOnnx(source, graph, found.reading, found.plan, options, origin)


def build_for(
    source: OnnxModel,
    options: Options,
    origin: Origin,
    target: Target,
    *,
    opset: int | None = None,
    static: bool = False,
    half: bool = False,
) -> DenseOnnx:
    """Convert a graph for a runtime; one that refuses the dilated form gets the other where that may be.

    Args:
        opset: as for :func:`build_onnx`.
        static: for images of the reference shape alone; what follows from sizes is computed.
        half: in float16, the original to go back to as well.

    Raises:
        UsageError: the target takes the fragments form alone, which the padding does not allow; the opset; a graph for
            `half` that is not in float32.
        ConversionError: a weight or a constant that float16 cannot hold.
        TargetError: the graph holds what the target refuses.
    """
    if half:
        source = in_half(source)
        origin = replace(origin, tensors=origin_of(source).tensors)
    if static:
        source = source.fixed([options.shape[one] for one in _back(spatial_dims(source.graph))])
    wanted = replace(options, form=target.form or options.form)
    how: dict[str, Any] = {"shifts": target.max_pool == "shifts", "opset": opset}
    dense = build_onnx(source, wanted, origin, **how)
    try:
        check_target(dense.graph, target)
    except TargetError as refused:
        if wanted.form == "fragments" or wanted.padding != "full":
            raise
        dense = build_onnx(source, replace(wanted, form="fragments"), origin, **how)
        try:
            check_target(dense.graph, target)
        except TargetError:
            raise refused from None
    if dense.opset > target.opsets[-1]:
        raise TargetError(
            f'{source.name}: is of opset {dense.opset}; the target "{target.name}" takes those up to '
            f"{target.opsets[-1]}. Export it with such an opset."
        )
    if static:
        fold_sizes(dense.graph)
    return dense


def in_half(source: OnnxModel) -> OnnxModel:
    """A float32 graph in float16; see :func:`densify.onnx.half.graph_to_half`.

    Raises:
        UsageError: it is in another type.
        ConversionError: a weight or a constant that float16 cannot hold.
    """
    if source.dtype != torch.float32:
        raise UsageError(f"{source.name}: takes {source.dtype}; float16 is made of graphs in float32. Leave half out.")
    if source.base is not source:
        return in_half(source.base).fixed(source.declared())  # type: ignore[arg-type]
    made = source.copy()
    graph_to_half(made)
    return OnnxModel(made, source.name)


def _back(order: Sequence[int]) -> list[int]:
    return [order.index(dim) for dim in range(len(order))]


def convert_onnx(
    source: OnnxModel,
    size: Sequence[int] | None = None,
    *,
    start: str | None = None,
    layers: Sequence[str] | None = None,
    output_stride: int | None = None,
    padding: str = "full",
    head: str = "dense",
    form: str = "dilated",
    merge: str = "select",
) -> DenseOnnx:
    """The dense equivalent of an ONNX graph.

    Args:
        size: of the image at the reference, [C, *spatial], where the file leaves it open.
        start, layers, output_stride, padding, head, form, merge: as for :func:`densify.convert`; layers are nodes.
    """
    options = options_of(
        source, size, start=start, layers=layers, output_stride=output_stride,
        padding=padding, head=head, form=form, merge=merge,
    )  # fmt: skip
    return build_onnx(source, options, origin_of(source))


def options_of(
    source: OnnxModel,
    size: Sequence[int] | None,
    *,
    start: str | None = None,
    layers: Sequence[str] | None = None,
    output_stride: int | None = None,
    padding: str = "full",
    head: str = "dense",
    form: str = "dilated",
    merge: str = "select",
) -> Options:
    """How a graph is converted; the shape is [B, C, *spatial]. Arguments as :func:`convert_onnx`.

    Raises:
        UsageError: not exactly one way of choosing, an unknown option, or a size that nobody knows.
    """
    if isinstance(layers, str):
        raise UsageError(f"layers={layers!r}: give a list of names, such as layers=[{layers!r}].")
    choice = Choice(start, None if layers is None else tuple(layers), output_stride)
    options = Options(reference_shape(source, size), choice, padding, head, form, merge)
    check_options(options)
    return options


def origin_of(source: OnnxModel) -> Origin:
    """Where an ONNX graph came from: its file's name, and the digests of its weights."""
    known = source.recipe
    mean, std = (None, None) if known is None else (known.origin.mean, known.origin.std)
    tensors = {name: _digest(tensor) for name, tensor in source.weights.items()}
    return Origin(Path(source.name).name, mean=mean, std=std, tensors=tensors)


def _digest(tensor: ir.TensorProtocol) -> str:
    """SHA-256 of a weight, which is mapped no longer than that takes."""
    made = digest_of(raw_bytes(tensor))
    unmap(tensor)
    return made


def survey_onnx(source: OnnxModel, size: Sequence[int] | None = None) -> Survey:
    """The graph's own geometry, as a plan in which nothing is changed."""
    return Survey.of(survey(read(source.graph, source.shape_at(size)).network), source.parameters, source.total)


def choices_onnx(
    source: OnnxModel,
    size: Sequence[int] | None = None,
    *,
    padding: str = "full",
    head: str = "dense",
    merge: str = "select",
) -> Offers:
    """What a graph offers to choose, as :func:`densify.conversion.choices`; `size` as for :func:`convert_onnx`."""
    options = options_of(source, size, layers=(), padding=padding, head=head, merge=merge)
    network = read(source.graph, source.shape_at(options.shape[1:])).network
    return offers(network, survey(network), padding=padding, head=head, merge=merge)


def opened(file: OnnxModel) -> DenseOnnx:
    """The dense network of a file that was made from an ONNX file.

    Raises:
        CheckpointError: it is none, or not what its recipe says.
    """
    source, recipe = inverse_onnx(file), file.recipe
    if None not in file.declared() and None in source.declared():
        source = source.fixed(file.declared())  # type: ignore[arg-type]
    if recipe is None or recipe.kind != "dense":
        raise CheckpointError(f"{file.name}: it holds no recipe of a dense network. Take the file as densify wrote it.")
    found = OnnxConversion(source, recipe.options)
    if found.plan.lattices != {name: tuple(map(tuple, axes)) for name, axes in recipe.lattices.items()}:
        raise CheckpointError(
            f"{file.name}: its lattices are {dict(recipe.lattices)}, its graph now gives {found.plan.lattices}. "
            "Convert the original again."
        )
    return DenseOnnx(source, file.graph, found.reading, found.plan, recipe.options, recipe.origin)
