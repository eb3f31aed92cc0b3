"""A pytest plugin (`make cross-check`): every model that a test converts is also exported first, and made dense then.

Both dense graphs have to compute the same in ONNX Runtime. What cannot be compared is counted, and shown at the end
with its test and the reason: the exporter fails, or writes what the runtime does not take or another function; graphs
refuse what `_REFUSED` says.
"""

from __future__ import annotations

import copy
import hashlib
import math
import os
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from densify import conversion
from densify.comparison import difference, named_outputs
from densify.conversion import Dense
from densify.errors import ConversionError, DensifyError, RefusedError
from densify.ops import AvgPool
from densify.verification import errors_of_precision
from laws.onnx import as_converted, exported, run, written

_LARGEST = 3_000_000  # parameters of a model that is checked
_TOLERANCE, _OWN, _OTHER = 1e-5, 10.0, 1e-4
_REFUSED = ("the places of its maxima are read", "no rule says where the samples of a phase then lie")
"""Max unpooling, and "nearest-exact" by a broken factor, which torch exports as an index of every sample."""

_counts: Counter[str] = Counter()
_reasons: list[str] = []
_seen: set[str] = set()


def pytest_configure(config: pytest.Config) -> None:
    """Check what `convert` makes."""
    right = conversion.convert

    def convert(model: nn.Module, example: Any, **choice: Any) -> Dense:
        made = right(model, example, **choice)
        _counts[_checked(model, made)] += 1
        return made

    conversion.convert = convert


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    for reason in _reasons:
        terminalreporter.write_line(reason)
    for what, count in _counts.most_common():
        terminalreporter.write_line(f"{count:5} {what}")


def _told(what: str, why: Exception) -> str:
    _reasons.append(f"{os.environ.get('PYTEST_CURRENT_TEST', '').split(' ')[0]}: {what}: {why}")
    return what


def _checked(model: nn.Module, dense: Dense) -> str:
    """What became of one model."""
    options = dense.options
    mark = hashlib.sha256(f"{dense.code}{options}".encode()).hexdigest()
    if mark in _seen:
        return "seen before"
    _seen.add(mark)
    if "wrong" in os.environ.get("PYTEST_CURRENT_TEST", ""):
        return "broken on purpose"
    if sum(one.numel() for one in model.parameters()) > _LARGEST:
        return "too large"
    single = copy.deepcopy(model).float().eval()
    try:
        both = conversion.build(copy.deepcopy(single), options, dense.origin).eval()
        x = _image(options.shape)
        with torch.no_grad():
            wanted = dict(named_outputs(single(x)))
    except (DensifyError, RuntimeError):
        return "does not run in float32"
    with tempfile.TemporaryDirectory() as folder:
        try:
            source = exported(single, options.shape, Path(folder))
            off = _errors(wanted, run(source.graph, x, optimised=False))
        except ConversionError as error:
            return _told("cannot be exported, or does not run as exported", error)
        if max(off.values()) > _OTHER:
            return "exported as another function"
        ops = [site.op for site in both.plan.network.sites.values() if isinstance(site.op, AvgPool) and site.op.divisor]
        if any(window.ceil for op in ops for window in op.windows):
            return "averaged in ceil mode with a divisor of its own"
        images, *sizes = source.declared()
        fixed = None not in sizes[1:]
        try:
            reading, plan = as_converted(source, both)
        except ValueError as error:
            if not fixed:
                raise
            return _told("of one size, in which nothing shows whose the axes are", error)
        except RefusedError as error:
            if not (fixed or any(reason in str(error) for reason in _REFUSED)):
                raise
            return _told("refused as a graph", error)
        assert plan.lattices == both.lattices
        shapes = [options.shape] if fixed else [options.shape, (images or 2, *options.shape[1:])]
        for form in ("dilated", "fragments") if options.padding == "full" else ("dilated",):
            graph = written(source, reading, plan, form)
            for shape in shapes:
                _compare(both, graph, _image(shape), form, off)
    return "equal"


def _compare(dense: Dense, graph: Any, x: Tensor, form: str, off: dict[str, float]) -> None:
    with torch.no_grad():
        wanted = dict(named_outputs(dense(x)))
    errors = errors_of_precision(dense, x)
    made = run(graph, x, optimised=False)
    for name, want in wanted.items():
        allowed = max(_TOLERANCE, _OWN * errors.get(name, 0.0), _OWN * off.get(name, 0.0))
        assert made[name].shape == want.shape, (form, tuple(x.shape), name)
        assert difference(want, made[name])[1] <= allowed, (form, tuple(x.shape), name)


def _errors(wanted: dict[str, Tensor], made: dict[str, Tensor]) -> dict[str, float]:
    """How far the exported original is from the model, by output: scale factors are float32 in ONNX."""
    return {
        name: difference(want, made[name])[1] if name in made and made[name].shape == want.shape else math.inf
        for name, want in wanted.items()
    }


def _image(shape: Any) -> Tensor:
    return torch.randn(tuple(shape), generator=torch.Generator().manual_seed(3))
