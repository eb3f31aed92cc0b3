"""Record a model as a torch.fx graph while running every node on the example.

Control flow on shapes is decided by the example; every decided condition becomes a guard of the graph. The run
happens on the meta device, so that it costs neither time nor memory; a model that looks at values is run for real.
"""

from __future__ import annotations

import copy
import inspect
import linecache
import re
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, fx, nn

from densify.errors import BlankError, ConversionError
from densify.graphs.fx.guards import OWN
from densify.graphs.fx.tracer import ExampleTracer

_CONVOLUTIONS: dict[int, tuple[type[nn.Module], ...]] = {
    1: (nn.Conv1d, nn.ConvTranspose1d),
    2: (nn.Conv2d, nn.ConvTranspose2d),
    3: (nn.Conv3d, nn.ConvTranspose3d),
}
_FORMS = {1: "channels,length", 2: "channels,height,width", 3: "channels,depth,height,width"}


def same_tensors(model: nn.Module, convert: Callable[[Tensor], Tensor] | None = None) -> nn.Module:
    """A copy of a module tree that holds the same tensors, or `convert` of each."""
    memo: dict[int, Any] = {}
    for tensor in [*model.parameters(), *model.buffers()]:
        memo[id(tensor)] = tensor if convert is None else convert(tensor)
    return copied(model, memo)


def copied(model: nn.Module, memo: dict[int, Any] | None = None) -> nn.Module:
    """A deep copy of a model.

    Args:
        memo: by id, what stands for the tensors that are not to be copied.

    Raises:
        ConversionError: it holds results of a computation, with their gradient's history.
    """
    for name, module in model.named_modules():
        for attribute, value in vars(module).items():
            if isinstance(value, Tensor) and value.grad_fn is not None:
                remedy = "torch.nn.utils.remove_weight_norm and the like" if module._forward_pre_hooks else "detach"
                raise ConversionError(
                    f"{'.'.join(filter(None, (name, attribute)))} is a tensor with the history of its gradient, which "
                    f"cannot be copied. Remove it first ({remedy}), or set it to None."
                )
    try:
        return copy.deepcopy(model, memo)
    except RuntimeError as error:
        reason = str(error).split("\n")[0]
        raise ConversionError(
            f"this model cannot be copied: {reason} Remove what it keeps of earlier runs, such as lists of features."
        ) from error


def on_meta(model: nn.Module) -> nn.Module:
    """A copy of a module tree whose parameters and buffers hold no numbers."""

    def empty(tensor: Tensor) -> Tensor:
        meta = tensor.detach().to("meta")
        return nn.Parameter(meta, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else meta

    return same_tensors(model, empty)


def trace(model: nn.Module, example: Tensor, *, training: bool) -> fx.Graph:
    """The model's graph in train or eval mode.

    Every node carries ``meta["value"]``: its value on the example, tensors on the meta device where possible.

    Args:
        example: [B, C, *spatial].

    Raises:
        ConversionError: the model cannot be traced; the message names the source line.
    """
    if model._forward_hooks or model._forward_pre_hooks:
        raise ConversionError(
            f"{type(model).__name__} has forward hooks of its own, which its dense form would leave out. Remove them, "
            "or put them on a layer inside."
        )
    if isinstance(model, nn.DataParallel | nn.parallel.DistributedDataParallel):
        raise ConversionError(f"this is a {type(model).__name__} around a model: give its .module.")
    if "_orig_mod" in model._modules:
        raise ConversionError(
            "this is a compiled model: give what torch.compile was given, and compile the dense form."
        )
    needed = [p for p in inspect.signature(model.forward).parameters.values() if p.default is p.empty]
    if len([p for p in needed if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]) > 1:
        names = ", ".join(p.name for p in needed)
        raise ConversionError(
            f"{type(model).__name__}.forward needs several inputs ({names}), and densify follows one image through a "
            "network. Give it a module whose forward takes the image alone."
        )
    if training and example.shape[0] == 1:
        example = torch.cat([example, example])  # BatchNorm refuses to learn from a single value
    try:
        return _trace(on_meta(model), example.to("meta"), training, example.device)
    except Exception:
        # Meta tensors have no values: only a run on real ones tells whether the model or the meta device is at fault.
        if example.is_meta:
            raise BlankError(
                f"cannot trace {type(model).__name__} without its weights: its program looks at values, or it does not "
                "run on this example."
            ) from None
        root = copied(model)
        try:
            return _trace(root, example, training, example.device)
        except Exception as error:
            raise ConversionError(f"cannot trace {type(model).__name__}: {_explain(error, model, example)}") from error


def _trace(root: nn.Module, example: Tensor, training: bool, device: torch.device) -> fx.Graph:
    root.train(training)
    with torch.random.fork_rng(devices=[]), torch.enable_grad():
        parameters = list(inspect.signature(root.forward).parameters.values())[1:]
        optional = {p.name: p.default for p in parameters if p.default is not inspect.Parameter.empty}
        return ExampleTracer(example, device).trace(root, optional)


def _explain(error: Exception, model: nn.Module, example: Tensor) -> str:
    """The innermost source line that belongs to neither torch nor densify, and what went wrong there."""
    place, line = "", ""
    frame = error.__traceback__
    while frame is not None:
        name = frame.tb_frame.f_code.co_filename
        if not any(part in name for part in OWN):
            place = f"{name.rsplit('/', 1)[-1]}:{frame.tb_lineno}, in {frame.tb_frame.f_code.co_name}"
            line = linecache.getline(name, frame.tb_lineno).strip()
        frame = frame.tb_next
    at = f" at {place}" if place else ""
    if isinstance(error, ConversionError):
        return f"{error}{at}."
    message = str(error).strip().split("\n")[0] or f"{type(error).__name__} ({line})"
    return f"{message}{at}, with an example of shape {tuple(example.shape)}. {_remedy(message, model, example)}"


def _remedy(message: str, model: nn.Module, example: Tensor) -> str:
    """What to try after a model did not run on the example."""
    axes = {n for n, layers in _CONVOLUTIONS.items() if any(isinstance(m, layers) for m in model.modules())}
    if axes and example.ndim - 2 not in axes:
        form = " or ".join(_FORMS[n] for n in sorted(axes))
        return f"Its size has to be {form} (--input-size)."
    if product := re.search(r"\(\d+x(\d+) and (\d+)x\d+\)", message):
        made, taken = product.groups()
        return (
            f"A linear layer takes {taken} numbers, and the layers before it make {made} of this example: give the "
            "size that the model was trained for (--input-size)."
        )
    return "Does the model run on this example? If not, give another size (--input-size)."
