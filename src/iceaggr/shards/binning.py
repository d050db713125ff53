"""Fixed histogram bins: the same for all files, so that their histograms add up."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache
from typing import Literal

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, Field, model_validator

Floats = npt.NDArray[np.float64]
MAX_BINS = 1 << 16
"""More than any feature has: a damaged number of bins must not fill the memory."""


@dataclass(frozen=True)
class Binning:
    """Fixed histogram bins, plus one bin below and one above.

    spacing: linear; log10 = equal steps of log10 of the value; counts = whole numbers, wider later.
    low, high: outer edges in the feature's unit (counts: first and last whole number).
    """

    spacing: Literal["linear", "log10", "counts"]
    low: float
    high: float
    n_bins: int

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


class BinningDocument(BaseModel):
    """Binning as JSON holds it. Raises: ValueError where the bins have no width."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)

    spacing: Literal["linear", "log10", "counts"]
    low: float
    high: float
    n_bins: int = Field(ge=1, le=MAX_BINS)

    @model_validator(mode="after")
    def _has_width(self) -> BinningDocument:
        if not self.low < self.high or (self.spacing != "linear" and self.low <= 0):
            raise ValueError("low below high, both positive unless the bins are linear")
        return self
