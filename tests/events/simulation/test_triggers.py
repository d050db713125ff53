"""Triggers and readout windows on hand-made hits."""

import numpy as np
import pytest

from iceaggr.events.simulation.ice import icecube_site
from iceaggr.events.simulation.pulses import Pulses, form_pulses
from iceaggr.events.simulation.triggers import (
    Windows,
    merged_readouts,
    read_out_all,
    string_windows,
    trigger_windows,
    volume_windows,
)
from tests.events.simulation.test_pulses import photons


def row(string: int, dom: int) -> int:
    """Find the live sensor of a string and a module, both counted from 1."""
    found = np.flatnonzero(icecube_site().sensors.sensor_id == 60 * (string - 1) + dom - 1)
    assert len(found) == 1, f"sensor {string}-{dom} is not live"
    return int(found[0])


def hits(*places: tuple[int, int, float], event: int = 0) -> Pulses:
    """Coincident launches at (string, module, time)."""
    time = np.array([t for _, _, t in places])
    one = np.ones(len(places))
    sensor = np.array([row(string, dom) for string, dom, _ in places])
    mark = np.ones(len(places), bool)
    order = np.argsort(time, kind="stable")
    event_row = np.full(len(places), event)
    return Pulses(event_row, sensor, time, one, mark, mark, ~mark).take(order)


def windows_of(found: Windows) -> list[tuple[float, float]]:
    return list(zip(found.start_ns.tolist(), found.end_ns.tolist(), strict=True))


# far from DeepCore and from each other, so that only the named trigger can fire
STRING = 16


@pytest.mark.parametrize(
    ("doms", "gap_ns", "fires"),
    [
        ((10, 11, 13, 15, 16), 375, True),
        ((10, 11, 13, 15, 16), 376, False),
        ((10, 11, 13, 15, 17), 300, False),
        ((16, 10, 13, 11, 15), 300, True),
        ((10, 11, 12, 13), 100, False),
        ((10, 10, 11, 12, 13), 100, False),
    ],
)
def test_string_trigger_wants_five_of_seven_adjacent_modules_in_1500_ns(doms, gap_ns, fires):
    found = string_windows(hits(*((STRING, dom, k * gap_ns) for k, dom in enumerate(doms))))
    assert (len(found.event) > 0) == fires


def test_string_trigger_does_not_add_up_two_strings():
    places = [(STRING, 10, 0.0), (STRING, 11, 0.0), (STRING, 12, 0.0)]
    assert not len(string_windows(hits(*places, (17, 10, 0.0), (17, 11, 0.0))).event)


@pytest.mark.parametrize(
    ("places", "fires"),
    [
        # 17 m apart: two modules above or below the middle one are within 37.5 m of it
        ([(STRING, dom, 0.0) for dom in (10, 11, 12, 13)], True),
        ([(STRING, dom, 0.0) for dom in (10, 11, 12)], False),
        ([(STRING, dom, 0.0) for dom in (10, 12, 14, 16)], False),
        # the neighbouring string stands about 125 m away, the next but one 250 m
        ([(STRING, 10, 0.0), (STRING, 11, 0.0), (17, 10, 0.0), (17, 11, 0.0)], True),
        ([(STRING, 10, 0.0), (STRING, 11, 0.0), (18, 10, 0.0), (18, 11, 0.0)], False),
        ([(STRING, 10 + k, k * 333.0) for k in range(4)], True),
        ([(STRING, 10 + k, k * 334.0) for k in range(4)], False),
    ],
)
def test_volume_trigger_wants_four_in_the_cylinder_in_one_microsecond(places, fires):
    assert (len(volume_windows(hits(*places)).event) > 0) == fires


def test_volume_trigger_reaches_175_m_and_no_farther():
    """Source: arXiv:1612.05093, trigger table; strings stand 125 and 216 m apart, a few between."""
    sensors = icecube_site().sensors
    # the two modules of each string that are nearest to one depth
    pair_of = [
        np.flatnonzero(sensors.string == string)[
            np.argsort(np.abs(sensors.xyz_m[sensors.string == string, 2] + 250.0))[:2]
        ]
        for string in np.unique(sensors.string)
    ]
    checked = set()
    for k, first in enumerate(pair_of):
        for second in pair_of[k + 1 :]:
            four = np.concatenate([first, second])
            way = sensors.xyz_m[first][:, None] - sensors.xyz_m[second]
            apart = np.hypot(way[..., 0], way[..., 1])
            if apart.max() < 150 or apart.min() > 200 or np.abs(way[..., 2]).max() > 35:
                continue
            one = np.ones(4)
            mark = one > 0
            given = Pulses(np.zeros(4, int), four, 0 * one, one, mark, mark, ~mark)
            fires = len(volume_windows(given).event) > 0
            assert fires == (apart.max() < 175), apart
            checked.add(bool(fires))
    assert checked == {True, False}


