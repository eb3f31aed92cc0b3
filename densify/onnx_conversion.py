"""ONNX files made dense without torch code of the model, and back."""

from __future__ import annotations

import base64
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import onnx_ir.passes.common as passes
import torch

from densify.choose import Choice, check, choose, survey, thresholds
from densify.conversion import Position, check_options, positions
from densify.errors import CheckpointError, ConversionError, TargetError, UsageError
from densify.graphs.onnx.dilated import DilatedWriter
from densify.graphs.onnx.fragments import FragmentWriter
from densify.graphs.onnx.read import Reading, image_of, read, refuse_foreign, spatial_dims
from densify.heads import apply_head
from densify.maps import Lattices, Layout
from densify.onnx_file import DTYPES, load_onnx, raw_bytes, read_metadata, save_onnx
from densify.onnx_graph import make_constant
from densify.onnx_metadata import placement
from densify.planning import walk
from densify.plans import Plan
from densify.recipe import Options, Origin, Recipe, digest_of
from densify.targets import Target
from densify.targets import check as check_target
from densify.weights import RECIPE_KEY

ORIGINAL_KEY = "densify.original"
"""The metadata entry of a dense file that holds the graph it was made from, less the weights: they are the file's."""

FORMS = {"dilated": DilatedWriter, "fragments": FragmentWriter}

_LARGE = 1024  # bytes of a Constant node that are not kept twice


class OnnxModel:
    """An ONNX graph with its weights, as it is in a file.

    Attributes:
        graph: as read; whoever changes a graph takes one of :meth:`copy`.
        name: what it is called in messages.
    """

    def __init__(self, graph: ir.Model, name: str) -> None:
        self.graph, self.name = graph, name

    @staticmethod
    def load(path: str | Path) -> OnnxModel:
        """Read a file without trusting it; external weights are mapped, not read.

        Raises:
            UsageError: there is no such file.
            CheckpointError: it is no valid ONNX model, or its weights are missing.
            UnsafeError: its weights point outside the file's own folder.
            RefusedError: operators of other domains than ONNX's own.
        """
        path = Path(path)
        proto = load_onnx(path)
        try:
            onnx.checker.check_model(str(path))
            model = ir.from_proto(proto)
            ir.external_data.set_base_dir(model.graph, path.parent)
            _look_into(model)
        except Exception as error:  # the checker's, and whatever a damaged message makes of the reader
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:300]
            raise CheckpointError(f"{path}: is no valid ONNX model ({reason}). Export it again.") from None
        if model.functions:
            passes.InlinePass()(model)
        refuse_foreign(model)
        return OnnxModel(model, str(path))

    def copy(self) -> ir.Model:
        """The graph once more, with the same weights."""
        model = self.graph
        return ir.Model(
            model.graph.clone(),
            ir_version=model.ir_version,
            producer_name=model.producer_name,
            producer_version=model.producer_version,
            domain=model.domain,
            model_version=model.model_version,
            doc_string=model.doc_string,
            metadata_props=dict(model.metadata_props),
        )

    @property
    def metadata(self) -> Mapping[str, str]:
        """What the file says of itself."""
        return self.graph.metadata_props

    @cached_property
    def recipe(self) -> Recipe | None:
        """What densify wrote of it, where it did."""
        text = self.metadata.get(RECIPE_KEY)
        return None if text is None else Recipe.from_json(text, self.name)

    @property
    def is_dense(self) -> bool:
        """Whether densify made it dense: it holds what it was made from."""
        return ORIGINAL_KEY in self.metadata

    @property
    def weights(self) -> dict[str, ir.TensorProtocol]:
        """The initializers' tensors by name."""
        found = self.graph.graph.initializers.items()
        return {name: value.const_value for name, value in found if value.const_value is not None}

    @property
    def opset(self) -> int:
        """The version of ONNX's operators."""
        return self.graph.opset_imports[""]

    @property
    def dtype(self) -> torch.dtype:
        """The type of the image's numbers."""
        found = image_of(self.graph).dtype
        if found not in DTYPES:
            raise ConversionError(f"{self.name}: its image is of type {found}, which torch does not have.")
        return DTYPES[found]

    @property
    def total(self) -> int:
        """How many numbers its floating weights have."""
        return sum(tensor.size for tensor in self.weights.values() if tensor.dtype.is_floating_point())

    @cached_property
    def parameters(self) -> dict[str, int]:
        """How many numbers the floating weights have that a node reads, by the node's name."""
        weights, found = self.weights, dict[str, int]()
        for node in self.graph.graph:
            read = [weights[str(one.name)] for one in node.inputs if one is not None and str(one.name) in weights]
            sizes = [tensor.size for tensor in read if tensor.dtype.is_floating_point()]
            found[str(node.name or node.outputs[0].name)] = sum(sizes)
        return found

    def declared(self) -> tuple[int | None, ...]:
        """The shape that the image is declared to have; None where any size will do."""
        shape = image_of(self.graph).shape
        return () if shape is None else tuple(size if isinstance(size, int) else None for size in shape)

    def fixed(self, shape: Sequence[int]) -> OnnxModel:
        """The same graph for images of one shape alone, in the graph's own order of dimensions."""
        made = self.copy()
        image_of(made).shape = ir.Shape(shape)
        for value in (*made.graph.outputs, *(one for node in made.graph for one in node.outputs)):
            if value.shape is not None:  # they may name sizes that are open no more
                value.shape = ir.Shape([None] * len(value.shape)) if value.is_graph_output() else None
        return OnnxModel(made, self.name)

    def shape_at(self, size: Sequence[int] | None) -> tuple[int, ...]:
        """The shape of the image, in the graph's own order of dimensions.

        Args:
            size: [C, *spatial], where the file leaves it open.

        Raises:
            UsageError: nobody says how large it is, or the file says otherwise.
        """
        declared, order = self.declared(), spatial_dims(self.graph)
        if size is None and self.recipe is not None:
            size = self.recipe.options.shape[1:]
        plain = [declared[dim] if declared else None for dim in order]
        wanted = [plain[0] or 1, *(size if size is not None else plain[1:])]
        if len(wanted) != len(order) or any(one is None for one in wanted):
            raise UsageError(
                f"{self.name}: its reference size is not known (it declares {_written(declared)}); give it, such as "
                "--input-size 3,224,224"
            )
        if any(have not in (None, want) for have, want in zip(plain, wanted, strict=True)):
            raise UsageError(
                f"{self.name}: takes images of {_written(declared)} alone, not of {'x'.join(map(str, wanted[1:]))}"
            )
        made = [0] * len(order)
        for place, dim in enumerate(order):
            made[dim] = int(wanted[place] or 0)
        return tuple(made)


