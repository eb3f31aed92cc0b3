"""The laws of docs/design.md for ONNX graphs, in ONNX Runtime: a dense graph against the one it was made from."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import onnx_ir as ir
import torch
from torch import Tensor

from densify.choose import Choice
from densify.comparison import TOLERANCES, Check, Judge, Report, Tolerance, difference
from densify.errors import ConversionError, UsageError
from densify.graphs.onnx.image import image_of, spatial_dims
from densify.graphs.onnx.values import Values
from densify.layerwise import located
from densify.maps import Merged
from densify.merge_laws import Merges, has_merges
from densify.onnx.conversion import DenseOnnx
from densify.onnx.file import raw_bytes
from densify.onnx.layerwise import OnnxLayers
from densify.onnx.model import OnnxModel
from densify.onnx.parts import OnnxParts
from densify.onnx.runtime import Outputs, Runtime, nudged, ordered, plain
from densify.originals import REFERENCE, fixed_window
from densify.planning import at_sizes
from densify.samples import Sample
from densify.sampling import check_grid, check_size


def verify_onnx_laws(
    original: OnnxModel | None,
    dense: DenseOnnx,
    samples: Sequence[Sample],
    *,
    rtol: float | None = None,
    atol: float = 0.0,
) -> Report:
    """Check a dense graph against its original, both in ONNX Runtime on the CPU.

    Law 1 (the grid) with all graph optimisations and with none; with padding="full" law 2 (sizes) and law 3 (all
    phases, against the other form); law 4 (the weights). Where the head has a fixed window, the original at other sizes
    than the reference is the fully convolutional one, itself compared with the original at the reference. Where
    upsamplings average or resample, laws 1 to 3 are checked on the tensors in front of them, and what is made behind
    against brute force over all shifts. Where a law fails, the report names the first layer that diverges.

    Args:
        original: None for the dense graph's own source.
        samples: images [B, C, *spatial].
        rtol, atol: as for :func:`densify.verify`; by default 1e-5 in float32, or ten times what the last bit of the
            image's numbers changes in the original's outputs, 0.1 at most.
    """
    source = original or dense.source
    tolerance, images = Tolerance(rtol, atol), [sample.tensor for sample in samples]
    checks = [_weights(source, dense)]
    probe = dense.changed(head="dense") if dense.options.head == "average" else dense
    order, other, merges = dense.reading.order, None, None
    with Runtime(source.name) as runtime:
        reference = reference_graph(source, probe)
        if _stands_in(probe):
            checks += _head(runtime, source, probe, reference, tolerance)
        wanted = runtime.run(reference, order, images, optimised=False)
        judges = [_judge(runtime, reference, order, x, want, tolerance) for x, want in zip(images, wanted, strict=True)]
        for optimised in (True, False):
            made = runtime.run(probe.graph, order, images, optimised=optimised)
            for sample, want, have, judge in zip(samples, wanted, made, judges, strict=True):
                checks += _grid(probe, sample, want, have, judge, _runtime(optimised))
        if probe.options.padding == "full":
            form = "dilated" if probe.options.form == "fragments" else "fragments"
            other = probe.changed(form=form)
            others = runtime.run(other.graph, order, images, optimised=True)
            for sample, want, have, judge in zip(samples, others, made, judges, strict=True):
                checks += _phases(probe, sample, want, have, judge)
            if has_merges(probe.plan):
                merges = Merges(OnnxParts(runtime, source, probe, max(probe.opset, other.opset)))
                for sample in samples:
                    checks += merges.check(sample.tensor, sample.name, tolerance)
        if probe is not dense:
            averaged = runtime.run(dense.graph, order, images, optimised=True)
            for sample, full, have, judge in zip(samples, made, averaged, judges, strict=True):
                checks += _averages(probe, sample, full, have, judge)
        report = Report(tuple(checks))
        if report:
            return report
        given = {sample.name: sample.tensor for sample in samples} | {REFERENCE: _reference_image(source, probe)}
        found = OnnxLayers(runtime, source.graph, reference, probe, None if other is None else other.graph, merges)
        return located(report, found, given, tolerance)


def verify_half(single: DenseOnnx, half: DenseOnnx, samples: Sequence[Sample], tolerance: Tolerance) -> Report:
    """Compare a dense graph in float16 with the same in float32, to 1e-2 where no tolerance is given.

    With all graph optimisations, with none, and with the result of every op rounded to float16.

    Args:
        samples: images [B, C, *spatial] in float32.
    """
    order, rtol = single.reading.order, tolerance.rtol
    judge = Judge(Tolerance(TOLERANCES[torch.float16] if rtol is None else rtol, tolerance.atol), dict)
    images, halves = [sample.tensor for sample in samples], [sample.tensor.half() for sample in samples]
    made: dict[str, list[Outputs]] = {}
    with Runtime(single.source.name) as runtime:
        wanted = runtime.run(single.graph, order, images, optimised=False)
        for optimised in (True, False):
            made[_runtime(optimised)] = runtime.run(half.graph, order, halves, optimised=optimised)
        rounding = runtime.rounding(half.graph)
        made["onnxruntime, float16 after every op"] = [rounding(ordered(x, order)) for x in halves]
    checks = [
        judge(
            want[key], have[key], law="half", output=key, input=sample.name, runtime=runtime_name,
            lattice=tuple(map(tuple, single.plan.outputs[key].lattices)),
        )
        for runtime_name, found in made.items()
        for sample, want, have in zip(samples, wanted, found, strict=True)
        for key in single.plan.outputs
    ]  # fmt: skip
    if rounding.overflow:
        checks = [replace(check, passed=False, note=rounding.overflow) for check in checks]
    return Report(tuple(checks))


def _judge(
    runtime: Runtime, graph: ir.Model, order: Sequence[int], x: Tensor, made: Outputs, tolerance: Tolerance
) -> Judge:
    """A judge that knows how the outputs of a graph change with the last bit of its image's numbers."""

    def errors() -> dict[str, float]:
        (other,) = runtime.run(graph, order, [nudged(x)], optimised=False)
        return {name: difference(value, other[name])[1] for name, value in made.items()}

    return Judge(tolerance, errors)


