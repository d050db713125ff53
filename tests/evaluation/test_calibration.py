"""Calibration against samples of the von Mises-Fisher distribution and its published figures."""

import numpy as np
import pytest
from scipy import integrate, stats

from iceaggr.errors import EvaluationError
from iceaggr.evaluation.calibration import (
    RAYLEIGH_MEDIAN,
    calibration_gap,
    claimed_width,
    containment_angle,
    coverage,
    expected_pull_density,
    probability_inside,
    pulls,
    risk_coverage,
    width_parts,
)


def sampled_angles(kappa: np.ndarray, seed: int = 0) -> np.ndarray:
    """Draw opening angles by scipy's own sampler around the z axis."""
    rng = np.random.default_rng(seed)
    mean = [0.0, 0.0, 1.0]
    drawn = [stats.vonmises_fisher(mean, k).rvs(1, random_state=rng)[0] for k in kappa]
    return np.arccos(np.clip(np.array(drawn)[:, 2], -1, 1))


@pytest.mark.parametrize("kappa", [1e-12, 1e-3, 0.3, 5.0, 300.0, 1e5])
def test_probability_inside_matches_the_integral_of_the_density(kappa):
    for angle in (0.001, 0.02, 0.7, 2.0, 3.1):
        density = lambda x: np.sin(x) * np.exp(-kappa * (1 - np.cos(x)))  # noqa: E731
        points = sorted({min(angle, 3 / np.sqrt(kappa)), min(angle, 10 / np.sqrt(kappa))})
        inside = integrate.quad(density, 0, angle, points=points, epsabs=0, limit=200)[0]
        norm = -np.expm1(-2 * kappa) / kappa
        found = probability_inside(np.array([angle]), np.array([kappa]))[0]
        assert found == pytest.approx(inside / norm, rel=1e-6)


def test_containment_angle_matches_published_values():
    found = [np.rad2deg(containment_angle(np.array([5.0]), p))[0] for p in (0.5, 0.6827, 0.9)]
    assert found == pytest.approx([30.5, 39.6, 57.3], abs=0.05)
    narrow = containment_angle(np.array([1e6]), 0.9)[0]
    assert narrow == pytest.approx(2.146 / 1e3, rel=1e-3)


@pytest.mark.parametrize("level", [0.1, 0.5, 0.68, 0.99])
def test_containment_angle_inverts_probability_inside(level):
    kappa = np.array([0.0, 1e-6, 0.1, 3.0, 50.0, 1e6])
    angle = containment_angle(kappa, level)
    assert probability_inside(angle, kappa) == pytest.approx(np.full(6, level), rel=1e-6)


def test_coverage_is_nominal_for_calibrated_events():
    kappa = np.random.default_rng(3).uniform(0.5, 60, 3000)
    pit = probability_inside(sampled_angles(kappa), kappa)
    assert stats.kstest(pit, "uniform").pvalue > 0.01
    for found in coverage(pit):
        assert abs(found.share - found.level) < 4 * found.error
    assert calibration_gap(pit) < 0.03


def test_coverage_falls_short_when_kappa_is_too_large():
    kappa = np.full(2000, 10.0)
    pit = probability_inside(sampled_angles(kappa), 3 * kappa)
    assert all(found.share < found.level - 5 * found.error for found in coverage(pit))
    assert calibration_gap(pit) > 0.15


def test_pull_median_is_rayleigh_for_narrow_errors():
    kappa = np.full(4000, 400.0)
    found = np.median(pulls(sampled_angles(kappa), kappa))
    assert found == pytest.approx(RAYLEIGH_MEDIAN, abs=0.05)


def test_risk_coverage_keeps_the_most_confident_events_first():
    angle = np.arange(100.0)
    curve = risk_coverage(angle, 100.0 - angle, n_points=10)
    _, mean_deg, _ = curve.mean_deg
    assert np.all(np.diff(mean_deg) > 0)
    assert curve.kept_share[-1] == 1.0
    assert mean_deg[-1] == pytest.approx(angle.mean())
    assert curve.median_deg[1, 0] == pytest.approx(np.median(angle[:10]))