def _look_into(model: ir.Model) -> None:
    """Find names that are no text, and numbers that are not as many as their shape says; any exception will do."""
    for node in model.graph.all_nodes():
        ir.to_proto(node)
        for attribute in node.attributes.values():
            if attribute.type is ir.AttributeType.TENSOR:
                attribute.as_tensor().numpy()
    for value in model.graph.initializers.values():
        tensor = value.const_value
        if tensor is not None and len(raw_bytes(tensor)) != tensor.nbytes:
            raise ValueError(f"{value.name}: {len(raw_bytes(tensor))} bytes do not fit shape {tensor.shape}")


def _written(shape: Sequence[int | None]) -> str:
    return "x".join("?" if size is None else str(size) for size in shape) or "no shape"


@dataclass(frozen=True)
class DenseOnnx:
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


def build_onnx(source: OnnxModel, options: Options, origin: Origin, *, shifts: bool = False) -> DenseOnnx:
    """Convert a graph; errors as :func:`densify.convert`.

    Args:
        shifts: whether dilated max pooling is written as maxima of shifted views.
    """
    found = OnnxConversion(source, options)
    writer = FORMS[options.form](source.copy(), found.reading, found.plan, shifts=shifts)
    graph = writer.run()
    if writer.tape.required > source.opset:
        found = OnnxConversion(at_opset(source, writer.tape.required), options)
        graph = FORMS[options.form](found.source.copy(), found.reading, found.plan, shifts=shifts).run()
    return DenseOnnx(source, graph, found.reading, found.plan, options, origin)


def build_for(source: OnnxModel, options: Options, origin: Origin, target: Target) -> DenseOnnx:
    """Convert a graph for a runtime; one that refuses the dilated form gets the other where that may be.

    Raises:
        UsageError: the target takes the fragments form alone, which the padding does not allow.
        TargetError: the graph holds what the target refuses.
    """
    wanted = replace(options, form=target.form or options.form)
    shifts = target.max_pool == "shifts"
    dense = build_onnx(source, wanted, origin, shifts=shifts)
    try:
        check_target(dense.graph, target)
    except TargetError as refused:
        if wanted.form == "fragments" or wanted.padding != "full":
            raise
        other = build_onnx(source, replace(wanted, form="fragments"), origin, shifts=shifts)
        try:
            check_target(other.graph, target)
        except TargetError:
            raise refused from None
        return other
    return dense


