"""Statistics, bins and what is spread out of them, joined with maps of the same and of other dense steps.

Law 3 says what is right: a phase is the original on a shifted image, so that what meets must be of one shift.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from small import images, seeded
from test_phase_wise import BLOCKS, Call, phases
from torch import Tensor, nn

import densify
from densify.errors import RefusedError

Gate = Callable[[Tensor, Tensor], Tensor]

GATES: dict[str, Gate] = {
    "broadcast": lambda x, y: x * y.mean((2, 3), keepdim=True),
    "vector": lambda x, y: x + y.amax((2, 3))[:, :, None, None],
    "one axis at a time": lambda x, y: x * y.mean(3, keepdim=True).amax(2, keepdim=True),
    "einsum": lambda x, y: torch.einsum("bchw,bc->bchw", x, y.mean((2, 3))),
    "expanded": lambda x, y: x * F.adaptive_avg_pool2d(y, 1).expand(-1, -1, x.shape[2], x.shape[3]),
    "resized": lambda x, y: torch.cat(
        [x, F.interpolate(F.adaptive_avg_pool2d(y, 1).sigmoid(), size=x.shape[2:], mode="bilinear")], 1
    ),
    "bins": lambda x, y: torch.cat(
        [F.interpolate(F.adaptive_avg_pool2d(y, 3), size=x.shape[2:], mode="bilinear"), x], 1
    ),
    "strips": lambda x, y: x * F.interpolate(F.adaptive_max_pool2d(y, (1, 2)), size=x.shape[2:]),
}


class Gated(nn.Module):
    """Two maps, the second twice as coarse, of which one is gated by the whole other."""

    def __init__(self, gate: Gate, *, earlier: bool) -> None:
        super().__init__()
        self.c1, self.c2 = nn.Conv2d(3, 4, 3, 2, 1), nn.Conv2d(4, 4, 3, 2, 1)
        self.gate, self.earlier = gate, earlier

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        a = self.c1(x)
        b = self.c2(a)
        return a, b, self.gate(b, a) if self.earlier else self.gate(a, b)


@pytest.mark.parametrize("form", ["dilated", "fragments"])
@pytest.mark.parametrize("name", GATES)
@pytest.mark.parametrize(
    ("layers", "earlier"),
    [(("c1", "c2"), True), (("c1",), True), (("c2",), True), (("c1", "c2"), False), (("c2",), False)],
)
def test_the_phase_of_the_same_shift_is_taken(name: str, layers: tuple[str, ...], earlier: bool, form: str) -> None:
    model = seeded(Gated(GATES[name], earlier=earlier))
    dense = densify.convert(model, (1, 3, 33, 41), layers=layers, form=form)
    (ea, _), (eb, _) = (dense.lattices[key][0] for key in "01")
    map_est, other_est = (eb, ea) if earlier else (ea, eb)
    map_pitch, other_pitch = (4 // eb, 2 // ea) if earlier else (2 // ea, 4 // eb)
    for x in (images(33, 41), images(26, 38)):
        a, b, gated = dense(x)
        wide, other = (b, a) if earlier else (a, b)
        assert gated.shape[2:] == wide.shape[2:]
        for r, q in phases(map_est):
            r1, q1 = (phase * map_pitch // other_pitch % other_est for phase in (r, q))
            part = GATES[name](wide[:, :, r::map_est, q::map_est], other[:, :, r1::other_est, q1::other_est])
            assert torch.allclose(gated[:, :, r::map_est, q::map_est], part, rtol=1e-11, atol=1e-11), (r, q)
        expected = model(x)[2]
        assert torch.allclose(gated[:, :, ::map_est, ::map_est], expected, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("name", GATES)
def test_shifts_that_the_other_map_does_not_have_are_refused(name: str) -> None:
    model = seeded(Gated(GATES[name], earlier=False))
    with pytest.raises(RefusedError, match=r"different lattices: eST 2 \(step 1\) and eST 2 \(step 2\)"):
        densify.convert(model, (1, 3, 33, 41), layers=["c1"])


class Pyramid(nn.Module):
    """A map beside its poolings to bins, resized back (PSPNet, ASPP), each through a convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.point, self.smooth = nn.Conv2d(8, 2, 1), nn.Conv2d(2, 2, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        bins = [F.relu(self.point(F.adaptive_avg_pool2d(x, k))) for k in (1, 2, 3)]
        spread = [self.smooth(F.interpolate(one, x.shape[2:], mode="bilinear", align_corners=True)) for one in bins]
        return torch.cat([x, *spread], 1)


class Strips(nn.Module):
    """Strip pooling: each axis pooled by itself, and both spread out and added."""

    def __init__(self) -> None:
        super().__init__()
        self.rows, self.columns = nn.AdaptiveAvgPool2d((None, 1)), nn.AdaptiveAvgPool2d((1, None))
        self.conv = nn.Conv2d(8, 8, (3, 1), padding=(1, 0))

    def forward(self, x: Tensor) -> Tensor:
        rows = self.conv(self.rows(x))
        gate = rows.expand(-1, -1, -1, x.shape[3]) + self.columns(x)
        made: Tensor = x * gate.sigmoid() + rows + x[:, :, :1]
        return made


class Profiles(nn.Module):
    """The means and the largest of rows and columns, as functions write them."""

    def forward(self, x: Tensor) -> Tensor:
        rows, columns = x.mean(3, keepdim=True), x.amax(2, keepdim=True)
        return x * rows.sigmoid() - torch.softmax(columns, 3) + columns


@pytest.mark.parametrize("block", [Pyramid, Strips, Profiles])
@pytest.mark.parametrize("layers", [["0"], ["3"], ["0", "3"]])
def test_bins_and_strips_inside_a_network(block: type[nn.Module], layers: list[str]) -> None:
    model = seeded(nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.ReLU(), block(), nn.MaxPool2d(3, 2, 1)))
    dense = densify.convert(model, (1, 3, 33, 41), layers=layers)
    report = densify.verify(model, dense, [images(33, 41), images(26, 38)])
    assert report, report.failed


