"""Comparison: several models on the same test events, paired, with interval and p-value."""

from __future__ import annotations

import io
import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt
import pandas as pd
from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from scipy import stats

from iceaggr.config import EvaluationConfig
from iceaggr.errors import EvaluationError
from iceaggr.evaluation.bootstrap import estimate_mean
from iceaggr.evaluation.comparison_plot import draw_comparison
from iceaggr.evaluation.report import environment
from iceaggr.evaluation.slices import available_dimensions, bin_label, dimension_bins

LABEL_TOLERANCE_RAD = 1e-4
SIGNIFICANT = 0.05
N_SHOWN = 8
"""Bins of each model that the text shows; the page shows all."""


@dataclass(frozen=True)
class Comparison:
    """Models against the first one on their shared test events.

    reference: name of the first model.  n_events: shared events; n_events_of: each model's own.
    overall: one row per model with mean_deg, median_deg and, against the reference, difference,
    error, low, high (degrees, negative = better than the reference) and p_value.
    bins: the same per bin, with p_adjusted (Holm) over all bins of a model.
    confidence: of the intervals.
    """

    reference: str
    n_events: int
    n_events_of: dict[str, int]
    overall: pd.DataFrame
    bins: pd.DataFrame
    confidence: float

    @cached_property
    def html(self) -> str:
        """Render one self-contained page: the tables and the figure of all bins."""
        names = ["model", "title"]
        groups = [
            (": ".join(str(part) for part in key), rows.to_dict("records"))
            for key, rows in self.bins.groupby(names, sort=False)
        ]
        template = environment().get_template("comparison_report.html.j2")
        return template.render(
            reference=self.reference,
            n_events=self.n_events,
            n_events_of=self.n_events_of,
            overall=self.overall.to_dict("records"),
            groups=groups,
            figure=draw_comparison(self.bins, self.reference),
        )

    def text(self) -> str:
        """Write the overall table and the notable bins as plain text for a terminal."""
        console = Console(file=io.StringIO(), width=110, color_system=None)
        console.print(
            f"{self.n_events:,} shared test events; differences are paired, against "
            f"{self.reference}, negative = better.",
            markup=False,
        )
        if any(n != self.n_events for n in self.n_events_of.values()):
            own = ", ".join(f"{name} {n:,}" for name, n in self.n_events_of.items())
            console.print(f"Only shared events count; events of each: {own}.", markup=False)
        console.print(_text_table(self.overall, "model", self.confidence))
        for model, rows in self.bins.groupby("model", sort=False):
            notable = rows[rows["p_adjusted"] < SIGNIFICANT].sort_values("p_adjusted")
            console.print(
                f"{model}: {len(notable)} of {len(rows)} bins differ from {self.reference} at"
                f" {SIGNIFICANT:.0%} after correction for the number of bins"
                f"{'; the clearest:' if len(notable) else '.'}",
                markup=False,
            )
            if len(notable):
                named = notable.assign(bin=notable["title"] + ", " + notable["bin"])
                console.print(_text_table(named.head(N_SHOWN), "bin", self.confidence))
        assert isinstance(console.file, io.StringIO)
        return console.file.getvalue()


def compare_runs(
    events_by_name: Mapping[str, pd.DataFrame], config: EvaluationConfig
) -> Comparison:
    """Compare two or more models event by event; the first one is the reference.

    events_by_name: event tables of evaluations (event_id, opening_angle_deg, true directions, ...).
    Raises: EvaluationError if there are fewer than two models or shared events, an event is
    repeated, or the models were given different true directions for an event.
    """
    if len(events_by_name) < 2:
        raise EvaluationError(
            "nothing to compare", found=list(events_by_name), expected="at least two runs"
        )
    shared = _shared_events(events_by_name)
    reference, *others = shared
    rng = np.random.default_rng(config.seed)
    angle_deg = {name: table["opening_angle_deg"].to_numpy() for name, table in shared.items()}
    everything = np.ones(len(angle_deg[reference]), bool)
    overall = pd.DataFrame(
        {"model": name} | _difference(angle_deg[reference], angles, everything, config, rng)
        for name, angles in angle_deg.items()
    )
    bins = pd.concat([_bins(shared, angle_deg, name, config) for name in others], ignore_index=True)
    n_events_of = {name: len(table) for name, table in events_by_name.items()}
    return Comparison(reference, len(everything), n_events_of, overall, bins, config.confidence)


