"""Checkpoints: every usual file gives the same tensors, and none runs code."""

from __future__ import annotations

import argparse
import json
import os
import pickle
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from safetensors.torch import save_file
from torch import Tensor, nn

from densify.errors import CheckpointError, DensifyError, UnsafeError, UsageError
from densify.weights import read_weights


class Net(nn.Module):
    def __init__(self, classes: int = 5) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.bn = nn.BatchNorm2d(4)
        self.fc = nn.Linear(4, classes)


def _state() -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in Net().state_dict().items()}


def _same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(a[n].dtype == b[n].dtype and torch.equal(a[n], b[n]) for n in a)


def _save_onnx(path: Path, state: dict[str, Tensor], **metadata: str) -> None:
    tensors = [numpy_helper.from_array(value.numpy(), name) for name, value in state.items()]
    model = helper.make_model(helper.make_graph([], "net", [], [], tensors))
    helper.set_model_props(model, metadata)
    onnx.save(model, path)


# ---- what is read --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name", ["a.safetensors", "a.pth", "a.pt", "a.bin", "a.ckpt", "a.pth.tar", "old.pth", "a.onnx"]
)
def test_every_format_gives_the_same_tensors(tmp_path: Path, name: str) -> None:
    state, path = _state(), tmp_path / name
    if name == "a.safetensors":
        save_file(state, path)
    elif name == "a.onnx":
        _save_onnx(path, state)
    else:
        torch.save(state, path, _use_new_zipfile_serialization=name != "old.pth")
    weights = read_weights(path)
    assert _same(weights.tensors, state)
    assert weights.source == str(path)
    assert weights.unwrapped == ()
    assert weights.recipe is None
    changed = {**state, "conv.bias": state["conv.bias"] + 1}
    assert not _same(weights.tensors, changed)  # the comparison can fail


@pytest.mark.parametrize("name", ["a.safetensors", "a.pth", "a.onnx"])
def test_the_recipe_is_kept_and_its_file_taken_as_it_is(tmp_path: Path, name: str) -> None:
    state, path, recipe = {"module.w": torch.ones(2)}, tmp_path / name, json.dumps({"format": 1})
    if name == "a.safetensors":
        save_file(state, path, metadata={"format": "pt", "densify": recipe})
    elif name == "a.onnx":
        _save_onnx(path, state, densify=recipe)
    else:
        torch.save({"state_dict": state, "densify": recipe}, path)
    weights = read_weights(path)
    assert weights.recipe == recipe
    assert _same(weights.tensors, state)


def test_tensors_can_be_changed_without_changing_the_file(tmp_path: Path) -> None:
    state = _state()
    torch.save(state, tmp_path / "a.pth")
    save_file(state, tmp_path / "a.safetensors")
    for path in (tmp_path / "a.pth", tmp_path / "a.safetensors"):
        before = path.read_bytes()
        read_weights(path).tensors["conv.weight"].add_(1)
        assert path.read_bytes() == before


def test_bfloat16_initializers(tmp_path: Path) -> None:
    values = torch.randn(3, 4).to(torch.bfloat16)
    raw = values.view(torch.int16).numpy().tobytes()
    tensor = helper.make_tensor("w", TensorProto.BFLOAT16, [3, 4], raw, raw=True)
    onnx.save(helper.make_model(helper.make_graph([], "net", [], [], [tensor])), tmp_path / "a.onnx")
    assert torch.equal(read_weights(tmp_path / "a.onnx").tensors["w"], values)


@pytest.mark.parametrize("wrapping", ["state_dict", "model", "model_state_dict", "state_dict_ema", "model_ema"])
@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod.", "module._orig_mod.", "_orig_mod.module."])
def test_wrappings_and_prefixes_are_taken_off(tmp_path: Path, wrapping: str, prefix: str) -> None:
    state = _state()
    content = {"epoch": 3, wrapping: OrderedDict((prefix + name, value) for name, value in state.items())}
    torch.save(content, tmp_path / "a.pth")
    weights = read_weights(tmp_path / "a.pth")
    assert _same(weights.tensors, state)
    assert weights.unwrapped[0] == wrapping
    assert "".join(weights.unwrapped[1:]) == prefix


def test_plain_weights_before_their_average_unless_asked(tmp_path: Path) -> None:
    plain, average = {"w": torch.zeros(1)}, {"w": torch.ones(1)}
    torch.save({"state_dict_ema": average, "state_dict": plain, "args": argparse.Namespace(lr=1)}, tmp_path / "a.pth")
    assert read_weights(tmp_path / "a.pth").tensors["w"] == 0
    assert read_weights(tmp_path / "a.pth", key="state_dict_ema").tensors["w"] == 1
    with pytest.raises(CheckpointError, match="no entry 'net'; it has the entries state_dict_ema, state_dict, args"):
        read_weights(tmp_path / "a.pth", key="net")


