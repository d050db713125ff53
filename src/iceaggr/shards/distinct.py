"""Distinct values and the weight of each: a few thousand are summarised instead of millions."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Numbers = npt.NDArray[np.number[Any]]

CELLS_PER_PE = 20
"""IceCube digitises charge in steps of 0.05 photo-electrons: one step per cell."""

N_PULSES_PER_PASS = 1 << 16
"""Half a MiB per array stays in the processor's cache; larger ones would be fresh pages each."""

Distinct = tuple[npt.NDArray[Any], Floats]
"""(K,) values in order and (K,) float64 weights."""


@dataclass(frozen=True)
class EventWeights:
    """What each pulse weighs, 1 / pulses of its event, made for some events at a time.

    n_pulses: (B,) int64 pulses of each event, in order of the pulses
    """

    n_pulses: npt.NDArray[np.int64]

    def passes(self) -> Iterator[tuple[slice, Floats]]:
        """Give rows of pulses, cut between events, and their weights (rows,) float64."""
        ends = np.cumsum(self.n_pulses)
        first, start = 0, 0
        while first < len(ends):
            last = int(np.searchsorted(ends, start + N_PULSES_PER_PASS, side="right"))
            last = max(last, first + 1)
            stop = int(ends[last - 1])
            yield slice(start, stop), _repeated(self.n_pulses[first:last])
            first, start = last, stop

    def all(self) -> Floats:
        """Give the weight of every pulse: (N,) float64."""
        return _repeated(self.n_pulses)


def _repeated(n_pulses: npt.NDArray[np.int64]) -> Floats:
    return np.repeat(1.0 / np.maximum(n_pulses, 1), n_pulses)


def distinct_numbers(
    values: Numbers | npt.NDArray[np.bool_], weights: Floats
) -> tuple[Numbers, Floats]:
    """Add up the weights of equal whole numbers, where none is beyond the number of values.

    values: (n,) integer or bool.  weights: (n,) float64, positive. Returns the numbers in order
    and their weights, or both arrays as they are where a table would be longer than they.
    """
    whole: npt.NDArray[Any] = values.view(np.uint8) if values.dtype == np.bool_ else values
    low, high = int(whole.min()), int(whole.max())
    if low < 0 or high >= len(whole):
        return whole, weights
    total = np.bincount(whole, weights=weights).astype(np.float64, copy=False)
    found = np.flatnonzero(total)
    return found, total[found]


def distinct_times(time_ns: npt.NDArray[np.int64], event_weights: EventWeights) -> Distinct | None:
    """Add up the weights of equal times.

    time_ns: (n,) int64. None where a time is negative or the table longer than the times.
    """
    high = int(time_ns.max(initial=-1))
    if high < 0 or high >= len(time_ns) or time_ns.min() < 0:
        return None
    total = np.zeros(high + 1)
    for rows, weights in event_weights.passes():
        added = np.bincount(time_ns[rows], weights=weights)
        total[: len(added)] += added
    found = np.flatnonzero(total)
    return found, total[found]


def distinct_charges(
    charge_pe: npt.NDArray[np.floating], event_weights: EventWeights
) -> Distinct | None:
    """Add up the weights of equal charges, where they are digitised in steps of a cell or more.

    charge_pe: (n,) any float type. None where two charges share a cell, some charge is no positive
    number, or the table would be longer than the charges.
    """
    if not len(charge_pe):
        return None
    low, high = charge_pe.min(), charge_pe.max()
    if not (low > 0 and _cell(high) < len(charge_pe)):  # so, too, when both are NaN
        return None
    n_cells = int(_cell(high)) + 1
    known, total = np.full(n_cells, np.nan, charge_pe.dtype), np.zeros(n_cells)
    for rows, weights in event_weights.passes():
        cell = _cell(charge_pe[rows]).astype(np.int64)
        if not _fits(known, cell, charge_pe[rows]):
            return None
        added = np.bincount(cell, weights=weights)
        total[: len(added)] += added
    found = np.flatnonzero(total)
    return known[found], total[found]


def _cell(charge_pe: Any) -> Any:
    return charge_pe * charge_pe.dtype.type(CELLS_PER_PE)


def _fits(
    known: npt.NDArray[np.floating], cell: npt.NDArray[np.int64], charge: npt.NDArray[np.floating]
) -> bool:
    """Enter the charges of empty cells (NaN); tell whether each cell holds one charge only."""
    new = np.flatnonzero(known.take(cell) != charge)  # take is quicker than [cell]
    if not len(new):
        return True
    new_cell, new_charge = cell[new], charge[new]
    if not np.isnan(known[new_cell]).all():
        return False
    known[new_cell] = new_charge
    return bool((known[new_cell] == new_charge).all())
