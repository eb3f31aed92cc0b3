"""`inspect` and `plan` read what files say of themselves, never their weights."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import safetensors
import torch
from cli import DIGITS, WEIGHTS, densify
from laws.onnx import graph
from test_layerwise import KERNELS, NODES

from densify.errors import CheckpointError
from densify.onnx.file import read_onnx_weights, save_onnx
from densify.onnx.model import OnnxModel
from densify.onnx.outline import LEAST, outline
from densify.weights import read_weights

NAMES = ("dense.safetensors", "dense.pth", "dense.onnx")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("outline")
    outputs = [part for name in NAMES for part in ("-o", made / name)]
    assert densify("convert", DIGITS, "--weights", WEIGHTS, "--start", "pool2", *outputs, "-q").status == 0
    return made


@pytest.fixture
def unread(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever asks for numbers fails: of safetensors, of .pth files, of ONNX files and of what they point to."""

    def refuse(*_: object, **__: object) -> NoReturn:
        raise AssertionError("numbers were read")

    class Opened:
        """An open safetensors file that has no numbers, save those of scalars."""

        def __init__(self, file: Any) -> None:
            self.file, self.keys, self.metadata, self.get_slice = file, file.keys, file.metadata, file.get_slice

        def get_tensor(self, name: str) -> torch.Tensor:
            assert not self.file.get_slice(name).get_shape(), "numbers were read"
            found: torch.Tensor = self.file.get_tensor(name)
            return found

        def __enter__(self) -> Opened:
            return self

        def __exit__(self, *_: object) -> None:
            pass

    opened, load = safetensors.safe_open, torch.load
    monkeypatch.setattr(safetensors, "safe_open", lambda *args, **named: Opened(opened(*args, **named)))
    monkeypatch.setattr(torch, "load", lambda *args, **named: load(*args, **named | {"map_location": meta(named)}))
    monkeypatch.setattr(onnx, "load", refuse)
    monkeypatch.setattr(ir.ExternalTensor, "_load", refuse)
    monkeypatch.setattr("densify.onnx.file.to_torch", refuse)


def meta(named: dict[str, Any]) -> str:
    assert (named["map_location"], named["mmap"]) == ("meta", True), "numbers were read"
    return "meta"


@pytest.mark.parametrize("name", NAMES)
def test_files_of_torch_networks(folder: Path, name: str, unread: None) -> None:
    for words in (("inspect",), ("plan",), ("plan", "--start", "pool3")):
        made = densify(words[0], folder / name, *words[1:], "--trust-code", "--json", "-q")
        assert made.status == 0, made.stderr
        of_code = densify(words[0], DIGITS, *words[1:], "--json", "-q")
        assert made.document | {"model": ""} == of_code.document | {"model": ""}
    made = densify("inverse", folder / name, "--trust-code", "--dry-run", "-q")  # the trap works
    assert made.status == 3
    assert "numbers were read" in made.stderr


@pytest.mark.parametrize("name", NAMES)
def test_outlines_have_all_but_numbers(folder: Path, name: str) -> None:
    path = folder / name
    if path.suffix == ".onnx":
        (whole, said), (empty, again) = read_onnx_weights(path), read_onnx_weights(path, numbers=False)
        assert said == again
    else:
        files = read_weights(path), read_weights(path, numbers=False)
        whole, empty = (file.tensors for file in files)
        assert files[0].metadata == files[1].metadata
    assert whole.keys() == empty.keys()
    assert all((t.shape, t.dtype) == (empty[key].shape, empty[key].dtype) for key, t in whole.items())
    assert all(tensor.is_meta for tensor in empty.values())


def test_a_file_of_another_model_does_not_fit(folder: Path) -> None:
    made = densify("inspect", folder / "dense.pth", "--model", "torchvision:resnet18")
    assert made.status == 3
    assert "does not fit the model" in made.stderr


