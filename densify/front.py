"""The public functions that take torch models and ONNX files alike: what is given decides who does the work."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TypedDict, Unpack, overload

from torch import Tensor, nn

from densify import checkpoint, conversion, exporting, verification
from densify.comparison import Report
from densify.conversion import Dense, Example, shape_of
from densify.errors import UsageError
from densify.offers import Offers
from densify.onnx.conversion import (
    DenseOnnx,
    OnnxConversion,
    choices_onnx,
    convert_onnx,
    opened,
    options_of,
    survey_onnx,
)
from densify.onnx.export import ExportResult
from densify.onnx.model import OnnxModel
from densify.onnx.packing import inverse_onnx
from densify.onnx.verification import verify_onnx_laws
from densify.onnx.writing import export_graph, save_graph
from densify.plans import Plan, Survey
from densify.recipe import Recipe
from densify.samples import Sample, named_inputs

File = str | Path | OnnxModel


class How(TypedDict, total=False):
    """How a model is converted, see :func:`convert`."""

    start: str | None
    layers: Sequence[str] | None
    output_stride: int | None
    padding: str
    head: str
    form: str
    merge: str


@overload
def convert(model: nn.Module, example: Example, *, share: bool = ..., **how: Unpack[How]) -> Dense: ...
@overload
def convert(model: File, example: Example | None = ..., **how: Unpack[How]) -> DenseOnnx: ...
def convert(
    model: nn.Module | File, example: Example | None = None, *, share: bool = False, **how: Unpack[How]
) -> Dense | DenseOnnx:
    """The dense equivalent of a torch model or of an ONNX file (Wu, Xie, Luo: Dense CNN Learning with Equivalent
    Mappings).

    Exactly one of `start`, `layers` and `output_stride` says which strides are removed. `model` is left untouched.

    Args:
        model: any traceable CNN; or an ONNX file, by its path or as an `OnnxModel`, whose nodes are the layers.
        example: input [B, C, *spatial], or its shape: the reference size; an ONNX file may fix it itself.
        share: of a module, use its own tensors instead of copies.
        start: remove every stride from this layer on, wherever the step of the input is at least that layer's.
        layers: remove exactly these layers' strides; a block's name means all inside; [] converts the head alone.
        output_stride: remove every stride that leads past this step, in input pixels.
        padding: "full", the default: e * n samples where the original has n; "valid": only windows that the original's
            padding allows; "same": as in the paper's experiments.
        head: "dense", the default: the map of predictions; "average": its mean; "features": the map before the
            classifier's pooling; "cam": the classifier at every position, without the pooling.
        form: "dilated", the default: eConv and ePool; "fragments": the original's own layers, phases in the batch. Both
            compute the same.
        merge: what an upsampling does with a denser map. "select", the default, keeps the phases that its result has
            room for, so that every sample is the original's; "average" runs it on all of them and takes the mean of the
            shifts that reach a sample; "resample" does so too, but lets interpolations read the denser map where the
            original reads between its samples.

    Returns:
        A dense network, a module for a module, in its mode, and a graph for a file; :func:`save` writes both.

    Raises:
        UsageError: the choice names no layer or changes nothing, or an option is unknown.
        ConversionError: the model cannot be traced, or ops in it have no meaning on a lattice (all are listed).
    """
    if isinstance(model, nn.Module):
        return conversion.convert(model, _needed(example), share=share, **how)
    return convert_onnx(_opened(model), _size(example), **how)


def plan(model: nn.Module | File, example: Example | None = None, **how: Unpack[How]) -> Plan:
    """What :func:`convert` would change and what it would cost; changes nothing and needs no weights.

    Arguments and errors as for :func:`convert`; a module may be on the meta device.
    """
    if isinstance(model, nn.Module):
        return conversion.plan(model, _needed(example), **how)
    source = _opened(model)
    return OnnxConversion(source, options_of(source, _size(example), **how)).plan


def inspect(model: nn.Module | File, example: Example | None = None) -> Survey:
    """The original's own geometry, as a plan in which nothing is changed."""
    if isinstance(model, nn.Module):
        return conversion.inspect(model, _needed(example))
    return survey_onnx(_opened(model), _size(example))


def choices(
    model: nn.Module | File,
    example: Example | None = None,
    *,
    padding: str = "full",
    head: str = "dense",
    merge: str = "select",
) -> Offers:
    """What there is to choose: every start layer and output stride that make a difference, each planned.

    Arguments as for :func:`convert`; needs no weights.

    Raises:
        UsageError: an unknown option.
        ConversionError: the model cannot be traced, or not be converted whatever is chosen.
    """
    if isinstance(model, nn.Module):
        return conversion.choices(model, _needed(example), padding=padding, head=head, merge=merge)
    return choices_onnx(_opened(model), _size(example), padding=padding, head=head, merge=merge)


