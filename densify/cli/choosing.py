"""What `densify plan` says where nothing is chosen yet, and the commands to go on with, options included."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import TYPE_CHECKING, Any

from densify.cli.options import Voice
from densify.cli.running import emit
from densify.display_choices import proposed, show_offers
from densify.recipe import Options

if TYPE_CHECKING:
    from densify.choose import Choice

_DEFAULTS = {field.name: field.default for field in fields(Options)}


def typed(
    model: str,
    size: Sequence[int] | None = None,
    *,
    any_size: bool = False,
    arguments: Sequence[str] | None = None,
    reference: str | None = None,
    trust: bool = False,
    how: Mapping[str, str] | None = None,
) -> str:
    """A model and the options that another command needs as well, as they are typed in a shell.

    Args:
        size: the reference size (C, spatial ...), where the user gave it.
        arguments: of the model's factory, NAME=VALUE.
        reference, trust: of a file that densify wrote.
        how: how to convert; what is the default is left out.
    """
    words = [model]
    words += ["--input-size", ",".join(map(str, size))] if size else []
    words += ["--any-size"] if any_size else []
    words += [word for text in arguments or () for word in ("--model-arg", text)]
    words += ["--model", reference] if reference is not None else []
    words += ["--trust-code"] if trust else []
    for name, value in (how or {}).items():
        words += [f"--{name}", value] if value != _DEFAULTS[name] else []
    return shlex.join(words)


def chosen(choice: Choice) -> str:
    """A choice of layers, as it is typed."""
    if choice.start is not None:
        return shlex.join(["--start", choice.start])
    if choice.output_stride is not None:
        return f"--output-stride {choice.output_stride}"
    return shlex.join([word for name in choice.layers or () for word in ("--layer", name)]) or "--head-only"


def propose(document: Mapping[str, Any], model: str, voice: Voice) -> None:
    """Show the choices, and how to go on.

    Args:
        document: as :meth:`densify.offers.Offers.to_dict` makes it, with the command and the model.
        model: as :func:`typed` makes it.
    """
    emit(voice, document, lambda: show_offers(document, verbose=voice.verbose))
    options = proposed(document)
    if options:
        voice.next(f"densify plan {model} {options}")
