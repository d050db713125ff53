"""Event displays: the detector in 3D, its hits in colour, the true and the predicted direction."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from matplotlib.artist import Artist
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from mpl_toolkits.mplot3d import Axes3D

from iceaggr.batches.event_batch import EventBatch
from iceaggr.detector import Detector
from iceaggr.evaluation.figure_style import BLACK, GREY, VERMILLION, draw

ARROW_M = 550.0
"""Half length of the drawn directions, metres."""

LEGEND_CHARGES_PE = (1, 10, 100)
"""Charges whose size the legend shows, photo-electrons."""

COORDINATE_TICKS_M = (-500, 0, 500)


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
        _paint_detector(axes, detector)
        _paint_hits(figure, axes, event)
        anchor = _anchor(event)
        _paint_direction(axes, anchor, event.true, (BLACK, "-", "true travel", 2.8))
        _paint_direction(axes, anchor, event.predicted, (VERMILLION, "--", "predicted travel", 1.8))
        _frame(axes, detector)
        axes.view_init(elev=12.0, azim=_view_azimuth_deg(event))
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
    return [named["true travel"], named["predicted travel"], *sizes, named["auxiliary only"]]


def _area(charge_pe: float | npt.NDArray[np.float64]) -> Any:
    """Give the area of a DOM's marker, points squared."""
    return 14.0 * np.clip(charge_pe, 0.3, 300.0) ** 0.6


def _paint_detector(axes: Axes3D, detector: Detector) -> None:
    x, y, z = detector.xyz_m[detector.in_use].T
    axes.scatter(x, y, z, s=1.0, color=GREY, alpha=0.3, linewidths=0, depthshade=False, zorder=1)


def _paint_hits(figure: Figure, axes: Axes3D, event: EventSnapshot) -> None:
    noise = ~event.triggering
    x, y, z = event.xyz_m[noise].T
    axes.scatter(
        x, y, z, s=12, color=GREY, marker="x", linewidths=0.8, zorder=2, label="auxiliary only"
    )
    hits = event.triggering if event.triggering.any() else np.ones(len(noise), bool)
    order = np.flatnonzero(hits)[np.argsort(event.charge_pe[hits])[::-1]]
    x, y, z = event.xyz_m[order].T
    time_ns = event.first_time_ns[order] - event.first_time_ns[order].min()
    high = max(float(np.quantile(time_ns, 0.98)), 1.0)
    points = axes.scatter(
        x, y, z, s=_area(event.charge_pe[order]), c=time_ns, cmap="plasma", vmin=0.0, vmax=high,
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
    anchor: npt.NDArray[np.float64],
    origin: npt.NDArray[np.float64],
    look: tuple[str, str, str, float],
) -> None:
    color, dash, label, width = look
    # the label points to where the neutrino came from, so it travels from +origin to -origin
    start = anchor + ARROW_M * origin
    travel = -2.0 * ARROW_M * origin
    axes.quiver(
        *start, *travel, color=color, linestyle=dash, linewidth=width, arrow_length_ratio=0.08,
        label=label, zorder=4,
    )  # fmt: skip


def _frame(axes: Axes3D, detector: Detector) -> None:
    low, high = detector.xyz_m.min(axis=0), detector.xyz_m.max(axis=0)
    middle, half = (low + high) / 2.0, 1.05 * float((high - low).max()) / 2.0
    axes.set_xlim(middle[0] - half, middle[0] + half)
    axes.set_ylim(middle[1] - half, middle[1] + half)
    axes.set_zlim(middle[2] - half, middle[2] + half)
    axes.set_box_aspect((1, 1, 1))
    for axis in (axes.xaxis, axes.yaxis, axes.zaxis):
        axis.set_ticks(COORDINATE_TICKS_M)
    axes.tick_params(labelsize=8, pad=-2)
    axes.set_xlabel("x [m]", fontsize=9, labelpad=-2)
    axes.set_ylabel("y [m]", fontsize=9, labelpad=-2)
    axes.zaxis.set_rotate_label(False)
    axes.set_zlabel("z [m]", fontsize=9, labelpad=-6, rotation=90)


def _view_azimuth_deg(event: EventSnapshot) -> float:
    """Look along the horizontal normal of the two directions, where their angle shows best."""
    normal = np.cross(event.true, event.predicted)
    if np.hypot(normal[0], normal[1]) < 0.02:
        normal = np.array([-event.true[1], event.true[0], 0.0])
    return float(np.rad2deg(np.arctan2(normal[1], normal[0])))
