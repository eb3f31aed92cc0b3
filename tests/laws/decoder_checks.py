"""The laws of one random encoder-decoder."""

from __future__ import annotations

from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

from densify.conversion import Dense, convert
from densify.errors import RefusedError
from densify.maps import Merged
from laws import fragments
from laws.checks import assert_equal, check_gradient, check_weights, options, outputs
from laws.decoders import Decoder, random_decoder
from laws.integers import inputs
from laws.nets import other_shape
from laws.oracle import sample


class Outcome(NamedTuple):
    """What became of an encoder-decoder on which every law held.

    Attributes:
        decoder: the network.
        refused: why it was not converted, or "".
        merged: what the outputs are, by name.
    """

    decoder: Decoder
    refused: str
    merged: dict[str, Merged]


def check_decoder(seed: int, merge: str | None = None) -> Outcome:
    """Laws 1 to 3 where they hold; behind a merge, brute force; law 5 where nothing is merged; both forms."""
    decoder = random_decoder(seed, merge)
    net, choice, how = decoder
    x = inputs(net.reference, 3)
    with torch.no_grad():
        parts = fragments.dense(net, x, choice, merge=how)
    if how == "select" and all(set(one.est) == {1} for one in parts.values()):
        with pytest.raises(RefusedError, match="takes all of the new density away") as refusal:
            convert(net, net.reference, **options(choice), merge=how)
        return Outcome(decoder, refusal.value.refusals[0].reason, {})
    dense = convert(net, net.reference, **options(choice), merge=how)
    check_weights(net, dense, share=False)
    shape = other_shape(net, seed)
    other: Any = convert(net, net.reference, **options(choice), merge=how, form="fragments", share=True)
    for image in (x, inputs(shape, 4)):
        check_values(decoder, dense, image)
        with torch.no_grad():
            mine, theirs = outputs(other(image), image.dim() - 2), outputs(dense(image), image.dim() - 2)
        for name in dense.lattices:
            close(decoder, mine[name], theirs[name], "form")
    merged = {name: one.merged for name, one in dense.plan.outputs.items()}
    if set(merged.values()) == {Merged.NOT}:
        check_gradient(net, dense, inputs(net.reference, 5))
    return Outcome(decoder, "", merged)


def check_values(decoder: Decoder, dense: Dense, x: Tensor) -> None:
    """Every output against brute force, and on its lattice against the original where nothing was merged."""
    net, choice, how = decoder
    spatial = x.dim() - 2
    with torch.no_grad():
        expected, made = outputs(net(x), spatial), outputs(dense(x), spatial)
        parts = fragments.dense(net, x, choice, merge=how)
    assert list(made) == list(expected) == list(dense.lattices) == list(parts)
    for name, f in expected.items():
        lattices, y = dense.lattices[name], made[name]
        assert parts[name].est == tuple(e for e, _ in lattices), "the choice of layers"
        assert tuple(y.shape[2:]) == tuple(e * n for (e, _), n in zip(lattices, f.shape[2:], strict=True)), "law 2"
        close(decoder, y, parts[name].dense(), "law 3")
        if dense.plan.outputs[name].merged is Merged.NOT:
            assert_equal(net, sample(y, lattices, f.shape[2:]), f, "law 1")


def close(decoder: Decoder, made: Tensor, expected: Tensor, law: str) -> None:
    """Exactly, but for averages over three and interpolations, which leave the whole numbers."""
    if decoder.merge == "select":
        assert_equal(decoder.net, made, expected, law)
        return
    assert made.shape == expected.shape, f"{law}: {tuple(made.shape)} instead of {tuple(expected.shape)}"
    assert torch.isfinite(made).all(), f"{law}: not finite"
    assert (made - expected).abs().max() <= 1e-12 * expected.abs().max(), law
