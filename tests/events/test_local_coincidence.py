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
    assert lone("cluster", (1, 10, 100), (0, 287, MAX_TIME_NS - 1), (1, 11, 100)) == [
        False, True, False,
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
