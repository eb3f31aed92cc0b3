"""Model references: what they name, how they are built, and what is said where they name nothing."""

from __future__ import annotations

import hashlib
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision
from torch import Tensor, nn

from densify.errors import CheckpointError, ConversionError, UsageError
from densify.reference import parse_model_args, resolve, runs_code
from densify.weights import Weights

FACTORY = """
from dataclasses import dataclass
from torch import nn
from side import WIDTH

INPUT_SIZE = (1, 28, 30)
MEAN = [0.5]
STD = (0.25,)

class Net(nn.Sequential):
    pass

def small(classes=10, **extra):
    print("hello from the factory")
    return Net(nn.Conv2d(1, WIDTH, 3), nn.Flatten(1), nn.LazyLinear(classes) if extra.get("lazy") else nn.Identity())

def nothing():
    return 3

def broken():
    x = 1
    raise RuntimeError("no such thing")

def leaves():
    raise SystemExit(3)

instance = nn.ReLU()
"""


@pytest.fixture
def factory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    (tmp_path / "nets.py").write_text(FACTORY)
    (tmp_path / "side.py").write_text("WIDTH = 6\n")
    monkeypatch.delitem(sys.modules, "side", raising=False)
    return f"{tmp_path / 'nets.py'}:"


def _same(a: nn.Module, b: nn.Module) -> bool:
    first, second = a.state_dict(), b.state_dict()
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def _weights(model: nn.Module) -> Weights:
    return Weights(
        "a.pth", {name: torch.randn_like(t) if t.is_floating_point() else t for name, t in model.state_dict().items()}
    )


# ---- torchvision ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "size"),
    [("vgg16", (3, 224, 224)), ("inception_v3", (3, 299, 299)), ("efficientnet_b1", (3, 240, 240))],
)
def test_torchvision_metadata(name: str, size: tuple[int, ...]) -> None:
    reference = resolve(f"torchvision:{name}")
    assert reference.kind == "torchvision"
    assert reference.input_size == size
    assert reference.mean == (0.485, 0.456, 0.406)
    assert reference.std == (0.229, 0.224, 0.225)
    assert reference.sha256 is None


def test_every_torchvision_model_resolves_and_none_is_downloaded(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object, **kwargs: object) -> None:
        raise AssertionError("a download nobody asked for")

    monkeypatch.setattr(torch.hub, "load_state_dict_from_url", refuse)
    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", refuse)
    for name in torchvision.models.list_models():
        resolve(f"torchvision:{name}")
    for name in ("googlenet", "inception_v3", "fcn_resnet50", "deeplabv3_mobilenet_v3_large", "densenet121"):
        model = resolve(f"torchvision:{name}").build(meta=True)  # and none warns: warnings are errors here
        assert all(p.is_meta for p in model.parameters())


def test_arguments_reach_the_builder() -> None:
    model = resolve("torchvision:squeezenet1_1", {"num_classes": 7}).build(meta=True)
    assert model.get_parameter("classifier.1.weight").shape[0] == 7
    with pytest.raises(UsageError, match="unexpected keyword argument 'classes'"):
        resolve("torchvision:squeezenet1_1", {"classes": 7}).build(meta=True)
    with pytest.raises(UsageError, match="--pretrained or --weights"):
        resolve("torchvision:squeezenet1_1", {"weights": "DEFAULT"})
    with pytest.raises(UsageError, match=r"not as a model argument \(weights_backbone\)"):
        resolve("torchvision:fcn_resnet50", {"weights_backbone": "DEFAULT"})


def test_unknown_torchvision_name() -> None:
    with pytest.raises(UsageError, match=r"no model 'resnet5O'; the nearest names are .*resnet50"):
        resolve("torchvision:resnet5O")


def test_a_seed_makes_random_weights_repeatable() -> None:
    reference = resolve("torchvision:squeezenet1_1")
    state = torch.get_rng_state()
    first, again, other = (reference.build(seed=seed) for seed in (1, 1, 2))
    assert torch.equal(state, torch.get_rng_state())
    assert _same(first, again)
    assert not _same(first, other)


