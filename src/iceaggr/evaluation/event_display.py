"""Event displays: the detector in 3D, its hits in colour, the true and the predicted direction."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from matplotlib.artist import Artist
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator
from mpl_toolkits.mplot3d import Axes3D

from iceaggr.batches.event_batch import EventBatch
from iceaggr.detector import Detector
from iceaggr.evaluation.figure_style import BLACK, GREY, VERMILLION, draw

LEGEND_CHARGES_PE = (1, 10, 100)
"""Charges whose size the legend shows, photo-electrons."""

MIN_SHARE_OF_BOX = 0.35
"""Least length of a side of the frame, relative to its longest: flat arrays keep some height."""
N_FAINT_DOTS = 5_000
"""Sensors that are drawn as dots; more of them are drawn fainter, or they make a haze."""
N_CROSSES = 200
"""Auxiliary hits that are drawn in full size; more of them are drawn smaller."""


@dataclass(frozen=True)
class EventSnapshot:
    """What a display shows of one event.

    xyz_m: (D, 3) metres; first_time_ns, charge_pe: (D,); triggering: (D,) bool, any pulse that is
    not auxiliary; true, predicted: (3,) unit vectors to the origin.
    """

    event_id: int
    angle_deg: float
    kappa: float
    xyz_m: npt.NDArray[np.float64]
    first_time_ns: npt.NDArray[np.float64]
    charge_pe: npt.NDArray[np.float64]
    triggering: npt.NDArray[np.bool_]
    true: npt.NDArray[np.float64]
    predicted: npt.NDArray[np.float64]


def snapshot(
    batch: EventBatch, row: int, true: npt.NDArray[np.float64], predicted: npt.NDArray[np.float64]
) -> EventSnapshot:
    """Copy one event out of a minibatch; angle and kappa are filled in by the caller."""
    first_dom, last_dom = batch.event_dom_offsets[row : row + 2].tolist()
    offsets = batch.dom_pulse_offsets[first_dom : last_dom + 1].cpu().numpy()
    pulses = slice(int(offsets[0]), int(offsets[-1]))
    starts = offsets[:-1] - offsets[0]
    charge_pe = batch.charge_pe[pulses].cpu().numpy().astype(np.float64)
    triggering = ~batch.auxiliary[pulses].cpu().numpy()
    return EventSnapshot(
        event_id=int(batch.event_id[row]),
        angle_deg=float("nan"),
        kappa=float("nan"),
        xyz_m=batch.xyz_m[first_dom:last_dom].cpu().numpy().astype(np.float64),
        first_time_ns=batch.time_ns[pulses].cpu().numpy().astype(np.float64)[starts],
        charge_pe=np.add.reduceat(charge_pe, starts),
        triggering=np.logical_or.reduceat(triggering, starts),
        true=true,
        predicted=predicted,
    )


def draw_event(event: EventSnapshot, detector: Detector, note: str) -> bytes:
    """Draw one event: DOMs coloured by first time and sized by charge, travel directions.

    note: a first line above the figure's own facts, such as `Best`.
    """

    def paint(figure: Figure) -> None:
        axes = figure.add_axes((0.0, 0.08, 0.83, 0.85), projection="3d", computed_zorder=False)
        assert isinstance(axes, Axes3D)
        middle, half = _frame_of(detector)
        _paint_detector(axes, detector)
        _paint_hits(figure, axes, event)
        anchor = _anchor(event)
        for origin, look in (
            (event.true, (BLACK, "-", "true travel", 2.8)),
            (event.predicted, (VERMILLION, "--", "predicted travel", 1.8)),
        ):
            _paint_direction(axes, _within(anchor, origin, middle, half), look)
        azimuth_deg = _view_azimuth_deg(event)
        axes.view_init(elev=12.0, azim=azimuth_deg)
        _frame(axes, middle, half, azimuth_deg)
        n_doms, charge = len(event.charge_pe), event.charge_pe.sum()
        figure.suptitle(
            f"{note}\nopening angle {event.angle_deg:.3g}°, κ {event.kappa:.3g}\n"
            f"{n_doms} DOMs, {charge:.0f} p.e., event {event.event_id}",
            fontsize=11,
            y=0.985,
        )
        figure.legend(
            handles=_legend(axes), loc="lower center", ncols=3, fontsize=9, columnspacing=1.6
        )

    return draw((5.6, 5.4), paint, automatic=False)


def _legend(axes: Axes3D) -> list[Artist]:
    """Name what is drawn: arrows, sizes of DOMs by charge, crosses."""
    drawn, labels = axes.get_legend_handles_labels()
    sizes: list[Artist] = [
        Line2D(
            [], [], linestyle="none", marker="o", markersize=float(np.sqrt(_area(charge_pe))),
            markerfacecolor="white", markeredgecolor=BLACK, markeredgewidth=0.6,
            label=f"DOM with {charge_pe} p.e.",
        )
        for charge_pe in LEGEND_CHARGES_PE
    ]  # fmt: skip
    named = dict(zip(labels, drawn, strict=True))
    cross = Line2D(
        [], [], linestyle="none", marker="x", markersize=3.5, color=GREY, label="auxiliary only"
    )
    return [named["true travel"], named["predicted travel"], *sizes, cross]


def _area(charge_pe: float | npt.NDArray[np.float64]) -> Any:
    """Give the area of a DOM's marker, points squared."""
    return 14.0 * np.clip(charge_pe, 0.3, 300.0) ** 0.6