def test_risk_coverage_errors_are_those_of_repeated_samples():
    rng = np.random.default_rng(3)
    curves = [risk_coverage(rng.exponential(10.0, 400), np.ones(400), 1) for _ in range(300)]
    for name in ("mean_deg", "median_deg", "p90_deg"):
        low, value, high = np.array([getattr(curve, name)[:, -1] for curve in curves]).T
        assert ((high - low) / 2).mean() == pytest.approx(value.std(), rel=0.12)


def test_expected_pulls_are_those_of_calibrated_events_narrow_and_wide():
    kappa = np.repeat([0.3, 3.0, 300.0], 20_000)
    edges = np.linspace(0.0, 4.0, 9)
    counts, _ = np.histogram(pulls(sampled_angles(kappa), kappa), bins=edges)
    expected = expected_pull_density(kappa, edges) * len(kappa) * np.diff(edges)
    assert counts == pytest.approx(expected, abs=5 * np.sqrt(expected.max()))
    narrow = expected_pull_density(np.full(10, 1e4), edges)
    rayleigh = np.exp(-(edges[:-1] ** 2) / 2) - np.exp(-(edges[1:] ** 2) / 2)
    assert narrow * np.diff(edges) == pytest.approx(rayleigh, abs=1e-3)


def test_calibration_refuses_negative_kappa():
    with pytest.raises(EvaluationError, match=r"kappa is not a concentration .*: found -1\.0"):
        probability_inside(np.array([0.1, 0.2]), np.array([2.0, -1.0]))


def test_calibration_refuses_different_shapes():
    with pytest.raises(EvaluationError, match="differ in shape"):
        pulls(np.array([0.1, 0.2]), np.array([2.0]))


def test_claimed_width_is_that_of_samples_and_of_the_limits():
    kappa = np.array([0.0, 1e-3, 2.0, 1e6])
    found = claimed_width(kappa)
    np.testing.assert_allclose(found[:2], np.sqrt(0.5 * (1 - kappa[:2] / 3)), rtol=1e-6)
    sampled = np.sin(sampled_angles(np.full(20_000, 2.0)) / 2)
    assert found[2] == pytest.approx(np.sqrt((sampled**2).mean()), rel=0.02)
    assert found[3] == pytest.approx(np.sqrt(0.5 / kappa[3]), rel=1e-4)


def test_width_ratios_tell_which_part_claims_too_much():
    kappa = np.repeat([0.5, 8.0, 200.0], 2000)
    angle = sampled_angles(kappa)
    np.testing.assert_allclose(ratios(angle, kappa, 3), 1.0, atol=0.05)
    # the surest third claims half of its true width
    boastful = np.where(kappa > 100, 4 * kappa, kappa)
    np.testing.assert_allclose(ratios(angle, boastful, 3), [1, 1, 2], atol=0.1)
    assert len(width_parts(angle[:4], kappa[:4])) == 4
    surest = width_parts(angle, boastful, 3)[-1]
    assert (surest.n_events, surest.kappa_low, surest.kappa_high) == (2000, 800, 800)
    # narrow errors: sin(psi / 2) has the root mean square of 1 / sqrt(2 kappa)
    assert surest.claimed_deg == pytest.approx(np.rad2deg(np.sqrt(2 / 800)), rel=1e-3)
    assert surest.found_deg == pytest.approx(np.rad2deg(np.sqrt(2 / 200)), rel=0.05)


def test_error_of_a_width_ratio_is_the_spread_over_samples():
    kappa = np.full(40_000, 30.0)
    angle = containment_angle(kappa, np.random.default_rng(0).random(40_000))
    parts = [width_parts(angle[k::100], kappa[k::100], 1)[0] for k in range(100)]
    spread = np.std([part.ratio for part in parts])
    assert np.mean([part.error for part in parts]) == pytest.approx(spread, rel=0.2)


def ratios(angle: np.ndarray, kappa: np.ndarray, n_parts: int) -> list[float]:
    return [part.ratio for part in width_parts(angle, kappa, n_parts)]
