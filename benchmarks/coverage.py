"""Convert every convolutional network of torchvision at every output stride and check the laws: docs/coverage.md.

    python benchmarks/coverage.py [NAME ...] [--fresh]

Results are kept in build/coverage.jsonl, one line per network, so that an interrupted run goes on where it stopped;
with names only those rows are made again. The table is written when no network is missing. `make coverage-table` runs
all.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import ctypes
import gc
import json
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
if not __package__:  # run as a script
    sys.path[:1] = [str(ROOT), str(ROOT / "tests")]

import torch
import torchvision
from laws.alive import assert_alive, enliven, images, relative_error
from laws.convolutional import fully_convolutional
from torch import nn

import densify
from benchmarks.coverage_page import page
from benchmarks.peers import PEERS, answers, own_error
from densify.errors import DensifyError
from densify.ops import PhaseWise
from densify.planning import at_sizes

STRIDES = (16, 8, 4, 2, 1)
# Networks without convolutions between their strides: nothing there for a CNN tool to measure itself on.
TRANSFORMERS = ("vit_", "swin", "mvit")
# (height, width) of the images, largest first: the first at which the whole network made dense costs little enough.
SIZES = ((97, 75), (81, 65), (65, 49), (41, 33))
BUDGET = 40e9  # multiply-additions
QUICK = (
    *("resnet", "mobilenet", "efficientnet_b0", "shufflenet", "mnasnet", "squeezenet", "densenet", "googlenet"),
    *("inception", "regnet_x_400mf", "regnet_y_400mf", "convnext_tiny", "r3d", "mc3", "r2plus1d", "maxvit", "s3d"),
)


@dataclass(frozen=True)
class Case:
    """How one network is tried.

    Attributes:
        reference: the example's shape.
        sizes: spatial sizes to compare at, the first that is cheap enough; not square where the network allows it.
        alive: shape of the images that BatchNorm statistics are measured on.
        window: the head has a window of fixed size.
    """

    reference: tuple[int, ...]
    sizes: tuple[tuple[int, ...], ...]
    alive: tuple[int, ...]
    window: bool = False


@dataclass(frozen=True)
class Reached:
    """What came of one output stride.

    Attributes:
        asked: the output stride asked for.
        steps: per axis the step reached, input pixels; empty where nothing was converted.
        form: the form used.
        wrapped: how many ops of which kind run phase by phase.
        law1, law3: largest relative errors, float32.
        own: ten times the original's own float32 error, where a law needed more than 1e-5.
        law2, law4: whether sizes and weights are right.
        failure: the message where it failed.
        sizes: spatial sizes compared at.
    """

    asked: int
    steps: tuple[int, ...] = ()
    form: str = ""
    wrapped: dict[str, int] | None = None
    law1: float | None = None
    law3: float | None = None
    own: float | None = None
    law2: bool = False
    law4: bool = False
    failure: str = ""
    sizes: tuple[tuple[int, ...], ...] = ()


CLIPS = ((9, 49, 41), (9, 41, 33), (5, 33, 25))
CLASSIFIER = Case((1, 3, 224, 224), ((231, 225),), (2, 3, 224, 224), window=True)
CLIP = Case((1, 3, 8, 32, 32), CLIPS, (2, 3, 8, 64, 64))
# Networks, or families of them by the beginning of their names, that do not run at any size.
SPECIAL = {
    "vgg": CLASSIFIER,
    "alexnet": CLASSIFIER,
    "maxvit": Case((1, 3, 224, 224), ((224, 224),), (2, 3, 224, 224)),  # its relative positions fix the size
    "s3d": Case((1, 3, 13, 213, 209), ((13, 209, 213),), (1, 3, 16, 224, 224)),  # it pools over windows of 7 x 7
    "inception_v3": Case((1, 3, 107, 107), ((109, 97),), (2, 3, 299, 299)),  # its auxiliary head needs 299
    "r3d": CLIP,
    "mc3": CLIP,
    "r2plus1d": CLIP,
}


def names() -> list[str]:
    """Every convolutional classification and video model of torchvision, the quick ones first."""
    listed = [
        name
        for module in (torchvision.models, torchvision.models.video)
        for name in torchvision.models.list_models(module=module)
        if not name.startswith(TRANSFORMERS)
    ]
    return sorted(listed, key=lambda name: (not name.startswith(QUICK), listed.index(name)))


def build(name: str) -> nn.Module:
    """The network with fresh weights; auxiliary heads as in training."""
    slow = name.startswith(("vgg", "googlenet", "inception"))  # their own initialisation takes minutes
    arguments: dict[str, Any] = {"init_weights": False} if slow else {}
    if name.startswith(("googlenet", "inception")):
        arguments["aux_logits"] = True
    model: nn.Module = torchvision.models.get_model(name, weights=None, **arguments)
    return model


def case(name: str, model: nn.Module) -> tuple[Case, list[int]]:
    """Which sizes a network is tried at, and its own output stride per axis."""
    one = next((special for family, special in SPECIAL.items() if name.startswith(family)), None)
    one = one or Case((1, 3, 64, 64), SIZES, (4, 3, 96, 96))
    try:
        plan = densify.plan(model, one.reference, output_stride=1)
    except DensifyError:  # the conversions will say why
        return replace(one, sizes=one.sizes[-1:]), [32] * len(one.sizes[-1])
    size = next((size for size in one.sizes if at_sizes(plan, size).cost[1] <= BUDGET), one.sizes[-1])
    return replace(one, sizes=(size,)), [int(axis.step) for axis in plan.outputs["output"].axes]


def row(name: str, strides: Sequence[int] = STRIDES, peers: bool = True) -> dict[str, Any]:
    """Everything that the table says of one network."""
    began = time.perf_counter()
    torch.manual_seed(0)
    model = build(name)
    one, native = case(name, model)
    enliven(model, one.alive)
    assert_alive(model, (1, *one.alive[1:]))
    results = [asdict(attempt(model, one, stride)) for stride in strides if stride < max(native)]
    found: dict[str, Any] = {
        "name": name, "versions": versions(), "native": native, "strides": results,
        "reference": one.reference[2:], "parameters": sum(p.numel() for p in model.parameters()),
    }  # fmt: skip
    if peers:
        image = len(one.reference) == 4
        found["peers"] = answers(name, model, (128, 160) if one.reference[2] > 64 else (96, 64)) if image else {}
    return found | {"seconds": round(time.perf_counter() - began, 1)}


def attempt(model: nn.Module, one: Case, stride: int) -> Reached:
    """Convert at one output stride in both forms, and compare."""
    result = Reached(stride)
    try:
        dense = densify.convert(model, one.reference, output_stride=stride, share=True)
        steps = tuple(int(position.step) for position in dense.positions["output"])
        kinds = Counter(step.site.kind for step in dense.plan.steps.values() if isinstance(step.op, PhaseWise))
        result = replace(result, steps=steps, form="dilated", wrapped=dict(kinds), law4=same_weights(model, dense))
        return compared(model, one, dense, as_fragments(dense), result)
    except DensifyError as error:
        return replace(result, failure=str(error))
    except Exception as error:  # a bug of densify: the row says so
        return replace(result, failure=f"{type(error).__name__}: {error}")


def as_fragments(dense: densify.Dense) -> densify.Dense:
    """The same network in the other form, without tracing it again."""
    conversion = copy.copy(dense.conversion)
    conversion.options = replace(dense.options, form="fragments")
    return densify.Dense(dense.source, dense.origin, conversion)


def compared(model: nn.Module, one: Case, dense: densify.Dense, fragments: densify.Dense, result: Reached) -> Reached:
    """Laws 1, 2 and 3 at all sizes."""
    law1 = law3 = allowed = 0.0
    law2 = True
    (lattices,) = dense.lattices.values()
    original = partial(fully_convolutional, model) if one.window else model
    for size in one.sizes:
        x = images((1, 3, *size), 5)
        with torch.no_grad():
            expected, made, other = original(x), dense(x), fragments(x)
            if expected.dim() == 2:
                expected = expected.reshape(*expected.shape, *[1] * len(size))
            law2 &= list(made.shape[2:]) == [e * n for (e, _), n in zip(lattices, expected.shape[2:], strict=True)]
            grid: tuple[Any, ...] = (..., *(slice(o, None, e) for e, o in lattices))
            on_grid = relative_error(made[grid], expected)
            assert made[grid].shape == expected.shape, "law 1: the grid differs in size"
            assert made.shape == other.shape, "law 3: the forms differ in size"
            phases = relative_error(made, other)
            if max(on_grid, phases) > 1e-5 and not allowed:
                allowed = 10 * own_error(original, model, x)
        law1, law3 = max(law1, on_grid), max(law3, phases)
    return replace(result, law1=law1, law2=law2, law3=law3, own=allowed or None, sizes=one.sizes)


def same_weights(model: nn.Module, dense: nn.Module) -> bool:
    """Law 4: keys in order, shapes, dtypes, and every tensor identical."""
    theirs, mine = model.state_dict(), dense.state_dict()
    return list(theirs) == list(mine) and all(
        tensor.shape == mine[key].shape
        and tensor.dtype == mine[key].dtype
        and (tensor.data_ptr() == mine[key].data_ptr() or torch.equal(tensor, mine[key]))
        for key, tensor in theirs.items()
    )


def versions() -> dict[str, str]:
    """The versions in use, of what is installed."""
    found = {}
    for package in ("torch", *PEERS):
        with contextlib.suppress(PackageNotFoundError):
            found[package] = version(package)
    return found


def cached(path: Path) -> dict[str, dict[str, Any]]:
    """The rows made so far with the installed versions; the last of a network counts."""
    if not path.exists():
        return {}
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    return {one["name"]: one for one in rows if one["versions"] == versions()}


def run(wanted: Sequence[str], path: Path) -> Iterator[dict[str, Any]]:
    """Make rows, each written as soon as it is there."""
    path.parent.mkdir(parents=True, exist_ok=True)
    for name in wanted:
        try:
            made = row(name)
        except Exception as error:  # a fault of this script or of a peer: the other rows need not wait for it
            print(f"{name}: no row: {type(error).__name__}: {error}", file=sys.stderr, flush=True)
            continue
        with path.open("a") as file:
            file.write(json.dumps(made) + "\n")
        yield made
        gc.collect()
        with contextlib.suppress(OSError, AttributeError):
            ctypes.CDLL("libc.so.6").malloc_trim(0)  # networks of gigabytes come and go


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", help="make these rows again; default: all that are missing")
    parser.add_argument("--fresh", action="store_true", help="forget the rows made before")
    parser.add_argument("--cache", type=Path, default=ROOT / "build" / "coverage.jsonl")
    parser.add_argument("--output", type=Path, default=ROOT / "docs" / "coverage.md")
    given = parser.parse_args()
    if unknown := set(given.names) - set(names()):
        parser.error(f"torchvision has no convolutional network {', '.join(sorted(unknown))}: {', '.join(names())}")
    if given.fresh:
        given.cache.unlink(missing_ok=True)
    known = cached(given.cache)
    for made in run(given.names or [name for name in names() if name not in known], given.cache):
        print(summary(made), flush=True)
    known = cached(given.cache)
    missing = [name for name in names() if name not in known]
    if missing:
        print(f"{len(missing)} rows are missing, {given.output.name} stays: run it without names.", file=sys.stderr)
    else:
        given.output.write_text(page([known[name] for name in sorted(names())], versions()))


def summary(made: dict[str, Any]) -> str:
    """One line on a row for the terminal."""
    parts = [f"{made['name']} {made['seconds']} s"]
    for one in made["strides"]:
        law1, law3 = (f"{one[law]:.1e}" if one[law] is not None else "-" for law in ("law1", "law3"))
        parts.append(f"{one['asked']}: {law1} {law3} {one['failure'].splitlines()[-1] if one['failure'] else ''}")
    parts += [f"{peer}: {a['verdict']} {a['error'] or a['note']}" for peer, a in made.get("peers", {}).items()]
    return "\n   ".join(parts)


if __name__ == "__main__":
    main()
