"""How the figures of the data card look: inline SVG that needs nothing from outside the page."""

from __future__ import annotations

import io
import re
from collections.abc import Callable
from functools import wraps
from typing import Any, ParamSpec

import matplotlib
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "font.size": 9,
    "font.family": "sans-serif",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 10,
    "legend.frameon": False,
    "legend.fontsize": 8,
}

P = ParamSpec("P")


def styled(plot: Callable[P, str]) -> Callable[P, str]:
    """Draw in the style of the card without changing the settings of the process."""

    @wraps(plot)
    def styled(*args: P.args, **kwargs: P.kwargs) -> str:
        with matplotlib.rc_context(STYLE):
            return plot(*args, **kwargs)

    return styled


def label_plainly(axis: Axis) -> None:
    """Label a logarithmic axis with plain numbers: 1, 2, 5 within two decades, else powers."""
    low, high = sorted(axis.get_view_interval())
    axis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0) if high < 100 * low else (1.0,)))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,g}"))
    axis.set_minor_formatter(NullFormatter())


def svg(figure: Figure, salt: str) -> str:
    """Save a figure as an SVG element that fills its container; a salt keeps its ids unique."""
    text = io.StringIO()
    with matplotlib.rc_context({"svg.hashsalt": salt}):
        figure.savefig(text, format="svg", dpi=130, metadata={"Date": None, "Creator": None})
    svg = text.getvalue()[text.getvalue().index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    head, tail = svg.split(">", 1)
    return re.sub(r' (width|height)="[^"]*"', "", head) + ">" + tail
