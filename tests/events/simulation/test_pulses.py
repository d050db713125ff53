import numpy as np
import pytest
from scipy.stats import expon, kstest, norm

from iceaggr.events.simulation.ice import icecube_site
from iceaggr.events.simulation.photons import Photons
from iceaggr.events.simulation.pulses import Pulses, form_pulses, quantised
from iceaggr.events.simulation.triggers import read_out, trigger_times
from tests.events.simulation.conftest import LEVEL, near_share


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


def late_in_a_readout(n: int, pe: float, seed: int) -> np.ndarray:
    """Charges of n packets of light, each 3 us after the launch of a coincident readout."""
    k = np.arange(n)
    event, sensor = np.tile(k, 3), np.repeat([10, 11, 10], n)
    time, light = np.repeat([0.0, 50.0, 3_000.0], n), np.repeat([50.0, 50.0, pe], n)
    hits = Photons(event, sensor, time, light, np.zeros(3 * n, bool))
    found = form_pulses(hits, icecube_site(), np.random.default_rng(seed))
    charge = found.charge_pe[found.time_ns > 2_000]
    assert len(charge) == n
    return charge


def charge_below(pe: np.ndarray) -> np.ndarray:
    """30 % of single photo-electrons have an exponential charge, the rest a Gaussian about 1.

    Source: arXiv:1612.05093, PMT section, with scales of 0.4 and 0.3 p.e.
    """
    return 0.3 * expon(scale=0.4).cdf(pe) + 0.7 * norm(1.0, 0.3).cdf(pe)


def test_single_photo_electrons_have_the_closed_form_of_their_charge():
    charge = late_in_a_readout(20_000, 1.0, 3)
    # one photo-electron hardly saturates
    assert kstest(charge / (1 - charge / 2_800), charge_below).pvalue > LEVEL


def test_packets_of_light_have_the_mean_charge_of_their_photo_electrons():
    n, pe = 20_000, 400.0
    charge = late_in_a_readout(n, pe, 4)
    linear = charge / (1 - charge / 2_800)
    mean = 0.3 * 0.4 + 0.7
    assert linear.mean() == pytest.approx(mean * pe, abs=4 * linear.std() / np.sqrt(n))
    # one by one they would spread by 0.53 / sqrt(pe)
    spread = linear.std() / linear.mean() * np.sqrt(pe)
    assert spread == pytest.approx(0.45, abs=4 * 0.45 / np.sqrt(2 * n))


@pytest.mark.parametrize("pe", [700.0, 2_800 / 0.82, 1e5, 1e7])
def test_bright_pulses_saturate_below_the_largest_published_charge(pe):
    """Half of the light is lost at 2,800 p.e., and no charge is above.

    The largest of the public set is 2762 p.e. (its description); saturation leaves room for it.
    """
    n = 400
    charge = late_in_a_readout(n, pe, 5)
    light = 0.82 * pe
    expected = light / (1 + light / 2_800)
    error = 4 * 0.45 / np.sqrt(pe) / np.sqrt(n) * expected
    assert charge.mean() == pytest.approx(expected, abs=error + 1e-6 * expected)
    assert charge.max() < 2_800
    assert pe < 1e7 or charge.min() > 2_762


def test_weak_isolated_hits_stay_below_the_discriminator():
    """A quarter of a photo-electron launches a module. Source: arXiv:1612.05093."""
    n = 20_000
    hits = Photons(np.arange(n), np.zeros(n, int), np.zeros(n), np.ones(n), np.zeros(n, bool))
    found = form_pulses(hits, icecube_site(), np.random.default_rng(2))
    assert len(found.time_ns) / n == near_share(1 - charge_below(0.25), n)


def test_digitisers_part_light_by_10_ns_and_after_420_by_50():
    # a photon every nanosecond: a pulse for each sample of the fast one, then of the slow one
    hits = [(0, 10, float(k), 9.0) for k in range(1_020)]
    found = pulses((0, 11, 0, 9), *hits)
    time = found.time_ns[found.sensor == 10]
    expected = np.append(np.arange(0, 420, 10), np.arange(420, 1_020, 50))
    np.testing.assert_allclose(time, expected, atol=0.1)


def test_hits_without_coincidence_are_blurred():
    """By 8 ns and 10 % in charge: three samples of 25 ns hold no more."""
    n = 5_000
    k = np.arange(n)
    hits = Photons(k, np.zeros(n, int), np.zeros(n), np.full(n, 1e8), np.zeros(n, bool))
    found = form_pulses(hits, icecube_site(), np.random.default_rng(6))
    assert kstest(found.time_ns / 8, "norm").pvalue > LEVEL
    assert kstest(np.log(found.charge_pe / 2_800) / 0.1, "norm").pvalue > LEVEL


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


def test_trigger_stands_at_its_place_on_the_clock():
    """9,855 +- 50 ns, at most 140 from it: where the published first-pulse quartiles put it."""
    n = 20_000
    kept = read_out(hits([evenly(8, 10)] * n), n, icecube_site(), np.random.default_rng(2))
    first = kept.time_ns[::8]
    share = norm(9_855, 50)
    # whole nanoseconds, the unit of the files
    even = first + np.random.default_rng(0).uniform(-0.5, 0.5, n)
    low, high = share.cdf([9_855 - 138.5, 9_855 + 138.5])
    inside = np.abs(even - 9_855) < 138.5
    below = (share.cdf(even[inside]) - low) / (high - low)
    assert kstest(below, "uniform").pvalue > LEVEL
    assert first.min() >= 9_855 - 140


def test_few_events_are_late_parts_of_longer_readouts():
    """3 % come late by an exponential time of 15 us, at most 60: read off the published tail."""
    n = 40_000
    kept = read_out(hits([evenly(8, 10)] * n), n, icecube_site(), np.random.default_rng(1))
    shift = kept.time_ns[::8] - 9_855
    late = shift[shift > 1_000]
    assert len(late) / n == near_share(0.03 * np.exp(-1 / 15), n)
    inside = late[late < 59_000]
    whole = 1 - np.exp(-58 / 15)
    assert kstest((1 - np.exp(-(inside - 1_000) / 15_000)) / whole, "uniform").pvalue > LEVEL
    assert late.max() <= 60_140