def _paint_detector(axes: Axes3D, detector: Detector) -> None:
    x, y, z = detector.xyz_m[detector.in_use].T
    faint = min(1.0, (N_FAINT_DOTS / max(len(x), 1)) ** 0.5)
    axes.scatter(
        x, y, z, s=1.0, color=GREY, alpha=0.3 * faint, linewidths=0, depthshade=False, zorder=1,
    )  # fmt: skip


def _paint_hits(figure: Figure, axes: Axes3D, event: EventSnapshot) -> None:
    noise = ~event.triggering
    x, y, z = event.xyz_m[noise].T
    small = min(1.0, N_CROSSES / max(len(x), 1))
    axes.scatter(
        x, y, z, s=12 * small, color=GREY, marker="x", linewidths=0.8 * small**0.5, zorder=2,
    )  # fmt: skip
    hits = event.triggering if event.triggering.any() else np.ones(len(noise), bool)
    order = np.flatnonzero(hits)[np.argsort(event.charge_pe[hits])[::-1]]
    x, y, z = event.xyz_m[order].T
    time_ns = event.first_time_ns[order] - event.first_time_ns[order].min()
    # one early or late stray must not turn all others into one colour
    low, high = np.quantile(time_ns, [0.02, 0.98])
    high = max(high, low + 1.0)
    points = axes.scatter(
        x, y, z, s=_area(event.charge_pe[order]), c=time_ns, cmap="plasma", vmin=low, vmax=high,
        edgecolors=BLACK, linewidths=0.3, depthshade=False, zorder=5,
    )  # fmt: skip
    place = figure.add_axes((0.87, 0.27, 0.02, 0.46))
    bar = figure.colorbar(points, cax=place)
    bar.set_label("First pulse, after the earliest [ns]", fontsize=9)
    bar.ax.tick_params(labelsize=8)


def _anchor(event: EventSnapshot) -> npt.NDArray[np.float64]:
    hits = event.triggering if event.triggering.any() else np.ones(len(event.triggering), bool)
    return np.average(event.xyz_m[hits], axis=0, weights=np.maximum(event.charge_pe[hits], 1e-3))


def _paint_direction(
    axes: Axes3D,
    ends: tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]],
    look: tuple[str, str, str, float],
) -> None:
    color, dash, label, width = look
    start, stop = ends
    axes.quiver(
        *start, *(stop - start), color=color, linestyle=dash, linewidth=width,
        arrow_length_ratio=0.08, label=label, zorder=4,
    )  # fmt: skip


