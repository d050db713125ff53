"""Memory that is used again: fresh pages cost the kernel more time than filling them does."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt

_HEADROOM = 1.25


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
