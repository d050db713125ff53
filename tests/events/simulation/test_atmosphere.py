"""Atmospheric muons against closed forms and published rates."""

import numpy as np
import pytest
from scipy.integrate import quad

from iceaggr.events.simulation.atmosphere import (
    BUNDLE_RADIUS_M,
    MAX_MUONS,
    TOP_DEPTH_KM_WE,
    TOP_Z_M,
    bundle_flux,
    bundle_pairs,
    bundle_rate_hz,
    draw_bundles,
    energy_spectrum,
    multiplicity_index,
    single_flux,
)
from iceaggr.events.simulation.ice import icecube_site
from iceaggr.events.simulation.photons import draw_noise, draw_photons, join
from iceaggr.events.simulation.pulses import form_pulses
from iceaggr.events.simulation.triggers import trigger_times


@pytest.fixture(scope="module")
def drawn():
    return draw_bundles(40_000, 100.0, np.random.default_rng(4))


def test_published_formulas_at_two_kilometres_of_water_equivalent(monkeypatch):
    module = "iceaggr.events.simulation.atmosphere.TOP_DEPTH_KM_WE"
    monkeypatch.setattr(module, 2.0)
    # K = 0.0072 h^-1.927 cos e^(K1 / cos), K1 = -0.581 h + 0.034, by hand
    assert single_flux(np.array([1.0]))[0] == pytest.approx(0.0072 * 0.26297 * 0.32368, rel=1e-4)
    # nu = (-0.0771 h^2 + 0.524 h + 2.068) e^(0.03 e^(0.47 h) / cos)
    assert multiplicity_index(np.array([1.0]))[0] == pytest.approx(2.8076 * 1.07981, rel=1e-4)


def test_rate_is_the_integral_of_the_flux_over_the_sky_and_the_disk():
    def sky(cosine: float) -> float:
        return 2 * np.pi * float(bundle_flux(np.array([cosine]))[0])

    expected = quad(sky, 0.03, 1.0)[0] * np.pi * BUNDLE_RADIUS_M**2
    assert bundle_rate_hz() == pytest.approx(expected, rel=1e-3)


def test_number_of_bundles_is_rate_times_window(drawn):
    expected = bundle_rate_hz() * 100e-6 * 40_000
    assert len(drawn.event) == pytest.approx(expected, abs=4 * np.sqrt(expected))
    assert np.abs(drawn.time_ns).max() <= 50_000
    assert np.abs(drawn.time_ns.mean()) < 500


def test_zeniths_follow_the_flux(drawn):
    edges = np.array([0.03, 0.4, 0.6, 0.75, 0.9, 1.0])
    counts, _ = np.histogram(drawn.origin[:, 2], edges)
    total = quad(lambda c: float(bundle_flux(np.array([c]))[0]), 0.03, 1.0)[0]
    for n, low, high in zip(counts, edges, edges[1:], strict=False):
        share = quad(lambda c: float(bundle_flux(np.array([c]))[0]), low, high)[0] / total
        assert n == pytest.approx(share * len(drawn.event), abs=4 * np.sqrt(share * counts.sum()))


def test_bundles_of_several_muons_are_as_frequent_as_the_power_law_says(drawn):
    n_muons = np.bincount(drawn.bundle)
    assert n_muons.max() <= MAX_MUONS
    m = np.arange(1, MAX_MUONS + 1)
    weights = m[None, :] ** -multiplicity_index(drawn.origin[:, 2])[:, None]
    expected = (1.0 - 1.0 / weights.sum(axis=1)).mean()
    assert (n_muons > 1).mean() == pytest.approx(expected, abs=0.006)


def test_muons_of_a_bundle_are_parallel_and_start_at_the_top(drawn):
    travel = -drawn.origin[drawn.bundle]
    np.testing.assert_allclose((drawn.nearest_m * travel).sum(axis=1), 0, atol=1e-6)
    start = drawn.nearest_m + drawn.start_m[:, None] * travel
    np.testing.assert_allclose(start[:, 2], TOP_Z_M, atol=1e-6)
    axis = np.linalg.norm(drawn.nearest_m, axis=1)
    single = np.bincount(drawn.bundle)[drawn.bundle] == 1
    assert axis[single].max() <= BUNDLE_RADIUS_M
    # even over the disk: half of the area lies within 0.71 of the radius
    assert (axis[single] < BUNDLE_RADIUS_M / np.sqrt(2)).mean() == pytest.approx(0.5, abs=0.01)


def test_energies_have_the_closed_form_median(drawn):
    single = np.bincount(drawn.bundle)[drawn.bundle] == 1
    cosine = drawn.origin[drawn.bundle, 2][single]
    gamma, scale_tev = energy_spectrum(cosine, np.ones(len(cosine), int), np.zeros(len(cosine)))
    median_gev = 1_000 * scale_tev * (2 ** (1 / (gamma - 1)) - 1)
    assert (drawn.energy_gev[single] < median_gev).mean() == pytest.approx(0.5, abs=0.01)
    assert 50 < np.median(drawn.energy_gev) < 300


def test_depth_is_that_of_the_uppermost_sensors():
    assert icecube_site().sensors.xyz_m[:, 2].max() == pytest.approx(TOP_Z_M, abs=26)
    assert pytest.approx(1.448 * 0.917, abs=1e-3) == TOP_DEPTH_KM_WE


def test_muons_alone_trigger_at_the_published_rate():
    """SMT-8 fires at 2100 Hz. Source: arXiv:1612.05093, trigger table."""
    rng = np.random.default_rng(2)
    window_us, n_windows = 40.0, 6_000
    bundles = draw_bundles(n_windows, window_us, rng)
    seen = draw_photons(bundle_pairs(bundles, rng), 300, icecube_site(), rng)
    n = len(bundles.event)
    first, last = np.full(n, 0.0), np.full(n, 0.0)
    np.minimum.at(first, seen.event, seen.time_ns)
    np.maximum.at(last, seen.event, seen.time_ns)
    noise = draw_noise(first, last, icecube_site(), rng)
    pulses = form_pulses(join([seen, noise]), icecube_site(), rng, launches=True)
    fired, _ = trigger_times(pulses, n, icecube_site())
    rate_hz = np.isfinite(fired).sum() / (n_windows * window_us * 1e-6)
    assert rate_hz == pytest.approx(2_100, rel=0.25)
