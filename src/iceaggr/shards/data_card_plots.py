"""The histograms of the data card."""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Mapping
from contextlib import ContextDecorator
from typing import Any, cast

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.colors import LogNorm, Normalize
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

from iceaggr.detector import Detector
from iceaggr.normalization_document import FeatureScaling
from iceaggr.shards.histograms import FeatureSketch, Floats

# How the figures of the data card look: inline SVG that needs nothing from outside the page.

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

# as a decorator: the settings of the process stay as they are
styled = cast(ContextDecorator, matplotlib.rc_context(STYLE))


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


# The maps of the data card: where in the detector events were seen.


@styled
def occupancy_top_view(detector: Detector, occupancy: Floats) -> str:
    """Draw the strings from above, coloured by the mean occupancy of their DOMs in use.

    occupancy: (S,) float64, share of the events in which each DOM was hit.
    """
    figure, axes = _map_canvas((4.6, 4.2))
    string_of = detector.string_keys()
    n_used = np.maximum(np.bincount(string_of, weights=detector.in_use), 1)
    mean = np.bincount(string_of, weights=occupancy * detector.in_use) / n_used
    n_all = np.bincount(string_of)
    x, y = (np.bincount(string_of, weights=detector.xyz_m[:, k]) / n_all for k in (0, 1))
    _scatter(figure, axes, x, y, mean, 70 if len(x) < 500 else 12)
    axes.set_aspect("equal")
    axes.set_xlabel("x [m]")
    axes.set_ylabel("y [m]")
    return svg(figure, "top-view")


@styled
def occupancy_side_view(detector: Detector, occupancy: Floats) -> str:
    """Draw every DOM in use from the side: string number (or x) against z; crosses: never hit."""
    figure, axes = _map_canvas((6.4, 4.2))
    strings = bool((detector.string_id >= 0).all())
    across = detector.string_id.astype(float) if strings else detector.xyz_m[:, 0]
    used = detector.in_use
    _scatter(figure, axes, across[used], detector.xyz_m[used, 2], occupancy[used], 9)
    axes.set_xlabel("string" if strings else "x [m]")
    axes.xaxis.set_major_locator(MaxNLocator(integer=strings))
    axes.set_ylabel("z [m]")
    return svg(figure, "side-view")


def _scatter(figure: Figure, axes: Axes, x: Floats, y: Floats, value: Floats, size: float) -> None:
    hit = value > 0
    axes.scatter(x[~hit], y[~hit], s=size / 2, marker="x", color="#b00020", lw=0.6, rasterized=True)
    if not hit.any():
        return
    # percentiles: one hot DOM must not turn the rest of the detector into one colour
    percent = 100 * value[hit]
    low, high = np.percentile(percent, [1, 99.5])
    high = max(high, 1.05 * low)
    wide = high > 8 * low
    norm = (LogNorm if wide else Normalize)(low, high, clip=True)
    many = len(x) > 500  # thousands of DOMs are smaller as an image
    points = axes.scatter(x[hit], y[hit], s=size, c=percent, norm=norm, cmap="viridis", lw=0)
    points.set(rasterized=many, antialiased=not many)
    bar = figure.colorbar(points, ax=axes, label="events with a hit in the DOM [%]", pad=0.02)
    if wide:
        label_plainly(bar.ax.yaxis)


def _map_canvas(size: tuple[float, float]) -> tuple[Figure, Axes]:
    figure = Figure(figsize=size, layout="compressed")
    return figure, figure.add_subplot()


# Okabe and Ito: told apart by colour-blind readers too
SPLIT_COLOURS = {"train": "#0072B2", "validation": "#D55E00", "test": "#009E73"}
HEAVY_TAILED = ("time_ns", "charge_pe")
LABELS = {
    "time_ns": "pulse time [ns]",
    "charge_pe": "pulse charge [p.e.]",
    "log10_charge": "log10(charge / p.e.)",
    "auxiliary": "auxiliary flag",
    "x_m": "x of hit DOMs [m]",
    "y_m": "y of hit DOMs [m]",
    "z_m": "z of hit DOMs [m]",
    "sensor_idx": "row in the sensor table",
    "n_pulses_per_dom": "pulses per hit DOM",
    "n_pulses": "pulses per event",
    "n_doms": "hit DOMs per event",
    "first_pulse_time_ns": "time of the first pulse [ns]",
    "zenith": "zenith [deg]",
    "azimuth": "azimuth [deg]",
}


@styled
def raw_histogram(
    name: str, features: Mapping[str, FeatureSketch], sensors: Floats | None = None
) -> str:
    """Draw one feature in its own unit, one curve per split, each normalised to one.

    sensors: (S,) the feature's value at every sensor in use, drawn behind as what could be hit.
    """
    figure, axes = _canvas()
    if sensors is not None and len(sensors):
        counts, edges = np.histogram(sensors, next(iter(features.values())).binning.edges())
        axes.stairs(counts / len(sensors), edges, color="#888888", ls=":", label="all sensors")
    _draw_splits(axes, features, lambda edges: edges)
    logarithmic = next(iter(features.values())).binning.spacing == "log10"
    axes.set_xlim(*_core(features, logarithmic))
    if logarithmic:
        axes.set_xscale("log")
        label_plainly(axes.xaxis)
    if name == "auxiliary":
        axes.set_xlim(-0.5, 1.5)
        axes.set_xticks([0, 1], ["false (HLC-like)", "true"])
    if name == "first_pulse_time_ns":
        axes.set_yscale("log")
    else:
        axes.set_ylim(bottom=0)
    axes.set_xlabel(LABELS[name])
    axes.set_ylabel("share per bin")
    if len(features) > 1:
        axes.legend()
    return svg(figure, f"{name}-raw")


