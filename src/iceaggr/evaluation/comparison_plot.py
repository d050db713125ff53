"""The comparison figure: paired differences to the reference in every bin."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from iceaggr.evaluation.figure_style import BLACK, BLUE, GREEN, ORANGE, PURPLE, VERMILLION, draw

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
    axes.set_title(title)


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
