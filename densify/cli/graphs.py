"""The commands on ONNX files of which no torch code is known: the same work, done on the graph."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import torch
import typer

from densify.cli.choosing import chosen, propose, typed
from densify.cli.like import fitting
from densify.cli.options import Run, Voice
from densify.cli.running import emit
from densify.comparison import Tolerance
from densify.errors import ConversionError, UsageError
from densify.files import write_all
from densify.graphs.onnx.image import spatial_dims
from densify.onnx.conversion import (
    DenseOnnx,
    OnnxConversion,
    build_for,
    build_onnx,
    choices_onnx,
    in_half,
    opened,
    options_of,
    origin_of,
    survey_onnx,
)
from densify.onnx.file import to_torch
from densify.onnx.model import OnnxModel, reference_shape, write_checked
from densify.onnx.packing import inverse_onnx
from densify.onnx.verification import legal, same_outputs, verify_half, verify_onnx_laws
from densify.onnx.writing import metadata_of, metadata_of_original
from densify.samples import Sample, random_inputs, read_samples, verification_sizes

if TYPE_CHECKING:
    from densify.checkpoint import Change
    from densify.choose import Choice
    from densify.comparison import Report
    from densify.targets import Target

_MULTIPLES = (1, 2, 4, 8, 16, 32, 64)


_WHY = {
    "--dtype": "it is computed in the type that it has",
    "--device": "it runs in ONNX Runtime, on the CPU",
    "--target": "what it was made from has no target",
    "--opset": "what it was made from has its own opset",
    "--static": "what it was made from has its own sizes",
    "--half": "what it was made from has its own type",
}


def refuse_options(text: str, given: Mapping[str, object]) -> None:
    """Refuse what has no meaning for an ONNX file.

    Raises:
        UsageError: naming the options, and why.
    """
    asked = [name for name, value in given.items() if value]
    if asked:
        why = "; ".join(dict.fromkeys(_WHY.get(name, "an ONNX file holds its own graph and weights") for name in asked))
        raise UsageError(f"{text}: {why}: leave {' and '.join(asked)} out")


def check_outputs(text: str, outputs: Sequence[Path]) -> None:
    """Refuse outputs in another format.

    Raises:
        UsageError: naming the first of them.
    """
    for path in outputs:
        if path.suffix.lower() != ".onnx":
            raise UsageError(f"{path}: what is made of {text} is a graph; name an .onnx file")


# ---- commands ------------------------------------------------------------------------------------


def convert(
    text: str,
    choice: Choice,
    size: Sequence[int] | None,
    preprocessing: tuple[Sequence[float] | None, Sequence[float] | None],
    how: Mapping[str, Any],
    outputs: Sequence[Path],
    run: Run,
    voice: Voice,
    *,
    like: Path | None,
    target: Target,
    opset: int | None,
    any_size: bool,
    static: bool,
    half: bool,
    overwrite: bool,
    dry_run: bool,
    keep_failed: bool,
) -> None:
    """`densify convert` of an ONNX file."""
    check_outputs(text, outputs)
    voice.say(f"reading {text}")
    source = OnnxModel.load(text)
    if any_size:
        source, size = _opened_size(source, size)
    elif not static:
        _tell_fixed(source, voice)
    if source.recipe is not None and source.recipe.kind == "dense":
        raise UsageError(f"{text}: is dense already; convert its original (densify inverse {shlex.quote(text)} -o ...)")
    origin = origin_of(source)
    mean, std = (
        own if asked is None else tuple(asked)
        for asked, own in zip(preprocessing, (origin.mean, origin.std), strict=True)
    )
    voice.say("converting")
    with fitting(like, text):
        options, origin = options_of(source, size, **asdict(choice), **how), replace(origin, mean=mean, std=std)
        dense = build_for(source, options, origin, target, opset=opset, static=static)
    if dense.options.form != how["form"]:
        voice.say(f"in the {dense.options.form} form, as the target {target.name} takes it")
    if dense.opset != source.opset:
        why = "what is written needs it" if opset is None else "as asked for"
        voice.say(f"opset {source.opset} -> {dense.opset}: {why}")
    samples = inputs(run, dense)
    voice.say(f"verifying on {', '.join(sample.name for sample in samples)}")
    with _legal_samples(source, samples, run, dense):
        report = verify_onnx_laws(None, dense, samples, rtol=run.rtol, atol=run.atol)
    if half:
        voice.say("verifying in float16")
        single, dense = dense, build_for(source, options, origin, target, opset=opset, static=static, half=True)
        report += verify_half(single, dense, samples, Tolerance(run.rtol, run.atol))
    written: Sequence[Path] = ()
    if report or keep_failed:
        dense.graph.metadata_props.update(metadata_of(dense))
        written = _write(dense.graph, outputs, voice, overwrite=overwrite, dry_run=dry_run)
    from densify.cli.convert import show_results

    show_results(voice, text, dense, report, written, outputs if dry_run else None)
    _judge(report, written, voice)
    if written:
        file = written[0]
        back = shlex.quote(str(file.with_name(f"{file.stem}-dpoa.onnx")))
        voice.next(f"densify verify {shlex.quote(str(file))}", f"densify inverse {shlex.quote(str(file))} -o {back}")


def inverse(
    text: str,
    source: Path | None,
    outputs: Sequence[Path],
    run: Run,
    voice: Voice,
    *,
    overwrite: bool,
    dry_run: bool,
    keep_failed: bool,
) -> None:
    """`densify inverse` of a dense file that was made from an ONNX file."""
    check_outputs(text, outputs)
    voice.say(f"reading {text}")
    dense = opened(OnnxModel.load(text))
    recipe, changed = dense.recipe, _changes(dense, source)
    samples = inputs(run, dense)
    voice.say(f"verifying on {', '.join(sample.name for sample in samples)}")
    with _legal_samples(dense.source, samples, run, dense):
        report = verify_onnx_laws(None, dense, samples, rtol=run.rtol, atol=run.atol)
    written: Sequence[Path] = ()
    if report or keep_failed:
        graph = dense.source.base.copy()
        graph.metadata_props.update(metadata_of_original(dense))
        written = _write(graph, outputs, voice, overwrite=overwrite, dry_run=dry_run)
    from densify.cli.inverse import show_results

    show_results(voice, text, recipe, changed, report, written, outputs if dry_run else None)
    _judge(report, written, voice)
    if written:
        voice.next(f"densify verify {shlex.quote(str(written[0]))} {shlex.quote(text)}")


def verify(texts: Sequence[str], size: Sequence[int] | None, run: Run, voice: Voice) -> None:
    """`densify verify` of one or two ONNX files."""
    files = []
    for text in texts:
        if not text.lower().endswith(".onnx"):
            raise UsageError(f"{text}: an ONNX file is compared with an ONNX file; name one")
        voice.say(f"reading {text}")
        files.append(OnnxModel.load(text))
    dense = [opened(file) for file in files if file.is_dense]
    plain = [file for file in files if not file.is_dense]
    if len(dense) > 1:
        raise UsageError(f"{texts[0]} and {texts[1]}: both are dense; compare one of them with its original")
    if dense:
        samples = inputs(run, dense[0])
        original = as_precise(plain[0], dense[0], voice) if plain else None
        voice.say(f"verifying on {', '.join(sample.name for sample in samples)}")
        with _legal_samples(dense[0].source, samples, run, dense[0]):
            report = verify_onnx_laws(original, dense[0], samples, rtol=run.rtol, atol=run.atol)
    elif len(plain) == 2:
        samples = _inputs_of(run, plain[0], reference_shape(plain[0], size), None, None)
        with _legal_samples(plain[0], samples, run, None):
            report = same_outputs(plain[0], plain[1], samples, rtol=run.rtol, atol=run.atol)
    else:
        raise UsageError(f"{texts[0]}: is an original; name the dense file, or another original, to compare with")
    from densify.display import show_report

    document = {"command": "verify", "compared": list(texts), **report.to_dict()}
    emit(voice, document, lambda: show_report(document, verbose=voice.verbose))
    if not report:
        raise typer.Exit(1)


def inspect(text: str, size: Sequence[int] | None, voice: Voice) -> None:
    """`densify inspect` of an ONNX file."""
    source, known, _ = _original(text, voice, numbers=False)
    asked, size = size, size or known
    found = survey_onnx(source, size).to_dict(every=voice.verbose)
    from densify.display import show_layers

    document = {"command": "inspect", "model": text, **found}
    emit(voice, document, lambda: show_layers(document))
    if any(layer["strided"] for layer in found["layers"]):
        voice.next(f"densify plan {typed(text, asked)}")


def plan(
    text: str,
    choice: Choice | None,
    size: Sequence[int] | None,
    how: Mapping[str, Any],
    voice: Voice,
    *,
    any_size: bool,
    measure: bool,
) -> None:
    """`densify plan` of an ONNX file."""
    source, known, dense = _original(text, voice, numbers=measure)
    asked, wanted = size, size or known
    if any_size:
        source, wanted = _opened_size(source, wanted)
    else:
        _tell_fixed(source, voice)
    from densify.display import show_plan

    words = typed(text, asked, any_size=any_size, how=how)
    if choice is None:
        found = choices_onnx(source, wanted, **{name: value for name, value in how.items() if name != "form"})
        propose({"command": "plan", "model": text, **found.to_dict()}, words, voice)
        return
    options = options_of(source, wanted, **asdict(choice), **how)
    made = OnnxConversion(source, options).plan
    document = {"command": "plan", "model": text, **made.to_dict()}
    if measure:
        from densify.cli.measuring import measure_onnx

        voice.say("measuring")
        document["measured"] = measure_onnx(build_onnx(source, options, origin_of(source))) | {"random": False}
    emit(voice, document, lambda: show_plan(document, verbose=voice.verbose))
    if not dense:
        voice.next(f"densify convert {words} {chosen(choice)} -o dense.onnx")


def _opened_size(source: OnnxModel, size: Sequence[int] | None) -> tuple[OnnxModel, Sequence[int]]:
    """A graph for images of any size, and its reference size: by default the one that it was declared for."""
    return source.any_size(), size or reference_shape(source, None)[1:]


def _one_size(source: OnnxModel) -> str:
    """The size of the images that a graph is declared to take alone, such as "20x18"; empty where it takes others."""
    declared = source.declared()
    sizes = [declared[dim] for dim in spatial_dims(source.graph)[2:]] if declared else [None]
    return "" if None in sizes else "x".join(map(str, sizes))


def _tell_fixed(source: OnnxModel, voice: Voice) -> None:
    if size := _one_size(source):
        voice.say(f"{source.name}: takes images of {size} alone; --any-size takes it for images of any size")


@contextmanager
def _legal_samples(source: OnnxModel, samples: Sequence[Sample], run: Run, dense: DenseOnnx | None) -> Iterator[None]:
    """Where a graph fails on a sample that the user gave, say on which.

    Raises:
        UsageError: naming it, and the size to give.
    """
    try:
        yield
    except ConversionError as error:
        for sample in samples if run.samples else ():
            if not legal(source, sample.tensor.shape, dense):
                sizes = _one_size(source)
                remedy = f"give samples of {sizes or 'sizes that it takes, such as the reference size'}"
                remedy += ", or convert the model with --any-size" if sizes else ""
                raise UsageError(
                    f"{sample.name}: the network takes no input of {list(sample.tensor.shape)}; {remedy}"
                ) from error
        raise


# ---- parts of them -------------------------------------------------------------------------------


def _original(text: str, voice: Voice, *, numbers: bool) -> tuple[OnnxModel, tuple[int, ...] | None, bool]:
    """A file as an original, of a dense one what it was made from; its reference size where it tells; whether it is
    dense."""
    file = OnnxModel.load(text, numbers=numbers)
    if file.is_dense:
        voice.say(f"{text}: is dense already; this is the graph that it was made from")
    known = None if file.recipe is None else file.recipe.options.shape[1:]
    return (inverse_onnx(file) if file.is_dense else file), known, file.is_dense


def as_precise(original: OnnxModel, dense: DenseOnnx, voice: Voice) -> OnnxModel:
    """The original in float16, where the dense graph is and the original is not."""
    if dense.source.dtype != torch.float16 or original.dtype == torch.float16:
        return original
    voice.say(f"{original.name}: compared in float16, as the dense file is")
    return in_half(original)


def inputs(run: Run, dense: DenseOnnx) -> list[Sample]:
    """What to verify on: the given samples, else random inputs of several sizes, where the graph takes them."""
    return _inputs_of(run, dense.source, dense.options.shape, dense.origin, dense)


def _inputs_of(run: Run, source: OnnxModel, shape: Sequence[int], origin: Any, dense: DenseOnnx | None) -> list[Sample]:
    dtype = source.dtype
    if run.samples:
        mean, std = (None, None) if origin is None else (origin.mean, origin.std)
        return read_samples(run.samples, shape[1:], mean, std, dtype)
    sizes = [
        near
        for size in verification_sizes(tuple(shape[2:]))
        if (near := _nearest(source, (shape[0], shape[1], *size), dense)) is not None
    ]
    found = random_inputs(tuple(shape[1:]), list(dict.fromkeys(sizes)) or [tuple(shape[2:])], run.seed, dtype)
    last = found[-1]
    if legal(source, (2 * shape[0], *last.tensor.shape[1:]), dense):
        found[-1] = Sample(f"{last.name}, batch {2 * shape[0]}", torch.cat([last.tensor, last.tensor.flip(-1)]))
    elif shape[0] > 1:
        found = [replace(one, tensor=torch.cat([one.tensor] * shape[0])) for one in found]
    return found


def _nearest(source: OnnxModel, shape: Sequence[int], dense: DenseOnnx | None) -> tuple[int, ...] | None:
    """The spatial sizes rounded up to multiples of the least power of 2 that the graph takes; None where none does."""
    for step in _MULTIPLES:
        near = tuple(-(-n // step) * step for n in shape[2:])
        if legal(source, (*shape[:2], *near), dense):
            return near
    return None


def _write(graph: Any, outputs: Sequence[Path], voice: Voice, *, overwrite: bool, dry_run: bool) -> Sequence[Path]:
    """Write a graph to all outputs or none, each checked as a file before it appears; returns what was written."""

    def write(place: Path) -> None:
        write_checked(graph, place)

    if dry_run:
        if outputs:
            with TemporaryDirectory() as folder:
                write(Path(folder) / outputs[0].name)
        return ()
    write_all(dict.fromkeys(outputs, write), overwrite=overwrite)
    for path in outputs:
        voice.say(f"wrote {path} ({path.stat().st_size / 1e6:.1f} MB)")
    return outputs


def _judge(report: Report, written: Sequence[Path], voice: Voice) -> None:
    if not report:
        voice.say("verification failed: " + ("the files were kept" if written else "nothing was written"))
        raise typer.Exit(1)


def _changes(dense: DenseOnnx, source: Path | None) -> list[Change]:
    from densify.checkpoint import changes

    state = {name: to_torch(tensor) for name, tensor in dense.source.weights.items()}
    given = None
    if source is not None:
        given = {name: to_torch(tensor) for name, tensor in OnnxModel.load(source).weights.items()}
    return changes(dense.recipe, state, given)
