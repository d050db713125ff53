"""The maps of the data card: where in the detector events were seen."""

from __future__ import annotations

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm, Normalize
from matplotlib.figure import Figure

from iceaggr.detector import Detector
from iceaggr.shards.binning import Floats
from iceaggr.shards.data_card_style import label_plainly, styled, svg


@styled
def occupancy_top_view(detector: Detector, occupancy: Floats) -> str:
    """Draw the strings from above, coloured by the mean occupancy of their DOMs in use.

    occupancy: (S,) float64, share of the events in which each DOM was hit.
    """
    figure, axes = _map_canvas((4.6, 4.2))
    keys = detector.string_id[:, None]
    if (keys < 0).any():  # a table without strings: sensors above each other make one
        keys = np.round(detector.xyz_m[:, :2]).astype(np.int64)
    _, string_of = np.unique(keys, axis=0, return_inverse=True)
    string_of = string_of.ravel()
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
    strings = (detector.string_id >= 0).all()
    across = detector.string_id.astype(float) if strings else detector.xyz_m[:, 0]
    used = detector.in_use
    _scatter(figure, axes, across[used], detector.xyz_m[used, 2], occupancy[used], 9)
    axes.set_xlabel("string" if strings else "x [m]")
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
