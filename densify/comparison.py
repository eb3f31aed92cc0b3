"""Comparing the outputs of two networks: what counts as equal, and the report of what was found."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from densify.errors import UsageError
from densify.facts import plain
from densify.samples import Sample
from densify.shown import Shown
from densify.steps import advancing
from densify.structure import named
from densify.words import count

if TYPE_CHECKING:
    from rich.console import Console

# Largest relative error of equal networks, by dtype (docs/design.md, "When are two tensors equal?").
TOLERANCES = {torch.float64: 1e-12, torch.float32: 1e-5, torch.float16: 1e-2, torch.bfloat16: 1e-1}
_OWN_ERRORS = 10.0  # a deep network's own rounding may be this many times exceeded
_MOST = 1e-1  # past it, a tolerance would let anything pass: outputs that jump with the last bit prove nothing


@dataclass(frozen=True)
class Check:
    """One comparison.

    Attributes:
        law: what was checked, such as "grid" (law 1), "size" (law 2), "weights" (law 4), "onnx".
        output: name of the output tensor.
        input: name of the input.
        runtime: what ran the checked network.
        lattice: per spatial axis (eST, offset).
        expected, actual: shapes of the original's and of the checked tensor.
        absolute, relative: largest absolute error, and that over the largest absolute value expected.
        worst: index of the largest error in the expected tensor.
        tolerance: what `relative` may reach.
        passed: whether it holds.
        note: what else there is to know.
    """

    law: str
    output: str
    input: str
    runtime: str
    lattice: tuple[tuple[int, int], ...]
    expected: tuple[int, ...]
    actual: tuple[int, ...]
    absolute: float
    relative: float
    worst: tuple[int, ...]
    tolerance: float
    passed: bool
    note: str = ""


@dataclass(frozen=True)
class Divergence:
    """The first layer whose result is not what a law makes of the original.

    Attributes:
        layer, op, where: its name, its op and its source line, as a plan gives them.
        law, input, runtime: of the check that failed.
        phase: of its eST, per spatial axis, where the largest error lies.
        expected, actual: shapes of the layer's result in the original and in the checked network.
        absolute, relative, worst, tolerance: as for :class:`Check`; the tolerance is what precision allows here.
    """

    layer: str
    op: str
    where: str
    law: str
    input: str
    runtime: str
    phase: tuple[int, ...]
    expected: tuple[int, ...]
    actual: tuple[int, ...]
    absolute: float
    relative: float
    worst: tuple[int, ...]
    tolerance: float


@dataclass(frozen=True, repr=False)
class Report(Shown):
    """The result of a verification; true when there were checks and all passed. Printed, it is the commands' table.

    Attributes:
        checks: what was compared.
        divergence: where a law failed, the first layer whose result differs; None where all agree that were compared.
    """

    checks: tuple[Check, ...]
    divergence: Divergence | None = None

    def __bool__(self) -> bool:
        return bool(self.checks) and all(check.passed for check in self.checks)

    def __str__(self) -> str:
        return self._text()

    def __repr__(self) -> str:
        return f"Report(passed={bool(self)}, {count(len(self.checks), 'check')}, {len(self.failed)} failed)"

    def __add__(self, other: Report) -> Report:
        return Report(self.checks + other.checks, self.divergence or other.divergence)

    @property
    def failed(self) -> tuple[Check, ...]:
        return tuple(check for check in self.checks if not check.passed)

    def to_dict(self) -> dict[str, Any]:
        """As `densify verify --json` has it: plain numbers, texts, lists and dicts."""
        found: dict[str, Any] = plain(
            {
                "passed": bool(self),
                "checks": [asdict(check) for check in self.checks],
                "divergence": None if self.divergence is None else asdict(self.divergence),
            }
        )
        return found

    def _show(self, screen: Console) -> None:
        from densify.display import show_report

        show_report(self.to_dict(), screen)


@dataclass(frozen=True)
class Tolerance:
    """What counts as equal.

    Attributes:
        rtol: largest relative error; None for that of the dtype, or ten times the original's own rounding error up to
            0.1.
        atol: absolute errors up to this pass in any case.
    """

    rtol: float | None = None
    atol: float = 0.0


DEFAULT_TOLERANCE = Tolerance()


class Judge:
    """Compares a network's outputs with expected ones on one input.

    Args:
        own_errors: the expected network's own rounding error per output, on this input; asked only where it matters.
    """

    def __init__(self, tolerance: Tolerance, own_errors: Callable[[], Mapping[str, float]]) -> None:
        self._tolerance, self._own = tolerance, own_errors

    @cached_property
    def own_errors(self) -> Mapping[str, float]:
        return self._own()

    def __call__(self, expected: Tensor, actual: Tensor, **labels: Any) -> Check:
        """Compare two tensors; another shape fails."""
        base = self._tolerance.rtol if self._tolerance.rtol is not None else TOLERANCES.get(expected.dtype, 0.0)
        shapes: dict[str, Any] = {"expected": tuple(expected.shape), "actual": labels.pop("shape", tuple(actual.shape))}
        if expected.shape != actual.shape:
            inf = math.inf
            note = f"shape {tuple(actual.shape)} where {tuple(expected.shape)} is expected"
            return Check(
                **shapes, absolute=inf, relative=inf, worst=(), tolerance=base, passed=False, note=note, **labels
            )
        absolute, relative, worst = difference(expected, actual)
        note = ""
        if relative > base and self._tolerance.rtol is None and expected.dtype != torch.float64:
            own = self.own_errors.get(labels["output"], 0.0)
            base = max(base, min(_OWN_ERRORS * own, _MOST)) if math.isfinite(own) else base
            if _OWN_ERRORS * own > _MOST:
                note = f"rounding alone changes the original's output by {own:.1e}: give --rtol or other inputs"
        if not expected.isfinite().any():
            base, note = -1.0, "nothing to compare: the original's output has no finite number"
        elif expected.numel() and not expected.any() and not actual.any():
            note = "both are 0 everywhere, which proves nothing: give trained weights"
        passed = relative <= base or (base >= 0 and absolute <= self._tolerance.atol)
        numbers: dict[str, Any] = {
            "absolute": absolute,
            "relative": relative,
            "worst": worst,
            "tolerance": base,
            "note": note,
        }
        return Check(**shapes, **numbers, passed=passed, **labels)


def difference(expected: Tensor, actual: Tensor) -> tuple[float, float, tuple[int, ...]]:
    """Largest absolute error, that over the largest absolute value expected, and where it is; NaN meets NaN only."""
    if expected.numel() == 0:
        return 0.0, 0.0, ()
    a, b = expected.detach().double().cpu(), actual.detach().double().cpu()
    error = (a - b).abs()
    error = torch.where((a == b) | (a.isnan() & b.isnan()), 0.0, error).nan_to_num(nan=math.inf)
    place = int(error.argmax())
    absolute = float(error.flatten()[place])
    scale = float(torch.where(a.isfinite(), a, 0.0).abs().max())
    relative = absolute / scale if scale else (0.0 if absolute == 0 else math.inf)
    return absolute, relative, tuple(int(i) for i in torch.unravel_index(torch.tensor(place), expected.shape))


def named_outputs(value: Any) -> Iterator[tuple[str, Tensor]]:
    """All tensors of a model's output with the names that `lattices` gives them."""
    return named(value, Tensor)


