"""Put the rows of coverage.py into docs/coverage.md."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from benchmarks.peers import PEERS, smp_name, timm_name

Row = Mapping[str, Any]

_INTRO = """# Coverage: torchvision's convolutional networks

Every convolutional classification and video model of torchvision, converted at every output stride down to 1 (the
stem included) and compared with the original. Left out: pure transformers (`vit_*`, `swin*`, `mvit*`), detectors,
segmentation models, optical flow and quantised variants. Made by `make coverage-table`, on the CPU; some rows again:
`python benchmarks/coverage.py NAME ...`. The versions used:
{versions}.

{totals}

## How it is measured

- Weights have a live signal: BatchNorm statistics measured on data and then perturbed, layer scales of a trained
  network's size. For every network it is asserted that two inputs change the output by more than 1%.
- Networks are converted at one size and compared at another, odd and not square; the dearer they are, the smaller.
  VGG and AlexNet need 224 pixels for their windows of 7 x 7 and 6 x 6; at the other size the original is its fully
  convolutional form, written by hand for the comparison. s3d needs 209, and 13 pictures, for its window of 2 x 7 x 7.
  maxvit_t runs at the size that it was made for alone, 224.
- *law 1*: the dense network's grid against the original; *law 3*: the dilated form against fragments, at all
  positions. Numbers are max|a-b| / max|b| in float32, the largest over all output strides. *Equal* is at most 1e-5,
  or ten times the original's own error in float32 against float64 where that is more (then in brackets).
- *laws 2, 4*: outputs have e times the original's samples per axis; the weights' keys, order, shapes and dtypes are
  the original's. *same weights*: so is every value.
- *phase-wise*: the ops that run on every phase by itself at output stride 1, statistics over the whole map among them.
- Steps of video networks are time x space.

