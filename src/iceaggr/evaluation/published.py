"""The open benchmark's own figures: accuracy by current and energy, beside the published rows.

NuBench (arXiv 2511.13111) tells each model by the median opening angle and the shares of events
within 1 and 5 degrees, for charged and neutral currents, up to 1 TeV and from 1 to 100 TeV. The
direction of the muon itself is the bound that the kinematics of the interaction set.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field, fields, replace
from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from iceaggr.built_in_detectors import SET_TITLES, built_in_detector, built_in_name, name_of
from iceaggr.config import EvaluationConfig
from iceaggr.detector import Detector
from iceaggr.evaluation.baselines import TITLES
from iceaggr.evaluation.event_table import angles_of
from iceaggr.evaluation.slices import Estimate, estimate_median, estimate_share

Floats = npt.NDArray[np.float64]
Mask = npt.NDArray[np.bool_]

SOURCE = "arXiv 2511.13111, version 2 of March 2026, tables of direction results"
BOUND = "muon"
"""Name of the row of the muon's own direction among the methods."""
WITHIN_DEG = (1.0, 5.0)
STATISTICS = ("median_deg", "within_1deg", "within_5deg")
"""Columns of a benchmark table, each with _error; the shares are shares, not percent."""


@dataclass(frozen=True)
class Band:
    """A range of neutrino energies, above low and up to high, GeV. name: in metrics."""

    name: str
    title: str
    low_gev: float
    high_gev: float


BANDS = (
    Band("1tev", "up to 1 TeV", 0.0, 1e3),
    Band("100tev", "1 to 100 TeV", 1e3, 1e5),
    Band("above", "above 100 TeV", 1e5, math.inf),
)
"""The published ones, and what lies above them: no event is left out."""
CURRENTS = {
    "cc": "Charged current of muon neutrinos",
    "nc": "Neutral current",
    "other_cc": "Charged current of other neutrinos",
}
"""Parts of the events; the benchmark has the first two only."""


@dataclass(frozen=True)
class PublishedSet:
    """One set of the benchmark.

    rows: model -> (current, band name) -> STATISTICS (deg, share, share), NaN where unpublished.
    """

    name: str
    medium: str
    n_events: float
    rows: dict[str, dict[tuple[str, str], tuple[float, ...]]] = field(repr=False)


@dataclass(frozen=True)
class DataOrigin:
    """What is known about where scored events come from.

    set_name: of the benchmark's set whose detector this is, '' for none
    preset: of iceaggr's own simulation, '' for other events
    n_official, n_events: of the official test selection, and of the whole set; 0 if unknown
    azimuth_period_deg: of the detector's strings, 360 if they have none or nobody says
    """

    set_name: str = ""
    preset: str = ""
    n_official: int = 0
    n_events: int = 0
    azimuth_period_deg: float = 360.0

    @classmethod
    def said(cls, facts: Mapping[str, Any]) -> DataOrigin:
        """Take what a file says of its events; another model's file says nothing."""
        said = facts.get("origin")
        known = {one.name for one in fields(cls)}
        return cls(**said) if isinstance(said, dict) and set(said) <= known else cls()

    def named(self, set_name: str) -> DataOrigin:
        """Say that these are events of a set of the benchmark: one of `published_sets`."""
        period_deg = built_in_detector(built_in_name(set_name)).azimuth_period_deg
        return replace(self, set_name=set_name, azimuth_period_deg=period_deg)

    @property
    def published(self) -> PublishedSet | None:
        """Give the published set of this detector, None if it has none."""
        return published_sets().get(self.set_name)

    def scored_words(self, n_scored: int) -> str:
        """Say which events were scored, '' where no published figures stand beside them."""
        if self.n_official == n_scored > 0:
            return f"Scored are all {n_scored:,} events of the official test selection."
        if self.n_official:
            of = f"{n_scored:,} of the {self.n_official:,} events"
            return f"Scored are {of} of the official test selection."
        if self.set_name:
            return f"Scored are {n_scored:,} events, of no official selection that is known here."
        return ""

    def sentences(self) -> list[str]:
        """Say what a reader must know before any figure."""
        told, found = [], self.published
        if found and self.preset:
            told.append(
                f"The detector is NuBench's {found.name}, the events are simulated by iceaggr:"
                " published figures are of other events."
            )
        elif found and self.n_events and not 0.9 < self.n_events / found.n_events < 1.1:
            told.append(
                f"The detector is NuBench's {found.name}, whose published figures are of"
                f" {found.n_events / 1e6:.1f} million events; this set has {self.n_events:,}."
            )
        elif self.preset == EASY:
            told.append(
                "Simulated with the easy preset: no atmospheric muon in the readout and one"
                " trigger. Real events are harder, by 6 to 12 degrees in the mean angle."
            )
        elif self.preset:
            told.append(f"Simulated events, preset {self.preset}.")
        return told


