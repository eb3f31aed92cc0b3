"""`densify inverse`: a dense network's parameters in the original architecture."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from densify.cli import options as o
from densify.cli.running import command, emit
from densify.errors import UsageError
from densify.files import check_writable

if TYPE_CHECKING:
    from densify.checkpoint import Change
    from densify.comparison import Report
    from densify.conversion import Dense
    from densify.recipe import Recipe

_FileArgument = Annotated[
    str, typer.Argument(metavar="DENSE", help="A dense .safetensors, .pth or .onnx that densify wrote.")
]
_SourceOption = Annotated[
    Path | None, o.option(o.MODEL, "--weights SOURCE", "What was converted: tells by how much parameters changed.")
]
_DryRunOption = Annotated[bool, o.option(o.OUTPUT, "--dry-run", "Check all, and write nothing.")]


@command
def inverse(
    dense: _FileArgument,
    output: o.OutputOption = None,
    weights: _SourceOption = None,
    model: o.ReferenceOption = None,
    trust_code: o.TrustOption = False,
    sample: o.SampleOption = None,
    seed: o.SeedOption = 0,
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
    dry_run: _DryRunOption = False,
    json: o.JsonOption = False,
    verbose: o.VerboseOption = False,
    quiet: o.QuietOption = False,
) -> None:
    """Give a dense network's weights back (dpoa).

    Proves that the original architecture equals the dense network on its grid, and says which parameters changed since
    the conversion. The state_dict loads into the original class without densify.

    Example: densify inverse finetuned.safetensors --weights vgg16.pth -o fast.safetensors
    """
    outputs = list(output or ())
    o.check_has_output(outputs, dry_run=dry_run)
    check_writable(outputs, overwrite)
    o.check_has_onnx(outputs, static=static, half=half)
    o.check_inputs_stay(outputs, Path(dense), weights)
    run = o.Run(device, dtype, rtol, atol, seed, tuple(sample or ()))
    voice = o.Voice(json, verbose, quiet)

    from densify.cli import checking
    from densify.cli.models import is_graph
    from densify.conversion import inverse as back

    onnx = checking.onnx_options(target, opset, outputs)
    if is_graph(dense):
        from densify.cli import graphs

        given = {"--dtype": dtype, "--device": device != "cpu", "--opset": opset, "--target": target}
        graphs.refuse_options(dense, given | {"--static": static, "--half": half})
        graphs.inverse(
            dense, weights, outputs, run, voice, overwrite=overwrite, dry_run=dry_run, keep_failed=keep_failed
        )
        return
    voice.say(f"reading {dense}")
    network, recipe = _dense(dense, model, trust_code)
    changed = _changes(recipe, network, weights)
    fast = back(network, share=True)
    shape = (1, *network.options.shape[1:]) if static else network.options.shape
    samples = checking.inputs(run, shape[1:], recipe.origin.mean, recipe.origin.std, network)
    report = checking.check_laws(fast, network, samples, run, voice)
    about = recipe.of_kind("dpoa")
    writing = checking.Writing(fast, about, shape, samples, run, voice, onnx, keep_failed, static, half)
    written = False
    if report or keep_failed:
        written = writing.write(outputs, overwrite=overwrite, dry_run=dry_run)
    report += writing.report
    show_results(voice, dense, recipe, changed, report, outputs if written else [], outputs if dry_run else None)
    if not report:
        voice.say("verification failed: " + ("the files were kept" if written else "nothing was written"))
        raise typer.Exit(1)
    if written:
        code = " --trust-code" if trust_code or model else ""
        voice.next(f"densify verify {shlex.quote(str(outputs[0]))} {shlex.quote(dense)}{code}")


def _dense(path: str, reference: str | None, trust: bool) -> tuple[Dense, Recipe]:
    from densify.cli.models import is_file, restored
    from densify.conversion import Dense

    if not is_file(path):
        raise UsageError(f"{path}: inverse takes a dense .safetensors, .pth or .onnx file that `densify convert` wrote")
    network, recipe, _ = restored(path, reference, trust)
    if not isinstance(network, Dense):
        raise UsageError(f"{path}: is in the original architecture already; give the dense file")
    return network, recipe


def _changes(recipe: Recipe, network: Dense, source: Path | None) -> list[Change]:
    """What differs from the source; a source is read as the model takes it, as the conversion read it."""
    from densify.checkpoint import changes
    from densify.cli.models import read_file
    from densify.fit import fit

    if source is None:
        return changes(recipe, network.state_dict())
    given = read_file(source)
    return changes(recipe, network.state_dict(), fit(network.source, given.tensors, given.source))


def show_results(
    voice: o.Voice,
    path: str,
    recipe: Recipe,
    changed: list[Change],
    report: Report,
    written: Sequence[Path],
    rehearsed: Sequence[Path] | None,
) -> None:
    """What changed since the conversion, the verification, and what was written.

    Args:
        path: the dense file, as the user gave it.
        rehearsed: in a dry run, what would be written.
    """
    from dataclasses import asdict

    from densify.display import show_inverse

    document = {
        "command": "inverse",
        "dense": path,
        "model": recipe.origin.model,
        "parameters": len(recipe.origin.tensors),
        "changed": [asdict(change) for change in changed],
        "dry_run": rehearsed is not None,
        "written": [str(file) for file in written],
        **report.to_dict(),
    }
    emit(voice, document, lambda: show_inverse(document, verbose=voice.verbose))
    if rehearsed is not None and report:
        voice.rehearsed(rehearsed)