@pytest.mark.parametrize("name", ["se linear", "attention", "response norm", "standardise", "chunk and stack"])
def test_what_is_not_touched_may_be_of_any_layout(name: str) -> None:
    model = seeded(nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), BLOCKS[name](), Weighing(), nn.MaxPool2d(3, 2, 1)))
    dense = densify.convert(model, (1, 3, 33, 41), layers=["3"])
    assert densify.verify(model, dense, images(33, 41))


class Weighing(nn.Module):
    """Channels weighed by a convolution along them (ECA), and two versions of them by each other (SKNet)."""

    def __init__(self) -> None:
        super().__init__()
        self.along, self.choose = nn.Conv1d(1, 1, 3, padding=1), nn.Linear(8, 16)

    def forward(self, x: Tensor) -> Tensor:
        x = x * self.along(x.mean((2, 3)).unsqueeze(1)).transpose(1, 2).unsqueeze(-1).sigmoid()
        both = torch.stack([x, x.flip(1)], 1)
        weights = self.choose(both.sum(1).mean((2, 3))).view(-1, 2, 8, 1, 1).softmax(1)
        made: Tensor = (both * weights).sum(1)
        return made


class Exchange(nn.Module):
    """A coarser branch resized to the size of a finer one, whatever the ratio of sizes comes to."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.stem, self.down, self.how = nn.Conv2d(3, 4, 3, 2, 1), nn.Conv2d(4, 4, 3, 2, 1), how

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        coarse: Tensor = F.avg_pool2d(x, 2) if self.how == "nearest" else self.down(x)
        return x * F.interpolate(coarse, size=(x.shape[-2], x.shape[-1]), mode=self.how).sigmoid()


@pytest.mark.parametrize("how", ["nearest", "bilinear"])
@pytest.mark.parametrize("size", [(33, 41), (36, 48)])
def test_a_resize_to_another_map_takes_the_ratio_of_steps(how: str, size: tuple[int, int]) -> None:
    model = seeded(Exchange(how))
    dense = densify.convert(model, (1, 3, *size), output_stride=1)
    assert dense.lattices == {"output": ((2, 0), (2, 0))}
    report = densify.verify(model, dense, [images(33, 41), images(26, 38), images(40, 32)])
    assert report, report.failed


class Statistics(nn.Module):
    """Two statistics of maps of different steps, in either order."""

    def __init__(self, *, reverse: bool) -> None:
        super().__init__()
        self.c1, self.c2, self.reverse = nn.Conv2d(3, 4, 3, 2, 1), nn.Conv2d(4, 4, 3, 2, 1), reverse

    def forward(self, x: Tensor) -> Tensor:
        a = self.c1(x)
        pair = (a.mean((2, 3)), self.c2(a).amax((2, 3)))
        made: Tensor = pair[1] - pair[0] if self.reverse else pair[0] - pair[1]
        return made


@pytest.mark.parametrize("form", ["dilated", "fragments"])
@pytest.mark.parametrize("layers", [["c1"], ["c2"], ["c1", "c2"]])
def test_the_order_of_two_statistics_does_not_matter(layers: list[str], form: str) -> None:
    made = []
    for reverse in (False, True):
        model = seeded(Statistics(reverse=reverse))
        dense = densify.convert(model, (1, 3, 33, 41), layers=layers, form=form)
        report = densify.verify(model, dense, [images(33, 41), images(26, 38)])
        assert report, report.failed
        made.append(dense(images(33, 41)))
    assert torch.equal(made[0], -made[1])


@pytest.mark.parametrize("form", ["dilated", "fragments"])
def test_an_output_of_one_axis_alone(form: str) -> None:
    model = seeded(nn.Sequential(nn.Conv2d(3, 4, 3, 2, 1), nn.MaxPool2d(2), Rows()))
    dense = densify.convert(model, (1, 3, 33, 41), output_stride=1, form=form)
    assert dense.lattices == {"output": ((4, 0), (4, 0))}
    report = densify.verify(model, dense, [images(33, 41), images(26, 38)])
    assert report, report.failed


class Rows(nn.Module):
    """The mean of every row."""

    def forward(self, x: Tensor) -> Tensor:
        return x.mean(3, keepdim=True)


class Coordinates(nn.Module):
    """Coordinate attention: rows and columns one behind the other through one convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.rows, self.columns = nn.AdaptiveAvgPool2d((None, 1)), nn.AdaptiveAvgPool2d((1, None))
        self.both = nn.Conv2d(8, 8, 1)

    def forward(self, x: Tensor) -> Tensor:
        height, width = x.shape[2:]
        strips = self.both(torch.cat([self.rows(x), self.columns(x).permute(0, 1, 3, 2)], 2))
        rows, columns = torch.split(strips, [height, width], 2)
        gate: Tensor = rows.sigmoid() * columns.permute(0, 1, 3, 2).sigmoid()
        return x * gate


