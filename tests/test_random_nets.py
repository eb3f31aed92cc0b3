"""Laws 1 to 5 on random small networks, exactly: branches, kept strides after chosen ones, ceil mode, any size."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence

import pytest
import torch
from laws import blocks, fragments
from laws.builder import MODES
from laws.checks import check_net, check_values, options
from laws.integers import inputs
from laws.nets import random_net
from torch import Tensor, nn

from densify import layers
from densify.conversion import convert, plan
from densify.graphs.fx.dilated import DilatedWriter
from densify.graphs.fx.write import unchanged
from densify.ops import Op, Pad, PhaseWise

pytestmark = pytest.mark.filterwarnings("ignore:Using padding='same':UserWarning")
NETS, CHUNK = 300, 20
STRUCTURES = {
    "branches", "computed weight", "slice", "patches", "run-time same", "several outputs", "strided layer called twice",
    "layer called twice", "layer called in two stages",
}  # fmt: skip


@pytest.mark.parametrize("first", range(0, NETS, CHUNK))
def test_laws_on_random_networks(first: int) -> None:
    for seed in range(first, first + CHUNK):
        try:
            check_net(seed)
        except Exception as error:
            error.add_note(f"check_net({seed})")
            raise


def test_plan_needs_no_weights() -> None:
    net, choice = random_net(0)
    dense = convert(net, net.reference, **options(choice))
    assert plan(net.to("meta"), net.reference, **options(choice)).lattices == dense.lattices


def test_random_networks_reach_every_case() -> None:
    """The networks hold what they are meant to test."""
    nets = [random_net(seed) for seed in range(NETS)]
    programs = [" ".join(step.layer for step in net.program) for net, _ in nets]
    kinds = Counter(kind for net, _ in nets for kind in net.kinds)
    wanted = {*blocks.EXACT, *blocks.FLAT, *blocks.TIES, *blocks.NORMS, *STRUCTURES}
    wanted |= {f"{mode} {what}" for mode in MODES for what in ("conv", "pad")} | {"constant pad"}
    assert wanted <= set(kinds), sorted(wanted - set(kinds))
    assert sum(bool(net.window) for net, _ in nets) > 20
    assert sum(net.statistic for net, _ in nets) > 20
    assert sum(net.plain for net, _ in nets) > 0.2 * NETS
    assert sum(net.exact for net, _ in nets) > 0.7 * NETS
    for name in ("conv", "max", "avg", "norm", "squeeze"):
        assert sum(name in program for program in programs) > 10, name
    assert sum(any(getattr(m, "ceil_mode", False) for m in net.modules()) for net, _ in nets) > 20
    kept = one_axis = 0
    for net, choice in nets:
        met = fragments.window_ops(net, inputs(net.reference), net.window)
        chooses = fragments.rule(choice, met)
        chosen = [chooses(*entry) for entry in met if entry[3] > 1]
        kept += any(a and not b for i, a in enumerate(chosen) for b in chosen[i + 1 :])
        axes = {axis for layer, axis, step, stride in met if stride > 1 and chooses(layer, axis, step, stride)}
        one_axis += 0 < len(axes) < len(net.reference) - 2
    assert kept > 20, "kept strides after chosen ones"
    assert one_axis > 20, "strides removed along some axes only"


Patch = Callable[[pytest.MonkeyPatch], None]


def _interleaved(statistic: Tensor, likes: Sequence[Tensor | None]) -> Tensor:
    """A statistic repeated sample by sample, as for a constant of the map: every phase meets another's."""
    for dim, like in enumerate(likes, 2):
        if like is not None:
            statistic = statistic.repeat_interleave(like.shape[dim] // statistic.shape[dim], dim)
    return statistic


def _as_it_is(op: type[Op]) -> Patch:
    """The writer of an op left out: it runs on the dense map as it does on the original's."""
    return lambda patch: patch.setitem(DilatedWriter.writers, op, unchanged)


def _phases_rolled(patch: pytest.MonkeyPatch) -> None:
    """The phases in another order in the batch than they are taken out of it."""
    right = layers.space_to_batch
    patch.setattr(layers, "space_to_batch", lambda x, est, *rest: right(x, est, *rest).roll(1, 0))


WRONG: dict[str, tuple[set[str], Patch]] = {
    "statistics interleaved": ({"squeeze block"}, lambda patch: patch.setattr(layers, "tile", _interleaved)),
    "phases mixed up": ({"flip", "sort", "roll", "attention"}, _phases_rolled),
    "ops without a rule on the whole map": ({"sort", "cumsum", "roll", "sum norm"}, _as_it_is(PhaseWise)),
    "reflections on the whole map": ({"reflect pad", "reflect conv"}, _as_it_is(PhaseWise)),
    "padding not times eST": ({"constant pad", "run-time same"}, _as_it_is(Pad)),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_rule_is_found(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """By the networks of the suite, on which the right rules pass."""
    kinds, spoil = WRONG[name]
    spoil(monkeypatch)
    fitting = (seed for seed in range(NETS) if kinds & random_net(seed)[0].kinds)
    assert any(_breaks_a_law(seed) for seed in fitting)


def _breaks_a_law(seed: int) -> bool:
    net, choice = random_net(seed)
    try:
        check_values(net, choice, convert(net, net.reference, **options(choice)), inputs(net.reference, 3))
    except AssertionError as error:
        return "law" in str(error)
    except (RuntimeError, IndexError):
        return False  # tensors that no longer fit each other: noticed, but not by a law
    return False


def test_valid_is_the_original_on_every_window() -> None:
    """padding="valid" of a network without padding: sample i is exactly f on the window that starts i steps in."""
    net = nn.Sequential(
        nn.Conv2d(2, 3, 3), nn.MaxPool2d(2), nn.Conv2d(3, 3, (2, 3)), nn.AvgPool2d(2), nn.ReLU(), nn.Conv2d(3, 2, 2)
    )
    for parameter in net.parameters():
        parameter.data = inputs(tuple(parameter.shape), parameter.numel()).float()
    net = net.double().eval()
    x = 4 * inputs((1, 2, 22, 25))
    dense = convert(net, x, start="1", padding="valid")
    (positions,) = dense.positions.values()
    rows, columns = (at.receptive_field or 0 for at in positions)
    assert [at.step for at in positions] == [1, 1]
    with torch.no_grad():
        made = dense(x)
        assert tuple(made.shape[2:]) == (22 - rows + 1, 25 - columns + 1)
        for i in range(made.shape[2]):
            for j in range(made.shape[3]):
                expected = net(x[:, :, i : i + rows, j : j + columns])
                assert expected.shape[2:] == (1, 1)
                assert torch.equal(made[:, :, i : i + 1, j : j + 1], expected)
