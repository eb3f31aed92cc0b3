"""The models of libraries that the user installed, torchvision and timm.

Naming one runs no code but the library's own, and nothing is downloaded unless the library's weights are asked for.
"""

from __future__ import annotations

import difflib
import functools
import inspect
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import ModuleType
from typing import Any

from torch import nn

from densify.errors import UsageError
from densify.folders import WEIGHTS, Folder, read_folder

LIBRARIES = ("torchvision", "timm")

# Input size (C, H, W), and mean and std per channel, each as far as it is known.
Preprocessing = tuple[tuple[int, ...] | None, tuple[float, ...] | None, tuple[float, ...] | None]

_SLOW_INIT = ("googlenet", "inception_v3")  # they warn unless told whether to initialise
# What torchvision sets when it loads its own weights, and what a checkpoint file cannot say.
_IMPLIED: dict[str, dict[str, object]] = {
    "googlenet": {"transform_input": True, "aux_logits": False},
    "inception_v3": {"transform_input": True},
    "fcn_resnet50": {"aux_loss": True},
    "fcn_resnet101": {"aux_loss": True},
    "deeplabv3_resnet50": {"aux_loss": True},
    "deeplabv3_resnet101": {"aux_loss": True},
    "deeplabv3_mobilenet_v3_large": {"aux_loss": True},
}
# Arguments by which a builder reads or downloads weights. A recipe or config.json must not: they are only data.
_FETCHING = {
    "torchvision": {"weights", "weights_backbone", "pretrained", "pretrained_backbone"},
    "timm": {
        "model_name", "pretrained", "pretrained_cfg", "pretrained_cfg_overlay", "pretrained_model_args",
        "pretrained_strict", "pretrained_filter_fn", "checkpoint_path", "cache_dir",
    },
}  # fmt: skip


@dataclass(frozen=True)
class Entry:
    """One model of a library.

    Attributes:
        library: "torchvision" or "timm".
        reference: what names it wherever the library is installed, such as "timm:resnet50".
        factory: builds it, with random weights.
        arguments: what the factory is called with, unless told otherwise.
        own: arguments that ask for the library's own weights; None where it has none for this model.
        implied: arguments that those weights set by themselves.
        classes: the number of classes of those weights, where for another the classifier would stay random.
        folder: the folder that named it, with its weights.
    """

    library: str
    reference: str
    factory: Callable[..., object] = field(repr=False, compare=False)
    arguments: Mapping[str, object] = field(default_factory=dict)
    own: Mapping[str, object] | None = None
    implied: Mapping[str, object] = field(default_factory=dict)
    classes: int | None = None
    folder: Folder | None = None

    @property
    def offer(self) -> str:
        """Where its weights may come from besides a file, as part of a message; may be empty."""
        if self.folder is not None:
            return f"the folder holds no {' and no '.join(WEIGHTS)}; "
        return f"--pretrained for {self.library}'s own, which are downloaded; " if self.own is not None else ""

    def downloading(self, given: Mapping[str, object]) -> dict[str, object]:
        """The arguments that build the model with the library's own weights.

        Raises:
            UsageError: there are none, or only some for another number of classes.
        """
        if self.folder is not None:
            raise UsageError(f"{self.folder.path}: the weights of a folder are its own; leave --pretrained out")
        if self.own is None:
            raise UsageError(f"{self.reference}: {self.library} has no weights for it; give some with --weights FILE")
        wanted = given.get("num_classes", self.classes)
        if self.classes is not None and wanted not in (self.classes, 0):
            raise UsageError(
                f"{self.reference}: timm's weights are for {self.classes} classes, and for {wanted} the classifier "
                "would stay random; leave --model-arg num_classes out, or give a trained checkpoint with --weights FILE"
            )
        # The builder sets what is implied, and refuses to be told some of it.
        return {**dict(item for item in given.items() if item not in self.implied.items()), **self.own}

    def advice(self, given: Mapping[str, object]) -> str | None:
        """What to know when the weights come from a file: the inputs' rescaling of torchvision's own GoogLeNet and
        Inception checkpoints is an argument, not a weight."""
        if "transform_input" in self.implied and "transform_input" not in given:
            name = self.reference.partition(":")[2]
            return f"torchvision's own checkpoints of {name} expect --model-arg transform_input=true"
        return None


def registered(library: str, name: str, arguments: Mapping[str, object]) -> tuple[Entry, Preprocessing]:
    """The model of that name in one of LIBRARIES, and what its metadata says of its input.

    Raises:
        UsageError: a library that cannot be imported, a name that it does not know, or arguments that load weights.
    """
    return (_torchvision if library == "torchvision" else _timm)(name, f"{library}:{name}", arguments)


def of_folder(path: Path, arguments: Mapping[str, object]) -> tuple[Entry, Preprocessing]:
    """The model of a folder as timm writes it, and what the folder says of its input; see `densify.folders`.

    Raises:
        UsageError: no config.json, an architecture that timm does not have, or a timm that cannot be imported.
        CheckpointError: a config.json that cannot be read.
    """
    folder = read_folder(path)
    name = folder.architecture
    _check_arguments(str(path), "timm", {**folder.arguments, **arguments})
    entry, _ = _timm(name, f"{path}: timm:{name}", {})
    entry = replace(entry, reference=f"timm:{name}", arguments=folder.arguments, folder=folder, own=None, classes=None)
    return entry, _timm_preprocessing(folder.metadata, {**folder.arguments, **arguments})


