"""What there is to choose, as a table for people."""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from densify import tables, words

if TYPE_CHECKING:
    from rich.console import Console

Document = Mapping[str, Any]
_SHOWN = 10


def show_offers(document: Document, screen: Console | None = None, *, verbose: bool = False) -> None:
    """Every choice: its outputs, and what it costs beside the original; with `verbose` all reasons of refusals."""
    screen = screen or tables.screen()
    original, choices = document["original"], document["choices"]
    at = f"{words.model(document)} at {words.shape(document['input_size'])}"
    flops, memory = words.flops(original["flops"]), words.memory(original["memory"])
    tables.line(screen, f"{at}: {flops}, {memory} of maps at the peak")
    if not choices:
        tables.line(screen, "no layer has a stride to remove; --head-only makes a classifier fully convolutional")
        return
    tables.line(screen, "what --start or --output-stride would give; FLOPs and memory as multiples of these:")
    screen.print()
    tables.put(screen, [_offer(choice) for choice in choices], whole=True)
    reasons: dict[tuple[str, str], str] = {}
    for refusal in (refusal for choice in choices for refusal in choice["refused"] or ()):
        place = f" ({refusal['where']})" if refusal["where"] else ""
        whole = f"{refusal['layer']}{place}: {refusal['reason']}. {refusal['remedy']}"
        reasons.setdefault((refusal["layer"], _short(refusal["reason"])), whole)
    if reasons:
        screen.print()
    most = len(reasons) if verbose else _SHOWN
    for reason in [*reasons.values()][:most]:
        tables.line(screen, f"refused: {reason}")
    if len(reasons) > most:
        tables.line(screen, f"and {len(reasons) - most} more reasons (-v lists them)")


def proposed(document: Document) -> str:
    """Options of `densify plan` to go on with: the smallest change, or a merge where that is all that helps."""
    for choice in document["choices"]:
        if choice["refused"] is None:
            start, stride = choice["starts"], choice["output_stride"]
            return f"--start {shlex.quote(start[0])}" if start else f"--output-stride {stride}"
    merges = any("merge=" in refusal["remedy"] for choice in document["choices"] for refusal in choice["refused"])
    return "--merge average" if merges else ""


def _offer(choice: Document) -> dict[str, str]:
    """One row: what to type, then what it gives, output by output."""
    stride = choice["output_stride"]
    row = {"--start": choice["starts"][0] if choice["starts"] else "", "--output-stride": str(stride or "")}
    if choice["refused"]:
        names = ("output", "predictions", "eST", "FLOPs", "memory")
        first = choice["refused"][0]
        return row | dict.fromkeys(names, "") | {"remarks": f"refused: {_short(first['reason'])} ({first['layer']})"}
    outputs, wrapped = choice["outputs"], choice["wrapped"]
    remarks = [words.count(len(wrapped), "op") + " phase by phase"] if wrapped else []
    remarks += ["merged"] if choice["merges"] else []
    remarks += [] if choice["exact"] else ["borders differ"]
    return row | {
        "output": "\n".join(words.shape(output["dense"]) for output in outputs),
        "predictions": "\n".join(f"{output['predictions']:,}" for output in outputs),
        "eST": "\n".join(words.axes([axis["stride"] for axis in output["lattice"]]) for output in outputs),
        "FLOPs": words.times(choice["flops"]),
        "memory": words.times(choice["memory"]),
        "remarks": ", ".join(remarks),
    }


def _short(reason: str) -> str:
    """A reason's first words."""
    return re.split(r"[,;:] | \(", reason)[0]
