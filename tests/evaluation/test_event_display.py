"""Event displays of every built-in detector: what is drawn lies in the frame and says where."""

from dataclasses import replace

import numpy as np
import pytest
from matplotlib.figure import Figure
from mpl_toolkits.mplot3d import Axes3D

from iceaggr.built_in_detectors import BUILT_IN_NAMES, built_in_detector
from iceaggr.evaluation import event_display
from iceaggr.evaluation.event_display import EventSnapshot, draw_event

TRAVEL = np.array([2.0, -1.0, 2.0]) / 3.0


def event_in(name: str) -> EventSnapshot:
    detector = built_in_detector(name)
    rows = np.arange(0, detector.n_sensors, max(detector.n_sensors // 30, 1))
    return EventSnapshot(
        event_id=1,
        angle_deg=3.0,
        kappa=50.0,
        xyz_m=detector.xyz_m[rows],
        first_time_ns=np.arange(len(rows), dtype=float),
        charge_pe=np.ones(len(rows)),
        triggering=np.arange(len(rows)) % 3 > 0,
        true=-TRAVEL,
        predicted=TRAVEL,
    )


@pytest.fixture
def drawn(monkeypatch):
    """Catch the axes of a display before they become a picture."""
    caught: list[Axes3D] = []

    def keep(size, paint, automatic):
        figure = Figure(figsize=size)
        paint(figure)
        caught.extend(axes for axes in figure.axes if isinstance(axes, Axes3D))
        return b""

    monkeypatch.setattr(event_display, "draw", keep)
    return caught


@pytest.mark.parametrize("name", BUILT_IN_NAMES)
def test_frame_holds_the_detector_and_its_numbers(name, drawn):
    detector = built_in_detector(name)
    draw_event(event_in(name), detector, "")
    (axes,) = drawn
    low_m, high_m = detector.bounds_m
    limits = np.array([axes.get_xlim(), axes.get_ylim(), axes.get_zlim()])
    assert (limits[:, 0] <= low_m).all()
    assert (limits[:, 1] >= high_m).all()
    for (low, high), ticks in zip(
        limits, (axes.get_xticks(), axes.get_yticks(), axes.get_zticks()), strict=True
    ):
        assert 2 <= len(ticks) <= 6
        assert (np.array(ticks) > low).all()
        assert (np.array(ticks) < high).all()


@pytest.mark.parametrize("name", BUILT_IN_NAMES)
def test_metres_are_as_long_on_every_side(name, drawn):
    draw_event(event_in(name), built_in_detector(name), "")
    limits = np.array([drawn[0].get_xlim(), drawn[0].get_ylim(), drawn[0].get_zlim()])
    per_metre = np.asarray(drawn[0]._box_aspect) / np.ptp(limits, axis=1)
    np.testing.assert_allclose(per_metre, per_metre[0], rtol=1e-6)


def test_direction_is_cut_where_it_leaves_the_frame():
    half, middle = np.array([10.0, 20.0, 30.0]), np.array([100.0, 0.0, -2_000.0])
    anchor = middle + np.array([1.0, -2.0, 3.0])
    start, stop = event_display._within(anchor, -TRAVEL, middle, half)
    np.testing.assert_allclose(np.max(np.abs(start - middle) / half), 1.0)
    np.testing.assert_allclose(np.max(np.abs(stop - middle) / half), 1.0)
    np.testing.assert_allclose((stop - start) / np.linalg.norm(stop - start), TRAVEL)
    upward = event_display._within(anchor, np.array([0.0, 0.0, -1.0]), middle, half)
    np.testing.assert_allclose(upward[0][2], -2_030.0)
    np.testing.assert_allclose(upward[1][2], -1_970.0)


def test_picture_of_the_largest_detector_is_a_png():
    png = draw_event(event_in("flower-xl"), built_in_detector("flower-xl"), "Typical")
    assert png.startswith(b"\x89PNG")


def test_one_early_and_one_late_stray_leave_the_colours_to_the_others(drawn):
    event = event_in("hexagon")
    n = len(event.first_time_ns)
    assert n > 25
    times = np.linspace(5_000.0, 6_000.0, 200)
    times[[1, -1]] = 0.0, 90_000.0
    places = np.resize(event.xyz_m, (200, 3))
    many = replace(
        event,
        xyz_m=places,
        first_time_ns=times,
        charge_pe=np.ones(200),
        triggering=np.ones(200, bool),
    )
    draw_event(many, built_in_detector("hexagon"), "")
    coloured = [points for points in drawn[0].collections if points.get_array() is not None]
    low, high = coloured[-1].get_clim()
    assert 5_000 <= low < 5_100
    assert 5_900 < high <= 6_000


@pytest.mark.parametrize(("name", "most"), [("triangle", 2), ("cluster", 2), ("hexagon", 6)])
def test_a_slender_side_has_two_numbers(name, most, drawn):
    draw_event(event_in(name), built_in_detector(name), "")
    assert len(drawn[0].get_xticks()) <= most
    assert len(drawn[0].get_yticks()) <= most
    assert len(drawn[0].get_zticks()) >= 3


def test_many_sensors_are_drawn_fainter(drawn):
    for name in ("flower-l", "flower-xl"):
        draw_event(event_in(name), built_in_detector(name), "")
    few, many = (axes.collections[0].get_alpha() for axes in drawn)
    assert few == 0.3
    assert 0.1 < many < 0.2