Peers are asked for output stride 8 and compared with *their own* build of the same network with the same weights: the
deepest feature map on the original's grid, at sizes divisible by 32. torchvision is asked by
`replace_stride_with_dilation=[False, True, True]` (MobileNetV3 by `dilated=True`, which is output stride 16), timm by
`output_stride=8` (with `features_only=True` where it has the option only there), segmentation_models_pytorch (smp) by
its encoder of that name at `output_stride=8`; `tu-` encoders are those that it takes from timm. *equal* is judged as
above; a number alone is the largest relative error of a map that is not equal; *refused*: see the notes; *no option*:
none for this network; *ignored*: the option is accepted and changes nothing; *absent*: the peer does not have the
network. Of video networks torchvision has no option, and the others have none.
"""


def page(rows: Sequence[Row], versions: Mapping[str, str]) -> str:
    """The whole document."""
    notes: dict[str, int] = {}
    table = [_line(one, notes) for one in rows]
    named = ", ".join(f"{package} {number}" for package, number in versions.items())
    header = [
        "network", "size", "output strides", "form", "phase-wise", "law 1", "law 3", "laws 2, 4", "same weights",
        "torchvision", "timm", "smp",
    ]  # fmt: skip
    parts = [
        _INTRO.format(versions=named, totals=_totals(rows)),
        "## The table\n",
        _joined(header),
        _joined(["---"] * len(header)),
        *table,
        "",
        "## Notes\n",
        *(f"{number}. {note}" for note, number in notes.items()),
    ]
    return "\n".join(parts) + "\n"


def whole(one: Row) -> bool:
    """Whether a network was converted at every output stride, and every law held."""
    return all(holds(reached) for reached in one["strides"])


def holds(reached: Row) -> bool:
    """Whether every law held at one output stride."""
    allowed = max(1e-5, reached["own"] or 0.0)
    return bool(
        not reached["failure"]
        and reached["law2"]
        and reached["law4"]
        and reached["law1"] <= allowed
        and reached["law3"] <= allowed
    )


def _totals(rows: Sequence[Row]) -> str:
    attempts = [reached for one in rows for reached in one["strides"]]
    passed, most = sum(map(whole, rows)), max(one["parameters"] for one in rows)
    lines = [
        f"**{passed} of {len(rows)} networks pass laws 1 to 4 at every output stride**",
        f"({sum(map(holds, attempts))} of {len(attempts)} conversions; the largest network has",
        f"{most / 1e6:.0f} million parameters). For the same networks:",
        "",
        _joined(["asked for output stride 8", "equal", "other numbers", "refused", "ignored", "no option", "absent"]),
        _joined(["---", *["---:"] * 6]),
    ]
    verdicts = ("equal", "error", "refused", "ignored", "no option", "not there")
    for peer in PEERS:
        counts = Counter(_verdict(one, peer) for one in rows)
        lines.append(_joined([peer, *(str(counts[verdict]) for verdict in verdicts)]))
    mine = Counter(
        "refused" if at.get("failure") else "equal" if holds(at) else "error" for one in rows for at in _at_eight(one)
    )
    lines.append(_joined(["densify", *(str(mine[verdict]) for verdict in verdicts)]))
    return "\n".join(lines)


def _at_eight(one: Row) -> list[Row]:
    """The conversion at output stride 8; a network that is as dense already has a smaller one."""
    return sorted((at for at in one["strides"] if at["asked"] <= 8), key=lambda at: -at["asked"])[:1]


def _verdict(one: Row, peer: str) -> str:
    absent = "no option" if peer == "torchvision" else "not there"
    return str(one["peers"].get(peer, {"verdict": absent})["verdict"])


def _line(one: Row, notes: dict[str, int]) -> str:
    made = [at for at in one["strides"] if not at["failure"]]
    failed = [at for at in one["strides"] if at["failure"]]
    refs = "".join(f" {at['asked']}: {_note(at['failure'], notes)}" for at in failed)
    sizes = sorted({"x".join(map(str, size)) for at in made for size in at["sizes"]})
    wrapped = next((at["wrapped"] for at in reversed(made)), None) or {}
    reached = ", ".join(dict.fromkeys(_steps(at["steps"]) for at in made)) or "none"
    return _joined(
        [
            one["name"],
            " ".join(sizes) or "-",
            f"{_steps(one['native'])} -> {reached}" + (f"; fails at{refs}" if refs else ""),
            ", ".join(dict.fromkeys(at["form"] for at in made)) or "-",
            ", ".join(f"{count} {kind}" for kind, count in sorted(wrapped.items())) or "none",
            _error(made, "law1"),
            _error(made, "law3"),
            _answer(bool(made) and all(at["law2"] and at["law4"] for at in made)),
            _answer(bool(made) and all(at["law4"] for at in made)),
            *(_peer(one, peer, notes) for peer in PEERS),
        ]
    )


def _error(made: Sequence[Row], law: str) -> str:
    """The largest error; with what is allowed where that is more than 1e-5, and in bold where it is too large."""
    if not made:
        return "-"
    worst = max(made, key=lambda at: at[law] / max(1e-5, at["own"] or 0.0))
    largest = max(at[law] for at in made)
    allowed = max(1e-5, worst["own"] or 0.0)
    text = f"{largest:.1e}"
    if worst[law] > allowed:
        return f"**{worst[law]:.1e}**"
    return text if largest <= 1e-5 else f"{text} ({allowed:.0e})"


def _steps(steps: Iterable[int]) -> str:
    """8, or time by space 8x16."""
    each = list(steps)
    return str(each[0]) if len(set(each)) == 1 else "x".join(map(str, [each[0], *dict.fromkeys(each[1:])]))


def _peer(one: Row, peer: str, notes: dict[str, int]) -> str:
    answer = one["peers"].get(peer)
    if answer is None:
        return "no option" if peer == "torchvision" else "absent"
    text = {"error": "", "not there": "absent"}.get(answer["verdict"], answer["verdict"])
    if answer["verdict"] in ("error", "equal") and answer["error"] is not None:
        text = f"{text} {answer['error']:.2g}".strip()
    if answer["note"] and answer["verdict"] in ("refused", "error"):
        text = f"{text or 'other size'} {_note(f'{peer}: ' + answer['note'], notes)}"
    name = {"timm": timm_name, "segmentation-models-pytorch": smp_name}.get(peer, lambda name: name)(one["name"])
    return f"{text} (`{name}`)" if name and name != one["name"] else text


def _note(text: str, notes: dict[str, int]) -> str:
    short = " ".join(text.split()).replace("|", "/")
    return f"[{notes.setdefault(short, len(notes) + 1)}]"


def _answer(value: bool) -> str:
    return "yes" if value else "**no**"


def _joined(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |"
