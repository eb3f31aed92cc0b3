"""The coverage table: its row function on small networks, its page, and the list of its networks."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from benchmarks import coverage, coverage_page, peers

NAMES = ("shufflenet_v2_x0_5", "regnet_y_400mf")


@pytest.fixture(scope="module")
def rows() -> list[dict[str, Any]]:
    """Two small networks at one output stride, as they come back from the file of results."""
    made = [coverage.row(name, strides=(8,), peers=False) | {"peers": {}} for name in NAMES]
    restored: list[dict[str, Any]] = json.loads(json.dumps(made))
    return restored


@pytest.mark.parametrize("which", range(len(NAMES)), ids=NAMES)
def test_row(rows: list[dict[str, Any]], which: int) -> None:
    one = rows[which]
    assert one["name"] == NAMES[which]
    assert one["native"] == [32, 32]
    assert one["parameters"] > 10**6
    (reached,) = one["strides"]
    assert (reached["asked"], reached["steps"], reached["form"]) == (8, [8, 8], "dilated")
    assert reached["failure"] == ""
    assert coverage_page.holds(reached)
    assert all(height % 2 == width % 2 == 1 and height != width for height, width in reached["sizes"])
    assert 0 < reached["law1"] < 1e-5
    assert 0 <= reached["law3"] < 1e-5


def test_page(rows: list[dict[str, Any]]) -> None:
    """A row that fails is counted as such, and says what failed."""
    broken = rows[1] | {"strides": [*rows[1]["strides"], {**rows[1]["strides"][0], "asked": 4, "failure": "no way"}]}
    text = coverage_page.page([rows[0], broken], {"torch": "1.2.3"})
    assert "**1 of 2 networks" in text
    assert "2 of 3 conversions" in text
    assert "torch 1.2.3" in text
    assert "| shufflenet_v2_x0_5 |" in text
    assert "fails at 4: [1]" in text
    assert "1. no way" in text


def test_a_wrong_map_is_seen(rows: list[dict[str, Any]]) -> None:
    for change in ({"law1": 0.1}, {"law3": 0.1}, {"law2": False}, {"law4": False}):
        assert not coverage_page.holds(rows[0]["strides"][0] | change)
    assert coverage_page.holds(rows[0]["strides"][0] | {"law1": 5e-5, "own": 1e-4})


def test_every_network_has_its_row() -> None:
    """docs/coverage.md lists what torchvision lists, and none fails anywhere."""
    text = (coverage.ROOT / "docs" / "coverage.md").read_text()
    table = text.partition("## The table")[2].partition("## Notes")[0]
    cells = [line.split(" | ") for line in table.splitlines() if line.startswith("| ")][2:]
    assert [row[0].removeprefix("| ") for row in cells] == sorted(coverage.names())
    assert not [row[0] for row in cells if "fails" in row[2]]
    assert all(row[7:9] == ["yes", "yes"] for row in cells)
    assert f"**{len(cells)} of {len(cells)} networks" in text


def test_names() -> None:
    names = coverage.names()
    assert {"maxvit_t", "s3d", "r3d_18", "alexnet", "regnet_y_128gf"} <= set(names)
    assert not any(name.startswith(("vit", "swin", "mvit", "quantized", "fcn", "raft")) for name in names)


@pytest.mark.parametrize(
    ("name", "theirs"),
    [
        ("regnet_x_1_6gf", "regnetx_016"),
        ("regnet_y_128gf", "regnety_1280"),
        ("regnet_y_400mf", "regnety_004"),
        ("efficientnet_v2_s", "efficientnetv2_s"),
        ("wide_resnet50_2", "wide_resnet50_2"),
        ("googlenet", None),
        ("r3d_18", None),
    ],
)
def test_names_of_peers(name: str, theirs: str | None) -> None:
    assert peers.timm_name(name) == theirs


class Strided(nn.Conv2d):
    """A layer that can be asked to be denser, rightly or not."""

    def at(self, stride: int, shift: int = 0) -> peers.Run:
        def run(x: Tensor) -> Tensor:
            return torch.roll(nn.functional.conv2d(x, self.weight, self.bias, stride, 1), shift, -1)

        return run


def test_judge() -> None:
    """A peer's map is judged on the original's grid: equal, wrong by a shift, or no denser at all."""
    layer = Strided(3, 4, 3, 4, 1)
    plain = layer.at(4)
    with torch.no_grad():
        assert peers.judge(plain, layer.at(2), layer, (32, 64)).verdict == "equal"
        assert peers.judge(plain, layer.at(1, shift=1), layer, (32, 64)).verdict == "error"
        assert peers.judge(plain, plain, layer, (32, 64)).verdict == "ignored"