def _within(
    anchor: npt.NDArray[np.float64],
    origin: npt.NDArray[np.float64],
    middle: npt.NDArray[np.float64],
    half: npt.NDArray[np.float64],
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Cut a direction through the anchor at the frame: where it enters and where it leaves.

    The label points to where the neutrino came from, so it enters on the side of +origin.
    """
    with np.errstate(divide="ignore"):
        reach = [
            float(np.min((half - side * np.sign(origin) * (anchor - middle)) / np.abs(origin)))
            for side in (1.0, -1.0)
        ]
    return anchor + max(reach[0], 0.0) * origin, anchor - max(reach[1], 0.0) * origin


def _frame_of(
    detector: Detector,
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Find the middle of the frame and half of its sides, (3,) metres each."""
    low, high = detector.bounds_m
    sides = np.maximum(high - low, MIN_SHARE_OF_BOX * float((high - low).max()))
    return (low + high) / 2.0, 1.05 * np.maximum(sides, 1.0) / 2.0


def _frame(
    axes: Axes3D,
    middle: npt.NDArray[np.float64],
    half: npt.NDArray[np.float64],
    azimuth_deg: float,
) -> None:
    # the same metres per inch along all sides: angles are seen as they are
    low, high = middle - half, middle + half
    axes.set_xlim(low[0], high[0])
    axes.set_ylim(low[1], high[1])
    axes.set_zlim(low[2], high[2])
    sides = half / half.max()
    # the longest side as long as that of a cube, whatever the others are
    axes.set_box_aspect(tuple(sides), zoom=float(np.linalg.norm(sides) / np.sqrt(3.0)))
    # a side that is short, or seen from its end, has room for two numbers
    azimuth = np.deg2rad(azimuth_deg)
    seen = sides * np.abs([np.sin(azimuth), np.cos(azimuth), 1.0])
    for k, axis in enumerate((axes.xaxis, axes.yaxis, axes.zaxis)):
        ticks = _ticks(low[k], high[k], fewest=3 if seen[k] > 0.6 else 2)
        axis.set_ticks(ticks if seen[k] > 0.6 else ticks[[0, -1]])
    digits = max(len(f"{place:.0f}") for place in axes.get_zticks())
    axes.tick_params(labelsize=8, pad=-2)
    # labels come closer to the numbers where the box is flat or slender
    flat, slender = 1.0 - sides[2], 1.0 - float(sides[:2].max())
    axes.set_xlabel("x [m]", fontsize=9, labelpad=-2 + 8 * flat)
    axes.set_ylabel("y [m]", fontsize=9, labelpad=-2 + 8 * flat)
    axes.zaxis.set_rotate_label(False)
    axes.set_zlabel(
        "z [m]", fontsize=9, labelpad=-5.0 + 12.0 * slender + 6.0 * max(digits - 4, 0), rotation=90
    )


def _ticks(low: float, high: float, fewest: int) -> npt.NDArray[np.float64]:
    """Choose round numbers away from the corners, where those of two sides would collide."""
    places = np.zeros(0)
    for n_bins in range(2, 9):
        places = np.asarray(MaxNLocator(n_bins, steps=[1, 2, 5, 10]).tick_values(low, high))
        places = places[np.abs(places - (low + high) / 2.0) < 0.45 * (high - low)]
        if len(places) >= fewest:
            break
    return places


def _view_azimuth_deg(event: EventSnapshot) -> float:
    """Look along the horizontal normal of the two directions, where their angle shows best."""
    normal = np.cross(event.true, event.predicted)
    if np.hypot(normal[0], normal[1]) < 0.02:
        normal = np.array([-event.true[1], event.true[0], 0.0])
    return float(np.rad2deg(np.arctan2(normal[1], normal[0])))