def test_a_prefix_of_some_names_stays(tmp_path: Path) -> None:
    save_file({"module.w": torch.ones(1), "v": torch.ones(2)}, tmp_path / "a.safetensors")
    assert set(read_weights(tmp_path / "a.safetensors").tensors) == {"module.w", "v"}


def test_old_densenet_names(tmp_path: Path) -> None:
    """torchvision renames them while it loads its own files; so must we."""
    name = "features.denseblock1.denselayer12.{}.weight"
    torch.save({name.format("norm.1"): torch.ones(1), name.format("conv.2"): torch.ones(2)}, tmp_path / "a.pth")
    assert set(read_weights(tmp_path / "a.pth").tensors) == {name.format("norm1"), name.format("conv2")}


def test_trained_parameters_come_without_gradient(tmp_path: Path) -> None:
    torch.save(dict(Net().named_parameters()), tmp_path / "a.pth")
    assert not any(tensor.requires_grad for tensor in read_weights(tmp_path / "a.pth").tensors.values())


# ---- what is refused -----------------------------------------------------------------------------


class Evil:
    """Makes a folder when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (str(self.path),)


def _pickle(protocol: int) -> Callable[[object, Path], object]:
    return lambda content, path: path.write_bytes(pickle.dumps(content, protocol=protocol))


_SAVERS: dict[str, Callable[[object, Path], object]] = {
    "zip": lambda content, path: torch.save(content, path),
    "zip, protocol 4": lambda content, path: torch.save(content, path, pickle_protocol=4),
    "old format": lambda content, path: torch.save(content, path, _use_new_zipfile_serialization=False),
    **{f"pickle {protocol}": _pickle(protocol) for protocol in range(6)},
}


@pytest.mark.parametrize("saver", list(_SAVERS))
def test_malicious_pickles_are_named_and_not_run(tmp_path: Path, saver: str) -> None:
    path, mark = tmp_path / "a.pth", tmp_path / "pwned"
    _SAVERS[saver]({"state_dict": {"w": torch.ones(1)}, "extra": Evil(mark)}, path)
    with pytest.raises(UnsafeError, match=rf"it calls {os.name}\.mkdir\..*torch\.save\(model\.state_dict\(\)") as error:
        read_weights(path)
    assert error.value.exit_status == 4
    assert not mark.exists()
    if saver.startswith("pickle"):
        pickle.loads(path.read_bytes())
    else:
        torch.load(path, weights_only=False)
    assert mark.exists()  # the trap works: this is what was not done


@pytest.mark.parametrize("saver", list(_SAVERS))
def test_pickled_modules_are_unsafe(tmp_path: Path, saver: str) -> None:
    _SAVERS[saver](nn.Sequential(nn.Conv2d(1, 1, 1)), tmp_path / "a.pth")
    with pytest.raises(
        UnsafeError, match=r"torch\.nn\.modules\.container\.Sequential, torch\.nn\.modules\.conv\.Conv2d"
    ):
        read_weights(tmp_path / "a.pth")


def test_names_hidden_in_the_memo_are_found(tmp_path: Path) -> None:
    """Protocol 4 names a module once and refers back to it."""
    _pickle(4)([Evil(tmp_path / "a"), os.rmdir, Evil(tmp_path / "b"), os.unlink], tmp_path / "a.pth")
    with pytest.raises(UnsafeError, match=rf"{os.name}\.mkdir, {os.name}\.rmdir, {os.name}\.unlink\. If"):
        read_weights(tmp_path / "a.pth")


def test_torchscript_is_unsafe(tmp_path: Path) -> None:
    """torch tells it by this entry; torch.jit.script itself is on its way out."""
    with zipfile.ZipFile(tmp_path / "a.pt", "w") as archive:
        for name in ("net/data.pkl", "net/constants.pkl", "net/code/net.py"):
            archive.writestr(name, b"")
    with pytest.raises(UnsafeError, match=r"TorchScript archive.*torch\.jit\.load"):
        read_weights(tmp_path / "a.pt")


def test_compressed_archives_are_refused(tmp_path: Path) -> None:
    torch.save({"w": torch.zeros(1000)}, tmp_path / "a.pth")
    with zipfile.ZipFile(tmp_path / "a.pth") as plain, zipfile.ZipFile(tmp_path / "b.pth", "w", 8) as packed:
        for entry in plain.infolist():
            packed.writestr(entry.filename, plain.read(entry))
    with pytest.raises(CheckpointError, match="compressed archive"):
        read_weights(tmp_path / "b.pth")


@pytest.mark.parametrize("suffix", [".pth", ".safetensors", ".onnx"])
@pytest.mark.parametrize("content", [b"", b"hello, this is text", b"PK\x03\x04 no archive", bytes(1000)])
def test_empty_and_foreign_files(tmp_path: Path, suffix: str, content: bytes) -> None:
    path = tmp_path / f"a{suffix}"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=rf"a\{suffix}: .*copy or download"):
        read_weights(path)


@pytest.mark.parametrize("suffix", [".pth", ".old.pth", ".safetensors", ".onnx"])
def test_truncated_and_damaged_files_never_leak_another_error(tmp_path: Path, suffix: str) -> None:
    """Cut off anywhere: a CheckpointError. Some bytes changed: read all the same, or one of densify's errors."""
    path = tmp_path / f"a{suffix}"
    if suffix == ".safetensors":
        save_file(_state(), path)
    elif suffix == ".onnx":
        _save_onnx(path, _state())
    else:
        torch.save(_state(), path, _use_new_zipfile_serialization=suffix == ".pth")
    whole, rng = path.read_bytes(), np.random.default_rng(0)
    for length in rng.integers(len(whole), size=60):
        path.write_bytes(whole[:length])
        message = _refusal(path, CheckpointError)
        # protobuf is complete after any of its fields; what is missing then shows when it is fitted
        assert message or suffix == ".onnx"
        assert "weights_only" not in message
    refused = 0
    for _ in range(60):
        damaged = bytearray(whole)
        for at in rng.integers(len(damaged), size=20):
            damaged[at] = rng.integers(256)
        path.write_bytes(damaged)
        refused += bool(_refusal(path, DensifyError))
    assert refused > 10


