"""Ops that the ONNX exporter gets wrong, replaced by exact ones before it sees them.

Two ops of an exported program are translated silently wrong: adaptive pooling to k x k gets its kernel frozen at the
example's size, and `divisor_override` is dropped. Both are linear, so both have an exact form at every size. A third
one, 1-D max pooling, binds its axis to the example's size already in torch.export.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.export import ExportedProgram
from torch.overrides import TorchFunctionMode

from densify.errors import ConversionError

_CONVOLUTIONS: dict[int, Callable[..., Tensor]] = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}


def averaging_matrix(size: int, bins: int, like: Tensor) -> Tensor:
    """The matrix of adaptive average pooling along one axis: [bins, size], every row sums to 1.

    Args:
        size: samples along the axis; may be symbolic.
        bins: samples after pooling.
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
        if not isinstance(bins, int):  # a symbolic size: the axis keeps its own (None in the module)
            continue
        if bins == 1:
            x = x.mean(axis, keepdim=True)
        else:
            weights = averaging_matrix(x.shape[axis], bins, x)
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
    sizes = tuple(x.shape[-rank:])
    # Under ceil mode the last window may hang over: s - 1 more zeros make room for it, torch's own count crops it.
    far = tuple(p + (s - 1 if ceil_mode else 0) for p, s in zip(pads, steps, strict=True))
    padded = F.pad(x, [amount for pair in zip(reversed(pads), reversed(far), strict=True) for amount in pair])
    ones = torch.ones(x.shape[1], 1, *kernel_size, dtype=x.dtype, device=x.device)
    sums = _CONVOLUTIONS[rank](padded, ones, stride=steps, groups=x.shape[1])
    if ceil_mode:
        for axis, n, k, s, p in zip(range(-rank, 0), sizes, kernel_size, steps, pads, strict=True):
            windows = torch.sym_min((n + 2 * p - k + s - 1) // s + 1, (n + p - 1) // s + 1)
            sums = sums.narrow(axis, 0, windows)
    return sums / float(divisor_override or math.prod(kernel_size))


class PoolOverTwoAxes(TorchFunctionMode):
    """While it is active, 1-D max pooling is 2-D max pooling of one row, which keeps the length dynamic."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is F.max_pool1d and not (kwargs or {}).get("return_indices"):
            return max_pool_of_row(*args, **(kwargs or {}))
        return func(*args, **(kwargs or {}))


def max_pool_of_row(
    x: Tensor,
    kernel_size: int | Sequence[int],
    stride: int | Sequence[int] | None = None,
    padding: int | Sequence[int] = 0,
    dilation: int | Sequence[int] = 1,
    ceil_mode: bool = False,
    return_indices: bool = False,
) -> Tensor:
    """`F.max_pool1d` as `F.max_pool2d`; the arguments are torch's, without indices."""
    along = [value if isinstance(value, int) else value[0] for value in (kernel_size, padding, dilation)]
    step = along[0] if not stride else stride if isinstance(stride, int) else stride[0]
    pooled = F.max_pool2d(x.unsqueeze(-2), (1, along[0]), (1, step), (0, along[1]), (1, along[2]), ceil_mode)
    return pooled.squeeze(-2)


_ATEN = torch.ops.aten
_AVERAGES = (_ATEN.avg_pool2d.default, _ATEN.avg_pool3d.default)
_ADAPTIVE = tuple(getattr(_ATEN, f"adaptive_avg_pool{n}d").default for n in (1, 2, 3))
_ADAPTIVE_MAX = tuple(getattr(_ATEN, f"adaptive_max_pool{n}d").default for n in (1, 2, 3))
_DIVISOR = 6  # its place among the arguments of avg_pool2d and avg_pool3d


def _divisor(args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    return kwargs.get("divisor_override", args[_DIVISOR] if len(args) > _DIVISOR else None)


def _average(*args: Any, **kwargs: Any) -> Any:
    """Average pooling: the exact form where a divisor is given, the op itself elsewhere."""
    return NotImplemented if _divisor(args, kwargs) is None else avg_pool_with_divisor(*args, **kwargs)


def _adaptive(x: Tensor, output_size: Sequence[int]) -> Any:
    """Adaptive pooling: the exact form, except for global pooling, which exports well."""
    return NotImplemented if all(bins == 1 for bins in output_size) else adaptive_avg_pool(x, output_size)


def _is_wrong(node: torch.fx.Node) -> bool:
    """Whether the exporter mistranslates this op."""
    if node.target in _ADAPTIVE:
        return any(bins != 1 for bins in cast(Sequence[int], node.args[1]))
    if node.target in _AVERAGES:
        return _divisor(node.args, node.kwargs) is not None
    return False


def lowered(program: ExportedProgram) -> ExportedProgram:
    """The program with adaptive average pooling and own divisors in exact form; itself where it has neither.

    Raises:
        ConversionError: adaptive max pooling to more than one sample, which the exporter freezes at the example's size.
    """
    for node in program.graph.nodes:
        if node.target in _ADAPTIVE_MAX and any(bins != 1 for bins in cast(Sequence[int], node.args[1])):
            raise ConversionError(
                f"the model cannot be exported: adaptive max pooling to {node.args[1]} would be right at the example's "
                "size alone. Use a max pooling of fixed kernel."
            )
    wrong = {node.target for node in program.graph.nodes if node.op == "call_function" and _is_wrong(node)}
    if not wrong:
        return program
    table: dict[Any, Callable[..., Any]] = {op: _adaptive if op in _ADAPTIVE else _average for op in wrong}
    exact: ExportedProgram = program.run_decompositions(table)
    return exact
