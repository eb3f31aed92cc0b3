"""What there is to choose: every set of strides once, each as convert takes it, or the reason why not."""

from __future__ import annotations

import pytest
import torch
from small import seeded
from torch import Tensor, nn

import densify
from densify.choose import strided_layers
from densify.errors import RefusedError, UsageError
from densify.offers import Offers
from densify.plans import Plan


class Branches(nn.Module):
    """Two branches of the same step, and a stride along one axis alone."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3, stride=2, padding=1)
        self.left, self.right = nn.Conv2d(4, 4, 1, stride=(2, 1)), nn.MaxPool2d((2, 1), (2, 1), ceil_mode=True)
        self.last = nn.AvgPool2d((1, 3), (1, 3))

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        made: Tensor = self.last(self.left(x) + self.right(x))
        return made


SHAPE = (1, 3, 21, 34)


def found(model: nn.Module, shape: tuple[int, ...] = SHAPE, **how: str) -> Offers:
    return densify.choices(model.to("meta").eval(), shape, **how)


def test_each_set_of_strides_once_the_smallest_first() -> None:
    offers = found(Branches())
    assert [(offer.layers, offer.starts, offer.output_stride) for offer in offers] == [
        (("last",), ("last",), 4),  # along one axis
        (("left", "right", "last"), ("left", "right"), 2),
        (("stem", "left", "right", "last"), ("stem",), 1),
    ]


@pytest.mark.parametrize("head", ["dense", "features"])
def test_an_offer_is_what_plan_gives_for_it(head: str) -> None:
    model = nn.Sequential(Branches(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3))
    offers = found(model, head=head)
    assert len(offers) == 3
    for offer in offers:
        assert isinstance(offer.plan, Plan)
        ways = [{"start": name} for name in offer.starts] + [{"output_stride": offer.output_stride}]
        for way in ways:
            made = densify.plan(model, SHAPE, head=head, **way)
            assert (made.chosen, made.layers) == (offer.plan.chosen, offer.layers)
            assert (made.lattices, made.cost, made.memory) == (
                offer.plan.lattices, offer.plan.cost, offer.plan.memory,
            )  # fmt: skip


def test_no_choice_is_left_out() -> None:
    model = Branches().to("meta").eval()
    sets = {offer.plan.chosen for offer in found(model) if isinstance(offer.plan, Plan)}
    for layer in strided_layers(densify.inspect(model, SHAPE)):
        assert densify.plan(model, SHAPE, start=layer.site.layer).chosen in sets
    for stride in range(1, 6):
        assert densify.plan(model, SHAPE, output_stride=stride).chosen in sets
    with pytest.raises(UsageError, match="nothing to convert"):
        densify.plan(model, SHAPE, output_stride=6)


def test_what_is_refused_says_so_and_the_rest_is_offered() -> None:
    class Lost(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.MaxPool2d(2), nn.MaxPool2d(2)
            self.up = nn.Upsample(scale_factor=2, mode="bilinear")

        def forward(self, x: Tensor) -> Tensor:
            made: Tensor = self.up(self.b(self.a(x)))
            return made

    shape = (1, 2, 24, 36)
    deep, whole = found(Lost(), shape)
    assert isinstance(deep.plan, RefusedError)
    assert [refusal.layer for refusal in deep.plan.refusals] == ["up"]
    assert isinstance(whole.plan, Plan)  # of the two strides, the upsampling takes one away
    assert all(isinstance(offer.plan, Plan) for offer in found(Lost(), shape, merge="average"))
    assert not found(nn.Conv2d(3, 2, 3))
    with pytest.raises(UsageError, match="merge"):
        found(Lost(), shape, merge="none")


def test_weights_tell_what_mixes_images() -> None:
    class Mixing(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.pool = nn.MaxPool2d(2)

        def forward(self, x: Tensor) -> Tensor:
            x = self.pool(x)
            return x - x.sort(0).values

    (offer,) = densify.choices(seeded(Mixing()), (2, 3, 12, 18))
    assert isinstance(offer.plan, RefusedError)
    with pytest.raises(RefusedError):
        densify.plan(seeded(Mixing()), torch.rand(2, 3, 12, 18), layers=["pool"])
