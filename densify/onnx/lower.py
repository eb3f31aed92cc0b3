"""Ops that the ONNX exporter or a target gets wrong, replaced by exact ones before the exporter sees them.

Two ops of an exported program are translated silently wrong: adaptive pooling to k x k gets its kernel frozen at the
example's size, and `divisor_override` is dropped. Both are linear, so both have an exact form at every size. A third
one, 1-D max pooling, binds its axis to the example's size already in torch.export; max pooling is rewritten there, also
for what targets take. Splits of an axis whose size is not fixed, and unbinding, would become ONNX sequences, which few
runtimes know: they become slices.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.export import ExportedProgram
from torch.fx.experimental.symbolic_shapes import statically_known_true
from torch.overrides import TorchFunctionMode

from densify.errors import ConversionError
from densify.layers.windows import shifted_maximum
from densify.targets import Target

_CONVOLUTIONS: dict[int, Callable[..., Tensor]] = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}
_MAX_POOL: dict[int, Callable[..., Tensor]] = {2: F.max_pool2d, 3: F.max_pool3d}


def averaging_matrix(size: int, bins: int, like: Tensor) -> Tensor:
    """The matrix of adaptive average pooling along one axis: [bins, size], every row sums to 1.

    Args:
        size: samples along the axis; may be symbolic.
        bins: samples after pooling; may be symbolic.
        like: gives dtype and device.
    """
    row = torch.arange(bins, device=like.device)[:, None]
    column = torch.arange(size, device=like.device)[None, :]
    first, end = row * size // bins, ((row + 1) * size + bins - 1) // bins
    inside = (column >= first) & (column < end)
    return inside.to(like.dtype) / (end - first).to(like.dtype)


def adaptive_avg_pool(x: Tensor, output_size: Sequence[int | torch.SymInt]) -> Tensor:
    """Adaptive average pooling of [..., spatial], exact at every size, with no kernel that depends on the size."""
    for axis, bins in zip(range(-len(output_size), 0), output_size, strict=True):
        if statically_known_true(bins == x.shape[axis]):  # the axis keeps its size (None in the module)
            continue
        if isinstance(bins, int) and bins == 1:
            x = x.mean(axis, keepdim=True)
        else:
            weights = averaging_matrix(x.shape[axis], cast(int, bins), x)
            x = torch.matmul(x.transpose(axis, -1), weights.transpose(0, 1)).transpose(axis, -1)
    return x


def avg_pool_with_divisor(
    x: Tensor,
    kernel_size: Sequence[int],
    stride: Sequence[int] = (),
    padding: Sequence[int] = (0,),
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    divisor_override: int | None = None,
) -> Tensor:
    """Average pooling of [B, C, spatial] with a divisor of its own: a depthwise convolution with ones, divided.

    The arguments are torch's; `count_include_pad` has no effect where the divisor is given.
    """
    rank = len(kernel_size)
    steps = tuple(stride) or tuple(kernel_size)
    pads = tuple(padding) * rank if len(padding) == 1 else tuple(padding)
    ones = torch.ones(x.shape[1], 1, *kernel_size, dtype=x.dtype, device=x.device)
    padded = _padded_for(x, pads, steps, ceil_mode, 0.0)
    sums = _CONVOLUTIONS[rank](padded, ones, stride=steps, groups=x.shape[1])
    if ceil_mode:
        sums = _windows_that_count(sums, tuple(x.shape[-rank:]), kernel_size, steps, pads, (1,) * rank)
    return sums / float(divisor_override or math.prod(kernel_size))


_MAX_POOLS: dict[Any, int] = {F.max_pool1d: 1, F.max_pool2d: 2, F.max_pool3d: 3} | {
    torch.max_pool1d: 1, torch.max_pool2d: 2, torch.max_pool3d: 3
}  # fmt: skip


class MaxPooling(TorchFunctionMode):
    """While it is active, max pooling without indices is what a target takes; see :func:`max_pool`."""

    def __init__(self, target: Target) -> None:
        super().__init__()
        self._target = target

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func in _MAX_POOLS and not (len(args) > 6 or kwargs.get("return_indices")):
            return max_pool(self._target, _MAX_POOLS[func], *args, **kwargs)
        return func(*args, **kwargs)


def max_pool(
    target: Target,
    rank: int,
    input: Tensor,
    kernel_size: int | Sequence[int],
    stride: int | Sequence[int] | None = None,
    padding: int | Sequence[int] = 0,
    dilation: int | Sequence[int] = 1,
    ceil_mode: bool = False,
    return_indices: bool = False,
) -> Tensor:
    """`F.max_pool1d` to `F.max_pool3d` as a target takes it; the arguments are torch's, without indices.

    In 1-D it is pooling of one row, which keeps the length dynamic. Dilated pooling is padded by hand, and taken from
    shifted slices where the target wants these; ceil mode becomes padding and a crop where it has none.
    """
    kernel = _per_axis(kernel_size, rank)
    steps = _per_axis(stride, rank) if stride else kernel
    pads, spacing = _per_axis(padding, rank), _per_axis(dilation, rank)
    if rank == 1:
        rows = ((1, *kernel), (1, *steps), (0, *pads), (1, *spacing))
        return max_pool(target, 2, input.unsqueeze(-2), *rows, ceil_mode).squeeze(-2)
    spacing = tuple(d if k > 1 else 1 for d, k in zip(spacing, kernel, strict=True))
    dilated, ceils = any(d > 1 for d in spacing), ceil_mode and not target.ceil_mode
    if not ceils and not (dilated and (target.max_pool == "shifts" or any(pads))):
        return _MAX_POOL[rank](input, kernel, steps, pads, spacing, ceil_mode)
    least = float("-inf") if input.is_floating_point() else torch.iinfo(input.dtype).min
    y = _padded_for(input, pads, steps, ceil_mode, least)
    if dilated and target.max_pool == "shifts":
        for axis in range(rank):
            y = shifted_maximum(y, input.dim() - rank + axis, kernel[axis], spacing[axis], steps[axis])
    else:
        y = _MAX_POOL[rank](y, kernel, steps, 0, spacing)
    sizes = tuple(input.shape[-rank:])
    return _windows_that_count(y, sizes, kernel, steps, pads, spacing) if ceil_mode else y


def _per_axis(value: int | Sequence[int], rank: int) -> tuple[int, ...]:
    given = (value,) if isinstance(value, int) else tuple(value)
    return given * rank if len(given) == 1 else given


def _padded_for(x: Tensor, pads: Sequence[int], steps: Sequence[int], ceil_mode: bool, value: float) -> Tensor:
    """The padding of a window op; in ceil mode s - 1 more behind, where the last window may hang over."""
    far = [p + (s - 1 if ceil_mode else 0) for p, s in zip(pads, steps, strict=True)]
    return F.pad(x, [side for pair in zip(reversed(pads), reversed(far), strict=True) for side in pair], value=value)


def _windows_that_count(
    y: Tensor, sizes: Sequence[int], kernel: Sequence[int], steps: Sequence[int], pads: Sequence[int],
    spacing: Sequence[int],
) -> Tensor:  # fmt: skip
    """Crop what a window op made of :func:`_padded_for` to the windows that torch counts in ceil mode."""
    geometry = zip(range(-len(sizes), 0), sizes, kernel, steps, pads, spacing, strict=True)
    for axis, n, k, s, p, d in geometry:
        y = y.narrow(axis, 0, torch.sym_min((n + 2 * p - d * (k - 1) + s - 2) // s + 1, (n + p - 1) // s + 1))
    return y


_ATEN = torch.ops.aten
_AVERAGES = (_ATEN.avg_pool2d.default, _ATEN.avg_pool3d.default)
_ADAPTIVE = tuple(getattr(_ATEN, f"adaptive_avg_pool{n}d").default for n in (1, 2, 3))
_ADAPTIVE_MAX = tuple(getattr(_ATEN, f"adaptive_max_pool{n}d").default for n in (1, 2, 3))
_ANTIALIASED = (_ATEN._upsample_bilinear2d_aa.vec, _ATEN._upsample_bicubic2d_aa.vec)
_DIVISOR = 6  # its place among the arguments of avg_pool2d and avg_pool3d


def _divisor(args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    return kwargs.get("divisor_override", args[_DIVISOR] if len(args) > _DIVISOR else None)


def _average(*args: Any, **kwargs: Any) -> Any:
    """Average pooling: the exact form where a divisor is given, the op itself elsewhere."""
    return NotImplemented if _divisor(args, kwargs) is None else avg_pool_with_divisor(*args, **kwargs)


def _adaptive(x: Tensor, output_size: Sequence[int]) -> Any:
    """Adaptive pooling: the exact form, except for global pooling, which exports well."""
    return NotImplemented if all(bins == 1 for bins in output_size) else adaptive_avg_pool(x, output_size)


def _unbound(x: Tensor, dim: int = 0) -> Any:
    """Unbinding, entry by entry."""
    return [x.select(dim, index) for index in range(x.shape[dim])]


def _split(x: Tensor, sizes: Sequence[int], dim: int = 0) -> Any:
    """Splitting into given sizes: the op itself where they are numbers."""
    if all(isinstance(size, int) for size in (x.shape[dim], *sizes)):
        return NotImplemented
    starts = [sum(sizes[:index]) for index in range(len(sizes))]
    return [x.narrow(dim, start, size) for start, size in zip(starts, sizes, strict=True)]


def _pieces(x: Tensor, size: Any, dim: int = 0) -> Any:
    """Splitting into pieces of one size, of which the last may be shorter; chunks come here, too."""
    whole: Any = x.shape[dim]
    if isinstance(whole, int) and isinstance(size, int):
        return NotImplemented
    count = int((whole + size - 1) // size)
    return _split(x, [*[size] * (count - 1), whole - (count - 1) * size], dim)


def _follows_size(node: torch.fx.Node) -> bool:
    """Whether the number of pieces that a split makes is another at another size; torch's guards hold near one."""
    arguments: Any = (*node.args, *node.kwargs.values(), 0)
    x, given, dim = arguments[:3]
    whole, size = x.meta["val"].shape[dim], given.meta["val"] if isinstance(given, torch.fx.Node) else given
    if isinstance(whole, int):
        return False
    if node.target is _ATEN.chunk.default:
        return size > 2 and bool(whole.node.expr % size != 0)
    pieces = whole.node.expr / (size.node.expr if isinstance(size, torch.SymInt) else size)
    return not bool(pieces.is_Integer)


