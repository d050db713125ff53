import numpy as np

from iceaggr.events.simulation.photons import Photons
from iceaggr.events.simulation.pulses import form_pulses, quantised
from iceaggr.events.simulation.sensors import live_sensors


def photons(*hits: tuple[int, int, float, float]) -> Photons:
    event, sensor, time, pe = (np.array(column) for column in zip(*hits, strict=True))
    return Photons(event, sensor, time.astype(float), pe.astype(float))


def pulses(*hits: tuple[int, int, float, float]):
    return form_pulses(photons(*hits), np.random.default_rng(0))


def test_coincidence_matches_a_search_over_all_pairs():
    rng = np.random.default_rng(8)
    n = 3_000
    hits = Photons(
        rng.integers(0, 4, n), rng.integers(0, 300, n), rng.uniform(0, 60_000, n), np.full(n, 50.0)
    )
    found = form_pulses(hits, np.random.default_rng(0))
    sensor_id = live_sensors().sensor_id
    expected = np.zeros(len(found.time_ns), dtype=bool)
    # hits are merged within nanoseconds only, so the photons stand for the pulses of other DOMs
    for k in range(len(expected)):
        if not found.first_hlc[k]:
            continue
        gap = np.abs(sensor_id[hits.sensor] - sensor_id[found.sensor[k]])
        same_string = sensor_id[hits.sensor] // 60 == sensor_id[found.sensor[k]] // 60
        close = (hits.event == found.event[k]) & same_string & (gap >= 1) & (gap <= 2)
        expected[k] = (np.abs(hits.time_ns - found.time_ns[k])[close] <= 1_000.1).any()
    assert expected.sum() > 100
    np.testing.assert_array_equal(expected, found.first_hlc)


def test_isolated_hits_are_not_coincident_and_neighbours_are():
    rows = pulses((0, 10, 0, 9), (0, 12, 900, 9), (0, 40, 0, 9), (1, 11, 0, 9), (0, 43, 0, 9))
    places = zip(rows.event.tolist(), rows.sensor.tolist(), strict=True)
    found = dict(zip(places, rows.hlc, strict=True))
    assert found[0, 10]
    assert found[0, 12]
    assert not found[0, 40]
    assert not found[0, 43]
    assert not found[1, 11]


def test_neighbour_a_microsecond_late_is_no_coincidence():
    assert not pulses((0, 10, 0, 9), (0, 11, 1_200, 9)).hlc.any()


def test_coincident_readout_keeps_later_light_for_6400_ns():
    rows = pulses((0, 10, 0, 9), (0, 11, 50, 9), (0, 10, 5_000, 9), (0, 10, 9_000, 9))
    first_sensor = rows.sensor == 10
    assert rows.hlc[first_sensor].tolist() == [True, True, False]


def test_near_photons_become_one_pulse_with_their_charge():
    rows = pulses((0, 10, 100, 20), (0, 10, 103, 20), (0, 10, 300, 20), (0, 11, 100, 20))
    same = rows.sensor == 10
    assert same.sum() == 2
    assert rows.charge_pe[same][0] > 20
    np.testing.assert_allclose(rows.time_ns[same], [100, 300], atol=0.1)


def test_slc_hit_keeps_only_its_first_samples():
    rows = pulses((0, 10, 100, 9), (0, 10, 150, 9), (0, 10, 600, 9))
    assert len(rows.time_ns) == 2
    assert (np.abs(rows.time_ns - [100, 150]) < 40).all()


def test_bright_pulses_saturate():
    rows = pulses((0, 10, 0, 1e6), (0, 11, 0, 100))
    assert 2_000 < rows.charge_pe[0] < 2_800
    np.testing.assert_allclose(rows.charge_pe[1], 82, rtol=0.3)


def test_weak_isolated_hits_stay_below_the_discriminator():
    n = 4_000
    hits = Photons(np.arange(n), np.zeros(n, int), np.zeros(n), np.ones(n))
    share = len(form_pulses(hits, np.random.default_rng(2)).time_ns) / n
    assert 0.8 < share < 0.92


def test_no_photons_give_no_pulses():
    empty = Photons(np.zeros(0, int), np.zeros(0, int), np.zeros(0), np.zeros(0))
    assert len(form_pulses(empty, np.random.default_rng(0)).time_ns) == 0


def test_quantised_charges_stay_within_half_a_step():
    charge = np.array([0.0, 0.04, 1.0, 17.3, 99.99])
    found = quantised(charge)
    np.testing.assert_allclose(found[1:], charge[1:], atol=0.0251)
    assert found[0] == 0.025


def test_quantised_large_charges_keep_eleven_bits():
    charge = np.linspace(200, 2_800, 999)
    found = quantised(charge)
    np.testing.assert_allclose(found, charge, rtol=1 / 2_000)
    assert len(np.unique(np.round(found / charge.max() * 2_048))) < 2_100
