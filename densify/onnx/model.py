"""ONNX files as graphs with their weights: read without trusting them, and asked about."""

from __future__ import annotations

import shutil
import weakref
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from tempfile import mkdtemp
from typing import TYPE_CHECKING, Any

import onnx
import onnx_ir as ir
import onnx_ir.passes.common as passes
import torch

from densify.errors import CheckpointError, ConversionError, UsageError
from densify.graphs.onnx.image import image_of, refuse_foreign, spatial_dims
from densify.onnx.file import DTYPES, load_onnx, raw_bytes, read_metadata, save_onnx, unmap
from densify.onnx.graph import make_constant
from densify.onnx.parameters import parameters
from densify.recipe import Recipe
from densify.shown import Shown
from densify.weights import RECIPE_KEY

if TYPE_CHECKING:
    from rich.console import Console

ORIGINAL_KEY = "densify.original"
"""The metadata entry of a dense file that holds the graph it was made from, less the weights: they are the file's."""

_MANY, _PAGE = 2**26, 4096  # bytes of weights that are not kept in memory; a file is mapped by pages
_FOLDER = "densify.folder"
_FEW = 4096  # numbers of a weight that ONNX's version converter may look at


class Kept(ir.ExternalTensor):
    """A weight in a temporary file of our own: others may link to it."""


class _Folder:
    """A temporary folder that is there as long as this is."""

    def __init__(self) -> None:
        self.path = Path(mkdtemp())
        weakref.finalize(self, shutil.rmtree, self.path, ignore_errors=True)