def _runtime(optimised: bool) -> str:
    return f"onnxruntime, {'all' if optimised else 'no'} optimisations"


def _stands_in(dense: DenseOnnx) -> bool:
    """Whether the fully convolutional graph stands for the original."""
    return dense.options.head not in ("dense", "average") or fixed_window(dense.plan)


def reference_graph(source: OnnxModel, dense: DenseOnnx) -> ir.Model:
    """The function that a dense graph must agree with on its grid."""
    if not _stands_in(dense):
        return source.graph
    return dense.changed(choice=Choice(layers=()), padding="full", form="dilated", merge="select").graph


def _reference_image(source: OnnxModel, dense: DenseOnnx) -> Tensor:
    return torch.randn(dense.options.shape, generator=torch.Generator().manual_seed(0)).to(source.dtype)


def _head(
    runtime: Runtime, source: OnnxModel, dense: DenseOnnx, reference: ir.Model, tolerance: Tolerance
) -> list[Check]:
    """The fully convolutional graph is the original at the reference size."""
    if dense.options.head not in ("dense", "average"):
        return []
    x = [_reference_image(source, dense)]
    order = dense.reading.order
    (want,), (have,) = (runtime.run(graph, order, x, optimised=False) for graph in (source.graph, reference))
    judge = _judge(runtime, reference, order, x[0], have, tolerance)
    labels: dict[str, Any] = {"law": "head", "input": REFERENCE, "runtime": _runtime(False), "lattice": ()}
    return [judge(want[key], have[key].reshape(want[key].shape), output=key, **labels) for key in want if key in have]


def _grid(
    dense: DenseOnnx,
    sample: Sample,
    want: Mapping[str, Tensor],
    have: Mapping[str, Tensor],
    judge: Judge,
    runtime: str,
) -> list[Check]:
    image, checks = tuple(sample.tensor.shape[2:]), list[Check]()
    for key, one in at_sizes(dense.plan, image).outputs.items():
        place = dense.reading.places[dense.plan.network.outputs[key]]
        expected, actual = (plain(x, place.order, len(one.axes)) for x in (want[key], have[key]))
        labels: dict[str, Any] = {
            "output": key, "input": sample.name, "runtime": runtime, "lattice": tuple(map(tuple, one.lattices)),
        }  # fmt: skip
        sizes = expected.shape[2:]
        if one.merged is Merged.NOT:
            checks.append(check_grid(judge, expected, actual, one, image, **labels))
        if dense.options.padding == "full":
            checks.append(check_size(sizes, actual, one, labels))
    for key in want.keys() & have.keys() - dense.plan.outputs.keys():  # what does not depend on the image
        checks.append(
            judge(want[key], have[key], law="grid", output=key, input=sample.name, runtime=runtime, lattice=())
        )
    return checks


