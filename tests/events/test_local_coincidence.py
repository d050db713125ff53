"""Flags where a source has none: pulses without company on a near sensor are auxiliary."""

import numpy as np
import pytest

from iceaggr.built_in_detectors import built_in_detector
from iceaggr.events.cleaning import COINCIDENCE_NS, MAX_TIME_NS, lone_pulses
from iceaggr.events.simulation import SimulationConfig
from iceaggr.events.simulation.block import simulate_block


def lone(name: str, *pulses: tuple[int, int, float]) -> list[bool]:
    event, sensor, time = (np.array(column) for column in zip(*pulses, strict=True))
    return lone_pulses(event, sensor, time.astype(float), built_in_detector(name)).tolist()


def test_company_is_on_the_next_sensor_or_the_next_but_one():
    # the strings of Cluster have 36 sensors each
    assert lone("cluster", (0, 10, 100), (0, 12, 900)) == [False, False]
    assert lone("cluster", (0, 10, 100), (0, 13, 100)) == [True, True]
    assert lone("cluster", (0, 35, 100), (0, 36, 100)) == [True, True]


def test_sensor_is_no_company_of_its_own():
    assert lone("cluster", (0, 10, 100), (0, 10, 300)) == [True, True]


def test_company_comes_within_a_microsecond_before_or_after():
    times = (5_000.0, 5_000.0 + COINCIDENCE_NS, 5_001.0 - COINCIDENCE_NS)
    for late in times[1:]:
        assert lone("cluster", (0, 10, times[0]), (0, 11, late)) == [False, False]
    assert lone("cluster", (0, 10, 0.0), (0, 11, COINCIDENCE_NS + 1.0)) == [True, True]


def test_pulses_of_other_events_are_no_company():
    assert lone("cluster", (0, 10, 100), (1, 11, 100)) == [True, True]
    assert lone("cluster", (0, 287, MAX_TIME_NS - 1), (1, 10, 100), (1, 11, 100)) == [
        True, False, False,
    ]  # fmt: skip


def test_what_will_be_rejected_accompanies_nothing():
    wrong = ((0, 11, np.nan), (0, 11, -5.0), (0, 11, 1e9), (0, 999, 100.0), (0, -1, 100.0))
    for pulse in wrong:
        assert lone("cluster", (0, 10, 100.0), pulse) == [True, True]
    assert (
        lone_pulses(
            np.zeros(0, int), np.zeros(0, int), np.zeros(0), built_in_detector("cluster")
        ).size
        == 0
    )


@pytest.mark.parametrize("name", ["hexagon", "flower-l", "flower-xl"])
def test_flags_tell_noise_from_light_as_well_as_the_detector_does(name, monkeypatch):
    monkeypatch.setattr("iceaggr.events.simulation.block.N_EVENTS_PER_BLOCK", 60)
    detector = built_in_detector(name)
    config = SimulationConfig(detector=name, min_energy_gev=100, max_energy_gev=1e5)
    events = simulate_block(config, detector, 0)
    event = np.repeat(np.arange(len(events.n_pulses)), events.n_pulses)
    found = lone_pulses(event, events.sensor_id, events.time_ns.astype(float), detector)
    # of 1 kHz, one in a hundred has company by chance, and more beside the light
    assert found[events.dark].mean() > 0.9
    light = ~events.dark & ~events.auxiliary
    # late light that a coincident readout keeps may come alone
    assert found[light].mean() < 0.1


# one after the other; in a crowd of some strings; in crowds everywhere
@pytest.mark.parametrize("span_ns", [20_000, 6_000, 1_500])
@pytest.mark.parametrize("is_bright", [False, True])
def test_events_are_judged_alike_however_many_are_looked_at_together(
    span_ns, is_bright, monkeypatch
):
    rng = np.random.default_rng(3)
    event = np.sort(rng.integers(0, 40, 3_000))
    sensor, time = rng.integers(0, 288, 3_000), rng.uniform(0, span_ns, 3_000)
    if is_bright:
        # sensors with many pulses of their own, which are no company
        sensor[::2] = sensor[::2] // 36 * 36
    together = lone_pulses(event, sensor, time, built_in_detector("cluster"))
    monkeypatch.setattr("iceaggr.events.cleaning._N_PULSES_AT_ONCE", 100)
    np.testing.assert_array_equal(
        lone_pulses(event, sensor, time, built_in_detector("cluster")), together
    )
    assert 0.01 < together.mean() < 0.99
    # against a search over all pairs
    near = (event[:, None] == event) & (np.abs(np.floor(time)[:, None] - np.floor(time)) <= 1_000)
    near &= (sensor[:, None] // 36 == sensor // 36) & (sensor[:, None] != sensor)
    near &= np.abs(sensor[:, None] - sensor) <= 2
    np.testing.assert_array_equal(~near.any(axis=1), together)
