"""Weights that lie in a mapped file need not lie in memory all the time."""

from __future__ import annotations

import ctypes
import mmap
import sys

from torch import nn

_PAGEOUT = 21  # MADV_PAGEOUT: what is not changed leaves memory, and is read again when it is touched


def page_out(model: nn.Module) -> None:
    """Let the weights leave memory until they are used again, before something else needs much of it.

    A hint for Linux, without effect on the numbers: pages of a mapped checkpoint are dropped, all others stay (or go to
    swap where there is any). Elsewhere nothing happens.
    """
    if sys.platform != "linux":
        return
    advise = ctypes.CDLL(None).madvise
    for tensor in model.state_dict().values():
        storage = tensor.untyped_storage()
        if storage.device.type == "cpu" and storage.nbytes():
            start = storage.data_ptr() // mmap.PAGESIZE * mmap.PAGESIZE
            length = storage.data_ptr() + storage.nbytes() - start
            advise(ctypes.c_void_p(start), ctypes.c_size_t(length), _PAGEOUT)
