"""convert and inverse as users call them: heads, modes, sharing, copies, guards, refusals."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
import torch.nn.functional as F
from small import Residual, fixed_window, images, seeded
from torch import Tensor, nn

import densify
from densify.errors import ConversionError, RefusedError, UsageError

X = images(33, 47)


def test_the_model_is_left_untouched_and_shared_only_on_demand() -> None:
    model = seeded(Residual())
    before = copy.deepcopy(model.state_dict())
    own = densify.convert(model, X, start="pool")
    shared = densify.convert(model, X, start="pool", share=True)
    assert not any(a is b for a, b in zip(own.parameters(), model.parameters(), strict=True))
    assert all(a is b for a, b in zip(shared.parameters(), model.parameters(), strict=True))
    own(X), shared(X)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_inverse_is_an_instance_of_the_original_class_with_the_trained_weights() -> None:
    model = seeded(Residual())
    dense = densify.convert(model, X, start="pool")
    optimizer = torch.optim.SGD(dense.parameters(), 0.1)
    dense(X).square().sum().backward()
    optimizer.step()
    back = densify.inverse(dense)
    assert type(back) is Residual
    assert not torch.equal(back.fc.weight, model.fc.weight)  # type: ignore[union-attr, arg-type]
    assert torch.allclose(back(X), dense(X)[..., 0, 0], rtol=1e-12, atol=0)
    Residual().double().load_state_dict(dense.state_dict(), strict=True)


def test_heads() -> None:
    model = seeded(Residual())
    made = {
        head: densify.convert(model, X, start="pool", head=head) for head in ("dense", "average", "features", "cam")
    }
    shapes = {head: tuple(dense(X).shape) for head, dense in made.items()}
    assert shapes == {"dense": (2, 5, 2, 2), "average": (2, 5), "features": (2, 6, 8, 12), "cam": (2, 5, 8, 12)}
    assert torch.equal(made["average"](X), made["dense"](X).mean((2, 3)))
    cam = torch.einsum("kc,bchw->bkhw", model.fc.weight, made["features"](X)) + model.fc.bias[:, None, None]  # type: ignore
    assert torch.allclose(made["cam"](X), cam, rtol=1e-12, atol=1e-12)
    assert all(list(dense.state_dict()) == list(model.state_dict()) for dense in made.values())
    assert made["average"].lattices == {"output": ()}


def test_cam_needs_a_pooling_over_the_whole_map() -> None:
    with pytest.raises(RefusedError, match='head="cam": no pooling over the whole map'):
        densify.convert(fixed_window(), (1, 3, 16, 16), layers=[], head="cam")


@pytest.mark.parametrize("option", ["padding", "head", "form", "merge"])
def test_unknown_options_are_refused(option: str) -> None:
    with pytest.raises(UsageError, match=f"{option}='other' is not one of"):
        densify.convert(Residual(), X, start="pool", **{option: "other"})  # type: ignore[call-overload]


def test_fragments_need_complete_phases() -> None:
    with pytest.raises(UsageError, match="complete phases"):
        densify.convert(Residual(), X, start="pool", form="fragments", padding="valid")


@pytest.mark.parametrize("form", ["dilated", "fragments"])
def test_copies_are_whole_and_separate(form: str) -> None:
    dense = densify.convert(seeded(Residual()), X, start="main", form=form)
    for other in (copy.deepcopy(dense), pickle.loads(pickle.dumps(dense))):
        assert torch.equal(other(X), dense(X))
        assert other.lattices == dense.lattices
        expected = dense(X)
        with torch.no_grad():
            other.stem.weight.zero_()  # type: ignore[operator, union-attr]
        assert torch.equal(dense(X), expected)
        assert not densify.inverse(other).stem.weight.any()  # type: ignore[union-attr, operator]


def test_to_moves_the_inverse_as_well() -> None:
    dense = densify.convert(seeded(Residual()), X, start="pool").to(torch.float32)
    back = densify.inverse(dense)
    assert {tensor.dtype for tensor in back.state_dict().values() if tensor.is_floating_point()} == {torch.float32}
    assert torch.allclose(back(X.float()), dense(X.float())[..., 0, 0], rtol=1e-4, atol=1e-5)


def test_compiled_and_eager_agree() -> None:
    dense = densify.convert(seeded(Residual()), X, start="main")
    compiled = torch.compile(dense, backend="eager", dynamic=True, fullgraph=True)
    for x in (X, images(41, 30)):
        assert torch.allclose(compiled(x), dense(x), rtol=1e-12, atol=1e-12)


def test_train_mode_is_the_originals() -> None:
    class Noisy(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 3, stride=2)
            self.last = nn.Conv2d(4, 2, 1)
            self.extra = nn.Conv2d(4, 3, 1)

        def forward(self, x: Tensor) -> object:
            x = F.dropout(self.conv(x), 0.5, training=self.training)
            return {"out": self.last(x), "extra": self.extra(x)} if self.training else self.last(x)

    dense = densify.convert(seeded(Noisy()), X, start="conv")
    assert torch.equal(dense(X), dense(X))
    dense.train()
    first, second = dense(X), dense(X)
    assert set(first) == {"out", "extra"}
    assert not torch.equal(first["extra"], second["extra"])
    assert dense.eval()(X).shape == (2, 2, 32, 46)


def test_a_condition_on_the_size_becomes_a_guard() -> None:
    class Branching(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.pool = nn.MaxPool2d(2)

        def forward(self, x: Tensor) -> Tensor:
            x = self.pool(x)
            return x * 2 if x.shape[-1] > 20 else x

    dense = densify.convert(Branching(), X, start="pool")
    assert torch.equal(dense(X)[..., ::2, ::2], F.max_pool2d(X, 2) * 2)
    with pytest.raises(
        ConversionError, match=r"another way .* condition at test_conversion.py:\d+ was True and is False"
    ):
        dense(images(33, 40))


def test_a_model_that_cannot_be_traced_names_its_line() -> None:
    class Stubborn(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x + float("nothing")

    with pytest.raises(ConversionError, match=r"cannot trace Stubborn: could not convert .* at test_conversion.py:\d+"):
        densify.convert(Stubborn(), X, layers=[])


def test_values_may_decide() -> None:
    class Looking(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale = nn.Parameter(torch.tensor(2.0))
            self.pool = nn.MaxPool2d(2)

        def forward(self, x: Tensor) -> Tensor:
            return self.pool(x) * self.scale if self.scale > 1 else x

    dense = densify.convert(Looking(), X, start="pool")
    assert torch.equal(dense(X)[..., ::2, ::2], F.max_pool2d(X, 2) * 2)


def test_sizes_that_a_program_reads_are_the_originals() -> None:
    class Reading(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.pool = nn.MaxPool2d(2)

        def forward(self, x: Tensor) -> Tensor:
            x = self.pool(x)
            batch, _, height, width = x.shape
            return x * height + x.size(3) * width + batch + x.dim()

    for form in ("dilated", "fragments"):
        dense = densify.convert(Reading(), X, start="pool", form=form)
        if form == "dilated":
            assert torch.equal(dense(X)[..., ::2, ::2], Reading()(X))


def test_forward_hooks_are_refused() -> None:
    model = Residual().double()
    nn.utils.spectral_norm(model.last)
    with pytest.raises(RefusedError, match=r"last .*forward hooks.*parametrizations"):
        densify.convert(model, X, start="pool")


def test_parametrizations_are_kept() -> None:
    model = Residual()
    nn.utils.parametrizations.weight_norm(model.last)
    seeded(model)
    dense = densify.convert(model, X, start="pool")
    assert torch.allclose(dense(X)[..., 0, 0], model(X), rtol=1e-12, atol=1e-12)
    assert list(dense.state_dict()) == list(model.state_dict())


@pytest.mark.parametrize("shape", [(3, 32), (1, 3, 0, 4), ()])
def test_an_example_is_a_batch_of_images(shape: tuple[int, ...]) -> None:
    with pytest.raises(UsageError, match=r"give \[batch, channels, \*spatial\]"):
        densify.convert(Residual(), shape, start="pool")
