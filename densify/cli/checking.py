"""Checks in torch and in ONNX Runtime, and outputs that appear together once all checks have passed."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from torch import nn

from densify.checkpoint import write_state
from densify.cli import options as o
from densify.cli.memory import page_out
from densify.cli.models import dtype_of, moved
from densify.cli.options import Run, Voice
from densify.cli.sizes import Sizes
from densify.comparison import Report, Tolerance, compare, evaluating, refusal, taking
from densify.conversion import Dense
from densify.errors import DensifyError, UsageError, VerificationError
from densify.exporting import write_network
from densify.files import write_all
from densify.onnx.export import ExportResult
from densify.onnx.file import OnnxSession
from densify.onnx.metadata import axis_names
from densify.recipe import Recipe
from densify.samples import Sample, random_inputs, read_samples, verification_sizes
from densify.targets import Target, find, opset_for
from densify.verification import errors_of_precision, verify, verify_onnx


def inputs(
    run: Run,
    size: Sequence[int],
    mean: tuple[float, ...] | None,
    std: tuple[float, ...] | None,
    model: nn.Module,
) -> list[Sample]:
    """What to verify on: the given samples, else random inputs of three sizes; in the model's own dtype."""
    if run.samples:
        return read_samples(run.samples, size, mean, std, dtype_of(model))
    known = Sizes(model, (1, *size))
    near = [known.nearest((1, size[0], *one)) for one in verification_sizes(size[1:])]
    # A head of fixed window takes the reference alone: there the dense network says what the original means.
    sizes = dict.fromkeys(one[2:] for one in near if one is not None)
    return random_inputs(size, list(sizes) or [tuple(size[1:])], run.seed, dtype_of(model))


def placed(samples: Sequence[Sample], run: Run) -> list[Sample]:
    """The samples on the device and in the dtype of the run."""
    return [replace(s, tensor=s.tensor.to(run.device, run.torch_dtype(s.tensor.dtype))) for s in samples]


def check_laws(original: nn.Module | None, dense: Dense, samples: Sequence[Sample], run: Run, voice: Voice) -> Report:
    """The laws in torch, on the device and in the dtype of the run; `original` None means the network's own."""
    voice.say(f"verifying on {', '.join(sample.name for sample in samples)}")
    other = None if original is None else moved(original, run)
    network, given = moved(dense, run), placed(samples, run)
    return verify(other, network, given, rtol=run.rtol, atol=run.atol)


def same_outputs(first: nn.Module, second: nn.Module, samples: Sequence[Sample], run: Run) -> Report:
    """Whether two networks of one kind make the same outputs."""
    a, b = moved(first, run), moved(second, run)
    given = placed(legal(first, samples, run), run)
    with evaluating(a, b), taking(given, a, b):
        return compare(
            a, b, given, law="same", runtime="torch", tolerance=Tolerance(run.rtol, run.atol),
            own_errors=partial(errors_of_precision, a),
        )  # fmt: skip


def legal(model: nn.Module, samples: Sequence[Sample], run: Run) -> list[Sample]:
    """The samples less those random ones that the model cannot take: a head of fixed window takes one size alone."""
    if run.samples or isinstance(model, Dense):
        return list(samples)
    with evaluating(model):
        return [sample for sample in samples if refusal(model, sample) is None] or list(samples)


def fitting(path: Path, samples: Sequence[Sample], run: Run) -> list[Sample]:
    """The samples less those random ones that an ONNX file with fixed axes cannot take; for none left, another one."""
    if run.samples:
        return list(samples)
    (shape,) = OnnxSession(path, optimised=False).shapes
    fixed = {axis: size for axis, size in enumerate(shape) if isinstance(size, int)}
    fit = [s for s in samples if all(s.tensor.shape[axis] == size for axis, size in fixed.items())]
    wanted = [fixed.get(axis, size) for axis, size in enumerate(samples[0].tensor.shape)]
    return fit or [_random(wanted, samples[0].tensor.dtype, run.seed)]


