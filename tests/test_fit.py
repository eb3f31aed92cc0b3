"""Checkpoints into models: what fits is taken without a copy, what does not is said by name and changes nothing."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from densify.errors import CheckpointError
from densify.fit import fit, load_into


class Net(nn.Module):
    def __init__(self, classes: int = 5) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.bn = nn.BatchNorm2d(4)
        self.fc = nn.Linear(4, classes)


def _state() -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in Net().state_dict().items()}


def _same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(a[n].dtype == b[n].dtype and torch.equal(a[n], b[n]) for n in a)


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_load_into_fills_without_copying(device: str) -> None:
    state = _state()
    with torch.device(device):
        model = Net()
    model.conv.weight.requires_grad_(False)
    load_into(model, state, "a.pth")
    assert _same(model.state_dict(), state)
    assert model.conv.weight.data_ptr() == state["conv.weight"].data_ptr()
    assert not model.conv.weight.requires_grad
    assert model.conv.bias is not None
    assert model.conv.bias.requires_grad


def test_everything_that_does_not_fit_is_listed_and_nothing_changed() -> None:
    model, state = Net(), _state()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    state["fc.weight"] = torch.zeros(7, 4)
    state["extra"] = state.pop("conv.bias")
    state["bn.weight"] = torch.ones(4, dtype=torch.int8)
    with pytest.raises(CheckpointError) as error:
        load_into(model, state, "a.pth")
    text = str(error.value)
    assert text.startswith("a.pth does not fit the model:")
    assert "missing (1): conv.bias" in text
    assert "unexpected (1): extra" in text
    assert "misshapen (1): fc.weight is [7, 4], the model has [5, 4]" in text
    assert "of another kind (1): bn.weight is torch.int8, the model has torch.float32" in text
    assert "--model-arg" in text
    assert _same(model.state_dict(), before)


def test_long_lists_are_cut() -> None:
    with pytest.raises(CheckpointError, match=r"unexpected \(30\): x0, .*x9 and 20 more"):
        fit({}, {f"x{i}": torch.ones(1) for i in range(30)}, "a.pth")


@pytest.mark.parametrize("on_checkpoint", [True, False])
def test_a_prefix_that_explains_it_is_named(on_checkpoint: bool) -> None:
    plain, longer = _state(), {f"body.net.{name}": value for name, value in _state().items()}
    given, model = (longer, plain) if on_checkpoint else (plain, longer)
    owner = "checkpoint's names start" if on_checkpoint else "model's names start"
    with pytest.raises(CheckpointError, match=rf"The {owner} with 'body\.net\.'"):
        fit(model, given, "a.pth")


def test_missing_counters_become_zero() -> None:
    state = _state()
    model = Net()
    model.bn.num_batches_tracked = torch.tensor(9)
    del state["bn.num_batches_tracked"]
    load_into(model, state, "a.pth")
    assert model.bn.num_batches_tracked == 0
    assert model.bn.num_batches_tracked.dtype is torch.int64


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_the_model_takes_the_dtype_all_tensors_agree_on(dtype: torch.dtype) -> None:
    model = Net()
    model.register_buffer("scale", torch.ones(1), persistent=False)
    state = {name: value.to(dtype) if value.is_floating_point() else value for name, value in _state().items()}
    load_into(model, state, "a.pth")
    assert _same(model.state_dict(), state)
    assert model.get_buffer("scale").dtype is dtype
    assert model.bn.num_batches_tracked is not None
    assert model.bn.num_batches_tracked.dtype is torch.int64


def test_mixed_dtypes_become_the_models() -> None:
    state = {**_state(), "fc.bias": torch.ones(5, dtype=torch.float64)}
    fitted = fit(Net(), state, "a.pth")
    assert {value.dtype for value in fitted.values() if value.is_floating_point()} == {torch.float32}


def test_float8_weights_are_refused() -> None:
    state = {name: value.to(torch.float8_e4m3fn) if value.ndim else value for name, value in _state().items()}
    with pytest.raises(CheckpointError, match="of another kind"):
        fit(Net(), state, "a.pth")


def test_tied_parameters_stay_tied() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Conv2d(1, 1, 1), nn.Conv2d(1, 1, 1)
            self.b.weight = self.a.weight

    model, state = Tied(), Tied().state_dict()
    del state["b.weight"]  # safetensors keeps one name only
    load_into(model, state, "a.safetensors")
    assert model.a.weight is model.b.weight
    assert torch.equal(model.b.weight, state["a.weight"])


def test_order_is_the_models() -> None:
    state = dict(reversed(list(_state().items())))
    assert list(fit(Net(), state, "a.pth")) == list(Net().state_dict())
