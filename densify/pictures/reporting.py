"""A report on a dense network: its plan, the verification, pictures, and its recipe, on one HTML page."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image
from torch import Tensor

from densify import display, front
from densify.comparison import Report
from densify.conversion import Dense
from densify.errors import UndrawableError, UsageError
from densify.facts import plan_facts
from densify.files import check_target, write_bytes
from densify.onnx.conversion import DenseOnnx
from densify.pictures import page
from densify.pictures.answers import Network
from densify.pictures.comparing import Comparison, compare, png
from densify.pictures.panels import Scale, bar, written
from densify.samples import Sample

_BAR = 320  # colours of a bar


def report(
    model: Network | None,
    dense: Dense | DenseOnnx,
    inputs: Tensor | Sequence[Tensor | Sample],
    path: str | Path,
    *,
    name: str = "dense network",
    verification: Report | None = None,
    recipe: str | None = None,
    overwrite: bool = False,
    **how: Any,
) -> Report:
    """Verify a dense network, draw it beside its original on every input, and write all that on one page.

    The page is a single .html file without scripts, which needs no network.

    Args:
        model: the original; None for the dense network's own.
        dense: a torch network or an ONNX graph.
        inputs: images [B, C, *spatial], one or several; the first of each is drawn, where outputs have places in it.
        path: of the page.
        name: of the network, for the page.
        verification: of these inputs, where there is one; by default it is made here.
        recipe: as JSON, where a file says more than the network: the versions that wrote it.
        overwrite: replace an existing file.
        how: show, output, upsampling, locate: as :func:`densify.compare` takes them.

    Returns:
        The verification; the page is written whether it passed or not.

    Raises:
        UsageError: an existing file, another suffix than .html, or what `compare` refuses.
    """
    target = check_page(Path(path))
    check_target(target, overwrite)
    given = [inputs] if isinstance(inputs, Tensor) else list(inputs)
    samples = [one if isinstance(one, Sample) else Sample(f"input {i}", one) for i, one in enumerate(given)]
    if verification is None:
        verification = front.verify(_as_verified(model), dense, samples)
    drawn = drawings(model, dense, samples, **how)
    content = render(dense, name, verification, drawn, json.loads(recipe or dense.recipe.to_json()))
    write_bytes(target, content.encode(), overwrite=overwrite)
    return verification


def _as_verified(model: Network | None) -> Any:
    if isinstance(model, Dense | DenseOnnx):
        raise UsageError("the original is dense itself: give the model that was converted, or None.")
    return model


def check_page(path: Path) -> Path:
    """Refuse a page in another format than HTML.

    Raises:
        UsageError: naming it.
    """
    if path.suffix.lower() not in (".html", ".htm"):
        raise UsageError(f"{path}: a report is written as HTML; name an .html file")
    return path


def drawings(
    model: Network | None, dense: Dense | DenseOnnx, samples: Sequence[Sample], **how: Any
) -> dict[str, Comparison | str]:
    """The first image of every sample by the sample's name; a text says why one cannot be drawn."""
    made: dict[str, Comparison | str] = {}
    for sample in samples:
        try:
            made[sample.name] = compare(model, dense, sample.tensor[:1], image_name=sample.name, **how)
        except UndrawableError as error:
            made[sample.name] = str(error)
    return made


def render(
    dense: Dense | DenseOnnx,
    name: str,
    verification: Report,
    drawn: Mapping[str, Comparison | str],
    recipe: Mapping[str, Any],
) -> str:
    """The page as HTML."""
    checks = verification.to_dict()["checks"]
    plan = {"input_size": list(dense.options.shape[1:]), **plan_facts(dense.plan)}
    failed = len(verification.failed)
    told = f"FAILED: {failed} of {len(checks)} checks" if failed or not checks else f"PASSED: {len(checks)} checks"
    lead = page.verdict(bool(verification), told) + page.paragraph(
        f"A dense equivalent of {recipe['origin']['model'] or 'a model'}: the same parameters, everything that the "
        f"original computes, and what lies between. Reported by densify {display.installed_version()}.",
        "soft",
    )
    sections = {
        "Plan": _plan(plan),
        "Verification": page.table(display.check_rows(checks)) + page.listing(display.check_remarks(checks)),
        "Pictures": "\n".join(_drawing(image, one) for image, one in drawn.items()),
        "Recipe": _recipe(recipe),
    }
    return page.page(name, sections, lead)


def _plan(plan: Mapping[str, Any]) -> str:
    chosen = plan["chosen"]
    strides = f"stride removed from {', '.join(chosen)}" if chosen else "no stride removed, the head as convolutions"
    size = "x".join(map(str, plan["input_size"]))
    parts = [page.paragraph(f"At {size}: {strides}."), page.table(display.output_rows(plan))]
    if plan["changes"]:
        parts += [page.heading("What changes"), page.table(display.change_rows(plan))]
    return "\n".join([*parts, page.listing(display.plan_remarks(plan))])


def _drawing(image: str, one: Comparison | str) -> str:
    title = page.heading(image)
    if isinstance(one, str):
        return title + page.paragraph(one)
    figures = [page.picture(_png(panel.pixels), panel.title, panel.words) for panel in one.panels]
    scales = [_scale(scale) for scale in one.scales if scale.labels or scale.marks]
    words = one.shown.words(one.found.second.values.shape[0])
    return "\n".join(
        [
            title,
            page.paragraph(f"{one.found.output}: {words}", "soft"),
            page.pictures(figures),
            page.scales(scales),
            page.listing(one.notes),
        ]
    )


def _scale(scale: Scale) -> str:
    if scale.labels:
        return page.legend({str(label): scale.table[label] for label in scale.labels}, scale.words)
    return page.scale(_png(bar(scale, _BAR, 1)), [written(mark) for mark in scale.marks], scale.words)


def _png(pixels: Any) -> bytes:
    return png(Image.fromarray(pixels))


def _recipe(recipe: Mapping[str, Any]) -> str:
    """What the file says of itself: in words, and whole."""
    origin, options = recipe["origin"], recipe["options"]
    choice = options["choice"]
    chosen = {"start": choice["start"], "layers": choice["layers"], "output stride": choice["output_stride"]}
    asked = [f"{key} {_list(value)}" for key, value in chosen.items() if value is not None]
    versions = {name: version for name, version in recipe["versions"].items() if version != "none"}
    entries = {
        "original": origin["model"] or "a model object, which the file does not know",
        "arguments": ", ".join(f"{key}={value}" for key, value in origin["arguments"].items()),
        "asked for": ", ".join(asked),
        "strides removed": ", ".join(recipe["chosen"]) or "none",
        **{name: str(options[name]) for name in ("padding", "head", "form", "merge")},
        "reference size": "x".join(map(str, options["shape"])),
        "mean": _list(origin["mean"]),
        "std": _list(origin["std"]),
        "SHA-256 of the code": origin["code_sha256"] or "",
        "source tensors": f"{len(origin['tensors'])}, each with its SHA-256",
        "versions": ", ".join(f"{name} {version}" for name, version in versions.items()),
    }
    return page.facts(entries) + page.folded("All of it, as JSON", json.dumps(recipe, indent=2, ensure_ascii=False))


def _list(value: Any) -> str:
    if value is None:
        return ""
    return ", ".join(map(str, value)) or "none" if isinstance(value, list | tuple) else str(value)
