"""Check the laws of docs/design.md: a dense network against its original, an ONNX file against its network."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from densify.comparison import (
    DEFAULT_TOLERANCE,
    TOLERANCES,
    Check,
    Judge,
    Report,
    Tolerance,
    compare,
    difference,
    evaluating,
    named_outputs,
    taking,
)
from densify.conversion import Dense, build, inverse
from densify.errors import UsageError
from densify.graphs.fx.trace import same_tensors
from densify.layerwise import located
from densify.maps import Merged
from densify.merge_laws import Merges, has_merges
from densify.originals import REFERENCE, Reference, rounding
from densify.parts import DenseLayers, DenseParts
from densify.planning import at_sizes
from densify.samples import Sample, named_inputs
from densify.sampling import check_grid, check_size
from densify.steps import advancing


def verify(
    model: nn.Module | None,
    dense: Dense,
    inputs: Tensor | Sequence[Tensor | Sample] = (),
    *,
    rtol: float | None = None,
    atol: float = 0.0,
) -> Report:
    """Check a dense network against its original.

    Law 1 (the grid) on every output and input; with padding="full" law 2 (sizes) and law 3 (all phases, against the
    other form); law 4 (the weights). Where the head
    has a fixed window, the original at other sizes than the reference is the fully convolutional one, which itself is
    compared with the original at the reference size. Where upsamplings average or resample, laws 1 to 3 are checked on
    the tensors in front of them, and what averages are made behind against brute force over all shifts.

    Args:
        model: the original; None for the dense network's own inverse, as a fine-tuned one needs.
        dense: what to check.
        inputs: images [B, C, *spatial], one or several.
        rtol: largest relative error; default by dtype: 1e-12 in float64; in float32 1e-5 or ten times the original's
            own error against float64, 0.1 at most.
        atol: absolute errors up to this pass in any case.

    Returns:
        A report that is true when every law that applies holds. Where one fails, it names the first layer whose result
        is not what that law says.

    Raises:
        UsageError: networks of different kinds or dtypes, no input, or one that the network cannot take.
    """
    if not isinstance(dense, Dense):
        raise UsageError(f"verify checks a dense network against its original; this is a {type(dense).__name__}.")
    original = inverse(dense, share=True) if model is None else model
    types = [{t.dtype for t in one.parameters() if t.is_floating_point()} for one in (original, dense)]
    if types[0] != types[1]:
        have = " and ".join(", ".join(sorted(map(str, one))) for one in types)
        raise UsageError(
            f"the original and the dense network compute in {have}: bring both to one (.to(dtype), --dtype)."
        )
    samples = named_inputs(inputs, dense.options.shape)
    tolerance = Tolerance(rtol, atol)
    probe = dense.with_head("dense") if dense.options.head == "average" else dense
    checks = [_weights(original, dense)]
    with evaluating(original, dense, probe):
        reference = Reference(original, probe)
        merges = Merges(DenseParts(original, probe)) if has_merges(probe.plan) else None
        other = _other_form(probe)
        checks += reference.check(tolerance)
        with taking(samples, reference, dense):
            for sample in advancing("verifying", samples):
                name, x = sample.name, sample.tensor
                checks += _grid(reference, probe, x, name, tolerance)
                checks += _phases(reference, probe, other, x, name, tolerance)
                checks += merges.check(x, name, tolerance) if merges is not None else []
                if probe is not dense:
                    checks += _averages(dense, probe, x, name, tolerance)
        report = Report(tuple(checks))
        if report:
            return report
        images = {sample.name: sample.tensor for sample in samples}
        images |= {} if reference.direct else {REFERENCE: reference.image}
        return located(report, DenseLayers(reference, probe, merges), images, tolerance)


def _grid(reference: Reference, dense: Dense, x: Tensor, name: str, tolerance: Tolerance) -> list[Check]:
    expected = reference(x)
    actual = dict(named_outputs(dense(x.clone())))
    judge = Judge(tolerance, lambda: rounding(reference, x, expected))
    maps = at_sizes(dense.plan, tuple(x.shape[2:])).outputs
    # What does not depend on the image has no lattice and must be there all the same.
    constant = {key: value for key, value in expected.items() if key not in maps}
    labels: dict[str, Any] = {"law": "grid", "input": name, "runtime": "torch", "lattice": ()}
    checks = [judge(value, actual[key], output=key, **labels) for key, value in constant.items()]
    for key, one in maps.items():
        want, have = expected[key], actual[key]
        labels = {"output": key, "input": name, "runtime": "torch", "lattice": tuple(map(tuple, one.lattices))}
        sizes = want.shape[want.dim() - len(one.axes) :]
        if one.merged is Merged.NOT:
            checks.append(check_grid(judge, want, have, one, tuple(x.shape[2:]), **labels))
        if dense.options.padding == "full":
            checks.append(check_size(sizes, have, one, labels))
    return checks


def _other_form(dense: Dense) -> Dense | None:
    """The same network in the other form, sharing its tensors; incomplete phases have none."""
    if dense.options.padding != "full":
        return None
    form = "dilated" if dense.options.form == "fragments" else "fragments"
    return build(same_tensors(dense.source), replace(dense.options, form=form), dense.origin).eval()


def _phases(
    reference: Reference, dense: Dense, other: Dense | None, x: Tensor, name: str, tolerance: Tolerance
) -> list[Check]:
    """Law 3: the original's layers on fragments give every sample of the dense network, not only the grid."""
    if other is None:
        return []
    want, have = dict(named_outputs(other(x.clone()))), dict(named_outputs(dense(x.clone())))
    judge = Judge(tolerance, lambda: rounding(reference, x, reference(x)))
    labels = {"input": name, "runtime": "torch"}
    return [
        judge(
            want[key], have[key], output=key, lattice=tuple(map(tuple, one.lattices)),
            law="phases" if one.merged is Merged.NOT else "forms", **labels,
        )
        for key, one in dense.plan.outputs.items()
    ]  # fmt: skip


