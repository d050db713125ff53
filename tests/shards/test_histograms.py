import numpy as np
import pytest

from iceaggr.shards import histograms
from iceaggr.shards.histograms import EventWeights, distinct_numbers, distinct_pulses


def events_of(n_events, seed=0):
    rng = np.random.default_rng(seed)
    weights = EventWeights(rng.integers(0, 200, n_events))
    return weights, rng, int(weights.n_pulses.sum())


def distinct_times(times, weights):
    return distinct_pulses(times, np.ones(len(times)), weights)[0]


def distinct_charges(charge, weights):
    return distinct_pulses(np.zeros(len(charge), np.int64), charge, weights)[1]


def assert_sums(found, values, weights):
    expected = np.unique(values)
    np.testing.assert_array_equal(found[0], expected)
    sums = [weights[values == value].sum() for value in expected]
    np.testing.assert_allclose(found[1], sums, rtol=1e-13)


@pytest.mark.parametrize("n_per_pass", [1, 50, 5000, 1 << 20])
def test_event_weights_in_passes_are_all_weights_in_order(monkeypatch, n_per_pass):
    monkeypatch.setattr(histograms, "N_PULSES_PER_PASS", n_per_pass)
    weights, _, n_pulses = events_of(100)
    rows, parts = zip(*weights.passes(), strict=True)
    assert [part.start for part in rows] == [0, *(part.stop for part in rows[:-1])]
    assert rows[-1].stop == n_pulses
    np.testing.assert_array_equal(np.concatenate(parts), weights.all())
    assert weights.all().sum() == pytest.approx(np.count_nonzero(weights.n_pulses), rel=1e-12)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_distinct_charges_sums_the_weight_of_each(monkeypatch, dtype):
    monkeypatch.setattr(histograms, "N_PULSES_PER_PASS", 1000)
    weights, rng, n = events_of(100)
    charge = (0.025 + 0.05 * np.floor(rng.lognormal(0, 1, n) * 20)).astype(dtype)
    found = distinct_charges(charge, weights)
    assert found is not None
    assert found[0].dtype == dtype
    assert_sums(found, charge, weights.all())


@pytest.mark.parametrize("odd", [0.0, -1.0, np.nan, np.inf, 1e9, 1.0251, 1.0499])
def test_distinct_charges_gives_up_when_one_charge_does_not_fit(monkeypatch, odd):
    monkeypatch.setattr(histograms, "N_PULSES_PER_PASS", 1000)
    weights, _, n = events_of(100)
    for row in (0, n // 2, n - 1):
        charge = np.tile([1.025, 0.975], n)[:n]
        charge[row] = odd
        assert distinct_charges(charge, weights) is None


def test_distinct_charges_gives_up_on_charges_that_are_not_digitised():
    weights, rng, n = events_of(50)
    assert distinct_charges(rng.lognormal(0, 1, n), weights) is None
    assert distinct_charges(np.zeros(0), EventWeights(np.zeros(0, np.int64))) is None


def test_distinct_times_sums_the_weight_of_each(monkeypatch):
    monkeypatch.setattr(histograms, "N_PULSES_PER_PASS", 1000)
    weights, rng, n = events_of(100)
    times = rng.integers(0, n // 3, n)
    found = distinct_times(times, weights)
    assert found is not None
    assert_sums(found, times, weights.all())


@pytest.mark.parametrize("odd", [-1, 10**12])
def test_distinct_times_gives_up_when_a_table_would_not_do(odd):
    weights, _, n = events_of(10)
    times = np.arange(n)
    times[n // 2] = odd
    assert distinct_times(times, weights) is None


def test_distinct_numbers_sums_flags_and_leaves_wide_ranges():
    weights = np.array([0.5, 0.25, 0.25, 1.0])
    found, total = distinct_numbers(np.array([True, False, True, True]), weights)
    assert (found.tolist(), total.tolist()) == ([0, 1], [0.25, 1.75])
    wide = np.array([3, 1, 4, 1])
    values, same = distinct_numbers(wide, weights)
    assert values is wide
    assert same is weights


@pytest.mark.parametrize("share_of_least", [0.0, 0.4, 0.6, 1.0])
def test_distinct_numbers_sums_the_least_one_however_many_there_are(share_of_least):
    rng = np.random.default_rng(0)
    numbers = np.where(rng.random(1000) < share_of_least, 1, rng.integers(1, 40, 1000))
    weights = rng.random(1000)
    assert_sums(distinct_numbers(numbers, weights), numbers, weights)
