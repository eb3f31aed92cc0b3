"""What a measured symmetry is reported as."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class MeasuredSymmetry:
    """How far a layer has the symmetries that it is made for. Truthy when all errors are within the tolerance.

    Attributes:
        errors: of every constraint, by name: max|f(Tx) - T'f(x)| / max|T'f(x)|; infinite where the two differ in size.
        tolerance: what exact symmetry may differ by: sums are taken in another order.
        notes: why an error is large, or what was measured instead of the layer's output.
    """

    errors: Mapping[str, float]
    tolerance: float
    notes: Mapping[str, str] = field(default_factory=dict)

    @property
    def error(self) -> float:
        """The largest."""
        return max(self.errors.values(), default=0.0)

    def __bool__(self) -> bool:
        return all(error <= self.tolerance for error in self.errors.values())

    def __str__(self) -> str:
        lines = [f"symmetry, tolerance {self.tolerance:.0e}:"]
        lines += [f"  {error:9.1e}  {name}{_note(self.notes.get(name))}" for name, error in self.errors.items()]
        return "\n".join(lines)


def _note(note: str | None) -> str:
    return "" if note is None else f": {note}"
