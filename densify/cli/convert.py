"""`densify convert`: make a dense network, verify it, then write it."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from densify.cli import options as o
from densify.cli.running import command, emit
from densify.files import check_writable

if TYPE_CHECKING:
    from densify.cli.models import Asked
    from densify.comparison import Report
    from densify.conversion import Dense
    from densify.onnx.conversion import DenseOnnx
    from densify.recipe import Options
    from densify.reference import ModelReference


@command
def convert(
    context: typer.Context,
    model: o.ModelArgument,
    start: o.StartOption = None,
    layer: o.LayerOption = None,
    output_stride: o.StrideOption = None,
    head_only: o.HeadOnlyOption = False,
    like: o.LikeOption = None,
    output: o.OutputOption = None,
    weights: o.WeightsOption = None,
    pretrained: o.PretrainedOption = False,
    init: o.InitOption = None,
    seed: o.SeedOption = 0,
    model_arg: o.ModelArgOption = None,
    input_size: o.InputSizeOption = None,
    any_size: o.AnySizeOption = False,
    mean: o.MeanOption = None,
    std: o.StdOption = None,
    padding: o.PaddingOption = o.Padding.full,
    head: o.HeadOption = o.Head.dense,
    form: o.FormOption = o.Form.dilated,
    merge: o.MergeOption = o.Merge.select,
    sample: o.SampleOption = None,
    rtol: o.RtolOption = None,
    atol: o.AtolOption = 0.0,
    device: o.DeviceOption = "cpu",
    dtype: o.DTypeOption = None,
    target: o.TargetOption = None,
    opset: o.OpsetOption = None,
    static: o.StaticOption = False,
    half: o.HalfOption = False,
    keep_failed: o.KeepFailedOption = False,
    overwrite: o.OverwriteOption = False,
    dry_run: o.DryRunOption = False,
    json: o.JsonOption = False,
    verbose: o.VerboseOption = False,
    quiet: o.QuietOption = False,
) -> None:
    """Make a model dense, verify it, and write it. Nothing is written unless every check passes.

    Example: densify convert torchvision:vgg16 --pretrained --start features.23 -o dense.onnx
    """
    outputs = list(output or ())
    o.check_has_output(outputs, dry_run=dry_run)
    check_writable(outputs, overwrite)
    o.check_has_onnx(outputs, static=static, half=half)
    o.check_inputs_stay(outputs, weights, Path(model), like)
    how = o.rewriting(padding, head, form, merge)
    size, means, stds = o.size(input_size), o.numbers(mean, "--mean"), o.numbers(std, "--std")
    if like is None:
        picked = o.choice(start, layer, output_stride, head_only)
    else:
        from densify.cli.like import REWRITING, rewriting_of

        recipe = o.like(like, start, layer, output_stride, head_only)
        picked, how = recipe.options.choice, rewriting_of(recipe, how, o.explicit(context, REWRITING))
        size, means, stds = size or recipe.options.shape[1:], means or recipe.origin.mean, stds or recipe.origin.std
    run = o.Run(device, dtype, rtol, atol, seed, tuple(sample or ()))
    voice = o.Voice(json, verbose, quiet)

    from densify.cli import checking
    from densify.cli.models import Asked, is_graph, refuse_any_size, refuse_file, with_preprocessing
    from densify.cli.models import input_size as known_size
    from densify.recipe import Options

    onnx = checking.onnx_options(target, opset, outputs)
    if is_graph(model):
        from densify.cli import graphs

        given: dict[str, object] = {"--weights": weights, "--pretrained": pretrained, "--init": init}
        given |= {"--model-arg": model_arg, "--dtype": dtype, "--device": device != "cpu"}
        graphs.refuse_options(model, given)
        graphs.convert(
            model, picked, size, (means, stds), how, outputs, run, voice, like=like, target=onnx.target, opset=opset,
            any_size=any_size, static=static, half=half, overwrite=overwrite, dry_run=dry_run, keep_failed=keep_failed,
        )  # fmt: skip
        return
    refuse_any_size(model, any_size)
    refuse_file(model)
    asked = Asked(model, weights, pretrained, init, seed, tuple(model_arg or ()))
    found = with_preprocessing(asked.resolve(), means, stds)
    shape = (1, *known_size(size, found))
    o.check_channels(found.mean, found.std, shape[1])
    options = Options(shape, picked, **how)
    if dry_run and not asked.has_weights(found):
        _show_plan(asked, options, voice, like)
        voice.rehearsed(outputs)
        return
    dense = _build(asked, found, options, voice, like)
    samples = checking.inputs(run, shape[1:], found.mean, found.std, dense)
    report = checking.check_laws(None, dense, samples, run, voice)
    writing = checking.Writing(dense, dense.recipe, shape, samples, run, voice, onnx, keep_failed, static, half)
    written = False
    if report or keep_failed:
        written = writing.write(outputs, overwrite=overwrite, dry_run=dry_run)
    report += writing.report
    show_results(voice, model, dense, report, outputs if written else [], outputs if dry_run else None)
    if not report:
        voice.say("verification failed: " + ("the files were kept" if written else "nothing was written"))
        raise typer.Exit(1)
    if written:
        voice.next(*_next(outputs, asked, found))


def _show_plan(asked: Asked, options: Options, voice: o.Voice, like: Path | None) -> None:
    """What a conversion would change, as `densify plan` says it."""
    from densify.cli.like import fitting
    from densify.cli.models import Surveyed
    from densify.conversion import Conversion
    from densify.display import show_plan

    surveyed = Surveyed(asked, options.shape[1:], None, False, voice)
    with fitting(like, asked.model):
        plan = surveyed(lambda model, _: Conversion(model, options, options.shape).plans[False])
    document = {"command": "plan", "model": asked.model, **plan.to_dict()}
    emit(voice, document, lambda: show_plan(document, verbose=voice.verbose))
    voice.say("no weights are given: this is the plan, and nothing was verified")


def _build(asked: Asked, found: ModelReference, options: Options, voice: o.Voice, like: Path | None) -> Dense:
    """The dense network around the original's own tensors: there is no second copy of them."""
    from densify.cli.like import fitting
    from densify.conversion import build
    from densify.recipe import Origin, digests

    original = asked.build(found, voice)
    origin = Origin(
        found.portable, found.arguments, found.sha256, found.mean, found.std, digests(original.state_dict())
    )
    voice.say("converting")
    with fitting(like, asked.model):
        return build(original, options, origin)


