"""ONNX files: written lean and clean, read back as weights, run by ONNX Runtime."""

from __future__ import annotations

import contextlib
import json
import math
from collections.abc import Iterator
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import torch
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]
from torch import Tensor

from densify.errors import CheckpointError, ConversionError, UnsafeError, UsageError
from densify.files import companion
from densify.onnx.outline import field_head, outline

ONE_FILE_LIMIT = 2**31 - 2**24
"""Bytes of weights past which they go into a file of their own: protobuf ends at 2 GiB, the graph needs some room."""

STATE_KEY = "densify.state"
"""The metadata entry for those state_dict entries that no initializer holds: integer counters and tied tensors."""

DTYPES = {
    ir.DataType.FLOAT: torch.float32,
    ir.DataType.DOUBLE: torch.float64,
    ir.DataType.FLOAT16: torch.float16,
    ir.DataType.BFLOAT16: torch.bfloat16,
    ir.DataType.INT64: torch.int64,
    ir.DataType.INT32: torch.int32,
    ir.DataType.INT16: torch.int16,
    ir.DataType.INT8: torch.int8,
    ir.DataType.UINT8: torch.uint8,
    ir.DataType.BOOL: torch.bool,
    ir.DataType.COMPLEX64: torch.complex64,
    ir.DataType.COMPLEX128: torch.complex128,
}


def save_onnx(model: ir.Model, path: Path) -> tuple[Path, ...]:
    """Write the model as one file; past 2 GiB its weights go to the `companion` file beside it, by its name alone.

    Returns:
        The files written.
    """
    if sum(tensor.nbytes for tensor in _tensors(model)) <= ONE_FILE_LIMIT:
        _stream(model, path)
        return (path,)
    data = companion(path)
    ir.save(model, path, format="protobuf", external_data=data.name)
    return (path, data)


def _tensors(model: ir.Model) -> list[ir.TensorProtocol]:
    return [value.const_value for value in model.graph.initializers.values() if value.const_value is not None]


def _stream(model: ir.Model, path: Path) -> None:
    """Write one file, tensor by tensor.

    Protobuf's own serialisation holds the weights three times over (message, buffer, bytes). A message is the
    concatenation of its fields, so the weights can be appended as fields of the graph straight from their memory.
    """
    initializers = dict(model.graph.initializers)
    tensors = _tensors(model)
    model.graph.initializers.clear()
    try:
        proto = ir.to_proto(model)
    finally:
        model.graph.initializers.update(initializers)
    graph = proto.graph.SerializeToString()
    proto.ClearField("graph")
    heads = [_tensor_head(tensor) for tensor in tensors]
    length = len(graph) + sum(len(head) + tensor.nbytes for head, tensor in zip(heads, tensors, strict=True))
    with path.open("wb") as file:
        file.write(proto.SerializeToString() + field_head(onnx.ModelProto.GRAPH_FIELD_NUMBER, length) + graph)
        for head, tensor in zip(heads, tensors, strict=True):
            file.write(head)
            file.write(tensor.tobytes())
            unmap(tensor)


def unmap(tensor: ir.TensorProtocol) -> None:
    """Give back the memory of a weight that is mapped from a file, unless somebody still looks at it."""
    if isinstance(tensor, ir.ExternalTensor):
        with contextlib.suppress(BufferError):
            tensor.release()


def _tensor_head(tensor: ir.TensorProtocol) -> bytes:
    """All that stands before a tensor's data in the graph's message."""
    shape = tensor.shape.numpy()
    proto = onnx.TensorProto(name=tensor.name, dims=shape, data_type=tensor.dtype.value)
    head: bytes = proto.SerializeToString()
    head += field_head(onnx.TensorProto.RAW_DATA_FIELD_NUMBER, tensor.nbytes)
    return field_head(onnx.GraphProto.INITIALIZER_FIELD_NUMBER, len(head) + tensor.nbytes) + head