def _refusal(path: Path, kind: type[DensifyError]) -> str:
    """The message with which a file is refused, empty where it is read."""
    try:
        read_weights(path)
    except kind as error:
        return str(error)
    return ""


def test_missing_file_and_unknown_suffix(tmp_path: Path) -> None:
    (tmp_path / "a.h5").write_bytes(b"x")
    with pytest.raises(UsageError, match="there is no such file"):
        read_weights(tmp_path / "a.pth")
    with pytest.raises(UsageError, match="there is no such file"):
        read_weights(tmp_path)
    with pytest.raises(UsageError, match=r"it reads \.safetensors"):
        read_weights(tmp_path / "a.h5")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([torch.ones(1)], "an object of class list"),
        (torch.ones(1), "an object of class Tensor"),
        ({}, "holds no tensors"),
        ({"epoch": 1, "net": {"w": torch.ones(1)}}, "besides tensors there are epoch, net"),
        ({1: torch.ones(1)}, "not a state_dict but the entries 1"),
        ({"w": torch.ones(2, 2).to_sparse()}, "w holds no plain numbers"),
        ({"w": torch.ones(2, device="meta")}, "w holds no plain numbers"),
    ],
)
def test_files_without_a_state_dict(tmp_path: Path, content: object, message: str) -> None:
    torch.save(content, tmp_path / "a.pth")
    with pytest.raises(CheckpointError, match=message):
        read_weights(tmp_path / "a.pth")


# ---- ONNX with data beside it --------------------------------------------------------------------


def _external(folder: Path, location: str) -> Path:
    tensor = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[2], data_location=TensorProto.EXTERNAL)
    entry = tensor.external_data.add()
    entry.key, entry.value = "location", location
    onnx.save(helper.make_model(helper.make_graph([], "net", [], [], [tensor])), folder / "a.onnx")
    return folder / "a.onnx"


def test_external_data(tmp_path: Path) -> None:
    inside = tmp_path / "inside"
    inside.mkdir()
    for folder in (inside, tmp_path):
        (folder / "w.bin").write_bytes(np.array([1, 2], np.float32).tobytes())
    assert read_weights(_external(inside, "w.bin")).tensors["w"].tolist() == [1, 2]
    (inside / "link.bin").symlink_to(tmp_path / "w.bin")
    for location in ("../w.bin", str(tmp_path / "w.bin"), "link.bin"):
        with pytest.raises(UnsafeError, match="outside its own folder"):
            read_weights(_external(inside, location))
    with pytest.raises(CheckpointError, match=r"its data file gone\.bin is missing"):
        read_weights(_external(inside, "gone.bin"))
