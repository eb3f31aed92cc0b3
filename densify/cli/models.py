"""From what the user typed to models: references, files that densify wrote, weights."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

import torch
from torch import nn

from densify.checkpoint import original, recipe_of, restore
from densify.cli.options import Init, Run, Voice
from densify.errors import BlankError, DensifyError, UsageError
from densify.recipe import Recipe
from densify.reference import ModelReference, is_folder, parse_model_args, resolve
from densify.weights import WEIGHT_SUFFIXES, Weights, read_weights

AnyModule = TypeVar("AnyModule", bound=nn.Module)
Seen = TypeVar("Seen")


@dataclass(frozen=True)
class Asked:
    """What the user says of an original: its reference, and where its weights come from."""

    model: str
    weights: Path | None = None
    pretrained: bool = False
    init: Init | None = None
    seed: int = 0
    arguments: tuple[str, ...] = ()

    def resolve(self) -> ModelReference:
        """The factory that is meant, with the arguments that pretrained weights imply.

        Raises:
            UsageError: no such model, or arguments that no recipe can keep.
        """
        given = parse_model_args(self.arguments)
        try:
            json.dumps(given)
        except (TypeError, ValueError) as error:
            raise UsageError(f"--model-arg: {error}; give numbers, texts, lists, true, false or none") from None
        found = resolve(self.model, given)
        return found.pretrained() if self.pretrained else found

    def has_weights(self, found: ModelReference) -> bool:
        """Whether anything says where the weights come from."""
        return bool(self.weights or self.pretrained or self.init) or found.weights is not None

    def build(self, found: ModelReference, voice: Voice) -> nn.Module:
        """The model with its weights, in eval mode.

        Raises:
            UsageError: no weights given, or more than one source of them.
            CheckpointError, UnsafeError: weights that cannot be read or do not fit.
        """
        ways = {"--weights": self.weights, "--pretrained": self.pretrained, "--init random": self.init}
        given = [name for name, value in ways.items() if value]
        if len(given) > 1:
            raise UsageError(f"{' and '.join(given)} do not go together: give one of them")
        if not given and found.weights is not None:
            voice.say(f"building {self.model} with the weights of {found.weights}")
            return found.build_stored().eval()
        if not given:
            own = "" if found.entry is None else found.entry.offer
            raise UsageError(
                f"{self.model}: where do its weights come from? Give --weights FILE; {own}"
                "or --init random --seed N for trying out"
            )
        if self.weights is not None:
            if found.advice is not None:
                voice.warn(found.advice)
            voice.say(f"building {self.model} with the weights of {self.weights}")
            return found.build_with(read_file(self.weights)).eval()
        voice.say(f"building {self.model}")
        return found.build(pretrained=self.pretrained, seed=self.seed if self.init else None).eval()


def is_file(text: str) -> bool:
    """Whether an argument means a file of weights, not a reference."""
    return Path(text).suffix.lower() in WEIGHT_SUFFIXES and not is_folder(text)


def is_graph(text: str) -> bool:
    """Whether an argument is an ONNX file that is read as a graph: it names no torch code that made it."""
    if not is_file(text) or not text.lower().endswith(".onnx"):
        return False
    from densify.onnx.model import is_graph as holds_graph

    return holds_graph(Path(text))


def read_file(path: Path | str, *, numbers: bool = True) -> Weights:
    """A checkpoint, of an ONNX file the counters and tied tensors too; arguments and errors as `read_weights`."""
    path = Path(path)
    if path.suffix.lower() == ".onnx":
        from densify.onnx.file import read_onnx_weights

        return Weights(str(path), *read_onnx_weights(path, numbers=numbers))
    return read_weights(path, numbers=numbers)


def refuse_any_size(text: str, asked: bool) -> None:
    """Refuse to open the sizes of what has none of its own.

    Raises:
        UsageError: the model is no ONNX file.
    """
    if asked:
        raise UsageError(f"--any-size: is about ONNX files; {text} takes the sizes that its program does")


def refuse_file(text: str) -> None:
    """Refuse to convert a file, and say what to do.

    Raises:
        UsageError: a checkpoint, or what densify wrote.
    """
    if not is_file(text):
        return
    weights = read_file(text)
    if weights.recipe is None:
        raise UsageError(
            f"{text}: a checkpoint holds no model; give the model's reference, and the checkpoint with --weights {text}"
        )
    recipe = recipe_of(weights)
    remedy = f"densify convert {recipe.origin.model or 'MODEL'} --weights {text} ..."
    if recipe.kind == "dense":
        raise UsageError(
            f"{text}: is dense already; its weights are the original's, so convert the original with them: {remedy}"
        )
    raise UsageError(f"{text}: holds the weights of an original; convert its model with them: {remedy}")


@dataclass(frozen=True)
class Surveyed:
    """A model to look at, without weights as far as that goes.

    Attributes:
        asked: a reference, or a file that densify wrote.
        size: the reference size, where the user gives it.
        reference, trust: the model of a file, and whether the code that it names may run.
    """

    asked: Asked
    size: tuple[int, ...] | None
    reference: str | None
    trust: bool
    voice: Voice

    def __call__(self, look: Callable[[nn.Module, tuple[int, ...]], Seen]) -> Seen:
        """What `look` sees in the model without its numbers, at its reference size (C, spatial ...).

        The numbers of a file are read where the model cannot be understood without. A reference has none: random ones
        tell whether the model runs on the example at all.

        Raises:
            BlankError: the model of a reference looks at values.
            DensifyError: as `look`.
        """
        try:
            return look(*self.model())
        except BlankError:
            if is_file(self.asked.model):
                self.voice.say(f"reading {self.asked.model}: the model looks at values")
                return look(*self.model(numbers=True))
        look(*self.model(numbers=True))
        raise BlankError(
            f"cannot trace {self.asked.model} without its weights: its program looks at values. "
            "densify convert --dry-run with --weights FILE shows the plan"
        )

    def model(self, *, numbers: bool = False) -> tuple[nn.Module, tuple[int, ...]]:
        """The model and its reference size; with `numbers` its own, or random ones for a reference."""
        if is_file(self.asked.model):
            weights = read_file(self.asked.model, numbers=numbers)
            recipe = recipe_of(weights)
            model = original(recipe, weights, model=self.reference, trust_code=self.trust).eval()
            return model, self.size or recipe.options.shape[1:]
        found = self.asked.resolve()
        wanted = input_size(self.size, found)
        if numbers:
            return found.build(seed=0).eval(), wanted
        try:
            return found.build(meta=True).eval(), wanted
        except DensifyError:  # a factory that looks at numbers while it builds
            return found.build().eval(), wanted


def input_size(given: tuple[int, ...] | None, found: ModelReference) -> tuple[int, ...]:
    """The reference size (C, spatial ...).

    Raises:
        UsageError: nobody knows it.
    """
    size = given or found.input_size
    if size is None:
        raise UsageError(
            f"{found.text}: its reference size is not known; give it, such as --input-size 3,224,224, "
            "or as the constant INPUT_SIZE = (3, 224, 224) beside the factory"
        )
    return size


def restored(path: str, reference: str | None, trust: bool) -> tuple[nn.Module, Recipe, str]:
    """The network of a file that densify wrote, in eval mode, its recipe, and that as the JSON in the file; errors as
    `densify.load`."""
    weights = read_file(path)
    recipe = recipe_of(weights)
    return restore(weights, model=reference, trust_code=trust).eval(), recipe, weights.recipe or ""


def with_preprocessing(
    found: ModelReference, mean: tuple[float, ...] | None, std: tuple[float, ...] | None
) -> ModelReference:
    """The reference with the preprocessing that the user asks for, its own where he does not."""
    return replace(found, mean=mean or found.mean, std=std or found.std)


def dtype_of(model: nn.Module) -> torch.dtype:
    """The dtype of a model's numbers."""
    return next((t.dtype for t in model.state_dict().values() if t.is_floating_point()), torch.float32)


def moved(model: AnyModule, run: Run) -> AnyModule:
    """The model on the device and in the dtype of the run: itself where it is there already, else a copy.

    Raises:
        UsageError: no such device.
    """
    dtype, target = run.torch_dtype(dtype_of(model)), device(run.device)
    if dtype == dtype_of(model) and target.type == "cpu":
        return model
    return copy.deepcopy(model).to(target, dtype)


def device(name: str) -> torch.device:
    """A device of this machine.

    Raises:
        UsageError: there is none of that name.
    """
    try:
        found = torch.device(name)
        torch.empty(1, device=found)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = (str(error).splitlines() or [""])[0]
        raise UsageError(f"--device {name}: torch cannot use it ({reason}); cpu always works") from None
    if found.type == "meta":
        raise UsageError("--device meta: nothing can be computed there; cpu always works")
    if found.type == "cuda":  # TF32 would be told apart from a wrong result by its size alone
        torch.backends.cuda.matmul.allow_tf32 = False
        torch.backends.cudnn.allow_tf32 = False
    return found
