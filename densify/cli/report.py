"""`densify report`: a dense network's plan, verification, pictures and recipe on one HTML page."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from densify.cli import options as o
from densify.cli.compare import (
    ArgmaxOption,
    ChannelOption,
    ClassOption,
    LocateOption,
    MapOption,
    SumOption,
    Upsampling,
    UpsamplingOption,
    shown,
)
from densify.cli.running import command, emit
from densify.errors import UsageError

if TYPE_CHECKING:
    from densify.cli.subjects import Reading
    from densify.comparison import Report
    from densify.conversion import Dense
    from densify.onnx.conversion import DenseOnnx
    from densify.pictures.comparing import Comparison
    from densify.samples import Sample

_Dense = Annotated[str, typer.Argument(metavar="DENSE", help="A dense file that densify wrote.", show_default=False)]
_Samples = Annotated[list[Path], o.option(o.CHECKS, "--sample FILE", "Verify on this and draw it; repeatable.")]
_Page = Annotated[Path, o.option(o.OUTPUT, "-o --output FILE", "The page, an .html file.")]


@command
def report(
    dense: _Dense,
    sample: _Samples,
    output: _Page,
    channel: ChannelOption = None,
    label: ClassOption = None,
    total: SumOption = False,
    argmax: ArgmaxOption = False,
    locate: LocateOption = False,
    upsampling: UpsamplingOption = Upsampling.linear,
    chosen_map: MapOption = None,
    model: o.ReferenceOption = None,
    trust_code: o.TrustOption = False,
    mean: o.MeanOption = None,
    std: o.StdOption = None,
    rtol: o.RtolOption = None,
    atol: o.AtolOption = 0.0,
    overwrite: o.OverwriteOption = False,
    json: o.JsonOption = False,
    verbose: o.VerboseOption = False,
    quiet: o.QuietOption = False,
) -> None:
    """Write all about a dense network on one HTML page.

    Its plan, the verification on the samples against its own original, a picture of each, and its recipe: one file that
    needs no network. It is written whether the verification passed or not; the exit status tells.

    Example: densify report dense.safetensors --sample photo.jpg -o report.html
    """
    means, stds = o.numbers(mean, "--mean"), o.numbers(std, "--std")
    run, voice = o.Run("cpu", None, rtol, atol, 0, tuple(sample)), o.Voice(json, verbose, quiet)
    show = shown(channel, label, total, argmax)

    from densify.files import check_target, write_bytes
    from densify.pictures import reporting

    check_target(reporting.check_page(output), overwrite)
    o.check_inputs_stay([output], Path(dense), *sample)

    from densify.cli.models import is_graph
    from densify.cli.subjects import Reading

    reading = Reading({}, model, trust_code, None, voice)
    read = _of_graph if is_graph(dense) else _of_module
    network, recipe, samples, verification = read(dense, reading, run, means, stds)
    voice.say("drawing")
    how: dict[str, Any] = {"show": show, "output": chosen_map, "upsampling": upsampling.value, "locate": locate}
    how |= {"mean": means, "std": stds}
    name = Path(dense).name
    drawn = reporting.drawings(None, network, samples, **how)
    content = reporting.render(network, name, verification, drawn, recipe)
    write_bytes(output, content.encode(), overwrite=overwrite)
    from densify.display import show_report

    document = {
        "command": "report",
        "dense": dense,
        "pictures": [_drawn(image, one) for image, one in drawn.items()],
        "written": str(output),
        **verification.to_dict(),
    }
    emit(voice, document, lambda: show_report(document, verbose=voice.verbose))
    voice.say(f"wrote {output} ({output.stat().st_size / 1e3:.0f} kB)")
    if not verification:
        raise typer.Exit(1)


def _drawn(image: str, one: Comparison | str) -> dict[str, Any]:
    return {"image": image, "reason": one} if isinstance(one, str) else {**one.to_dict(), "words": one.words}


_Means = tuple[float, ...] | None
_Read = tuple["Dense | DenseOnnx", dict[str, Any], "list[Sample]", "Report"]


def _of_module(path: str, reading: Reading, run: o.Run, mean: _Means, std: _Means) -> _Read:
    from json import loads

    from densify.cli import checking
    from densify.cli.models import is_file
    from densify.cli.verify import check
    from densify.conversion import Dense

    if not is_file(path):
        raise UsageError(f"{path}: a report is about a dense file that densify wrote; densify convert writes one")
    (subject,) = reading.subjects([path])
    if not isinstance(subject.model, Dense):
        raise UsageError(f"{path}: is no dense network, but an original; name the dense file")
    samples = checking.inputs(run, subject.size, mean or subject.mean, std or subject.std, subject.model)
    verification = check([subject], samples, run, reading.voice)
    return subject.model, loads(subject.recipe or "{}"), samples, verification


def _of_graph(path: str, reading: Reading, run: o.Run, mean: _Means, std: _Means) -> _Read:
    from json import loads

    from densify.onnx.conversion import opened
    from densify.onnx.model import OnnxModel
    from densify.onnx.verification import verify_onnx_laws
    from densify.samples import read_samples
    from densify.weights import RECIPE_KEY

    reading.voice.say(f"reading {path}")
    file = OnnxModel.load(path)
    if not file.is_dense:
        raise UsageError(f"{path}: is no dense network that densify wrote; densify convert makes one of it")
    dense = opened(file)
    origin = dense.origin
    shape, means = dense.options.shape[1:], (mean or origin.mean, std or origin.std)
    samples = read_samples(run.samples, shape, *means, dense.source.dtype)
    reading.voice.say(f"verifying on {', '.join(sample.name for sample in samples)}")
    verification = verify_onnx_laws(None, dense, samples, rtol=run.rtol, atol=run.atol)
    return dense, loads(file.metadata[RECIPE_KEY]), samples, verification