EASY = "easy"
"""Preset of simulations that name none: those of earlier versions."""

# Columns: charged / neutral current of median (deg), share within 1 deg, within 5 deg (%), up to
# 1 TeV; then the same from 1 to 100 TeV. "-" was not published.
_ROWS = """
Hexagon Ice LE | ParticleNeT | 23.84 56.18  1.81 0.04 20.98  0.97
Hexagon Ice LE | DynEdge     | 23.6  56.12  2.26 0.04 22.24  1.03
Hexagon Ice LE | GRIT        | 21.91 54.87  2.71 0.05 23.94  1.28
Hexagon Ice LE | DeepIce     | 23.75 56.21  2.15 0.05 21.51  1.08
Hexagon        | ParticleNeT | 16.91 32.44  1.35 0.45 19.8   8.38 2.03 3.86 19.93  8.1  82.15 59.55
Hexagon        | DynEdge     | 16.61 31.92  1.5  0.49 20.89  8.94 1.76 3.48 25.62 10.25 83.92 62.12
Hexagon        | GRIT        | 16.52 32.34  1.79 0.54 22.17  9.27 1.83 3.42 23.33 10.03 84.16 63.15
Hexagon        | DeepIce     | 15.02 30.73  3.44 0.82 27.15 11.39 0.89 2.53 54.46 20.08 88.23 68.74
Flower L       | ParticleNeT | 13.21 20.66  1.26 0.6  20.45 11.54 2.12 3.5  18.36  8.27 83.66 64.89
Flower L       | DynEdge     | 11.6  18.95  2.12 0.84 26.46 14.2  1.54 2.9  30.67 11.99 88.76 70.54
Flower L       | GRIT        | 10.03 17.54  4.51 1.25 33.09 17.87 0.99 2.14 50.41 21.11 92.12 77.03
Flower L       | DeepIce     |  9.92 17.19  5.81 1.32 33.98 18.47 0.66 1.86 65.13 28.14 92.87 78.44
Flower XL      | ParticleNeT | 14.33 33.38  1.56 0.3  21.75  6.54 1.6  3.81 27.23  6.74 91.05 61.8
Flower XL      | DynEdge     | 16.22 33.47  1.0  0.3  16.8   5.98 2.03 4.07 19.43  5.92 85.79 59.1
Flower XL      | DeepIce     | 14.23 33.6   2.12 0.39 24.11  7.01 1.29 3.21 36.65  9.98 93.23 67.15
Flower S       | ParticleNeT |  2.27  6.73 18.37 5.19 77.24 40.23
Flower S       | DynEdge     |  2.13  6.66 20.67 5.48 78.4  40.7
Flower S       | DeepIce     |  1.82  6.38 26.32 7.11 81.04 42.29
Cluster        | ParticleNeT |  8.29 14.55  2.58 1.3  32.69 19.83 2.06 2.47 17.83 14.08 86.93 78.43
Cluster        | DynEdge     |  7.66 13.82  3.25 1.7  36.03 22.12 1.88 2.12 21.11 18.67 88.02 81.07
Cluster        | GRIT        |  7.66 13.74  2.88 1.48 35.14 21.62 2.18 2.6  17.21 13.64 84.45 77.34
Cluster        | DeepIce     |  6.25 12.15  7.83 3.0  43.79 27.16 1.22 1.35 40.45 37.53 92.0  86.23
Triangle       | ParticleNeT | 30.47 41.35  0.22 0.1   4.9   2.24 6.41 9.59  2.66  1.52 38.81 25.55
Triangle       | DynEdge     | 29.25 39.94  0.48 0.16  8.16  3.28 4.03 6.22  7.93  4.9  57.53 43.18
Triangle       | GRIT        | 28.36 39.33  0.94 0.21 10.28  3.87 2.96 5.26 18.21  8.39 64.59 -
"""

