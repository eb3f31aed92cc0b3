"""Results formatted for people: tables that fit the terminal, or 80 columns where there is none.

The functions take the documents that the commands print as JSON. Nothing is cut off: what is too long is folded.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

from densify import tables
from densify.words import axes as _axes
from densify.words import count as _count
from densify.words import flops as _flops
from densify.words import memory as _memory
from densify.words import model as _model
from densify.words import seconds
from densify.words import shape as _shape

if TYPE_CHECKING:
    from rich.console import Console

Document = Mapping[str, Any]

_SHORT = {"kernel": "k", "stride": "s", "pad": "p", "parameters": "params"}
_MEANING = {
    "weights": "the weights have the original's names, shapes, dtypes and numbers",
    "head": "the head as convolutions equals the original at the reference size",
    "grid": "the dense output on its lattice equals the original's",
    "size": "the dense output has lattice times the original's samples",
    "phases": "every phase equals the original's layers on its fragment",
    "average": "the output is the mean of the dense map",
    "forms": "both forms of the network compute the same",
    "merges": "the output is what brute force makes of the maps in front of the merges, every phase by itself",
    "onnx": "ONNX Runtime equals torch",
    "half": "the graph in float16 equals that in float32, as far as float16 goes",
    "same": "both networks have the same outputs",
}


def installed_version() -> str:
    """densify's version; "unknown" in a checkout that was never installed."""
    try:
        return version("densify")
    except PackageNotFoundError:
        return "unknown"


# ---- what the commands show ----------------------------------------------------------------------


def show_report(document: Document, screen: Console | None = None, *, verbose: bool = False) -> None:
    """The verification table, what its checks mean, and PASSED or FAILED with counts as the last line.

    Checks of several inputs that passed share a row, which shows the worst of them, unless `verbose`.
    """
    screen, checks = screen or tables.screen(), document["checks"]
    tables.put(screen, check_rows(checks, verbose=verbose), pairs=_PAIRS)
    screen.print()
    for remark in check_remarks(checks):
        tables.line(screen, remark)
    if document["divergence"] is not None:
        tables.line(screen, _divergence(document["divergence"]), "bold")
    failed = sum(not check["passed"] for check in checks)
    if document["passed"]:
        tables.line(screen, f"PASSED: {_count(len(checks), 'check')}", "bold green")
    else:
        tables.line(screen, f"FAILED: {failed} of {_count(len(checks), 'check')}", "bold red")


def show_conversion(document: Document, screen: Console | None = None, *, verbose: bool = False) -> None:
    """What was converted, then the verification."""
    screen = screen or tables.screen()
    show_dense(document, screen, verbose=verbose)
    for remark in plan_remarks(document["plan"], verbose=verbose) if document["plan"] else ():
        tables.line(screen, remark)
    screen.print()
    show_report(document, screen, verbose=verbose)


def show_dense(document: Document, screen: Console, *, verbose: bool = False) -> None:
    """What was converted."""
    tables.line(screen, f"{document['model']}: {_strides(document['chosen'], verbose=verbose)}")
    for name, axes in document["lattices"].items():
        if axes:
            density = _MERGED.get(document["merged"][name], _density(axes))
            tables.line(screen, f"{name}: {density}{_places(document['positions'].get(name, ()))}")
    if document["follows_size"]:
        tables.line(screen, _FOLLOWS_SIZE.format(_shape(document["follows_size"])))


def show_file(document: Document, screen: Console) -> None:
    """An ONNX file as it is."""
    image = "x".join("?" if size is None else str(size) for size in document["image"])
    kind = "a dense graph" if document["dense"] else "a graph"
    parameters = _count(document["parameters"], "parameter")
    tables.line(screen, f"{document['name']}: {kind} of opset {document['opset']}, image {image}, {parameters}")


def show_inverse(document: Document, screen: Console | None = None, *, verbose: bool = False) -> None:
    """Which parameters changed, then the verification."""
    screen, changed = screen or tables.screen(), document["changed"]
    total = document["parameters"]
    if not changed:
        tables.line(
            screen, f"no parameter differs from the source ({_count(total, 'tensor')})" if total else _UNKNOWN_SOURCE
        )
    else:
        tables.line(screen, f"{len(changed)} of {_count(total, 'tensor')} changed since the conversion:")
        rows = [
            {"parameter": change["name"], "max abs": _error(change["largest"]), "max rel": _error(change["relative"])}
            for change in (changed if verbose else changed[:_SHOWN])
        ]
        plain = all(change["largest"] is None for change in changed)
        tables.put(screen, [{"parameter": row["parameter"]} for row in rows] if plain else rows)
        if len(rows) < len(changed):
            tables.line(screen, f"and {len(changed) - len(rows)} more (-v lists them)")
        if plain:
            tables.line(screen, "--weights SOURCE tells by how much")
    screen.print()
    show_report(document, screen, verbose=verbose)


