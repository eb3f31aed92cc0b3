"""MODEL references: `torchvision:NAME`, `timm:NAME`, a folder as timm writes it, `path/to/file.py:factory`,
`package.module:factory`.

The last two run the code that they name; `runs_code` tells without running any. Nothing is downloaded
unless `build(pretrained=True)` asks for it.
"""

from __future__ import annotations

import ast
import contextlib
import inspect
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import ModuleType

import torch
from torch import Tensor, nn

from densify.errors import CheckpointError, ConversionError, DensifyError, UsageError
from densify.factories import code_of, import_file, import_package, place, told
from densify.fit import load_into
from densify.registries import LIBRARIES, Entry, Preprocessing, load_as_timm, nearest, of_folder, registered
from densify.weights import Weights, read_weights

_FORMS = "torchvision:NAME, timm:NAME, a folder with config.json, path/to/file.py:factory or package.module:factory"
_WORDS: dict[str, bool | None] = {"true": True, "false": False, "none": None}


@dataclass(frozen=True)
class ModelReference:
    """A model that can be built again.

    Attributes:
        kind: "torchvision", "timm", "file" or "package".
        text: the reference as it was given.
        arguments: what the factory is called with.
        input_size: the reference size (C, spatial ...) in samples, where the model's metadata tells it:
            the library's, a folder's, or the constant INPUT_SIZE of the factory's module.
        mean, std: preprocessing per channel, in units of [0, 1], likewise (MEAN, STD).
        sha256: of a factory file.
        folder: of a factory file, whose neighbours it may import.
        entry: of a library's model.
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
    entry: Entry | None = field(default=None, repr=False, compare=False)

    @property
    def weights(self) -> Path | None:
        """The weights that the reference itself brings: a folder's."""
        return self.entry.folder.weights if self.entry is not None and self.entry.folder is not None else None

    @property
    def portable(self) -> str:
        """The reference as a file may keep it: an absolute path would tell of this machine, and lead nowhere on
        another. One under the working folder becomes relative, of any other the file's name is left; a folder's
        architecture and arguments are all that its weights need."""
        if self.entry is not None:
            return self.entry.reference
        path, _, factory = self.text.rpartition(":")
        if self.kind != "file" or not Path(path).is_absolute():
            return self.text
        here = Path.cwd()
        known = Path(path).relative_to(here).as_posix() if Path(path).is_relative_to(here) else Path(path).name
        return f"{known}:{factory}"

    @property
    def advice(self) -> str | None:
        """What to know when the weights come from a file."""
        return None if self.entry is None else self.entry.advice(self.arguments)

    def pretrained(self) -> ModelReference:
        """The reference with the arguments that the library's pretrained weights imply, those given first.

        This is the one to record: built anew without weights, it takes what `build(pretrained=True)` returned.
        """
        return replace(self, arguments={**self._library().implied, **self.arguments})

    def build(self, meta: bool = False, pretrained: bool = False, seed: int | None = None) -> nn.Module:
        """The model, in the mode in which its factory leaves it.

        A library's models get random weights, a backbone's included, unless `pretrained`. A model whose
        checkpoint expects `transform_input` (GoogLeNet, Inception) needs it in `arguments`, see `advice`.

        Args:
            meta: build on the meta device: quick, and without memory or numbers.
            pretrained: with the library's own weights, downloaded where they are not in its cache.
            seed: makes random weights repeatable; the global random state is left as it was.

        Raises:
            UsageError: arguments that the factory does not take, a download that fails.
            ConversionError: a factory that fails or returns no nn.Module.
        """
        arguments = {**({} if self.entry is None else self.entry.arguments), **self.arguments}
        if pretrained:
            arguments = self._library().downloading(self.arguments)
        with contextlib.ExitStack() as stack:
            if seed is not None:
                stack.enter_context(torch.random.fork_rng(devices=[]))
                torch.default_generator.manual_seed(seed)
            if meta:
                stack.enter_context(torch.device("meta"))
            model = self._call(arguments, pretrained)
        if not isinstance(model, nn.Module):
            raise ConversionError(f"{self.text}: returned {type(model).__name__}; it has to return a torch.nn.Module")
        return model

    def build_with(self, weights: Weights) -> nn.Module:
        """The model with these weights, built without ever holding other numbers where that is possible; with weights
        that have no numbers a model that has none.

        Raises:
            CheckpointError: weights that do not fit.
            UsageError, ConversionError: as `build`.
        """
        try:
            model = self.build(meta=True)
        except DensifyError:  # a factory that looks at numbers while it builds
            model = self.build()
        load_into(model, weights.tensors, weights.source)
        empty = all(tensor.is_meta for tensor in weights.tensors.values())
        if _unfilled(model) and not empty:  # tensors that no checkpoint holds
            model = self.build()
            load_into(model, weights.tensors, weights.source)
        return model

    def build_stored(self) -> nn.Module:
        """The model with the weights that the reference itself brings, see `weights`.

        Raises:
            UsageError: it brings none.
            CheckpointError: they cannot be read or do not fit, as timm would load them either.
            UnsafeError: reading them would run code.
        """
        if self.weights is None:
            raise UsageError(f"{self.text}: it brings no weights; give some with --weights FILE")
        weights = read_weights(self.weights)
        try:
            return self.build_with(weights)
        except CheckpointError:
            folder = self._library().folder
            if folder is None or self.arguments != folder.arguments:
                raise
            with contextlib.suppress(Exception):  # what does not fit is already said, and better
                return load_as_timm(folder)
            raise

    def _library(self) -> Entry:
        if self.entry is None:
            raise UsageError(
                f"{self.text}: --pretrained is for torchvision:NAME and timm:NAME; give the weights with --weights FILE"
            )
        return self.entry

    def _call(self, arguments: Mapping[str, object], pretrained: bool) -> object:
        try:
            inspect.signature(self.factory).bind(**arguments)
        except (TypeError, ValueError) as error:
            if isinstance(error, TypeError):
                raise UsageError(f"{self.text}: {error}; it takes {_parameters(self.factory)} (--model-arg)") from None
        try:
            with code_of(self.folder):
                return self.factory(**arguments)
        except (Exception, SystemExit) as error:
            raise self._explained(error, pretrained) from error

    def _explained(self, error: BaseException, pretrained: bool) -> DensifyError:
        if isinstance(error, TypeError) and "unexpected keyword argument" in str(error):
            return UsageError(f"{self.text}: {error}; check --model-arg")
        if pretrained and isinstance(error, ValueError) and not isinstance(error, OSError):  # some of timm's are both
            return UsageError(f"{self.text}: {error}; check --model-arg")
        if pretrained and isinstance(error, Exception):
            return UsageError(
                f"{self.text}: {self.kind}'s weights could not be downloaded ({' '.join(str(error).split())[:300]}); "
                "try again with a connection, or give the checkpoint with --weights FILE"
            )
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
    return reference.partition(":")[0] not in LIBRARIES


