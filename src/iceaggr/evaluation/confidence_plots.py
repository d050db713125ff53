"""The confidence figures: calibration of kappa, and accuracy against the share of events kept."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from iceaggr.evaluation.calibration import (
    RiskCoverage,
    expected_pull_density,
    probability_inside,
    pulls,
)
from iceaggr.evaluation.figure_style import BLACK, BLUE, GREEN, GREY, VERMILLION, draw

N_PIT_BINS = 20
MAX_PULL = 4.0


def draw_calibration(events: pd.DataFrame) -> bytes:
    """Draw the PIT histogram, coverage against nominal, and the pulls against what kappa claims."""
    angle_rad = np.deg2rad(events["opening_angle_deg"].to_numpy())
    kappa = events["kappa"].to_numpy()
    pit = probability_inside(angle_rad, kappa)
    pull = pulls(angle_rad, kappa)

    def paint(figure: Figure) -> None:
        panels = figure.subplots(1, 3)
        _paint_pit(panels[0], pit)
        _paint_coverage(panels[1], pit)
        _paint_pulls(panels[2], pull, kappa)

    return draw((12.5, 4.0), paint)


def draw_risk_coverage(curves: RiskCoverage) -> bytes:
    """Draw mean, median and 90 % opening angle, each ± error, against the share of events kept."""
    lines = (
        ("90 % of events below", curves.p90_deg, {"color": GREEN, "linestyle": "-."}),
        ("Mean", curves.mean_deg, {"color": VERMILLION, "linewidth": 2.2}),
        ("Median", curves.median_deg, {"color": BLUE, "linestyle": "--"}),
    )

    def paint(figure: Figure) -> None:
        axes = figure.subplots()
        kept = 100.0 * curves.kept_share
        for label, (low, value, high), look in lines:
            axes.fill_between(kept, low, high, color=look["color"], alpha=0.2, linewidth=0)
            axes.plot(kept, value, label=f"{label} ± error", **look)
        axes.set_xlim(0, 100)
        axes.set_ylim(0, None)
        axes.set_xlabel("Events kept, highest κ first [%]")
        axes.set_ylabel("Opening angle of kept events [deg]")
        axes.legend(loc="best")

    return draw((7.2, 4.3), paint)


def _paint_pit(axes: Axes, pit: np.ndarray) -> None:
    counts, edges = np.histogram(pit, bins=N_PIT_BINS, range=(0.0, 1.0))
    expected = len(pit) / N_PIT_BINS
    error = np.sqrt(expected) / expected
    axes.axhspan(1 - 2 * error, 1 + 2 * error, color=GREY, alpha=0.25, label="calibrated, ±2σ")
    axes.stairs(
        counts / expected, edges, color=VERMILLION, linewidth=2, label="model", baseline=None
    )
    axes.set_xlim(0, 1)
    axes.set_ylim(0, max(1.3, 1.1 * float((counts / expected).max())))
    axes.set_xlabel("Probability inside the observed angle (PIT)")
    axes.set_ylabel("Events / expected")
    axes.legend()
    axes.set_title("PIT")


def _paint_coverage(axes: Axes, pit: np.ndarray) -> None:
    nominal = np.linspace(0.0, 1.0, 101)
    share = np.searchsorted(np.sort(pit), nominal, side="right") / len(pit)
    band = 2 * np.sqrt(nominal * (1 - nominal) / len(pit))
    axes.plot([0, 1], [0, 1], color=BLACK, linestyle="--", linewidth=1, label="calibrated")
    axes.fill_between(nominal, share - band, share + band, color=VERMILLION, alpha=0.25)
    axes.plot(nominal, share, color=VERMILLION, linewidth=2, label="model, ±2σ")
    axes.set_xlim(0, 1)
    axes.set_ylim(0, 1)
    axes.set_aspect("equal")
    axes.set_xlabel("Nominal probability")
    axes.set_ylabel("Share of events inside")
    axes.legend()
    axes.set_title("Coverage")


def _paint_pulls(axes: Axes, pull: np.ndarray, kappa: np.ndarray) -> None:
    edges = np.linspace(0.0, MAX_PULL, 41)
    n_per_density = len(pull) * np.diff(edges)
    counts, _ = np.histogram(pull, bins=edges)
    expected = expected_pull_density(kappa, edges)
    error = np.sqrt(expected / n_per_density)
    middle = (edges[1:] + edges[:-1]) / 2
    axes.fill_between(
        middle, expected - 2 * error, expected + 2 * error,
        color=GREY, alpha=0.25, linewidth=0, label="calibrated, ±2σ",
    )  # fmt: skip
    axes.stairs(counts / n_per_density, edges, color=VERMILLION, linewidth=2, baseline=None)
    axes.plot(
        edges, edges * np.exp(-(edges**2) / 2), color=BLACK, linestyle=":", label="narrow errors"
    )
    beyond = float((pull > MAX_PULL).mean())
    axes.plot([], [], color=VERMILLION, label=f"model ({100 * beyond:.1f} % beyond {MAX_PULL:g})")
    axes.set_xlim(0, MAX_PULL)
    axes.set_xticks(range(int(MAX_PULL) + 1))
    axes.set_ylim(0, None)
    axes.set_xlabel("Pull  ψ√κ")
    axes.set_ylabel("Density")
    axes.legend()
    axes.set_title("Pulls")
