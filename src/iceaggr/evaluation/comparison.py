"""Comparison: several models on the same test events, paired, with interval and p-value."""

from __future__ import annotations

import io
import math
from collections.abc import Hashable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from itertools import product
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from scipy import stats

from iceaggr.angles import opening_angle
from iceaggr.config import EvaluationConfig
from iceaggr.errors import EvaluationError
from iceaggr.evaluation.event_table import directions
from iceaggr.evaluation.figure_style import BLACK, BLUE, GREEN, ORANGE, PURPLE, VERMILLION, draw
from iceaggr.evaluation.published import WITHIN_DEG
from iceaggr.evaluation.slices import available_dimensions, bin_label, dimension_bins, estimate_mean
from iceaggr.pages import render

# The comparison in a terminal: overall table, what it means, the bins that differ.

SIGNIFICANT = 0.05
"""Below this p-value a difference is called one."""

N_SHOWN = 8
"""Bins of each model that the text shows; the page shows all."""

TEXT_WIDTH = 118
CAVEAT = (
    "The error knows these events, not the luck of a training: another seed alone can differ by"
    " more."
)


def comparison_text(comparison: Comparison) -> str:
    """Write the overall table and the notable bins as plain text."""
    console = Console(file=io.StringIO(), width=TEXT_WIDTH, color_system=None)
    console.print(
        f"{comparison.n_events:,} shared test events; differences are paired, against "
        f"{comparison.reference}, negative = better.",
        markup=False,
    )
    if any(n != comparison.n_events for n in comparison.n_events_of.values()):
        own = ", ".join(f"{name} {n:,}" for name, n in comparison.n_events_of.items())
        console.print(f"Only shared events count; events of each: {own}.", markup=False)
    console.print(
        _text_table(comparison.overall, "model", comparison.confidence, has_reference=True)
    )
    console.print(_shares_table(comparison.overall))
    for sentence in (*comparison.sentences(), *comparison.notes):
        console.print(sentence, markup=False)
    console.print(f"{CAVEAT}\n", markup=False)
    for model, rows in comparison.bins.groupby("model", sort=False):
        notable = rows[rows["p_adjusted"] < SIGNIFICANT].sort_values("p_adjusted")
        what = "all of them with --page; the clearest:" if len(notable) else "see --page."
        console.print(
            f"{model}: {len(notable)} of {len(rows)} bins differ from {comparison.reference} at"
            f" {100 * SIGNIFICANT:g} % after correction for the number of bins, {what}",
            markup=False,
        )
        if len(notable):
            named = notable.assign(bin=notable["title"] + ", " + notable["bin"])
            console.print(_text_table(named.head(N_SHOWN), "bin", comparison.confidence))
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def _text_table(
    rows: pd.DataFrame, label: str, confidence: float, has_reference: bool = False
) -> Table:
    """Lay out rows in degrees, one per value of the column `label`.

    has_reference: the first row is the reference, which has no difference.
    """
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column(label)
    interval = f"{100 * confidence:g} % interval"
    for title in ("events", "mean", "median", "difference / deg", interval, "p"):
        table.add_column(title, justify="right", no_wrap=True)
    for place, row in enumerate(rows.to_dict("records")):
        compared = [
            f"{row['difference']:+.3f} ± {row['error']:.3f}",
            f"{row['low']:+.3f} to {row['high']:+.3f}",
            f"{row.get('p_adjusted', row['p_value']):.2g}",
        ]
        table.add_row(
            escape(str(row[label])),
            f"{row['n_events']:,.0f}",
            f"{row['mean_deg']:.2f}",
            f"{row['median_deg']:.2f}",
            *(["reference"] if has_reference and place == 0 else compared),
        )
    return table