@pytest.mark.parametrize("form", ["dilated", "fragments"])
def test_strips_one_behind_the_other(form: str) -> None:
    model = seeded(nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.ReLU(), Coordinates(), nn.MaxPool2d(3, 2, 1)))
    dense = densify.convert(model, (1, 3, 33, 41), output_stride=1, form=form)
    report = densify.verify(model, dense, [images(33, 41), images(26, 38)])
    assert report, report.failed


class Mirrored(nn.Module):
    """A network on the image and on its mirror image."""

    def __init__(self, *, back: bool) -> None:
        super().__init__()
        self.conv, self.pool, self.back = nn.Conv2d(3, 4, 3, 2, 1), nn.MaxPool2d(2), back

    def forward(self, x: Tensor) -> Tensor:
        turned = self.conv(x).flip(3)
        turned = torch.cummax(turned, 3)[0]
        made: Tensor = self.pool(turned.flip(3) if self.back else turned)
        return made


def test_strides_over_a_mirrored_map_are_refused() -> None:
    """Law 3 is of shifts of the image: those of its mirror image go the other way."""
    for layers in (["conv", "pool"], ["conv"]):
        with pytest.raises(RefusedError, match="pool .*: it strides over a map that was flipped"):
            densify.convert(seeded(Mirrored(back=False)), (1, 3, 33, 41), layers=layers)
    model = seeded(Mirrored(back=True))
    for layers in (["conv", "pool"], ["conv"]):
        dense = densify.convert(model, (1, 3, 33, 41), layers=layers)
        assert densify.verify(model, dense, [images(33, 41), images(26, 38)])


@pytest.mark.parametrize(
    "turn",
    [
        lambda x: torch.rot90(x, 2, (2, 3)),
        lambda x: x.flatten(2).flip(2).view(x.shape),
        lambda x: torch.cat([x.flip(3).flip(2)[:, 2:], x.flip(3, 2)[:, :2]], 1),
    ],
)
def test_other_ways_to_mirror_a_map(turn: Callable[[Tensor], Tensor]) -> None:
    model = seeded(nn.Sequential(nn.Conv2d(3, 4, 3, 2, 1), Call(turn), nn.MaxPool2d(2)))
    with pytest.raises(RefusedError, match="2.*it strides over a map that was flipped"):
        densify.convert(model, (1, 3, 32, 40), output_stride=1)


def test_windows_of_a_mirrored_map_are_refused() -> None:
    turned = Call(lambda x: x.flip(3))
    model = seeded(nn.Sequential(nn.Conv2d(3, 4, 3, 2, 1), turned, nn.Flatten(), nn.Linear(4 * 8 * 10, 5)))
    with pytest.raises(RefusedError, match="takes in a map that was flipped"):
        densify.convert(model, (1, 3, 16, 20), output_stride=1)