_SPLITS: dict[Any, Callable[..., Any]] = {
    _ATEN.unbind.int: _unbound,
    _ATEN.split_with_sizes.default: _split,
    _ATEN.split.Tensor: _pieces,
    _ATEN.chunk.default: lambda x, chunks, dim=0: _pieces(x, (x.shape[dim] + chunks - 1) // chunks, dim),
}
_EXACT: dict[Any, Callable[..., Any]] = {
    **dict.fromkeys(_ADAPTIVE, _adaptive),
    **dict.fromkeys(_AVERAGES, _average),
    **_SPLITS,
}


def _is_wrong(node: torch.fx.Node) -> bool:
    """Whether the exporter mistranslates this op."""
    if node.target in _SPLITS:
        return True
    if node.target in _ADAPTIVE:
        return any(bins != 1 for bins in cast(Sequence[int], node.args[1]))
    if node.target in _AVERAGES:
        return _divisor(node.args, node.kwargs) is not None
    return False


def lowered(program: ExportedProgram) -> ExportedProgram:
    """The program with adaptive average pooling, own divisors and splits in exact form; itself where it has none.

    Raises:
        ConversionError: adaptive max pooling to more than one sample, which the exporter freezes at the example's size,
            or antialiased interpolation by a broken factor, which it writes by the sizes; splits into pieces whose
            number follows the size.
    """
    for node in program.graph.nodes:
        if node.target in _ADAPTIVE_MAX and any(bins != 1 for bins in cast(Sequence[int], node.args[1])):
            raise ConversionError(
                f"the model cannot be exported: adaptive max pooling to {node.args[1]} would be right at the example's "
                "size alone. Use a max pooling of fixed kernel."
            )
        if node.target in (_ATEN.split.Tensor, _ATEN.chunk.default) and _follows_size(node):
            raise ConversionError(
                f"the model cannot be exported: {node.name} makes a number of pieces that follows the size of the "
                "image; a graph has one number of them. Give torch.split a list of sizes, or export with static=True."
            )
        factors = node.args[3] if node.target in _ANTIALIASED and len(node.args) > 3 else None
        if any(factor != int(factor) for factor in cast(Sequence[float], factors or ())):
            raise ConversionError(
                f"the model cannot be exported: antialiased interpolation by {factors} would be exported by its sizes, "
                "which is another function where these are rounded. Give it size= instead of scale_factor=."
            )
    wrong = {node.target for node in program.graph.nodes if node.op == "call_function" and _is_wrong(node)}
    if not wrong:
        return program
    table = {op: _EXACT[op] for op in wrong}
    if wrong & _SPLITS.keys():
        table |= _SPLITS  # torch takes one for the other on the way
    exact: ExportedProgram = program.run_decompositions(table)
    return exact