_MILLION_EVENTS = {
    "Flower XL": 10.1,
    "Flower L": 24.0,
    "Hexagon": 20.5,
    "Hexagon Ice LE": 8.6,
    "Flower S": 20.5,
    "Cluster": 22.9,
    "Triangle": 23.1,
}


@cache
def published_sets() -> dict[str, PublishedSet]:
    """Read the published table: name of the set -> what was published. Source: see SOURCE."""
    rows: dict[str, dict[str, Any]] = {name: {} for name in SET_TITLES.values()}
    for line in _ROWS.strip().splitlines():
        name, model, figures = (part.strip() for part in line.split("|"))
        values = [math.nan if text == "-" else float(text) for text in figures.split()]
        rows[name][model] = dict(_cells(values))
    mediums = {title: built_in_detector(name).medium.name for name, title in SET_TITLES.items()}
    return {
        name: PublishedSet(name, mediums[name], 1e6 * _MILLION_EVENTS[name], rows[name])
        for name in rows
    }


def _cells(values: list[float]) -> Iterator[tuple[tuple[str, str], tuple[float, ...]]]:
    """Sort the figures of a line by current and band; shares are published in percent."""
    for start, band in zip(range(0, len(values), 6), BANDS, strict=False):
        for offset, current in enumerate(("cc", "nc")):
            median, within_1, within_5 = values[start + offset : start + 6 : 2]
            yield (current, band.name), (median, within_1 / 100, within_5 / 100)


def set_of(detector: Detector) -> str:
    """Find the set of the benchmark that has this detector in this medium, '' if none has."""
    return SET_TITLES.get(name_of(detector), "")


# The figures of scored events.


def has_benchmark(events: pd.DataFrame) -> bool:
    """Tell whether the truth has what the benchmark bins by: energy and the kind of current."""
    return {"energy_gev", "interaction", "topology"} <= set(events.columns)


def benchmark_table(
    events: pd.DataFrame,
    methods: list[str],
    config: EvaluationConfig,
    published: PublishedSet | None = None,
) -> pd.DataFrame:
    """Measure every method as the benchmark does.

    events: with energy_gev (GeV), interaction, topology.  methods: `model` and names of fits.
    Returns one row per current, band with events, and method: method, title, published, current,
    band, n_events, and STATISTICS with _error; the muon's own direction (BOUND) where known, and
    the published rows, without errors, behind ours.
    """
    rows = []
    for current, band, inside in _parts(events):
        part = events[inside]
        key = {"current": current, "band": band.name, "n_events": len(part)}
        for method in methods:
            found = _measured(angles_of(part, method), config)
            rows.append(
                {"method": method, "title": TITLES[method], "published": False} | key | found
            )
        if current == "cc" and "neutrino_muon_angle" in part:
            rows += _bound_rows(part, key, config)
        rows += _published_rows(published, current, band)
    return pd.DataFrame(rows)


def _parts(events: pd.DataFrame) -> Iterator[tuple[str, Band, Mask]]:
    """Cut the events by current and energy; empty parts are left out."""
    charged = (events["interaction"] == "cc").to_numpy()
    track = (events["topology"] == "track").to_numpy()
    energy_gev = events["energy_gev"].to_numpy(np.float64)
    masks = {"cc": charged & track, "nc": ~charged, "other_cc": charged & ~track}
    for current, chosen in masks.items():
        for band in BANDS:
            inside = chosen & (energy_gev > band.low_gev) & (energy_gev <= band.high_gev)
            if inside.any():
                yield current, band, inside


