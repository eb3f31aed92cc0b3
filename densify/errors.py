"""What densify raises. Every error says what, where, why and what to do, and carries its kind and exit status."""

from __future__ import annotations

from dataclasses import dataclass


class DensifyError(Exception):
    """Base of all errors that densify raises on purpose.

    Attributes:
        kind: one word, as `--json` gives it.
        exit_status: of a command that fails with it.
    """

    kind = "conversion"
    exit_status = 3


class VerificationError(DensifyError):
    """A law does not hold within its tolerance."""

    kind = "verification"
    exit_status = 1


class UsageError(DensifyError):
    """A name, reference, file or option that does not exist or does not fit the others."""

    kind = "usage"
    exit_status = 2


class UndrawableError(UsageError):
    """Outputs that have no places in an image of two axes."""


class CheckpointError(DensifyError):
    """A checkpoint that cannot be read or does not fit the model."""

    kind = "checkpoint"


class ConversionError(DensifyError):
    """A model that cannot be traced or rewritten."""


class BlankError(ConversionError):
    """A model on the meta device that looks at values."""


class TargetError(ConversionError):
    """An ONNX file that would hold what its target refuses."""


class ZeroSolutionWarning(UserWarning):
    """Only weights of zero have the symmetry that was asked for."""


class UnsafeError(DensifyError):
    """Input that would run code, and no leave to run it."""

    kind = "unsafe"
    exit_status = 4


@dataclass(frozen=True)
class Refusal:
    """Why one op cannot be rewritten: where it stands, the reason, and what to do about it."""

    layer: str
    reason: str
    remedy: str
    where: str = ""

    def __str__(self) -> str:
        place = f" ({self.where})" if self.where else ""
        return f"{self.layer}{place}: {self.reason}. {self.remedy}"


class SymmetryError(ConversionError):
    """A symmetry that a layer cannot have.

    Attributes:
        refusal: the layer, the reason and the remedy.
    """

    def __init__(self, refusal: Refusal) -> None:
        self.refusal = refusal
        super().__init__(str(refusal))


class RefusedError(ConversionError):
    """All refusals of one model, raised together.

    Attributes:
        refusals: every op that has no meaning on its lattice, in graph order.
    """

    kind = "refused"

    def __init__(self, refusals: tuple[Refusal, ...]) -> None:
        self.refusals = refusals
        reasons = "" if len(refusals) == 1 else f", for {len(refusals)} reasons"
        head = f"cannot convert this model{reasons}"
        super().__init__("\n".join([f"{head}:", *(f"  {r}" for r in refusals)]))
