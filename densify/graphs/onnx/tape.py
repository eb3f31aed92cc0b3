"""Writing ONNX nodes: tensors and sizes that record what is done with them.

A :class:`Size` is an integer where it is known when the graph is written, else a number that the graph computes: so the
arithmetic of :mod:`densify.lattice` writes itself.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

from densify.errors import ConversionError

_SINCE = {
    "Clip": 11, "Constant": 9, "ConstantOfShape": 9, "Max": 12, "MaxPool": 10, "Min": 12, "Mod": 10, "Pad": 11,
    "Range": 11, "Slice": 10, "Where": 9,
}  # fmt: skip
"""The opset that has the form of an operator that is written here, where it is not among the first."""


class Number:
    """An integer that the graph computes: a value of shape [1]."""

    def __init__(self, tape: Tape, value: ir.Value) -> None:
        self.tape, self.value = tape, value

    def _with(self, kind: str, first: Size, second: Size) -> Number:
        return Number(self.tape, self.tape.op(kind, [self.tape.integers([first]), self.tape.integers([second])]))

    def __add__(self, other: Size) -> Size:
        return self if _is(other, 0) else self._with("Add", self, other)

    def __radd__(self, other: Size) -> Size:
        return self + other

    def __sub__(self, other: Size) -> Size:
        if other is self:
            return 0
        return self if _is(other, 0) else self._with("Sub", self, other)

    def __rsub__(self, other: Size) -> Size:
        return self._with("Sub", other, self)

    def __mul__(self, other: Size) -> Size:
        return self if _is(other, 1) else self._with("Mul", self, other)

    def __rmul__(self, other: Size) -> Size:
        return self * other

    def __floordiv__(self, other: Size) -> Size:
        return self if _is(other, 1) else self._with("Div", self, other)

    def __rfloordiv__(self, other: Size) -> Size:
        return self._with("Div", other, self)

    def __mod__(self, other: Size) -> Size:
        return 0 if _is(other, 1) else self._with("Mod", self, other)

    def __abs__(self) -> Number:
        if self.tape.version < _SINCE["Max"]:
            return Number(self.tape, self.tape.op("Abs", [self.value]))
        return self._with("Max", self, Number(self.tape, self.tape.op("Neg", [self.value])))  # targets.py: Abs


Size = int | Number


def _is(size: Size, number: int) -> bool:
    return isinstance(size, int) and size == number


class Tensor:
    """A tensor of the graph that is being written.

    Attributes:
        value: its value.
        shape: per dimension its size, or None where nobody has asked for it yet.
    """

    def __init__(self, tape: Tape, value: ir.Value, shape: Sequence[Size | None]) -> None:
        self.tape, self.value, self.shape = tape, value, list(shape)

    @property
    def rank(self) -> int:
        return len(self.shape)

    def size(self, dim: int) -> Size:
        """How long a dimension is."""
        found = self.shape[dim]
        if found is None:
            found = self.shape[dim] = self.tape.size_of(self.value, dim)
        return found

    def channels(self) -> int:
        """The second dimension, which no rule changes.

        Raises:
            ConversionError: the graph does not tell how many there are.
        """
        found = self.shape[1]
        if not isinstance(found, int):
            raise ConversionError(f"{self.value.name}: the graph does not tell how many channels it has.")
        return found

    def op(
        self, kind: str, inputs: Sequence[ir.Value | None] = (), shape: Sequence[Size | None] = (), **attributes: Any
    ) -> Tensor:
        """An operator whose first input is this tensor; `shape` is what is known of the result's, if it is another."""
        made = self.tape.op(kind, [self.value, *inputs], attributes)
        return Tensor(self.tape, made, shape or self.shape)

    def changed(self, sizes: Mapping[int, Size | None]) -> list[Size | None]:
        """The shape with other sizes along some dimensions."""
        return [sizes.get(dim, size) for dim, size in enumerate(self.shape)]

    def padded(self, sides: Mapping[int, tuple[Size, Size]], fill: float = 0.0, mode: str = "constant") -> Tensor:
        """Padding in front of and behind some dimensions; known negative sides crop."""
        x = self
        for dim, (low, high) in sides.items():
            cut = [-side if isinstance(side, int) and side < 0 else 0 for side in (low, high)]
            if any(cut):
                x = x.sliced(dim, cut[0], -cut[1] if cut[1] else None)
        left = {
            dim: tuple(0 if isinstance(one, int) and one < 0 else one for one in pair) for dim, pair in sides.items()
        }
        return x._padded({dim: (a, b) for dim, (a, b) in left.items() if not (_is(a, 0) and _is(b, 0))}, fill, mode)

    def _padded(self, sides: Mapping[int, tuple[Size, Size]], fill: float, mode: str) -> Tensor:
        if not sides:
            return self
        low, high = ([sides.get(dim, (0, 0))[side] for dim in range(self.rank)] for side in (0, 1))
        inputs: list[ir.Value | None] = [self.tape.integers([*low, *high])]
        if mode == "constant" and fill:
            inputs.append(self.tape.constant(_filled(fill, self.value.dtype.numpy())))  # type: ignore[union-attr]
        sizes = {dim: _sum(self.shape[dim], *pair) for dim, pair in sides.items()}
        return self.op("Pad", inputs, self.changed(sizes), mode=mode)

    def sliced(self, dim: int, start: Size, end: Size | None, step: int = 1) -> Tensor:
        """Samples along one dimension; `end` None for all that follow."""
        whole = self.shape[dim]
        if step == 1 and _is(start, 0) and (end is None or (isinstance(end, int) and end == whole)):
            return self
        stop: Size = np.iinfo(np.int64).max if end is None else end
        bounds = [self.tape.integers([one]) for one in (start, stop, dim, step)]
        size = None
        if isinstance(whole, int) and isinstance(start, int) and isinstance(stop, int):
            size = len(range(*slice(start, stop, step).indices(whole)))
        return self.op("Slice", bounds, self.changed({dim: size}))

    def transposed(self, order: Sequence[int]) -> Tensor:
        """Dimensions in another order."""
        if list(order) == list(range(self.rank)):
            return self
        return self.op("Transpose", (), [self.shape[dim] for dim in order], perm=list(order))

    def reshaped(self, shape: Sequence[Size], known: Sequence[Size | None] | None = None) -> Tensor:
        """Another shape; 0 keeps a dimension, one -1 is what remains.

        Args:
            known: what the sizes are, where 0 and -1 do not say.
        """
        if known is None:
            known = [self.shape[dim] if _is(size, 0) else size for dim, size in enumerate(shape)]
            known = [None if isinstance(size, int) and size < 0 else size for size in known]
        return self.op("Reshape", [self.tape.integers(shape)], known)


