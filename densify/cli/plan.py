"""`densify plan`: what a conversion would change, and what it would cost."""

from __future__ import annotations

from typing import Any

from densify.cli import options as o
from densify.cli.running import command, emit
from densify.errors import UsageError


@command
def plan(
    model: o.SurveyedArgument,
    start: o.StartOption = None,
    layer: o.LayerOption = None,
    output_stride: o.StrideOption = None,
    head_only: o.HeadOnlyOption = False,
    input_size: o.InputSizeOption = None,
    any_size: o.AnySizeOption = False,
    model_arg: o.ModelArgOption = None,
    padding: o.PaddingOption = o.Padding.full,
    head: o.HeadOption = o.Head.dense,
    form: o.FormOption = o.Form.dilated,
    merge: o.MergeOption = o.Merge.select,
    measure: o.MeasureOption = False,
    device: o.DeviceOption = "cpu",
    reference: o.ReferenceOption = None,
    trust_code: o.TrustOption = False,
    json: o.JsonOption = False,
    verbose: o.VerboseOption = False,
    quiet: o.QuietOption = False,
) -> None:
    """Say what a conversion would change and cost.

    Without a choice of layers it lists them all. Needs no weights and writes nothing.

    Example: densify plan torchvision:vgg16 --start features.23
    """
    picked = o.choice_if_any(start, layer, output_stride, head_only)
    if measure and picked is None:
        raise UsageError("--measure times one choice: give --start, --layer, --output-stride or --head-only with it")
    if device != "cpu" and not measure:
        raise UsageError(f"--device {device}: nothing is computed; --measure does")
    how = o.rewriting(padding, head, form, merge)
    size, voice = o.size(input_size), o.Voice(json, verbose, quiet)

    from densify.cli.choosing import chosen, propose, typed
    from densify.cli.models import Asked, Surveyed, is_file, is_graph, refuse_any_size
    from densify.conversion import choices as offers
    from densify.conversion import plan as made
    from densify.display import show_plan
    from densify.reference import is_folder

    if is_graph(model):
        from densify.cli import graphs

        graphs.refuse_options(model, {"--model-arg": model_arg, "--device": device != "cpu"})
        graphs.plan(model, picked, size, how, voice, any_size=any_size, measure=measure)
        return
    refuse_any_size(model, any_size)
    surveyed = Surveyed(Asked(model, arguments=tuple(model_arg or ())), size, reference, trust_code, voice)
    words = typed(model, size, arguments=model_arg, reference=reference, trust=trust_code, how=how)
    if picked is None:
        how.pop("form")
        found = surveyed(lambda built, wanted: offers(built, (1, *wanted), **how))
        propose({"command": "plan", "model": model, **found.to_dict()}, words, voice)
        return
    options: dict[str, Any] = {"start": picked.start, "layers": picked.layers, "output_stride": picked.output_stride}
    options |= how
    planned = surveyed(lambda built, wanted: made(built, (1, *wanted), **options))
    document = {"command": "plan", "model": model, **planned.to_dict()}
    if measure:
        from densify.cli.measuring import measure_torch

        voice.say("measuring")
        times = measure_torch(*surveyed.model(numbers=True), picked, how, device)
        document["measured"] = times | {"random": not is_file(model)}
    emit(voice, document, lambda: show_plan(document, verbose=verbose))
    if not is_file(model):
        weights = "" if is_folder(model) else " --weights FILE"
        voice.next(f"densify convert {words} {chosen(picked)}{weights} -o dense.safetensors")
