"""The five commands, end to end, on the digit recogniser and small torchvision models."""

from __future__ import annotations

import importlib.util
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from cli import DIGITS, MODELS, SCENE, WEIGHTS, densify, follow
from safetensors.torch import load_file
from torch import Tensor, nn

from densify.checkpoint import recipe_of, write_state
from densify.weights import read_weights

LAWS = {"weights", "head", "grid", "size", "phases"}


@pytest.fixture(scope="module")
def dense(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The dense digit recogniser in each format, by suffix."""
    folder = tmp_path_factory.mktemp("dense")
    files = {suffix: folder / f"dense{suffix}" for suffix in (".safetensors", ".pth", ".onnx")}
    outputs = [part for file in files.values() for part in ("-o", file)]
    made = densify("convert", DIGITS, "--weights", WEIGHTS, "--start", "pool2", *outputs, "--json", "-q")
    assert made.status == 0, made.stderr
    assert made.stderr == ""
    document = made.document
    assert document["written"] == [str(file) for file in files.values()]
    assert document["chosen"] == ["pool2", "pool3"]
    assert document["lattices"] == {"output": [{"stride": 4, "offset": 0}] * 2}
    assert document["positions"]["output"][0] == {"step": 2, "first": 15.5, "receptive_field": 46}
    assert {check["law"] for check in document["checks"]} == LAWS | {"onnx"}
    assert sorted(path.name for path in folder.iterdir()) == sorted(file.name for file in files.values())
    return files


@pytest.fixture(scope="module")
def tuned(dense: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dense file of which training changed two parameters."""
    weights = read_weights(dense[".safetensors"])
    state = dict(weights.tensors)
    state["fc2.bias"] = state["fc2.bias"] + 0.25
    state["conv1.weight"] = state["conv1.weight"] * 1.5
    path = tmp_path_factory.mktemp("tuned") / "tuned.safetensors"
    write_state(state, path, recipe_of(weights))
    return path


def digit_class() -> nn.Module:
    """The untouched original, imported as one does without densify."""
    spec = importlib.util.spec_from_file_location("plain_digits", MODELS / "digits.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    model: nn.Module = module.DigitNet()
    return model.eval()


def same(a: Mapping[str, Tensor], b: Mapping[str, Tensor]) -> bool:
    return list(a) == list(b) and all(torch.equal(a[name], b[name]) for name in a)


# ---- convert -------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", [".safetensors", ".pth", ".onnx"])
def test_a_dense_file_is_a_checkpoint_of_the_original(dense: dict[str, Path], suffix: str) -> None:
    from densify.cli.models import read_file

    weights = read_file(dense[suffix])
    source = load_file(WEIGHTS)
    assert weights.tensors.keys() == source.keys()
    assert all(torch.equal(weights.tensors[name], source[name]) for name in source)
    recipe = recipe_of(weights)
    assert recipe.kind == "dense"
    assert recipe.origin.model in ("models/digits.py:digit_net", "digits.py:digit_net")  # by the working folder
    assert recipe.origin.mean == (0.5, 0.5, 0.5)


def test_convert_shows_the_checks_and_what_to_do_next(tmp_path: Path) -> None:
    out = tmp_path / "a dense net.safetensors"
    made = densify("convert", DIGITS, "--weights", WEIGHTS, "--layer", "pool2", "--layer", "pool3", "-o", out)
    assert made.status == 0
    assert made.stdout.splitlines()[-1] == "PASSED: 11 checks"
    for words in ("grid", "4x4", "1x11x4x4", "tolerance", "random 32x32"):
        assert words in made.stdout
    assert f"wrote {out}" in made.stderr
    commands = [line.strip() for line in made.stderr.splitlines() if line.startswith("  densify")]
    assert len(commands) == 2
    for command in commands:
        done = densify(*shlex.split(command)[1:])
        assert done.status == 0, done.stderr
    assert (tmp_path / "a dense net-dpoa.safetensors").exists()


def test_samples_are_all_that_is_verified_on(tmp_path: Path) -> None:
    made = densify(
        "convert", DIGITS, "--weights", WEIGHTS, "--output-stride", 2, "--sample", SCENE, "--dry-run", "--json",
        "--mean", "0.4,0.5,0.6", "--std", "0.2",
    )  # fmt: skip
    assert made.status == 0
    assert {check["input"] for check in made.document["checks"] if check["law"] == "grid"} == {SCENE}


@pytest.mark.parametrize(
    "options", [["--head-only"], ["--start", "pool3", "--padding", "valid"], ["--output-stride", 4]]
)
def test_other_choices(options: list[str]) -> None:
    made = densify("convert", DIGITS, "--weights", WEIGHTS, *options, "--form", "dilated", "--dry-run", "--json")
    assert made.status == 0, made.stderr
    assert made.document["passed"]


def test_torchvision_with_random_weights_repeats(tmp_path: Path) -> None:
    states = []
    for name in ("a.pth", "b.pth"):
        made = densify(
            "convert", "torchvision:squeezenet1_1", "--model-arg", "num_classes=7", "--init", "random", "--seed", 3,
            "--input-size", "3,64,64", "--output-stride", 8, "-o", tmp_path / name, "-q",
        )  # fmt: skip
        assert made.status == 0, made.stderr
        states.append(read_weights(tmp_path / name).tensors)
    assert same(*states)
    assert states[0]["classifier.1.weight"].shape[0] == 7


def test_the_dtype_of_the_run_is_not_that_of_the_files(tmp_path: Path) -> None:
    out = tmp_path / "dense.safetensors"
    made = densify(
        "convert", DIGITS, "--weights", WEIGHTS, "--start", "pool3", "--dtype", "float64", "-o", out, "--json"
    )
    assert made.status == 0
    assert max(check["relative"] for check in made.document["checks"]) < 1e-12
    assert load_file(out)["fc1.weight"].dtype == torch.float32


@pytest.mark.parametrize("suffix", [".safetensors", ".onnx"])
def test_a_dry_run_checks_and_writes_nothing(tmp_path: Path, suffix: str) -> None:
    out = tmp_path / f"dense{suffix}"
    made = densify("convert", DIGITS, "--weights", WEIGHTS, "--start", "pool2", "-o", out, "--dry-run", "--json")
    assert made.status == 0
    assert made.document["written"] == []
    assert any(check["law"] == "onnx" for check in made.document["checks"]) == (suffix == ".onnx")
    assert not list(tmp_path.iterdir())


def test_a_failed_check_writes_nothing_unless_kept(tmp_path: Path) -> None:
    out = tmp_path / "dense.safetensors"
    arguments = ("convert", DIGITS, "--weights", WEIGHTS, "--start", "pool2", "-o", out, "--rtol", 0)
    failed = densify(*arguments)
    assert failed.status == 1
    assert failed.stdout.splitlines()[-1].startswith("FAILED: ")
    assert "FAIL " in failed.stdout
    assert "nothing was written" in failed.stderr
    assert not list(tmp_path.iterdir())
    kept = densify(*arguments, "--keep-failed")
    assert kept.status == 1
    assert out.exists()
    assert densify(*arguments, "--atol", 1).status == 2  # it exists now
    assert densify(*arguments, "--atol", 1, "--overwrite").status == 0


def test_a_failure_in_onnx_runtime_takes_the_other_files_along(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from densify.onnx import file as onnx_file

    run = onnx_file.OnnxSession.__call__
    monkeypatch.setattr(onnx_file.OnnxSession, "__call__", lambda self, x: [made + 1 for made in run(self, x)])
    outputs = ("-o", tmp_path / "dense.safetensors", "-o", tmp_path / "dense.onnx")
    failed = densify("convert", DIGITS, "--weights", WEIGHTS, "--start", "pool2", *outputs, "--json")
    assert failed.status == 1
    assert not failed.document["passed"]
    assert {check["law"] for check in failed.document["checks"] if not check["passed"]} == {"onnx"}
    assert not list(tmp_path.iterdir())


# ---- inverse -------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", ["fails", "interrupted", "dry run"])
def test_weights_past_2_gib_leave_no_file_behind(tmp_path: Path, case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from densify.onnx import file as onnx_file

    seen = []
    real = onnx_file.OnnxSession.__call__

    def run(self: onnx_file.OnnxSession, x: Any) -> Any:
        seen.append(sorted(path.name for path in self.path.parent.iterdir()))
        assert not [path for path in tmp_path.iterdir() if not path.name.startswith(".")]
        if case == "interrupted":
            raise KeyboardInterrupt
        return [made + (case == "fails") for made in real(self, x)]

    monkeypatch.setattr(onnx_file, "ONE_FILE_LIMIT", 100)
    monkeypatch.setattr(onnx_file.OnnxSession, "__call__", run)
    dry = ["--dry-run"] if case == "dry run" else []
    arguments = ("convert", DIGITS, "--weights", WEIGHTS, "--start", "pool3", "-o", tmp_path / "dense.onnx", *dry)
    assert densify(*arguments).status == {"fails": 1, "interrupted": 130, "dry run": 0}[case]
    assert seen[0] == ["dense.onnx", "dense.onnx.data"]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("suffix", [".safetensors", ".pth", ".onnx"])
def test_the_way_back_from_every_format(dense: dict[str, Path], tmp_path: Path, suffix: str) -> None:
    out = tmp_path / "back.pth"
    back = densify("inverse", dense[suffix], "--trust-code", "-o", out, "--json")
    assert back.status == 0, back.stderr
    assert back.document["changed"] == []
    model = digit_class()
    model.load_state_dict(torch.load(out, weights_only=True)["state_dict"], strict=True)
    assert same(model.state_dict(), torch.load(out, weights_only=True)["state_dict"])
    assert torch.equal(model.state_dict()["fc1.weight"], load_file(WEIGHTS)["fc1.weight"])


def test_what_is_proposed_repeats_the_options_that_it_needs(
    dense: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my nets.py").write_text(
        "from torch import nn\n\ndef net(*, width, name):\n    assert name == 'a b'\n"
        "    return nn.Sequential(nn.Conv2d(2, width, 3), nn.MaxPool2d(2), nn.Conv2d(width, 3, 2))\n"
    )
    net = nn.Sequential(nn.Conv2d(2, 5, 3), nn.MaxPool2d(2), nn.Conv2d(5, 3, 2))
    torch.save(net.state_dict(), tmp_path / "net.pth")
    options = ["--input-size", "2,21,17", "--model-arg", "width=5", "--model-arg", "name='a b'"]
    said = follow("inspect", "my nets.py:net", *options, weights="net.pth")
    assert [words[0] for words in said] == ["plan", "plan", "convert", "verify"]
    assert all(words[1:8] == ["my nets.py:net", *options] for words in said[:3])
    (tmp_path / "dense.safetensors").unlink()
    (tmp_path / "dense-dpoa.safetensors").unlink()
    for choice in (["--layer", "1"], ["--head-only"]):
        how = [] if choice == ["--head-only"] else ["--padding", "valid"]
        (proposed, *_) = follow("plan", "my nets.py:net", *options, *how, *choice, weights="net.pth")
        assert proposed[8:] == [*how, *choice, "--weights", "net.pth", "-o", "dense.safetensors"]
        (tmp_path / "dense.safetensors").unlink()
        (tmp_path / "dense-dpoa.safetensors").unlink()
    said = follow("inspect", dense[".pth"], "--model", DIGITS)
    assert [words[2:4] for words in said] == [["--model", DIGITS]] * 2


def test_inverse_says_what_changed_and_by_how_much(tuned: Path, tmp_path: Path) -> None:
    out = tmp_path / "back.safetensors"
    names = densify("inverse", tuned, "--trust-code", "--dry-run", "--json").document["changed"]
    assert [change["name"] for change in names] == ["conv1.weight", "fc2.bias"]
    assert all(change["largest"] is None for change in names)
    back = densify("inverse", tuned, "--trust-code", "--weights", WEIGHTS, "-o", out, "--json")
    assert back.status == 0, back.stderr
    by_name = {change["name"]: change for change in back.document["changed"]}
    assert by_name["fc2.bias"]["largest"] == pytest.approx(0.25)
    assert by_name["conv1.weight"]["relative"] == pytest.approx(0.5)
    digit_class().load_state_dict(load_file(out), strict=True)
    shown = densify("inverse", tuned, "--trust-code", "--weights", WEIGHTS, "--dry-run")
    assert "2 of 22 tensors changed" in shown.stdout
    assert "fc2.bias" in shown.stdout


def test_inverse_refuses_another_source(dense: dict[str, Path], tuned: Path) -> None:
    failed = densify("inverse", dense[".pth"], "--trust-code", "--weights", tuned, "--dry-run")
    assert failed.status == 3
    assert "not what the network was converted from" in failed.stderr


def test_inverse_to_onnx_runs_the_original_architecture(dense: dict[str, Path], tmp_path: Path) -> None:
    out = tmp_path / "fast.onnx"
    back = densify("inverse", dense[".onnx"], "--trust-code", "-o", out, "--json")
    assert back.status == 0, back.stderr
    runs = [check for check in back.document["checks"] if check["law"] == "onnx"]
    assert len({check["runtime"] for check in runs}) == 2
    assert {tuple(check["expected"][1:]) for check in runs} == {(11,)}
    alone = densify("verify", out, "--trust-code", "--json")
    assert alone.status == 0
    assert {check["law"] for check in alone.document["checks"]} == {"onnx"}
    again = densify("inverse", out, "--trust-code", "--dry-run")
    assert again.status == 2
    assert "original architecture already" in again.stderr


# ---- verify --------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", [".safetensors", ".pth", ".onnx"])
def test_one_dense_file_against_its_own_original(dense: dict[str, Path], tuned: Path, suffix: str) -> None:
    made = densify("verify", dense[suffix], "--trust-code", "--sample", SCENE, "--json")
    assert made.status == 0, made.stderr
    laws = {check["law"] for check in made.document["checks"]}
    assert laws == LAWS | ({"onnx"} if suffix == ".onnx" else set())
    assert densify("verify", tuned, "--trust-code").status == 0  # a fine-tuned one has its own inverse


def test_a_dense_file_and_an_original_in_either_order(dense: dict[str, Path], tuned: Path) -> None:
    original = (DIGITS, "--weights", WEIGHTS)
    assert densify("verify", dense[".safetensors"], *original).status == 0
    assert densify("verify", DIGITS, dense[".safetensors"], *original[1:]).status == 0
    failed = densify("verify", *original, tuned, "--json")
    assert failed.status == 1
    assert {check["law"] for check in failed.document["checks"] if not check["passed"]} == {"grid", "weights"}


def test_two_of_one_kind_have_the_same_outputs(dense: dict[str, Path], tuned: Path, tmp_path: Path) -> None:
    same_kind = densify("verify", dense[".safetensors"], dense[".pth"], "--trust-code", "--json")
    assert same_kind.status == 0
    assert {check["law"] for check in same_kind.document["checks"]} == {"same"}
    assert densify("verify", dense[".safetensors"], tuned, "--trust-code").status == 1
    plain = tmp_path / "plain.pth"
    assert densify("inverse", tuned, "--trust-code", "-o", plain).status == 0
    sample = ("--sample", MODELS / "samples" / "patch.png")
    assert densify("verify", plain, DIGITS, "--weights", WEIGHTS, *sample).status == 1
    assert densify("verify", plain, tuned, "--trust-code").status == 0
    alone = densify("verify", plain, "--trust-code")
    assert alone.status == 2
    assert "is an original" in alone.stderr


def test_an_onnx_file_of_fixed_size_is_run_at_that_size(dense: dict[str, Path], tmp_path: Path) -> None:
    import onnx

    model = onnx.load(dense[".onnx"])
    for dim in model.graph.input[0].type.tensor_type.shape.dim[2:]:
        dim.dim_value = 32
    onnx.save(model, tmp_path / "fixed.onnx")
    made = densify("verify", tmp_path / "fixed.onnx", "--trust-code", "--json")
    assert made.status == 0, made.stderr
    assert {check["input"] for check in made.document["checks"] if check["law"] == "onnx"} == {"random 32x32"}


# ---- inspect and plan ----------------------------------------------------------------------------


def test_inspect_needs_no_weights() -> None:
    shown = densify("inspect", "torchvision:resnet18", "--json", "-q").document
    rows = {row["name"]: row for row in shown["layers"]}
    assert shown["input_size"] == [3, 224, 224]
    assert shown["parameters"] == 11_689_512
    stem = rows["conv1"]
    assert (stem["op"], stem["kernel"], stem["stride"], stem["padding"]) == ("Conv2d", [7, 7], [2, 2], [[3, 3]] * 2)
    assert (stem["output"], stem["step"], stem["receptive_field"]) == ([1, 64, 112, 112], [2, 2], [7, 7])
    strided = [name for name, row in rows.items() if row["strided"]]
    assert strided[:3] == ["conv1", "maxpool", "layer2.0.conv1"]
    assert not any(row["op"].startswith("BatchNorm") for row in rows.values())
    assert stem["flops"] == 2 * 49 * 3 * 64 * 112 * 112
    assert shown["flops"] == sum(row["flops"] for row in rows.values()) == 2 * 1_814_073_344
    text = densify("inspect", "torchvision:resnet18", "-q").stdout
    assert "3.63 GFLOPs" in text
    assert "2 per multiply-addition" in text


def test_inspect_and_plan_take_a_dense_file(dense: dict[str, Path]) -> None:
    shown = densify("inspect", dense[".onnx"], "--trust-code")
    assert shown.status == 0, shown.stderr
    assert "\n* pool1 " in shown.stdout
    planned = densify("plan", dense[".pth"], "--model", DIGITS, "--start", "pool3", "--json")
    assert planned.status == 0
    assert planned.document["chosen"] == ["pool3"]


def test_plan_tells_changes_cost_and_far_side() -> None:
    document = densify("plan", DIGITS, "--start", "pool2", "--json").document
    changes = {change["name"]: change for change in document["changes"]}
    assert changes["pool2"]["stride"] == {"from": [2, 2], "to": [1, 1]}
    assert changes["conv3"]["dilation"] == {"from": [1, 1], "to": [2, 2]}
    assert changes["fc1"]["becomes"] == "convolution"
    assert "conv1" not in changes
    assert document["outputs"][0]["dense"] == [4, 4]
    assert document["outputs"][0]["repeated"] == [3, 3]
    assert document["flops"] == {"original": 2 * 2934144, "dense": 2 * 8460288, "ratio": 8460288 / 2934144}
    assert document["memory"]["original"] == 4 * (32 * 32 * 3 + 2 * 16 * 32 * 32)  # image, convolution, BatchNorm
    assert document["exact"] is True
    shown = densify("plan", DIGITS, "--start", "pool2")
    assert "2.9 times" in shown.stdout
    assert "stride 2 -> 1, dilation 1 -> 2" in shown.stdout


def test_plan_without_a_choice_lists_them_all() -> None:
    document = densify("plan", DIGITS, "--json", "-q").document
    assert [(row["starts"], row["output_stride"]) for row in document["choices"]] == [
        (["pool3"], 4), (["pool2"], 2), (["pool1"], 1),
    ]  # fmt: skip
    for row in document["choices"]:
        for choice in (["--start", row["starts"][0]], ["--output-stride", row["output_stride"]]):
            one = densify("plan", DIGITS, *choice, "--json").document
            assert {name: one[name] for name in row.keys() & one.keys()} == {
                name: row[name] for name in row.keys() & one.keys()
            }
            assert one["chosen"] == row["layers"]
            assert one["flops"]["original"] == document["original"]["flops"]
            assert one["memory"]["original"] == document["original"]["memory"]
    shown = densify("plan", DIGITS)
    assert [line.split() for line in shown.stdout.splitlines() if line.startswith("pool2")] == [
        ["pool2", "2", "4x4", "16", "4", "2.9x", "1.0x"]
    ]
    assert "densify plan" in shown.stderr
    assert shown.stderr.splitlines()[-1].endswith("--start pool3")


def test_plan_tells_the_waste_of_kept_strides() -> None:
    document = densify("plan", DIGITS, "--layer", "pool1", "--json").document
    assert document["wasted"][0] == {"name": "pool2", "axis": 0, "phases": 2, "used": 1}
    assert "uses 1 of 2 phases" in densify("plan", DIGITS, "--layer", "pool1").stdout


# ---- what it looks like --------------------------------------------------------------------------


@pytest.mark.parametrize("columns", [80, 120])
def test_tables_fit_the_terminal(dense: dict[str, Path], columns: int) -> None:
    for arguments in (
        ("verify", dense[".onnx"], "--trust-code", "-v"),
        ("inspect", "torchvision:googlenet"),
        ("plan", "torchvision:resnet50", "--output-stride", "8"),
    ):
        shown = densify(*arguments, columns=columns)
        assert shown.status == 0, shown.stderr
        assert "\x1b" not in shown.stdout
        assert "…" not in shown.stdout
        table = [line for line in shown.stdout.splitlines() if ": " not in line]
        assert max(map(len, table)) <= columns
        assert all(line == line.rstrip() for line in table)
