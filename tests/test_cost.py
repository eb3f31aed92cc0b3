"""What plans say of cost: arithmetic and peak memory, by hand and against what torch allocates."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torch.utils._python_dispatch import TorchDispatchMode

import densify
from densify.cost import peak_memory, work
from densify.graphs.fx.trace import trace
from densify.plans import Plan

SIZE = (1, 1, 8, 6)  # 48 samples


class Net(nn.Module):
    """A small network whose program is `run`."""

    def __init__(self, run: Callable[[Any, Tensor], Any]) -> None:
        super().__init__()
        self.run = run
        self.first, self.second = nn.Conv2d(1, 2, 3, padding=1), nn.Conv2d(2, 3, 3, padding=1)
        self.same, self.pool, self.fc = nn.Conv2d(2, 2, 3, padding=1), nn.MaxPool2d(2), nn.Linear(2, 5)

    def forward(self, x: Tensor) -> Any:
        return self.run(self, x)


def planned(run: Callable[[Any, Tensor], Any], **how: Any) -> Plan:
    return densify.plan(Net(run).to("meta").eval(), SIZE, **how)


def numbers(plan: Plan) -> tuple[int, int]:
    assert plan.memory.original % 4 == plan.memory.dense % 4 == 0
    return plan.memory.original // 4, plan.memory.dense // 4


# ---- by hand -------------------------------------------------------------------------------------


def test_a_chain_holds_what_an_op_reads_and_makes() -> None:
    found = planned(lambda net, x: net.second(net.pool(net.first(x))), start="pool")
    # original: x 48, first 96, pool 24, second 36; dense: pool 96, second 144
    assert numbers(found) == (48 + 96 + 24, 48 + 96 + 144)
    assert found.cost == (18 * 48 + 54 * 12, 18 * 48 + 54 * 48)


def test_a_map_that_is_read_later_stays() -> None:
    def run(net: Net, x: Tensor) -> Any:
        y = net.pool(net.first(x))
        return y + net.same(net.same(y))

    # where the second convolution runs: x 48, y, and two maps as large
    assert numbers(planned(run, layers=[])) == (48 + 96 + 24, 48 + 96 + 24)
    assert numbers(planned(run, start="pool")) == (48 + 96 + 24, 48 + 3 * 96)


def test_a_view_takes_nothing_and_holds_what_it_looks_at() -> None:
    flat = Net(lambda net, x: net.first(x).flatten(1)).to("meta").eval()
    assert numbers(densify.inspect(flat, SIZE)) == (48 + 96, 48 + 96)

    def run(net: Net, x: Tensor) -> Any:
        return net.fc(F.adaptive_avg_pool2d(net.pool(net.first(x)), 1).flatten(1))

    # of 4 samples: x 4, first 8, pool 2 (dense 8); behind the pooling 2 and 5 numbers for each of the 4 phases
    small = densify.plan(Net(run).to("meta").eval(), (1, 1, 2, 2), start="pool")
    assert numbers(small) == (4 + 8 + 2, 4 + 8 + 20)


def test_outputs_stay_until_the_end() -> None:
    def run(net: Net, x: Tensor) -> tuple[Tensor, Tensor]:
        y = net.first(x)
        return y, net.second(net.pool(y))

    assert numbers(planned(run, start="pool")) == (48 + 96 + 24 + 36, 48 + 96 + 96 + 144)


def test_it_is_that_of_one_image() -> None:
    model = Net(lambda net, x: net.second(net.pool(net.first(x)))).to("meta").eval()
    plans = [densify.plan(model, (images, 1, 8, 6), start="pool") for images in (1, 3)]
    assert plans[0].memory == plans[1].memory
    assert plans[0].cost == plans[1].cost


@pytest.mark.parametrize("name", ["resnet18", "convnext_tiny", "vgg11"])
def test_the_work_is_what_torchvision_says(name: str) -> None:
    import torchvision

    with torch.device("meta"):
        model = torchvision.models.get_model(name).eval()
    said = torchvision.models.get_model_weights(name)["DEFAULT"].meta["_ops"]
    found = densify.inspect(model, (2, 3, 224, 224))
    assert found.cost.original == found.cost.dense == sum(work(step).original for step in found.steps.values())
    assert round(found.cost.original / 1e9, 3) == said


# ---- against torch -------------------------------------------------------------------------------


class Allocations(TorchDispatchMode):
    """Counts the numbers in storages that are alive, and how many there were at most."""

    def __init__(self, held: Tensor) -> None:
        super().__init__()
        self.alive = self.most = held.numel()
        self.seen: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        for tensor in torch.utils._pytree.tree_leaves(made):
            storage = tensor.untyped_storage()
            if any(isinstance(a, Tensor) and a.untyped_storage() is storage for a in args):
                continue
            key, size = storage._cdata, storage.nbytes() // tensor.element_size()
            if key not in self.seen:
                self.seen.add(key)
                self.alive += size
                self.most = max(self.most, self.alive)
                weakref.finalize(storage, self._gone, key, size)
        return made

    def _gone(self, key: int, size: int) -> None:
        self.seen.discard(key)
        self.alive -= size


def allocated(model: nn.Module, x: Tensor) -> int:
    """The most numbers that were alive at once while the recorded program ran and dropped what is read no more."""
    graph = trace(model, x, training=False)
    program = fx.GraphModule(model, graph)
    with torch.no_grad(), Allocations(x) as counted:
        program(x)
    return int(counted.most)


class Branches(nn.Module):
    """Maps of many sizes that live for long, in an order that the seed says."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        self.order = torch.randint(0, 4, (12,), generator=torch.Generator().manual_seed(seed)).tolist()
        self.convs = nn.ModuleList(nn.Conv2d(3, 3, 3, padding=1) for _ in self.order)
        self.pool, self.last = nn.AvgPool2d(2), nn.Conv2d(3, 7, 1)

    def forward(self, x: Tensor) -> Any:
        maps = [x]
        for conv, what in zip(self.convs, self.order, strict=True):
            old = maps[-(1 + what) % len(maps)]
            if what == 3 and min(old.shape[2:]) > 2:
                maps.append(self.pool(conv(old)))
            elif what == 2 and old.shape == maps[-1].shape:
                maps.append(conv(old) + maps[-1])
            else:
                maps.append(torch.relu(conv(old)))
        return self.last(maps[-1]), maps[-3]


@pytest.mark.parametrize("seed", range(8))
def test_the_original_s_is_what_torch_allocates(seed: int) -> None:
    model, x = Branches(seed).eval(), torch.rand(1, 3, 21, 34)
    assert densify.inspect(model, x).memory.original == 4 * allocated(model, x)


def test_a_forgotten_reader_is_seen() -> None:
    def run(net: Net, x: Tensor) -> Any:
        y = net.first(x)
        return y + net.same(net.same(y))

    model, x = Net(run).eval(), torch.rand(SIZE)
    plan = densify.inspect(model, x)
    key, join = next((k, s) for k, s in plan.steps.items() if len(s.site.inputs) == 2)
    forgetful = replace(join, site=replace(join.site, inputs=join.site.inputs[1:]))
    counted = 4 * allocated(model, x)
    assert plan.memory.original == counted
    assert peak_memory(replace(plan, steps={**plan.steps, key: forgetful})).original < counted