def at_opset(source: OnnxModel, version: int) -> OnnxModel:
    """The same graph with operators of a later version, by ONNX's own converter.

    Raises:
        ConversionError: the converter cannot do it.
    """
    model, weights = source.copy(), source.weights
    large = [name for name, tensor in weights.items() if tensor.size > _FEW]
    for name in large:  # the converter looks at their types alone
        model.graph.inputs.append(model.graph.initializers.pop(name))
    try:
        made = ir.from_proto(onnx.version_converter.convert_version(ir.to_proto(model), version))
    except Exception as error:  # of C++, of one kind for all
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
        raise ConversionError(
            f"{source.name}: is of opset {source.opset}, {version} is needed, and ONNX's converter fails ({reason}). "
            "Export the model with a later opset."
        ) from None
    inputs = {str(value.name): value for value in made.graph.inputs}
    for name in large:
        made.graph.inputs.remove(inputs[name])
        inputs[name].const_value = weights[name]
        made.graph.initializers[name] = inputs[name]
    for name, value in list(made.graph.initializers.items()):
        if name in weights:
            value.const_value = weights[name]
        else:  # of the converter: the initializers stay the original's
            make_constant(made.graph, value)
    made.metadata_props.update(model.metadata_props)
    return OnnxModel(made, source.name)


_FEW = 4096


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


def reference_shape(source: OnnxModel, size: Sequence[int] | None) -> tuple[int, ...]:
    """The shape of the image, [B, C, *spatial]; errors as :meth:`OnnxModel.shape_at`."""
    shape = source.shape_at(size)
    return tuple(shape[dim] for dim in spatial_dims(source.graph))


def origin_of(source: OnnxModel) -> Origin:
    """Where an ONNX graph came from: its file's name, and the digests of its weights."""
    known = source.recipe
    mean, std = (None, None) if known is None else (known.origin.mean, known.origin.std)
    tensors = {name: digest_of(raw_bytes(tensor)) for name, tensor in source.weights.items()}
    return Origin(Path(source.name).name, mean=mean, std=std, tensors=tensors)


def survey_onnx(source: OnnxModel, size: Sequence[int] | None = None) -> Plan:
    """The graph's own geometry, as a plan in which nothing is changed."""
    return survey(read(source.graph, source.shape_at(size)).network)


def opened(file: OnnxModel) -> DenseOnnx:
    """The dense network of a file that was made from an ONNX file.

    Raises:
        CheckpointError: it is none, or not what its recipe says.
    """
    source, recipe = inverse_onnx(file), file.recipe
    if recipe is None or recipe.kind != "dense":
        raise CheckpointError(f"{file.name}: it holds no recipe of a dense network. Take the file as densify wrote it.")
    found = OnnxConversion(source, recipe.options)
    if found.plan.lattices != {name: tuple(map(tuple, axes)) for name, axes in recipe.lattices.items()}:
        raise CheckpointError(
            f"{file.name}: its lattices are {dict(recipe.lattices)}, its graph now gives {found.plan.lattices}. "
            "Convert the original again."
        )
    return DenseOnnx(source, file.graph, found.reading, found.plan, recipe.options, recipe.origin)


def metadata_of(dense: DenseOnnx) -> dict[str, str]:
    """What a file of a dense network says: its recipe, where its predictions lie, and the graph to go back to."""
    places = {name: dense.reading.places[key] for name, key in dense.plan.network.outputs.items()}
    orders = {name: place.order for name, place in places.items() if place.layout is Layout.MAP}
    spatial = 0 if dense.options.head == "average" else len(dense.options.shape) - 2
    where = placement(
        dense.lattices,
        {name: tuple(tuple(axis) for axis in axes) for name, axes in dense.positions.items()},
        dict.fromkeys(dense.lattices, 2 + spatial),
        orders=orders,
        mean=dense.origin.mean,
        std=dense.origin.std,
    )
    about = {RECIPE_KEY: dense.recipe.to_json(), ORIGINAL_KEY: packed(dense.source)}
    return {**dense.source.metadata, **about, **where}