def _filled(fill: float, dtype: np.dtype) -> np.ndarray:
    """A number of a type; the least one for -inf where the type has none."""
    return np.array(np.iinfo(dtype).min if fill == -np.inf and dtype.kind in "iu" else fill, dtype)


def _sum(size: Size | None, low: Size, high: Size) -> Size | None:
    ints = [one for one in (size, low, high) if isinstance(one, int)]
    return sum(ints) if len(ints) == 3 else None


def concatenated(parts: Sequence[Tensor], dim: int) -> Tensor:
    """Tensors one behind the other along a dimension."""
    first, sizes = parts[0], [part.shape[dim] for part in parts]
    ints = [size for size in sizes if isinstance(size, int)]
    total = sum(ints) if len(ints) == len(sizes) else None
    return first.op("Concat", [part.value for part in parts[1:]], first.changed({dim: total}), axis=dim)


class Tape:
    """The nodes that are written, each once however often it is asked for.

    Args:
        taken: names that the graph has already.
        version: opset of the graph.
    """

    def __init__(self, taken: Iterable[str], version: int) -> None:
        self.version, self.required = version, 0
        self.nodes: list[ir.Node] = []
        self._taken, self._count = set(taken), 0
        self._made: dict[Any, Sequence[ir.Value]] = {}
        self._written: set[int] = set()
        self._named: set[str] = set()

    def op(
        self,
        kind: str,
        inputs: Sequence[ir.Value | None],
        attributes: Mapping[str, Any] | None = None,
        dtype: ir.DataType | None = None,
    ) -> ir.Value:
        """The output of an operator; its type is that of the first input where none is given."""
        given = dict(attributes or {})
        key = (kind, *(id(one) for one in inputs), *sorted((name, repr(value)) for name, value in given.items()))
        if dtype is None and inputs and inputs[0] is not None:
            dtype = ir.DataType.INT64 if kind == "Shape" else inputs[0].dtype
        return self._once(key, lambda: ir.node(kind, list(inputs), given), [dtype])[0]

    def copy(self, node: ir.Node, inputs: Sequence[ir.Value | None], **attributes: Any) -> Sequence[ir.Value]:
        """The outputs of a node like another, with other inputs and with some attributes changed."""
        key = (id(node), *(id(one) for one in inputs))
        given = {**node.attributes, **{one.name: one for one in ir.convenience.convert_attributes(attributes)}}

        def make() -> ir.Node:
            name, count = self._free(node.name), len(node.outputs)
            return ir.Node(node.domain, node.op_type, inputs, given.values(), num_outputs=count, name=name)

        needed = self.required
        outputs = self._once(key, make, [value.dtype for value in node.outputs])
        self.required = needed  # the graph has the operator already
        return outputs

    def _once(self, key: Any, make: Callable[[], ir.Node], types: Sequence[ir.DataType | None]) -> Sequence[ir.Value]:
        """The outputs of a node, or of the same one that is there already."""
        if key not in self._made:
            node = make()
            for value, dtype in zip(node.outputs, types, strict=True):
                value.name = self.name()
                if dtype is not None:
                    value.dtype = dtype
                self._written.add(id(value))
            self.nodes.append(node)
            self.required = max(self.required, _SINCE.get(node.op_type, 0))
            self._made[key] = node.outputs
        return self._made[key]

    def wrote(self, value: ir.Value) -> bool:
        """Whether a value is one of this tape's."""
        return id(value) in self._written

    def _free(self, name: str | None) -> str | None:
        """The name of a node where no other has it."""
        if not name or name not in self._named:
            self._named.add(name or "")
            return name
        return self.name()

    def name(self) -> str:
        """A name that nobody has."""
        while True:
            self._count += 1
            if (made := f"densify_{self._count}") not in self._taken:
                return made

    def constant(self, array: np.ndarray) -> ir.Value:
        """A constant tensor."""
        key = (array.dtype.str, array.shape, array.tobytes())
        if key not in self._made:
            constant = {"value": ir.tensor(array)}
            self._once(key, lambda: ir.node("Constant", [], constant), [ir.DataType.from_numpy(array.dtype)])
        return self._made[key][0]

    def integers(self, sizes: Sequence[Size]) -> ir.Value:
        """Sizes as a tensor of one dimension."""
        if len(sizes) == 1 and isinstance(sizes[0], Number):
            return sizes[0].value
        if all(isinstance(size, int) for size in sizes):
            return self.constant(np.array(sizes, np.int64))
        parts: list[ir.Value] = []
        run: list[int] = []
        for size in sizes:
            if isinstance(size, int):
                run.append(size)
                continue
            parts += [self.constant(np.array(run, np.int64))] if run else []
            parts.append(size.value)
            run = []
        parts += [self.constant(np.array(run, np.int64))] if run else []
        return parts[0] if len(parts) == 1 else self.op("Concat", parts, {"axis": 0})

    def size_of(self, value: ir.Value, dim: int) -> Number:
        """How long a dimension of a value is."""
        if self.version >= 15:
            return Number(self, self.op("Shape", [value], {"start": dim, "end": dim + 1}))
        whole = self.op("Shape", [value])
        return Number(self, self.op("Gather", [whole, self.integers([dim])], {"axis": 0}))

    def adopt(self, node: ir.Node) -> None:
        """Take a node as it is."""
        self._named.add(node.name or "")
        self.nodes.append(node)
