"""Several nodes that are one op: space to depth written with views, pooled rows, and images moved away and back."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from laws.integers import inputs
from laws.onnx import Node, as_converted, exported, graph, integers, run, written
from test_moves import CHAINS, network
from test_phase_wise import Call
from torch import Tensor, nn
from torch.nn import functional as F

import densify
from densify.errors import ConversionError, RefusedError
from densify.graphs.onnx import regions
from densify.onnx.conversion import convert_onnx
from densify.onnx.model import OnnxModel
from densify.ops import AvgPool, MaxPool, Patches

FORMS = ("dilated", "fragments")
KEPT = ("F.unfold", "unflatten")  # chains whose strides stay, on phases that others made


def agrees(model: nn.Module, shape: tuple[int, ...], other: tuple[int, ...], folder: Path, **choice: Any) -> OnnxModel:
    """Exported and made dense, it is what it is made dense and exported: exactly, on integers."""
    dense = densify.convert(model.float(), shape, **choice)
    source = exported(model, shape, folder)
    reading, plan = as_converted(source, dense)
    assert plan.lattices == dense.lattices
    for form in FORMS:
        made = written(source, reading, plan, form)
        for size in (shape, other):
            x = inputs(size).float()
            assert torch.equal(run(made, x, optimised=False)["output"], dense(x)), (form, size)
    return source


@pytest.mark.parametrize("name", CHAINS)
def test_views_that_are_space_to_depth(name: str, tmp_path: Path) -> None:
    make, channels, *_ = CHAINS[name]
    model = network(nn.Conv2d(3, 3, 3, 2, 1), make(), nn.Conv2d(channels, 4, 3, padding=1))
    other = (1, 3, 72, 48) if name == "nn.Unfold" else (2, 3, 72, 48)  # it asks for len(x), which fixes the batch
    agrees(model, (1, 3, 48, 72), other, tmp_path, **({"layers": ["0"]} if name in KEPT else {"output_stride": 1}))


def blocks(last: bool, batch: int | str, *size: int | str) -> OnnxModel:
    """A pooling, then blocks of 2 x 3 samples laid into the channels; channels come last or second."""
    apart, order = ([0, -1, 2, 4, 3, 4], [0, 1, 3, 2, 4, 5]) if last else ([0, 4, -1, 2, 4, 3], [0, 3, 5, 1, 2, 4])
    joined = [0, 0, 4, 24] if last else [0, 24, -1, 4]
    nodes: list[Node] = [
        ("Conv", ["input", "weight"], ["c"], {"strides": [2, 2]}),
        ("Transpose", ["c"], ["t"], {"perm": [0, 2, 3, 1] if last else [0, 1, 2, 3]}),
        ("Reshape", ["t", "apart"], ["a"], {}),
        ("Transpose", ["a"], ["m"], {"perm": order}),
        ("Reshape", ["m", "joined"], ["j"], {}),
        ("Transpose", ["j"], ["p"], {"perm": [0, 3, 1, 2] if last else [0, 1, 2, 3]}),
        ("Conv", ["p", "head"], ["output"], {}),
    ]
    weights = {"weight": integers(4, 2, 1, 1), "head": integers(3, 24, 1, 1, seed=1)}
    return graph(nodes, weights | {"apart": np.array(apart), "joined": np.array(joined)}, (batch, 2, *size))


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize("last", [False, True])
def test_blocks_written_by_hand(last: bool, frozen: bool, form: str) -> None:
    """Their columns are written out: only the rows may grow. A graph of one size is believed at that size."""
    source = blocks(last, "N", 16, 24) if frozen else blocks(last, "N", "H", 24)
    dense = convert_onnx(source, (2, 16, 24), output_stride=1, form=form)
    assert any(isinstance(site.op, Patches) for site in dense.reading.network.sites.values())
    assert dense.lattices["output"] == ((4, 0), (6, 0))
    report = densify.verify(source, dense, [inputs((batch, 2, 16, 24)).float() for batch in (1, 3)])
    assert report, report.failed
    assert {"grid", "phases"} <= {check.law for check in report.checks}


def test_a_value_of_a_chain_that_is_an_output_stays_what_it_is() -> None:
    source = blocks(False, "N", "H", 24)
    source.graph.graph.outputs.append(next(n for n in source.graph.graph if n.outputs[0].name == "m").outputs[0])
    with pytest.raises(RefusedError, match='m: it makes the output "m"'):
        convert_onnx(source, (2, 16, 24), output_stride=1)


@pytest.mark.parametrize("pool", [
    lambda: nn.MaxPool1d(3, 2, 1), lambda: nn.MaxPool1d(2, 3, ceil_mode=True), lambda: nn.MaxPool1d(3, 2, dilation=2),
])  # fmt: skip
def test_one_pooled_row(pool: Callable[[], nn.Module], tmp_path: Path) -> None:
    model = network(nn.Conv1d(2, 4, 3, 2, 1), pool(), nn.Conv1d(4, 2, 3, padding=1))
    source = agrees(model, (1, 2, 45), (2, 2, 58), tmp_path, output_stride=1)
    path = tmp_path / "kept"
    path.mkdir()
    agrees(model, (1, 2, 45), (2, 2, 58), path, layers=["0"])
    kinds = {type(site.op) for site in densify.plan(source, (1, 2, 45), output_stride=1).network.sites.values()}
    assert MaxPool in kinds


def test_an_averaged_row_and_another_axis() -> None:
    """The row may be averaged, and lie in front of the axis or behind it; a pooling across it is no row."""
    for dim, kernel in ((2, [1, 3]), (3, [3, 1])):
        pads = [0, 1, 0, 1] if dim == 2 else [1, 0, 1, 0]
        attributes = {"kernel_shape": kernel, "strides": [2 if k > 1 else 1 for k in kernel], "pads": pads}
        nodes: list[Node] = [
            ("Conv", ["input", "weight"], ["c"], {"strides": [2]}),
            ("Unsqueeze", ["c", "axis"], ["u"], {}),
            ("AveragePool", ["u"], ["a"], attributes),
            ("Squeeze", ["a", "axis"], ["output"], {}),
        ]
        source = graph(nodes, {"weight": integers(3, 2, 2), "axis": np.array([dim])}, ("N", 2, "W"))
        dense = convert_onnx(source, (2, 31), output_stride=1)
        assert any(isinstance(site.op, AvgPool) for site in dense.reading.network.sites.values())
        assert densify.verify(source, dense, [inputs((1, 2, 31)).float(), inputs((2, 2, 44)).float()])


def attention(x: Tensor) -> Tensor:
    """Tokens of all images side by side in the second dimension, as attention wants them, and back."""
    tokens = x.flatten(2).permute(2, 0, 1)
    weights = (tokens.permute(1, 0, 2) @ tokens.permute(1, 2, 0)).clamp(-1, 1)
    return (weights @ tokens.permute(1, 0, 2)).permute(0, 2, 1).reshape(x.shape)


def side_by_side(x: Tensor) -> Tensor:
    return torch.cat([x, 2 * x]).chunk(2)[1] + torch.stack([x, x * x]).sum(0)


def summed(x: Tensor) -> Tensor:
    return x.transpose(0, 1).cumsum(1).transpose(0, 1)


@pytest.mark.parametrize("block", [attention, side_by_side])
def test_images_that_are_moved_away_and_back(block: Callable[[Tensor], Tensor], tmp_path: Path) -> None:
    model = network(nn.Conv2d(3, 4, 3, 2, 1), Call(block), nn.MaxPool2d(2))
    agrees(model, (1, 3, 14, 18), (2, 3, 22, 16), tmp_path, output_stride=1)


def test_images_that_are_mixed_on_the_way_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Were they not, `verify` would tell."""
    model = network(nn.Conv2d(3, 4, 3, 2, 1), Call(summed), nn.MaxPool2d(2)).float()
    source = exported(model, (1, 3, 14, 18), tmp_path)
    with pytest.raises(RefusedError, match="it does not keep the images of a batch apart"):
        convert_onnx(source, (3, 14, 18), output_stride=1)
    monkeypatch.setattr(regions, "moved_back", lambda *_: True)
    dense = convert_onnx(source, (3, 14, 18), output_stride=1)
    assert not densify.verify(source, dense, [inputs((2, 3, 14, 18)).float()])


