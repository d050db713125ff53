"""Event displays: the detector in 3D, its hits in colour, the true and the predicted direction."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from matplotlib.figure import Figure
from mpl_toolkits.mplot3d import Axes3D

from iceaggr.batches.event_batch import EventBatch
from iceaggr.detector import Detector
from iceaggr.evaluation.figure_style import BLACK, GREY, VERMILLION, draw

ARROW_M = 550.0
"""Half length of the drawn directions, metres."""


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
        axes = figure.add_subplot(projection="3d")
        assert isinstance(axes, Axes3D)
        _paint_detector(axes, detector)
        _paint_hits(figure, axes, event)
        anchor = _anchor(event)
        _paint_direction(axes, anchor, event.true, (BLACK, "-", "true travel"))
        _paint_direction(axes, anchor, event.predicted, (VERMILLION, "--", "predicted travel"))
        _frame(axes, detector)
        n_doms, charge = len(event.charge_pe), event.charge_pe.sum()
        axes.set_title(
            f"{note}\nopening angle {event.angle_deg:.1f}°, κ {event.kappa:.3g}\n"
            f"{n_doms} DOMs, {charge:.0f} p.e., event {event.event_id}",
            fontsize=10,
        )
        axes.legend(loc="upper left", fontsize=8)

    return draw((5.4, 5.6), paint)


def _paint_detector(axes: Axes3D, detector: Detector) -> None:
    x, y, z = detector.xyz_m[detector.in_use].T
    axes.scatter(x, y, z, s=0.6, color=GREY, alpha=0.18, linewidths=0, depthshade=False)


def _paint_hits(figure: Figure, axes: Axes3D, event: EventSnapshot) -> None:
    noise = ~event.triggering
    x, y, z = event.xyz_m[noise].T
    axes.scatter(x, y, z, s=9, color=GREY, marker="x", linewidths=0.7, label="auxiliary only")
    hits = event.triggering if event.triggering.any() else np.ones(len(noise), bool)
    order = np.flatnonzero(hits)[np.argsort(event.charge_pe[hits])[::-1]]
    x, y, z = event.xyz_m[order].T
    time_ns = event.first_time_ns[order] - event.first_time_ns[order].min()
    size = 14.0 * np.clip(event.charge_pe[order], 0.3, 300.0) ** 0.6
    high = max(float(np.quantile(time_ns, 0.98)), 1.0)
    points = axes.scatter(
        x, y, z, s=size, c=time_ns, cmap="plasma", vmin=0.0, vmax=high,
        edgecolors=BLACK, linewidths=0.3, depthshade=False,
    )  # fmt: skip
    figure.colorbar(points, ax=axes, shrink=0.6, pad=0.08, label="First pulse after the first [ns]")


def _anchor(event: EventSnapshot) -> npt.NDArray[np.float64]:
    hits = event.triggering if event.triggering.any() else np.ones(len(event.triggering), bool)
    return np.average(event.xyz_m[hits], axis=0, weights=np.maximum(event.charge_pe[hits], 1e-3))


def _paint_direction(
    axes: Axes3D,
    anchor: npt.NDArray[np.float64],
    origin: npt.NDArray[np.float64],
    look: tuple[str, str, str],
) -> None:
    color, dash, label = look
    # the label points to where the neutrino came from, so it travels from +origin to -origin
    start = anchor + ARROW_M * origin
    travel = -2.0 * ARROW_M * origin
    axes.quiver(
        *start, *travel, color=color, linestyle=dash, linewidth=1.8, arrow_length_ratio=0.09,
        label=label,
    )  # fmt: skip


def _frame(axes: Axes3D, detector: Detector) -> None:
    low, high = detector.xyz_m.min(axis=0), detector.xyz_m.max(axis=0)
    middle, half = (low + high) / 2.0, 1.05 * float((high - low).max()) / 2.0
    axes.set_xlim(middle[0] - half, middle[0] + half)
    axes.set_ylim(middle[1] - half, middle[1] + half)
    axes.set_zlim(middle[2] - half, middle[2] + half)
    axes.set_box_aspect((1, 1, 1))
    axes.set_xlabel("x [m]")
    axes.set_ylabel("y [m]")
    axes.set_zlabel("z [m]")
    axes.tick_params(labelsize=7)
    axes.view_init(elev=14, azim=-60)
