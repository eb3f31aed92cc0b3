"""Checkpoints: read any of the usual files into named tensors without running code."""

from __future__ import annotations

import argparse
import contextlib
import io
import pickle
import pickletools
import re
import warnings
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import IO, Any

import torch
from torch import Tensor

from densify.errors import CheckpointError, UnsafeError, UsageError
from densify.fit import listed

TORCH_SUFFIXES = (".pth", ".pt", ".bin", ".ckpt", ".tar")
WEIGHT_SUFFIXES = (".safetensors", *TORCH_SUFFIXES, ".onnx")
RECIPE_KEY = "densify"

_PICKLES = 4  # of torch's old format: magic number, version, platform, content
# What a pickled state_dict names; for messages only, what may be called is torch's to decide.
_OF_TENSORS = re.compile(
    r"torch\.\w+|torch\._utils\._rebuild_\w+|torch\.storage\.\w+|collections\.\w+|"
    r"argparse\.Namespace|__builtin__\.set|_codecs\.encode"
)

# In the order tried; plain weights before their moving average, as timm does by default.
_WRAPPINGS = ("state_dict", "model", "model_state_dict", "state_dict_ema", "model_ema")
_PREFIXES = ("module.", "_orig_mod.")  # DistributedDataParallel's and torch.compile's
# torchvision's own DenseNet files still carry these names (denselayer1.norm.1.weight for denselayer1.norm1.weight).
_OLD_DENSENET = re.compile(r"(denselayer\d+\.(?:norm|conv))\.([12]\.)")


@dataclass(frozen=True, eq=False)
class Weights:
    """The tensors of one checkpoint.

    Attributes:
        source: the file, as it is named in messages.
        tensors: name -> tensor, on the CPU, without gradient; memory-mapped where the format allows it; on the meta
            device where their numbers were not asked for.
        metadata: what the file says about itself (safetensors, ONNX), the recipe under "densify".
        unwrapped: what was taken off, outermost first, such as ("state_dict", "module.").
    """

    source: str
    tensors: dict[str, Tensor] = field(repr=False)
    metadata: dict[str, str] = field(default_factory=dict, repr=False)
    unwrapped: tuple[str, ...] = ()

    @property
    def recipe(self) -> str | None:
        """The recipe as JSON where densify wrote the file, else None."""
        return self.metadata.get(RECIPE_KEY)


def read_weights(path: Path | str, key: str | None = None, *, numbers: bool = True) -> Weights:
    """Read a checkpoint: .safetensors, .pth (.pt, .bin, .ckpt, .tar) or the initializers of an .onnx.

    Wrappings (state_dict, model, model_state_dict, state_dict_ema, model_ema) and the prefixes
    `module.` and `_orig_mod.` are taken off; a file with a recipe is taken as it is.

    Args:
        path: the file.
        key: the entry of a .pth that holds the weights, where it is not the first of those above.
        numbers: read them; else the tensors of .safetensors and of .pth files lie on the meta device.

    Raises:
        UsageError: no such file, or a suffix that is none of these.
        UnsafeError: a pickle that would run code, or external data outside the file's folder.
        CheckpointError: an empty, truncated or foreign file, or one without named tensors.
    """
    path = Path(path)
    suffix = path.suffix.lower()
    if not path.is_file():
        raise UsageError(f"{path}: there is no such file; check the name of the checkpoint")
    if suffix not in WEIGHT_SUFFIXES:
        raise UsageError(f"{path}: not a checkpoint that densify reads; it reads {', '.join(WEIGHT_SUFFIXES)}")
    if path.stat().st_size == 0:
        raise CheckpointError(f"{path}: the file is empty; copy or download it again")
    content: Mapping[str, object]
    unwrapped: tuple[str, ...] = ()
    if suffix == ".safetensors":
        content, metadata = _read_safetensors(path, numbers)
    elif suffix == ".onnx":
        content, metadata = _read_onnx(path)
    else:
        content, metadata, unwrapped = _unwrap(_read_torch(path, numbers), path, key)
    tensors = {name: _plain(name, value, path, numbers) for name, value in content.items()}
    if not tensors:
        raise CheckpointError(f"{path}: holds no tensors; give a file that holds a model's state_dict")
    if RECIPE_KEY in metadata:
        return Weights(str(path), tensors, metadata, unwrapped)
    return Weights(str(path), *_renamed(tensors, metadata, unwrapped))


# ---- reading -------------------------------------------------------------------------------------


def _read_safetensors(path: Path, numbers: bool) -> tuple[dict[str, Tensor], dict[str, str]]:
    import safetensors

    try:
        with safetensors.safe_open(path, framework="pt", device="cpu") as file:
            read = file.get_tensor if numbers else partial(_shaped, file)
            return {name: read(name) for name in file.keys()}, dict(file.metadata() or {})  # noqa: SIM118, no mapping
    except Exception as error:  # its own, or torch's for a header that lies
        raise _unreadable(path, "safetensors", error) from error


