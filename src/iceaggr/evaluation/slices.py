"""Slices: the accuracy in bins of what is known about each event; small bins marked, not hidden."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import pandas as pd
from scipy.stats import binomtest

from iceaggr.config import EvaluationConfig
from iceaggr.errors import EvaluationError
from iceaggr.evaluation.calibration import coverage
from iceaggr.evaluation.event_table import pit_of

# Intervals of the mean, quantiles and shares of opening angles, for any sample size.
#
# Means and quantiles are bootstrapped. A share is not: resampling 0 of 50 events gives 0 for ever,
# and an interval from 0 to 0; Wilson's interval says how large the share may still be.

FloatArray = npt.NDArray[np.floating]

STATISTICS = ("mean", "median", "p68", "p90", "share_above_90")
"""What is reported about every sample of opening angles: degrees, the last one a share."""

QUANTILES = {"median": 0.5, "p68": 0.68, "p90": 0.9}
"""The quantile behind each quantile statistic."""

ONE_SIGMA = 0.6827
"""Confidence of the interval whose half width is given as the error of a share."""

N_GROUPS = 256
"""Larger samples are resampled in this many groups of neighbours in sorted order."""


@dataclass(frozen=True)
class Estimate:
    """A statistic of a sample: its value, standard error and interval."""

    value: float
    error: float
    low: float
    high: float


def estimate_angles(
    angle_deg: FloatArray, n_bootstrap: int, confidence: float, rng: np.random.Generator
) -> dict[str, Estimate]:
    """Estimate every one of STATISTICS with its error.

    angle_deg: (N,) float, degrees, N >= 1. With N = 1 all errors are NaN.
    Raises: EvaluationError if a value is not finite or there is none.
    Source: percentile bootstrap (Efron 1979); of the share as `estimate_share`.
    """
    ordered = np.sort(_checked(angle_deg))
    n_values = len(ordered)
    estimates = {"mean": estimate_mean(ordered, n_bootstrap, confidence, rng)}
    for name, share in QUANTILES.items():
        resampled = _resampled_quantile(ordered, share, n_bootstrap, rng)
        estimates[name] = _from_samples(float(np.quantile(ordered, share)), resampled, confidence)
    estimates["share_above_90"] = estimate_share(int((ordered > 90.0).sum()), n_values, confidence)
    if n_values == 1:
        return {name: _without_error(found.value) for name, found in estimates.items()}
    return estimates


def estimate_mean(
    values: FloatArray, n_bootstrap: int, confidence: float, rng: np.random.Generator
) -> Estimate:
    """Estimate a mean: standard error from the sample, interval from the bootstrap.

    values: (N,) float, any unit. Groups of neighbours in sorted order act as one value when
    N > N_GROUPS: the variance inside a group is a hundred-thousandth of the whole.
    Raises: EvaluationError if a value is not finite or there is none.
    """
    ordered = np.sort(_checked(values)).astype(np.float64)
    n_values = len(ordered)
    if n_values == 1:
        return _without_error(float(ordered[0]))
    starts = np.unique(np.linspace(0, n_values, min(n_values, N_GROUPS) + 1).astype(np.int64))
    sizes = np.diff(starts)
    group_means = np.add.reduceat(ordered, starts[:-1]) / sizes
    counts = rng.multinomial(n_values, sizes / n_values, size=n_bootstrap)
    found = _from_samples(float(ordered.mean()), counts @ group_means / n_values, confidence)
    error = float(ordered.std(ddof=1) / math.sqrt(n_values))
    return Estimate(found.value, error, found.low, found.high)


def estimate_median(
    values: FloatArray, n_bootstrap: int, confidence: float, rng: np.random.Generator
) -> Estimate:
    """Estimate a median with the bootstrap.

    values: (N,) float, any unit, N >= 1. With N = 1 the error is NaN.
    Raises: EvaluationError if a value is not finite or there is none.
    """
    ordered = np.sort(_checked(values)).astype(np.float64)
    if len(ordered) == 1:
        return _without_error(float(ordered[0]))
    resampled = _resampled_quantile(ordered, 0.5, n_bootstrap, rng)
    return _from_samples(float(np.median(ordered)), resampled, confidence)


def estimate_share(n_inside: int, n_values: int, confidence: float) -> Estimate:
    """Estimate a share, also where none or all are inside.

    The error is half the width of the interval at ONE_SIGMA: never 0, and the binomial standard
    error for large samples.
    Raises: EvaluationError if there is no value.
    Source: Wilson 1927, the score interval of a binomial proportion.
    """
    if not n_values:
        raise _nothing_to_score()
    test = binomtest(n_inside, n_values)
    wide = test.proportion_ci(confidence, method="wilson")
    narrow = test.proportion_ci(ONE_SIGMA, method="wilson")
    error = float(narrow.high - narrow.low) / 2.0
    return Estimate(n_inside / n_values, error, float(wide.low), float(wide.high))


def _resampled_quantile(
    ordered: FloatArray, share: float, n_bootstrap: int, rng: np.random.Generator
) -> FloatArray:
    """Draw the quantile of n_bootstrap resampled samples.

    Source: the r-th smallest of N uniform draws follows Beta(r, N - r + 1), which is the exact
    distribution of resampled order statistics.
    """
    n_values = len(ordered)
    rank = max(math.ceil(share * n_values), 1)
    draws = rng.beta(rank, n_values - rank + 1, n_bootstrap) * n_values
    return ordered[np.minimum(draws.astype(np.int64), n_values - 1)]


def _from_samples(value: float, samples: FloatArray, confidence: float) -> Estimate:
    tail = (1.0 - confidence) / 2.0
    low, high = np.quantile(samples, [tail, 1.0 - tail])
    return Estimate(value, float(samples.std(ddof=1)), float(low), float(high))


def _without_error(value: float) -> Estimate:
    return Estimate(value, math.nan, math.nan, math.nan)


def _checked(values: FloatArray) -> FloatArray:
    values = np.asarray(values)
    if not len(values):
        raise _nothing_to_score()
    n_bad = int((~np.isfinite(values)).sum())
    if n_bad:
        raise EvaluationError(
            "opening angles are not finite",
            where="opening angles",
            found=f"{n_bad} of {len(values)} values",
            expected="degrees",
            remedy="Look for NaN in the predictions",
        )
    return values


def _nothing_to_score() -> EvaluationError:
    return EvaluationError(
        "no event to score",
        where="opening angles",
        found="none",
        expected="at least one",
        remedy="Score more events, or leave this subset out",
    )


INF = math.inf

WITHIN_CAPS = "(within the model's caps)"
"""Said of sizes that are not known beyond the caps on DOMs and pulses (see `event_sizes`)."""


@dataclass(frozen=True)
class Dimension:
    """One way to bin events: half-open bins [edges[i], edges[i+1]) of `column`.

    column: of the event table, or `cos_zenith`, `zenith_deg`, `azimuth_deg`, derived here.
    topology: only events of this topology, when given.  labels: of the bins, instead of numbers.
    """

    name: str
    title: str
    column: str
    edges: tuple[float, ...]
    topology: str | None = None
    labels: tuple[str, ...] = ()


ENERGY_EDGES = tuple(float(10 ** (0.5 * step)) for step in range(2, 17))

DIMENSIONS = (
    Dimension("n_pulses", "Pulses", "n_pulses", (0, 16, 32, 64, 128, 256, 512, 1024, 2048, INF)),
    Dimension("n_doms", "DOMs", "n_doms", (0, 8, 16, 32, 64, 128, 256, 512, INF)),
    Dimension(
        "n_non_auxiliary",
        f"Non-auxiliary pulses {WITHIN_CAPS}",
        "n_non_auxiliary",
        (0, 8, 12, 16, 24, 32, 64, 128, 256, 512, 1024, INF),
    ),
    Dimension(
        "charge",
        f"Total charge [p.e.] {WITHIN_CAPS}",
        "charge_pe",
        (0, 16, 32, 64, 128, 256, 512, 1024, INF),
    ),
    Dimension(
        "zenith", "True zenith [deg]", "zenith_deg", (0, 30, 60, 80, 90, 100, 120, 150, 180.001)
    ),
    Dimension(
        "azimuth",
        "True azimuth [deg]",
        "azimuth_deg",
        (0, 60, 120, 180, 240, 300, 360.001),
    ),
    Dimension("kappa", "Predicted κ", "kappa", (0, 0.5, 1, 2, 4, 8, 16, 32, 64, 128, 512, INF)),
    Dimension("contained", "Vertex", "contained", (0, 1, INF), None, ("outside", "inside array")),
    Dimension(
        "coincident_muon",
        "Atmospheric muon in the readout",
        "coincident_muon",
        (0, 1, INF),
        None,
        ("none", "one or more"),
    ),
    Dimension("energy_track", "Energy of tracks [GeV]", "energy_gev", ENERGY_EDGES, "track"),
    Dimension("energy_cascade", "Energy of cascades [GeV]", "energy_gev", ENERGY_EDGES, "cascade"),
)
"""What every report is sliced by; the energies only where the truth is known."""


def slice_column(events: pd.DataFrame, column: str) -> npt.NDArray[np.float64]:
    """Read or derive a column to bin by: (N,) float64."""
    if column == "zenith_deg":
        return np.rad2deg(events["true_zenith"].to_numpy())
    if column == "cos_zenith":
        return np.cos(events["true_zenith"].to_numpy())
    if column == "azimuth_deg":
        return np.rad2deg(events["true_azimuth"].to_numpy())
    return events[column].to_numpy(np.float64)


def available_dimensions(events: pd.DataFrame) -> list[Dimension]:
    """List the dimensions that this event table can be sliced by."""
    derived = {"cos_zenith", "zenith_deg", "azimuth_deg"}
    known = set(events.columns) | derived
    return [
        dimension
        for dimension in DIMENSIONS
        if dimension.column in known and (dimension.topology is None or "topology" in known)
    ]


def slice_table(
    events: pd.DataFrame, config: EvaluationConfig, reference: str | None = None
) -> pd.DataFrame:
    """Estimate every statistic in every bin.

    reference: a baseline whose paired gain is added as gain (degrees).
    Returns one row per bin: dimension, title, bin, low, high, n_events, small, and STATISTICS,
    coverage_68 (with kappa) and gain, each with _error, _low, _high; NaN where a bin is too small.
    The error of coverage_68 is that of a calibrated model, its interval that of the share found.
    Events outside the edges of a dimension appear as bins of their own, never dropped.
    """
    angle_deg = events["opening_angle_deg"].to_numpy()
    columns: dict[str, npt.NDArray[np.floating]] = {"angle_deg": angle_deg}
    if "kappa" in events:
        columns["pit"] = pit_of(events)
    if reference is not None:
        columns["gain"] = events[f"{reference}_angle_deg"].to_numpy() - angle_deg
    measured = pd.DataFrame(columns)
    rows = []
    for dimension in available_dimensions(events):
        # each from the seed itself: what else is known of the events changes no error
        rng = np.random.default_rng(config.seed)
        for low, high, inside in dimension_bins(events, dimension):
            row = _bin_row(measured[inside], config, rng)
            names = {"dimension": dimension.name, "title": dimension.title}
            rows.append(
                {**names, "bin": bin_label(dimension, low, high), "low": low, "high": high, **row}
            )
    return pd.DataFrame(rows)


def dimension_bins(
    events: pd.DataFrame, dimension: Dimension
) -> list[tuple[float, float, npt.NDArray[np.bool_]]]:
    """Cut events into bins: low edge, high edge and the (N,) mask of the events inside.

    Empty bins at both ends are left out; what lies below or above all edges gets its own bin.
    """
    values = slice_column(events, dimension.column)
    chosen = np.ones(len(events), bool)
    if dimension.topology is not None:
        chosen = (events["topology"] == dimension.topology).to_numpy()
    edges = [-INF, *dimension.edges] if dimension.edges[0] > -INF else list(dimension.edges)
    edges = edges if edges[-1] == INF else [*edges, INF]
    place = np.searchsorted(edges, values, side="right") - 1
    filled = np.flatnonzero(np.bincount(place[chosen], minlength=len(edges)))
    if not len(filled):
        return []
    return [
        (edges[row], edges[row + 1], chosen & (place == row))
        for row in range(filled[0], filled[-1] + 1)
    ]


def bin_label(dimension: Dimension, low: float, high: float) -> str:
    """Name a bin: `16 to 32`, `≥ 2048`, `< 10`, or its own label."""
    if dimension.labels and low in dimension.edges:
        return dimension.labels[dimension.edges.index(low)]
    if low == -INF:
        return f"< {_number(high)}"
    if high == INF:
        return f"≥ {_number(low)}"
    return f"{_number(low)} to {_number(high)}"


def _number(value: float) -> str:
    if value >= 1e4:
        mantissa, exponent = f"{value:.1e}".split("e")
        return f"{mantissa.removesuffix('.0')}e{int(exponent)}"
    return f"{value:.0f}" if value >= 10 else f"{value:g}"


def _bin_row(
    measured: pd.DataFrame, config: EvaluationConfig, rng: np.random.Generator
) -> dict[str, object]:
    n_events = len(measured)
    row: dict[str, object] = {"n_events": n_events, "small": n_events < config.min_events_per_bin}
    if not n_events:
        return row
    found = estimate_angles(
        measured["angle_deg"].to_numpy(), config.n_bootstrap, config.confidence, rng
    )
    if "pit" in measured:
        (inside,) = coverage(measured["pit"].to_numpy(), (0.68,))
        covered = estimate_share(round(inside.share * n_events), n_events, config.confidence)
        found["coverage_68"] = replace(covered, error=inside.error)
    if "gain" in measured:
        found["gain"] = estimate_mean(
            measured["gain"].to_numpy(), config.n_bootstrap, config.confidence, rng
        )
    for name, estimate in found.items():
        row[name], row[f"{name}_error"] = estimate.value, estimate.error
        row[f"{name}_low"], row[f"{name}_high"] = estimate.low, estimate.high
    return row
