"""Cumulative distributions of the opening angle: the model and every baseline in one picture."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from iceaggr.evaluation.baselines import TITLES
from iceaggr.evaluation.event_table import angles_of
from iceaggr.evaluation.figure_style import ANGLE_TICKS, GREY, METHOD_LOOK, draw
from iceaggr.events.truth import TOPOLOGIES

FIRST_SHARE = 0.01
"""Share of the best method's events that lie left of a logarithmic axis."""

N_POINTS = 1500
"""Points of a curve at most: more than the picture has pixels."""


def draw_cumulative(events: pd.DataFrame, methods: list[str]) -> bytes:
    """Draw the cumulative distribution for all events, linear and logarithmic.

    methods: `model` and names of baselines, in the order of the legend.
    """
    parts = [("All events", events, False), ("All events, logarithmic", events, True)]
    return _draw(parts, methods)


def draw_cumulative_by_topology(events: pd.DataFrame, methods: list[str]) -> bytes:
    """Draw the cumulative distribution of tracks and of cascades, logarithmic."""
    parts = [
        (f"{topology.capitalize()}s", events[events["topology"] == topology], True)
        for topology in TOPOLOGIES
    ]
    return _draw(parts, methods)


def _draw(parts: list[tuple[str, pd.DataFrame, bool]], methods: list[str]) -> bytes:
    """Draw one panel per part: title, events, logarithmic or not."""

    def paint(figure: Figure) -> None:
        panels: Any = figure.subplots(1, len(parts), sharey=True)
        for axes, (title, events, logarithmic) in zip(panels, parts, strict=True):
            _paint(axes, events, methods)
            _scale(axes, events, methods, logarithmic)
            axes.set_title(f"{title} ({len(events):,} events)")
        panels[0].set_ylabel("Share of events below")
        panels[0].set_ylim(0, 1)
        filled = next((axes for axes in panels if axes.get_legend_handles_labels()[0]), panels[0])
        handles, labels = filled.get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside right center")

    return draw((12.0, 4.1), paint)


def _paint(axes: Axes, events: pd.DataFrame, methods: list[str]) -> None:
    share = np.linspace(0.0, 1.0, int(np.clip(len(events), 2, N_POINTS)))
    if len(events):
        for method in methods:
            angle_deg = np.quantile(angles_of(events, method), share)
            axes.plot(angle_deg, share, label=TITLES[method], **METHOD_LOOK[method])
            if method == "model":
                error = np.sqrt(share * (1 - share) / len(events))
                color = METHOD_LOOK[method]["color"]
                axes.fill_between(
                    angle_deg, share - error, share + error,
                    color=color, alpha=0.25, linewidth=0, label="This model ± error",
                )  # fmt: skip
    axes.axhline(0.5, color=GREY, linewidth=0.8)
    axes.set_xlabel("Opening angle [deg]")


def _scale(axes: Axes, events: pd.DataFrame, methods: list[str], logarithmic: bool) -> None:
    if not logarithmic:
        axes.set_xlim(0, 180)
        axes.set_xticks(range(0, 181, 30))
        return
    axes.set_xscale("log")
    # from where the best method has a few events
    first = [
        float(np.quantile(angles_of(events, method), FIRST_SHARE))
        for method in (methods if len(events) else ())
    ]
    axes.set_xlim(float(np.clip(min(first, default=1.0), 0.1, 10)), 180)
    axes.set_xticks([tick for tick in ANGLE_TICKS if tick >= axes.get_xlim()[0]])
    axes.xaxis.set_major_formatter("{x:g}")
