"""`densify plan`: what a conversion would change, and what it would cost."""

from __future__ import annotations

from densify.cli import options as o
from densify.cli.running import command, emit


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
    reference: o.ReferenceOption = None,
    trust_code: o.TrustOption = False,
    json: o.JsonOption = False,
    verbose: o.VerboseOption = False,
    quiet: o.QuietOption = False,
) -> None:
    """Say what a conversion would change and cost.

    Needs no weights and writes nothing.

    Example: densify plan torchvision:vgg16 --start features.23
    """
    picked = o.choice(start, layer, output_stride, head_only)
    how = o.rewriting(padding, head, form, merge)
    size, voice = o.size(input_size), o.Voice(json, verbose, quiet)

    from densify.cli.models import Asked, is_graph, refuse_any_size, surveyed
    from densify.conversion import plan as made
    from densify.display import show_plan

    if is_graph(model):
        from densify.cli import graphs

        graphs.refuse_options(model, {"--model-arg": model_arg})
        graphs.plan(model, picked, size, how, voice, any_size=any_size)
        return
    refuse_any_size(model, any_size)
    built, wanted = surveyed(Asked(model, arguments=tuple(model_arg or ())), size, reference, trust_code)
    chosen = {"start": picked.start, "layers": picked.layers, "output_stride": picked.output_stride}
    found = made(built, (1, *wanted), **chosen, **how)  # type: ignore[arg-type]
    document = {"command": "plan", "model": model, **found.to_dict()}
    emit(voice, document, lambda: show_plan(document))
