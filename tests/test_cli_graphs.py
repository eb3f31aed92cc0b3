"""The commands on ONNX files: convert, verify, inverse, inspect, plan, and what they refuse."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from cli import densify, follow
from laws.onnx import Node, graph, integers
from runtimes import sessions

from densify.graphs.onnx.layers import windows
from densify.onnx.file import OnnxSession, save_onnx
from densify.onnx.model import ORIGINAL_KEY, Kept, OnnxModel
from densify.targets import find, refusals

NODES: list[Node] = [
    ("Conv", ["input", "stem"], ["a"], {"strides": [2, 2], "pads": [1, 1, 1, 1]}),
    ("Relu", ["a"], ["c"], {}),
    ("MaxPool", ["c"], ["pool"], {"kernel_shape": [2, 2], "strides": [2, 2]}),
    ("Conv", ["pool", "last"], ["d"], {}),
    ("GlobalAveragePool", ["d"], ["e"], {}),
    ("Flatten", ["e"], ["f"], {}),
    ("Gemm", ["f", "fc", "bias"], ["output"], {"transB": 1}),
]
WEIGHTS = {
    "stem": integers(4, 3, 3, 3),
    "last": integers(6, 4, 3, 3, seed=1),
    "fc": integers(5, 6, seed=2),
    "bias": integers(5),
}


@pytest.fixture
def net(tmp_path: Path) -> Path:
    path = tmp_path / "net.onnx"
    source = graph(NODES, WEIGHTS, ("N", 3, "H", "W"))
    save_onnx(source.graph, path)
    return path


def convert(net: Path, *more: str) -> Path:
    out = net.with_name("dense.onnx")
    made = densify("convert", net, "--input-size", "3,33,40", "--start", "pool", "-o", out, *more)
    assert made.status == 0, made.stderr
    return out


def test_convert_verify_inverse(net: Path) -> None:
    dense = convert(net)
    made = densify("verify", dense, net, "--json")
    assert made.status == 0, made.stderr
    assert {check["law"] for check in made.document["checks"]} == {"weights", "grid", "size", "phases"}
    assert densify("verify", dense).status == 0
    back = net.with_name("back.onnx")
    assert densify("inverse", dense, "-o", back).status == 0
    assert onnx.load(back).graph == onnx.load(net).graph
    assert densify("verify", back, net).status == 0
    assert densify("verify", back, dense).status == 0


def test_untouched_nodes_and_initializers_stay_what_they_are(net: Path) -> None:
    before, after = onnx.load(net).graph, onnx.load(convert(net)).graph
    assert list(after.initializer) == list(before.initializer)
    nodes = {node.name: node for node in after.node}
    same = [node for node in before.node if nodes.get(node.name) == node]
    assert [node.op_type for node in same] == ["Conv", "Relu"]
    assert {node.name for node in before.node} - nodes.keys() == {"f", "output"}  # the head became a convolution
    assert not after.value_info


def test_changed_weights_come_back(net: Path) -> None:
    dense = convert(net)
    model = onnx.load(dense)
    changed = integers(4, 3, 3, 3, seed=9)
    model.graph.initializer[0].CopyFrom(onnx.numpy_helper.from_array(changed, "stem"))
    onnx.save(model, dense)
    made = densify("inverse", dense, "-o", net.with_name("back.onnx"), "--weights", net, "--json")
    assert made.status == 0, made.stderr
    assert [change["name"] for change in made.document["changed"]] == ["stem"]
    assert made.document["changed"][0]["largest"] > 0
    back = onnx.load(net.with_name("back.onnx")).graph
    assert np.array_equal(onnx.numpy_helper.to_array(back.initializer[0]), changed)
    assert list(back.node) == list(onnx.load(net).graph.node)
    failed = densify("verify", dense, net)
    assert failed.status == 1
    assert "stem" in failed.stdout


def test_inspect_and_plan(net: Path) -> None:
    made = densify("inspect", net, "--input-size", "3,33,40", "--json")
    layers = {layer["name"]: layer for layer in made.document["layers"]}
    assert [name for name, layer in layers.items() if layer["strided"]] == ["a", "pool"]
    assert layers["a"]["parameters"] == 108
    assert made.document["parameters"] == sum(weight.size for weight in WEIGHTS.values())
    plan = densify("plan", net, "--input-size", "3,33,40", "--output-stride", 1, "--json").document
    assert plan["chosen"] == ["a", "pool"]
    assert plan["outputs"][0]["lattice"] == [{"stride": 4, "offset": 0}] * 2
    rows = densify("plan", net, "--input-size", "3,33,40", "--json").document["choices"]
    assert [(row["starts"], row["output_stride"]) for row in rows] == [(["pool"], 2), (["a"], 1)]
    assert {key: plan[key] for key in rows[1].keys() & plan.keys()} == {
        key: rows[1][key] for key in rows[1].keys() & plan.keys()
    }
    again = densify("plan", convert(net), "--output-stride", 1, "--json").document
    assert again["changes"] == plan["changes"]


def test_metadata_places_the_predictions(net: Path) -> None:
    said = {entry.key: entry.value for entry in onnx.load(convert(net, "--head", "features")).metadata_props}
    (axes,) = (output["axes"] for output in json.loads(said["densify.outputs"]).values())
    assert [(axis["axis"], axis["step"], axis["est"]) for axis in axes] == [(2, 2, 2), (3, 2, 2)]


def test_the_options_of_a_conversion(net: Path) -> None:
    for more in (["--form", "fragments"], ["--padding", "valid"], ["--padding", "same"], ["--head", "average"]):
        dense = convert(net, *more, "--overwrite")
        made = densify("verify", dense)
        assert made.status == 0, (more, made.stdout)


def test_a_network_that_fails_is_not_written(net: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    right = windows.emax_pool
    monkeypatch.setattr("densify.graphs.onnx.layers.emax_pool", lambda x, *rest, **named: right(x.op("Neg"), *rest))
    out = net.with_name("dense.onnx")
    made = densify("convert", net, "--input-size", "3,35,41", "--output-stride", 1, "-o", out)
    assert made.status == 1
    assert not out.exists()


REFUSED: dict[str, tuple[list[str], str]] = {
    "no size": (["--start", "pool", "-o", "OUT"], "its reference size is not known"),
    "no such node": (["--start", "pol", "-o", "OUT", "--input-size", "3,33,40"], "The strided layers are: pool, a"),
    "another format": (["--start", "pool", "-o", "x.pth", "--input-size", "3,33,40"], "name an .onnx file"),
    "weights": (
        ["--start", "pool", "-o", "OUT", "--weights", "w.pth"],
        "an ONNX file holds its own graph and weights: leave --weights out",
    ),
    "a device": (
        ["--start", "pool", "-o", "OUT", "--device", "cuda"],
        "in ONNX Runtime, on the CPU: leave --device out",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_asked_for_in_vain(name: str, net: Path) -> None:
    arguments, reason = REFUSED[name]
    out = net.with_name("dense.onnx")
    made = densify("convert", net, *(out if one == "OUT" else one for one in arguments))
    assert made.status == 2
    assert reason in " ".join(made.stderr.split())
    assert not out.exists()


def test_a_dense_file_is_not_made_dense_again(net: Path) -> None:
    made = densify("convert", convert(net), "--output-stride", 1, "-o", net.with_name("again.onnx"))
    assert made.status == 2
    assert "is dense already" in made.stderr


def test_a_damaged_original_is_refused(net: Path) -> None:
    dense = convert(net)
    model = OnnxModel.load(dense)
    model.graph.metadata_props[ORIGINAL_KEY] = "damaged"
    save_onnx(model.graph, dense)
    made = densify("inverse", dense, "-o", net.with_name("back.onnx"))
    assert made.status == 3
    assert "is damaged" in made.stderr


def test_every_target_and_a_fixed_size(net: Path) -> None:
    for target in ("ort", "openvino", "tensorrt", "portable"):
        dense = convert(net, "--target", target, "--overwrite")
        model = ir.load(dense)
        assert not refusals(model, find(target))
        dilated = [n for n in model.graph if set(n.attributes.get_ints("dilations", [1])) != {1}]
        assert bool(dilated) == (target != "portable")
        assert all(run_everywhere(dense, (2, 3, 35, 41)))
    dense = convert(net, "--static", "--overwrite")
    model = ir.load(dense)
    assert list(model.graph.inputs[0].shape or ()) == [1, 3, 33, 40]
    assert not {"Shape", "Range", "Mod"} & {node.op_type for node in model.graph}
    assert all(run_everywhere(dense, (1, 3, 33, 40)))
    assert densify("verify", dense).status == 0


def run_everywhere(path: Path, shape: tuple[int, ...]) -> list[bool]:
    """Whether all that runs files agrees with ONNX Runtime without optimisations."""
    x = integers(*shape, seed=11)
    found = {name: session(x)[0] for name, session in sessions(path, reference=True)}
    assert found.keys() >= {"onnx reference", "openvino"}
    expected = found["onnxruntime, no optimisations"]
    return [np.allclose(made, expected, rtol=1e-5, atol=1e-5 * np.abs(expected).max()) for made in found.values()]


def test_large_weights_are_mapped_not_held(net: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As with weights past 64 MB: the same files come out."""
    expected = convert(net).read_bytes()
    monkeypatch.setattr("densify.onnx.model._MANY", 0)
    monkeypatch.setattr("densify.onnx.model._PAGE", 16)
    source = OnnxModel.load(net)
    assert {type(tensor) for tensor in source.weights.values()} == {Kept}
    dense = convert(net, "--overwrite")
    assert dense.read_bytes() == expected
    assert densify("verify", dense, net).status == 0
    back = net.with_name("back.onnx")
    assert densify("inverse", dense, "-o", back).status == 0
    assert onnx.load(back).graph == onnx.load(net).graph


