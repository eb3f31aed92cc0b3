"""Export of a torch model to ONNX: exact, dynamic in size, with the state_dict's names and nothing of this machine."""

from __future__ import annotations

import contextlib
import io
import json
import logging
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import torch
from onnx_ir.tensor_adapters import TorchTensor
from torch import Tensor, nn
from torch.export import ExportedProgram
from torch.export.graph_signature import OutputKind, TensorArgument
from torch.utils import _pytree as pytree

from densify.conversion import Dense
from densify.errors import ConversionError, UsageError
from densify.onnx.capture import capture, input_shape, summary
from densify.onnx.file import STATE_KEY, initializers, load_onnx, raw_bytes, restore_state, save_onnx
from densify.onnx.graph import clean, fold_sizes, keep_state, name_values, rename_symbols
from densify.onnx.half import half_state, to_half
from densify.onnx.lower import MaxPooling, lowered
from densify.onnx.metadata import axis_names
from densify.targets import Target, check, find, no_such_opset, opset_for

_PIECE = 2**24  # bytes compared at a time: the comparison itself needs as many


@dataclass(frozen=True)
class ExportResult:
    """What was written.

    Attributes:
        files: the ONNX file, and the file of its weights where they pass 2 GiB.
        opset: the ONNX opset of the file.
        target: what it was written for.
        form: of the dense network that it holds; None for a plain model.
        outputs: names of the outputs, in order.
        dynamic: names of the input's axes that may have other sizes than the example's, with the smallest and the
            largest size for which the graph is the model's (None: no largest): the model's own `if` on a size, say.
        fixed: names of the input's axes that the model binds to the example's size, with that size.
        weights: names of the initializers, keys of the model's state_dict.
    """

    files: tuple[Path, ...]
    opset: int
    target: str
    form: str | None
    outputs: tuple[str, ...]
    dynamic: Mapping[str, tuple[int, int | None]]
    fixed: Mapping[str, int]
    weights: tuple[str, ...]


def export_onnx(
    model: nn.Module,
    path: Path,
    example: Tensor,
    *,
    target: Target | None = None,
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
        target: what it is written for; default ONNX Runtime.
        opset: one of the target's; default its own.
        metadata: strings for the file's metadata_props.
        output_names: instead of the default names.
        any_size: False to fix the spatial axes to the example's sizes.
        static: fix all axes to the example's sizes, and compute everything that depends on sizes alone.
        half: weights, input and outputs of a float32 model in float16.

    Raises:
        UsageError: an opset that cannot be produced, or a wrong number of output names.
        ConversionError: the model cannot be exported, the exporter changed it, or the target refuses what it holds.
    """
    target = target or find("ort")
    produced = opset_for(target, opset)
    if half:
        _check_single(example)
    with _silence(), _eval_mode(model), torch.no_grad(), MaxPooling(target):
        program = capture(model, example, any_size, static)
    with _silence(), torch.no_grad():
        translated = _translate(program, produced)
    outputs = _output_names(program, output_names)
    name_values(translated, outputs)
    dynamic, fixed = _name_axes(translated, program)
    clean(translated)
    if static:
        fold_sizes(translated)
    check(translated, target)
    state = half_state(model.state_dict()) if half else model.state_dict()
    exceptions = keep_state(translated, state)
    if half:
        to_half(translated, state)
    translated.metadata_props.update({**(metadata or {}), STATE_KEY: json.dumps(exceptions)})
    translated.ir_version = max(translated.ir_version, _ir_version(produced))
    files = save_onnx(translated, path)
    del translated  # its weights are the model's own, but the graph is not needed while the file is read back
    try:
        weights = _check(path, state, outputs)
    except BaseException:
        for file in files:
            file.unlink(missing_ok=True)
        raise
    form = model.options.form if isinstance(model, Dense) else None
    return ExportResult(files, produced, target.name, form, outputs, dynamic, fixed, weights)


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


def _translate(program: ExportedProgram, opset: int) -> ir.Model:
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
    if result.model.opset_imports[""] != opset:  # an onnxscript too old for it keeps its own
        raise no_such_opset(opset)
    return result.model


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
