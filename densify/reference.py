"""MODEL references: `torchvision:NAME`, `path/to/file.py:factory`, `package.module:factory`.

The last two run the code that they name; `runs_code` tells without running any. Nothing is downloaded
unless `build(pretrained=True)` asks for it.
"""

from __future__ import annotations

import ast
import contextlib
import difflib
import inspect
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from densify.errors import ConversionError, DensifyError, UsageError
from densify.factories import code_of, import_file, import_package, place, told
from densify.fit import load_into
from densify.weights import Weights

_FORMS = "torchvision:NAME, path/to/file.py:factory or package.module:factory"
_WORDS: dict[str, bool | None] = {"true": True, "false": False, "none": None}
_SLOW_INIT = ("googlenet", "inception_v3")  # they warn unless told whether to initialise
# What torchvision sets when it loads its own weights, and what a checkpoint file cannot say.
_PRETRAINED: dict[str, dict[str, object]] = {
    "googlenet": {"transform_input": True, "aux_logits": False},
    "inception_v3": {"transform_input": True},
    "fcn_resnet50": {"aux_loss": True},
    "fcn_resnet101": {"aux_loss": True},
    "deeplabv3_resnet50": {"aux_loss": True},
    "deeplabv3_resnet101": {"aux_loss": True},
    "deeplabv3_mobilenet_v3_large": {"aux_loss": True},
}


@dataclass(frozen=True)
class ModelReference:
    """A model that can be built again.

    Attributes:
        kind: "torchvision", "file" or "package".
        text: the reference as it was given.
        arguments: what the factory is called with.
        input_size: the reference size (C, spatial ...) in samples, where the model's metadata tells it:
            torchvision's, or the constant INPUT_SIZE of the factory's module.
        mean, std: preprocessing per channel, in units of [0, 1], likewise (MEAN, STD).
        sha256: of a factory file.
    """

    kind: str
    text: str
    arguments: dict[str, object]
    factory: Callable[..., object] = field(repr=False, compare=False)
    input_size: tuple[int, ...] | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    sha256: str | None = None
    folder: Path | None = field(default=None, repr=False, compare=False)

    @property
    def name(self) -> str:
        """The factory's name."""
        return self.text.rpartition(":")[2]

    @property
    def portable(self) -> str:
        """The reference as a file may keep it: an absolute path would tell of this machine, and lead nowhere on
        another. One under the working folder becomes relative, of any other the file's name is left."""
        path, _, factory = self.text.rpartition(":")
        if self.kind != "file" or not Path(path).is_absolute():
            return self.text
        here = Path.cwd()
        known = Path(path).relative_to(here).as_posix() if Path(path).is_relative_to(here) else Path(path).name
        return f"{known}:{factory}"

    @property
    def advice(self) -> str | None:
        """What to know when the weights come from a file: the inputs' rescaling of torchvision's own GoogLeNet and
        Inception checkpoints is an argument, not a weight."""
        implied = _PRETRAINED.get(self.name, {}) if self.kind == "torchvision" else {}
        if "transform_input" in implied and "transform_input" not in self.arguments:
            return f"torchvision's own checkpoints of {self.name} expect --model-arg transform_input=true"
        return None

    def pretrained(self) -> ModelReference:
        """The reference with the arguments that torchvision's pretrained weights imply, those given first.

        This is the one to record: built anew without weights, it takes what `build(pretrained=True)` returned.
        """
        self._check_torchvision()
        return replace(self, arguments={**_PRETRAINED.get(self.name, {}), **self.arguments})

    def build(self, meta: bool = False, pretrained: bool = False, seed: int | None = None) -> nn.Module:
        """The model, in the mode in which its factory leaves it.

        torchvision's models get random weights, a backbone's included, unless `pretrained`. A model whose
        checkpoint expects `transform_input` (GoogLeNet, Inception) needs it in `arguments`, see `advice`.

        Args:
            meta: build on the meta device: quick, and without memory or numbers.
            pretrained: with torchvision's own weights, downloaded where they are not in its cache.
            seed: makes random weights repeatable; the global random state is left as it was.

        Raises:
            UsageError: arguments that the factory does not take, a download that fails.
            ConversionError: a factory that fails or returns no nn.Module.
        """
        arguments = {**self._defaults(), **self.arguments}
        if pretrained:
            self._check_torchvision()
            implied = _PRETRAINED.get(self.name, {}).items()  # the builder sets these, and refuses to be told some
            arguments = {**dict(item for item in self.arguments.items() if item not in implied), "weights": "DEFAULT"}
        with contextlib.ExitStack() as stack:
            if seed is not None:
                stack.enter_context(torch.random.fork_rng(devices=[]))
                torch.default_generator.manual_seed(seed)
            if meta:
                stack.enter_context(torch.device("meta"))
            model = self._call(arguments)
        if not isinstance(model, nn.Module):
            raise ConversionError(f"{self.text}: returned {type(model).__name__}; it has to return a torch.nn.Module")
        return model

    def build_with(self, weights: Weights) -> nn.Module:
        """The model with these weights, built without ever holding other numbers where that is possible.

        Raises:
            CheckpointError: weights that do not fit.
            UsageError, ConversionError: as `build`.
        """
        try:
            model = self.build(meta=True)
        except DensifyError:  # a factory that looks at numbers while it builds
            model = self.build()
        load_into(model, weights.tensors, weights.source)
        if _unfilled(model):  # tensors that no checkpoint holds
            model = self.build()
            load_into(model, weights.tensors, weights.source)
        return model

    def _check_torchvision(self) -> None:
        if self.kind != "torchvision":
            raise UsageError(f"{self.text}: --pretrained is for torchvision:NAME; give the weights with --weights FILE")

    def _defaults(self) -> dict[str, object]:
        if self.kind != "torchvision":
            return {}
        parameters = inspect.signature(self.factory).parameters
        backbone = {"weights_backbone": None} if "weights_backbone" in parameters else {}
        init = {"init_weights": True} if self.name in _SLOW_INIT else {}
        return {"weights": None, **backbone, **init}

    def _call(self, arguments: Mapping[str, object]) -> object:
        try:
            inspect.signature(self.factory).bind(**arguments)
        except (TypeError, ValueError) as error:
            if isinstance(error, TypeError):
                raise UsageError(f"{self.text}: {error}; it takes {_parameters(self.factory)} (--model-arg)") from None
        try:
            with code_of(self.folder):
                return self.factory(**arguments)
        except (Exception, SystemExit) as error:
            raise self._explained(error, arguments) from error

    def _explained(self, error: BaseException, arguments: Mapping[str, object]) -> DensifyError:
        if arguments.get("weights") == "DEFAULT" and isinstance(error, OSError | RuntimeError):
            return UsageError(
                f"{self.text}: torchvision's weights could not be downloaded ({error}); "
                "try again with a connection, or give the checkpoint with --weights FILE"
            )
        disagrees = arguments.get("weights") == "DEFAULT" and isinstance(error, ValueError)
        if disagrees or (isinstance(error, TypeError) and "unexpected keyword argument" in str(error)):
            return UsageError(f"{self.text}: {error}; check --model-arg")
        return ConversionError(f"{self.text}: building the model failed{place(error, self.factory)}: {told(error)}")