def test_weights_in_a_file_beside_it_are_only_read(net: Path) -> None:
    """Small ones among them."""
    other, data = net.with_name("other.onnx"), net.with_name("other.data")
    onnx.save(onnx.load(net), other, save_as_external_data=True, location=data.name, size_threshold=0)
    before = data.read_bytes()
    expected = {tensor.name: tensor.raw_data for tensor in onnx.load(net).graph.initializer}
    dense = convert(other)
    assert {tensor.name: tensor.raw_data for tensor in onnx.load(dense).graph.initializer} == expected
    for pair in ((dense, other), (other, net)):
        made = densify("verify", *pair, "--input-size", "3,33,40")
        assert made.status == 0, made.stderr
    assert data.read_bytes() == before
    assert data.stat().st_nlink == 1
    linked = net.with_name("linked.data")
    linked.hardlink_to(data)
    made = densify("convert", other, "--start", "pool", "--input-size", "3,33,40", "--dry-run")
    assert made.status == 3
    assert "hard links, which onnx refuses. Take a copy" in made.stderr


def test_the_input_is_not_replaced(net: Path) -> None:
    before = net.read_bytes()
    made = densify("convert", net, "--start", "pool", "--input-size", "3,33,40", "-o", net, "--overwrite")
    assert made.status == 2
    assert "this is what the command reads" in made.stderr
    assert net.read_bytes() == before


