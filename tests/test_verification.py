"""verify says yes to what holds, and no to everything else."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from small import Residual, fixed_window, images, seeded
from torch import Tensor, nn

import densify
from densify.comparison import Judge, Tolerance, difference, taking
from densify.errors import UsageError
from densify.samples import Sample

X = images(33, 47)


@pytest.mark.parametrize("padding", ["full", "valid", "same"])
@pytest.mark.parametrize("head", ["dense", "average", "features", "cam"])
def test_true_networks_pass(padding: str, head: str) -> None:
    model = seeded(Residual())
    dense = densify.convert(model, X, start="main", padding=padding, head=head)
    report = densify.verify(model, dense, [X, images(40, 29)])
    assert report, report.failed
    laws = {check.law for check in report.checks}
    assert {"weights", "grid"} <= laws
    assert ({"size", "phases"} <= laws) == (padding == "full")
    assert ("average" in laws) == (head == "average")


@pytest.mark.parametrize("form", ["dilated", "fragments"])
def test_a_fixed_window_is_compared_with_the_class_itself(form: str) -> None:
    model = seeded(fixed_window())
    dense = densify.convert(model, (1, 3, 16, 16), output_stride=2, form=form)
    report = densify.verify(model, dense, [images(16, 16), images(23, 18)])
    assert report, report.failed
    assert {"head", "grid", "phases"} <= {check.law for check in report.checks}


def test_other_weights_fail_on_the_grid() -> None:
    model = seeded(Residual())
    dense = densify.convert(model, X, start="main")
    with torch.no_grad():
        dense.get_parameter("last.weight")[0, 0, 0, 0] += 1e-6
    report = densify.verify(model, dense, X)
    assert not report
    assert {check.law for check in report.failed} == {"grid", "weights"}
    assert densify.verify(None, dense, X)  # a fine-tuned network is compared with its own inverse


def test_a_wrong_sample_off_the_grid_fails_in_phases() -> None:
    model = seeded(Residual())
    dense = densify.convert(model, X, start="main", head="features")
    run = dense._runs[False]

    def wrong(self: nn.Module, x: Tensor) -> Tensor:
        y: Tensor = run(self, x).clone()
        y[0, 2, 3, 1] += 1e-3
        return y

    dense._runs[False] = wrong
    report = densify.verify(model, dense, X)
    (failed,) = report.failed
    assert failed.law == "phases"
    assert failed.worst == (0, 2, 3, 1)
    assert math.isclose(failed.absolute, 1e-3)


def test_a_lost_sample_fails_in_size() -> None:
    model = seeded(Residual())
    dense = densify.convert(model, X, start="main", head="features")
    run = dense._runs[False]
    dense._runs[False] = lambda self, x: run(self, x)[..., :-1]
    assert "size" in {check.law for check in densify.verify(model, dense, X).failed}


def test_the_way_to_equal() -> None:
    expected = torch.tensor([[1.0, -4.0], [2.0, 0.0]])
    assert difference(expected, expected) == (0.0, 0.0, (0, 0))
    assert difference(expected, expected + torch.tensor([[0, 0], [0.5, 0]])) == (0.5, 0.125, (1, 0))
    assert difference(expected, expected * torch.nan)[0] == math.inf
    nan = torch.tensor([torch.nan, 1.0])
    assert difference(nan, nan) == (0.0, 0.0, (0,))
    assert difference(torch.zeros(2), torch.zeros(2)) == (0.0, 0.0, (0,))
    assert difference(torch.zeros(2), torch.ones(2))[1] == math.inf


def test_own_rounding_is_allowed_tenfold_and_only_asked_for_where_needed() -> None:
    asked = []

    def own() -> dict[str, float]:
        asked.append(1)
        return {"output": 3e-5}

    labels = {"law": "grid", "output": "output", "input": "x", "runtime": "torch", "lattice": ()}
    judge = Judge(Tolerance(), own)
    one = torch.ones(3)
    assert judge(one, one + 5e-6, **labels).passed
    assert not asked
    assert judge(one, one + 2e-4, **labels).passed
    assert not judge(one, one + 4e-4, **labels).passed
    assert not Judge(Tolerance(rtol=1e-6), own)(one, one + 5e-6, **labels).passed
    assert Judge(Tolerance(rtol=1e-6, atol=1e-5), own)(one, one + 5e-6, **labels).passed
    assert not judge(one, torch.ones(4), **labels).passed


def test_outputs_that_jump_with_the_last_bit_let_nothing_pass() -> None:
    labels = {"law": "grid", "output": "output", "input": "x", "runtime": "torch", "lattice": ()}
    check = Judge(Tolerance(), lambda: {"output": 1.0})(torch.ones(3), torch.zeros(3), **labels)
    assert not check.passed
    assert "rounding alone changes" in check.note


def test_modes_are_left_as_they_were() -> None:
    model = seeded(Residual()).train()
    dense = densify.convert(model, X, start="pool")
    dense.get_submodule("norm").eval()
    densify.verify(model, dense, X)
    assert model.training
    assert dense.training
    assert not dense.get_submodule("norm").training


class Deep(nn.Sequential):
    """Takes no image below 40 x 40."""

    def __init__(self) -> None:
        super().__init__(nn.Conv2d(3, 4, 5, stride=2), nn.BatchNorm2d(4), nn.MaxPool2d(2), nn.Conv2d(4, 2, 9))


WRONG: dict[str, tuple[Any, str]] = {
    "no input": ((), r"there is no input: give tensors \[B, 3, 60, 52\]"),
    "no tensor": (None, "no tensor, but of type NoneType"),
    "an array": (np.zeros((1, 3, 60, 52)), r"of type ndarray. torch.from_numpy"),
    "an array among tensors": ([torch.zeros(1, 3, 60, 52), np.zeros(1)], "input 1: this is no tensor"),
    "no batch": (torch.zeros(3, 60, 52), r"input 0: its shape is \[3, 60, 52\], and .* for \[1, 3, 60, 52\]"),
    "other channels": (torch.zeros(1, 4, 60, 52), r"converted for \[1, 3, 60, 52\]"),
    "an empty one": (torch.zeros(0, 3, 60, 52), "it is empty"),
    "too small": (
        [torch.zeros(1, 3, 60, 52), Sample("tiny", torch.zeros(1, 3, 20, 20))],
        "tiny: .* no input of .*Kerne",
    ),
    "another dtype": (torch.zeros(1, 3, 60, 52).double(), "no input of .* a size and dtype that it takes"),
}


@pytest.mark.parametrize("what", WRONG)
def test_inputs_that_the_network_cannot_take(what: str) -> None:
    given, said = WRONG[what]
    model = Deep().eval()
    dense = densify.convert(model, (1, 3, 60, 52), start="2")
    with pytest.raises(UsageError, match=said):
        densify.verify(model, dense, given)


def test_what_is_no_network() -> None:
    with pytest.raises(UsageError, match=r"Deep is a class: give an object of it, such as Deep\(\)"):
        densify.convert(Deep, (1, 3, 60, 52), start="2")  # type: ignore[call-overload]
    with pytest.raises(UsageError, match="no network, but of type int"):
        densify.plan(3)  # type: ignore[arg-type]
    others: list[Any] = [3, np.zeros((1, 3, 60, 52)), "1,3,60,52"]
    for example in others:
        with pytest.raises(UsageError, match="give a tensor, or its shape"):
            densify.convert(Deep(), example, start="2")


def test_errors_of_other_origin_are_not_laid_on_the_inputs() -> None:
    model = Deep().eval()
    dense = densify.convert(model, (1, 3, 60, 52), start="2")
    with pytest.raises(RuntimeError, match="own"), taking([Sample("x", torch.zeros(1, 3, 60, 52))], model, dense):
        raise RuntimeError("own")


def test_samples_keep_their_names_in_the_report() -> None:
    model = seeded(Residual())
    dense = densify.convert(model, X, start="pool")
    report = densify.verify(model, dense, [Sample("bird.png", X)])
    assert "bird.png" in {check.input for check in report.checks}
    assert report.to_dict()["passed"] is True