def parse_model_args(texts: Sequence[str]) -> dict[str, object]:
    """NAME=VALUE pairs as keyword arguments.

    A value is a Python literal (10, 0.5, "text", [1, 2]), true, false or none in any case, else a string.

    Raises:
        UsageError: no `=`, a name that is no identifier, a name given twice.
    """
    arguments: dict[str, object] = {}
    for text in texts:
        name, sign, value = text.partition("=")
        if not sign or not name.isidentifier():
            raise UsageError(f"--model-arg {text}: has to be NAME=VALUE, such as num_classes=10")
        if name in arguments:
            raise UsageError(f"--model-arg {text}: {name} is given twice; leave one out")
        arguments[name] = _value(value)
    return arguments


def runs_code(reference: str) -> bool:
    """Whether building this reference runs code that the reference names. Looks at the text alone."""
    return not reference.startswith("torchvision:")


def resolve(reference: str, arguments: Mapping[str, object] | None = None) -> ModelReference:
    """Find the factory that a reference names, and what its module says about its input.

    Imports the file or package that is named, hence runs its code.

    Raises:
        UsageError: a reference of no known form, or a name, file, package or factory that does not exist or
            cannot be imported, the nearest names given.
    """
    where, sign, name = reference.rpartition(":")
    if not sign or not where or not name:
        raise UsageError(f"{reference}: not a model reference; it has to be {_FORMS}")
    given = dict(arguments or {})
    if where == "torchvision":
        return _torchvision(reference, name, given)
    if where.endswith(".py"):
        return _from_module(reference, given, "file", *import_file(reference, Path(where).expanduser()))
    return _from_module(reference, given, "package", import_package(reference, where), None, None)


