"""What --measure does: runs in turn, medians, and says what it ran on. No test looks at how long anything takes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from cli import DIGITS, densify
from laws.onnx import graph

from densify import timing
from densify.onnx.file import save_onnx


def test_both_run_in_turn_and_the_first_pair_does_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    now, ran = [0.0], []
    takes = {"original": [9.0, 1.0, 1.0, 7.0, 1.0, 1.0], "dense": [90.0, 3.0, 2.0, 3.0, 60.0, 3.0]}

    def run(name: str) -> None:
        ran.append(name)
        now[0] += takes[name].pop(0)

    monkeypatch.setattr("densify.timing.time.perf_counter", lambda: now[0])
    found = timing.beside(lambda: run("original"), lambda: run("dense"))
    assert ran == ["original", "dense"] * 6
    assert found == (1.0, 3.0, 3.0, timing.LEAST)


def test_quick_networks_run_often_but_not_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timing, "_seconds", lambda run: run())
    assert timing.beside(lambda: 2.0, lambda: 5.0) == (2.0, 5.0, 2.5, timing.MOST)


def test_plan_measures_one_choice() -> None:
    chosen = ("plan", DIGITS, "--start", "pool3", "--measure")
    measured = densify(*chosen, "--json").document["measured"]
    assert (measured["runtime"], measured["device"], measured["random"]) == ("torch", "cpu", True)
    assert measured["threads"] >= 1
    assert measured["pairs"] >= timing.LEAST
    assert measured["ratio"] == pytest.approx(measured["dense"] / measured["original"])
    shown = densify(*chosen)
    assert "random weights)" in shown.stdout
    assert "measured" not in densify(*chosen[:-1], "--json").document


def test_plan_measures_graphs_in_onnx_runtime(tmp_path: Path) -> None:
    path = tmp_path / "net.onnx"
    weight = np.ones((2, 3, 3, 3), np.float32)
    save_onnx(
        graph([("Conv", ["input", "w"], ["output"], {"strides": [2, 2]})], {"w": weight}, (1, 3, 21, 34)).graph, path
    )
    made = densify("plan", path, "--output-stride", 1, "--measure", "--json")
    assert made.status == 0, made.stderr
    assert (made.document["measured"]["runtime"], made.document["measured"]["random"]) == ("onnxruntime", False)
    refused = densify("plan", path, "--output-stride", 1, "--measure", "--device", "cuda")
    assert refused.status == 2
    assert "--device" in refused.stderr


def test_what_cannot_be_measured_is_refused() -> None:
    without = densify("plan", DIGITS, "--measure")
    assert (without.status, without.stdout) == (2, "")
    assert "--measure times one choice" in without.stderr
    idle = densify("plan", DIGITS, "--start", "pool3", "--device", "cuda")
    assert idle.status == 2
    assert "--measure" in idle.stderr
    assert densify("plan", DIGITS, "--start", "pool3", "--device", "nowhere", "--measure").status == 2