def test_pretrained_is_what_its_recorded_reference_builds(monkeypatch: pytest.MonkeyPatch) -> None:
    """GoogLeNet's own weights set arguments that a checkpoint cannot say: the recorded reference has to."""
    states: dict[str, Any] = {}

    def made_up(self: Any, *args: object, **kwargs: object) -> dict[str, Tensor]:
        states.setdefault(self.url, torchvision.models.googlenet(weights=None, init_weights=False).state_dict())
        return states[self.url]  # type: ignore[no-any-return]

    monkeypatch.setattr(torchvision.models.GoogLeNet_Weights, "get_state_dict", made_up)
    reference = resolve("torchvision:googlenet")
    assert reference.advice is not None
    assert "transform_input=true" in reference.advice
    model = reference.build(pretrained=True).eval()
    recorded = reference.pretrained()
    assert recorded.advice is None
    again = recorded.build_with(Weights("a.pth", dict(model.state_dict()))).eval()
    x = torch.randn(1, 3, 64, 64)
    assert _same(model, again)
    assert torch.equal(model(x), again(x))
    plain = resolve("torchvision:googlenet", {"aux_logits": False})
    assert _same(plain.build(pretrained=True), model)
    assert not torch.equal(plain.build_with(Weights("a.pth", dict(model.state_dict()))).eval()(x), model(x))


def test_arguments_that_pretrained_weights_do_not_have() -> None:
    with pytest.raises(UsageError, match=r"'num_classes' expected value 1000 but got 10.*--model-arg"):
        resolve("torchvision:squeezenet1_1", {"num_classes": 10}).build(pretrained=True)