def test_a_model_that_looks_at_values_is_read_after_all(tmp_path: Path) -> None:
    file = tmp_path / "looks.py"
    file.write_text(
        "import torch\nINPUT_SIZE = (3, 16, 16)\n"
        "class Net(torch.nn.Module):\n"
        "    def __init__(self):\n        super().__init__()\n        self.a = torch.nn.Conv2d(3, 2, 3, stride=2)\n"
        "        self.register_buffer('factor', torch.ones(1))\n"
        "    def forward(self, x):\n        return self.a(x) if float(self.factor) > 0 else x\n"
    )
    weights, dense = tmp_path / "w.pth", tmp_path / "dense.pth"
    torch.save({"a.weight": torch.ones(2, 3, 3, 3), "a.bias": torch.ones(2), "factor": torch.ones(1)}, weights)
    made = densify("convert", f"{file}:Net", "--weights", weights, "--output-stride", 1, "-o", dense, "-q")
    assert made.status == 0, made.stderr
    seen = densify("inspect", dense, "--model", f"{file}:Net", "--json")
    assert [layer["name"] for layer in seen.document["layers"] if layer["strided"]] == ["a"]
    assert "the model looks at values" in seen.stderr
    assert "without its weights" in densify("inspect", f"{file}:Net").stderr


# ---- ONNX graphs ---------------------------------------------------------------------------------


@pytest.fixture
def net(tmp_path: Path) -> Path:
    """A graph with weights that are large enough to stay where they are."""
    path = tmp_path / "net.onnx"
    source = graph(NODES, KERNELS, ("N", 3, "H", "W"))
    save_onnx(source.graph, path)
    return path


def test_an_outline_is_the_file_less_its_large_weights(folder: Path) -> None:
    path = folder / "dense.onnx"
    whole, less = onnx.load(path), outline(path)
    large = [tensor for tensor in whole.graph.initializer if len(tensor.raw_data) >= LEAST]
    assert large
    assert less.ByteSize() < whole.ByteSize() - sum(len(tensor.raw_data) for tensor in large) + 200 * len(large)
    content = path.read_bytes()
    for tensor in less.graph.initializer:
        if tensor.data_location == onnx.TensorProto.EXTERNAL:
            place = {entry.key: entry.value for entry in tensor.external_data}
            assert place["location"] == path.name
            begin = int(place["offset"])
            tensor.raw_data = content[begin : begin + int(place["length"])]
            del tensor.external_data[:]
            tensor.ClearField("data_location")
    assert less == whole


def test_graphs(folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, unread: None) -> None:
    monkeypatch.setattr("densify.onnx.outline.LEAST", 64)
    net = tmp_path / "net.onnx"
    save_onnx(graph(NODES, KERNELS, ("N", 3, "H", "W")).graph, net)
    size = ("--input-size", "3,33,40", "--json", "-q")
    for words in (("inspect",), ("plan",), ("plan", "--output-stride", "1")):
        made = densify(words[0], net, *words[1:], *size)
        assert made.status == 0, made.stderr
    assert made.document["chosen"]


def test_numbers_of_an_outline_are_those_of_the_file(net: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where they are asked for after all; also beside a second file, under a link, and with two hard links."""
    monkeypatch.setattr("densify.onnx.outline.LEAST", 64)
    other, link, hard = (net.with_name(name) for name in ("other.onnx", "link.onnx", "hard.onnx"))
    onnx.save(onnx.load(net), other, save_as_external_data=True, location="other.data", size_threshold=100)
    shutil.copy(net, hard)
    hard.with_name("harder.onnx").hardlink_to(hard)
    link.symlink_to(net)
    expected = OnnxModel.load(net).weights
    for path in (net, other, link, hard):
        model = OnnxModel.load(path, numbers=False)
        found = model.weights
        assert any(isinstance(tensor, ir.ExternalTensor) for tensor in found.values()) == (path in (net, other))
        assert found.keys() == expected.keys()
        assert all(np.array_equal(tensor.numpy(), expected[name].numpy()) for name, tensor in found.items())


@pytest.mark.parametrize("damage", ["cut", "garbage", "empty", "lies"])
def test_damaged_files_are_refused_as_before(net: Path, damage: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("densify.onnx.outline.LEAST", 64)
    content = net.read_bytes()
    if damage == "lies":  # a shape that is not that of the numbers
        model = onnx.load(net)
        model.graph.initializer[0].dims[0] += 1
        content = model.SerializeToString()
    net.write_bytes({"cut": content[:-30], "garbage": b"\x89PNG" * 99, "empty": b""}.get(damage, content))
    said = []
    for numbers in (True, False):
        with pytest.raises(CheckpointError) as error:
            OnnxModel.load(net, numbers=numbers)
        said.append(str(error.value).partition("(")[0])
    assert said[0] == said[1]
