"""The options, each in one place: the same name means the same in every command."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from densify.cli.completion import models
from densify.errors import UsageError

if TYPE_CHECKING:
    import torch

    from densify.choose import Choice
    from densify.recipe import Recipe


class Padding(StrEnum):
    full = "full"
    valid = "valid"
    same = "same"


class Head(StrEnum):
    dense = "dense"
    average = "average"
    features = "features"
    cam = "cam"


class Form(StrEnum):
    dilated = "dilated"
    fragments = "fragments"


class Merge(StrEnum):
    select = "select"
    average = "average"
    resample = "resample"


class Target(StrEnum):
    ort = "ort"
    openvino = "openvino"
    tensorrt = "tensorrt"
    portable = "portable"


class Init(StrEnum):
    random = "random"


class DType(StrEnum):
    float32 = "float32"
    float64 = "float64"
    float16 = "float16"
    bfloat16 = "bfloat16"


CHOICE = "What to make dense, by one of"
MODEL = "Model"
HOW = "How"
CHECKS = "Verification"
OUTPUT = "Output"
"""The groups of options in `--help`."""

_MODEL = "torchvision:NAME, timm:NAME, a timm folder, path/to/file.py:factory, package.module:factory or FILE.onnx"

ModelArgument = Annotated[
    str, typer.Argument(metavar="MODEL", help=f"{_MODEL}.", show_default=False, autocompletion=models)
]
SurveyedArgument = Annotated[
    str,
    typer.Argument(
        metavar="MODEL",
        help=f"{_MODEL}, or a file that densify wrote.",
        show_default=False,
        autocompletion=models,
    ),
]


def option(group: str, flags: str, help: str) -> Any:
    """An option of one of the groups.

    Args:
        flags: its names, and what follows them, such as "-o --output FILE".
        help: one line; 72 letters of it, the default included, fit the screen.
    """
    names = [word for word in flags.split() if word.startswith("-")]
    metavar = flags.split()[-1]
    return typer.Option(*names, metavar=None if metavar in names else metavar, help=help, rich_help_panel=group)


StartOption = Annotated[str | None, option(CHOICE, "--start LAYER", "Remove every stride from this layer on.")]
LayerOption = Annotated[
    list[str] | None, option(CHOICE, "--layer LAYER", "Remove those of this layer or block alone; repeatable.")
]
StrideOption = Annotated[
    int | None, option(CHOICE, "--output-stride N", "Remove every stride that leads past a step of N input pixels.")
]
HeadOnlyOption = Annotated[bool, option(CHOICE, "--head-only", "Remove none: make the classifier convolutional.")]
LikeOption = Annotated[
    Path | None, option(CHOICE, "--like FILE", "Repeat the choices of a file that densify wrote, sizes too.")
]

WeightsOption = Annotated[Path | None, option(MODEL, "--weights FILE", "Checkpoint: .safetensors, .pth or .onnx.")]
PretrainedOption = Annotated[bool, option(MODEL, "--pretrained", "The library's own weights, downloaded.")]
InitOption = Annotated[Init | None, option(MODEL, "--init", "Random weights, for trying out.")]
SeedOption = Annotated[int, option(MODEL, "--seed N", "Of all random numbers.")]
ModelArgOption = Annotated[
    list[str] | None, option(MODEL, "--model-arg NAME=VALUE", "Argument of the model's factory; repeatable.")
]
ReferenceOption = Annotated[
    str | None, option(MODEL, "--model REFERENCE", "The original, where a file does not know it; trusts its code.")
]
TrustOption = Annotated[bool, option(MODEL, "--trust-code", "Run the factory that a file's recipe names.")]
InputSizeOption = Annotated[
    str | None, option(MODEL, "--input-size C,H,W", "Reference size; the default is the model's own, where known.")
]
AnySizeOption = Annotated[
    bool, option(MODEL, "--any-size", "Take an ONNX file of one fixed size for images of any size.")
]
MeanOption = Annotated[
    str | None, option(MODEL, "--mean R,G,B", "Subtracted from images in [0, 1]; kept in the recipe.")
]
StdOption = Annotated[str | None, option(MODEL, "--std R,G,B", "Divides images; kept in the recipe.")]

PaddingOption = Annotated[
    Padding, option(HOW, "--padding KIND", "full: all phases; valid: no far side; same: the paper's")
]
HeadOption = Annotated[Head, option(HOW, "--head KIND", "dense: the map; average: its mean; features; cam")]
FormOption = Annotated[Form, option(HOW, "--form KIND", "dilated; or fragments: phases in the batch")]
MergeOption = Annotated[Merge, option(HOW, "--merge KIND", "Of shifts in upsamplings: select, average, resample")]
MeasureOption = Annotated[bool, option(HOW, "--measure", "Time both networks; a reference gets random weights.")]

SampleOption = Annotated[
    list[Path] | None,
    option(CHECKS, "--sample FILE", "Verify on this image, .npy or .npz, not on random ones; repeatable."),
]
RtolOption = Annotated[
    float | None, option(CHECKS, "--rtol X", "Largest relative error.  [default: by dtype and depth]")
]
AtolOption = Annotated[float, option(CHECKS, "--atol X", "Absolute errors up to this pass.")]
DeviceOption = Annotated[str, option(CHECKS, "--device NAME", "To compute on: cpu, cuda, cuda:1 ...")]
DTypeOption = Annotated[
    DType | None,
    option(CHECKS, "--dtype TYPE", "To compute in: float16, bfloat16, float32, float64; files keep theirs."),
]

OutputOption = Annotated[
    list[Path] | None,
    option(OUTPUT, "-o --output FILE", "Where to: .safetensors, .pth or .onnx, by its suffix; repeatable."),
]
TargetOption = Annotated[
    Target | None, option(OUTPUT, "--target NAME", "Of .onnx: ort, openvino, tensorrt, portable.  [default: ort]")
]
OpsetOption = Annotated[int | None, option(OUTPUT, "--opset N", "Of .onnx.  [default: the target's]")]
StaticOption = Annotated[
    bool, option(OUTPUT, "--static", "ONNX for batch 1 and the reference size alone, all shapes fixed.")
]
HalfOption = Annotated[
    bool, option(OUTPUT, "--half", "ONNX in float16, input and outputs too; compared with float32 to 1e-2.")
]
OverwriteOption = Annotated[bool, option(OUTPUT, "--overwrite", "Replace existing outputs.")]
DryRunOption = Annotated[bool, option(OUTPUT, "--dry-run", "Write no output; without weights, show the plan.")]
KeepFailedOption = Annotated[bool, option(OUTPUT, "--keep-failed", "Write although the verification failed.")]
JsonOption = Annotated[bool, typer.Option("--json", help="The results as one JSON document on stdout.")]
VerboseOption = Annotated[
    bool, typer.Option("-v", "--verbose", help="List all: layers, checks, reasons; tracebacks of bugs.")
]
QuietOption = Annotated[
    bool, typer.Option("-q", "--quiet", help="Results, warnings and errors alone: no progress, no hints.")
]


@dataclass(frozen=True)
class Voice:
    """How a command talks: results on stdout, all else on stderr."""

    json: bool = False
    verbose: bool = False
    quiet: bool = False

    def say(self, text: str) -> None:
        """Progress and hints."""
        if not self.quiet:
            typer.echo(text, err=True)

    def warn(self, text: str) -> None:
        typer.echo(f"warning: {text}", err=True)

    def rehearsed(self, outputs: Sequence[Path]) -> None:
        """The end of a dry run."""
        names = ", ".join(map(str, outputs))
        self.say("dry run: nothing was written" + (f"; without --dry-run {names} would be" if names else ""))

    def next(self, *commands: str) -> None:
        """Commands to copy."""
        self.say("\n".join(["next:", *(f"  {command}" for command in commands)]))


@dataclass(frozen=True)
class Run:
    """What the checks run on and in, and when they pass."""

    device: str
    dtype: DType | None
    rtol: float | None
    atol: float
    seed: int
    samples: tuple[Path, ...]

    def __post_init__(self) -> None:
        for name, value in (("--rtol", self.rtol), ("--atol", self.atol)):
            if value is not None and not 0 <= value < float("inf"):
                raise UsageError(f"{name} {value}: has to be a number of at least 0, such as 1e-5")

    def torch_dtype(self, own: torch.dtype) -> torch.dtype:
        """The dtype to compute in; `own` is the weights'."""
        import torch

        wanted: torch.dtype = own if self.dtype is None else getattr(torch, self.dtype.value)
        return wanted