@overload
def inverse(dense: Dense, *, share: bool = ...) -> nn.Module: ...
@overload
def inverse(dense: DenseOnnx | File) -> OnnxModel: ...
def inverse(dense: Dense | DenseOnnx | File, *, share: bool = False) -> nn.Module | OnnxModel:
    """The original architecture with the dense network's parameters (dpoa).

    Args:
        dense: a dense network, or a dense ONNX file that densify made of an ONNX file; its initializers may have
            changed since.
        share: of a module, use its own tensors.
    """
    if isinstance(dense, DenseOnnx):
        return dense.source.base
    if isinstance(dense, str | Path | OnnxModel):
        return inverse_onnx(_opened(dense))
    return conversion.inverse(dense, share=share)


def verify(
    model: nn.Module | File | None,
    dense: Dense | DenseOnnx,
    inputs: Tensor | Sequence[Tensor | Sample] = (),
    *,
    rtol: float | None = None,
    atol: float = 0.0,
) -> Report:
    """Check the laws of a dense network against its original, a module in torch, a graph in ONNX Runtime.

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
    if not isinstance(dense, DenseOnnx):
        if model is not None and not isinstance(model, nn.Module):
            raise UsageError("a dense torch network is compared with a torch model: give the model, or None.")
        return verification.verify(model, dense, inputs, rtol=rtol, atol=atol)
    if isinstance(model, nn.Module):
        raise UsageError("a dense ONNX graph is compared with an ONNX file: give its original, or None.")
    samples = named_inputs(inputs, dense.options.shape)
    return verify_onnx_laws(None if model is None else _opened(model), dense, samples, rtol=rtol, atol=atol)


def save(
    model: nn.Module | DenseOnnx | OnnxModel, path: str | Path, *, recipe: Recipe | None = None, overwrite: bool = False
) -> None:
    """Write a network: a module's weights as .safetensors or .pth, a graph as .onnx.

    A dense graph's file holds its recipe, where its predictions lie, and the graph to go back to.

    Args:
        model: a dense network, or a plain one, such as :func:`inverse` returns.
        path: the suffix decides the format.
        recipe: of a module, kept in the file; a dense network brings its own.
        overwrite: replace an existing file.

    Raises:
        UsageError: an existing file, an unknown suffix, or a folder that cannot be written.
    """
    if isinstance(model, nn.Module):
        checkpoint.save(model, path, recipe=recipe, overwrite=overwrite)
        return
    save_graph(model, Path(path), overwrite=overwrite)


class Written(TypedDict, total=False):
    """How an ONNX file is written, see :func:`densify.exporting.export`."""

    target: str
    opset: int | None
    static: bool
    half: bool
    overwrite: bool


@overload
def export(
    model: nn.Module,
    path: str | Path,
    example: Example | None = ...,
    *,
    recipe: Recipe | None = ...,
    **how: Unpack[Written],
) -> ExportResult: ...
@overload
def export(model: DenseOnnx, path: str | Path, **how: Unpack[Written]) -> ExportResult: ...
def export(
    model: nn.Module | DenseOnnx,
    path: str | Path,
    example: Example | None = None,
    *,
    recipe: Recipe | None = None,
    **how: Unpack[Written],
) -> ExportResult:
    """Write a network to an ONNX file, for a target.

    Args:
        model: a dense network or a plain model, see :func:`densify.exporting.export`; or a dense graph, see
            :func:`densify.onnx.writing.export_graph`, which brings its own size and recipe.
        how: target, opset, static, half, overwrite.
    """
    if isinstance(model, nn.Module):
        return exporting.export(model, path, example, recipe=recipe, **how)
    if example is not None or recipe is not None:
        raise UsageError("a dense ONNX graph has its own size and recipe: leave example and recipe out.")
    return export_graph(model, Path(path), **how)


def load_onnx(path: str | Path) -> DenseOnnx | OnnxModel:
    """Read an ONNX file as a graph: a dense one that densify made of a graph, or any other.

    Raises:
        UsageError, CheckpointError, UnsafeError, RefusedError: as :meth:`densify.OnnxModel.load`.
    """
    file = OnnxModel.load(path)
    return opened(file) if file.is_dense else file


def _opened(file: object) -> OnnxModel:
    """
    Raises:
        UsageError: what is neither a torch model nor an ONNX file.
    """
    if isinstance(file, OnnxModel):
        return file
    if isinstance(file, str | Path):
        return OnnxModel.load(file)
    if isinstance(file, type) and issubclass(file, nn.Module):
        raise UsageError(f"{file.__name__} is a class: give an object of it, such as {file.__name__}().")
    raise UsageError(
        f"this is no network, but of type {type(file).__name__}: give a torch module, or an ONNX file, by its "
        "path or as an OnnxModel."
    )


def _size(example: Example | None) -> tuple[int, ...] | None:
    return None if example is None else shape_of(example)[1:]


def _needed(example: Example | None) -> Example:
    if example is None:
        raise UsageError("a torch model needs an example, or its shape, such as (1, 3, 224, 224).")
    return example
