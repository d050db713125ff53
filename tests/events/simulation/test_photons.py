import numpy as np
import pytest

from iceaggr.events.simulation.ice import icecube_site
from iceaggr.events.simulation.pairs import Pairs
from iceaggr.events.simulation.photons import Photons, draw_afterpulses, draw_noise, draw_photons
from iceaggr.events.simulation.pulses import form_pulses


def one_pair(expected_pe: float, xi: float = 1.5, rho: float = 4e-3) -> Pairs:
    def one(value: float) -> np.ndarray:
        return np.array([value])

    row = np.array([0])
    return Pairs(row, row, one(expected_pe), one(1000), one(xi), one(rho), one(50), one(0), one(0))


def test_delays_follow_the_pandel_distribution():
    photons = draw_photons(one_pair(200_000.0), 1_000_000, icecube_site(), np.random.default_rng(1))
    delay = photons.time_ns[photons.pe == 1] - 1000
    # late pulses add 3.5 % of 92.5 ns
    np.testing.assert_allclose(delay.mean(), 1.5 / 4e-3 + 0.035 * 92.5, rtol=0.01)
    np.testing.assert_allclose(delay.std(), np.sqrt(1.5) / 4e-3, rtol=0.02)
    assert (delay > -10).mean() > 0.999


def test_bright_pair_keeps_its_light_in_fewer_photons():
    photons = draw_photons(one_pair(50_000.0), 300, icecube_site(), np.random.default_rng(2))
    assert 200 < len(photons.pe) < 400
    np.testing.assert_allclose(photons.pe.sum(), 50_000, rtol=0.25)


def test_afterpulses_follow_in_microseconds_and_in_number():
    photons = draw_photons(one_pair(100_000.0), 1_000_000, icecube_site(), np.random.default_rng(3))
    after = draw_afterpulses(photons, np.random.default_rng(4))
    np.testing.assert_allclose(len(after.pe) / photons.pe.sum(), 0.06, rtol=0.05)
    np.testing.assert_allclose((after.time_ns - 1000).mean(), 6_400, rtol=0.05)


def test_afterpulses_of_every_ion_come_at_the_measured_times():
    n = 200_000
    zero, row = np.zeros(n), np.zeros(n, int)
    photons = Photons(row, row, zero, np.ones(n), np.zeros(n, bool))
    time = draw_afterpulses(photons, np.random.default_rng(4), by_ion=True).time_ns
    assert len(time) / n == pytest.approx(0.06, rel=0.05)
    # the heaviest ion: 17.4 of 75 parts at 7.8 +- 0.9 us. Source: IceTray PMTResponseSimulator
    late = time[time > 7_000]
    assert len(late) / len(time) == pytest.approx(0.23 * 0.81 + 0.067 * 0.017, abs=0.01)
    # two thirds are over after 3.5 us, long before a full readout ends
    assert (time < 3_500).mean() == pytest.approx(49.6 / 75, abs=0.02)
    assert (np.abs(time - 660) < 60).mean() > 0.05


def test_recorded_dark_hits_have_the_published_rate():
    n_events, window_s = 300, 20e-6
    zero, site = np.zeros(n_events), icecube_site()
    rng = np.random.default_rng(5)
    pulses = form_pulses(draw_noise(zero, zero + window_s * 1e9, site, rng), site, rng)
    inside = (pulses.time_ns >= 0) & (pulses.time_ns <= window_s * 1e9)
    rate = inside.sum() / n_events / window_s / icecube_site().sensors.n_sensors
    assert 500 < rate < 640


def test_dark_hits_come_in_bursts_on_one_sensor():
    n_events = 300
    zero = np.zeros(n_events)
    noise = draw_noise(zero, zero + 20_000, icecube_site(), np.random.default_rng(6))
    key = noise.event * icecube_site().sensors.n_sensors + noise.sensor
    _, count = np.unique(key, return_counts=True)
    # Poisson noise alone would repeat on a sensor in about 1 % of the cases
    assert (count > 1).mean() > 0.1
