"""Networks of torchvision and of models/, exported and then made dense: what the torch path computes, and hardly more
bytes."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import onnx_ir as ir
import pytest
import torch
import torchvision.models as models
from laws.alive import enliven
from laws.onnx import as_converted, exported, run, written
from programs import BLOCKS, Block, around
from test_apart import around as beside
from test_apart import numbered
from test_behind_merges import NEW, Net
from test_whole_maps import Statistics
from torch import Tensor, nn

import densify
from densify.comparison import difference, named_outputs
from densify.onnx.conversion import convert_onnx
from densify.onnx.model import OnnxModel
from densify.onnx.packing import inverse_onnx
from densify.reference import resolve

MODELS = Path(__file__).resolve().parent.parent / "models"
pytestmark = pytest.mark.filterwarnings("ignore")


def segmentation() -> nn.Module:
    made: nn.Module = models.segmentation.lraspp_mobilenet_v3_large(weights=None, weights_backbone=None)
    return made


def _around(name: str) -> nn.Module:
    return around(Block(BLOCKS[name]))


AVERAGED = {"start": "c1", "merge": "average"}
CASES: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...], tuple[int, ...], dict[str, Any]]] = {
    "resnet18": (models.resnet18, (3, 64, 64), (3, 91, 77), {"output_stride": 8}),
    "squeezenet1_1": (models.squeezenet1_1, (3, 64, 64), (3, 83, 95), {"output_stride": 4}),
    "shufflenet": (models.shufflenet_v2_x0_5, (3, 64, 64), (3, 75, 96), {"output_stride": 8}),
    "mobilenet": (models.mobilenet_v3_small, (3, 64, 64), (3, 97, 75), {"output_stride": 8}),
    "alexnet": (models.alexnet, (3, 224, 224), (3, 231, 259), {"output_stride": 16}),
    "lraspp": (segmentation, (3, 64, 64), (3, 96, 81), {"output_stride": 4, "merge": "resample"}),
    "digits": (lambda: resolve(f"{MODELS}/digits.py:digit_net").build(), (3, 32, 32), (3, 45, 37), {"start": "pool2"}),
    "digit segmentation": (
        lambda: resolve(f"{MODELS}/digit_segmentation.py:digit_segmentation").build(),
        (3, 64, 64),
        (3, 96, 80),
        {"output_stride": 2, "merge": "average"},
    ),
    "statistics": (lambda: Statistics(reverse=True), (3, 33, 41), (3, 26, 38), {"layers": ["c1"]}),
    "a gate of a deeper map": (lambda: Net(NEW["a gate of a deeper map"]), (2, 24, 28), (2, 32, 20), AVERAGED),
    "bins of a deeper map": (lambda: Net(NEW["bins of a deeper map"]), (2, 24, 28), (2, 32, 20), AVERAGED),
    "tokens": (lambda: Net(NEW["tokens"]), (2, 24, 28), (2, 32, 20), AVERAGED),
    **{
        name: (partial(_around, name), (3, 17, 22), (3, 21, 26), {"start": "0"})
        for name in ("of the batch", "of all sizes", "masks", "of another tensor")
    },
    "a number for every image": (lambda: beside(numbered), (3, 17, 22), (3, 33, 30), {"output_stride": 1}),
    "unet": (
        lambda: resolve(f"{MODELS}/unet.py:unet_same", {"width": 4}).build(),
        (1, 48, 48),
        (1, 64, 80),
        {"output_stride": 4, "merge": "average"},
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_made_dense_before_and_after_the_export(name: str, tmp_path: Path) -> None:
    factory, reference, other, choice = CASES[name]
    model = enliven(factory(), (2, *reference)).float()
    dense = densify.convert(model, (1, *reference), **choice)
    source = exported(model, (1, *reference), tmp_path)
    reading, plan = as_converted(source, dense)
    assert plan.lattices == dense.lattices
    for form in ("dilated", "fragments"):
        graph = written(source, reading, plan, form)
        for batch, *size in ((1, *reference), (2, *other)):
            x = torch.randn(batch, *size, generator=torch.Generator().manual_seed(1))
            with torch.no_grad():
                want = dict(named_outputs(dense.eval()(x)))
            _close(want, run(graph, x, optimised=form == "dilated"))


def _close(want: dict[str, Tensor], have: dict[str, Tensor]) -> None:
    for name, expected in want.items():
        assert have[name].shape == expected.shape
        assert difference(expected, have[name])[1] < 2e-5, name


@pytest.mark.parametrize("name", ["squeezenet1_1", "shufflenet", "mobilenet"])
def test_the_file_hardly_grows_and_the_graph_comes_back(name: str, tmp_path: Path) -> None:
    factory, reference, _, choice = CASES[name]
    source = exported(factory().eval(), (1, *reference), tmp_path)
    dense = densify.convert(source, (1, *reference), **choice)
    densify.save(dense, tmp_path / "dense.onnx")
    before, after = ((tmp_path / f"{file}.onnx").stat().st_size for file in ("original", "dense"))
    assert 0 < after / before - 1 < 0.01
    file = OnnxModel.load(tmp_path / "dense.onnx")
    assert ir.to_proto(inverse_onnx(file).graph).graph == ir.to_proto(source.graph).graph
    again = densify.load_onnx(tmp_path / "dense.onnx")
    x = torch.randn(1, *reference)
    assert densify.verify(tmp_path / "original.onnx", again, x)  # type: ignore[arg-type]
    nodes = {str(node) for node in dense.graph.graph}
    untouched = [node for node in source.graph.graph if str(node) in nodes]
    assert len(untouched) > len(list(source.graph.graph)) / 4


def test_exported_nodes_have_the_names_of_their_modules(tmp_path: Path) -> None:
    """So that the same names choose the same layers."""
    model = models.resnet18(weights=None).eval()
    source = exported(model, (1, 3, 64, 64), tmp_path)
    choices: list[dict[str, Any]] = [{"start": "layer3"}, {"layers": ["layer4", "maxpool"]}, {"layers": ["layer2.0"]}]
    for choice in choices:
        wanted = densify.plan(model, (1, 3, 64, 64), **choice)
        found = densify.plan(source, (1, 3, 64, 64), **choice)
        assert found.lattices == wanted.lattices
        assert [name.rpartition("/")[0] for name in found.layers] == list(wanted.layers)


def test_python_and_the_command_line_do_the_same(tmp_path: Path) -> None:
    source = exported(models.squeezenet1_1(weights=None).eval(), (1, 3, 64, 64), tmp_path)
    path = tmp_path / "original.onnx"
    assert densify.inspect(path, (1, 3, 64, 64)).cost == densify.plan(source, (1, 3, 64, 64), layers=[]).cost
    plan = densify.plan(path, (1, 3, 64, 64), output_stride=4)
    dense = densify.convert(path, (1, 3, 64, 64), output_stride=4)
    assert plan.lattices == dense.lattices == convert_onnx(source, (3, 64, 64), output_stride=4).lattices
    assert densify.inverse(dense).graph is dense.source.graph
    with pytest.raises(densify.DensifyError, match=r"padding='other' is not one of"):
        densify.convert(path, (1, 3, 64, 64), output_stride=4, padding="other")