def choice(start: str | None, layers: list[str] | None, output_stride: int | None, head_only: bool) -> Choice:
    """The layers that are asked for.

    Raises:
        UsageError: none or more than one way of choosing given.
    """
    found = choice_if_any(start, layers, output_stride, head_only)
    if found is None:
        raise UsageError(
            "no layers are chosen: give exactly one of --start LAYER, --layer LAYER (repeatable), --output-stride N "
            "and --head-only. `densify plan MODEL` shows what each choice gives"
        )
    return found


def choice_if_any(
    start: str | None, layers: list[str] | None, output_stride: int | None, head_only: bool
) -> Choice | None:
    """The layers that are asked for, or None where none are.

    Raises:
        UsageError: more than one way of choosing given.
    """
    from densify.choose import Choice

    flags = {
        "--start": start is not None,
        "--layer": bool(layers),
        "--output-stride": output_stride is not None,
        "--head-only": head_only,
    }
    given = [flag for flag, is_given in flags.items() if is_given]
    if not given:
        return None
    if len(given) > 1:
        raise UsageError(
            f"{' and '.join(given)} do not go together: give one of --start LAYER, --layer LAYER (repeatable), "
            "--output-stride N and --head-only"
        )
    return Choice(start, () if head_only else tuple(layers) if layers else None, output_stride)


