"""The comparison in a terminal: overall table, what it means, the bins that differ."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING

import pandas as pd
from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

if TYPE_CHECKING:
    from iceaggr.evaluation.comparison import Comparison

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
    for sentence in comparison.sentences():
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