def is_folder(reference: str) -> bool:
    """Whether this is the path of an existing folder."""
    try:
        return bool(reference) and Path(reference).expanduser().is_dir()
    except (OSError, RuntimeError):  # too long for a path; the home of nobody
        return False


def resolve(reference: str, arguments: Mapping[str, object] | None = None) -> ModelReference:
    """Find the factory that a reference names, and what its module says about its input.

    Imports the file or package that is named, hence runs its code.

    Raises:
        UsageError: a reference of no known form, or a name, file, package or factory that does not exist or
            cannot be imported, the nearest names given; a library that is not installed.
        CheckpointError: a folder whose config.json cannot be read.
    """
    given = dict(arguments or {})
    library, _, name = reference.partition(":")
    if library in LIBRARIES and name:  # before all else: `runs_code` says that these run no code
        return _of_library(reference, given, *registered(library, name, given))
    if is_folder(reference):
        return _of_library(reference, given, *of_folder(Path(reference).expanduser(), given))
    where, sign, name = reference.rpartition(":")
    if not sign or not where or not name or where in LIBRARIES:
        raise UsageError(f"{reference}: not a model reference; it has to be {_FORMS}")
    if where.endswith(".py"):
        return _from_module(reference, given, "file", *import_file(reference, Path(where).expanduser()))
    return _from_module(reference, given, "package", import_package(reference, where), None, None)


def _of_library(
    reference: str, given: Mapping[str, object], entry: Entry, preprocessing: Preprocessing
) -> ModelReference:
    arguments = {**(entry.arguments if entry.folder is not None else {}), **given}
    return ModelReference(entry.library, reference, arguments, entry.factory, *preprocessing, entry=entry)


# ---- files and packages --------------------------------------------------------------------------


def _from_module(
    reference: str, arguments: dict[str, object], kind: str, module: ModuleType, folder: Path | None, sha256: str | None
) -> ModelReference:
    name = reference.rpartition(":")[2]
    factory = getattr(module, name, None)
    if factory is None:
        own = [key for key, value in vars(module).items() if callable(value) and not key.startswith("_")]
        raise UsageError(f"{reference}: there is no {name!r} in it; {nearest(name, own)}")
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