def test_exported_splits_are_slices(tmp_path: Path) -> None:
    """At every size: sequences, which the exporter would write, are known to few runtimes."""

    def split(x: Tensor) -> Any:
        first, second = torch.split(x, [x.shape[2] - 1, 1], 2)
        left, right = x.unflatten(3, (-1, 2)).unbind(-1)
        upper, lower = x.chunk(2, 2)
        one, two = torch.cat([x, x]).chunk(2)
        found = (first, second, left, right, upper, lower, one, two, *x.split(3, 1))
        return {f"o{index}": each for index, each in enumerate(found)}

    model = Call(split)
    source = exported(model, (2, 4, 8, 10), tmp_path)
    assert not {"SplitToSequence", "SequenceAt"} & {node.op_type for node in source.graph.graph}
    for shape in ((2, 4, 8, 10), (3, 4, 9, 12)):
        x = inputs(shape).float()
        made = run(source.graph, x)
        for name, want in model(x).items():
            assert torch.equal(made[name], want), (name, shape)


@pytest.mark.parametrize("split", [
    lambda y: y.split(8, 2), lambda y: y.split(y.shape[2] // 2, 2), lambda y: y.chunk(4, 2),
])  # fmt: skip
def test_splits_into_a_number_of_pieces_that_follows_the_size_are_refused(
    split: Callable[[Tensor], Sequence[Tensor]], tmp_path: Path
) -> None:
    model = network(nn.Conv2d(3, 4, 3, padding=1), Call(lambda x: torch.cat([one.relu() for one in split(x)][::-1], 2)))
    with pytest.raises(ConversionError, match="makes a number of pieces that follows the size of the image"):
        exported(model.float(), (1, 3, 24, 24), tmp_path)


MOVED: list[Node] = [("Reshape", ["p", "rows"], ["t"], {}), ("Transpose", ["t"], ["u"], {"perm": [1, 0, 2]})]
MIXING: dict[str, tuple[list[Node], dict[str, Any]]] = {
    "behind a threshold": (
        [("Greater", ["u", "large"], ["g"], {}), ("Cast", ["g"], ["f"], {"to": 1}),
         ("CumSum", ["f", "one"], ["v"], {})],
        {"large": np.float32(100), "one": np.array(1)},
    ),
    "beside large numbers": (
        [("CumSum", ["u", "one"], ["c"], {}), ("Where", ["first", "low", "c"], ["v"], {})],
        {"one": np.array(1), "first": np.arange(4).reshape(4, 1, 1) < 1, "low": np.float32(-1e9)},
    ),
    "where most is no number": (
        [("Sqrt", ["u"], ["r"], {}), ("ReduceMean", ["r"], ["m"], {"axes": [2]}), ("CumSum", ["m", "one"], ["v"], {})],
        {"one": np.array(1)},
    ),
    "three places on": (
        [("Pad", ["u", "pads"], ["q"], {}), ("Shape", ["u"], ["n"], {"start": 1, "end": 2}),
         ("Slice", ["q", "zero", "n", "one"], ["s"], {}), ("Add", ["u", "s"], ["v"], {})],
        {"pads": np.array([0, 3, 0, 0, 0, 0]), "zero": np.array([0]), "one": np.array([1])},
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", MIXING)
def test_what_mixes_images_is_seen_however_it_hides(name: str) -> None:
    nodes, weights = MIXING[name]
    weights = weights | {"rows": np.array([0, 4, -1]), "weight": integers(4, 2, 3, 3), "head": integers(2, 4, 1, 1)}
    source = graph(
        [
            ("Conv", ["input", "weight"], ["a"], {}),
            ("MaxPool", ["a"], ["p"], {"kernel_shape": [2, 2], "strides": [2, 2]}),
            *MOVED, *nodes, ("Mul", ["u", "v"], ["w"], {}), ("Transpose", ["w"], ["b"], {"perm": [1, 0, 2]}),
            ("Shape", ["p"], ["whole"], {}), ("Reshape", ["b", "whole"], ["d"], {}),
            ("Conv", ["d", "head"], ["output"], {}),
        ],
        weights, ("N", 2, "H", "W"),
    )  # fmt: skip
    with pytest.raises(RefusedError, match="it does not keep the images of a batch apart"):
        convert_onnx(source, (2, 13, 16), output_stride=1)


def test_a_statistic_that_is_expanded_is_a_map(tmp_path: Path) -> None:
    """Though a statistic itself is as large at every size of the image, what is made of it follows the image."""
    gate = Call(lambda x: x * x.amax((2, 3), keepdim=True).expand(-1, -1, x.shape[2], x.shape[3]))
    model = network(nn.Conv2d(3, 4, 3, 2, 1), gate, nn.MaxPool2d(2))
    agrees(model, (1, 3, 14, 18), (2, 3, 22, 16), tmp_path, output_stride=1)


def test_a_statistic_of_tokens_is_a_map(tmp_path: Path) -> None:
    """One number per image is as large at every size of the image, too; the map that it scales has another step."""

    def gate(x: Tensor) -> Tensor:
        return F.max_pool2d(x, 2) * x.flatten(2).mean((1, 2)).view(-1, 1, 1, 1)

    model = network(nn.Conv2d(3, 4, 3, 2, 1), Call(gate))
    agrees(model, (1, 3, 14, 18), (2, 3, 22, 16), tmp_path, layers=["0"])
