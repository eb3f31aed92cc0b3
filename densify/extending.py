"""Rules for modules and functions from outside the package: docs/new-op.md shows how to write one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from densify.errors import UsageError
from densify.graphs.fx.registry import Call, Reader, add
from densify.lattice import Window
from densify.ops import Channelwise, Join, Op, Sliding

PerAxis = int | Sequence[int]


def rule(*targets: Any) -> Callable[[Reader], Reader]:
    """Say how modules of your own, or functions, are made dense.

    The decorated function is given a call and answers with a description of the op. From then on a module of such a
    class, or a call of such a function, is one op: densify does not look inside.

    Args:
        targets: classes of torch.nn.Module (exactly these, not what derives from them), and functions.

    Returns:
        A decorator for a function ``(call) -> Op | None``, which answers with :func:`sliding_window` or one of
        densify.ops. None says that there is no rule for this use, so that the op runs on every phase by itself.

    Raises:
        UsageError: a target that is neither, or that densify has a rule for.
    """
    return add(*targets)


def pointwise(*targets: Any) -> None:
    """Say that modules of your own, or functions, treat every position of a map by itself: activations, norms over
    channels, gates of several maps.

    Args:
        targets: as for :func:`rule`.

    Raises:
        UsageError: as for :func:`rule`.
    """
    add(*targets)(_each_position)


def _each_position(call: Call) -> Op:
    return Join() if len(call.maps) > 1 else Channelwise()


def sliding_window(
    call: Call,
    kernel: PerAxis,
    stride: PerAxis = 1,
    padding: PerAxis = 0,
    dilation: PerAxis = 1,
    *,
    run: Callable[..., Any],
    ceil: bool = False,
    fill: float = 0.0,
) -> Op:
    """Describe an op that slides a window over the map, such as a pooling or a convolution of your own.

    densify pads, chooses stride and dilation, and takes care of the far side; `run` only slides.

    Args:
        call: what the rule was given.
        kernel, stride, padding, dilation: the original's geometry in samples, one number or one per spatial axis.
        run: the op on a map that is padded already, as ``run(module, x, stride=, dilation=)`` for a module and
            ``run(x, *other_tensors, stride=, dilation=)`` for a function; both are tuples with one number per spatial
            axis. It returns [B, K, *spatial] with (n - dilation * (kernel - 1) - 1) // stride + 1 samples of n.
        ceil: whether windows may hang over at the far side, as with torch's ceil_mode.
        fill: what the original pads with.

    Raises:
        UsageError: `run` has no name, or the numbers do not fit the map's axes.
    """
    if not hasattr(run, "__name__") or run.__name__ == "<lambda>":
        raise UsageError("run= has to be a function with a name: write it with def.")
    axes = (_per_axis(name, given, call.spatial) for name, given in _named(kernel, stride, padding, dilation))
    windows = (Window(k, s, p, p, d, ceil) for k, s, p, d in zip(*axes, strict=True))
    return Sliding(tuple(windows), run=run, fill=fill)


def _named(*given: PerAxis) -> list[tuple[str, PerAxis]]:
    return list(zip(("kernel", "stride", "padding", "dilation"), given, strict=True))


def _per_axis(name: str, given: PerAxis, count: int) -> tuple[int, ...]:
    values = (given,) * count if isinstance(given, int) else tuple(given)
    if len(values) != count:
        raise UsageError(f"{name}={given}: the map has {count} spatial axes, so give one number or {count}.")
    return values
