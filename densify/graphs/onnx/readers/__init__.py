"""Readers of ONNX nodes, one file per family; importing a family registers its readers."""

from densify.graphs.onnx.readers import heads, pointwise, shapes, upsampling, windows  # noqa: F401
