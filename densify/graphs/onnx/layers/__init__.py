"""The layers of :mod:`densify.layers` as ONNX nodes; tensors are [B, C, *spatial] here too."""

from densify.graphs.onnx.layers.merges import etransposed, resample, spread_phases, transposed_shifts
from densify.graphs.onnx.layers.phases import (
    align,
    average,
    batch_to_space,
    complete_phases,
    every,
    first_phases,
    from_rows,
    original_sizes,
    rephase,
    space_to_batch,
    tile,
    to_rows,
    vectors,
)
from densify.graphs.onnx.layers.windows import (
    counts,
    eavg_pool,
    econv,
    emax_pool,
    epatches,
    epower_pool,
    run_time,
)

__all__ = [
    "align",
    "average",
    "batch_to_space",
    "complete_phases",
    "counts",
    "eavg_pool",
    "econv",
    "emax_pool",
    "epatches",
    "epower_pool",
    "etransposed",
    "every",
    "first_phases",
    "from_rows",
    "original_sizes",
    "rephase",
    "resample",
    "run_time",
    "space_to_batch",
    "spread_phases",
    "tile",
    "to_rows",
    "transposed_shifts",
    "vectors",
]