def show_layers(document: Document, screen: Console | None = None) -> None:
    """The layers, the strided ones marked."""
    screen = screen or tables.screen()
    size = _shape(document["input_size"])
    strided = sum(layer["strided"] for layer in document["layers"])
    counts = f"{document['parameters']:,} parameters, {_flops(document['flops'])}, {strided} strided layers (*)"
    tables.line(screen, f"{_model(document)} at {size}: {counts}")
    tables.line(screen, "FLOPs: 2 per multiply-addition of convolutions and Linear layers, for one image")
    screen.print()
    rows = [_layer(layer) for layer in document["layers"]]
    if tables.fits(screen, rows):
        tables.put(screen, rows, whole=True, emphasised="*")
        return
    short = [{_SHORT.get(name, name): row[name] for name in row} for row in rows]
    tables.line(screen, "k: kernel, s: stride, p: padding")
    screen.print()
    tables.put(screen, short, emphasised="*", gap=1)


def show_plan(document: Document, screen: Console | None = None, *, verbose: bool = False) -> None:
    """What would change, the outputs, the cost, and what there is to beware of; with `verbose` every layer by name."""
    screen = screen or tables.screen()
    strides = _strides(document["chosen"], verbose=verbose)
    tables.line(screen, f"{_model(document)} at {_shape(document['input_size'])}: {strides}")
    screen.print()
    if document["changes"]:
        tables.put(screen, change_rows(document), whole=True)
        screen.print()
    tables.put(screen, output_rows(document))
    screen.print()
    for remark in plan_remarks(document, verbose=verbose):
        tables.line(screen, remark)


def show_comparison(document: Document) -> None:
    """Where both maps look and what they hold, and how they differ."""
    screen = tables.screen()
    size = _shape(document["size"])
    tables.line(screen, f"{document['image']} ({size} pixels), {document['output']}: {document['shown']}")
    screen.print()
    rows = [_map(name, document[key]) for key, name in zip(("first", "second"), document["names"], strict=True)]
    tables.put(screen, rows)
    screen.print()
    for words in document["words"]:
        tables.line(screen, words)


# ---- rows and remarks ----------------------------------------------------------------------------


def check_rows(checks: Sequence[Document], *, verbose: bool = False) -> list[dict[str, str]]:
    """A row per check; those of several inputs that passed share one, which shows the worst, unless `verbose`."""
    return [_check(check) for check in checks] if verbose else [_check(*group) for group in _grouped(checks)]


def check_remarks(checks: Sequence[Document]) -> list[str]:
    """What the checks mean, and what else there is to know of them."""
    meanings = [f"{law}: checks that {_MEANING[law]}" for law in dict.fromkeys(check["law"] for check in checks)]
    noted = [c for c in checks if c["note"]]
    notes = dict.fromkeys(f"{', '.join(filter(None, (_of(c), c['input'])))}: {c['note']}" for c in noted)
    return [*meanings, *(f"note: {note}" for note in notes)]


def change_rows(document: Document) -> list[dict[str, str]]:
    """A row per layer that a plan changes."""
    return [_change(change) for change in document["changes"]]


def output_rows(document: Document) -> list[dict[str, str]]:
    """A row per output of a plan."""
    return [_output(output) for output in document["outputs"]]


def plan_remarks(document: Document, *, verbose: bool = False) -> list[str]:
    """The cost of a plan, and what there is to beware of; with `verbose` the layers that run phase by phase by name."""
    remarks = [*_costs(document)]
    for output in document["outputs"]:
        if any(output["repeated"]):
            remarks.append(f"far side: {_repeated(output)}")
    if document["wrapped"]:
        kinds = Counter(wrapped["op"] for wrapped in document["wrapped"])
        counted = [f"{count} {kind}" for kind, count in kinds.items()]
        named = [f"{wrapped['name']} ({wrapped['op']})" for wrapped in document["wrapped"]]
        remarks.append(f"phase by phase: {', '.join(named if verbose else counted)}")
    for merge in document["merges"]:
        remarks.append(f"merge: {merge['name']} {_merge(merge)}")
    for output in document["outputs"]:
        if output["merged"]:
            remarks.append(f"{output['name']}: {_MERGED[output['merged']]}")
    if document["follows_size"]:
        remarks.append(_FOLLOWS_SIZE.format(_shape(document["input_size"][1:])))
    for waste in document["wasted"]:
        used = f"{waste['used']} of {waste['phases']} phases of its input"
        remarks.append(f"waste: {waste['name']} keeps its stride, so that axis {waste['axis']} uses {used}")
    if any(output["merged"] for output in document["outputs"]):
        remarks.append("exact: what lies in front of the merges; behind them the laws are those that verify lists")
    elif document["exact"]:
        remarks.append("exact: every sample of the original lies in the dense output, unchanged")
    else:
        remarks.append('exact: clear of the borders only: padding="same" changes what border windows see')
    return remarks