# ---- torchvision ---------------------------------------------------------------------------------


def _torchvision(reference: str, name: str, arguments: dict[str, object]) -> ModelReference:
    try:
        from torchvision import models
    except (ImportError, RuntimeError) as error:
        raise UsageError(
            f"{reference}: torchvision cannot be imported ({error}); install it together with torch, in one command"
        ) from error
    if name not in models.list_models():
        raise UsageError(f"{reference}: torchvision has no model {name!r}; {_nearest(name, models.list_models())}")
    if "weights" in arguments:
        raise UsageError(f"{reference}: give weights with --pretrained or --weights FILE, not as a model argument")
    return ModelReference(
        "torchvision", reference, arguments, models.get_model_builder(name), *_metadata(models.get_model_weights(name))
    )


def _metadata(
    weights: Any,
) -> tuple[tuple[int, ...] | None, tuple[float, ...] | None, tuple[float, ...] | None]:
    """Input size, mean and std of torchvision's default weights, as far as they are those of a 2-D image model."""
    if not len(weights):
        return None, None, None
    preset = weights.DEFAULT.transforms()
    mean, std = getattr(preset, "mean", None), getattr(preset, "std", None)
    size = getattr(preset, "crop_size", None) or getattr(preset, "resize_size", None)
    if mean is None or std is None or size is None or type(preset).__name__ == "VideoClassification":
        return None, None, None
    height, width = size if len(size) == 2 else (size[0], size[0])
    return (len(mean), height, width), tuple(mean), tuple(std)


# ---- files and packages --------------------------------------------------------------------------


def _from_module(
    reference: str, arguments: dict[str, object], kind: str, module: ModuleType, folder: Path | None, sha256: str | None
) -> ModelReference:
    name = reference.rpartition(":")[2]
    factory = getattr(module, name, None)
    if factory is None:
        own = [key for key, value in vars(module).items() if callable(value) and not key.startswith("_")]
        raise UsageError(f"{reference}: there is no {name!r} in it; {_nearest(name, own)}")
    if not callable(factory) or isinstance(factory, nn.Module):
        raise UsageError(f"{reference}: {name} is no factory; name a function or class that returns the model")
    size, mean, std = (_constant(reference, module, key) for key in ("INPUT_SIZE", "MEAN", "STD"))
    if size is not None and (len(size) < 2 or any(n < 1 or n != int(n) for n in size)):
        raise UsageError(f"{reference}: INPUT_SIZE is {size}; it has to be (channels, height, width)")
    if std is not None and 0 in std:
        raise UsageError(f"{reference}: STD is {std}; it divides, hence must not be 0")
    whole = None if size is None else tuple(int(n) for n in size)
    return ModelReference(kind, reference, arguments, factory, whole, mean, std, sha256, folder)


def _constant(reference: str, module: ModuleType, name: str) -> tuple[float, ...] | None:
    value = getattr(module, name, None)
    if value is None:
        return None
    if not isinstance(value, list | tuple) or not all(isinstance(n, int | float) and math.isfinite(n) for n in value):
        raise UsageError(f"{reference}: {name} is {value!r}; it has to be a tuple of numbers")
    return tuple(value)


# ---- small helpers -------------------------------------------------------------------------------


def _value(text: str) -> object:
    if text.lower() in _WORDS:
        return _WORDS[text.lower()]
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        return text


def _nearest(name: str, names: Sequence[str]) -> str:
    near = difflib.get_close_matches(name, names, n=5, cutoff=0.5) or sorted(names)[:10]
    return f"the nearest names are {', '.join(near)}" if near else "it defines none"


def _parameters(factory: Callable[..., object]) -> str:
    return ", ".join(str(p).split(":")[0] for p in inspect.signature(factory).parameters.values()) or "no arguments"


def _unfilled(model: nn.Module) -> bool:
    """Whether some tensor of the model has no numbers, plain attributes included."""
    return any(tensor.is_meta for module in model.modules() for tensor in _tensors(vars(module)))


def _tensors(value: object) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from _tensors(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _tensors(item)