@styled
def normalized_histogram(
    name: str, feature: FeatureSketch, scaling: FeatureScaling, max_abs: float
) -> str:
    """Draw one feature as the model sees it, whole range; a logarithmic axis shows the tails."""
    figure, axes = _canvas()
    _draw_splits(axes, {"train": feature}, lambda edges: (edges - scaling.centre) / scaling.scale)
    left, right = ((v - scaling.centre) / scaling.scale for v in (feature.low, feature.high))
    margin = (0.5 if name == "auxiliary" else 0.04) * (right - left) or 1.0
    axes.set_xlim(left - margin, right + margin)
    for limit in (-max_abs, max_abs):
        if left - margin < limit < right + margin:
            axes.axvline(limit, color="#b00020", linewidth=1, linestyle="--")
    if name in HEAVY_TAILED:
        axes.set_yscale("log")
    else:
        axes.set_ylim(bottom=0)
    axes.set_xlabel(f"{name} after normalisation")
    axes.set_ylabel("share per bin")
    return svg(figure, f"{name}-norm")


@styled
def count_histogram(name: str, features: Mapping[str, FeatureSketch]) -> str:
    """Draw a whole-number feature as share per decade, both axes logarithmic."""
    figure, axes = _canvas()
    for split, feature in features.items():
        edges = feature.binning.edges()
        inner = feature.histogram[1:-1] / feature.weight
        density = inner / np.diff(np.log10(edges))
        axes.stairs(np.where(density > 0, density, np.nan), edges, **_line(split))
    high = max(f.high for f in features.values())
    axes.set_xlim(0.9, max(high, 10) * 1.3)
    axes.set_xscale("log")
    label_plainly(axes.xaxis)
    axes.set_yscale("log")
    axes.set_xlabel(LABELS[name])
    axes.set_ylabel("share per decade")
    if len(features) > 1:
        axes.legend()
    return svg(figure, name)


@styled
def direction_histogram(name: str, feature: FeatureSketch) -> str:
    """Draw an angle with its statistical errors and the expectation for isotropic directions."""
    figure, axes = _canvas()
    edges, counts = feature.binning.edges(), feature.histogram[1:-1]
    if len(counts) % 2 == 0 and feature.weight < 50 * len(counts):
        counts, edges = counts[0::2] + counts[1::2], edges[::2]
    expected = isotropic_share(name, edges) * feature.weight
    centres = np.rad2deg((edges[1:] + edges[:-1]) / 2)
    axes.errorbar(
        centres, counts, np.sqrt(counts), fmt="o", ms=2.5, lw=0.8, color="#333333", label="events"
    )
    axes.stairs(expected, np.rad2deg(edges), color="#0072B2", label="isotropic")
    chi2 = float(np.sum((counts - expected) ** 2 / np.maximum(expected, 1e-9)))
    axes.set_title(f"chi2 / bins = {chi2:.0f} / {len(counts)} against isotropic", loc="left")
    axes.set_xlabel(LABELS[name])
    axes.set_ylabel("events per bin")
    axes.set_ylim(0, 1.35 * max(counts.max(), expected.max()))
    axes.set_xticks(np.linspace(0, np.rad2deg(edges[-1]), 7))
    axes.legend(ncols=2, loc="upper right")
    return svg(figure, name)


def isotropic_share(name: str, edges: Floats) -> Floats:
    """Integrate an isotropic distribution of directions over bins of zenith or azimuth.

    edges: (K+1,) float64, radians. Returns (K,) shares.
    """
    if name == "azimuth":
        return np.diff(edges) / (2 * np.pi)
    return -np.diff(np.cos(edges)) / 2


def _draw_splits(
    axes: Axes, features: Mapping[str, FeatureSketch], transform: Callable[[Floats], Floats]
) -> None:
    for split, feature in features.items():
        edges = transform(feature.binning.edges())
        axes.stairs(feature.histogram[1:-1] / feature.weight, edges, **_line(split))


def _line(split: str) -> dict[str, Any]:
    """Style of a split: train filled, the others as lines over it."""
    colour = SPLIT_COLOURS.get(split, "#666666")
    filled = {"fill": True, "alpha": 0.3} if split == "train" else {"linewidth": 1.1}
    return {"color": colour, "label": split, **filled}


def _core(features: Mapping[str, FeatureSketch], log: bool) -> tuple[float, float]:
    """Choose the range that holds 99 % of every split, within the bins, with a margin."""
    binning = next(iter(features.values())).binning
    low = max(min(f.quantile(0.005) for f in features.values()), binning.low)
    high = min(max(f.quantile(0.995) for f in features.values()), binning.high)
    if log:
        return max(low, 1e-9) / 1.3, high * 1.3
    margin = 0.05 * (high - low) or 1.0
    return low - margin, high + margin


def _canvas() -> tuple[Figure, Axes]:
    # fixed margins: a layout engine would draw every histogram twice
    figure = Figure(figsize=(5.2, 2.7))
    return figure, figure.add_axes((0.13, 0.18, 0.83, 0.73))