def like(path: Path, start: str | None, layers: list[str] | None, output_stride: int | None, head_only: bool) -> Recipe:
    """The recipe of a file whose choices are repeated.

    Raises:
        UsageError: layers are chosen as well, or there is no such file.
        CheckpointError: densify did not write it.
    """
    flags = {"--start": start, "--layer": layers, "--output-stride": output_stride, "--head-only": head_only}
    given = [flag for flag, value in flags.items() if value]
    if given:
        raise UsageError(f"--like {path}: brings its own layers; leave {' and '.join(given)} out")
    from densify.cli.like import recipe_in

    return recipe_in(path)


def explicit(context: typer.Context, names: Sequence[str]) -> set[str]:
    """Which of these options the user gave himself."""
    sources = {name: context.get_parameter_source(name) for name in names}
    return {name for name, source in sources.items() if source is not None and source.name == "COMMANDLINE"}


def rewriting(padding: Padding, head: Head, form: Form, merge: Merge) -> dict[str, str]:
    """How to convert, as `densify.recipe.Options` takes it.

    Raises:
        UsageError: a form that does not go with the padding.
    """
    if form is Form.fragments and padding is not Padding.full:
        raise UsageError(f"--form fragments needs complete phases, which --padding {padding.value} does not make")
    return {"padding": padding.value, "head": head.value, "form": form.value, "merge": merge.value}


def numbers(text: str | None, flag: str) -> tuple[float, ...] | None:
    """The numbers of a list such as "0.5,0.5,0.5".

    Raises:
        UsageError: it is none.
    """
    if text is None:
        return None
    try:
        values = tuple(float(part) for part in text.split(","))
    except ValueError:
        raise UsageError(f"{flag} {text}: has to be numbers with commas between them, such as 0.5,0.5,0.5") from None
    if any(value - value for value in values):
        raise UsageError(f"{flag} {text}: has to be finite")
    if flag == "--std" and 0 in values:
        raise UsageError(f"{flag} {text}: it divides, hence must not be 0")
    return values


def size(text: str | None) -> tuple[int, ...] | None:
    """The reference size (C, spatial ...) of a text such as "3,224,224".

    Raises:
        UsageError: it is none.
    """
    if text is None:
        return None
    parts = text.replace("x", ",").split(",")
    if not all(part.strip().isdecimal() and int(part) > 0 for part in parts) or not 2 <= len(parts) <= 4:
        raise UsageError(f"--input-size {text}: has to be channels and spatial sizes, such as 3,224,224")
    return tuple(int(part) for part in parts)


def check_inputs_stay(outputs: Sequence[Path], *inputs: Path | None) -> None:
    """Refuse an output that would replace what it is made from.

    Raises:
        UsageError: naming it.
    """
    read = {path.resolve() for path in inputs if path is not None}
    for path in outputs:
        if path.resolve() in read:
            raise UsageError(f"{path}: this is what the command reads; give the output another name")


def check_has_output(outputs: Sequence[Path], *, dry_run: bool) -> None:
    """Refuse to work for nothing.

    Raises:
        UsageError: no output, and no dry run either.
    """
    if not outputs and not dry_run:
        raise UsageError("no output: name one with -o FILE (.safetensors, .pth or .onnx), or try with --dry-run")


def check_has_onnx(outputs: Sequence[Path], **flags: bool) -> None:
    """Refuse flags that are about ONNX files where none is written.

    Raises:
        UsageError: naming the first.
    """
    given = [name for name, is_given in flags.items() if is_given]
    if given and not any(path.suffix.lower() == ".onnx" for path in outputs):
        raise UsageError(f"--{given[0]}: no output is an .onnx file; name one with -o, or leave --{given[0]} out")


def check_channels(mean: Sequence[float] | None, std: Sequence[float] | None, channels: int) -> None:
    """Refuse a mean or a standard deviation that has not one value per channel.

    Raises:
        UsageError: naming the option.
    """
    for name, values in (("--mean", mean), ("--std", std)):
        if values is not None and len(values) not in (1, channels):
            raise UsageError(f"{name}: {len(values)} values for {channels} channels; give one for each")