class OnnxModel(Shown):
    """An ONNX graph with its weights, as it is in a file.

    Attributes:
        graph: as read; whoever changes a graph takes one of :meth:`copy`.
        name: what it is called in messages.
        base: the graph as it was before its sizes were fixed.
    """

    def __init__(self, graph: ir.Model, name: str, base: OnnxModel | None = None) -> None:
        self.graph, self.name, self.base = graph, name, base or self

    def __repr__(self) -> str:
        return f"OnnxModel({self.name})"

    def to_dict(self) -> dict[str, Any]:
        """What the file is, in plain numbers, texts and lists; sizes of the image that it leaves open are None."""
        return {
            "name": self.name,
            "dense": self.is_dense,
            "opset": self.opset,
            "image": list(self.declared()),
            "parameters": self.total,
        }

    def _show(self, screen: Console) -> None:
        from densify.display import show_file

        show_file(self.to_dict(), screen)

    @staticmethod
    def load(path: str | Path, *, numbers: bool = True) -> OnnxModel:
        """Read a file without trusting it; external weights are mapped, not read.

        Args:
            path: the file, which stays as it is while the model is in use.
            numbers: read those of the large weights too; else they are mapped where they lie, and read when they are
                asked for, as inspecting and planning do not.

        Raises:
            UsageError: there is no such file.
            CheckpointError: it is no valid ONNX model, or its weights are missing.
            UnsafeError: its weights point outside the file's own folder.
            RefusedError: operators of other domains than ONNX's own.
        """
        path, fault = Path(path), ""
        if path.is_file():  # checked first, as the checker reads the whole file once more
            try:
                onnx.checker.check_model(str(path) if numbers else _without_weights(load_onnx(path, numbers=False)))
            except Exception as error:  # of several kinds
                fault = _said(error)
        proto = load_onnx(path, numbers=numbers)
        _check_data(proto, path)
        if fault:
            raise CheckpointError(f"{path}: is no valid ONNX model ({fault}). Export it again.")
        try:
            model = ir.from_proto(proto)
            ir.external_data.set_base_dir(model.graph, path.parent)
            _look_into(model)
        except Exception as error:  # whatever a damaged message makes of the reader
            raise CheckpointError(f"{path}: is no valid ONNX model ({_said(error)}). Export it again.") from None
        if model.functions:
            passes.InlinePass()(model)
        refuse_foreign(model)
        _refuse_doubles(model, path)
        made = OnnxModel(model, str(path))
        if numbers and sum(tensor.nbytes for tensor in made.weights.values()) > _MANY:
            made._put_away()
        return made

    def _put_away(self) -> None:
        """Move the weights into a temporary file, which is mapped as long as this is in use."""
        folder = _Folder()
        self.graph.meta[_FOLDER] = folder  # graphs that are made of this one share its weights
        place = folder.path / "weights.data"
        with place.open("wb") as file:
            for value in self.graph.graph.initializers.values():
                tensor = value.const_value
                if tensor is None:
                    continue
                if tensor.nbytes < _PAGE:
                    value.const_value = _own(tensor)
                    continue
                file.write(bytes(-file.tell() % _PAGE))
                begin, shape = file.tell(), ir.Shape(tensor.shape.numpy())
                file.write(tensor.tobytes())
                unmap(tensor)
                value.const_value = Kept(
                    place.name, begin, tensor.nbytes, tensor.dtype, shape=shape, name=str(tensor.name),
                    base_dir=folder.path,
                )  # fmt: skip
        for node in self.graph.graph.all_nodes():  # a tensor of the message that was read would hold the whole of it
            for one in node.attributes.values():
                if one.type is ir.AttributeType.TENSOR:
                    node.attributes[one.name] = ir.AttrTensor(one.name, _own(one.as_tensor()))

    def copy(self) -> ir.Model:
        """The graph once more, with the same weights."""
        return copied(self.graph)

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
        """How many numbers its weights have, each counted once; see :mod:`densify.onnx.parameters`."""
        known = {name: size for read in parameters(self.graph).values() for name, size in read.items()}
        return sum(known.values())

    @cached_property
    def parameters(self) -> dict[str, int]:
        """How many numbers the weights have that a node reads, by the node's name."""
        return {name: sum(read.values()) for name, read in parameters(self.graph).items()}

    def declared(self) -> tuple[int | None, ...]:
        """The shape that the image is declared to have; None where any size will do."""
        shape = image_of(self.graph).shape
        return () if shape is None else tuple(size if isinstance(size, int) else None for size in shape)

    def fixed(self, shape: Sequence[int]) -> OnnxModel:
        """The same graph for images of one shape alone, in the graph's own order of dimensions."""
        return OnnxModel(self._reshaped(list(shape)), self.name, self.base)

    def any_size(self) -> OnnxModel:
        """The same graph for images of any size, where it is declared to take one alone.

        Whether its nodes do so too shows when it is read at another size.
        """
        sizes: list[int | str | None] = list(self.declared())
        for place, dim in enumerate(spatial_dims(self.graph)[2:]):
            if sizes and isinstance(sizes[dim], int):
                sizes[dim] = f"size_{place}"
        return OnnxModel(self._reshaped(sizes), self.name)

    def _reshaped(self, sizes: Sequence[int | str | None]) -> ir.Model:
        made = self.copy()
        image_of(made).shape = ir.Shape(sizes)
        for value in (*made.graph.outputs, *(one for node in made.graph for one in node.outputs)):
            if value.shape is not None:  # they may name other sizes
                value.shape = ir.Shape([None] * len(value.shape)) if value.is_graph_output() else None
        return made

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
        if size is not None and len(size) != len(order) - 1:
            raise UsageError(
                f"{self.name}: takes images of {len(order) - 2} spatial axes, which {tuple(size)} is not: give the "
                "channels and the sizes, such as 3,224,224 (in Python behind the number of images: 1, 3, 224, 224)."
            )
        if any(one is None for one in wanted):
            raise UsageError(
                f"{self.name}: its reference size is not known (it declares {_written(declared)}); give it, such as "
                "--input-size 3,224,224"
            )
        if any(have not in (None, want) for have, want in zip(plain, wanted, strict=True)):
            told = f"{self.name}: takes images of {_written(plain[1:])} alone, not of {_written(wanted[1:])}"
            if plain[1] is not None and wanted[1] != plain[1] == wanted[-1]:
                raise UsageError(f"{told}: give the channels first ({_written([wanted[-1], *wanted[1:-1]])}).")
            if plain[1] in (None, wanted[1]):
                raise UsageError(f"{told}. --any-size (in Python OnnxModel.any_size) opens its size.")
            raise UsageError(f"{told}.")
        made = [0] * len(order)
        for place, dim in enumerate(order):
            made[dim] = int(wanted[place] or 0)
        return tuple(made)


def _refuse_doubles(model: ir.Model, path: Path) -> None:
    """Refuse two nodes of one name, which ONNX Runtime does not run, and of which a choice could not say which."""
    names = Counter(node.name for node in model.graph if node.name)
    name, count = max(names.items(), key=lambda one: one[1], default=("", 0))
    if count > 1:
        raise CheckpointError(f"{path}: {count} nodes are called {name!r}. Give every node a name of its own.")


