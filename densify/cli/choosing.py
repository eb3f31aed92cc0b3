"""What `densify plan` says where nothing is chosen yet."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from densify.cli.options import Voice
from densify.cli.running import emit
from densify.display_choices import proposed, show_offers


def propose(document: Mapping[str, Any], model: str, voice: Voice) -> None:
    """Show the choices, and how to go on.

    Args:
        document: as :meth:`densify.offers.Offers.to_dict` makes it, with the command and the model.
        model: the model and its size as they are typed.
    """
    emit(voice, document, lambda: show_offers(document, verbose=voice.verbose))
    options = proposed(document)
    if options:
        voice.next(f"densify plan {model} {options}")
