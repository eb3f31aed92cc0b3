"""Put the tensors of a checkpoint into a model: every name and shape compared first, nothing copied needlessly."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence

import torch
from torch import Tensor, nn

from densify.errors import CheckpointError

_COUNTER = "num_batches_tracked"
_FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
_SHOWN = 10


def fit(model: nn.Module | Mapping[str, Tensor], tensors: Mapping[str, Tensor], source: str) -> dict[str, Tensor]:
    """The tensors as `model` takes them, in its order; the model is not changed.

    dtype: where all floating tensors of the checkpoint are of one of float16, bfloat16, float32 and
    float64, they keep it, and the model will take it; where they differ, each is cast to what the model
    has. Counters and indices get the model's dtype. Missing `num_batches_tracked` become 0, as in torch,
    and a tied tensor may stand under any one of its names.

    Args:
        model: the model, on the meta device or a real one, or its state_dict.
        tensors: name -> tensor.
        source: where they come from, for the message.

    Raises:
        CheckpointError: names missing or unexpected, shapes or kinds that differ; all listed.
    """
    state = dict(model.state_dict()) if isinstance(model, nn.Module) else dict(model)
    given = dict(tensors)
    if isinstance(model, nn.Module):
        for group in _ties(model):
            held = next((given[name] for name in group if name in given), None)
            given.update({name: held for name in group if name not in given and held is not None})
    for name, want in state.items():
        if name not in given and name.rpartition(".")[2] == _COUNTER:
            given[name] = torch.zeros(want.shape, dtype=want.dtype)
    _check_fit(state, given, source)
    dtype = _common_float(given.values())
    return {name: _cast(given[name], want, dtype) for name, want in state.items()}


def load_into(model: nn.Module, tensors: Mapping[str, Tensor], source: str) -> None:
    """Put the tensors into the model without copying those that fit as they are, strictly; see `fit`.

    Models on the meta device are filled. Parameters keep requires_grad, tied ones stay tied, and buffers
    that no checkpoint holds follow the checkpoint's dtype.

    Raises:
        CheckpointError: as `fit`; the model is unchanged then.
    """
    fitted = fit(model, tensors, source)
    ties = _ties(model)
    model.load_state_dict(fitted, assign=True, strict=True)
    for first, *others in ties:
        owner, _, name = first.rpartition(".")
        parameter = getattr(model.get_submodule(owner), name)
        for other in others:
            owner, _, name = other.rpartition(".")
            setattr(model.get_submodule(owner), name, parameter)
    dtype = _common_float(fitted.values())
    if dtype is not None:
        model.to(dtype)


def listed(names: Sequence[str]) -> str:
    """The first ten names, and how many more there are."""
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more


def _check_fit(state: Mapping[str, object], given: Mapping[str, Tensor], source: str) -> None:
    missing = [name for name in state if name not in given]
    unexpected = [name for name in given if name not in state]
    both = [(name, given[name], want) for name, want in state.items() if isinstance(want, Tensor) and name in given]
    shapes = [f"{n} is {list(t.shape)}, the model has {list(w.shape)}" for n, t, w in both if t.shape != w.shape]
    kinds = [f"{n} is {t.dtype}, the model has {w.dtype}" for n, t, w in both if not _same_kind(n, t, w)]
    lists = {"missing": missing, "unexpected": unexpected, "misshapen": shapes, "of another kind": kinds}
    if any(lists.values()):
        lines = [f"  {what} ({len(names)}): {listed(names)}" for what, names in lists.items() if names]
        hint = _prefix_hint(missing, unexpected) or (
            "Give the checkpoint of this model, or the arguments (--model-arg) that the model was trained with."
        )
        raise CheckpointError("\n".join([f"{source} does not fit the model:", *lines, hint]))


def _same_kind(name: str, tensor: Tensor, want: Tensor) -> bool:
    """Floats stand for floats, integers for integers: 8-bit integers are no weights without their scales."""
    if name.rpartition(".")[2] == _COUNTER:
        return True
    if want.is_floating_point():
        return tensor.dtype in _FLOATS
    return tensor.is_floating_point() == want.is_floating_point() and tensor.is_complex() == want.is_complex()


def _prefix_hint(missing: list[str], unexpected: list[str]) -> str:
    """Where a prefix alone separates most names, say so."""
    for extra, wanted, text in (
        (unexpected, set(missing), "The checkpoint's names start with {!r} where the model's do not; take it off."),
        (missing, set(unexpected), "The model's names start with {!r} where the checkpoint's do not; put it on."),
    ):
        dots = ((name, i + 1) for name in extra for i, letter in enumerate(name) if letter == ".")
        prefixes = Counter(name[:i] for name, i in dots if name[i:] in wanted)
        for prefix, count in prefixes.most_common(1):
            if count * 2 > len(extra):
                return text.format(prefix)
    return ""


def _ties(model: nn.Module) -> list[list[str]]:
    """Names that stand for one and the same tensor, where it has several."""
    groups: dict[int, list[str]] = {}
    for listing in (model.named_parameters, model.named_buffers):
        names: Callable[..., Iterable[tuple[str, Tensor]]] = listing
        for name, tensor in names(remove_duplicate=False):
            groups.setdefault(id(tensor), []).append(name)
    return [group for group in groups.values() if len(group) > 1]


def _common_float(tensors: Iterable[Tensor]) -> torch.dtype | None:
    dtypes = {tensor.dtype for tensor in tensors if tensor.is_floating_point()}
    return dtypes.pop() if len(dtypes) == 1 else None


def _cast(tensor: Tensor, want: Tensor, dtype: torch.dtype | None) -> Tensor:
    device = tensor.device if want.is_meta or tensor.is_meta else want.device
    return tensor.to(device, dtype if dtype is not None and want.is_floating_point() else want.dtype)
