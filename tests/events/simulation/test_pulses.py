import numpy as np

from iceaggr.events.simulation.ice import icecube_site
from iceaggr.events.simulation.photons import Photons
from iceaggr.events.simulation.pulses import Pulses, form_pulses, quantised
from iceaggr.events.simulation.triggers import read_out, trigger_times


def photons(*hits: tuple[int, int, float, float]) -> Photons:
    event, sensor, time, pe = (np.array(column) for column in zip(*hits, strict=True))
    return Photons(event, sensor, time.astype(float), pe.astype(float), np.zeros(len(event), bool))


def pulses(*hits: tuple[int, int, float, float]):
    return form_pulses(photons(*hits), icecube_site(), np.random.default_rng(0))


def test_coincidence_matches_a_search_over_all_pairs():
    rng = np.random.default_rng(8)
    n = 3_000
    hits = Photons(
        rng.integers(0, 4, n),
        rng.integers(0, 300, n),
        rng.uniform(0, 60_000, n),
        np.full(n, 50.0),
        np.zeros(n, bool),
    )
    found = form_pulses(hits, icecube_site(), np.random.default_rng(0))
    sensor_id = icecube_site().sensors.sensor_id
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
    hits = Photons(np.arange(n), np.zeros(n, int), np.zeros(n), np.ones(n), np.zeros(n, bool))
    share = len(form_pulses(hits, icecube_site(), np.random.default_rng(2)).time_ns) / n
    assert 0.8 < share < 0.92


def test_no_photons_give_no_pulses():
    empty = Photons(np.zeros(0, int), np.zeros(0, int), np.zeros(0), np.zeros(0), np.zeros(0, bool))
    for launches in (False, True):
        found = form_pulses(empty, icecube_site(), np.random.default_rng(0), launches)
        assert len(found.time_ns) == 0


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


def hits(times: list[list[float]], extra: list[list[float]] | None = None) -> Pulses:
    """Coincident first hits of each event, and further hits outside any coincidence."""
    extra = extra or [[] for _ in times]
    event = [k for k, group in enumerate(times) for _ in group]
    event += [k for k, group in enumerate(extra) for _ in group]
    time = np.array([t for group in [*times, *extra] for t in group], dtype=float)
    n_coincident = sum(len(group) for group in times)
    coincident = np.arange(len(time)) < n_coincident
    sensor = np.arange(len(time))
    return Pulses(
        np.array(event), sensor, time, np.ones(len(time)), coincident, coincident, ~coincident
    )


def evenly(n: int, step: float, start: float = 0.0) -> list[float]:
    return [start + k * step for k in range(n)]


def test_eight_coincident_hits_within_five_microseconds_trigger():
    first, last = trigger_times(
        hits([evenly(8, 714), evenly(7, 10), evenly(8, 715)]), 3, icecube_site()
    )
    assert first.tolist() == [0, np.inf, np.inf]
    assert last.tolist() == [7 * 714, -np.inf, -np.inf]


def test_hits_of_different_events_do_not_add_up():
    first, _ = trigger_times(hits([evenly(5, 10), evenly(5, 10)]), 2, icecube_site())
    assert not np.isfinite(first).any()


def test_trigger_extends_while_hits_go_on():
    first, last = trigger_times(hits([evenly(30, 600, start=50)]), 1, icecube_site())
    assert first[0] == 50
    assert last[0] == 50 + 29 * 600


def test_readout_spans_four_before_to_six_after():
    coincident, lone = evenly(8, 100), [-4_100.0, -500.0, 6_500.0, 6_800.0]
    clocks = []
    for seed in range(30):
        kept = read_out(hits([coincident], [lone]), 1, icecube_site(), np.random.default_rng(seed))
        trigger = kept.time_ns[kept.hlc][0]
        clocks.append(trigger)
        relative = (kept.time_ns - trigger).tolist()
        assert -4_100 not in relative
        assert 6_500 in relative
        assert 6_800 not in relative
        assert kept.n_outside[0] == len(lone) + 8 - len(relative)
    near = [clock for clock in clocks if 9_715 <= clock <= 9_995]
    assert len(near) >= 24
    assert min(clocks) >= 9_715


def test_pulses_come_out_sorted_by_time():
    kept = read_out(
        hits([evenly(8, 100)], [[350.0, 20.0]]), 1, icecube_site(), np.random.default_rng(0)
    )
    assert (np.diff(kept.time_ns) >= 0).all()


def test_events_without_trigger_leave_nothing():
    kept = read_out(
        hits([evenly(8, 10), evenly(3, 10)]), 2, icecube_site(), np.random.default_rng(0)
    )
    assert kept.triggered.tolist() == [0]
    assert (kept.event == 0).all()


def test_few_events_are_late_parts_of_longer_readouts():
    rng = np.random.default_rng(1)
    kept = read_out(hits([evenly(8, 10)] * 4_000), 4_000, icecube_site(), rng)
    first = kept.time_ns[::8]
    late = (first > 11_000).mean()
    assert 0.015 < late < 0.04
