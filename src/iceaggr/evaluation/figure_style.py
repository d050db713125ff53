"""One look for every figure: colour-blind-safe colours, readable sizes, PNG bytes out."""

from __future__ import annotations

import io
import math
from collections.abc import Callable
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.ticker import LogLocator, NullFormatter

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
