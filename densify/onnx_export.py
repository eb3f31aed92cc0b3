"""Export of a torch model to ONNX: exact, dynamic in size, with the state_dict's names and nothing of this machine."""

from __future__ import annotations

import contextlib
import io
import json
import logging
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import torch
from onnx_ir.tensor_adapters import TorchTensor
from torch import Tensor, fx, nn
from torch.export import ExportedProgram
from torch.export.graph_signature import OutputKind, TensorArgument
from torch.utils import _pytree as pytree

from densify.comparison import evaluating, named_outputs
from densify.conversion import Dense, blank
from densify.errors import ConversionError, UsageError
from densify.files import check_writable, write_atomically
from densify.graphs.fx.guards import guard
from densify.graphs.fx.trace import trace
from densify.onnx_capture import capture, input_shape, summary
from densify.onnx_file import STATE_KEY, initializers, load_onnx, raw_bytes, restore_state, save_onnx
from densify.onnx_graph import clean, fold_sizes, keep_state, name_values, rename_symbols
from densify.onnx_half import half_state, to_half
from densify.onnx_lower import lowered
from densify.onnx_metadata import Axes, axis_names, of_original, placement
from densify.recipe import Recipe
from densify.weights import RECIPE_KEY

OPSETS = range(18, 26)
"""The opsets that can be produced: below them the exporter silently stays at 18, above ONNX Runtime does not follow."""

_PIECE = 2**24  # bytes compared at a time: the comparison itself needs as many


@dataclass(frozen=True)
class ExportResult:
    """What was written.

    Attributes:
        files: the ONNX file, and the file of its weights where they pass 2 GiB.
        opset: the ONNX opset of the file.
        outputs: names of the outputs, in order.
        dynamic: names of the input's axes that may have other sizes than the example's, with the smallest and the
            largest size for which the graph is the model's (None: no largest): the model's own `if` on a size, say.
        fixed: names of the input's axes that the model binds to the example's size, with that size.
        weights: names of the initializers, keys of the model's state_dict.
    """

    files: tuple[Path, ...]
    opset: int
    outputs: tuple[str, ...]
    dynamic: Mapping[str, tuple[int, int | None]]
    fixed: Mapping[str, int]
    weights: tuple[str, ...]


def export_onnx(
    model: nn.Module,
    path: Path,
    example: Tensor,
    *,
    opset: int | None = None,
    metadata: Mapping[str, str] | None = None,
    output_names: Sequence[str] | None = None,
    any_size: bool = True,
    static: bool = False,
    half: bool = False,
) -> ExportResult:
    """Write a model, as it is in eval mode, to an ONNX file, and check what came out.

    The input is called `input`; its axes batch and length / height, width / depth, height, width are dynamic wherever
    the model allows. One output is called `output`, several by their place in the output structure. Initializers are
    the floating-point entries of the state_dict, name for name and byte for byte, those that eval does not use
    included. The caller sees to it that an existing file is replaced whole, and that the numbers agree
    (`OnnxSession`).

    Args:
        example: a legal input [B, C, *spatial].
        opset: one of `OPSETS`; None is the installed exporter's own default.
        metadata: strings for the file's metadata_props.
        output_names: instead of the default names.
        any_size: False to fix the spatial axes to the example's sizes.
        static: fix all axes to the example's sizes, and compute everything that depends on sizes alone.
        half: weights, input and outputs of a float32 model in float16.

    Raises:
        UsageError: an opset that cannot be produced, or a wrong number of output names.
        ConversionError: the model cannot be exported, or the exporter changed it.
    """
    if opset is not None and opset not in OPSETS:
        raise _no_such_opset(opset)
    if half:
        _check_single(example)
    with _silence(), _eval_mode(model), torch.no_grad():
        program = capture(model, example, any_size, static)
        translated = _translate(program, opset)
    outputs = _output_names(program, output_names)
    name_values(translated, outputs)
    dynamic, fixed = _name_axes(translated, program)
    clean(translated)
    if static:
        fold_sizes(translated)
    state = half_state(model.state_dict()) if half else model.state_dict()
    exceptions = keep_state(translated, state)
    if half:
        to_half(translated, state)
    translated.metadata_props.update({**(metadata or {}), STATE_KEY: json.dumps(exceptions)})
    produced = translated.opset_imports[""]
    translated.ir_version = max(translated.ir_version, _ir_version(produced))
    files = save_onnx(translated, path)
    del translated  # its weights are the model's own, but the graph is not needed while the file is read back
    try:
        weights = _check(path, state, outputs)
    except BaseException:
        for file in files:
            file.unlink(missing_ok=True)
        raise
    return ExportResult(files, produced, outputs, dynamic, fixed, weights)


