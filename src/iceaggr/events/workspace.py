"""Memory that is used again: fresh pages cost the kernel more time than filling them does."""

from __future__ import annotations

import ctypes
import math
from typing import Any

import numpy as np
import numpy.typing as npt

_HEADROOM = 1.25
# from malloc.h of glibc
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
_KEPT_BYTES, _LARGEST_KEPT_BYTES = 1 << 28, 1 << 25


def keep_freed_memory() -> None:
    """Let the C library keep freed memory for the next array, for the rest of this process.

    By default each array of a few MiB is fresh pages from the kernel, and goes back when freed.
    At most 256 MiB per heap are kept, in pieces of up to 32 MiB, the most that glibc allows; other
    C libraries are left as they are.
    Source: mallopt(3).
    """
    set_option = getattr(ctypes.CDLL(None), "mallopt", None)
    if set_option is not None:
        set_option(_M_TRIM_THRESHOLD, _KEPT_BYTES)
        set_option(_M_MMAP_THRESHOLD, _LARGEST_KEPT_BYTES)


class Workspace:
    """Named arrays in memory that is kept; an array is valid until its name is asked for again.

    One workspace serves one thread at a time.
    """

    def __init__(self) -> None:
        self._memory: dict[str, npt.NDArray[np.uint8]] = {}

    def array(self, name: str, n_values: int, dtype: npt.DTypeLike) -> npt.NDArray[Any]:
        """Give (n_values,) of dtype with any content, in the memory of the last array so named."""
        n_bytes = n_values * np.dtype(dtype).itemsize
        memory = self._memory.get(name)
        if memory is None or len(memory) < n_bytes:
            # room for the next, a little longer shard; the old memory goes first
            self._memory.pop(name, None)
            memory = self._memory[name] = np.empty(math.ceil(n_bytes * _HEADROOM), np.uint8)
        return memory[:n_bytes].view(dtype)