@contextmanager
def evaluating(*models: nn.Module) -> Iterator[None]:
    """Eval mode and no gradients; every module's own mode afterwards."""
    modes = {module: module.training for model in models for module in model.modules()}
    modes |= {model: model.training for model in models}
    try:
        for model in models:
            model.eval()
        with torch.no_grad():
            yield
    finally:
        for module, mode in modes.items():
            module.training = mode


@contextmanager
def taking(samples: Sequence[Sample], *networks: Callable[[Tensor], Any]) -> Iterator[None]:
    """Where something fails since a network cannot take a sample, say which, and why.

    Args:
        networks: in eval mode.

    Raises:
        UsageError: one of them fails on one of the samples.
    """
    try:
        yield
    except (RuntimeError, ValueError) as error:
        for sample in samples:
            for network in networks:
                reason = refusal(network, sample)
                if reason is not None:
                    raise UsageError(
                        f"{sample.name}: the network takes no input of {list(sample.tensor.shape)} ({reason}); give "
                        "samples of a size and dtype that it takes, such as the reference size (--input-size, in "
                        "Python the example's)"
                    ) from error
        raise


def refusal(network: Callable[[Tensor], Any], sample: Sample) -> str | None:
    """Why a network in eval mode cannot take a sample; None where it can."""
    try:
        network(sample.tensor)
    except (RuntimeError, ValueError) as error:
        return (str(error).splitlines() or [type(error).__name__])[0].rstrip(".")
    return None


def compare(
    expected: Callable[[Tensor], Any],
    actual: Callable[[Tensor], Any],
    samples: Sequence[Sample],
    *,
    law: str,
    runtime: str,
    tolerance: Tolerance,
    own_errors: Callable[[Tensor], Mapping[str, float]] = lambda x: {},
) -> Report:
    """Check that two networks make the same outputs, all samples of all outputs."""
    checks = []
    for sample in advancing(f"comparing in {runtime}", samples):
        want = dict(named_outputs(expected(sample.tensor.clone())))
        have = dict(named_outputs(actual(sample.tensor.clone())))
        if want.keys() != have.keys():
            raise UsageError(f"the networks have different outputs: {', '.join(want)} and {', '.join(have)}.")
        judge = Judge(tolerance, lambda x=sample.tensor: own_errors(x))  # type: ignore[misc]
        labels = {"law": law, "input": sample.name, "runtime": runtime, "lattice": ()}
        checks += [judge(value, have[key], output=key, **labels) for key, value in want.items()]
    return Report(tuple(checks))
