"""ONNX files without the numbers of their weights: all of a file is read but those, whatever its size."""

from __future__ import annotations

import mmap
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import onnx

LEAST = 4096  # bytes of a weight whose numbers are left where they lie

_MODEL_GRAPH = onnx.ModelProto.GRAPH_FIELD_NUMBER
_GRAPH_INITIALIZER = onnx.GraphProto.INITIALIZER_FIELD_NUMBER
_TENSOR_RAW_DATA = onnx.TensorProto.RAW_DATA_FIELD_NUMBER
_FIXED = {1: 8, 5: 4}  # bytes of a field, by its wire type
_VARINT, _BYTES = 0, 2


def outline(path: Path) -> onnx.ModelProto:
    """The model of a file, its large weights standing as external data that lie in that very file.

    Protobuf reads a message whole; here its fields are walked through, and those that hold numbers are stepped over.

    Args:
        path: a file with one hard link, no symbolic one: others are no external data for the libraries that read them.

    Raises:
        ValueError, OSError, google.protobuf.message.DecodeError: it is no ONNX file.
    """
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        model = onnx.ModelProto()
        model.MergeFromString(_without_numbers(content, 0, len(content), path.name, (_MODEL_GRAPH, _GRAPH_INITIALIZER)))
        return model


class _Field(NamedTuple):
    """One field of a message: its number, and where it, its content and the next field begin."""

    number: int
    begin: int
    content: int
    end: int


def _without_numbers(data: mmap.mmap, begin: int, end: int, name: str, path: tuple[int, ...]) -> bytes:
    """A message less the numbers of the tensors that lie under these fields of it."""
    made = bytearray()
    for field in _fields(data, begin, end):
        if path and field.number == path[0]:
            inner = _without_numbers(data, field.content, field.end, name, path[1:])
            made += field_head(field.number, len(inner)) + inner
        elif not path and field.number == _TENSOR_RAW_DATA and field.end - field.content >= LEAST:
            made += _elsewhere(name, field.content, field.end - field.content)
        else:
            made += data[field.begin : field.end]
    return bytes(made)


def _elsewhere(name: str, offset: int, length: int) -> bytes:
    """The fields of a tensor whose numbers are external data."""
    tensor = onnx.TensorProto(data_location=onnx.TensorProto.EXTERNAL)
    for key, value in (("location", name), ("offset", offset), ("length", length)):
        tensor.external_data.add(key=key, value=str(value))
    written: bytes = tensor.SerializeToString()
    return written


def _fields(data: mmap.mmap, begin: int, end: int) -> Iterator[_Field]:
    at = begin
    while at < end:
        tag, content = _varint(data, at)
        kind = tag & 7
        if kind == _BYTES:
            length, content = _varint(data, content)
            following = content + length
        elif kind == _VARINT:
            _, following = _varint(data, content)
        elif kind in _FIXED:
            following = content + _FIXED[kind]
        else:
            raise ValueError(f"a field of unknown type {kind}")
        if following > end:
            raise ValueError("a field ends behind its message")
        yield _Field(tag >> 3, at, content, following)
        at = following


def _varint(data: mmap.mmap, at: int) -> tuple[int, int]:
    """A number of seven bits a byte, and where it ends."""
    value = 0
    for place in range(10):
        if at + place >= len(data):
            break
        byte = data[at + place]
        value |= (byte & 0x7F) << (7 * place)
        if byte < 0x80:
            return value, at + place + 1
    raise ValueError("a number without an end")


def field_head(number: int, length: int) -> bytes:
    """A length-delimited field of protobuf's wire format, up to its content: two varints."""
    head = bytearray()
    for value in (number << 3 | 2, length):
        while value >= 0x80:
            head.append(value & 0x7F | 0x80)
            value >>= 7
        head.append(value)
    return bytes(head)