def _shares_table(overall: pd.DataFrame) -> Table:
    """Lay out the shares of events within 1 and 5 degrees, in percent."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("model")
    for limit in WITHIN_DEG:
        table.add_column(f"within {limit:g} deg [%]", justify="right", no_wrap=True)
        table.add_column("difference", justify="right", no_wrap=True)
    for place, row in enumerate(overall.to_dict("records")):
        cells = []
        for name in (f"within_{limit:g}deg" for limit in WITHIN_DEG):
            difference = (
                f"{100 * row[f'{name}_difference']:+.2f} ± {100 * row[f'{name}_error']:.2f}"
            )
            cells += [f"{100 * row[name]:.2f}", difference if place else "reference"]
        table.add_row(escape(str(row["model"])), *cells)
    return table


# The comparison figure: paired differences to the reference in every bin.

COLORS = (VERMILLION, BLUE, GREEN, ORANGE, PURPLE)
MARKERS = ("o", "s", "^", "D", "v")


N_COLUMNS = 3


def draw_comparison(bins: pd.DataFrame, reference: str) -> bytes:
    """Draw difference ± standard error per bin, one panel per dimension, one colour per model.

    bins: the table of Comparison; bins with fewer than two events have no error and no point, small
    ones a hollow one.
    """
    titles = list(dict.fromkeys(bins["title"]))
    n_rows = -(-len(titles) // N_COLUMNS)

    def paint(figure: Figure) -> None:
        panels = figure.subplots(n_rows, N_COLUMNS, squeeze=False).ravel()
        for axes in panels[len(titles) :]:
            axes.set_visible(False)
        for axes, title in zip(panels, titles, strict=False):
            _paint_panel(axes, bins[bins["title"] == title], title)
        for row in range(n_rows):
            panels[row * N_COLUMNS].set_ylabel(f"Mean angle − {reference} [deg]", fontsize=9)
        panels[0].legend(loc="best")

    return draw((12.5, 3.3 * n_rows), paint)


def _paint_panel(axes: Axes, bins: pd.DataFrame, title: str) -> None:
    models = list(dict.fromkeys(bins["model"]))
    labels = bins["bin"][bins["model"] == models[0]].tolist()
    for place, model in enumerate(models):
        x = np.arange(len(labels)) + 0.15 * (place - (len(models) - 1) / 2)
        _paint_model(axes, x, bins[bins["model"] == model], place)
    axes.axhline(0.0, color=BLACK, linewidth=0.8)
    axes.set_xlim(-0.6, len(labels) - 0.4)
    axes.set_xticks(range(len(labels)), labels, rotation=40, ha="right", fontsize=8)
    axes.set_title(title.replace(" (within", "\n(within"))


def _paint_model(axes: Axes, x: np.ndarray, rows: pd.DataFrame, place: int) -> None:
    """Paint the points of one model; place: its number, by which it has colour and marker."""
    look: dict[str, Any] = {
        "color": COLORS[place % len(COLORS)],
        "marker": MARKERS[place % len(MARKERS)],
        "linestyle": "none",
        "capsize": 2,
    }
    for small, fill, label in ((False, None, rows["model"].iloc[0]), (True, "white", None)):
        chosen = (rows["small"] == small).to_numpy()
        axes.errorbar(
            x[chosen], rows["difference"][chosen], rows["error"][chosen],
            markerfacecolor=fill, label=label, **look,
        )  # fmt: skip


LABEL_TOLERANCE_RAD = 1e-4
ROUNDING_DEG = 1e-5
"""Angles that differ by less are the same: a file may hold the truth as float32."""


@dataclass(frozen=True)
class Comparison:
    """Models against the first one on their shared test events.

    reference: name of the first model.  n_events: shared events; n_events_of: each model's own.
    overall: one row per model with mean_deg, median_deg and, against the reference, difference,
    error, low, high (degrees, negative = better than the reference) and p_value; and within_1deg,
    within_5deg, the shares of events within, with their paired _difference and its _error.
    notes: what else a reader must know, in sentences.
    bins: the same per bin, with p_adjusted (Holm) over all bins of a model.
    confidence: of the intervals.
    """

    reference: str
    n_events: int
    n_events_of: dict[str, int]
    overall: pd.DataFrame
    bins: pd.DataFrame
    confidence: float
    notes: tuple[str, ...] = ()

    @cached_property
    def html(self) -> str:
        """Render one self-contained page: the tables and the figure of all bins."""
        names = ["model", "title"]
        groups = [
            (": ".join(str(part) for part in key), rows.to_dict("records"))
            for key, rows in self.bins.groupby(names, sort=False)
        ]
        return render(
            "comparison_report.html.j2",
            reference=self.reference,
            sentences=self.sentences(),
            caveat=CAVEAT,
            notes=self.notes,
            confidence=self.confidence,
            n_events=self.n_events,
            n_events_of=self.n_events_of,
            overall=self.overall.to_dict("records"),
            groups=groups,
            figure=draw_comparison(self.bins, self.reference),
        )

    def sentences(self) -> list[str]:
        """Say for each model but the reference whether it is better, and how sure that is."""
        return [_sentence(row, self.reference) for row in self.overall.to_dict("records")[1:]]

    def text(self) -> str:
        """Write the overall table and the notable bins as plain text for a terminal."""
        return comparison_text(self)


def _sentence(row: Mapping[Hashable, Any], reference: str) -> str:
    difference, error, p_value = row["difference"], row["error"], row["p_value"]
    size = f"{abs(difference):.3f} ± {error:.3f} deg, p {p_value:.2g}"
    if not p_value < SIGNIFICANT:
        return f"{row['model']} cannot be told from {reference}: they differ by {size}."
    word = "better" if difference < 0 else "worse"
    return f"{row['model']} is {word} than {reference} by {size}."


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
            "nothing to compare",
            where="runs",
            found=list(events_by_name),
            expected="at least two runs",
            remedy="Name another run",
        )
    shared, notes = _shared_events(events_by_name)
    reference, *others = shared
    rng = np.random.default_rng(config.seed)
    angle_deg = {name: table["opening_angle_deg"].to_numpy() for name, table in shared.items()}
    everything = np.ones(len(angle_deg[reference]), bool)
    rows: list[dict[str, str | float]] = [
        {
            "model": name,
            **_difference(angle_deg[reference], angles, everything, config, rng),
            **_shares(angle_deg[reference], angles),
        }
        for name, angles in angle_deg.items()
    ]
    overall = pd.DataFrame(rows)
    bins = pd.concat([_bins(shared, angle_deg, name, config) for name in others], ignore_index=True)
    n_events_of = {name: len(table) for name, table in events_by_name.items()}
    return Comparison(
        reference, len(everything), n_events_of, overall, bins, config.confidence, notes
    )


def _shares(reference: npt.NDArray[np.float64], model: npt.NDArray[np.float64]) -> dict[str, float]:
    """Measure the shares of events within WITHIN_DEG, and their paired difference."""
    row: dict[str, float] = {}
    for limit in WITHIN_DEG:
        inside, name = model <= limit, f"within_{limit:g}deg"
        change = inside.astype(np.float64) - (reference <= limit)
        error = float(change.std(ddof=1)) / math.sqrt(len(change))
        row |= {name: float(inside.mean()), f"{name}_difference": float(change.mean())}
        row[f"{name}_error"] = error
    return row


def _shared_events(
    events_by_name: Mapping[str, pd.DataFrame],
) -> tuple[dict[str, pd.DataFrame], tuple[str, ...]]:
    """Take the events that all have, in one order, and say whose truth is meant otherwise."""
    tables = {name: table.set_index("event_id") for name, table in events_by_name.items()}
    for name, table in tables.items():
        if not table.index.is_unique:
            raise EvaluationError(
                "a run lists an event twice",
                where=name,
                found=f"event_id {table.index[table.index.duplicated()][0]}",
                expected="one row per event_id",
                remedy="Evaluate that run again",
            )
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
    return shared, tuple(_checked_true_directions(shared))


_MIRRORS = sorted(product((1.0, -1.0), repeat=3), reverse=True)
"""Signs of the axes: as they are first. Another model's file may have the flight for the source."""