def _check_data(model: onnx.ModelProto, path: Path) -> None:
    """Refuse a file whose weights lie in another one that is not there, or that onnx will not open."""
    entries = [entry for tensor in model.graph.initializer for entry in tensor.external_data if entry.key == "location"]
    for name in dict.fromkeys(entry.value for entry in entries if entry.value != path.name):
        place = path.parent / name
        if not place.is_file():
            raise CheckpointError(f"{path}: its weights lie in {name}, which is not there. Put the two side by side.")
        if place.stat().st_nlink > 1:
            raise CheckpointError(f"{path}: {name} has several hard links, which onnx refuses. Take a copy of it.")


def _without_weights(proto: onnx.ModelProto) -> onnx.ModelProto:
    """The model with inputs in the place of its external weights, which the checker would look for."""
    graph = proto.graph
    outside = [one for one in graph.initializer if one.data_location == onnx.TensorProto.EXTERNAL]
    kept = [one for one in graph.initializer if one.data_location != onnx.TensorProto.EXTERNAL]
    known = {value.name for value in graph.input}
    for one in outside:
        if one.name not in known:
            graph.input.append(onnx.helper.make_tensor_value_info(one.name, one.data_type, list(one.dims)))
    del graph.initializer[:]
    graph.initializer.extend(kept)
    return proto


def _own(tensor: ir.TensorProtocol) -> ir.TensorProtocol:
    """A tensor with numbers of its own."""
    return ir.tensor(tensor.numpy().copy(), dtype=tensor.dtype, name=tensor.name)


def _said(error: Exception) -> str:
    """The first line of what an error says."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:300]


def _look_into(model: ir.Model) -> None:
    """Find names that are no text, and numbers that are not as many as their shape says; any exception will do."""
    for node in model.graph.all_nodes():
        ir.to_proto(node)
        for attribute in node.attributes.values():
            if attribute.type is ir.AttributeType.TENSOR:
                attribute.as_tensor().numpy()
    for value in model.graph.initializers.values():
        tensor = value.const_value
        if tensor is not None and _size(tensor) != tensor.nbytes:
            raise ValueError(f"{value.name}: {_size(tensor)} bytes do not fit shape {tensor.shape}")


def _size(tensor: ir.TensorProtocol) -> int:
    """The bytes that there are of a tensor; of one that lies in a file as many as it says, where the file has them."""
    if isinstance(tensor, ir.ExternalTensor) and tensor.length is not None:
        return min(tensor.length, Path(tensor.path).stat().st_size - (tensor.offset or 0))
    return len(raw_bytes(tensor))


def _written(shape: Sequence[int | None]) -> str:
    return "x".join("?" if size is None else str(size) for size in shape) or "no shape"


def reference_shape(source: OnnxModel, size: Sequence[int] | None) -> tuple[int, ...]:
    """The shape of the image, [B, C, *spatial]; errors as :meth:`OnnxModel.shape_at`."""
    shape = source.shape_at(size)
    return tuple(shape[dim] for dim in spatial_dims(source.graph))


def copied(model: ir.Model) -> ir.Model:
    """A graph once more, with the same weights."""
    made = ir.Model(
        model.graph.clone(),
        ir_version=model.ir_version,
        producer_name=model.producer_name,
        producer_version=model.producer_version,
        domain=model.domain,
        model_version=model.model_version,
        doc_string=model.doc_string,
        metadata_props=dict(model.metadata_props),
    )
    made.meta.update(model.meta)
    return made


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
        raise ConversionError(
            f"{source.name}: is of opset {source.opset}, {version} is needed, and ONNX's converter fails "
            f"({_said(error)}). Export the model with a later opset."
        ) from None
    if source.opset < _COORDINATES_SINCE <= version:
        _place_as_before(made)
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


_COORDINATES_SINCE = 11


def _place_as_before(model: ir.Model) -> None:
    """Say of every Resize where its samples lie: ONNX's converter leaves it open, and the default is another since."""
    for node in model.graph:
        if node.op_type == "Resize":
            for name, said in (("coordinate_transformation_mode", "asymmetric"), ("nearest_mode", "floor")):
                node.attributes.setdefault(name, ir.AttrString(name, said))


def is_graph(path: Path) -> bool:
    """Whether an ONNX file is read as a graph: it names no torch code that made it; errors as :func:`load_onnx`."""
    metadata = read_metadata(path)
    if RECIPE_KEY not in metadata:
        return True
    made_of = Recipe.from_json(metadata[RECIPE_KEY], str(path)).origin.model
    return made_of is not None and made_of.lower().endswith(".onnx")


def write_checked(graph: ir.Model, place: Path) -> tuple[Path, ...]:
    """Write a graph, and let ONNX's checker read the file. Returns the files as :func:`save_onnx`."""
    files = save_onnx(graph, place)
    onnx.checker.check_model(str(place))
    return files
