"""The accuracy figures: opening angles of the model beside the baselines, in a talk's quality."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure

from iceaggr.evaluation.baselines import TITLES
from iceaggr.evaluation.calibration import (
    RiskCoverage,
    expected_pull_density,
    probability_inside,
    pulls,
)
from iceaggr.evaluation.event_table import angles_of
from iceaggr.evaluation.figure_style import (
    ANGLE_TICKS,
    BLACK,
    BLUE,
    GREEN,
    GREY,
    METHOD_LOOK,
    ORANGE,
    VERMILLION,
    angle_axis,
    bins_of,
    draw,
    log_x_axis,
    paint_profile,
    say_too_few,
)
from iceaggr.evaluation.slices import slice_column
from iceaggr.events.truth import TOPOLOGIES

COUNT_EDGES = tuple(float(2 ** (0.5 * step)) for step in range(4, 36))
COSINE_EDGES = tuple(np.linspace(-1.0, 1.0, 13))
ENERGY_EDGES = tuple(10 ** np.linspace(1.0, 8.0, 22))


def draw_against_energy(events: pd.DataFrame, classical: str, min_events: int) -> bytes:
    """Draw median and central 68 % band against true energy, tracks and cascades apart."""

    def paint(figure: Figure) -> None:
        panels = figure.subplots(1, 2, sharey=True)
        for axes, topology in zip(panels, TOPOLOGIES, strict=True):
            chosen = events[events["topology"] == topology]
            binning = ("energy_gev", ENERGY_EDGES)
            paint_profile(axes, chosen, binning, (classical, min_events))
            if "neutrino_muon_angle" in chosen and topology == "track":
                _paint_kinematic_floor(axes, chosen, min_events)
            log_x_axis(axes, (1,))
            axes.set_yscale("log")
            axes.set_ylim(0.1, 180)
            axes.set_yticks(ANGLE_TICKS, [f"{tick:g}" for tick in ANGLE_TICKS])
            axes.set_xlabel("True neutrino energy [GeV]")
            axes.set_title(f"{topology.capitalize()}s ({len(chosen):,} events)")
        panels[0].set_ylabel("Opening angle [deg]")
        _legend_below(figure, panels[0])

    return draw((10.5, 4.9), paint)


def draw_within_against_energy(events: pd.DataFrame, min_events: int) -> bytes:
    """Draw the shares within 1 and 5 degrees against energy, charged and neutral current apart."""
    charged = events["interaction"] == "cc"
    parts = {
        "Charged current, muon neutrinos": events[charged & (events["topology"] == "track")],
        "Neutral current": events[~charged],
    }

    def paint(figure: Figure) -> None:
        panels = figure.subplots(1, 2, sharey=True)
        for axes, (title, chosen) in zip(panels, parts.items(), strict=True):
            _paint_shares(axes, chosen, min_events, with_muon=title.startswith("Charged"))
            log_x_axis(axes, (1,))
            axes.set_ylim(-2, 102)
            axes.set_xlabel("True neutrino energy [GeV]")
            axes.set_title(f"{title} ({len(chosen):,} events)")
        panels[0].set_ylabel("Share of events within the angle [%]")
        _legend_below(figure, panels[0])

    return draw((10.5, 4.9), paint)


def _paint_shares(axes: Axes, events: pd.DataFrame, min_events: int, with_muon: bool) -> None:
    bins = bins_of(events["energy_gev"].to_numpy(), ENERGY_EDGES, min_events)
    if not bins:
        say_too_few(axes)
        return
    methods = {"Model": (angles_of(events, "model"), "-")}
    if with_muon and "neutrino_muon_angle" in events:
        muon = np.rad2deg(events["neutrino_muon_angle"].to_numpy(np.float64))
        methods["Direction of the muon"] = (muon, ":")
    x = [centre for centre, _ in bins]
    for name, (angle_deg, dash) in methods.items():
        for limit, color in ((1.0, VERMILLION), (5.0, BLUE)):
            within = [angle_deg[inside] <= limit for _, inside in bins]
            share = np.array([one.mean() for one in within])
            error = np.sqrt(share * (1 - share) / [len(one) for one in within])
            axes.errorbar(
                x, 100 * share, 100 * error, color=color, linestyle=dash, capsize=2,
                marker="o" if name == "Model" else None, label=f"{name}, {limit:g}°",
            )  # fmt: skip


def draw_against_pulses(events: pd.DataFrame, classical: str, min_events: int) -> bytes:
    """Draw median and central 68 % band against the number of pulses, by topology if known."""

    def label(axes: Axes) -> None:
        log_x_axis(axes, (1, 2, 5))
        axes.set_xlabel("Pulses in the event")
        axes.xaxis.set_major_formatter("{x:g}")

    return _draw_by_topology(events, ("n_pulses", COUNT_EDGES), (classical, min_events), label)


def draw_against_zenith(events: pd.DataFrame, classical: str, min_events: int) -> bytes:
    """Draw median and central 68 % band against the true cosine of zenith."""

    def label(axes: Axes) -> None:
        axes.set_xlim(-1, 1)
        axes.set_xticks((-1, -0.5, 0, 0.5, 1))
        axes.set_xlabel("cos(true zenith)   [−1 up-going … +1 down-going]")

    return _draw_by_topology(events, ("cos_zenith", COSINE_EDGES), (classical, min_events), label)


def draw_against_azimuth(
    events: pd.DataFrame, classical: str, min_events: int, period_deg: float
) -> bytes:
    """Draw median and central 68 % band against the true azimuth.

    period_deg: of the strings, into which the azimuth is folded; 360 if they have none.
    """
    # the remainder of a rounded multiple can come out as the period itself, in the last bin then
    folded = events.assign(azimuth_folded_deg=slice_column(events, "azimuth_deg") % period_deg)
    edges = tuple(np.linspace(0.0, period_deg, 13))

    def paint(figure: Figure) -> None:
        axes = figure.subplots()
        paint_profile(axes, folded, ("azimuth_folded_deg", edges), (classical, min_events))
        angle_axis(axes)
        axes.set_xlim(0, period_deg)
        fold = f" mod {period_deg:.4g}°" if period_deg < 360 else ""
        axes.set_xlabel(f"True azimuth{fold} [deg]")
        if period_deg == 360:
            axes.set_xticks(range(0, 361, 60))
        _legend_below(figure, axes)

    return draw((7.2, 4.6), paint)


def draw_zenith_map(events: pd.DataFrame) -> bytes:
    """Draw predicted against true cosine of zenith, each column normalised to its events."""
    true = np.cos(events["true_zenith"].to_numpy())
    predicted = np.cos(events["zenith"].to_numpy())
    edges = np.linspace(-1.0, 1.0, 41 if len(events) >= 20_000 else 21)
    counts, _, _ = np.histogram2d(true, predicted, bins=(edges, edges))
    column = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1.0)
    density = np.where(column > 0, column / np.diff(edges)[0], np.nan)

    def paint(figure: Figure) -> None:
        axes = figure.subplots()
        axes.grid(False)
        norm = LogNorm(0.05, max(5.0, float(np.nanmax(density))))
        mesh = axes.pcolormesh(edges, edges, density.T, norm=norm, cmap="viridis")
        axes.plot([-1, 1], [-1, 1], color="white", linewidth=2.5)
        axes.plot([-1, 1], [-1, 1], color=BLACK, linewidth=1, linestyle="--", label="perfect")
        axes.set_xlabel("cos(true zenith)")
        axes.set_ylabel("cos(predicted zenith)")
        axes.set_aspect("equal")
        figure.colorbar(mesh, label="Density of predictions at this true zenith", shrink=0.9)

    return draw((6.2, 5.0), paint)


def draw_bias(events: pd.DataFrame, min_events: int) -> bytes:
    """Draw the mean of predicted minus true unit vector against the true cosine of zenith."""
    cosine = slice_column(events, "cos_zenith")
    look = {"x": (BLUE, "o"), "y": (ORANGE, "s"), "z": (GREEN, "^")}

    def paint(figure: Figure) -> None:
        axes = figure.subplots()
        for offset, (axis, (color, marker)) in zip((-0.01, 0.0, 0.01), look.items(), strict=True):
            bias = events[f"bias_{axis}"].to_numpy()
            bins = [
                (centre + offset, bias[inside].mean(), bias[inside].std() / np.sqrt(inside.sum()))
                for centre, inside in bins_of(cosine, COSINE_EDGES, min_events)
            ]
            if bins:
                x, mean, error = np.array(bins).T
                axes.errorbar(
                    x, mean, error, color=color, marker=marker, capsize=2, label=f"{axis} component"
                )
        if axes.has_data():
            axes.legend()
        else:
            say_too_few(axes)
        axes.axhline(0.0, color=BLACK, linewidth=0.8)
        axes.set_xlim(-1, 1)
        axes.set_xticks((-1, -0.5, 0, 0.5, 1))
        axes.set_xlabel("cos(true zenith)   [−1 up-going … +1 down-going]")
        axes.set_ylabel("Mean of predicted − true unit vector")

    return draw((7.2, 4.3), paint)


def _draw_by_topology(
    events: pd.DataFrame,
    binning: tuple[str, tuple[float, ...]],
    comparison: tuple[str, int],
    label: Any,
) -> bytes:
    """Draw one panel per topology where it is known, else one panel with every event."""
    parts = {"all": events}
    if "topology" in events:
        parts = {name: events[events["topology"] == name] for name in TOPOLOGIES}

    def paint(figure: Figure) -> None:
        panels = figure.subplots(1, len(parts), sharey=True, squeeze=False)[0]
        for axes, (name, chosen) in zip(panels, parts.items(), strict=True):
            paint_profile(axes, chosen, binning, comparison)
            label(axes)
            title = "All events" if name == "all" else f"{name.capitalize()}s"
            axes.set_title(f"{title} ({len(chosen):,} events)")
        # the panels share their y axis, so the one that reaches highest sets it
        drawn = [axes for axes in panels if axes.has_data()] or [panels[0]]
        angle_axis(max(drawn, key=lambda axes: float(axes.dataLim.ymax)), "")
        panels[0].set_ylabel("Opening angle [deg]")
        _legend_below(figure, panels[0])

    return draw((10.5 if len(parts) > 1 else 7.2, 4.6), paint)


def _legend_below(figure: Figure, panel: Axes) -> None:
    handles, labels = panel.get_legend_handles_labels()
    if handles:
        figure.legend(handles, labels, loc="outside lower center", ncols=len(labels))


def _paint_kinematic_floor(axes: Axes, events: pd.DataFrame, min_events: int) -> None:
    floor = np.rad2deg(events["neutrino_muon_angle"].to_numpy())
    bins = bins_of(events["energy_gev"].to_numpy(), ENERGY_EDGES, min_events)
    if not bins:
        return
    x = [centre for centre, _ in bins]
    median = [np.nanmedian(floor[inside]) for _, inside in bins]
    axes.plot(x, median, color=BLUE, linestyle=":", label="Neutrino–muon angle, median")


# The confidence figures: calibration of kappa, and accuracy against the share of events kept.

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


# Cumulative distributions of the opening angle: the model and every baseline in one picture.

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
