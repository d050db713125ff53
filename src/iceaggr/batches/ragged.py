"""Ragged arrays: offsets and the row numbers of many ranges at once."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

IntArray = npt.NDArray[np.int64]


def offsets_of(counts: npt.NDArray[np.integer | np.bool_]) -> IntArray:
    """Turn segment lengths into offsets.

    counts: (S,) integer >= 0, or bool.
    Returns (S+1,) int64, the first 0, the last the number of rows.
    """
    offsets = np.zeros(len(counts) + 1, np.int64)
    np.cumsum(counts, out=offsets[1:])
    return offsets


def ragged_rows(starts: IntArray, counts: IntArray) -> IntArray:
    """List the rows of ranges [start, start + count), one range after the other.

    starts, counts: (S,) int64. Returns (sum of counts,) int64.
    """
    offsets = offsets_of(counts)
    rows = np.arange(offsets[-1])
    rows += np.repeat(starts - offsets[:-1], counts)
    return rows