def test_a_file_of_one_size_is_opened(tmp_path: Path) -> None:
    """A classifier of patches, run over an image."""
    patches = tmp_path / "patches.onnx"
    stem: Node = ("Conv", ["input", "stem"], ["a"], {"strides": [2, 2]})
    nodes = [stem, *NODES[1:4], ("Flatten", ["d"], ["f"], {}), NODES[-1]]
    fc = {"fc": integers(5, 6 * 2 * 2, seed=2)}
    save_onnx(graph(nodes, WEIGHTS | fc, (1, 3, 20, 18)).graph, patches)
    choice = ("--output-stride", "1", "-o", tmp_path / "dense.onnx", "--json")
    refused = densify("convert", patches, "--input-size", "3,41,37", *choice)
    assert refused.status == 2
    assert "takes images of 3x20x18 alone, not of 3x41x37. --any-size" in refused.stderr
    assert densify("plan", patches, "--any-size", "--output-stride", "1").status == 0
    told = "takes images of 20x18 alone; --any-size"
    assert told in densify("plan", patches, "--output-stride", "1").stderr
    assert told not in densify("plan", patches, "--any-size", "--output-stride", "1").stderr
    np.save(tmp_path / "large.npy", integers(1, 3, 41, 37))
    sample = ("--sample", tmp_path / "large.npy")
    refused = densify("convert", patches, *sample, *choice)
    assert refused.status == 2
    assert "large.npy: the network takes no input of [1, 3, 41, 37]; give samples of 20x18, or" in refused.stderr
    assert "or convert the model with --any-size" in refused.stderr
    fixed = tmp_path / "fixed.onnx"
    assert densify("convert", patches, "--output-stride", "1", "-o", fixed).status == 0
    for command in (["verify", fixed], ["verify", patches, patches], ["inverse", fixed, "--dry-run"]):
        assert densify(*command, *sample).status == 2
    made = densify("convert", patches, "--any-size", *sample, *choice)
    assert made.status == 0, made.stderr
    (tmp_path / "dense.onnx").unlink()
    made = densify("convert", patches, "--any-size", *choice)
    assert made.status == 0, made.stderr
    assert len({check["input"] for check in made.document["checks"]}) > 3
    x = integers(1, 3, 41, 37, seed=4)
    (whole,) = OnnxSession(tmp_path / "dense.onnx", optimised=False)(x)
    original = OnnxSession(patches, optimised=False)
    for row, column in ((0, 0), (3, 7), (17, 5)):
        (want,) = original(np.ascontiguousarray(x[..., row : row + 20, column : column + 18]))
        assert np.allclose(whole[..., row, column], want, rtol=1e-5)


