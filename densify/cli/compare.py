"""`densify compare`: two networks on one image, side by side in one picture."""

from __future__ import annotations

import shlex
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from densify.cli import options as o
from densify.cli.running import command, emit
from densify.errors import UsageError


class Upsampling(StrEnum):
    linear = "linear"
    nearest = "nearest"


_FILE_OR_MODEL = "A file that densify wrote, another .onnx file, or a MODEL"
_First = Annotated[str, typer.Argument(metavar="A", help=f"{_FILE_OR_MODEL}.", show_default=False)]
_Second = Annotated[
    str | None, typer.Argument(metavar="B", help="Another; left out (A IMAGE), A's own original.", show_default=False)
]
_Image = Annotated[
    str | None, typer.Argument(metavar="IMAGE", help="An image, or an .npy file of one.", show_default=False)
]
_Picture = Annotated[Path, o.option(o.OUTPUT, "-o --output FILE", "The picture, a .png file.")]
SHOWN = "What is shown"
MapOption = Annotated[str | None, o.option(SHOWN, "--map NAME", "Which output.  [default: the first with places]")]
ChannelOption = Annotated[int | None, o.option(SHOWN, "--channel N", "This channel, counted from 0.")]
ClassOption = Annotated[
    int | None, o.option(SHOWN, "--class N", "The share of this class in the softmax over channels.")
]
SumOption = Annotated[bool, o.option(SHOWN, "--sum", "The sum over all channels, as for localisation.")]
ArgmaxOption = Annotated[bool, o.option(SHOWN, "--argmax", "The channel with the largest number, as labels.")]
LocateOption = Annotated[
    bool, o.option(SHOWN, "--locate", "Mark the largest connected part above the mean, and its box.")
]
UpsamplingOption = Annotated[Upsampling, o.option(SHOWN, "--upsampling KIND", "Of the coarse map: linear, nearest")]


@command
def compare(
    a: _First,
    output: _Picture,
    b: _Second = None,
    image: _Image = None,
    channel: ChannelOption = None,
    label: ClassOption = None,
    total: SumOption = False,
    argmax: ArgmaxOption = False,
    locate: LocateOption = False,
    upsampling: UpsamplingOption = Upsampling.linear,
    chosen_map: MapOption = None,
    weights: o.WeightsOption = None,
    pretrained: o.PretrainedOption = False,
    init: o.InitOption = None,
    seed: o.SeedOption = 0,
    model_arg: o.ModelArgOption = None,
    model: o.ReferenceOption = None,
    trust_code: o.TrustOption = False,
    input_size: o.InputSizeOption = None,
    mean: o.MeanOption = None,
    std: o.StdOption = None,
    overwrite: o.OverwriteOption = False,
    json: o.JsonOption = False,
    verbose: o.VerboseOption = False,
    quiet: o.QuietOption = False,
) -> None:
    """Draw what two networks make of an image.

    The input, the original's map, its upsampling, the dense map and the difference, side by side, every sample around
    the pixel that it looks at. A and B are what verify takes. By default the channel that varies most is shown.

    Example: densify compare dense.safetensors photo.jpg --class 207 -o picture.png
    """
    if b is None:
        raise UsageError(f"IMAGE is missing: densify compare {shlex.quote(a)} photo.jpg -o picture.png")
    texts, picture = ([a], b) if image is None else ([a, b], image)
    size, means, stds = o.size(input_size), o.numbers(mean, "--mean"), o.numbers(std, "--std")
    voice = o.Voice(json, verbose, quiet)
    show = shown(channel, label, total, argmax)

    from densify.files import check_target
    from densify.pictures.comparing import check_picture

    check_target(check_picture(output), overwrite)
    o.check_inputs_stay([output], Path(picture), *map(Path, texts))

    from densify.cli.models import Asked, is_file, is_graph
    from densify.cli.pairs import of_graphs, of_modules
    from densify.cli.subjects import Reading
    from densify.pictures import comparing

    if any(map(is_graph, texts)):
        found = of_graphs(texts, size, voice)
    else:
        asked = {
            text: Asked(text, weights, pretrained, init, seed, tuple(model_arg or ()))
            for text in texts
            if not is_file(text)
        }
        found = of_modules(texts, Reading(asked, model, trust_code, size, voice))
    means, stds = means or found.mean, stds or found.std
    sample = found.read_image(Path(picture), means, stds)
    voice.say(f"running on {picture}")
    made = comparing.compare(
        found.original, found.dense, sample.tensor, show=show, output=chosen_map, upsampling=upsampling.value,
        locate=locate, heading=found.heading, image_name=picture, mean=means, std=stds,
    )  # fmt: skip
    made.save(output, overwrite=overwrite)
    from densify.display import show_comparison

    document = {"command": "compare", "compared": texts, **made.to_dict(), "words": made.words, "written": str(output)}
    emit(voice, document, lambda: show_comparison(document))
    voice.say(f"wrote {output} ({output.stat().st_size / 1e3:.0f} kB)")


def shown(channel: int | None, label: int | None, total: bool, argmax: bool) -> str | None:
    """What to show, as `densify.compare` takes it.

    Raises:
        UsageError: more than one thing asked for, or a negative number.
    """
    ways = {
        "--channel": None if channel is None else f"channel:{channel}",
        "--class": None if label is None else f"class:{label}",
        "--sum": "sum" if total else None,
        "--argmax": "argmax" if argmax else None,
    }
    given = {flag: show for flag, show in ways.items() if show is not None}
    if len(given) > 1:
        raise UsageError(f"{' and '.join(given)} do not go together: give one of them")
    for flag, number in (("--channel", channel), ("--class", label)):
        if number is not None and number < 0:
            raise UsageError(f"{flag} {number}: channels are counted from 0")
    return next(iter(given.values()), None)