def load_as_timm(folder: Folder) -> nn.Module:
    """The model of a folder with its weights, by timm's own loading, which knows the names of older checkpoints.

    Any error is timm's own. Read the weights with densify first, which says what is wrong with a file.
    """
    model: nn.Module = _imported_timm(str(folder.path)).create_model(f"local-dir:{folder.path}", pretrained=True)
    return model


def nearest(name: str, names: Iterable[str]) -> str:
    """What a misspelt name may have meant."""
    known = sorted(names)
    near = difflib.get_close_matches(name, known, n=5, cutoff=0.5) or known[:10]
    return f"the nearest names are {', '.join(near)}" if near else "it defines none"


def _check_arguments(where: str, library: str, arguments: Collection[str]) -> None:
    for name in arguments:
        if name in _FETCHING[library]:
            raise UsageError(
                f"{where}: give weights with --pretrained or --weights FILE, not as a model argument ({name})"
            )


# ---- torchvision ---------------------------------------------------------------------------------


def _torchvision(name: str, reference: str, arguments: Mapping[str, object]) -> tuple[Entry, Preprocessing]:
    try:
        from torchvision import models
    except (ImportError, RuntimeError) as error:
        raise UsageError(
            f"{reference}: torchvision cannot be imported ({error}); install it together with torch, in one command"
        ) from error
    if name not in models.list_models():
        raise UsageError(f"{reference}: torchvision has no model {name!r}; {nearest(name, models.list_models())}")
    _check_arguments(reference, "torchvision", arguments)
    factory = models.get_model_builder(name)
    backbone = {"weights_backbone": None} if "weights_backbone" in inspect.signature(factory).parameters else {}
    init = {"init_weights": True} if name in _SLOW_INIT else {}
    entry = Entry(
        "torchvision",
        reference,
        factory,
        arguments={"weights": None, **backbone, **init},
        own={"weights": "DEFAULT"},
        implied=_IMPLIED.get(name, {}),
    )
    return entry, _torchvision_preprocessing(models.get_model_weights(name))


def _torchvision_preprocessing(weights: Any) -> Preprocessing:
    """That of torchvision's default weights, as far as it is that of a 2-D image model."""
    if not len(weights):
        return None, None, None
    preset = weights.DEFAULT.transforms()
    mean, std = getattr(preset, "mean", None), getattr(preset, "std", None)
    size = getattr(preset, "crop_size", None) or getattr(preset, "resize_size", None)
    if mean is None or std is None or size is None or type(preset).__name__ == "VideoClassification":
        return None, None, None
    height, width = size if len(size) == 2 else (size[0], size[0])
    return (len(mean), height, width), tuple(mean), tuple(std)


# ---- timm ----------------------------------------------------------------------------------------


def _timm(name: str, where: str, arguments: Mapping[str, object]) -> tuple[Entry, Preprocessing]:
    """A model of timm by its name, with a tag for its weights or without (resnet50.a1_in1k, resnet50)."""
    timm = _imported_timm(where)
    architecture, _, tag = name.partition(".")
    if not timm.is_model(architecture):
        raise UsageError(
            f"{where}: timm {timm.__version__} has no model {architecture!r}; "
            f"{nearest(architecture, timm.list_models())}"
        )
    try:
        known = timm.get_pretrained_cfg(name)
    except RuntimeError:
        tags = timm.models.get_arch_pretrained_cfgs(architecture)
        raise UsageError(f"{where}: timm has no weights {tag!r} of {architecture}; {nearest(name, tags)}") from None
    _check_arguments(where, "timm", arguments)
    entry = Entry("timm", f"timm:{name}", functools.partial(timm.create_model, name))
    if known is None:
        return entry, (None, None, None)
    if known.has_weights:
        entry = replace(entry, own={"pretrained": True}, classes=known.num_classes)
    return entry, _timm_preprocessing(known.to_dict(), arguments)


def _imported_timm(where: str) -> ModuleType:
    try:
        import timm
    except (ImportError, RuntimeError) as error:
        raise UsageError(
            f"{where}: needs timm, which cannot be imported ({error}); install it: pip install timm"
        ) from error
    found: ModuleType = timm
    return found


def _timm_preprocessing(metadata: Mapping[str, Any], arguments: Mapping[str, object]) -> Preprocessing:
    """As timm reads its metadata, for a model built with these arguments; mean and std are None where they are for
    another number of channels."""
    from timm.data.config import resolve_data_config

    found: dict[str, Any] = resolve_data_config({"in_chans": 3}, pretrained_cfg=dict(metadata))
    channels, height, width = found["input_size"]
    size: Any = arguments.get("img_size")
    if isinstance(size, int):
        height = width = size
    elif isinstance(size, list | tuple) and len(size) == 2:
        height, width = size
    whole: tuple[Any, ...] = (arguments.get("in_chans", channels), height, width)
    if not all(isinstance(n, int) and n > 0 for n in whole):
        return None, None, None  # the builder will say what is wrong with the arguments
    mean, std = tuple(found["mean"]), tuple(found["std"])
    return (whole, mean, std) if len(mean) == len(std) == whole[0] else (whole, None, None)
