"""Mergeable statistics of one feature: moments in float64, extremes and a fixed histogram."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import cache
from typing import Annotated, Any, Literal

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, Field
from pydantic.dataclasses import dataclass as checked

from iceaggr.errors import ShardError
from iceaggr.validation import Problem, read_model

# Fixed histogram bins: the same for all files, so that their histograms add up.

Floats = npt.NDArray[np.float64]
MAX_BINS = 1 << 16
"""More than any feature has: a damaged number of bins must not fill the memory."""


@checked(frozen=True, config=ConfigDict(extra="forbid", allow_inf_nan=False))
class Binning:
    """Fixed histogram bins, plus one bin below and one above; JSON holds these fields.

    spacing: linear; log10 = equal steps of log10 of the value; counts = whole numbers, wider later.
    low, high: outer edges in the feature's unit (counts: first and last whole number).
    Raises: ValueError where the bins have no width.
    """

    spacing: Literal["linear", "log10", "counts"]
    low: float
    high: float
    n_bins: int = Field(ge=1, le=MAX_BINS)

    def __post_init__(self) -> None:
        if not self.low < self.high or (self.spacing != "linear" and self.low <= 0):
            raise ValueError("low below high, both positive unless the bins are linear")

    def edges(self) -> Floats:
        """Give the bin edges in the feature's unit: increasing float64, read-only."""
        return _edges(self)

    def bin_idx(self, values: Floats) -> npt.NDArray[np.int64]:
        """Find the bin of each value: 0 = below all bins, the last = above all bins.

        values: (n,) float64, finite. Returns (n,) int64 in [0, number of bins + 1].
        """
        if self.spacing == "counts":
            return np.searchsorted(self.edges(), values, side="right")
        low, high = self.low, self.high
        if self.spacing == "log10":
            with np.errstate(divide="ignore", invalid="ignore"):
                values = np.where(values > 0, np.log10(values), -np.inf)
            low, high = math.log10(low), math.log10(high)
        position = values - low
        position *= self.n_bins / (high - low)
        position += 1  # truncation is floor only for what is not negative
        if len(position) and position.min() >= 0 and position.max() < self.n_bins + 1:
            return position.astype(np.int64)
        np.clip(position, 0, self.n_bins + 1, out=position)
        bins = position.astype(np.int64)
        # the last bin includes its upper edge, as in numpy.histogram
        np.minimum(bins, self.n_bins, out=bins, where=values <= high)
        return bins

    def n_slots(self) -> int:
        """Count the bins with the two outer ones."""
        return len(self.edges()) + 1


@cache
def _edges(binning: Binning) -> Floats:
    low, high, n_edges = binning.low, binning.high, binning.n_bins + 1
    if binning.spacing == "linear":
        edges = np.linspace(low, high, n_edges)
    elif binning.spacing == "log10":
        edges = np.geomspace(low, high, n_edges)
    else:
        edges = np.unique(np.round(np.geomspace(low, high, n_edges))) - 0.5
    edges.flags.writeable = False
    return edges


# Distinct values and the weight of each: a few thousand are summarised instead of millions.


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


@dataclass(frozen=True, eq=False)
class FeatureSketch:
    """Weighted moments, extremes and histogram of one feature.

    n_values, n_not_finite: rows counted, and rows left out as NaN or infinite
    weight, mean, m2: sum of weights, weighted mean, weighted sum of squared deviations (float64)
    low, high: smallest and largest value; inf and -inf when there is none
    histogram: (K,) float64 weight per bin, with the bins below and above at its ends
    """

    binning: Binning
    n_values: int
    n_not_finite: int
    weight: float
    mean: float
    m2: float
    low: float
    high: float
    histogram: Floats

    @property
    def std(self) -> float:
        """Weighted standard deviation; 0 when there is nothing."""
        return math.sqrt(self.m2 / self.weight) if self.weight > 0 else 0.0

    @property
    def is_constant(self) -> bool:
        """Tell whether fewer than two different values were seen."""
        return self.low >= self.high

    def merge(self, other: FeatureSketch) -> FeatureSketch:
        """Join the statistics of two disjoint sets of rows; order and grouping do not matter.

        Raises: ShardError if the bins differ.
        Source: Chan, Golub, LeVeque 1983, "Algorithms for computing the sample variance".
        """
        if self.binning != other.binning:
            raise ShardError(
                "sketches have different bins",
                where="binning",
                found=other.binning,
                expected=self.binning,
                remedy="Shard all files with one version of iceaggr and one geometry",
            )
        weight = self.weight + other.weight
        difference = other.mean - self.mean
        share = other.weight / weight if weight > 0 else 0.0
        return FeatureSketch(
            self.binning,
            self.n_values + other.n_values,
            self.n_not_finite + other.n_not_finite,
            weight,
            self.mean + difference * share,
            self.m2 + other.m2 + difference**2 * self.weight * share,
            min(self.low, other.low),
            max(self.high, other.high),
            self.histogram + other.histogram,
        )

    def quantile(self, share: float) -> float:
        """Estimate the value below which a share of the weight lies, to within one bin."""
        cumulative = np.concatenate([[0.0], np.cumsum(self.histogram)])
        return float(np.interp(share * cumulative[-1], cumulative, self._slot_edges()))

    def share_beyond(self, low: float, high: float) -> float:
        """Estimate the share of the weight outside [low, high]; exactly 0 if no value is."""
        if self.weight <= 0 or (low <= self.low and self.high <= high):
            return 0.0
        cumulative = np.concatenate([[0.0], np.cumsum(self.histogram)]) / self.histogram.sum()
        below, up_to = np.interp([low, high], self._slot_edges(), cumulative)
        return float(np.clip(below + 1 - up_to, 0, 1))

    def _slot_edges(self) -> Floats:
        """Edges of all slots: the outer ones reach to the smallest and largest value."""
        edges = np.clip(self.binning.edges(), self.low, self.high)
        return np.concatenate([[self.low], edges, [self.high]])

    def to_document(self) -> dict[str, Any]:
        """Convert to JSON types without rounding; empty bins at both ends are left out."""
        filled = np.flatnonzero(self.histogram)
        first, last = (int(filled[0]), int(filled[-1]) + 1) if len(filled) else (0, 0)
        document = {key: value for key, value in vars(self).items() if key != "histogram"}
        return document | {
            "binning": asdict(self.binning),
            "low": self.low if math.isfinite(self.low) else None,
            "high": self.high if math.isfinite(self.high) else None,
            "first_bin": first,
            "bins": self.histogram[first:last].tolist(),
        }