def test_a_fixed_file_goes_back_to_an_open_one(net: Path) -> None:
    dense, back = convert(net, "--static"), net.with_name("back.onnx")
    assert densify("verify", dense).status == 0
    assert densify("inverse", dense, "-o", back).status == 0
    assert onnx.load(back).graph == onnx.load(net).graph


def test_an_original_says_where_its_predictions_lie(net: Path) -> None:
    dense, back = convert(net, "--mean", "0.5,0.5,0.5"), net.with_name("back.onnx")
    assert densify("inverse", dense, "-o", back).status == 0
    said = {entry.key: entry.value for entry in onnx.load(back).metadata_props}
    assert json.loads(said["densify.outputs"]) == {"output": {"merged": "", "axes": []}}
    assert json.loads(said["densify.preprocessing"]) == {"mean": [0.5, 0.5, 0.5]}


def test_where_padding_follows_the_size_positions_are_those_at_one(tmp_path: Path) -> None:
    nodes: list[Node] = [
        ("Conv", ["input", "stem"], ["a"], {"strides": [2, 2], "auto_pad": "SAME_UPPER"}),
        ("MaxPool", ["a"], ["output"], {"kernel_shape": [3, 3], "strides": [2, 2], "auto_pad": "SAME_UPPER"}),
    ]
    path = tmp_path / "net.onnx"
    save_onnx(graph(nodes, {"stem": WEIGHTS["stem"]}, ("N", 3, "H", "W")).graph, path)
    arguments = (path, "--input-size", "3,33,40", "--output-stride", "1")
    assert "positions: as at 33x40" in densify("plan", *arguments).stdout
    made = densify("convert", *arguments, "-o", tmp_path / "dense.onnx")
    assert "positions: as at 33x40" in made.stdout
    said = {entry.key: entry.value for entry in onnx.load(tmp_path / "dense.onnx").metadata_props}
    assert json.loads(said["densify.outputs"])["output"]["at"] == [33, 40]
    assert " same " in densify("inspect", path, "--input-size", "3,33,40").stdout


def test_what_inspect_and_plan_propose_works(net: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(net.parent)
    said = follow("inspect", net, "--input-size", "3,33,40")
    assert [words[0] for words in said] == ["plan", "plan", "convert", "verify"]
    (net.parent / "dense.onnx").unlink()
    (net.parent / "dense-dpoa.onnx").unlink()
    said = follow("plan", net, "--input-size", "3,33,40", "--merge", "average", "--padding", "valid")
    assert [words[0] for words in said] == ["plan", "convert", "verify"]
    how = ["--input-size", "3,33,40", "--padding", "valid", "--merge", "average"]
    assert all(words[1:8] == [str(net), *how] for words in said[:2])
    (net.parent / "dense.onnx").unlink()
    told = densify("inspect", convert(net))
    assert "is dense already; this is the graph that it was made from" in told.stderr


def test_torch_code_has_no_size_to_open(net: Path) -> None:
    made = densify("plan", "torchvision:resnet18", "--any-size", "--output-stride", "8")
    assert made.status == 2
    assert "--any-size: is about ONNX files" in made.stderr
    made = densify("verify", convert(net), "torchvision:resnet18")
    assert made.status == 2
    assert "an ONNX file is compared with an ONNX file" in made.stderr
