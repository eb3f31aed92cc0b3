"""Readers of torch's ops: modules, functions and tensor methods alike.

A reader that answers None says that it has no rule for this use: then the op runs phase by phase.
"""

from densify.graphs.fx.readers import pointwise, shapes, upsampling, windows  # importing the readers registers them

__all__ = ["pointwise", "shapes", "upsampling", "windows"]