def export(
    model: nn.Module,
    path: str | Path,
    example: Tensor | Sequence[int] | None = None,
    *,
    opset: int | None = None,
    static: bool = False,
    half: bool = False,
    recipe: Recipe | None = None,
    overwrite: bool = False,
) -> ExportResult:
    """Write a dense network or a plain model to one ONNX file, dynamic in batch and size wherever the model allows.

    Weights past 2 GiB lie in a second file beside it, `path`.data, found by its relative name.

    The file is checked for its names and weights before it takes its place; compare its numbers with
    :func:`densify.verification.verify_onnx`.

    Args:
        model: exported as it is in eval mode.
        path: of the file.
        example: a legal input [B, C, *spatial] or its shape; a dense network knows its own.
        opset: see :data:`OPSETS`; default the exporter's own.
        static: fix batch and size to the example's, for runtimes that want it: every shape in the file is known.
        half: bring a float32 network to float16: weights, input and outputs. Sizes are still computed exactly.
        recipe: kept in the file's metadata; a dense network brings its own.
        overwrite: replace an existing file.

    Raises:
        UsageError: no example for a plain model, an opset that cannot be produced, or a file that cannot be written.
        ConversionError: the model cannot be exported, or has weights or constants that float16 cannot hold.
    """
    known = model.recipe if isinstance(model, Dense) else recipe
    shape = known.options.shape if example is None and known is not None else example
    if shape is None:
        raise UsageError("a plain model needs an example (or its shape) to be exported: densify.export(..., example=).")
    target, results = Path(path), []
    check_writable([target], overwrite)
    if target.suffix != ".onnx":
        raise UsageError(f"{target}: export writes .onnx; densify.save writes .safetensors and .pth.")

    def write(place: Path) -> None:
        results.append(write_network(model, place, shape, opset=opset, recipe=known, static=static, half=half))

    write_atomically(target, write, overwrite=overwrite)
    beside = [target.resolve().with_name(file.name) for file in results[0].files[1:]]
    return replace(results[0], files=(target, *beside))


def write_network(
    model: nn.Module,
    path: Path,
    example: Tensor | Sequence[int],
    *,
    opset: int | None,
    recipe: Recipe | None,
    static: bool = False,
    half: bool = False,
) -> ExportResult:
    """Write to `path` itself; the outputs get the names that `lattices` has. Arguments and errors as :func:`export`."""
    tensor = example if isinstance(example, Tensor) else blank(model, example)
    ranks = _ranks(model, tensor)
    return export_onnx(
        model,
        path,
        tensor,
        opset=opset,
        metadata={} if recipe is None else _metadata(model, recipe, ranks),
        output_names=list(ranks),
        any_size=not _decides(model, tensor),
        static=static,
        half=half,
    )


def _ranks(model: nn.Module, example: Tensor) -> dict[str, int]:
    """The outputs by the names that `lattices` has, and how many axes each has."""
    if isinstance(model, Dense):
        return {name: 2 + len(axes) for name, axes in model.lattices.items()}
    with evaluating(model):
        return {name: value.dim() for name, value in named_outputs(model(example))}


def _metadata(model: nn.Module, recipe: Recipe, ranks: Mapping[str, int]) -> dict[str, str]:
    """The recipe, and where the predictions lie; not of an original's, where the dense head makes something else."""
    places: tuple[Axes, Axes] = recipe.lattices, recipe.positions
    if not isinstance(model, Dense):
        places = of_original(*places) if recipe.options.head == "dense" else ({}, {})
    origin = recipe.origin
    return {RECIPE_KEY: recipe.to_json(), **placement(*places, ranks, mean=origin.mean, std=origin.std)}


def _decides(model: nn.Module, example: Tensor) -> bool:
    """Whether the model's program decides something by the example: an ONNX graph has nothing to hold others to it."""
    if isinstance(model, Dense):
        graph = model.graphs[False]
    else:
        try:
            graph = trace(model, example, training=False)
        except ConversionError:  # then torch.export is on its own, and reports the bounds that it finds
            return False
    return isinstance(graph, fx.Graph) and any(node.target is guard for node in graph.nodes)


@contextlib.contextmanager
def _silence() -> Iterator[None]:
    """Keep the exporter's prints, log lines and warnings to itself: failures are raised."""
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