def _shaped(file: Any, name: str) -> Tensor:
    """A tensor of an open safetensors file, without its numbers."""
    part = file.get_slice(name)
    shape = part.get_shape()
    one = part[:0] if shape else file.get_tensor(name)
    return torch.empty(shape, dtype=one.dtype, device="meta")


def _read_torch(path: Path, numbers: bool) -> object:
    with path.open("rb") as file:
        zipped = file.read(4) == b"PK\x03\x04"  # torch's own test; zipfile's fails on some damaged files
    if zipped:
        _check_archive(path)
    try:
        # Training scripts (timm's and others) store their options as a Namespace: attributes, no code.
        with torch.serialization.safe_globals([argparse.Namespace]), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of pickle protocols, which say nothing to the person
            place = "cpu" if numbers or not zipped else "meta"
            content: object = torch.load(path, map_location=place, weights_only=True, mmap=zipped)
    except Exception as error:  # a foreign file makes the unpickler raise nearly anything
        names = _unsafe_globals(path, zipped, error)
        if names:
            raise UnsafeError(_unsafe_message(path, names)) from error
        raise _unreadable(path, "torch", error) from error
    return content


def _check_archive(path: Path) -> None:
    """Refuse TorchScript, which is code, and compressed archives, which no torch writes and bombs need."""
    try:
        entries = zipfile.ZipFile(path).infolist()
    except Exception as error:  # zipfile has many ways to say that an archive is damaged
        raise _unreadable(path, "torch", error) from error
    if any(entry.filename.endswith("/constants.pkl") for entry in entries):
        raise UnsafeError(
            f"{path}: refused: this is a TorchScript archive, which is code. If you trust where it comes from, "
            "take its tensors out once: torch.save(torch.jit.load(FILE).state_dict(), 'weights.pth')"
        )
    if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries):
        raise CheckpointError(f"{path}: a compressed archive, not written by torch.save; unpack it, or save it again")


def _unsafe_globals(path: Path, zipped: bool, error: Exception) -> list[str]:
    """What the pickle would call beyond tensors and containers; empty where it failed for another reason."""
    if not isinstance(error, pickle.UnpicklingError) or (not zipped and _cut_off(path)):
        return []
    names: set[str] = set()
    with contextlib.suppress(Exception), contextlib.ExitStack() as stack:  # what follows the pickles is no pickle
        stream: IO[bytes] = stack.enter_context(path.open("rb"))
        if zipped:
            archive = stack.enter_context(zipfile.ZipFile(stream))
            stream = io.BytesIO(archive.read(next(n for n in archive.namelist() if n.endswith("/data.pkl"))))
        for _ in range(_PICKLES):
            names.update(_called(stream))
    strange = sorted(name for name in names if not _OF_TENSORS.fullmatch(name))
    refused = re.findall(r"GLOBAL ([\w.]+\.\w+)", str(error))
    return strange or refused or (["what it builds itself"] if re.search("(?i)global|reduce|build", str(error)) else [])


def _called(stream: IO[bytes]) -> Iterator[str]:
    """The functions and classes that one pickle names. Nothing is run: the instructions are only read.

    torch's own get_unsafe_globals_in_checkpoint knows neither its old format nor protocol 4.
    """
    memo: dict[int, str | None] = {}
    texts: list[str] = []
    top: str | None = None
    for instruction, argument, _ in pickletools.genops(stream):
        name = instruction.name
        if name in ("GLOBAL", "INST"):
            yield str(argument).replace(" ", ".")
        elif name == "STACK_GLOBAL":
            yield ".".join(texts[-2:])
        if name == "MEMOIZE":
            memo[len(memo)] = top
        elif name.endswith("PUT") and isinstance(argument, int):
            memo[argument] = top
        else:
            top = memo.get(argument) if name.endswith("GET") and isinstance(argument, int) else argument
            top = top if isinstance(top, str) else None
            texts += [top] if top is not None else []


def _cut_off(path: Path) -> bool:
    """Whether a file of torch's old format ends within one of its pickles, as after half a download."""
    with path.open("rb") as file:
        for _ in range(_PICKLES):
            start = file.tell()
            try:
                for _ in pickletools.genops(file):
                    pass
            except Exception:  # no pickle, or one that ends too early
                return file.tell() > start and not file.read(1)
    return False


def _unsafe_message(path: Path, names: Sequence[str]) -> str:
    return (
        f"{path}: refused: reading it would run code, it calls {listed(names)}. If you trust where it comes "
        "from, take the tensors out once where that code is at home and give the new file: "
        "torch.save(model.state_dict(), 'weights.pth') for a whole model, "
        "torch.save(checkpoint['state_dict'], 'weights.pth') for a dictionary with other things in it"
    )


