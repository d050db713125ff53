"""Bootstrap intervals against theory and against plain resampling."""

import math
from functools import partial

import numpy as np
import pytest

from iceaggr.errors import EvaluationError
from iceaggr.evaluation.bootstrap import (
    N_GROUPS,
    STATISTICS,
    estimate_angles,
    estimate_mean,
    estimate_median,
    estimate_share,
)


def angles(n_events: int, seed: int = 0) -> np.ndarray:
    return np.rad2deg(np.arccos(np.random.default_rng(seed).uniform(-1, 1, n_events)))


def plain_bootstrap(values: np.ndarray, statistic, n_samples: int = 2000) -> np.ndarray:
    rng = np.random.default_rng(1)
    return np.array([statistic(rng.choice(values, len(values))) for _ in range(n_samples)])


@pytest.mark.parametrize(
    ("name", "statistic"),
    [
        ("mean", np.mean),
        ("median", np.median),
        ("p68", partial(np.quantile, q=0.68)),
        ("p90", partial(np.quantile, q=0.9)),
        ("share_above_90", lambda x: np.mean(x > 90)),
    ],
)
def test_estimate_agrees_with_plain_resampling(name, statistic):
    values = angles(2000)
    found = estimate_angles(values, 4000, 0.9, np.random.default_rng(2))[name]
    samples = plain_bootstrap(values, statistic)
    assert found.value == pytest.approx(statistic(values))
    assert found.error == pytest.approx(samples.std(), rel=0.1)
    low, high = np.quantile(samples, [0.05, 0.95])
    assert found.low == pytest.approx(low, abs=0.25 * samples.std())
    assert found.high == pytest.approx(high, abs=0.25 * samples.std())


def test_mean_interval_has_the_width_of_the_standard_error_when_grouped():
    values = angles(20 * N_GROUPS)
    found = estimate_mean(values, 2000, 0.95, np.random.default_rng(0))
    assert found.error == pytest.approx(values.std(ddof=1) / math.sqrt(len(values)))
    assert (found.high - found.low) / (2 * 1.96 * found.error) == pytest.approx(1.0, abs=0.06)


def test_interval_covers_the_true_mean_as_often_as_it_says():
    n_tries, covered = 150, 0
    for seed in range(n_tries):
        found = estimate_mean(angles(150, seed), 300, 0.8, np.random.default_rng(seed))
        covered += found.low <= 90.0 <= found.high
    assert covered / n_tries == pytest.approx(0.8, abs=0.1)


def test_estimates_have_no_error_when_there_is_one_event():
    found = estimate_angles(np.array([12.0]), 100, 0.95, np.random.default_rng(0))
    assert set(found) == set(STATISTICS)
    assert found["median"].value == 12.0
    assert all(math.isnan(estimate.error) for estimate in found.values())


def test_share_of_none_may_still_be_larger_than_none():
    found = estimate_angles(angles(50) / 180, 100, 0.95, np.random.default_rng(0))["share_above_90"]
    z = 1.959964
    assert (found.value, found.low) == (0.0, 0.0)
    assert found.high == pytest.approx(z**2 / (50 + z**2), rel=1e-5)
    assert found.error == pytest.approx(0.5 / 51, rel=1e-3)


def test_share_interval_is_wilsons():
    # 8 of 20 at 95 %: solve (p - 0.4)^2 = z^2 p (1 - p) / 20 for p
    found = estimate_share(8, 20, 0.95)
    z2 = 1.959964**2
    for edge in (found.low, found.high):
        assert (edge - 0.4) ** 2 == pytest.approx(z2 * edge * (1 - edge) / 20, rel=1e-4)
    assert found.low < 0.4 < found.high


def test_share_error_is_the_binomial_one_when_the_sample_is_large():
    found = estimate_share(30_000, 100_000, 0.9)
    assert found.error == pytest.approx(math.sqrt(0.3 * 0.7 / 100_000), rel=1e-3)


def test_share_refuses_no_events():
    with pytest.raises(EvaluationError, match="no event to score"):
        estimate_share(0, 0, 0.9)


def test_median_is_that_of_the_angles():
    values = angles(500)
    whole = estimate_angles(values, 3000, 0.9, np.random.default_rng(1))["median"]
    found = estimate_median(values, 3000, 0.9, np.random.default_rng(2))
    assert found.value == whole.value
    assert found.error == pytest.approx(whole.error, rel=0.1)
    assert math.isnan(estimate_median(values[:1], 10, 0.9, np.random.default_rng(0)).error)


def test_estimates_are_equal_for_equal_seeds():
    first, second = (
        estimate_angles(angles(99), 200, 0.95, np.random.default_rng(7)) for _ in range(2)
    )
    assert first == second


def test_estimate_refuses_values_that_are_not_finite():
    with pytest.raises(EvaluationError, match=r"not finite \[opening angles\]: found 1 of 3"):
        estimate_angles(np.array([1.0, np.nan, 2.0]), 100, 0.95, np.random.default_rng(0))


def test_estimate_refuses_no_events():
    with pytest.raises(EvaluationError, match="no event to score"):
        estimate_mean(np.array([]), 100, 0.95, np.random.default_rng(0))
