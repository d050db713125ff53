"""Memory that is used again: fresh pages cost the kernel more time than filling them does."""

from __future__ import annotations

import ctypes
import math
from typing import Any

import numpy as np
import numpy.typing as npt

from iceaggr.events.dom_events import DomEvents, SortedEvents
from iceaggr.events.schema import PULSE_NAMES

_HEADROOM = 1.5
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


class PulseColumns:
    """Grows columns of pulses, one for each of PULSE_NAMES, in memory that can be used again."""

    def __init__(self) -> None:
        self._memory: dict[str, npt.NDArray[Any]] = {}
        self.n_pulses = 0

    def add(self, events: DomEvents | SortedEvents) -> None:
        """Append the pulses of some events; those of one shard have one type of charge."""
        start, stop = self.n_pulses, self.n_pulses + events.n_pulses
        for name in PULSE_NAMES:
            column = self._with_room(name, stop, events.pulse_dtype(name))
            events.copy_pulses(name, out=column[start:stop])
        self.n_pulses = stop

    def filled(self) -> dict[str, npt.NDArray[Any]]:
        """Give views of the columns, valid until `clear`."""
        return {name: column[: self.n_pulses] for name, column in self._memory.items()}

    def clear(self) -> None:
        """Forget the pulses, but not their memory."""
        self.n_pulses = 0

    def _with_room(self, name: str, n_values: int, dtype: np.dtype[Any]) -> npt.NDArray[Any]:
        column = self._memory.get(name)
        if column is None or len(column) < n_values or column.dtype != dtype:
            longer = np.empty(math.ceil(n_values * _HEADROOM), dtype)
            if column is not None:
                longer[: self.n_pulses] = column[: self.n_pulses]
            column = self._memory[name] = longer
        return column
