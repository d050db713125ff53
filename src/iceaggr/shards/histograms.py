"""Mergeable statistics of one feature: moments in float64, extremes and a fixed histogram."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Annotated, Any

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, Field

from iceaggr.errors import ShardError
from iceaggr.shards.binning import Binning, BinningDocument, Floats
from iceaggr.shards.distinct import distinct_numbers


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

    binning: BinningDocument
    n_values: int = Field(ge=0)
    n_not_finite: int = Field(ge=0)
    weight: float = Field(ge=0)
    mean: float
    m2: float = Field(ge=0)
    low: float | None
    high: float | None
    first_bin: int = Field(ge=0)
    bins: list[Annotated[float, Field(ge=0)]]


def feature_from_document(document: Any) -> FeatureSketch:
    """Read `FeatureSketch.to_document`. Raises: ValueError if it is damaged."""
    read = _FeatureDocument.model_validate(document)
    binning = Binning(**read.binning.model_dump())
    histogram = np.zeros(binning.n_slots())
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
    return FeatureSketch(
        binning=binning,
        n_values=read.n_values,
        n_not_finite=read.n_not_finite,
        weight=read.weight,
        mean=read.mean,
        m2=read.m2,
        low=math.inf if read.low is None else read.low,
        high=-math.inf if read.high is None else read.high,
        histogram=histogram,
    )


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
        binning,
        n_values,
        n_not_finite,
        weight,
        mean,
        m2,
        low,
        high,
        histogram,
    )