def test_volume_trigger_agrees_with_a_search_over_all_pairs():
    rng = np.random.default_rng(3)
    xyz_m = icecube_site().sensors.xyz_m
    near = np.flatnonzero(np.linalg.norm(xyz_m - xyz_m[row(STRING, 30)], axis=1) < 200)
    n_fired = 0
    for _ in range(60):
        n = 16
        sensor, time = rng.choice(near, n), np.sort(rng.uniform(0, 2_500, n))
        one = np.ones(n)
        given = Pulses(np.zeros(n, int), sensor, time, one, one > 0, one > 0, one < 0)
        way = xyz_m[sensor][:, None] - xyz_m[sensor]
        inside = (np.hypot(way[..., 0], way[..., 1]) < 175) & (np.abs(way[..., 2]) < 37.5)
        expected = any(
            (inside[c] & (time >= begin) & (time <= begin + 1_000)).sum() >= 4
            for c in range(n)
            for begin in time
            if begin <= time[c] <= begin + 1_000
        )
        assert (len(volume_windows(given).event) > 0) == expected
        n_fired += expected
    assert 10 < n_fired < 55


@pytest.mark.parametrize(
    ("string", "dom", "in_deepcore"),
    [(85, 11, True), (85, 10, False), (36, 39, True), (36, 38, False), (STRING, 50, False)],
)
def test_deepcore_triggers_on_three_of_its_modules(string, dom, in_deepcore):
    # 1250 ns apart and on strings of their own, no other trigger can fire
    others = (81, 84) if in_deepcore or string != STRING else (1, 78)
    places = [(string, dom, 0.0), (others[0], 40, 1_250.0), (others[1], 60, 2_500.0)]
    assert (len(trigger_windows(hits(*places)).event) > 0) == in_deepcore
    late = [(string, dom, 0.0), (others[0], 40, 1_250.0), (others[1], 60, 2_501.0)]
    assert not len(trigger_windows(hits(*late)).event)


def test_eight_hits_anywhere_trigger_and_extend_over_gaps_of_five_microseconds():
    strings = (1, 6, 13, 20, 30, 40, 50, 59)
    places = [(string, 5, 700.0 * k) for k, string in enumerate(strings)]
    assert windows_of(trigger_windows(hits(*places))) == [(0, 4_900)]
    later = [*places, (70, 5, 9_900.0), (74, 5, 14_901.0)]
    assert windows_of(trigger_windows(hits(*later))) == [(0, 9_900)]
    assert not len(trigger_windows(hits(*places[1:])).event)


def test_readouts_that_overlap_are_one_and_events_stay_apart():
    windows = Windows(
        np.array([0, 0, 0, 1]), np.array([0.0, 9_000, 30_000, 100]), np.array([500.0, 9_100, 0, 0])
    )
    windows.end_ns[2:] = windows.start_ns[2:] + 50
    found = merged_readouts(windows)
    assert found.event.tolist() == [0, 0, 1]
    assert windows_of(found) == [(-4_000, 15_100), (26_000, 36_050), (-3_900, 6_150)]


def test_one_of_two_distant_readouts_is_kept_on_the_clock_of_the_first():
    doms = (10, 11, 12, 13)
    both = hits(*((STRING, dom, t) for t in (0.0, 30_000.0) for dom in doms))
    firsts = []
    for seed in range(40):
        kept = read_out_all(both, 1, np.random.default_rng(seed))
        assert len(kept.time_ns) == 4
        firsts.append(kept.time_ns[0])
    late = np.array(firsts) > 20_000
    assert 8 < late.sum() < 32
    assert np.abs(np.array(firsts)[~late] - 9_855).max() <= 141
    assert np.abs(np.array(firsts)[late] - 39_855).max() <= 141


def launched(*given: tuple[int, int, float, float]):
    return form_pulses(photons(*given), icecube_site(), np.random.default_rng(0), launches=True)


def test_a_launch_in_coincidence_is_read_for_6400_ns_and_no_longer():
    a, b = row(STRING, 10), row(STRING, 11)
    # the neighbour's second pulse does not renew the readout of the first launch
    late = [(0, a, t, 9) for t in (3_000.0, 6_390.0, 6_500.0)]
    found = launched((0, a, 0, 9), (0, b, 500, 9), (0, b, 3_100, 9), *late)
    of_a = found.take(found.sensor == a)
    read = of_a.time_ns[of_a.hlc]
    assert read.tolist() == [0, 3_000, 6_390]
    assert of_a.first_hlc.sum() == 1
    # what comes after is a launch of its own; nothing of the neighbour launches then
    assert not of_a.hlc[of_a.time_ns > 6_420].any()


def test_a_launch_without_coincidence_keeps_75_ns_and_is_busy_for_1300():
    a = row(STRING, 10)
    found = launched(*((0, a, t, 9.0) for t in (0, 60, 200, 1_250, 1_400)))
    assert not found.hlc.any()
    np.testing.assert_allclose(np.sort(found.time_ns), [0, 60, 1_400], atol=40)


def test_launches_agree_with_a_walk_along_one_module():
    rng = np.random.default_rng(5)
    a = row(STRING, 10)
    time = np.sort(rng.uniform(0, 30_000, 60))
    found = launched(*((0, a, t, 9.0) for t in time))
    free, expected = -1.0, 0
    start = 0.0
    last = -1e9
    for t in time:
        # photons of one 10 ns cell are one pulse
        if t > free:
            start, free = t, t + 1_300
        if t - start <= 75 and t - last > 10:
            expected += 1
        last = t
    assert abs(len(found.time_ns) - expected) <= 2