_SHOWN = 10
_UNKNOWN_SOURCE = "the file does not know its source's parameters"
_PAIRS = (
    ("result", "check"),
    ("output", "lattice"),
    ("input", "runtime"),
    ("original", "dense"),
    ("max abs", "max rel"),
    ("tolerance", "worst at"),
)
_WITHOUT_ERRORS = ("weights", "size")  # laws about shapes


def _grouped(checks: Sequence[Document]) -> list[list[Document]]:
    """Checks that differ by their input alone, the worst first; those that failed stand alone."""
    groups: dict[tuple[object, ...], list[Document]] = {}
    for index, check in enumerate(checks):
        key = (check["law"], check["output"], check["runtime"], None if check["passed"] else index)
        groups.setdefault(key, []).append(check)
    return [sorted(group, key=lambda check: -_finite(check["relative"])) for group in groups.values()]


def _check(check: Document, *others: Document) -> dict[str, str]:
    """One row; `others` are checks that it stands for too."""
    numbers = check["law"] not in _WITHOUT_ERRORS
    return {
        "result": "pass" if check["passed"] else "FAIL",
        "check": check["law"],
        "output": check["output"],
        "lattice": _lattice([{"stride": stride, "offset": offset} for stride, offset in check["lattice"]]),
        "input": f"{check['input']} (of {len(others) + 1})" if others else check["input"],
        "runtime": check["runtime"],
        "original": _shape(check["expected"]),
        "dense": _shape(check["actual"]),
        "max abs": _error(_finite(check["absolute"])) if numbers else "",
        "max rel": _error(_finite(check["relative"])) if numbers else "",
        "tolerance": _error(check["tolerance"]) if numbers else "",
        "worst at": ",".join(map(str, check["worst"])) if check["absolute"] else "",
    }


def _map(name: str, one: Document) -> dict[str, str]:
    return {
        "map": name,
        "samples": _shape(one["size"]),
        "step": _axes([f"{step:g}" for step in one["step"]]),
        "first at": _axes([f"{first:g}" for first in one["first"]]),
        "smallest": f"{one['smallest']:.4g}",
        "largest": f"{one['largest']:.4g}",
    }


def _layer(layer: Document) -> dict[str, str]:
    return {
        "": "*" if layer["strided"] else "",
        "layer": layer["name"],
        "op": layer["op"],
        "kernel": _axes(layer["kernel"]),
        "stride": _axes(layer["stride"]),
        "pad": "same" if layer["follows_size"] else _paddings(layer["padding"]),
        "output": _shape(layer["output"][1:]) if layer["output"] else "",
        "step": _axes(layer["step"]),
        "field": _axes(["all" if field is None else field for field in layer["receptive_field"]]),
        "parameters": f"{layer['parameters']:,}" if layer["parameters"] else "",
        "GFLOPs": _giga(layer["flops"]),
    }


def _giga(flops: int) -> str:
    return "" if not flops else f"{flops / 1e9:.3f}" if flops >= 10**6 else f"{flops / 1e9:.1e}"


def _change(change: Document) -> dict[str, str]:
    words = [
        f"{name} {_axes(change[name]['from'])} -> {_axes(change[name]['to'])}"
        for name in ("stride", "dilation", "padding")
        if name in change
    ]
    if change["becomes"] == "convolution":
        words.insert(0, f"convolution, kernel {_axes(change['kernel'])}")
    elif change["becomes"] != "dense window":
        words.insert(0, change["becomes"])
    return {"layer": change["name"], "op": change["op"], "change": ", ".join(words)}


def _output(output: Document) -> dict[str, str]:
    places = output["positions"]
    return {
        "output": output["name"],
        "original": _shape(output["original"]),
        "dense": f"{_shape(output['dense'])}, averaged" if output["averaged"] else _shape(output["dense"]),
        "lattice": _lattice(output["lattice"]),
        "step": _axes([place["step"] for place in places]),
        "first at": _axes(["all" if place["first"] is None else f"{place['first']:g}" for place in places]),
        "field": _axes(["all" if p["receptive_field"] is None else p["receptive_field"] for p in places]),
    }


# ---- words ---------------------------------------------------------------------------------------


_FOLLOWS_SIZE = "positions: as at {}; at other sizes padding that follows the size (auto_pad) may move them"
_MERGED = {"average": "the average of the original over its shifts", "new": "a network of its own, to be trained"}


