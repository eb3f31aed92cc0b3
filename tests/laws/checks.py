"""Laws 1 to 5 of one random network."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from densify.conversion import Dense, convert, inspect
from densify.errors import RefusedError
from laws import fragments
from laws.integers import inputs
from laws.nets import RandomNet, other_shape, random_net
from laws.oracle import sample


def options(choice: fragments.Choice) -> dict[str, Any]:
    return {name: value for name, value in choice._asdict().items() if value is not None}


def as_map(x: Tensor, spatial: int) -> Tensor:
    """The original's output with the spatial axes that its dense form has."""
    return x if x.dim() > 2 else x.reshape(*x.shape, *[1] * spatial)


def assert_equal(net: RandomNet, made: Tensor, expected: Tensor, law: str) -> None:
    assert made.shape == expected.shape, f"{law}: {tuple(made.shape)} instead of {tuple(expected.shape)}"
    assert torch.isfinite(made).all(), f"{law}: not finite"
    if net.exact:
        assert torch.equal(made, expected), f"{law}: off by {(made - expected).abs().max().item()}"
    else:
        assert (made - expected).abs().max() <= 1e-12 * expected.abs().max(), law


def reference(net: RandomNet, x: Tensor) -> Tensor:
    """What f computes, a fixed window's head in its fully convolutional form."""
    if net.window is not None and tuple(x.shape[2:]) != net.reference[2:]:
        return fragments.original(net, x, net.window)
    return as_map(net(x), x.dim() - 2)


def check_values(net: RandomNet, choice: fragments.Choice, dense: Dense, x: Tensor) -> None:
    """Laws 1, 2 and 3, in the training path too, where poolings run natively."""
    with torch.no_grad():
        f, made = reference(net, x), dense(x)
        (lattices,) = dense.lattices.values()
        assert_equal(net, sample(made, lattices, f.shape[2:]), f, "law 1")
        assert tuple(made.shape[2:]) == tuple(e * n for (e, _), n in zip(lattices, f.shape[2:], strict=True)), "law 2"
        parts = fragments.dense(net, x, choice, net.window)
        assert parts.est == tuple(e for e, _ in lattices), "the choice of layers"
        assert_equal(net, made, parts.dense(), "law 3")
    assert_equal(net, dense(x.clone().requires_grad_()).detach(), made, "training path")


def check_weights(net: nn.Module, dense: Dense, share: bool) -> None:
    """Law 4."""
    mine, theirs = dense.state_dict(), net.state_dict()
    assert list(mine) == list(theirs)
    for name, tensor in theirs.items():
        assert mine[name].shape == tensor.shape
        assert mine[name].dtype == tensor.dtype
        assert torch.equal(mine[name], tensor)
        assert (mine[name].data_ptr() == tensor.data_ptr()) == (share or tensor.numel() == 0)


def check_gradient(net: RandomNet, dense: Dense, x: Tensor) -> None:
    """Law 5: a loss that looks at phase 0 alone, for every parameter."""
    expected = as_map(net(x), x.dim() - 2)
    (lattices,) = dense.lattices.values()
    upstream = inputs(tuple(expected.shape), 7)
    names = [name for name, _ in net.named_parameters()]
    theirs = torch.autograd.grad((expected * upstream).sum(), list(net.parameters()))
    parameters = dict(dense.named_parameters())
    loss = (sample(dense(x), lattices, expected.shape[2:]) * upstream).sum()
    mine = torch.autograd.grad(loss, [parameters[name] for name in names])
    bound = 0.0 if net.exact else 1e-12 * max(gradient.abs().max().item() for gradient in theirs)
    for name, one, other in zip(names, mine, theirs, strict=True):
        assert one.shape == other.shape
        assert torch.isfinite(one).all(), f"law 5: {name}"
        assert (one - other).abs().max().item() <= bound, f"law 5: {name}"


def check_forms(net: RandomNet, choice: fragments.Choice, dense: Dense) -> None:
    """The form "fragments" computes the same numbers, at another size too, with the same weights."""
    other = convert(net, net.reference, **options(choice), form="fragments", share=True)
    check_weights(net, other, share=True)
    assert other.lattices == dense.lattices
    for shape in (net.reference, other_shape(net, 1)):
        x = inputs(shape, 6)
        with torch.no_grad():
            assert_equal(net, other(x), dense(x), "form")


def check_padding(net: RandomNet, choice: fragments.Choice, padding: str) -> None:
    """Law 1 with the other paddings, where the plan says exact; elsewhere clear of the borders."""
    try:
        dense = convert(net, net.reference, **options(choice), padding=padding)
    except RefusedError as error:
        if net.statistic and "statistic" in str(error):
            return  # phases are incomplete, and a statistic is joined with its map
        raise
    x = inputs(net.reference, 3)
    (lattices,) = dense.lattices.values()
    with torch.no_grad():
        made, f = dense(x), as_map(net(x), x.dim() - 2)
    (one,) = dense.plan.outputs.values()
    assert tuple(made.shape[2:]) == tuple(axis.dense for axis in one.axes), "the plan's sizes"
    assert torch.isfinite(made).all()
    sampled = sample(made, lattices, f.shape[2:])
    assert padding == "same" or dense.plan.exact
    if not dense.plan.exact:
        clear = clear_of_borders(net)
        index: tuple[Any, ...] = (..., *clear)
        sampled, f = sampled[index], f[index]
    if f.numel():
        assert_equal(net, sampled, f, f"law 1, {padding}")


def clear_of_borders(net: RandomNet) -> list[slice]:
    """Which of the original's outputs see no padding."""
    (one,) = inspect(net, net.reference).outputs.values()
    slices = []
    for axis, size in zip(one.axes, net.reference[2:], strict=True):
        if axis.field is None:
            return [slice(0, 0)] * len(one.axes)
        fields = [(axis.field.first + i * axis.step, axis.field.last + i * axis.step) for i in range(axis.size)]
        inside = [i for i, (first, last) in enumerate(fields) if first >= 0 and last < size]
        slices.append(slice(inside[0], inside[-1] + 1) if inside else slice(0, 0))
    return slices


def check_net(seed: int) -> None:
    """Every law on one network."""
    net, choice = random_net(seed)
    share = seed % 2 == 0
    dense = convert(net, net.reference, **options(choice), share=share)
    check_weights(net, dense, share)
    check_values(net, choice, dense, inputs(net.reference, 3))
    check_values(net, choice, dense, inputs(other_shape(net, seed), 4))
    check_gradient(net, dense, inputs(net.reference, 5))
    check_forms(net, choice, dense)
    for padding in ("valid", "same"):
        check_padding(net, choice, padding)
