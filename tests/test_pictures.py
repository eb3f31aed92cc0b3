"""Placed maps, colours and localisation: laws of pure functions on arrays."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from densify.errors import UsageError
from densify.pictures import colours
from densify.pictures.localisation import Box, largest_part, locate, outline
from densify.pictures.panels import Panel, Scale, labels_scale, sheet, written
from densify.pictures.placed import UPSAMPLINGS, PlacedMap, coinciding, coloured, limits, painted, upsampled
from densify.pictures.shown import Shown, default

SIZES = st.tuples(st.integers(1, 5), st.integers(1, 7))


def placed(*shape: int, step: float = 8.0, first: float = 15.5, seed: int = 0) -> PlacedMap:
    values = np.random.default_rng(seed).normal(size=shape)
    return PlacedMap(values, (first, first + 1), (step, 2 * step))


def denser(one: PlacedMap, est: tuple[int, int]) -> PlacedMap:
    """Places as law 2 has them: e * n samples, the first ones the same."""
    size = [n * e for n, e in zip(one.size, est, strict=True)]
    return PlacedMap(np.zeros((1, *size)), one.first, (one.step[0] / est[0], one.step[1] / est[1]))


# ---- upsampling ----------------------------------------------------------------------------------


@given(SIZES, st.tuples(st.integers(1, 8), st.integers(1, 7)), st.sampled_from(UPSAMPLINGS))
def test_an_upsampled_map_is_the_coarse_one_where_both_have_samples(
    size: tuple[int, int], est: tuple[int, int], how: str
) -> None:
    coarse = placed(3, *size)
    fine = upsampled(coarse, denser(coarse, est), how)
    rows, columns = coinciding(fine, coarse)
    assert (len(rows), len(columns)) == size
    assert np.array_equal(fine.values[:, rows][:, :, columns], coarse.values)
    assert np.array_equal(fine.values[:, :: est[0], :: est[1]], coarse.values)


@given(SIZES, st.integers(1, 8), st.integers(1, 8))
def test_linear_upsampling_keeps_planes_and_limits(size: tuple[int, int], e: int, f: int) -> None:
    coarse = placed(1, *size)
    plane = coarse.with_values((2 * coarse.places(0)[:, None] - 3 * coarse.places(1)[None, :])[None])
    fine = upsampled(plane, denser(plane, (e, f)))
    rows, columns = (fine.places(axis).clip(max=coarse.places(axis)[-1]) for axis in (0, 1))
    assert np.allclose(fine.values[0], 2 * rows[:, None] - 3 * columns[None, :], rtol=1e-12, atol=1e-9)
    low, high = limits(upsampled(coarse, fine).values)
    assert limits(coarse.values)[0] - 1e-12 <= low <= high <= limits(coarse.values)[1] + 1e-12


def test_nearest_takes_the_nearest_and_of_two_the_first() -> None:
    coarse = PlacedMap(np.arange(3.0).reshape(1, 1, 3), (0, 0), (8, 8))
    fine = upsampled(coarse, denser(coarse, (1, 4)), "nearest")
    assert fine.values[0, 0].tolist() == [0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2, 2]


def test_infinite_samples_stay_where_they_are() -> None:
    coarse = PlacedMap(np.array([[[0.0, -np.inf]]]), (0, 0), (2, 2))
    fine = upsampled(coarse, denser(coarse, (1, 2)))
    assert fine.values[0, 0].tolist() == [0, -np.inf, -np.inf, -np.inf]


# ---- painting ------------------------------------------------------------------------------------


@given(SIZES, st.integers(1, 3), st.integers(0, 3))
def test_every_sample_is_painted_around_the_pixel_that_it_looks_at(
    size: tuple[int, int], scale: int, edge: int
) -> None:
    step, image = 3, tuple(3 * n + edge + 2 for n in size)
    one = PlacedMap(np.zeros((1, *size)), (edge, edge), (step, step))
    cells = np.arange(size[0] * size[1]).reshape(size)
    drawn = painted(one, cells, image, [scale * n for n in image], -1)
    for y in range(image[0]):
        for x in range(image[1]):
            row, column = (round((at - edge) / step) for at in (y, x))
            inside = 0 <= row < size[0] and 0 <= column < size[1]
            block = drawn[y * scale : (y + 1) * scale, x * scale : (x + 1) * scale]
            assert set(block.ravel()) == {cells[row, column] if inside else -1}, (y, x)


def test_painting_at_another_place_is_seen() -> None:
    cells = np.arange(12).reshape(3, 4)
    right, wrong = (PlacedMap(np.zeros((1, 3, 4)), (at, 1.0), (3, 3)) for at in (1.0, 2.0))
    here, there = (painted(one, cells, (11, 13), (11, 13), -1) for one in (right, wrong))
    assert not np.array_equal(here, there)


# ---- colours -------------------------------------------------------------------------------------


def test_the_ends_of_a_scale_have_the_ends_of_its_colours() -> None:
    table = colours.sequential()
    low, high = limits(np.array([[-3.0, 5.0]]), np.array([[7.5, np.nan]]))
    assert (low, high) == (-3.0, 7.5)
    drawn = coloured(np.array([[-3.0, 7.5, np.nan, -np.inf]]), low, high, table)
    assert [tuple(one) for one in drawn[0]] == [tuple(table[0]), tuple(table[-1]), colours.UNSEEN, colours.UNSEEN]
    assert limits(np.array([np.nan])) == (0, 0)


@given(st.floats(-1e6, 1e6), SIZES)
def test_a_constant_map_has_one_colour(value: float, size: tuple[int, int]) -> None:
    drawn = coloured(np.full(size, value), value, value, colours.diverging())
    assert (drawn == colours.diverging()[128]).all()


def test_larger_numbers_are_never_darker() -> None:
    numbers = np.sort(np.random.default_rng(0).normal(size=(1, 999)))
    lightness = colours.to_lab(coloured(numbers, *limits(numbers), colours.sequential()))[0, :, 0]
    assert (np.diff(lightness) > -0.5).all()  # half of what one step of eight bits may do
    assert lightness[-1] - lightness[0] > 70


def test_equal_steps_look_equally_large() -> None:
    for table in (colours.sequential(), colours.diverging()[:128], colours.diverging()[128:]):
        steps = np.linalg.norm(np.diff(colours.to_lab(table[::8]), axis=0), axis=1)
        assert steps.max() < 1.4 * steps.min()
    hues = np.stack([np.linspace(0, 255, 256)] * 3, axis=-1) * [1, 0.2, 0]  # the oracle sees a table that is not even
    steps = np.linalg.norm(np.diff(colours.to_lab(hues[::8]), axis=0), axis=1)
    assert steps.max() > 1.4 * steps.min()


def test_signs_are_told_apart_and_equally_dark() -> None:
    lab = colours.to_lab(colours.diverging())
    assert np.allclose(lab[:, 0], lab[::-1, 0], atol=1.5)
    assert lab[0, 2] < -20 < 20 < lab[-1, 1]


def test_colours_return_from_lab() -> None:
    seen = np.random.default_rng(0).integers(0, 256, (500, 3)).astype(np.uint8)
    assert np.abs(colours.from_lab(colours.to_lab(seen)) - seen).max() < 1e-2
    assert np.allclose(colours.to_lab(np.array([255, 255, 255])), [100, 0, 0], atol=1e-2)


def test_no_colour_of_a_table_is_cut_off() -> None:
    for table in (colours.sequential(), colours.diverging()):
        assert table.min() > 0
        assert table.max() < 255
        assert len(np.unique(table, axis=0)) > 200


def test_labels_have_distinct_colours() -> None:
    lab = colours.to_lab(colours.palette(21))
    apart = np.linalg.norm(lab[:, None] - lab[None], axis=-1) + np.where(np.eye(21), np.inf, 0)
    assert apart.min() > 5
    assert apart[:11, :11].min() > 20
    assert np.array_equal(colours.palette(5), colours.palette(21)[:5])


# ---- what is shown -------------------------------------------------------------------------------


def test_what_is_shown_of_a_map() -> None:
    one = placed(5, 3, 4)
    assert np.array_equal(Shown.parse("sum").of(one).values[0], one.values.sum(0))
    assert np.array_equal(Shown.parse("channel:3").of(one).values[0], one.values[3])
    labels = np.random.default_rng(1).integers(0, 5, (3, 4))
    known = one.with_values(np.where(np.arange(5)[:, None, None] == labels, 9.0, one.values))
    assert np.array_equal(Shown.parse("argmax").of(known).values[0], labels)
    shares = [Shown.parse(f"class:{k}").of(one).values for k in range(5)]
    assert np.allclose(sum(shares), 1, rtol=1e-14)
    assert np.allclose(np.log(shares[2] / shares[0])[0], one.values[2] - one.values[0], rtol=1e-12, atol=1e-12)


def test_linear_views_and_upsampling_commute() -> None:
    coarse = placed(5, 3, 4)
    fine = denser(coarse, (4, 2))
    for text in ("sum", "channel:2"):
        show = Shown.parse(text)
        assert np.allclose(show.of(upsampled(coarse, fine)).values, upsampled(show.of(coarse), fine).values, rtol=1e-12)


def test_what_is_shown_by_default() -> None:
    values = np.zeros((4, 3, 3))
    values[2, 1, 1] = 1
    one = PlacedMap(values, (0, 0), (4, 4))
    assert default(one, strength=False) == Shown("channel", 2, "which varies most")
    assert default(one, strength=True) == Shown("sum")
    assert default(PlacedMap(values, (0, 0), (1, 1)), strength=False) == Shown("argmax")
    assert default(one.with_values(values[:1]), strength=True) == Shown("channel", 0)


@pytest.mark.parametrize("text", ["mean", "channel", "channel:", "channel:-1", "sum:1", "class:x", ""])
def test_what_cannot_be_shown_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="has to be"):
        Shown.parse(text)


def test_a_channel_that_is_not_there_is_refused() -> None:
    with pytest.raises(UsageError, match="from 0 to 4"):
        Shown("channel", 5).check(5, "output")
    Shown("channel", 4).check(5, "output")


# ---- localisation --------------------------------------------------------------------------------


@given(st.integers(0, 3), st.integers(0, 4), st.integers(1, 4), st.integers(1, 5), st.floats(0.5, 20))
def test_the_box_of_a_known_blob(top: int, left: int, height: int, width: int, strength: float) -> None:
    values = np.zeros((1, 9, 11))
    values[0, top : top + height, left : left + width] = strength
    values[0, -1, -1] = 10 * strength  # stronger, but smaller or no larger and later
    found = locate(PlacedMap(values, (3.5, 3.5), (8, 8)), (75, 91))
    assert found is not None
    assert found.mask.sum() == height * width
    assert found.box == (8 * top - 0.5, 8 * left - 0.5, 8 * (top + height) - 0.5, 8 * (left + width) - 0.5)


def test_a_box_ends_at_the_image() -> None:
    values = np.zeros((1, 3, 3))
    values[0, :2, :2] = 1
    found = locate(PlacedMap(values, (0, 0), (8, 8)), (10, 40))
    assert found is not None
    assert found.box == Box(-0.5, -0.5, 9.5, 12.0)


def test_a_map_without_an_object() -> None:
    assert locate(PlacedMap(np.full((1, 3, 4), 2.0), (0, 0), (4, 4)), (16, 16)) is None
    assert locate(PlacedMap(np.full((1, 3, 4), np.nan), (0, 0), (4, 4)), (16, 16)) is None


@given(st.integers(0, 10_000))
def test_the_largest_part_is_whole_and_none_is_larger(seed: int) -> None:
    mask = np.random.default_rng(seed).random((6, 7)) < 0.5
    part = largest_part(mask)
    seeds = {(int(y), int(x)) for y, x in np.argwhere(mask)}
    parts = []
    while seeds:  # by growing sets, which the function does not
        grown, new = set[tuple[int, int]](), {next(iter(seeds))}
        while new:
            grown |= new
            near = {(y + dy, x + dx) for y, x in new for dy, dx in ((0, 1), (1, 0), (0, -1), (-1, 0))}
            new = (near & seeds) - grown
        parts.append(grown)
        seeds -= grown
    assert {(int(y), int(x)) for y, x in np.argwhere(part)} in (parts or [set()])
    assert part.sum() == max(map(len, parts), default=0)


def test_overlap_of_boxes() -> None:
    one, two = Box(0, 0, 2, 4), Box(1, 2, 3, 6)
    assert one.overlap(two) == two.overlap(one) == 2 / 14
    assert one.overlap(one) == 1
    assert one.overlap(Box(5, 5, 6, 6)) == 0


def test_an_outline_lies_inside() -> None:
    mask = np.zeros((9, 10), bool)
    mask[:6, 2:9] = True  # at the upper edge
    rim = outline(mask, 2)
    inner = np.zeros_like(mask)
    inner[2:4, 4:7] = True
    assert np.array_equal(rim, mask & ~inner)


# ---- sheets --------------------------------------------------------------------------------------


def test_a_sheet_holds_every_panel_as_it_is() -> None:
    rng = np.random.default_rng(0)
    shots = [rng.integers(0, 256, (70, 300 + 10 * k, 3)).astype(np.uint8) for k in range(3)]
    panels = [Panel(f"p{k}", "a title " * 20, "words", shot, 0 if k else None) for k, shot in enumerate(shots)]
    scales = [Scale("numbers", colours.sequential(), (-1.0, 0.0, 1.0)), labels_scale("labels", range(0, 60, 2))]
    panels.append(Panel("p3", "last", "", shots[0], 1))
    made = np.array(sheet("heading", "words " * 200, panels, scales, ["note " * 300]))
    for shot in shots:
        height, width = shot.shape[:2]
        rows, columns = np.nonzero((made == shot[0, 0]).all(-1))
        assert any(
            np.array_equal(made[y : y + height, x : x + width], shot) for y, x in zip(rows, columns, strict=True)
        )
    assert (made[:8] == 255).all()
    assert (made[:, -8:] == 255).all()
    assert isinstance(Image.fromarray(made), Image.Image)


def test_numbers_on_scales() -> None:
    assert [written(x) for x in (0.0, -1.80249, 12345.6, 1.0)] == ["0", "-1.802", "1.235e+04", "1"]
