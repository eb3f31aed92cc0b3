"""What an ONNX file says to readers without densify: where its predictions lie in the image (docs/onnx-metadata.md)."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

FORMAT = 1
FORMAT_KEY, OUTPUTS_KEY, PREPROCESSING_KEY = "densify.format", "densify.outputs", "densify.preprocessing"

SPATIAL_AXES = {1: ("length",), 2: ("height", "width"), 3: ("depth", "height", "width")}
"""Names of the spatial axes, by how many there are."""

Axes = Mapping[str, Sequence[Sequence[Any]]]
"""Per output and spatial axis, a few values."""


def axis_names(dimensions: int) -> tuple[str | None, ...]:
    """Names of an input's axes, [B, C, *spatial]; None for the channels. More than three spatial axes have no names."""
    return ("batch", None, *SPATIAL_AXES.get(dimensions - 2, ()))[:dimensions]


def placement(
    lattices: Axes,
    positions: Axes,
    ranks: Mapping[str, int],
    *,
    orders: Mapping[str, Sequence[int]] | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    at: Sequence[int] | None = None,
) -> dict[str, str]:
    """Entries for the metadata_props of an ONNX file.

    Args:
        lattices: per output and spatial axis, (eST, offset): the original's sample i is this file's offset + i * eST.
        positions: per output and spatial axis, (step, first centre, receptive field) in input pixels; the last two are
            None where a sample sees the whole image.
        ranks: of the outputs, batch and channels included; one that has no spatial axes in this file gets none.
        orders: of outputs whose dimensions are not [B, C, *spatial], these dimensions in that order.
        mean, std: preprocessing per channel, in units of [0, 1].
        at: the spatial sizes at which the positions hold, where they do not hold at all.
    """
    outputs: dict[str, dict[str, Any]] = {
        name: {
            "merged": getattr(lattices[name], "merged", ""),
            "axes": _axes(lattices[name], positions[name], (orders or {}).get(name) or range(rank))
            if 2 < rank == 2 + len(lattices[name])
            else [],
        }
        for name, rank in ranks.items()
        if name in lattices
    }
    if at is not None:
        outputs = {name: {**one, "at": list(at)} for name, one in outputs.items()}
    entries = {FORMAT_KEY: str(FORMAT), OUTPUTS_KEY: json.dumps(outputs)}
    known = {name: list(values) for name, values in (("mean", mean), ("std", std)) if values is not None}
    return entries | ({PREPROCESSING_KEY: json.dumps(known)} if known else {})


def of_original(lattices: Axes, positions: Axes) -> tuple[Axes, Axes]:
    """Lattices and positions of the original's outputs, from those of the dense network's."""
    places = {
        name: [
            (step * est, None if first is None else first + offset * step, field)
            for (est, offset), (step, first, field) in zip(lattices[name], axes, strict=True)
        ]
        for name, axes in positions.items()
    }
    return {name: [(1, 0)] * len(axes) for name, axes in lattices.items()}, places


def _axes(
    lattices: Sequence[Sequence[Any]], positions: Sequence[Sequence[Any]], order: Sequence[int]
) -> list[dict[str, Any]]:
    names = SPATIAL_AXES.get(len(lattices), ("",) * len(lattices))
    entries = []
    for place, (name, lattice, position) in enumerate(zip(names, lattices, positions, strict=True)):
        (est, offset), (step, first, field) = lattice, position
        where = {"axis": order[2 + place], "name": name, "first": first, "step": step, "receptive_field": field}
        entries.append({**where, "est": est, "offset": offset})
    return entries