class _FeatureDocument(BaseModel):
    """FeatureSketch as JSON holds it."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)

    binning: Binning
    n_values: int = Field(ge=0)
    n_not_finite: int = Field(ge=0)
    weight: float = Field(ge=0)
    mean: float
    m2: float = Field(ge=0)
    low: float | None
    high: float | None
    first_bin: int = Field(ge=0)
    bins: list[Annotated[float, Field(ge=0)]]


def feature_from_document(document: Any, refused: Callable[[Problem], Exception]) -> FeatureSketch:
    """Read `FeatureSketch.to_document`.

    Raises: what `refused` makes of a field that is wrong; ValueError for fields that contradict.
    """
    read = read_model(_FeatureDocument, document, refused)
    histogram = np.zeros(read.binning.n_slots())
    end = read.first_bin + len(read.bins)
    if end > len(histogram):
        raise ValueError(f"bins up to {end} of {len(histogram)}")
    histogram[read.first_bin : end] = read.bins
    if (read.low is None) != (read.high is None) or (read.low or 0) > (read.high or 0):
        raise ValueError(f"low {read.low} and high {read.high}")
    if read.weight and read.low is not None and read.high is not None:
        rounding = 1e-6 * max(abs(read.low), abs(read.high))
        if not read.low - rounding <= read.mean <= read.high + rounding:
            raise ValueError(f"mean {read.mean} beyond low {read.low} and high {read.high}")
    known = {name: value for name, value in read if name not in ("first_bin", "bins")}
    known["low"] = math.inf if read.low is None else read.low
    known["high"] = -math.inf if read.high is None else read.high
    return FeatureSketch(**known, histogram=histogram)


def empty_feature(binning: Binning) -> FeatureSketch:
    """Make the statistics of no rows at all."""
    empty = np.zeros(binning.n_slots())
    return FeatureSketch(binning, 0, 0, 0.0, 0.0, 0.0, math.inf, -math.inf, empty)


def summarise(
    values: npt.NDArray[np.number] | npt.NDArray[np.bool_],
    weights: Floats,
    binning: Binning,
    bin_idx: npt.NDArray[np.int64] | None = None,
    n_rows: int | None = None,
) -> FeatureSketch:
    """Compute the statistics of one feature in two passes; NaN and infinities are only counted.

    values: (n,) any number type or bool.  weights: (n,) float64, positive.  bin_idx: (n,) int64,
    when the caller knows the bins already.  n_rows: rows that the values stand for, when they are
    distinct values with their summed weights. Returns the statistics, computed in float64.
    """
    n_values = len(values) if n_rows is None else n_rows
    if len(values) and values.dtype.kind != "f" and bin_idx is None:
        values, weights = distinct_numbers(values, weights)
    values = values.astype(np.float64)
    n_not_finite = 0
    if len(values) and not (math.isfinite(values.min()) and math.isfinite(values.max())):
        finite = np.isfinite(values)
        n_not_finite = int(len(values) - finite.sum())
        n_values -= n_not_finite
        values, weights = values[finite], weights[finite]
        bin_idx = None if bin_idx is None else bin_idx[finite]
    if not len(values):
        nothing = vars(empty_feature(binning)) | {"n_not_finite": n_not_finite}
        return FeatureSketch(**nothing)
    bins = binning.bin_idx(values) if bin_idx is None else bin_idx
    counted = np.bincount(bins, weights=weights, minlength=binning.n_slots())
    histogram = counted.astype(np.float64, copy=False)
    # einsum multiplies and adds in one pass; a block of 2^16 terms costs it one or two digits
    weight = float(weights.sum())
    mean = float(np.einsum("i,i->", weights, values)) / weight
    low, high = float(values.min()), float(values.max())
    np.subtract(values, mean, out=values)
    np.multiply(values, values, out=values)
    m2 = float(np.einsum("i,i->", weights, values))
    return FeatureSketch(
        binning, n_values, n_not_finite, weight, mean, m2, low, high, histogram=histogram
    )