@pytest.mark.parametrize("error", [OSError("no route to host"), RuntimeError("invalid hash value")])
def test_a_download_that_fails_is_one_message(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    def fail(self: object, *args: object, **kwargs: object) -> None:
        raise error

    monkeypatch.setattr(torchvision.models.SqueezeNet1_1_Weights, "get_state_dict", fail)
    with pytest.raises(UsageError, match=rf"could not be downloaded \({error}\).*--weights FILE"):
        resolve("torchvision:squeezenet1_1").build(pretrained=True)


# ---- files and packages --------------------------------------------------------------------------


def test_factory_of_a_file(factory: str, capsys: pytest.CaptureFixture[str]) -> None:
    reference = resolve(factory + "small", {"classes": 3})
    assert (reference.kind, reference.input_size, reference.mean, reference.std) == (
        "file",
        (1, 28, 30),
        (0.5,),
        (0.25,),
    )
    assert reference.sha256 == hashlib.sha256(FACTORY.encode()).hexdigest()
    path = list(sys.path)
    model = reference.build()
    assert sys.path == path
    captured = capsys.readouterr()
    assert captured.out == ""  # stdout is for results
    assert captured.err == "hello from the factory\n"
    assert _same(pickle.loads(pickle.dumps(model)), model)
    again = resolve(factory + "small").build()
    assert type(again) is type(model)


def test_a_changed_file_is_imported_anew(factory: str) -> None:
    first = resolve(factory + "small")
    path = Path(factory[:-1])
    path.write_text(FACTORY.replace("(1, 28, 30)", "(1, 8, 8)"))
    second = resolve(factory + "small")
    assert second.input_size == (1, 8, 8)
    assert first.sha256 != second.sha256


def test_factory_of_a_package() -> None:
    reference = resolve("torch.nn:Conv2d", {"in_channels": 1, "out_channels": 2, "kernel_size": 3})
    assert reference.kind == "package"
    assert reference.input_size is None
    assert isinstance(reference.build(), nn.Conv2d)


def test_package_of_the_current_folder(factory: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(Path(factory[:-1]).parent)
    assert resolve("nets:small").input_size == (1, 28, 30)
    monkeypatch.delitem(sys.modules, "nets")


@pytest.mark.parametrize(
    ("reference", "message"),
    [
        ("vgg16", "not a model reference; it has to be torchvision:NAME, timm:NAME, a folder with config.json"),
        (":vgg16", "not a model reference"),
        ("~nobody_of_this_name", "not a model reference"),
        ("x" * 5000, "not a model reference"),
        ("torchvision:nets.py:small", "torchvision has no model 'nets.py:small'"),
        ("torchvision:", "not a model reference"),
        ("nowhere/nets.py:small", "there is no file nowhere/nets.py"),
        ("no_such_package.nets:small", "there is no package or module 'no_such_package'"),
        ("torch.no_such:small", "there is no package or module 'torch.no_such'"),
        ("torch.nn:Conv2D", "there is no 'Conv2D' in it; the nearest names are .*Conv2d"),
        ("torch:__version__", "is no factory"),
    ],
)
def test_references_that_name_nothing(reference: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        resolve(reference)


@pytest.mark.parametrize(
    ("name", "arguments", "error", "message"),
    [
        ("smal", {}, UsageError, "the nearest names are small"),
        ("instance", {}, UsageError, "is no factory"),
        ("nothing", {}, ConversionError, "returned int; it has to return a torch.nn.Module"),
        ("broken", {}, ConversionError, r"failed \(nets.py, line 22\): RuntimeError: no such thing"),
        ("leaves", {}, ConversionError, r"failed \(nets.py, line 25\): SystemExit: 3"),
        ("broken", {"depth": 3}, UsageError, "unexpected keyword argument 'depth'; it takes no arguments"),
    ],
)
def test_factories_that_fail(
    factory: str, name: str, arguments: dict[str, object], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        resolve(factory + name, arguments).build()


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("x = 1\nx = 1 / 0\n", r"failed \(bad.py, line 2\): ZeroDivisionError"),
        ("def f(:\n", r"failed \(bad.py, line 1\): SyntaxError"),
        (
            "import no_such_module\n",
            r"failed \(bad.py, line 1\): ModuleNotFoundError: No module named 'no_such_module'",
        ),
        ("raise SystemExit\n", r"failed \(bad.py, line 1\): SystemExit"),
        ("net = print\nINPUT_SIZE = 224\n", r"INPUT_SIZE is 224; it has to be a tuple of numbers"),
        ("net = print\nINPUT_SIZE = (3, 0, 4)\n", r"it has to be \(channels, height, width\)"),
        ("net = print\nSTD = (1, 0, 1)\n", r"STD is \(1, 0, 1\); it divides"),
        ("net = print\nMEAN = ('a',)\n", r"MEAN is \('a',\); it has to be a tuple of numbers"),
    ],
)
def test_files_that_cannot_be_used(tmp_path: Path, code: str, message: str) -> None:
    (tmp_path / "bad.py").write_text(code)
    modules = set(sys.modules)
    with pytest.raises(UsageError, match=message):
        resolve(f"{tmp_path / 'bad.py'}:net")
    assert not message.startswith("failed") or set(sys.modules) == modules


def test_an_interrupt_is_no_error_of_the_file(tmp_path: Path) -> None:
    (tmp_path / "slow.py").write_text("raise KeyboardInterrupt\n")
    with pytest.raises(KeyboardInterrupt):
        resolve(f"{tmp_path / 'slow.py'}:net")


def test_pretrained_is_torchvisions(factory: str) -> None:
    with pytest.raises(UsageError, match="--pretrained is for torchvision:NAME and timm:NAME"):
        resolve(factory + "small").build(pretrained=True)


# ---- building with weights -----------------------------------------------------------------------


class Counting(nn.Module):
    """Counts how it was built, on which device."""

    built: list[str] = []  # noqa: RUF012

    def __init__(self, grid: str = "none") -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 2, 3)
        Counting.built.append(self.conv.weight.device.type)
        if grid == "buffer":
            self.register_buffer("grid", torch.arange(3), persistent=False)
        if grid == "attribute":
            self.grid = [torch.arange(3)]
        if grid == "item":
            self.step = torch.arange(3)[1].item()


@pytest.mark.parametrize(
    ("grid", "devices"),
    [("none", ["meta"]), ("buffer", ["meta", "cpu"]), ("attribute", ["meta", "cpu"]), ("item", ["cpu"])],
)
def test_weights_fill_a_model_built_without_numbers_where_possible(
    monkeypatch: pytest.MonkeyPatch, grid: str, devices: list[str]
) -> None:
    monkeypatch.setattr(Counting, "built", [])
    monkeypatch.setattr(nn, "Counting", Counting, raising=False)
    reference = resolve("torch.nn:Counting", {"grid": grid})
    weights = _weights(nn.ModuleDict({"conv": nn.Conv2d(1, 2, 3)}))
    model = reference.build_with(weights)
    assert Counting.built[-len(devices) :] == devices
    assert not any(t.is_meta for t in (*model.parameters(), *model.buffers()))
    assert model.get_parameter("conv.weight").data_ptr() == weights.tensors["conv.weight"].data_ptr()
    if grid == "attribute":
        assert isinstance(model, Counting)
        assert not model.grid[0].is_meta


def test_weights_that_do_not_fit(factory: str) -> None:
    with pytest.raises(CheckpointError, match=r"a\.pth does not fit the model"):
        resolve(factory + "small").build_with(Weights("a.pth", {"x": torch.ones(1)}))


# ---- model arguments -----------------------------------------------------------------------------


def test_parse_model_args() -> None:
    texts = [
        "a=10",
        "b=0.5",
        "c=[1, 2]",
        "d=TRUE",
        "e=false",
        "f=None",
        "g=none",
        "h=resnet",
        "i='3'",
        "j=x=y",
        "k=",
        "l=((((",
    ]
    assert parse_model_args(texts) == {
        "a": 10,
        "b": 0.5,
        "c": [1, 2],
        "d": True,
        "e": False,
        "f": None,
        "g": None,
        "h": "resnet",
        "i": "3",
        "j": "x=y",
        "k": "",
        "l": "((((",
    }


@pytest.mark.parametrize("texts", [["a"], ["=3"], ["1a=3"], ["a b=3"], ["a=1", "a=2"]])
def test_parse_model_args_refuses(texts: list[str]) -> None:
    with pytest.raises(UsageError, match="--model-arg"):
        parse_model_args(texts)


def test_values_are_never_run() -> None:
    assert parse_model_args(["a=__import__('os')"]) == {"a": "__import__('os')"}


def test_runs_code_looks_at_the_text_alone() -> None:
    assert not runs_code("torchvision:vgg16")
    assert not runs_code("timm:resnet50")
    assert runs_code("nowhere/nets.py:small")
    assert runs_code("torchvision.models:vgg16")


def test_importing_this_module_does_not_import_a_library_of_models() -> None:
    code = "import sys, densify.reference; sys.exit('torchvision' in sys.modules or 'timm' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_a_librarys_prefix_never_leads_to_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`runs_code` calls it safe, so that a recipe may name it: nothing behind the prefix may run."""
    for library in ("torchvision", "timm"):
        (tmp_path / f"{library}:x").mkdir()
        (tmp_path / f"{library}:x" / "net.py").write_text("raise SystemExit('this ran')\n")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError, match="has no model"):
        resolve("torchvision:x/net.py:net")
    with pytest.raises(UsageError, match=r"has no model|needs timm"):
        resolve("timm:x/net.py:net")


def test_timm_need_not_be_installed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)
    (tmp_path / "config.json").write_text('{"architecture": "resnet50"}')
    for reference in ("timm:resnet50", str(tmp_path)):
        with pytest.raises(UsageError, match=r"needs timm, which cannot be imported .*; install it: pip install timm"):
            resolve(reference)


def test_a_file_keeps_no_absolute_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "nets").mkdir()
    path = tmp_path / "nets" / "net.py"
    path.write_text("from torch import nn\ndef net():\n    return nn.Identity()\n")
    monkeypatch.chdir(tmp_path)
    assert resolve(f"{path}:net").portable == "nets/net.py:net"
    assert resolve("nets/net.py:net").portable == "nets/net.py:net"
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert resolve(f"{path}:net").portable == "net.py:net"
