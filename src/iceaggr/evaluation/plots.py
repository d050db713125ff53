"""The accuracy figures: opening angles of the model beside the baselines, in a talk's quality."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure

from iceaggr.evaluation.figure_style import (
    ANGLE_TICKS,
    BLACK,
    BLUE,
    GREEN,
    ORANGE,
    angle_axis,
    draw,
    log_x_axis,
)
from iceaggr.evaluation.profiles import bins_of, paint_profile, say_too_few
from iceaggr.evaluation.slices import slice_column
from iceaggr.events.truth import TOPOLOGIES

COUNT_EDGES = tuple(float(2 ** (0.5 * step)) for step in range(4, 36))
AZIMUTH_EDGES = tuple(np.linspace(0.0, 60.0, 13))
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


def draw_against_azimuth(events: pd.DataFrame, classical: str, min_events: int) -> bytes:
    """Draw median and central 68 % band against the true azimuth folded into the hexagonal grid."""

    def paint(figure: Figure) -> None:
        axes = figure.subplots()
        binning = ("azimuth_mod_60_deg", AZIMUTH_EDGES)
        paint_profile(axes, events, binning, (classical, min_events))
        angle_axis(axes)
        axes.set_xlim(0, 60)
        axes.set_xlabel("True azimuth mod 60° [deg]")
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
