"""Choosing layers: what start=, layers= and output_stride= take, and what they say when they take nothing."""

from __future__ import annotations

import re

import pytest
import torchvision
from small import Residual, fixed_window
from torch import nn

import densify
from densify.errors import RefusedError, UsageError

SHAPE = (1, 3, 33, 47)


def chosen(model: nn.Module, **choice: object) -> tuple[str, ...]:
    return densify.plan(model, SHAPE, **choice).layers  # type: ignore[arg-type]


def test_start_takes_every_stride_at_that_step_on_all_branches() -> None:
    assert chosen(Residual(), start="main") == ("main", "shortcut", "pool")
    assert chosen(Residual(), start="shortcut") == ("main", "shortcut", "pool")
    assert chosen(Residual(), start="pool") == ("pool",)
    assert chosen(Residual(), start="stem") == ("stem", "main", "shortcut", "pool")


def test_start_may_be_a_layer_without_a_stride() -> None:
    assert chosen(Residual(), start="norm") == ("main", "shortcut", "pool")


def test_output_stride_is_an_upper_bound() -> None:
    plans = {n: densify.plan(Residual(), SHAPE, output_stride=n) for n in (1, 2, 3, 4, 7)}
    assert {n: plan.layers for n, plan in plans.items()} == {
        1: ("stem", "main", "shortcut", "pool"),
        2: ("main", "shortcut", "pool"),
        3: ("main", "shortcut", "pool"),
        4: ("pool",),
        7: ("pool",),
    }
    reached = {n: plan.outputs["output"].axes[0].pitch for n, plan in plans.items()}
    assert reached == {1: 1, 2: 2, 3: 2, 4: 4, 7: 4}


def test_a_block_means_all_strided_ops_inside() -> None:
    model = torchvision.models.resnet18()
    plan = densify.plan(model, (1, 3, 64, 64), layers=["layer3", "layer4"])
    assert plan.layers == (
        "layer3.0.conv1", "layer3.0.downsample.0", "layer4.0.conv1", "layer4.0.downsample.0",
    )  # fmt: skip


def test_a_wrong_name_lists_the_strided_layers_nearest_first() -> None:
    with pytest.raises(
        UsageError, match=re.escape("no strided layer is called 'shortcat'. The strided layers are: short")
    ):
        chosen(Residual(), layers=["shortcat"])
    with pytest.raises(UsageError, match="no strided layer is called 'nowhere'"):
        chosen(Residual(), start="nowhere")


def test_an_unstrided_layer_cannot_be_chosen() -> None:
    with pytest.raises(UsageError, match="no strided layer is called 'last'"):
        chosen(Residual(), layers=["last"])


def test_nothing_to_convert_is_refused_with_the_layers_there_are() -> None:
    with pytest.raises(
        UsageError, match="output_stride=8 leaves nothing to convert. The strided layers are: stem, main"
    ):
        chosen(Residual(), output_stride=8)
    with pytest.raises(UsageError, match="start='last' leaves nothing to convert"):
        chosen(Residual(), start="last")


@pytest.mark.parametrize("choice", [{}, {"start": "pool", "output_stride": 4}, {"output_stride": 0}])
def test_exactly_one_choice(choice: dict[str, object]) -> None:
    with pytest.raises(UsageError, match="exactly one|at least 1"):
        chosen(Residual(), **choice)


def test_one_branch_alone_is_refused_naming_its_sibling() -> None:
    with pytest.raises(RefusedError, match="different lattices.*Choose as well: shortcut") as caught:
        chosen(Residual(), layers=["main"])
    (refusal,) = caught.value.refusals
    assert refusal.where.startswith("small.py:")


def test_no_layers_makes_a_classifier_fully_convolutional() -> None:
    plan = densify.plan(fixed_window(), (1, 3, 16, 16), layers=[])
    assert plan.layers == ()
    assert plan.lattices == {"output": ((1, 0), (1, 0))}


def test_a_head_that_pools_adaptively_is_refused_naming_a_size() -> None:
    with pytest.raises(RefusedError, match="pools a map of 5x5 to 4x4.*Give an example .* of 19x19"):
        densify.plan(fixed_window(), (1, 3, 20, 20), layers=[])
    assert densify.plan(fixed_window(), (1, 3, 19, 19), layers=[]).lattices == {"output": ((1, 0), (1, 0))}


def test_all_refusals_come_at_once() -> None:
    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.pool = nn.MaxPool2d(2)

        def forward(self, x):  # type: ignore[no-untyped-def]
            x = self.pool(x)
            return x.repeat(1, 1, 2, 1), x.unfold(3, 3, 1)

    with pytest.raises(RefusedError, match="for 2 reasons") as caught:
        densify.plan(Odd(), SHAPE, layers=["pool"])
    assert [refusal.layer for refusal in caught.value.refusals] == ["repeat", "unfold"]
