"""What torchvision, timm and segmentation_models_pytorch answer when they are asked for output stride 8.

Each is compared with its own build of the same network, with the same weights: the deepest feature map at output
stride 8 (or what the option gives), on the grid of the original's.
"""

from __future__ import annotations

import contextlib
import io
import warnings
from collections.abc import Callable
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch
from laws.alive import enliven, images, relative_error
from torch import Tensor, nn

PEERS = ("torchvision", "timm", "segmentation-models-pytorch")

Run = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Answer:
    """What a peer made of a network.

    Attributes:
        verdict: "equal", "error", "refused", "ignored" (the option has no effect), "no option" or "not there".
        error: largest relative error on the original's grid, where there is one.
        note: the peer's own words, or what came out.
    """

    verdict: str
    error: float | None = None
    note: str = ""


def timm_name(name: str) -> str | None:
    """timm's name of one of torchvision's networks, None where it has none."""
    if name.startswith("regnet_"):
        family, size = name[:8].replace("_", ""), name[9:]
        tenths = 10 * float(size[:-2].replace("_", ".")) if size.endswith("gf") else float(size[:-2]) / 100
        return f"{family}_{round(tenths):03d}"
    exact = {
        "maxvit_t": "maxvit_tiny_tf_224",
        "mnasnet0_5": "mnasnet_050",
        "mnasnet0_75": "mnasnet_075",
        "mnasnet1_0": "mnasnet_100",
        "mobilenet_v2": "mobilenetv2_100",
        "mobilenet_v3_large": "mobilenetv3_large_100",
        "mobilenet_v3_small": "mobilenetv3_small_100",
    }
    if name in exact:
        return exact[name]
    families = ("resnet", "resnext", "wide_resnet", "densenet", "efficientnet", "inception", "vgg", "convnext")
    return name.replace("efficientnet_v2", "efficientnetv2") if name.startswith(families) else None


def smp_name(name: str) -> str | None:
    """The encoder that segmentation_models_pytorch has of one of torchvision's networks: its own, else timm's."""
    from segmentation_models_pytorch.encoders import encoders

    own = name.replace("efficientnet_b", "efficientnet-b")
    theirs = timm_name(name)
    return own if own in encoders else theirs and f"tu-{theirs}"


def answers(name: str, model: nn.Module, size: tuple[int, int]) -> dict[str, dict[str, Any]]:
    """Every peer's answer for one image network.

    Args:
        name: torchvision's name.
        model: torchvision's network, its weights alive.
        size: height and width of the images to compare on.
    """
    asked = {"torchvision": lambda: _torchvision(name, model, size)}
    asked["timm"] = lambda: _timm(name, size)
    asked["segmentation-models-pytorch"] = lambda: _smp(name, size)
    found = {}
    for peer, ask in asked.items():
        try:
            version(peer)
        except PackageNotFoundError:
            continue
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            found[peer] = asdict(_guarded(ask))
    return found


def _guarded(ask: Callable[[], Answer]) -> Answer:
    """Peers refuse by all kinds of exceptions, bare asserts among them."""
    try:
        with torch.no_grad():
            return ask()
    except Exception as error:
        words = str(error).strip().split("\n")[0]
        if isinstance(error, TypeError) and "unexpected keyword argument" in words:
            return Answer("no option", note=words)
        return Answer("refused", note=f"{type(error).__name__}: {words}" if words else type(error).__name__)


def _torchvision(name: str, model: nn.Module, size: tuple[int, int]) -> Answer:
    import torchvision

    mobile = name.startswith("mobilenet_v3")
    options: dict[str, Any] = {"dilated": True} if mobile else {"replace_stride_with_dilation": [False, True, True]}
    theirs = torchvision.models.get_model(name, weights=None, **options).eval()
    theirs.load_state_dict(model.state_dict(), strict=True, assign=True)
    answer = judge(_trunk(model, mobile), _trunk(theirs, mobile), model, size)
    return answer if not mobile else Answer(answer.verdict, answer.error, "dilated=True: output stride 16")


def _trunk(model: nn.Module, mobile: bool) -> nn.Module:
    """The layers before the pooling of a torchvision network that has an option for dilation."""
    return model.get_submodule("features") if mobile else nn.Sequential(*list(model.children())[:-2])


def _timm(name: str, size: tuple[int, int]) -> Answer:
    theirs = timm_name(name)
    if theirs is None:
        return Answer("not there")
    import timm

    if name.startswith("maxvit"):
        size = (224, 224)
    features = False
    try:
        dense = timm.create_model(theirs, pretrained=False, output_stride=8).eval()
    except TypeError:  # some networks of timm have the option only where their maps are asked for
        features = True
        dense = timm.create_model(theirs, pretrained=False, output_stride=8, features_only=True).eval()
    made = timm.create_model(theirs, pretrained=False, features_only=features)
    plain = enliven(made, (4, 3, *_at_least(name, size)))
    dense.load_state_dict(plain.state_dict(), strict=True, assign=True)
    return judge(_deepest(plain, features), _deepest(dense, features), plain, size)


def _deepest(model: Any, features: bool) -> Run:
    """What computes a timm network's last feature map."""
    run: Run = (lambda x: model(x)[-1]) if features else model.forward_features
    return run


def _smp(name: str, size: tuple[int, int]) -> Answer:
    theirs = smp_name(name)
    if theirs is None:
        return Answer("not there")
    from segmentation_models_pytorch.encoders import get_encoder

    dense = get_encoder(theirs, weights=None, output_stride=8).eval()
    plain = enliven(get_encoder(theirs, weights=None), (4, 3, *_at_least(name, size)))
    dense.load_state_dict(plain.state_dict(), strict=True, assign=True)
    return judge(lambda x: plain(x)[-1], lambda x: dense(x)[-1], plain, size)


def _at_least(name: str, size: tuple[int, int]) -> tuple[int, int]:
    """Statistics are measured where enough samples are left at the end; a VGG of timm ends in a 7 x 7 window."""
    least = 224 if name.startswith("vgg") else 96
    return max(size[0], least), max(size[1], least)


def judge(plain: Run, dense: Run, owner: nn.Module, size: tuple[int, int]) -> Answer:
    """Compare two maps on the grid of the first, as docs/design.md defines equal.

    Args:
        plain, dense: what computes the original's map and the dense one.
        owner: holds the original's parameters, which are made float64 for its own error.
        size: height and width of the images.
    """
    x = images((1, 3, *size), 5)
    expected, made = plain(x), dense(x)
    steps = [round(big / small) for big, small in zip(made.shape[2:], expected.shape[2:], strict=True)]
    if made.shape == expected.shape:
        return Answer("ignored", note="the option is accepted and has no effect")
    sampled = made[..., :: steps[0], :: steps[1]]
    if sampled.shape != expected.shape:
        return Answer("error", note=f"a map of {tuple(made.shape[2:])} where the original has {expected.shape[2:]}")
    error = relative_error(sampled, expected)
    if error <= 1e-5:
        return Answer("equal", error)
    return Answer("equal" if error <= 10 * own_error(plain, owner, x) else "error", error)


def own_error(run: Run, owner: nn.Module, x: Tensor) -> float:
    """The error of a network in float32 against itself in float64; the owner, made float64 and back, is as it was."""
    made = run(x)
    try:
        owner.double()
        return relative_error(made, run(x.double()))
    finally:
        owner.float()
