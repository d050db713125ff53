"""One look for every figure: colour-blind-safe colours, readable sizes, PNG bytes out."""

from __future__ import annotations

import io
import math
from collections.abc import Callable
from typing import Any

import matplotlib
import numpy as np
import numpy.typing as npt
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.ticker import LogLocator, NullFormatter

from iceaggr.evaluation.baselines import TITLES
from iceaggr.evaluation.event_table import angles_of
from iceaggr.evaluation.slices import slice_column

BLACK, ORANGE, SKY, GREEN = "#000000", "#E69F00", "#56B4E9", "#009E73"
BLUE, VERMILLION, PURPLE, GREY = "#0072B2", "#D55E00", "#CC79A7", "#7F7F7F"
"""Source: Okabe & Ito, "Color Universal Design", 2008 (grey added)."""

METHOD_LOOK: dict[str, dict[str, Any]] = {
    "model": {"color": VERMILLION, "linestyle": "-", "linewidth": 2.4},
    "random": {"color": GREY, "linestyle": (0, (1, 2)), "linewidth": 1.4},
    "constant": {"color": BLACK, "linestyle": (0, (1, 1)), "linewidth": 1.4},
    "line_fit": {"color": SKY, "linestyle": "--", "linewidth": 1.7},
    "improved_line_fit": {"color": BLUE, "linestyle": "-.", "linewidth": 1.7},
    "tensor_of_inertia": {"color": GREEN, "linestyle": (0, (5, 1)), "linewidth": 1.4},
    "ensemble_fit": {"color": ORANGE, "linestyle": (0, (4, 2)), "linewidth": 1.7},
    "likelihood_fit": {"color": PURPLE, "linestyle": (0, (3, 1, 1, 1)), "linewidth": 1.7},
}
"""Colour and dash of each method, the same in every figure; dashes also tell them apart."""

STYLE: dict[Any, Any] = {
    "font.size": 10.5,
    "axes.titlesize": 11.5,
    "axes.labelsize": 11,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "grid.alpha": 0.3,
    "grid.linewidth": 0.6,
    "legend.frameon": False,
    "legend.fontsize": 9.5,
    "figure.facecolor": "white",
    "savefig.facecolor": "white",
}

DOTS_PER_INCH = 130

ANGLE_TICKS = (0.1, 0.3, 1, 3, 10, 30, 90, 180)
"""Ticks of a logarithmic axis of angles, degrees."""


def draw(
    size_inch: tuple[float, float], paint: Callable[[Figure], None], automatic: bool = True
) -> bytes:
    """Paint a figure in the common style. Returns a PNG; no global state of pyplot is touched.

    automatic: lay the panels out; False where the painter places its own axes.
    """
    with matplotlib.rc_context(STYLE):
        # the margin keeps half of the last tick label inside the picture
        layout = ConstrainedLayoutEngine(w_pad=0.12, h_pad=0.05) if automatic else None
        figure = Figure(figsize=size_inch, layout=layout)
        paint(figure)
        png = io.BytesIO()
        figure.savefig(png, format="png", dpi=DOTS_PER_INCH, metadata={"Software": None})
    return png.getvalue()


def angle_axis(axes: Axes, label: str = "Opening angle [deg]") -> None:
    """Set up a linear y axis of angles from 0 to what is drawn, with ticks every 30 degrees."""
    drawn = float(axes.dataLim.ymax) if axes.has_data() else 180.0
    top = min(180, 30 * math.ceil(max(drawn, 1.0) / 30))
    axes.set_ylabel(label)
    axes.set_ylim(0, top)
    axes.set_yticks(range(0, top + 1, 30))


MAX_FOLD_LABELLED = 300
"""Ratio of the ends of a logarithmic axis up to which digits beside 1 have labels."""


def log_x_axis(axes: Axes, digits: tuple[int, ...]) -> None:
    """Make x logarithmic, from tick to tick, with ticks at `digits` times each power of ten."""
    axes.set_xscale("log")
    low, high = axes.get_xlim()
    if axes.has_data():
        ticks = [digit * 10.0**power for power in range(-3, 13) for digit in digits]
        low = max(tick for tick in ticks if tick <= max(axes.dataLim.xmin, ticks[0]))
        high = min(tick for tick in ticks if tick >= min(axes.dataLim.xmax, ticks[-1]))
        high = high if high > low else 10.0 * low
        axes.set_xlim(low, high)
    # in a narrow figure the labels of more than two and a half decades would touch
    labelled = digits if high <= MAX_FOLD_LABELLED * low else digits[:1]
    axes.xaxis.set_major_locator(LogLocator(subs=tuple(float(digit) for digit in labelled)))
    axes.xaxis.set_minor_formatter(NullFormatter())


# Opening angles against a quantity: bins with enough events, their medians, the band around.

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
