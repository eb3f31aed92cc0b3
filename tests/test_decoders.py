"""Random encoder-decoders against brute force: every merge, skips, both forms, other sizes; and that it can fail."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from laws import fragments
from laws.checks import options
from laws.decoder_checks import check_decoder, check_values
from laws.decoders import KINDS, random_decoder
from laws.integers import inputs
from torch import Tensor

from densify import layers
from densify.conversion import convert, plan
from densify.errors import RefusedError
from densify.graphs.fx import dilated
from densify.layers import merges
from densify.maps import Merged
from densify.merging import Spread

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")
NETS, CHUNK = 160, 20


@pytest.mark.parametrize("first", range(0, NETS, CHUNK))
def test_random_encoder_decoders(first: int) -> None:
    for seed in range(first, first + CHUNK):
        try:
            check_decoder(seed)
        except Exception as error:
            error.add_note(f"check_decoder({seed})")
            raise


def test_random_decoders_reach_every_case() -> None:
    decoders = [random_decoder(seed) for seed in range(NETS)]
    kinds = Counter((one.merge, kind) for one in decoders for kind in one.net.kinds)
    for merge, wanted in KINDS.items():
        for kind in {*wanted, "skip added", "skip concatenated"}:
            assert kinds[merge, kind] > 1, (merge, kind)
    marks: Counter[Merged] = Counter()
    refused = 0
    for one in decoders[: NETS // 3]:
        try:
            made = plan(one.net, one.net.reference, **options(one.choice), merge=one.merge)
        except RefusedError:
            refused += 1
            continue
        marks.update(output.merged for output in made.outputs.values())
    assert min(marks[mark] for mark in Merged) > 5, marks
    assert refused < NETS / 8


Patch = Callable[[pytest.MonkeyPatch], None]


def _undivided(patch: pytest.MonkeyPatch) -> None:
    """Sums over the shifts, divided by their number inside, at the border too."""
    right = merges._averaged

    def wrong(y: Tensor, dim: int, spread: Spread) -> Tensor:
        inside = spread.est // spread.left
        return y / inside if spread.straight or spread.hop == 1 else right(y, dim, spread)

    patch.setattr(merges, "_averaged", wrong)


def _bias_averaged(patch: pytest.MonkeyPatch) -> None:
    """The bias in the sum that is divided."""
    right = layers.etransposed

    def wrong(
        x: Tensor, weight: Tensor, bias: Tensor | None, windows: Any, spreads: Sequence[Spread], *rest: Any
    ) -> Tensor:
        shared = 1
        for spread in spreads:
            shared *= spread.est // spread.left
        return right(x, weight, None if bias is None else bias / shared, windows, spreads, *rest)

    patch.setattr(layers, "etransposed", wrong)


def _in_order(patch: pytest.MonkeyPatch) -> None:
    """Phase r of the input at phase r of the result, though its shift is another's."""
    patch.setattr(Spread, "place", lambda self, phase: (phase % self.left, 0))


def _stretched(patch: pytest.MonkeyPatch) -> None:
    """A plain interpolation of the dense map, (e - 1) / 2 samples off."""
    modes = {1: {"linear": "linear"}, 2: {"linear": "bilinear", "cubic": "bicubic"}, 3: {"linear": "trilinear"}}

    def wrong(
        x: Tensor, spreads: Sequence[Spread], made: Sequence[int], mode: str, align_corners: bool, factors: Any = ()
    ) -> Tensor:
        size = [n * spread.left for n, spread in zip(list(made)[-len(spreads) :], spreads, strict=True)]
        name = modes[x.dim() - 2].get(mode, mode)
        return F.interpolate(x, size, mode=name, align_corners=align_corners if "linear" in name else None)

    patch.setattr(layers, "resample", wrong)


def _last_phases(patch: pytest.MonkeyPatch) -> None:
    """The last phases kept instead of the first."""

    def wrong(x: Tensor, est: Sequence[int], kept: Sequence[int]) -> Tensor:
        for axis, (e, count) in enumerate(zip(est, kept, strict=True)):
            dim = 2 + axis
            x = x.unflatten(dim, (x.shape[dim] // e, e)).narrow(dim + 1, e - count, count).flatten(dim, dim + 1)
        return x

    patch.setattr(layers, "first_phases", wrong)


def _crops_unscaled(patch: pytest.MonkeyPatch) -> None:
    """Bounds of slices as the original has them."""
    patch.setattr(dilated, "_scaled", lambda writer, amount, est: torch.fx.map_arg(amount, writer.space))


WRONG: dict[str, tuple[str, str, Patch]] = {
    "borders divided by all shifts": ("average", "transposed", _undivided),
    "bias averaged": ("average", "transposed", _bias_averaged),
    "phases in order": ("average", "transposed", _in_order),
    "plain interpolation": ("resample", "whole", _stretched),
    "last phases": ("select", "transposed", _last_phases),
    "crops unscaled": ("average", "skip added", _crops_unscaled),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_merge_is_found(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """By the networks of the suite, on which the right rules pass."""
    merge, kind, spoil = WRONG[name]
    spoil(monkeypatch)
    fitting = (d for d in map(random_decoder, range(NETS)) if d.merge == merge and kind in d.net.kinds)
    assert any(_breaks_a_law(decoder) for decoder in fitting)


def _breaks_a_law(decoder: Any) -> bool:
    net = decoder.net
    try:
        dense = convert(net, net.reference, **options(decoder.choice), merge=decoder.merge)
        check_values(decoder, dense, inputs(net.reference, 3))
    except RefusedError:
        return False
    except AssertionError as error:
        return "law" in str(error)
    except (RuntimeError, IndexError):
        return False  # tensors that no longer fit each other: noticed, but not by a law
    return False


def test_the_oracle_holds_where_no_stride_went() -> None:
    """Brute force on a single phase is the original."""
    for seed in range(20):
        net = random_decoder(seed).net
        x = inputs(net.reference, 3)
        made = fragments.original(net, x)
        expected = net(x)
        if isinstance(expected, Tensor):
            assert torch.equal(made["output"], expected)
