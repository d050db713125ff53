"""The comparison figure: paired differences to the reference in every bin."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from iceaggr.evaluation.figure_style import BLACK, BLUE, GREEN, ORANGE, PURPLE, VERMILLION, draw

COLORS = (VERMILLION, BLUE, GREEN, ORANGE, PURPLE)
MARKERS = ("o", "s", "^", "D", "v")


def draw_comparison(bins: pd.DataFrame, reference: str) -> bytes:
    """Draw difference ± standard error per bin, one panel per dimension, one colour per model.

    bins: the table of Comparison; bins with fewer than two events have no error and no point, small
    ones a hollow one.
    """
    titles = list(dict.fromkeys(bins["title"]))
    models = list(dict.fromkeys(bins["model"]))
    n_columns = 3
    n_rows = -(-len(titles) // n_columns)

    def paint(figure: Figure) -> None:
        panels = figure.subplots(n_rows, n_columns, squeeze=False).ravel()
        for axes in panels[len(titles) :]:
            axes.set_visible(False)
        for axes, title in zip(panels, titles, strict=False):
            labels: list[str] = []
            for place, model in enumerate(models):
                part = bins[(bins["title"] == title) & (bins["model"] == model)]
                labels = part["bin"].tolist()
                shift = 0.15 * (place - (len(models) - 1) / 2)
                look: dict[str, Any] = {
                    "color": COLORS[place % len(COLORS)],
                    "marker": MARKERS[place % len(MARKERS)],
                    "linestyle": "none",
                    "capsize": 2,
                }
                x = np.arange(len(part)) + shift
                for small, fill, label in ((False, None, model), (True, "white", None)):
                    chosen = (part["small"] == small).to_numpy()
                    axes.errorbar(
                        x[chosen], part["difference"][chosen], part["error"][chosen],
                        markerfacecolor=fill, label=label, **look,
                    )  # fmt: skip
            axes.axhline(0.0, color=BLACK, linewidth=0.8)
            axes.set_xlim(-0.6, max(len(labels), 1) - 0.4)
            axes.set_xticks(range(len(labels)), labels, rotation=40, ha="right", fontsize=8)
            axes.set_title(title)
        for row in range(n_rows):
            panels[row * n_columns].set_ylabel(f"Mean angle − {reference} [deg]", fontsize=9)
        panels[0].legend(loc="best")

    return draw((12.5, 3.3 * n_rows), paint)