def _random(shape: Sequence[int], dtype: torch.dtype, seed: int) -> Sample:
    x = torch.randn(tuple(shape), generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return Sample(f"random {'x'.join(map(str, shape[2:]))}, batch {shape[0]}", x.to(dtype))


def check_onnx(path: Path, name: str, model: nn.Module, samples: Sequence[Sample], run: Run, voice: Voice) -> Report:
    """An ONNX file in ONNX Runtime, with all optimisations and with none, against the torch network that it is of.

    Args:
        path: where the file lies now.
        name: what it is called in messages.
        samples: on the CPU, in the model's own dtype.
    """
    voice.say(f"running {name} in ONNX Runtime on {', '.join(sample.name for sample in samples)}")
    page_out(model)  # ONNX Runtime holds large weights four times over while it optimises
    with _called(path, name):
        return _with_lattices(verify_onnx(path, model, samples, Tolerance(run.rtol, run.atol)), model)


@contextmanager
def _called(place: Path, name: str) -> Iterator[None]:
    """Messages about a temporary file give it the name that it is to have."""
    try:
        yield
    except DensifyError as error:
        if str(place) == name or str(place) not in str(error):
            raise
        raise type(error)(str(error).replace(str(place), name)) from error


def _with_lattices(report: Report, model: nn.Module) -> Report:
    if not isinstance(model, Dense):
        return report
    lattices = {name: tuple((axis.stride, axis.offset) for axis in axes) for name, axes in model.lattices.items()}
    return Report(tuple(replace(check, lattice=lattices.get(check.output, ())) for check in report.checks))


@dataclass(frozen=True)
class OnnxOptions:
    """What ONNX files are written for, and their opset."""

    target: Target
    opset: int


@dataclass
class Writing:
    """One network to be written to several files, all or none.

    Attributes:
        model: in eval mode, with its own dtype, on the CPU.
        recipe: what every file says of it.
        shape: of the example for ONNX: the reference size.
        samples: what ONNX files are run on, besides an input of another size and batch.
        onnx: what ONNX files are written for.
        static: whether ONNX files take inputs of that shape alone.
        half: whether ONNX files are in float16.
        report: the checks of ONNX files, once written.
    """

    model: nn.Module
    recipe: Recipe
    shape: tuple[int, ...]
    samples: Sequence[Sample]
    run: Run
    voice: Voice
    onnx: OnnxOptions
    keep_failed: bool = False
    static: bool = False
    half: bool = False
    report: Report = field(default_factory=lambda: Report(()))

    def write(self, outputs: Sequence[Path], *, overwrite: bool, dry_run: bool) -> bool:
        """Write the outputs, those in ONNX checked before any appears.

        Returns:
            Whether the files are there: not after a failed check, nor in a dry run.
        """
        writers: dict[Path, Callable[[Path], None]] = {path: partial(self._fill, path) for path in outputs}
        try:
            if dry_run:
                self._rehearse(outputs)
                return False
            write_all(writers, overwrite=overwrite)
        except VerificationError:
            return False
        for path in outputs:
            self.voice.say(f"wrote {path} ({path.stat().st_size / 1e6:.1f} MB)")
        return bool(outputs)

    def _rehearse(self, outputs: Sequence[Path]) -> None:
        for path in outputs:
            if path.suffix.lower() == ".onnx":
                with TemporaryDirectory() as folder:
                    self._fill(path, Path(folder) / path.name)

    def _fill(self, target: Path, place: Path) -> None:
        if place.suffix.lower() != ".onnx":
            write_state(self.model.state_dict(), place, self.recipe)
            return
        self.voice.say(f"exporting {target}")
        with _called(place, str(target)):
            result = write_network(
                self.model, place, self.shape, target=self.onnx.target, opset=self.onnx.opset, recipe=self.recipe,
                static=self.static, half=self.half,
            )  # fmt: skip
        if isinstance(self.model, Dense) and result.form != self.model.options.form:
            self.voice.say(f"{target}: in the {result.form} form, as the target {result.target} takes it")
        if result.fixed and not self.static:
            axes = ", ".join(f"{name} ({size})" for name, size in result.fixed.items())
            self.voice.say(f"{target}: the model allows no other size than the example's along {axes}")
        report = check_onnx(place, str(target), self.model, self._legal(result), self.run, self.voice)
        self.report += report
        if not report and not self.keep_failed:
            raise VerificationError(f"{target}: ONNX Runtime disagrees with torch")

    def _legal(self, result: ExportResult) -> list[Sample]:
        """The samples that the file takes, and one of another size and batch than the example's."""
        names = axis_names(len(self.shape))
        extra: list[int] = []
        for name, size in zip(names, (2, self.shape[1], *_larger(self.shape)), strict=True):
            least, most = result.dynamic.get(name or "", (1, None))
            limited = min(max(size, least), most or size)
            extra.append(result.fixed.get(name or "", limited))
        if not result.fixed:
            extra = list(Sizes(self.model, self.shape).nearest(extra) or (2, *self.shape[1:]))
        known = legal(self.model, self.samples, self.run)  # a file may claim sizes that the model does not take
        taken = [s for s in known if _takes(result, names, tuple(s.tensor.shape))]
        return [*taken, _random(extra, dtype_of(self.model), self.run.seed + 1)]


def _larger(shape: Sequence[int]) -> tuple[int, ...]:
    """Spatial sizes that are odd and not those of the example."""
    return verification_sizes(shape[2:])[-1]


def _takes(result: ExportResult, names: Sequence[str | None], shape: tuple[int, ...]) -> bool:
    for name, size in zip(names, shape, strict=True):
        least, most = result.dynamic.get(name or "", (1, None))
        if result.fixed.get(name or "", size) != size or size < least or (most is not None and size > most):
            return False
    return True


def onnx_options(target: o.Target | None, opset: int | None, outputs: Sequence[Path]) -> OnnxOptions:
    """What ONNX outputs are written for, before any work.

    Raises:
        UsageError: an opset that cannot be produced or that the target does not take, or no output is in ONNX.
    """
    written = any(path.suffix.lower() == ".onnx" for path in outputs)
    for flag, given in (("--target", target), ("--opset", opset)):
        if given is not None and not written:
            raise UsageError(f"{flag} {given}: no output is an .onnx file; name one with -o, or leave {flag} out")
    runtime = find("ort" if target is None else target.value)
    if opset is not None and opset not in runtime.opsets:
        first, last = runtime.opsets[0], runtime.opsets[-1]
        raise UsageError(f"--opset {opset}: for the target {runtime.name} it has to be from {first} to {last}")
    return OnnxOptions(runtime, opset_for(runtime, opset))