def _shared_events(events_by_name: Mapping[str, pd.DataFrame]) -> dict[str, pd.DataFrame]:
    tables = {name: table.set_index("event_id") for name, table in events_by_name.items()}
    for name, table in tables.items():
        if not table.index.is_unique:
            raise EvaluationError("a run lists an event twice", where=name)
    first, *others = tables.values()
    index = first.index.sort_values()
    for table in others:
        index = index.intersection(table.index)
    if len(index) < 2:
        raise EvaluationError(
            "runs share no test events",
            where=", ".join(tables),
            found=f"{len(index)} shared events",
            expected="at least two",
            remedy="Compare runs on the same data and split salt",
        )
    shared = {name: table.loc[index] for name, table in tables.items()}
    true = first.loc[index, ["true_azimuth", "true_zenith"]].to_numpy()
    for name, table in shared.items():
        # compare through the cosine, so that azimuth 0 and 2 pi agree
        change = table[["true_azimuth", "true_zenith"]].to_numpy() - true
        if not np.allclose(np.cos(change), 1.0, atol=LABEL_TOLERANCE_RAD**2):
            raise EvaluationError(
                "runs disagree on the true directions",
                where=name,
                expected="the same events under the same event_id",
                remedy="Event ids were reused for other events: compare runs on one data set",
            )
    return shared


def _difference(
    reference: npt.NDArray[np.float64],
    model: npt.NDArray[np.float64],
    inside: npt.NDArray[np.bool_],
    config: EvaluationConfig,
    rng: np.random.Generator,
) -> dict[str, float]:
    """Measure model minus reference on the chosen events; a paired t test gives the p-value."""
    chosen = model[inside]
    row: dict[str, float] = {"n_events": float(len(chosen))}
    if not len(chosen):
        return row
    row |= {"mean_deg": float(chosen.mean()), "median_deg": float(np.median(chosen))}
    found = estimate_mean(chosen - reference[inside], config.n_bootstrap, config.confidence, rng)
    row |= {
        "difference": found.value,
        "error": found.error,
        "low": found.low,
        "high": found.high,
        "p_value": _p_value(found.value, found.error, len(chosen)),
    }
    return row


def _p_value(difference: float, error: float, n_events: int) -> float:
    if difference == 0:
        return 1.0
    if math.isnan(error):
        return math.nan
    return float(2 * stats.t.sf(abs(difference) / error, n_events - 1)) if error > 0 else 0.0


def _bins(
    shared: dict[str, pd.DataFrame],
    angle_deg: dict[str, npt.NDArray[np.float64]],
    name: str,
    config: EvaluationConfig,
) -> pd.DataFrame:
    """Compare one model with the reference in every bin; events are binned by the reference."""
    reference = next(iter(shared))
    rng = np.random.default_rng(config.seed)
    rows = []
    for dimension in available_dimensions(shared[reference]):
        for low, high, inside in dimension_bins(shared[reference], dimension):
            row = _difference(angle_deg[reference], angle_deg[name], inside, config, rng)
            small = row["n_events"] < config.min_events_per_bin
            names = {"model": name, "dimension": dimension.name, "title": dimension.title}
            rows.append({**names, "bin": bin_label(dimension, low, high), "small": small, **row})
    table = pd.DataFrame(rows)
    return table.assign(p_adjusted=_holm(table["p_value"].to_numpy(np.float64)))


def _holm(p_value: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Adjust p-values for their number. Source: Holm, Scand. J. Statist. 6 (1979) 65."""
    adjusted = np.full(len(p_value), np.nan)
    tested = np.flatnonzero(np.isfinite(p_value))
    order = tested[np.argsort(p_value[tested], kind="stable")]
    steps = p_value[order] * np.arange(len(order), 0, -1)
    adjusted[order] = np.minimum(np.maximum.accumulate(steps), 1.0) if len(order) else steps
    return adjusted


def _text_table(rows: pd.DataFrame, label: str, confidence: float) -> Table:
    """Lay out rows in degrees, one per value of the column `label`."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column(label)
    interval = f"{100 * confidence:g} % interval"
    for title in ("events", "mean", "median", "difference / deg", interval, "p"):
        table.add_column(title, justify="right", no_wrap=True)
    for row in rows.to_dict("records"):
        table.add_row(
            escape(str(row[label])),
            f"{row['n_events']:,.0f}",
            f"{row['mean_deg']:.2f}",
            f"{row['median_deg']:.2f}",
            f"{row['difference']:+.3f} ± {row['error']:.3f}",
            f"{row['low']:+.3f} to {row['high']:+.3f}",
            f"{row.get('p_adjusted', row['p_value']):.2g}",
        )
    return table