def load_onnx(path: Path, *, numbers: bool = True) -> onnx.ModelProto:
    """Read an ONNX file without trusting it. Weights in a second file are not read yet.

    Args:
        numbers: read those of the large weights in the file itself; else see :func:`densify.onnx.outline.outline`.

    Raises:
        UsageError: there is no such file.
        CheckpointError: it is no ONNX model, or cut off.
        UnsafeError: its weights point outside the file's own folder.
    """
    if not path.is_file():
        raise UsageError(f"{path}: there is no such file. Check the path.")
    try:
        model = _parsed(path, numbers)
    except DecodeError as error:
        raise CheckpointError(f"{path}: cannot be read as an ONNX model ({_first_line(error)}). {_REMEDY}") from None
    except OSError as error:
        raise UsageError(f"{path}: cannot be read ({error.strerror}). Check its permissions.") from None
    if model.ir_version <= 0 or not (model.graph.node or model.graph.initializer):
        raise CheckpointError(f"{path}: is no ONNX model: it holds no graph. {_REMEDY}")
    _refuse_outside(model, path)
    return model


def _parsed(path: Path, numbers: bool) -> onnx.ModelProto:
    if not numbers and path.stat().st_nlink == 1 and not path.is_symlink():
        with contextlib.suppress(ValueError):  # protobuf says better what is wrong
            return outline(path)
    return onnx.load(str(path), format="protobuf", load_external_data=False)


def read_metadata(path: Path) -> dict[str, str]:
    """What an ONNX file says of itself, its weights unread; errors as `load_onnx`."""
    return {entry.key: entry.value for entry in load_onnx(path, numbers=False).metadata_props}


def initializers(model: onnx.ModelProto, path: Path) -> Iterator[ir.TensorProtocol]:
    """The weights of a model that `load_onnx` read from `path`; a second file is mapped, not read."""
    for tensor in model.graph.initializer:
        try:
            yield ir.serde.deserialize_tensor(tensor, str(path.parent))
        except (ValueError, TypeError, KeyError, OSError) as error:
            raise CheckpointError(f"{path}: {tensor.name}: no valid tensor ({_first_line(error)}). {_REMEDY}") from None


_REMEDY = "It may be cut off or of another format; write or download it again."


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]


def _refuse_outside(model: onnx.ModelProto, path: Path) -> None:
    """Refuse weights whose file is not inside the folder of the ONNX file (path traversal, links that lead out)."""
    folder = path.parent.resolve()
    for tensor in model.graph.initializer:
        if tensor.data_location != onnx.TensorProto.EXTERNAL:
            continue
        location = next((entry.value for entry in tensor.external_data if entry.key == "location"), "")
        foreign = PurePosixPath(location).is_absolute() or PureWindowsPath(location).is_absolute()
        foreign = foreign or ".." in PureWindowsPath(location).parts
        if foreign or not (folder / location).resolve().is_relative_to(folder):
            raise UnsafeError(
                f"{path}: the weights of {tensor.name!r} point to {location!r}, outside the file's own folder. "
                "Nothing was read from there; get the file from a source you trust."
            )


def to_torch(tensor: ir.TensorProtocol) -> Tensor:
    """An ONNX tensor as a torch tensor of its own memory.

    Raises:
        CheckpointError: a type that torch lacks, or data that does not fit the shape.
    """
    dtype = _torch_dtype(tensor)
    data, result = raw_bytes(tensor), torch.empty(0, dtype=dtype)
    shape = tensor.shape.numpy()
    if min(shape, default=1) < 0 or data.size != math.prod(shape) * dtype.itemsize:
        raise CheckpointError(f"{tensor.name}: {data.size} bytes of data do not fit shape {shape} of {dtype}.")
    result.resize_(shape)
    result.reshape(-1).view(torch.uint8).numpy()[:] = data
    return result


def _shaped(tensor: ir.TensorProtocol) -> Tensor:
    """An ONNX tensor as a torch tensor without numbers; errors as :func:`to_torch`."""
    return torch.empty(tensor.shape.numpy(), dtype=_torch_dtype(tensor), device="meta")


def _torch_dtype(tensor: ir.TensorProtocol) -> torch.dtype:
    dtype = DTYPES.get(tensor.dtype)
    if dtype is None:
        raise CheckpointError(f"{tensor.name}: torch has no tensor type for ONNX's {tensor.dtype.name}.")
    return dtype


