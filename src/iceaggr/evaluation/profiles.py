"""Opening angles against a quantity: bins with enough events, their medians, the band around."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
from matplotlib.axes import Axes

from iceaggr.evaluation.baselines import TITLES
from iceaggr.evaluation.event_table import angles_of
from iceaggr.evaluation.figure_style import BLACK, GREY, VERMILLION
from iceaggr.evaluation.slices import slice_column

FloatArray = npt.NDArray[np.floating]
Bins = list[tuple[float, npt.NDArray[np.bool_]]]


def paint_profile(
    axes: Axes,
    events: pd.DataFrame,
    binning: tuple[str, tuple[float, ...]],
    comparison: tuple[str, int],
) -> None:
    """Paint median and central 68 % band of the model, and the median of a classical method.

    events: with opening angles of both.  binning: column and edges, in its unit
    comparison: name of the classical method, fewest events of a bin
    """
    column, edges = binning
    classical, min_events = comparison
    bins = bins_of(slice_column(events, column), edges, min_events)
    if not bins:
        say_too_few(axes)
        return
    angle_deg, classical_deg = angles_of(events, "model"), angles_of(events, classical)
    x = [centre for centre, _ in bins]
    low, high = np.array([np.quantile(angle_deg[inside], [0.16, 0.84]) for _, inside in bins]).T
    axes.fill_between(x, low, high, color=VERMILLION, alpha=0.2, label="Model, 16–84 %")
    median, error = medians(angle_deg, bins)
    look: dict[str, Any] = {"marker": "o", "color": VERMILLION, "linewidth": 2.2}
    axes.errorbar(x, median, error, capsize=2, label="Model, median ± error", **look)
    median, error = medians(classical_deg, bins)
    look = {"marker": "x", "color": BLACK, "linestyle": "--"}
    axes.errorbar(x, median, error, capsize=2, label=f"{TITLES[classical]}, median", **look)


def medians(angle_deg: FloatArray, bins: Bins) -> tuple[FloatArray, FloatArray]:
    """Take the median in each bin, (K,), and its distance to the ends of its 68 % interval, (2, K).

    Source: the median's rank has a standard deviation of sqrt(n) / 2.
    """
    found = []
    for _, inside in bins:
        half = min(0.5 / np.sqrt(inside.sum()), 0.5)
        found.append(np.quantile(angle_deg[inside], [0.5 - half, 0.5, 0.5 + half]))
    low, median, high = np.array(found).T
    return median, np.array([median - low, high - median])


def say_too_few(axes: Axes) -> None:
    """Say in a panel why it is empty."""
    axes.text(0.5, 0.5, "too few events", transform=axes.transAxes, ha="center", color=GREY)


def bins_of(values: FloatArray, edges: tuple[float, ...], min_events: int) -> Bins:
    """Cut into bins with enough events: the median value inside (its place on x) and the mask.

    Neighbours are merged from below until min_events are inside; what is left at the end joins the
    last bin, and so does what lies beyond the edges: every event is in one bin, or there is none.
    """
    masks: list[npt.NDArray[np.bool_]] = []
    pending = np.zeros(len(values), bool)
    place = np.searchsorted(edges[1:-1], values, side="right")
    for number in range(len(edges) - 1):
        pending = pending | (place == number)
        if pending.sum() >= min_events:
            masks.append(pending)
            pending = np.zeros(len(values), bool)
    if masks:
        masks[-1] = masks[-1] | pending
    return [(float(np.median(values[inside])), inside) for inside in masks]