@contextlib.contextmanager
def _eval_mode(model: nn.Module) -> Iterator[None]:
    """Eval mode inside, every module's own mode afterwards."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


def _translate(program: ExportedProgram, opset: int | None) -> ir.Model:
    """The program as an ONNX graph. optimize=False: the optimiser folds BatchNorm and merges equal tensors."""
    exact = lowered(program)
    try:
        result = torch.onnx.export(exact, (), dynamo=True, optimize=False, verbose=False, opset_version=opset)
    except Exception as error:  # the same here: operators fail with errors of any kind
        cause: BaseException = error
        while cause.__cause__ is not None:  # the outer ones only say that something failed
            cause = cause.__cause__
        raise ConversionError(f"the model cannot be translated to ONNX: {summary(cause)}.") from None
    assert result is not None  # it is None for dynamo=False only
    if opset is not None and result.model.opset_imports[""] != opset:  # an onnxscript too old for it keeps its own
        raise _no_such_opset(opset)
    return result.model


def _no_such_opset(opset: int) -> UsageError:
    return UsageError(f"opset {opset} cannot be produced. Ask for one from {OPSETS[0]} to {OPSETS[-1]}.")


def _output_names(program: ExportedProgram, asked: Sequence[str] | None) -> tuple[str, ...]:
    """The names asked for, one for each output, or the default ones."""
    default = default_output_names(program)
    names = default if asked is None else tuple(asked)
    if len(names) != len(default) or len({"input", *names}) != len(names) + 1:
        raise UsageError(
            f"output names {list(names)} do not fit: the model has {len(default)} outputs, each needs its own."
        )
    return names


def default_output_names(program: ExportedProgram) -> tuple[str, ...]:
    """Default names of a program's tensor outputs: `output`, or their keys and places in the output structure."""
    specs = [spec for spec in program.graph_signature.output_specs if spec.kind is OutputKind.USER_OUTPUT]
    structure = pytree.tree_unflatten(list(range(len(specs))), program.call_spec.out_spec)
    names = []
    for keys, place in pytree.tree_flatten_with_path(structure)[0]:
        if isinstance(specs[place].arg, TensorArgument):
            parts = [str(getattr(key, "key", getattr(key, "idx", getattr(key, "name", "")))) for key in keys]
            names.append(".".join(parts if parts and not parts[0].isdigit() else ["output", *parts]))
    return tuple(names)


def _name_axes(model: ir.Model, program: ExportedProgram) -> tuple[dict[str, tuple[int, int | None]], dict[str, int]]:
    """Name the input's axes, in all shapes of the graph; dynamic axes with their bounds, and fixed axes."""
    dynamic: dict[str, tuple[int, int | None]] = {}
    fixed: dict[str, int] = {}
    symbols: dict[str, str] = {}
    shape = model.graph.inputs[0].shape
    assert shape is not None  # the exporter gives every input one
    for axis, (name, size) in enumerate(zip(axis_names(len(shape)), input_shape(program), strict=False)):
        if name is not None and isinstance(size, int):
            fixed[name] = size
        elif name is not None and isinstance(size, torch.SymInt):
            symbols.setdefault(str(shape[axis]), name)
            dynamic[name] = _bounds(program, size)
    rename_symbols(model, symbols)
    return dynamic, fixed


def _bounds(program: ExportedProgram, size: torch.SymInt) -> tuple[int, int | None]:
    bounds = program.range_constraints.get(size.node.expr)
    if bounds is None:
        return 1, None
    # torch.export assumes at least 2 everywhere, which says nothing about the model.
    least = int(bounds.lower) if bounds.lower > 2 else 1
    return least, int(bounds.upper) if bounds.upper.is_Integer else None


def _check_single(example: Tensor) -> None:
    if example.dtype != torch.float32:
        raise UsageError(
            f"float16 files are made of networks in float32; this one takes {example.dtype}. Bring it to float32 first "
            "(model.float()), or leave half out: the file keeps the network's own type."
        )


def _ir_version(opset: int) -> int:
    return onnx.helper.find_min_ir_version_for([onnx.helper.make_opsetid("", opset)], ignore_unknown=True)


def _check(path: Path, state: Mapping[str, Tensor], outputs: tuple[str, ...]) -> tuple[str, ...]:
    """Read the file back: names, and every weight byte for byte. Returns the initializers' names."""
    written = load_onnx(path)
    found = (tuple(value.name for value in written.graph.input), tuple(value.name for value in written.graph.output))
    if found != (("input",), outputs):
        raise ConversionError(f"the exporter wrote inputs and outputs {found}, not {(('input',), outputs)}.")
    names = []
    for tensor in initializers(written, path):
        name = str(tensor.name)
        if name not in state or not _same_bytes(tensor, state[name]):
            raise ConversionError(f"the exporter changed the weight {name!r}: it is not what the model has.")
        names.append(name)
    metadata = {entry.key: entry.value for entry in written.metadata_props}
    missing = state.keys() - restore_state(dict.fromkeys(names, torch.empty(0)), metadata, str(path)).keys()
    if missing:
        raise ConversionError(f"the exporter lost {len(missing)} weights, among them {min(missing)!r}.")
    return tuple(names)


def _same_bytes(written: ir.TensorProtocol, tensor: Tensor) -> bool:
    """Bitwise equality, NaN and negative zero included, without a second copy of the tensor."""
    own = TorchTensor(tensor)
    if written.dtype != own.dtype or written.shape.numpy() != tuple(tensor.shape):
        return False
    plain = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
    data = raw_bytes(written)
    pieces = range(0, data.size, _PIECE)
    return data.size == plain.size and all(np.array_equal(data[i : i + _PIECE], plain[i : i + _PIECE]) for i in pieces)