def show_results(
    voice: o.Voice,
    model: str,
    dense: Dense | DenseOnnx,
    report: Report,
    written: Sequence[Path],
    rehearsed: Sequence[Path] | None,
) -> None:
    """What was converted, its verification, and what was written.

    Args:
        model: as the user gave it.
        rehearsed: in a dry run, what would be written.
    """
    from densify.display import show_conversion

    document = {
        "command": "convert",
        "model": model,
        **dense.to_dict(),
        "dry_run": rehearsed is not None,
        "plan": None if rehearsed is None else dense.plan.to_dict(),
        "written": [str(path) for path in written],
        **report.to_dict(),
    }
    emit(voice, document, lambda: show_conversion(document, verbose=voice.verbose))
    if rehearsed is not None and report:
        voice.rehearsed(rehearsed)


def _next(outputs: Sequence[Path], asked: Asked, found: ModelReference) -> list[str]:
    """What one may want to do with the first file."""
    from densify.reference import runs_code

    file = shlex.quote(str(outputs[0]))
    code = " --trust-code" if runs_code(found.portable) else ""
    back = shlex.quote(str(outputs[0].with_name(f"{outputs[0].stem}-dpoa.safetensors")))
    return [f"densify verify {file}{code}", f"densify inverse {file}{code} -o {back}"]