def _phases(
    dense: DenseOnnx, sample: Sample, want: Mapping[str, Tensor], have: Mapping[str, Tensor], judge: Judge
) -> list[Check]:
    """Law 3: the original's own nodes on fragments give every sample of the dense graph."""
    return [
        judge(
            want[key], have[key], output=key, lattice=tuple(map(tuple, one.lattices)), input=sample.name,
            law="phases" if one.merged is Merged.NOT else "forms", runtime=_runtime(True),
        )
        for key, one in dense.plan.outputs.items()
    ]  # fmt: skip


def _averages(
    probe: DenseOnnx, sample: Sample, full: Mapping[str, Tensor], have: Mapping[str, Tensor], judge: Judge
) -> list[Check]:
    labels: dict[str, Any] = {"law": "average", "input": sample.name, "runtime": _runtime(True), "lattice": ()}
    checks = []
    for key, one in probe.plan.outputs.items():
        place = probe.reading.places[probe.plan.network.outputs[key]]
        mean = plain(full[key], place.order, len(one.axes)).flatten(2).mean(-1)
        checks.append(judge(mean, have[key], output=key, **labels))
    return checks


def _weights(source: OnnxModel, dense: DenseOnnx) -> Check:
    """Law 4: initializers of the same names, types, shapes and bytes."""
    want, have = (
        {name: value.const_value for name, value in one.graph.initializers.items()}
        for one in (source.graph, dense.graph)
    )
    other = sorted(name for name in want.keys() | have.keys() if not _same(want.get(name), have.get(name)))
    return Check(
        law="weights", output="initializers", input="", runtime="onnx", lattice=(), expected=(len(want),),
        actual=(len(have),), absolute=float(len(other)), relative=0.0 if not other else math.inf, worst=(),
        tolerance=0.0, passed=not other, note=f"differs: {other[0]}" if other else "",
    )  # fmt: skip


def _same(a: ir.TensorProtocol | None, b: ir.TensorProtocol | None) -> bool:
    if a is None or b is None or a.dtype != b.dtype or tuple(a.shape) != tuple(b.shape):
        return False
    return a is b or bool((raw_bytes(a) == raw_bytes(b)).all())


def same_outputs(
    first: OnnxModel, second: OnnxModel, samples: Sequence[Sample], *, rtol: float | None, atol: float
) -> Report:
    """Whether two graphs make the same outputs."""
    judge, checks, images = Judge(Tolerance(rtol, atol), dict), [], [sample.tensor for sample in samples]
    with Runtime(f"{first.name} or {second.name}") as runtime:
        one, two = (
            runtime.run(model.graph, spatial_dims(model.graph), images, optimised=False) for model in (first, second)
        )
    for sample, want, have in zip(samples, one, two, strict=True):
        if want.keys() != have.keys():
            raise UsageError(f"the graphs have different outputs: {', '.join(want)} and {', '.join(have)}.")
        labels: dict[str, Any] = {"law": "same", "input": sample.name, "runtime": _runtime(False), "lattice": ()}
        checks += [judge(want[key], have[key], output=key, **labels) for key in want]
    return Report(tuple(checks))


def legal(source: OnnxModel, shape: Sequence[int], dense: DenseOnnx | None = None) -> bool:
    """Whether a graph takes images [B, C, *spatial] of a shape, as far as shapes tell.

    Args:
        dense: made of it; where a head of fixed window became convolutions these decide.
    """
    image, order = image_of(source.graph), spatial_dims(source.graph)
    own = tuple(shape[order.index(dim)] for dim in range(len(order)))
    if any(have not in (None, want) for have, want in zip(source.declared(), own, strict=False)):
        return False
    if dense is not None and _stands_in(dense):
        try:
            at_sizes(dense.plan, tuple(shape[2:]))
        except ConversionError:
            return False
        return True
    known = Values(source.graph, image).at(own)
    empty = any(
        min(one.shape, default=1) < 1 for one in known.values() if one.shape is not None and one.numbers is None
    )
    return not empty and all(str(value.name) in known for value in source.graph.graph.outputs)