def is_graph(path: Path) -> bool:
    """Whether an ONNX file is read as a graph: it names no torch code that made it; errors as :func:`load_onnx`."""
    metadata = read_metadata(path)
    if RECIPE_KEY not in metadata:
        return True
    made_of = Recipe.from_json(metadata[RECIPE_KEY], str(path)).origin.model
    return made_of is not None and made_of.lower().endswith(".onnx")


def write_checked(graph: ir.Model, place: Path) -> None:
    """Write a graph, and let ONNX's checker read the file."""
    save_onnx(graph, place)
    onnx.checker.check_model(str(place))


def packed(source: OnnxModel) -> str:
    """A graph less its weights, as text."""
    model = source.copy()
    model.metadata_props.pop(ORIGINAL_KEY, None)
    model.graph.initializers.clear()
    for node in model.graph:
        if (large := _large_constant(node)) is not None:
            node.attributes["value"] = ir.AttrTensor("value", _placeholder(large))
    proto = ir.to_proto(model)
    return base64.b85encode(zlib.compress(proto.SerializeToString(), 9)).decode()


def _large_constant(node: ir.Node) -> ir.TensorProtocol | None:
    if node.op_type != "Constant" or "value" not in node.attributes:
        return None
    tensor = node.attributes["value"].as_tensor()
    return tensor if tensor.nbytes > _LARGE else None


def _placeholder(tensor: ir.TensorProtocol) -> ir.TensorProtocol:
    """A tensor of no numbers of the same type, in place of one that the dense graph holds."""
    return ir.tensor(np.zeros(0, tensor.dtype.numpy()), name=_ELSEWHERE)


_ELSEWHERE = "densify.elsewhere"


def inverse_onnx(dense: OnnxModel) -> OnnxModel:
    """The graph that a dense file was made from, with the file's weights (dpoa).

    Raises:
        CheckpointError: densify did not make it from an ONNX file, or its weights are not those that it needs.
    """
    text = dense.metadata.get(ORIGINAL_KEY)
    if text is None:
        raise CheckpointError(
            f"{dense.name}: does not hold the graph that it was made from. Give a dense file that densify made from an "
            "ONNX file."
        )
    weights = {name: value.const_value for name, value in dense.graph.graph.initializers.items()}
    try:
        proto = onnx.ModelProto.FromString(zlib.decompress(base64.b85decode(text)))
        for name, tensor in weights.items():  # without their numbers, so that the graph is whole
            assert tensor is not None
            proto.graph.initializer.add(name=name, data_type=tensor.dtype.value, dims=tensor.shape.numpy())
        model = ir.from_proto(proto)
    except Exception as error:  # a damaged text
        raise CheckpointError(
            f"{dense.name}: its entry {ORIGINAL_KEY!r} is damaged ({type(error).__name__}). Take the original file."
        ) from None
    for name, value in model.graph.initializers.items():
        value.const_value = weights[name]
    _check_weights(model, dense)
    _fill_constants(model, dense)
    return OnnxModel(model, f"the original of {dense.name}")


def _check_weights(model: ir.Model, dense: OnnxModel) -> None:
    """Refuse a graph some of whose weights are gone."""
    known = {id(value) for value in (*model.graph.inputs, *model.graph.initializers.values())}
    read = [one for node in model.graph for one in node.inputs if one is not None]
    missing = sorted({str(one.name) for one in read if one.producer() is None and id(one) not in known})
    if missing:
        raise CheckpointError(
            f"{dense.name}: lacks {', '.join(missing[:10])} of the graph it was made from. Take the file as densify "
            "wrote it, with other numbers in the same initializers."
        )


def _fill_constants(model: ir.Model, dense: OnnxModel) -> None:
    """Put large constants, which the file holds in the dense graph alone, back to their places."""
    large = {str(node.outputs[0].name): node for node in dense.graph.graph if _large_constant(node) is not None}
    for node in model.graph:
        if node.op_type != "Constant" or "value" not in node.attributes:
            continue
        if node.attributes["value"].as_tensor().name == _ELSEWHERE:
            name = str(node.outputs[0].name)
            if name not in large:
                raise CheckpointError(f"{dense.name}: lacks the constant {name} of the graph it was made from.")
            node.attributes["value"] = large[name].attributes["value"]
