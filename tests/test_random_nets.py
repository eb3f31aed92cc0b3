"""Laws 1 to 5 on random small networks, exactly: branches, kept strides after chosen ones, ceil mode, any size."""

from __future__ import annotations

import pytest
import torch
from laws import fragments
from laws.checks import check_net, options
from laws.integers import inputs
from laws.nets import random_net
from torch import nn

from densify.conversion import convert, plan

pytestmark = pytest.mark.filterwarnings("ignore:Using padding='same':UserWarning")
NETS, CHUNK = 240, 20


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
    assert sum(net.window is not None for net, _ in nets) > 20
    assert sum(net.statistic for net, _ in nets) > 20
    assert sum(net.exact for net, _ in nets) > 0.7 * NETS
    for name in ("conv", "max", "avg", "norm", "squeeze"):
        assert sum(name in program for program in programs) > 10, name
    assert sum(any(getattr(m, "ceil_mode", False) for m in net.modules()) for net, _ in nets) > 20
    kept = 0
    for net, choice in nets:
        met = fragments.window_ops(net, inputs(net.reference), net.window)
        chooses = fragments.rule(choice, met)
        chosen = [chooses(*entry) for entry in met if entry[3] > 1]
        kept += any(a and not b for i, a in enumerate(chosen) for b in chosen[i + 1 :])
    assert kept > 20, "kept strides after chosen ones"


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
