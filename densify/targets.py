"""What a dense network is written for: how each runtime wants it, and what each refuses or gets wrong.

The facts stand here once; docs/targets.md shows them. Imports neither torch nor onnx: a predicate reads the attributes
of an onnx_ir node.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import TYPE_CHECKING, Literal

from densify.errors import TargetError, UsageError
from densify.onnx import predicates as is_

if TYPE_CHECKING:
    import onnx_ir as ir

OPSETS = range(18, 26)
"""The opsets that can be produced: below them the exporter silently stays at 18, above ONNX Runtime does not follow."""

_POOLS = ("MaxPool", "AveragePool", "LpPool")


@dataclass(frozen=True)
class Fact:
    """Something that a runtime refuses or gets wrong.

    Attributes:
        ops: the ops of the standard domain that it is about.
        what: which of these nodes, in words; "" for all.
        reason: what the runtime does with them.
        source: a public address, a repository and path, or how it was measured.
        matches: whether it holds for a node that is one of `ops`.
    """

    ops: tuple[str, ...]
    what: str
    reason: str
    source: str
    matches: Callable[[ir.Node], bool] = lambda node: True


@dataclass(frozen=True)
class Target:
    """How a dense network is written for one runtime.

    Attributes:
        name: of `--target`.
        runtime: what it stands for.
        form: the form that an ONNX file must have; None for the one that was asked for.
        max_pool: how dilated max pooling is written: "native" as MaxPool with dilations behind an explicit padding,
            "shifts" as maxima of shifted slices. Dilated average pooling is a depthwise convolution everywhere.
        ceil_mode: False where MaxPool's ceil_mode is replaced by padding and a crop.
        opsets: those that are written for it, of `OPSETS`.
        opset: the default of them.
        run: whether the tests run such files in the runtime; else they are checked against `refuses` alone.
        refuses: what a file must not hold.
        avoids: what densify does not write itself for this reason, though a model of one's own may hold it.
    """

    name: str
    runtime: str
    form: Literal["fragments"] | None
    max_pool: Literal["native", "shifts"]
    ceil_mode: bool
    opsets: range
    opset: int
    run: bool
    refuses: tuple[Fact, ...]
    avoids: tuple[Fact, ...] = ()


@dataclass(frozen=True)
class Refusal:
    """A node of a file that its target refuses."""

    node: str
    op: str
    fact: Fact

    def __str__(self) -> str:
        what = f" with {self.fact.what}" if self.fact.what else ""
        return f"{self.node} ({self.op}{what}): {self.fact.reason} [{self.fact.source}]"


def refusals(model: ir.Model, target: Target) -> list[Refusal]:
    """All nodes of a model, those in functions and inner graphs included, that a target refuses."""
    return list(_matching(model, target.refuses))


def avoided(model: ir.Model, target: Target) -> list[Refusal]:
    """All nodes of a model that densify would not write for a target."""
    return list(_matching(model, target.avoids))


def _matching(model: ir.Model, facts: Sequence[Fact]) -> Iterator[Refusal]:
    inside = (function.all_nodes() for function in model.functions.values())
    for node in chain(model.graph.all_nodes(), *inside):
        for fact in facts:
            if node.domain in ("", "ai.onnx") and node.op_type in fact.ops and fact.matches(node):
                yield Refusal(node.name or (node.outputs[0].name if node.outputs else None) or "?", node.op_type, fact)


def check(model: ir.Model, target: Target) -> None:
    """Refuse a model that holds something on its target's list.

    Raises:
        TargetError: naming every such node, the reason, and the targets that take the model.
    """
    found = refusals(model, target)
    if not found:
        return
    others = [one.name for one in TARGETS.values() if not refusals(model, one)]
    remedy = f"Of the targets, {' and '.join(others)} take it" if others else "No target takes it: use another op"
    lines = "\n".join(f"  {one}" for one in found)
    raise TargetError(
        f'{target.runtime} (target "{target.name}") refuses {len(found)} of the file\'s nodes:\n{lines}\n{remedy}.'
    )


def find(name: str) -> Target:
    """The target of a name.

    Raises:
        UsageError: there is none.
    """
    if name not in TARGETS:
        raise UsageError(f"target={name!r} is not one of {', '.join(TARGETS)}.")
    return TARGETS[name]


def opset_for(target: Target, opset: int | None) -> int:
    """The opset that is written: the one asked for, or the target's default.

    Raises:
        UsageError: it cannot be produced, or the target does not read it.
    """
    if opset is None:
        return target.opset
    if opset not in OPSETS:
        raise no_such_opset(opset)
    if opset not in target.opsets:
        raise UsageError(
            f'opset {opset}: the target "{target.name}" takes those from {target.opsets[0]} to {target.opsets[-1]}.'
        )
    return opset


def no_such_opset(opset: int) -> UsageError:
    return UsageError(f"opset {opset} cannot be produced. Ask for one from {OPSETS[0]} to {OPSETS[-1]}.")


_CONTROL = ("If", "Loop", "Scan", "SequenceMap", "SequenceAt", "SequenceConstruct", "SplitToSequence")
_NO_IMPORTER = (
    "AffineGrid BitShift BitwiseAnd BitwiseNot BitwiseOr BitwiseXor CenterCropPad Col2Im Compress DFT DeformConv Det "
    "Gelu MaxRoiPool MaxUnpool Mish STFT SequenceAt SequenceConstruct SequenceMap SplitToSequence Unique"
)
_ORT = "measured, ONNX Runtime 1.31.1"
_OPENVINO = "measured, OpenVINO 2026.4.1 in f32"
_TENSORRT = "onnx/onnx-tensorrt, builtin_op_static_checkers.cpp"
_WEBGPU = "microsoft/onnxruntime, js/web/lib/wasm/jsep/webgpu/ops/pool.ts"
_WEBNN = "microsoft/onnxruntime, js/web/docs/webnn-operators.md"

_TARGETS = (
    Target(
        name="ort",
        runtime="ONNX Runtime",
        form=None,
        max_pool="native",
        ceil_mode=True,
        opsets=OPSETS,
        opset=20,
        run=True,
        refuses=(
            Fact(
                ("ConvTranspose",),
                "an output_padding that reaches its stride",
                "loads, but fails when it runs: it takes the output's size for inconsistent",
                _ORT,
                is_.overhangs,
            ),
            Fact(("MaxUnpool",), "an output_shape", "computes other values", _ORT, is_.told_its_shape),
        ),
        avoids=(
            Fact(
                ("MaxPool",),
                "dilations and padding in front",
                "its CUDA provider computed wrong maxima, silently, until July 2026",
                "https://github.com/microsoft/onnxruntime/issues/29637",
                is_.dilated_and_padded,
            ),
            Fact(
                ("AveragePool",),
                "dilations",
                "its CUDA provider ignored them silently until July 2026",
                "https://github.com/microsoft/onnxruntime/pull/29631",
                is_.dilated,
            ),
        ),
    ),
    Target(
        name="openvino",
        runtime="OpenVINO",
        form=None,
        max_pool="shifts",
        ceil_mode=False,
        opsets=OPSETS,
        opset=20,
        run=True,
        refuses=(
            Fact(
                ("Conv",),
                "dynamic sizes and dilated taps that reach 64 samples past the padding",
                "fails when it compiles the file for the CPU: it tries it on 64 samples",
                _OPENVINO,
                is_.reaches_far,
            ),
            Fact(("MaxPool",), "ceil_mode", "makes a window more than ONNX does at some sizes", _OPENVINO, is_.ceils),
            Fact(
                ("AveragePool",),
                "ceil_mode, padding and count_include_pad",
                "divides by other counts than ONNX in the last windows",
                _OPENVINO,
                is_.ceils_over_padding,
            ),
            Fact(
                ("Resize",),
                "antialias",
                "ignores it silently",
                "https://github.com/openvinotoolkit/openvino/issues/35893",
                is_.antialiases,
            ),
            Fact(("Abs",), "what follows from sizes", "leaves what is below 0 as it is", _OPENVINO, is_.of_sizes),
            Fact(("Resize",), "a rare coordinate mode", "refuses the file", _OPENVINO, is_.rare_coordinates),
            Fact(("Resize",), "a keep_aspect_ratio_policy", "ignores it silently", _OPENVINO, is_.keeps_aspect),
            Fact(
                ("Resize",),
                "cubic mode and exclude_outside",
                "ignores the latter silently",
                _OPENVINO,
                is_.cubic_inside,
            ),
            Fact(("Pad",), 'mode "wrap"', "refuses the file", _OPENVINO, is_.wraps),
            Fact(
                ("LayerNormalization",),
                "a scale that the graph makes",
                "makes an empty map of several images",
                _OPENVINO,
                is_.is_scaled_by_the_graph,
            ),
            Fact(("GridSample",), "five axes", "refuses the file", _OPENVINO, is_.samples_volumes),
            Fact(("RoiAlign",), 'mode "max"', "computes other values", _OPENVINO, is_.takes_maxima),
            Fact(("MaxUnpool", "DeformConv"), "", "refuses the file", _OPENVINO),
        ),
        avoids=(
            Fact(
                ("MaxPool",),
                "dilations",
                "is right, but has no fast kernel",
                _OPENVINO,
                is_.dilated,
            ),
        ),
    ),
    Target(
        name="tensorrt",
        runtime="TensorRT",
        form=None,
        max_pool="shifts",
        ceil_mode=True,
        opsets=OPSETS,
        opset=18,
        run=False,
        refuses=(
            Fact(_POOLS[:2], "dilations", "refuses the file", _TENSORRT, is_.dilated),
            Fact(("MaxPool",), "indices", "refuses the file", _TENSORRT, is_.gives_indices),
            Fact(
                _POOLS[:2],
                "one spatial axis",
                "takes 2-D and 3-D pooling only",
                "onnx/onnx-tensorrt, docs/operators.md",
                is_.of_lines,
            ),
            Fact(("Resize",), "a rare coordinate mode", "refuses the file", _TENSORRT, is_.rare_coordinates),
            Fact(
                tuple(_NO_IMPORTER.split()),
                "",
                "has no importer for it in every release",
                _TENSORRT,
            ),
        ),
    ),
    Target(
        name="portable",
        runtime="a small or an old runtime",
        form="fragments",
        max_pool="shifts",
        ceil_mode=False,
        opsets=range(18, 21),
        opset=18,
        run=False,
        refuses=(
            Fact(
                _POOLS,
                "dilations",
                "tract ignored them silently until September 2026; so does OpenCV's pooling",
                "https://github.com/sonos/tract/pull/2847; opencv/opencv, modules/dnn/src/layers/pooling_layer.cpp",
                is_.dilated,
            ),
            Fact(("MaxPool",), "dilations", "ONNX Runtime Web on WebGPU ignores them silently", _WEBGPU, is_.dilated),
            Fact(("MaxPool",), "indices", "ONNX Runtime Web on WebGPU does not make them", _WEBGPU, is_.gives_indices),
            Fact(
                _POOLS,
                "ceil_mode",
                "ONNX Runtime Web on WebGPU fails when it runs",
                "https://github.com/huggingface/transformers.js/issues/1435",
                is_.ceils,
            ),
            Fact(
                (*_POOLS, "Conv", "ConvTranspose"),
                "three spatial axes",
                "WebNN takes one or two",
                _WEBNN,
                is_.of_volumes,
            ),
            Fact(("Pad",), 'mode "wrap"', "WebNN does not take it", _WEBNN, is_.wraps),
            Fact(("Resize",), "cubic mode", "WebNN takes nearest and linear", _WEBNN, is_.cubic),
            Fact(("Resize",), "antialias", "OpenVINO ignores it silently", _OPENVINO, is_.antialiases),
            Fact(
                ("Resize",),
                "a rare coordinate mode",
                "OpenVINO and TensorRT refuse it",
                _TENSORRT,
                is_.rare_coordinates,
            ),
            Fact(
                ("MaxUnpool", "DeformConv", "Col2Im", "CenterCropPad", "AffineGrid"),
                "",
                "neither OpenVINO nor TensorRT takes all of these",
                f"{_TENSORRT}; {_OPENVINO}",
            ),
            Fact(_CONTROL, "", "WebNN has no control flow and no sequences", _WEBNN),
        ),
    ),
)

TARGETS = {target.name: target for target in _TARGETS}
"""The targets by name; the first is the default."""