def _measured(angle_deg: Floats, config: EvaluationConfig) -> dict[str, float]:
    # each from the seed itself: what else is measured beside it does not change its error
    rng = np.random.default_rng(config.seed)
    found: dict[str, Estimate] = {
        "median_deg": estimate_median(angle_deg, config.n_bootstrap, config.confidence, rng)
    }
    for limit in WITHIN_DEG:
        n_inside = int((angle_deg <= limit).sum())
        share = estimate_share(n_inside, len(angle_deg), config.confidence)
        found[f"within_{limit:g}deg"] = share
    named = {name: one.value for name, one in found.items()}
    return named | {f"{name}_error": one.error for name, one in found.items()}


def _bound_rows(
    part: pd.DataFrame, key: dict[str, Any], config: EvaluationConfig
) -> Iterator[dict[str, Any]]:
    angle_deg = np.rad2deg(part["neutrino_muon_angle"].to_numpy(np.float64))
    known = angle_deg[np.isfinite(angle_deg)]
    if len(known):
        row = {"method": BOUND, "title": "Direction of the muon itself", "published": False}
        yield row | key | {"n_events": len(known)} | _measured(known, config)


def _published_rows(
    published: PublishedSet | None, current: str, band: Band
) -> Iterator[dict[str, Any]]:
    for model, cells in (published.rows if published else {}).items():
        if (current, band.name) in cells:
            row = {"method": model, "title": f"{model}, published", "published": True}
            figures = dict(zip(STATISTICS, cells[current, band.name], strict=True))
            yield row | {"current": current, "band": band.name, "n_events": 0} | figures


def benchmark_metrics(table: pd.DataFrame) -> dict[str, float]:
    """Name the figures of the model, of the bound and the published ones for a tracker.

    test_benchmark/cc_1tev_median_deg and so on, of charged (cc) and neutral (nc) currents up to
    1 TeV and from there to 100 TeV; muon_... the bound; published/deepice_cc_1tev_... the paper's.
    """
    metrics: dict[str, float] = {}
    for row in table.to_dict("records"):
        part = f"{row['current']}_{row['band']}"
        if row["published"]:
            names = {
                name: f"published/{row['method'].lower()}_{part}_{name}" for name in STATISTICS
            }
        elif row["method"] in ("model", BOUND):
            prefix = "" if row["method"] == "model" else f"{BOUND}_"
            names = {name: f"test_benchmark/{prefix}{part}_{name}" for name in STATISTICS}
            metrics |= {f"{names[name]}_error": row[f"{name}_error"] for name in STATISTICS}
        else:
            continue
        metrics |= {names[name]: row[name] for name in STATISTICS}
    return {name: float(value) for name, value in metrics.items() if math.isfinite(value)}


def benchmark_blocks(table: pd.DataFrame, shown: Collection[str]) -> list[dict[str, Any]]:
    """Lay the table out for a page: one block per current, one line per method of `shown`.

    Returns blocks with title, bands ((title, n_events) each) and lines (title, published, and for
    each band its row or None).
    """
    blocks = []
    for current, title in CURRENTS.items():
        is_shown = table["published"] | table["method"].isin(["model", BOUND, *shown])
        of_current = table[(table["current"] == current) & is_shown]
        bands = [band for band in BANDS if band.name in set(of_current["band"])]
        if not bands:
            continue
        counts = of_current.groupby("band")["n_events"].max()
        lines = []
        for method, rows in of_current.groupby("method", sort=False):
            cells = {row["band"]: row for row in rows.to_dict("records")}
            first = rows.iloc[0]
            lines.append(
                {
                    "method": method,
                    "title": first["title"],
                    "published": bool(first["published"]),
                    "cells": [cells.get(band.name) for band in bands],
                }
            )
        lines.sort(key=lambda line: line["published"])
        heads = [(band.title, int(counts[band.name])) for band in bands]
        blocks.append({"title": title, "bands": heads, "lines": lines})
    return blocks
