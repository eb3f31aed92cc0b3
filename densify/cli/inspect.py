"""`densify inspect`: the layers of a model, and which of them have strides to remove."""

from __future__ import annotations

from densify.cli import options as o
from densify.cli.running import command, emit


@command
def inspect(
    model: o.SurveyedArgument,
    input_size: o.InputSizeOption = None,
    model_arg: o.ModelArgOption = None,
    reference: o.ReferenceOption = None,
    trust_code: o.TrustOption = False,
    json: o.JsonOption = False,
    verbose: o.VerboseOption = False,
    quiet: o.QuietOption = False,
) -> None:
    """List a model's layers and strides.

    Needs no weights. The marked layers are the strided ones: what --start and --layer take. -v lists every operation.

    Example: densify inspect torchvision:resnet18
    """
    size, voice = o.size(input_size), o.Voice(json, verbose, quiet)

    from densify.cli.choosing import typed
    from densify.cli.models import Asked, Surveyed, is_graph
    from densify.conversion import inspect as survey
    from densify.display import show_layers

    if is_graph(model):
        from densify.cli import graphs

        graphs.refuse_options(model, {"--model-arg": model_arg})
        graphs.inspect(model, size, voice)
        return
    surveyed = Surveyed(Asked(model, arguments=tuple(model_arg or ())), size, reference, trust_code, voice)
    found = surveyed(lambda built, wanted: survey(built, (1, *wanted)))
    document = {"command": "inspect", "model": model, **found.to_dict(every=verbose)}
    emit(voice, document, lambda: show_layers(document))
    if any(layer["strided"] for layer in document["layers"]):
        words = typed(model, size, arguments=model_arg, reference=reference, trust=trust_code)
        voice.next(f"densify plan {words}")