def _merge(merge: Document) -> str:
    """What becomes of the phases that an upsampling meets."""
    before, after = _axes(merge["from"]), _axes(merge["to"])
    shared = [e // left for e, left in zip(merge["from"], merge["to"], strict=True)]
    verb = {
        "select": f"keeps one of {_shape(shared)} shifts",
        "average": f"averages {_shape(shared)} shifts",
        "resample": "reads between the samples",
    }[merge["how"]]
    return f"{verb} of a map with a sample every {_axes(merge['step'])} pixels (eST {before} -> {after})"


def _of(check: Document) -> str:
    return f"{check['law']} of {check['output']}"


def _divergence(found: Document) -> str:
    """The first layer that diverges, and by how much."""
    at = f", {found['where']}" if found["where"] else ""
    named = f"first layer that diverges: {found['layer']} ({found['op']}{at}), {found['law']} on {found['input']}"
    if found["law"] == "size":
        return f"{named}: {_shape(found['actual'])} samples where {_shape(found['expected'])} are expected"
    phase = f" in phase {','.join(map(str, found['phase']))}" if any(found["phase"]) else ""
    if not found["worst"]:
        return f"{named}: shape {_shape(found['actual'])}, the original's is {_shape(found['expected'])}"
    errors = f"{_error(_finite(found['absolute']))} ({_error(_finite(found['relative']))} of the largest value)"
    place = ",".join(map(str, found["worst"]))
    return f"{named}: off by {errors} at {place}{phase}; precision allows {_error(found['tolerance'])}"


def _strides(chosen: Sequence[str], *, verbose: bool = False) -> str:
    if not chosen:
        return "no stride removed, the head as convolutions"
    most = len(chosen) if verbose else _SHOWN
    shown = ", ".join(chosen[:most]) + (f" and {len(chosen) - most} more" if len(chosen) > most else "")
    return f"stride removed from {shown}"


def _density(lattice: Sequence[Document]) -> str:
    rate = _axes([axis["stride"] for axis in lattice])
    if rate == "1":
        return "as dense as the original"
    return f"{rate} times as dense along each axis" if "x" not in rate else f"{rate} times as dense"


def _places(places: Sequence[Document]) -> str:
    if not places:
        return ""
    step = _axes([place["step"] for place in places])
    if any(place["first"] is None for place in places):
        return f", one prediction per {'pixel' if step == '1' else f'{step} pixels'} of shift"
    first = _axes([f"{place['first']:g}" for place in places])
    return f", a sample every {'input pixel' if step == '1' else f'{step} input pixels'}, the first at {first}"


def _repeated(output: Document) -> str:
    counts = " x ".join(f"{count} of {size}" for count, size in zip(output["repeated"], output["dense"], strict=True))
    return f"{counts} samples of {output['name']} see repeated windows"


def _costs(document: Document) -> list[str]:
    """Arithmetic and memory, before and after."""
    flops, memory = document["flops"], document["memory"]
    found = []
    if flops["ratio"] is not None:
        before, after = _flops(flops["original"]), _flops(flops["dense"])
        found.append(f"cost: {before} -> {after} (2 per multiply-addition), {flops['ratio']:.1f} times")
    if memory["ratio"] is not None:
        before, after = _memory(memory["original"]), _memory(memory["dense"])
        found.append(f"memory: {before} -> {after} of maps at the peak, {memory['ratio']:.1f} times")
    if "measured" in document:
        found.append(_measured(document["measured"]))
    return found


def _measured(timing: Document) -> str:
    before, after = (seconds(timing[name]) for name in ("original", "dense"))
    threads = f", {_count(timing['threads'], 'thread')}" if timing["threads"] else ""
    weights = ", random weights" if timing["random"] else ""
    how = f"medians of {timing['pairs']} runs in turn; {timing['runtime']} on {timing['device']}{threads}{weights}"
    return f"time: {before} -> {after}, {timing['ratio']:.1f} times ({how})"


def _paddings(pairs: Sequence[Sequence[int]]) -> str:
    return _axes([str(low) if low == high else f"{low}+{high}" for low, high in pairs])


def _lattice(axes: Sequence[Document]) -> str:
    """eST per axis, and the offsets where there are any."""
    strides = _shape([axis["stride"] for axis in axes])
    offsets = [axis["offset"] for axis in axes]
    return f"{strides} from {','.join(map(str, offsets))}" if any(offsets) else strides


def _finite(value: float | None) -> float:
    """JSON has no infinity: null stands for it."""
    return math.inf if value is None else value


def _error(value: float | None) -> str:
    return "" if value is None else "0" if value == 0 else f"{value:.1e}"
