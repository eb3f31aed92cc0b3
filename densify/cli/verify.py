"""`densify verify`: check files against each other, against the original, and in ONNX Runtime."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from densify.cli import options as o
from densify.cli.running import command, emit
from densify.errors import UsageError

if TYPE_CHECKING:
    from densify.cli.subjects import Subject
    from densify.comparison import Report
    from densify.samples import Sample

_FILE_OR_MODEL = "A file that densify wrote, another .onnx file, or a MODEL"
_First = Annotated[str, typer.Argument(metavar="A", help=f"{_FILE_OR_MODEL}.", show_default=False)]
_Second = Annotated[str | None, typer.Argument(metavar="B", help=f"{_FILE_OR_MODEL}; default: A's own original.")]


@command
def verify(
    a: _First,
    b: _Second = None,
    sample: o.SampleOption = None,
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
    rtol: o.RtolOption = None,
    atol: o.AtolOption = 0.0,
    device: o.DeviceOption = "cpu",
    dtype: o.DTypeOption = None,
    json: o.JsonOption = False,
    verbose: o.VerboseOption = False,
    quiet: o.QuietOption = False,
) -> None:
    """Check networks against each other.

    A dense network against its original, or two networks of one kind. One dense file is compared with its own
    parameters in the original architecture; an .onnx file also runs in ONNX Runtime, with all optimisations and with
    none. A MODEL among the two needs --weights (or --pretrained).

    Example: densify verify dense.onnx torchvision:vgg16 --pretrained --sample photo.jpg
    """
    size, means, stds = o.size(input_size), o.numbers(mean, "--mean"), o.numbers(std, "--std")
    run = o.Run(device, dtype, rtol, atol, seed, tuple(sample or ()))
    voice = o.Voice(json, verbose, quiet)

    from densify.cli import checking
    from densify.cli.models import Asked, is_file, is_graph
    from densify.cli.subjects import Reading

    texts = [text for text in (a, b) if text is not None]
    if any(map(is_graph, texts)):
        from densify.cli import graphs

        graphs.refuse_options(a, {"--dtype": dtype, "--device": device != "cpu", "--weights": weights})
        graphs.verify(texts, size, run, voice)
        return
    asked = {
        text: Asked(text, weights, pretrained, init, seed, tuple(model_arg or ()))
        for text in texts
        if not is_file(text)
    }
    subjects = Reading(asked, model, trust_code, size, voice).subjects(texts)
    means, stds = means or subjects[0].mean, stds or subjects[0].std
    samples = checking.inputs(run, size or subjects[0].size, means, stds, subjects[0].model)
    report = check(subjects, samples, run, voice)
    _results(voice, texts, report)
    if not report:
        raise typer.Exit(1)


def check(subjects: list[Subject], samples: list[Sample], run: o.Run, voice: o.Voice) -> Report:
    """All checks that apply: laws between a dense network and an original, the same outputs between equals, and every
    ONNX file in its runtime."""
    from densify.cli import checking
    from densify.comparison import Report
    from densify.conversion import Dense

    dense = [s for s in subjects if isinstance(s.model, Dense)]
    plain = [s for s in subjects if not isinstance(s.model, Dense)]
    report = Report(())
    if dense and (plain or len(subjects) == 1):
        network = dense[0].model
        assert isinstance(network, Dense)
        report += checking.check_laws(plain[0].model if plain else None, network, samples, run, voice)
    elif len(subjects) == 2:
        report += checking.same_outputs(subjects[0].model, subjects[1].model, samples, run)
    elif subjects[0].onnx is None:
        raise UsageError(
            f"{subjects[0].text}: is an original; name the dense file, or another original, to compare with"
        )
    for subject in subjects:
        if subject.onnx is not None:
            given = checking.fitting(subject.onnx, checking.legal(subject.model, samples, run), run)
            report += checking.check_onnx(subject.onnx, subject.text, subject.model, given, run, voice)
    return report


def _results(voice: o.Voice, names: list[str], report: Report) -> None:
    from densify.display import show_report

    document = {"command": "verify", "compared": names, **report.to_dict()}
    emit(voice, document, lambda: show_report(document, verbose=voice.verbose))
