"""Laws 1 to 5 of one random network."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from densify.conversion import Dense, convert, inspect
from densify.errors import RefusedError
from densify.structure import named
from laws import fragments
from laws.integers import inputs
from laws.nets import other_shape, random_net
from laws.oracle import sample
from laws.program import RandomNet


class Outcome(NamedTuple):
    """What became of one network on which every law held.

    Attributes:
        net: the network.
        form: the other form or padding that it was converted with.
        refused: why it was not, or "".
        another_size: whether it ran at another size than the reference's.
        est: per spatial axis, that of its last output.
    """

    net: RandomNet
    form: str
    refused: str
    another_size: bool
    est: tuple[int, ...]


def options(choice: fragments.Choice) -> dict[str, Any]:
    return {name: value for name, value in choice._asdict().items() if value is not None}


def outputs(value: Any, spatial: int) -> dict[str, Tensor]:
    """The output tensors by name, each with the spatial axes that its dense form has."""
    return {name: x if x.dim() > 2 else x.reshape(*x.shape, *[1] * spatial) for name, x in named(value, Tensor)}


def assert_equal(net: RandomNet, made: Tensor, expected: Tensor, law: str) -> None:
    assert made.shape == expected.shape, f"{law}: {tuple(made.shape)} instead of {tuple(expected.shape)}"
    assert torch.isfinite(made).all(), f"{law}: not finite"
    if net.exact:
        assert torch.equal(made, expected), f"{law}: off by {(made - expected).abs().max().item()}"
    else:
        assert (made - expected).abs().max() <= 1e-12 * expected.abs().max(), law


def reference(net: RandomNet, x: Tensor) -> dict[str, Tensor]:
    """What f computes, a fixed window's head in its fully convolutional form."""
    if net.window is not None and tuple(x.shape[2:]) != net.reference[2:]:
        return fragments.original(net, x, net.window)
    return outputs(net(x), x.dim() - 2)


def check_values(net: RandomNet, choice: fragments.Choice, dense: Dense, x: Tensor) -> None:
    """Laws 1, 2 and 3, in the training path too, where poolings run natively."""
    spatial = x.dim() - 2
    with torch.no_grad():
        expected, made = reference(net, x), outputs(dense(x), spatial)
        parts = fragments.dense(net, x, choice, net.window)
    trained = outputs(dense(x.clone().requires_grad_()), spatial)
    assert list(made) == list(expected) == list(dense.lattices) == list(parts)
    for name, f in expected.items():
        lattices, y = dense.lattices[name], made[name]
        assert_equal(net, sample(y, lattices, f.shape[2:]), f, "law 1")
        assert tuple(y.shape[2:]) == tuple(e * n for (e, _), n in zip(lattices, f.shape[2:], strict=True)), "law 2"
        assert parts[name].est == tuple(e for e, _ in lattices), "the choice of layers"
        assert_equal(net, y, parts[name].dense(), "law 3")
        assert_equal(net, trained[name].detach(), y, "training path")


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
    expected, made = (outputs(model(x), x.dim() - 2) for model in (net, dense))
    upstream = {name: inputs(tuple(f.shape), 7) for name, f in expected.items()}
    names = [name for name, _ in net.named_parameters()]
    losses = [(f * upstream[name]).sum() for name, f in expected.items()]
    theirs = torch.autograd.grad(losses, list(net.parameters()))
    parameters = dict(dense.named_parameters())
    losses = [
        (sample(made[name], dense.lattices[name], f.shape[2:]) * upstream[name]).sum() for name, f in expected.items()
    ]
    mine = torch.autograd.grad(losses, [parameters[name] for name in names])
    bound = 0.0 if net.exact_gradient else 1e-12 * max(gradient.abs().max().item() for gradient in theirs)
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
            mine, theirs = dict(named(other(x), Tensor)), dict(named(dense(x), Tensor))
        for name in dense.lattices:
            assert_equal(net, mine[name], theirs[name], "form")


def check_padding(net: RandomNet, choice: fragments.Choice, padding: str) -> str:
    """Law 1 with the other paddings, where the plan says exact; elsewhere clear of the borders.

    Returns:
        Why the conversion was refused, or "".
    """
    try:
        dense = convert(net, net.reference, **options(choice), padding=padding)
    except RefusedError as error:
        if net.plain and not net.statistic and "slice" not in net.kinds:
            raise
        return error.refusals[0].reason  # phases are incomplete, and something needs them whole
    x = inputs(net.reference, 3)
    with torch.no_grad():
        made, expected = (outputs(model(x), x.dim() - 2) for model in (dense, net))
    assert padding == "same" or dense.plan.exact
    clear = {} if dense.plan.exact else clear_of_borders(net)
    for name, f in expected.items():
        y, axes = made[name], dense.plan.outputs[name].axes
        assert tuple(y.shape[2:]) == tuple(axis.dense for axis in axes), "the plan's sizes"
        assert torch.isfinite(y).all()
        index: tuple[Any, ...] = (..., *clear.get(name, ()))
        sampled, f = sample(y, dense.lattices[name], f.shape[2:])[index], f[index]
        if f.numel():
            assert_equal(net, sampled, f, f"law 1, {padding}")
    return ""


def clear_of_borders(net: RandomNet) -> dict[str, list[slice]]:
    """Which of the original's outputs see no padding."""
    found = {}
    for name, one in inspect(net, net.reference).outputs.items():
        slices = []
        for axis, size in zip(one.axes, net.reference[2:], strict=True):
            fields = []
            if axis.field is not None:
                ends = (axis.field.first, axis.field.last)
                fields = [[end + i * axis.step for end in ends] for i in range(axis.size)]
            inside = [i for i, (first, last) in enumerate(fields) if first >= 0 and last < size]
            slices.append(slice(inside[0], inside[-1] + 1) if inside else slice(0, 0))
        found[name] = slices
    return found


def check_net(seed: int) -> Outcome:
    """Every law on one network."""
    net, choice = random_net(seed)
    share = seed % 2 == 0
    dense = convert(net, net.reference, **options(choice), share=share)
    check_weights(net, dense, share)
    check_values(net, choice, dense, inputs(net.reference, 3))
    shape = other_shape(net, seed)
    check_values(net, choice, dense, inputs(shape, 4))
    check_gradient(net, dense, inputs(net.reference, 5))
    # One of the three in turn: most of a check's time goes into converting.
    form = ("fragments", "valid", "same")[seed % 3]
    refused = ""
    if form == "fragments":
        check_forms(net, choice, dense)
    else:
        refused = check_padding(net, choice, form)
    est = tuple(stride for stride, _ in list(dense.lattices.values())[-1])
    return Outcome(net, form, refused, shape[2:] != net.reference[2:], est)