def _checked_true_directions(shared: Mapping[str, pd.DataFrame]) -> Iterator[str]:
    """Refuse tables that give an event, by its id, other true directions than the first does.

    Angles between directions are the same where all directions of a file are mirrored; which files
    are is said.
    """
    names = ("true_azimuth", "true_zenith")
    reference, *others = shared
    first = directions(shared[reference], *names)
    for name in others:
        true = directions(shared[name], *names)
        apart = {
            signs: opening_angle(true * torch.tensor(signs, dtype=torch.float64), first)
            for signs in _MIRRORS
        }
        n_far = {signs: int((angle > LABEL_TOLERANCE_RAD).sum()) for signs, angle in apart.items()}
        best = min(n_far, key=lambda signs: n_far[signs])
        if n_far[best]:
            raise EvaluationError(
                "runs disagree on the true directions",
                where=name,
                found=f"{n_far[_MIRRORS[0]]} of {len(first)} shared events",
                expected="the same direction for the same event_id",
                remedy="Event ids were reused for other events: compare runs on one data set",
            )
        if best != _MIRRORS[0]:
            reversed_axes = ", ".join(a for a, sign in zip("xyz", best, strict=True) if sign < 0)
            yield (
                f"Directions of {name} have the other sign in {reversed_axes} than those of"
                f" {reference}: angles between them are the same."
            )


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
    change = chosen - reference[inside]
    change[abs(change) < ROUNDING_DEG] = 0.0
    found = estimate_mean(change, config.n_bootstrap, config.confidence, rng)
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
        # what a model predicts differs between the models: say whose prediction bins the events
        title = f"κ of {reference}" if dimension.name == "kappa" else dimension.title
        for low, high, inside in dimension_bins(shared[reference], dimension):
            row = _difference(angle_deg[reference], angle_deg[name], inside, config, rng)
            small = row["n_events"] < config.min_events_per_bin
            names = {"model": name, "dimension": dimension.name, "title": title}
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