def _read_onnx(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    import onnx

    try:
        model = onnx.load(path, load_external_data=False)
    except Exception as error:  # protobuf's own, which it names differently from version to version
        raise _unreadable(path, "ONNX", error) from error
    if not model.ir_version or not (model.graph.name or model.graph.node):
        raise CheckpointError(f"{path}: not an ONNX model; copy or download it again")
    metadata = {entry.key: entry.value for entry in model.metadata_props}
    try:
        tensors = {entry.name: _from_onnx(entry, path.parent) for entry in model.graph.initializer}
    except onnx.checker.ValidationError as error:
        missing = _missing_data(model, path.parent)
        if missing:
            raise CheckpointError(f"{path}: its data file {missing} is missing; copy it beside the model") from error
        raise UnsafeError(f"{path}: refused: it asks for data outside its own folder: {error}") from error
    except Exception as error:  # damaged entries fail in numpy, in onnx or in a look-up
        raise _unreadable(path, "ONNX", error) from error
    return tensors, metadata


def _from_onnx(entry: object, folder: Path) -> Tensor:
    import onnx

    assert isinstance(entry, onnx.TensorProto)
    array = onnx.numpy_helper.to_array(entry, base_dir=str(folder))
    if array.dtype.name == "bfloat16":  # numpy has none of its own, so that torch does not know this one
        return torch.from_numpy(array.view("int16").copy()).view(torch.bfloat16)
    return torch.from_numpy(array if array.flags.writeable else array.copy())


def _missing_data(model: object, folder: Path) -> str:
    import onnx

    assert isinstance(model, onnx.ModelProto)
    places = [item.value for entry in model.graph.initializer for item in entry.external_data if item.key == "location"]
    inside = {place for place in places if not Path(place).is_absolute() and ".." not in Path(place).parts}
    return ", ".join(sorted(place for place in inside if not (folder / place).exists()))


def _unreadable(path: Path, kind: str, error: Exception) -> CheckpointError:
    # torch's advice to load without weights_only is not passed on.
    lines = [line.strip() for line in str(error).split("WeightsUnpickler error:")[-1].splitlines() if line.strip()]
    reason = lines[0] if lines else type(error).__name__
    return CheckpointError(
        f"{path}: truncated, damaged, or not a {kind} file ({reason[:200]}); copy or download it again"
    )


# ---- unwrapping ----------------------------------------------------------------------------------


def _unwrap(content: object, path: Path, key: str | None) -> tuple[dict[str, object], dict[str, str], tuple[str, ...]]:
    recipe = content.get(RECIPE_KEY) if isinstance(content, Mapping) else None
    metadata = {RECIPE_KEY: recipe} if isinstance(recipe, str) else {}
    unwrapped: list[str] = []
    if key is not None:
        if not isinstance(content, Mapping) or key not in content:
            raise CheckpointError(f"{path}: has no entry {key!r}; it has {_entries(content)}")
        content = content[key]
        unwrapped.append(key)
    while isinstance(content, Mapping):
        found = next((name for name in _WRAPPINGS if isinstance(content.get(name), Mapping)), None)
        if found is None:
            break
        content = content[found]
        unwrapped.append(found)
    if not isinstance(content, Mapping) or not all(isinstance(name, str) for name in content):
        raise CheckpointError(f"{path}: not a state_dict but {_entries(content)}; save model.state_dict()")
    strange = [name for name, value in content.items() if not isinstance(value, Tensor)]
    if strange:
        raise CheckpointError(
            f"{path}: no state_dict found; besides tensors there are {listed(strange)}. Where one of these holds the "
            "weights, save it by itself: torch.save(torch.load(FILE, weights_only=True)[NAME], 'weights.pth')"
        )
    return dict(content), metadata, tuple(unwrapped)


def _entries(content: object) -> str:
    if isinstance(content, Mapping):
        return f"the entries {listed([str(name) for name in content])}"
    return f"an object of class {type(content).__name__}"


def _plain(name: object, value: object, path: Path, numbers: bool) -> Tensor:
    if not isinstance(name, str) or not isinstance(value, Tensor):  # protobuf gives bytes for damaged text
        raise CheckpointError(f"{path}: {name!r} is no named tensor; copy or download the file again")
    if (value.is_meta and numbers) or value.is_quantized or value.layout is not torch.strided:
        raise CheckpointError(
            f"{path}: {name} holds no plain numbers ({value.layout}, {value.dtype}, {value.device}); "
            "save the model with dense, unquantized tensors"
        )
    return value.detach()


def _renamed(
    tensors: dict[str, Tensor], metadata: dict[str, str], unwrapped: tuple[str, ...]
) -> tuple[dict[str, Tensor], dict[str, str], tuple[str, ...]]:
    """Take off the prefixes that all names carry, and give torchvision's old DenseNet names their present form."""
    while prefix := next((p for p in _PREFIXES if all(name.startswith(p) for name in tensors)), None):
        tensors = {name.removeprefix(prefix): tensor for name, tensor in tensors.items()}
        unwrapped = (*unwrapped, prefix)
    present = {_OLD_DENSENET.sub(r"\1\2", name): tensor for name, tensor in tensors.items()}
    return (present if len(present) == len(tensors) else tensors), metadata, unwrapped
