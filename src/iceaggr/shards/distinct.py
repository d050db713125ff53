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
    total = np.zeros(high + 1)
    rest = np.flatnonzero(whole != low)
    if 2 * len(rest) < len(whole):
        # each further addition to one cell waits for the one before: most are added up apart
        total[low] = np.einsum("i,i->", weights, whole == low)
        whole, weights = whole.take(rest), weights.take(rest)
    total += np.bincount(whole, weights=weights, minlength=high + 1)
    found = np.flatnonzero(total)
    return found, total[found]


def distinct_pulses(
    time_ns: npt.NDArray[np.int64],
    charge_pe: npt.NDArray[np.floating],
    event_weights: EventWeights,
) -> tuple[Distinct | None, Distinct | None]:
    """Add up the weights of equal times and of equal charges, in one pass over the pulses.

    time_ns: (n,) int64. None where a time is negative or the table longer than the times.
    charge_pe: (n,) any float type. None where two charges share a cell, some charge is no positive
    number, or the table would be longer than the charges.
    """
    times, charges = _time_table(time_ns), _charge_table(charge_pe)
    for rows, weights in event_weights.passes():
        if times is not None:
            np.add.at(times, time_ns[rows], weights)
        if charges is not None and not charges.add(charge_pe[rows], weights):
            charges = None
    found = None if times is None else np.flatnonzero(times)
    return (
        None if times is None or found is None else (found, times[found]),
        None if charges is None else charges.distinct(),
    )


def _time_table(time_ns: npt.NDArray[np.int64]) -> Floats | None:
    high = int(time_ns.max(initial=-1))
    if high < 0 or high >= len(time_ns) or time_ns.min() < 0:
        return None
    return np.zeros(high + 1)


def _charge_table(charge_pe: npt.NDArray[np.floating]) -> _ChargeTable | None:
    if not len(charge_pe):
        return None
    low, high = charge_pe.min(), charge_pe.max()
    if not (low > 0 and _cell(high) < len(charge_pe)):  # so, too, when both are NaN
        return None
    n_cells = int(_cell(high)) + 1
    return _ChargeTable(np.full(n_cells, np.nan, charge_pe.dtype), np.zeros(n_cells))


@dataclass(frozen=True)
class _ChargeTable:
    """The charge of each cell, NaN for none yet, and its weight; both (cells,)."""

    known: npt.NDArray[np.floating]
    total: Floats

    def add(self, charge: npt.NDArray[np.floating], weights: Floats) -> bool:
        """Enter charges; False when two of them share a cell."""
        cell = _cell(charge).astype(np.int64)
        new = np.flatnonzero(self.known.take(cell) != charge)  # take is quicker than [cell]
        if len(new) and not self._enter(cell[new], charge[new]):
            return False
        np.add.at(self.total, cell, weights)
        return True

    def distinct(self) -> Distinct:
        found = np.flatnonzero(self.total)
        return self.known[found], self.total[found]

    def _enter(self, cell: npt.NDArray[np.int64], charge: npt.NDArray[np.floating]) -> bool:
        if not np.isnan(self.known[cell]).all():
            return False
        self.known[cell] = charge
        return bool((self.known[cell] == charge).all())


def _cell(charge_pe: Any) -> Any:
    return charge_pe * charge_pe.dtype.type(CELLS_PER_PE)