def raw_bytes(tensor: ir.TensorProtocol) -> np.ndarray:
    """The data of an ONNX tensor as bytes, little-endian, read-only.

    Raises:
        CheckpointError: the data cannot be read.
    """
    try:
        return np.frombuffer(tensor.tobytes(), dtype=np.uint8)
    except (OSError, ValueError, TypeError) as error:
        raise CheckpointError(f"{tensor.name}: its data cannot be read ({_first_line(error)}).") from None


def read_onnx_weights(path: Path, *, numbers: bool = True) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The weights and the metadata of an ONNX file.

    For a file that densify wrote the weights are the exported model's whole state_dict, integer counters and tied
    tensors (which share memory here too) included.

    Args:
        numbers: read them; else the tensors lie on the meta device.

    Raises:
        UsageError, CheckpointError, UnsafeError: as `load_onnx`.
    """
    model, read = load_onnx(path, numbers=numbers), to_torch if numbers else _shaped
    weights = {str(tensor.name): read(tensor) for tensor in initializers(model, path)}
    metadata = {entry.key: entry.value for entry in model.metadata_props}
    state = restore_state(weights, metadata, str(path))
    return state if numbers else {name: tensor.to("meta") for name, tensor in state.items()}, metadata


def restore_state(weights: dict[str, Tensor], metadata: dict[str, str], where: str) -> dict[str, Tensor]:
    """Add what metadata says of counters and tied tensors."""
    if STATE_KEY not in metadata:
        return weights
    try:
        entry: dict[str, Any] = json.loads(metadata[STATE_KEY])
        for name, (dtype, number) in entry["counters"].items():
            weights[name] = torch.tensor(number, dtype=getattr(torch, dtype))
        for name, source in entry["tied"].items():
            weights[name] = weights[source]
        return weights
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{where}: its entry {STATE_KEY!r} is damaged ({_first_line(error)}).") from None


class OnnxSession:
    """An ONNX file in ONNX Runtime, on the CPU, with as many threads as torch uses.

    Args:
        path: the file.
        optimised: all of ONNX Runtime's graph optimisations, or none.
        name: what it is called in messages, if not by its path.

    Raises:
        UsageError: there is no such file.
        ConversionError: ONNX Runtime cannot load or run the model.
    """

    def __init__(self, path: Path, *, optimised: bool, name: str = "") -> None:
        if not path.is_file():
            raise UsageError(f"{path}: there is no such file. Check the path.")
        level = onnxruntime.GraphOptimizationLevel
        options = onnxruntime.SessionOptions()
        options.graph_optimization_level = level.ORT_ENABLE_ALL if optimised else level.ORT_DISABLE_ALL
        options.intra_op_num_threads = torch.get_num_threads()
        options.log_severity_level = 4  # fatal only: what matters is raised, the rest is noise on stderr
        options.enable_cpu_mem_arena = False  # the arena grows by doubling, up to twice the weights
        self.path, self.name = path, name or str(path)
        try:
            self._session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        except Exception as error:  # ONNX Runtime's exceptions have no common base but Exception
            raise ConversionError(f"{self.name}: ONNX Runtime cannot load it ({_first_line(error)}).") from None
        self.inputs = tuple(value.name for value in self._session.get_inputs())
        self.outputs = tuple(value.name for value in self._session.get_outputs())
        # Per input its shape: numbers for fixed axes, names for free ones.
        self.shapes = tuple(tuple(value.shape) for value in self._session.get_inputs())
        self.half = any(value.type == "tensor(float16)" for value in self._session.get_inputs())

    def __call__(self, *inputs: np.ndarray) -> list[np.ndarray]:
        """The outputs, in the file's order."""
        try:
            result = self._session.run(None, dict(zip(self.inputs, inputs, strict=True)))
        except Exception as error:
            shapes = ", ".join(str(list(value.shape)) for value in inputs)
            raise ConversionError(f"{self.name}: ONNX Runtime fails on {shapes} ({_first_line(error)}).") from None
        return [np.asarray(value) for value in result]


def run_onnx(path: Path, inputs: np.ndarray, *, optimised: bool) -> list[np.ndarray]:
    """Run an ONNX file once. For several inputs keep an `OnnxSession`."""
    return OnnxSession(path, optimised=optimised)(inputs)
