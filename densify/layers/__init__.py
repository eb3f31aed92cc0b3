"""What the writers put into a dense network: plain functions, so that every call has its own geometry."""

from densify.layers.phases import (
    align,
    average,
    batch_to_space,
    complete_phases,
    every,
    first_phases,
    from_rows,
    kernel_of,
    original_dim,
    original_shape,
    space_to_batch,
    tile,
    to_rows,
    vectors,
)
from densify.layers.windows import counts, eavg_pool, econv, emax_pool, epatches, epower_pool, spatial_sizes

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
    "every",
    "first_phases",
    "from_rows",
    "kernel_of",
    "original_dim",
    "original_shape",
    "space_to_batch",
    "spatial_sizes",
    "tile",
    "to_rows",
    "vectors",
]
