"""One file per op family; every rule is a small pure function of geometry.

A rule answers, for an op and the maps that it reads, with the op to put there and the map that comes out:
``rule(op, *maps, padding=...) -> Rewrite``. It refuses by raising :class:`Refused`. :func:`rewrite` finds the rule.
"""

from densify.rules import heads, joins, other, padding, pointwise, upsampling, windows  # noqa: F401  (importing a family registers its rules)
from densify.rules.registry import Refused, Rewrite, rewrite, rule

__all__ = ["Refused", "Rewrite", "rewrite", "rule"]