def _averages(dense: Dense, probe: Dense, x: Tensor, name: str, tolerance: Tolerance) -> list[Check]:
    maps = probe.plan.outputs
    full = dict(named_outputs(probe(x.clone())))
    made = dict(named_outputs(dense(x.clone())))
    judge = Judge(tolerance, dict)
    labels = {"law": "average", "input": name, "runtime": "torch", "lattice": ()}
    return [
        judge(full[key].flatten(-len(one.axes)).mean(-1), made[key], output=key, **labels) for key, one in maps.items()
    ]


def _weights(original: nn.Module, dense: Dense) -> Check:
    """Law 4: the same keys, shapes, dtypes and numbers."""
    want, have = original.state_dict(), dense.state_dict()
    other = [
        key
        for key in want.keys() | have.keys()
        if key not in want or key not in have or not _same(want[key], have[key])
    ]
    return Check(
        law="weights", output="state_dict", input="", runtime="torch", lattice=(), expected=(len(want),),
        actual=(len(have),), absolute=float(len(other)), relative=0.0 if not other else math.inf, worst=(),
        tolerance=0.0, passed=not other, note=f"differs: {sorted(other)[0]}" if other else "",
    )  # fmt: skip


def _same(a: Tensor | None, b: Tensor | None) -> bool:
    if a is None or b is None or a.dtype != b.dtype or a.shape != b.shape:
        return False
    if a.data_ptr() == b.data_ptr() and a.device == b.device:
        return True
    b = b.to(a.device)
    return torch.equal(a, b) or bool(((a == b) | (a.isnan() & b.isnan())).all())


def verify_onnx(
    path: Path, network: nn.Module, samples: Sequence[Sample], tolerance: Tolerance = DEFAULT_TOLERANCE
) -> Report:
    """Check that an ONNX file computes what a network does, in ONNX Runtime on the CPU.

    With all graph optimisations and with none: some of them change values. A file in float16 gets its inputs in
    float16, also runs with every op's result rounded to float16, and may differ by 1e-2 where no tolerance is given.

    Args:
        path: the file.
        network: what it was exported from, of a file in float16 the float32 network too.
        samples: inputs in the network's dtype; sizes other than the example's prove that the file is dynamic.

    Raises:
        UsageError: ONNX Runtime's CPU has no convolution for the inputs' dtype.
    """
    from densify.onnx.file import OnnxSession

    other = {sample.tensor.dtype for sample in samples} - {torch.float32, torch.float16}
    if other:
        raise UsageError(
            f"{path.name}: ONNX Runtime's CPU computes convolutions in float32 and float16, not in {other.pop()}, so "
            "it could not be checked. Bring the weights to float32 first (model.float()), and convert it then."
        )
    reports = []
    with evaluating(network):
        for optimised in (True, False):
            session = OnnxSession(path, optimised=optimised)
            runtime = f"onnxruntime, {'all' if optimised else 'no'} optimisations"

            if session.half and tolerance.rtol is None:
                tolerance = replace(tolerance, rtol=TOLERANCES[torch.float16])

            def run(x: Tensor, session: OnnxSession = session) -> dict[str, Tensor]:
                given = x.cpu().to(torch.float16 if session.half else x.dtype).numpy()
                return dict(zip(session.outputs, map(torch.from_numpy, session(given)), strict=True))

            def own_errors(x: Tensor) -> dict[str, float]:
                return errors_of_precision(network, x)

            reports.append(
                compare(network, run, samples, law="onnx", runtime=runtime, tolerance=tolerance, own_errors=own_errors)
            )
        if session.half:
            reports.append(_rounded(path, network, samples, tolerance))
    return sum(reports, Report(()))


def _rounded(path: Path, network: nn.Module, samples: Sequence[Sample], tolerance: Tolerance) -> Report:
    """A file in float16 as devices compute it: ONNX Runtime's CPU alone would not round between its ops."""
    from densify.onnx.rounding import RoundingSession

    run = RoundingSession(path)
    report = compare(
        network, run, samples, law="onnx", runtime="onnxruntime, float16 after every op", tolerance=tolerance
    )
    if not run.overflow:
        return report
    return Report(tuple(replace(check, passed=False, note=run.overflow) for check in report.checks))


def errors_of_precision(network: nn.Module, x: Tensor) -> dict[str, float]:
    """A network's own relative error on an input, against itself in float64, per output."""
    with torch.no_grad():
        precise = dict(named_outputs(copy.deepcopy(network).double()(x.double())))
        return {key: difference(precise[key], value)[1] for key, value in named_outputs(network(x.clone()))}
