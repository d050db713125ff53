"""Atmospheric muons against closed forms and published rates."""

from dataclasses import replace

import numpy as np
import pytest
from scipy.integrate import quad
from scipy.stats import chi2, chisquare, kstest

from iceaggr.detector import C_M_PER_NS, N_GROUP, icecube86
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
    lateral_spectrum,
    multiplicity_index,
    single_flux,
)
from iceaggr.events.simulation.block import SimulatedEvents, simulate_block
from iceaggr.events.simulation.config import SimulationConfig
from iceaggr.events.simulation.ice import icecube_site
from iceaggr.events.simulation.light import muon_range_m
from iceaggr.events.simulation.photons import draw_noise, draw_photons, join
from iceaggr.events.simulation.pulses import form_pulses
from iceaggr.events.simulation.triggers import (
    launches,
    string_windows,
    trigger_times,
    trigger_windows,
    volume_windows,
)
from tests.events.simulation.conftest import LEVEL


@pytest.fixture(scope="module")
def drawn():
    return draw_bundles(40_000, 100.0, np.random.default_rng(4))


@pytest.fixture(scope="module")
def centred():
    """Bundles whose axes pass the centre: the nearest point is as far as the muon from its axis."""
    bundle_rate_hz()  # of the whole disk, before it shrinks
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("iceaggr.events.simulation.atmosphere.BUNDLE_RADIUS_M", 0.0)
        return draw_bundles(80_000, 100.0, np.random.default_rng(7))


def test_published_formulas_at_two_kilometres_of_water_equivalent(monkeypatch):
    module = "iceaggr.events.simulation.atmosphere.TOP_DEPTH_KM_WE"
    monkeypatch.setattr(module, 2.0)
    # K = 0.0072 h^-1.927 cos e^(K1 / cos), K1 = -0.581 h + 0.034, by hand
    assert single_flux(np.array([1.0]))[0] == pytest.approx(0.0072 * 0.26297 * 0.32368, rel=1e-4)
    # nu = (-0.0771 h^2 + 0.524 h + 2.068) e^(0.03 e^(0.47 h) / cos)
    assert multiplicity_index(np.array([1.0]))[0] == pytest.approx(2.8076 * 1.07981, rel=1e-4)


# Tables of hep-ph/0507228; MUPAGE's Parameters.hh (github.com/giadac/MUPAGE) has the same numbers.


def published_lateral(h: float, theta: np.ndarray, m: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """alpha and mean distance in metres."""
    m = np.minimum(m, 4)
    mean = (-1.786 * m + 28.26) * h**-1.06 / (np.exp(10.4 * (theta - 1.3)) + 1)
    return (-0.448 * m + 4.969) * np.exp((0.0194 * m + 0.276) * h), mean


def published_energy(
    h: float, theta: np.ndarray, m: np.ndarray, r: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """gamma and epsilon (1 - e^(-beta X)) in TeV of muons in bundles of several."""
    m = np.minimum(m, 4)
    b = (0.0407 * m + 0.0283) * h + (-0.312 * m + 6.124)
    gamma = (0.0033 * h + 0.0079) * r + b * (1 - 0.5 * np.exp((0.0543 * h - 0.365) * r))
    epsilon = (-0.069 * h + 0.488) * np.exp(-0.117 * r) * theta
    epsilon += (-0.398 * h + 3.955) * r ** (0.012 * h - 0.35)
    return gamma, epsilon * (1 - np.exp(-0.42 * h / np.cos(theta)))


@pytest.mark.parametrize("depth_km_we", [TOP_DEPTH_KM_WE, 2.0, 4.0])
def test_spectra_of_bundles_are_the_published_ones_at_any_depth(monkeypatch, depth_km_we):
    monkeypatch.setattr("iceaggr.events.simulation.atmosphere.TOP_DEPTH_KM_WE", depth_km_we)
    theta, m, r = (
        values.ravel()
        for values in np.meshgrid([0.0, 0.5, 1.0, 1.4], [2, 3, 4, 9], [0.3, 3.0, 30.0, 90.0])
    )
    found = lateral_spectrum(np.cos(theta), m)
    np.testing.assert_allclose(found, published_lateral(depth_km_we, theta, m), rtol=1e-9)
    found = energy_spectrum(np.cos(theta), m, r)
    np.testing.assert_allclose(found, published_energy(depth_km_we, theta, m, r), rtol=1e-9)
    # gamma = -0.232 ln h + 3.961, epsilon = 0.0304 e^(0.359 h) / cos - 0.0077 h + 0.659
    found = energy_spectrum(np.cos(theta), np.ones_like(m), r)
    epsilon = 0.0304 * np.exp(0.359 * depth_km_we) / np.cos(theta) - 0.0077 * depth_km_we + 0.659
    epsilon *= 1 - np.exp(-0.42 * depth_km_we / np.cos(theta))
    np.testing.assert_allclose(found[0], -0.232 * np.log(depth_km_we) + 3.961, rtol=1e-9)
    np.testing.assert_allclose(found[1], epsilon, rtol=1e-9)


def test_distances_in_a_bundle_follow_the_closed_form_of_their_density(centred):
    n_muons = np.bincount(centred.bundle)[centred.bundle]
    several = n_muons > 1
    r = np.linalg.norm(centred.nearest_m, axis=1)
    assert (r[~several] == 0).all()
    theta = np.arccos(centred.origin[centred.bundle, 2])
    alpha, mean = published_lateral(TOP_DEPTH_KM_WE, theta[several], n_muons[several])
    x = r[several] / (0.5 * (alpha - 3) * mean)
    # the integral of (alpha - 1) (alpha - 2) x / (1 + x)^alpha from 0 to x
    share = 1 - (1 + x) ** (1 - alpha) * (1 + (alpha - 1) * x)
    assert len(share) > 10_000
    assert kstest(share, "uniform").pvalue > LEVEL
    # and evenly around the axis
    along = centred.nearest_m[several] / r[several, None]
    level = np.cross(centred.origin, [0.0, 0.0, 1.0])[centred.bundle][several]
    level /= np.linalg.norm(level, axis=1, keepdims=True)
    cosine = (along * level).sum(axis=1)
    assert kstest(np.arccos(np.clip(cosine, -1, 1)) / np.pi, "uniform").pvalue > LEVEL


def test_energies_in_a_bundle_follow_the_closed_form_of_their_spectrum(centred):
    n_muons = np.bincount(centred.bundle)[centred.bundle]
    several = n_muons > 1
    r = np.maximum(np.linalg.norm(centred.nearest_m[several], axis=1), 0.1)
    theta = np.arccos(centred.origin[centred.bundle, 2])[several]
    gamma, scale_tev = published_energy(TOP_DEPTH_KM_WE, theta, n_muons[several], r)
    above = (1 + centred.energy_gev[several] / 1_000 / scale_tev) ** (1 - gamma)
    assert kstest(above, "uniform").pvalue > LEVEL


def test_rate_is_the_integral_of_the_flux_over_the_sky_and_the_disk():
    def sky(cosine: float) -> float:
        return 2 * np.pi * float(bundle_flux(np.array([cosine]))[0])

    expected = quad(sky, 0.03, 1.0)[0] * np.pi * BUNDLE_RADIUS_M**2
    assert bundle_rate_hz() == pytest.approx(expected, rel=1e-3)


def test_number_of_bundles_is_rate_times_window(drawn):
    expected = bundle_rate_hz() * 100e-6 * 40_000
    assert len(drawn.event) == pytest.approx(expected, abs=4 * np.sqrt(expected))


def test_bundles_are_a_poisson_process_in_the_window_around_the_neutrino(drawn):
    """Source: IceTray polyplopia, PoissonMerger."""
    n_events = 40_000
    n = np.bincount(drawn.event, minlength=n_events)
    # Fisher's index of dispersion: the variance of a Poisson number is its mean
    dispersion = ((n - n.mean()) ** 2).sum() / n.mean()
    assert LEVEL < chi2(n_events - 1).cdf(dispersion) < 1 - LEVEL
    assert kstest(drawn.time_ns / 100_000 + 0.5, "uniform").pvalue > LEVEL
    azimuth = np.arctan2(drawn.origin[:, 1], drawn.origin[:, 0]) % (2 * np.pi)
    assert kstest(azimuth / (2 * np.pi), "uniform").pvalue > LEVEL


def test_zeniths_follow_the_flux(drawn):
    edges = np.array([0.03, 0.4, 0.6, 0.75, 0.9, 1.0])
    counts, _ = np.histogram(drawn.origin[:, 2], edges)
    total = quad(lambda c: float(bundle_flux(np.array([c]))[0]), 0.03, 1.0)[0]
    for n, low, high in zip(counts, edges, edges[1:], strict=False):
        share = quad(lambda c: float(bundle_flux(np.array([c]))[0]), low, high)[0] / total
        assert n == pytest.approx(share * len(drawn.event), abs=4 * np.sqrt(share * counts.sum()))


def test_bundles_of_many_muons_are_as_frequent_as_the_power_law_says(drawn):
    n_muons = np.bincount(drawn.bundle)
    assert n_muons.max() <= MAX_MUONS
    h, cosine = TOP_DEPTH_KM_WE, drawn.origin[:, 2]
    nu = (-0.0771 * h**2 + 0.524 * h + 2.068) * np.exp(0.03 * np.exp(0.47 * h) / cosine)
    weights = np.arange(1, MAX_MUONS + 1)[None, :] ** -nu[:, None]
    expected = (weights / weights.sum(axis=1, keepdims=True)).sum(axis=0)

    def classes(of_each: np.ndarray) -> np.ndarray:
        return np.append(of_each[:4], [of_each[4:9].sum(), of_each[9:].sum()])

    counts = np.bincount(n_muons, minlength=MAX_MUONS + 1)[1:]
    assert chisquare(classes(counts), classes(expected)).pvalue > LEVEL


def test_muons_of_a_bundle_are_parallel_and_start_at_the_top(drawn):
    travel = -drawn.origin[drawn.bundle]
    np.testing.assert_allclose((drawn.nearest_m * travel).sum(axis=1), 0, atol=1e-6)
    start = drawn.nearest_m + drawn.start_m[:, None] * travel
    np.testing.assert_allclose(start[:, 2], TOP_Z_M, atol=1e-6)
    axis = np.linalg.norm(drawn.nearest_m, axis=1)
    single = np.bincount(drawn.bundle)[drawn.bundle] == 1
    assert axis[single].max() <= BUNDLE_RADIUS_M
    # even over the disk
    assert kstest((axis[single] / BUNDLE_RADIUS_M) ** 2, "uniform").pvalue > LEVEL


def test_energies_of_single_muons_follow_the_closed_form_of_their_spectrum(drawn):
    single = np.bincount(drawn.bundle)[drawn.bundle] == 1
    cosine = drawn.origin[drawn.bundle, 2][single]
    gamma, scale_tev = energy_spectrum(cosine, np.ones(len(cosine), int), np.zeros(len(cosine)))
    above = (1 + drawn.energy_gev[single] / 1_000 / scale_tev) ** (1 - gamma)
    assert kstest(above, "uniform").pvalue > LEVEL
    assert 50 < np.median(drawn.energy_gev) < 300


def test_light_of_a_bundle_comes_by_the_cherenkov_geometry_after_its_own_time(drawn):
    """Time of a photon that does not scatter: (along + (n_group / sin - 1 / tan) d) / c."""
    few = drawn.event < 400
    of_few = few[drawn.bundle]
    bundles = replace(
        drawn,
        **{name: getattr(drawn, name)[few] for name in ("event", "time_ns", "origin")},
        **{
            name: getattr(drawn, name)[of_few]
            for name in ("bundle", "nearest_m", "start_m", "energy_gev")
        },
    )
    pairs = bundle_pairs(bundles, np.random.default_rng(8))
    single = np.bincount(bundles.bundle) == 1
    muon_of = np.searchsorted(bundles.bundle, np.arange(len(single)))
    track = (pairs.shape == 0) & single[pairs.event]
    bundle, muon = pairs.event[track], muon_of[pairs.event[track]]
    xyz_m = icecube_site().sensors.xyz_m[pairs.sensor[track]]
    along = ((xyz_m - bundles.nearest_m[muon]) * -bundles.origin[bundle]).sum(axis=1)
    slope = N_GROUP / np.sqrt(1 - 1.3195**-2) - 1 / np.sqrt(1.3195**2 - 1)
    expected = (along + slope * pairs.distance_m[track]) / C_M_PER_NS + bundles.time_ns[bundle]
    # before the muon comes to its top, or has stopped, light leaves from the end of its way
    emitted = along - pairs.distance_m[track] / np.sqrt(1.3195**2 - 1)
    first = np.maximum(bundles.start_m[muon], -750)
    last = np.minimum(bundles.start_m[muon] + muon_range_m(bundles.energy_gev[muon]), 750)
    inside = (emitted > first) & (emitted < last)
    assert inside.sum() > 1_000
    np.testing.assert_allclose(pairs.arrival_ns[track][inside], expected[inside], atol=0.1)


def test_depth_is_that_of_the_uppermost_sensors():
    assert icecube_site().sensors.xyz_m[:, 2].max() == pytest.approx(TOP_Z_M, abs=26)
    assert pytest.approx(1.448 * 0.917, abs=1e-3) == TOP_DEPTH_KM_WE


@pytest.fixture(scope="module")
def alone():
    """Pulses of bundles without neutrinos, one event each, in 6,000 windows of 40 us."""
    rng, site = np.random.default_rng(2), icecube_site()
    bundles = draw_bundles(6_000, 40.0, rng)
    seen = draw_photons(bundle_pairs(bundles, rng), 300, site, rng)
    first, last = np.zeros(len(bundles.event)), np.zeros(len(bundles.event))
    np.minimum.at(first, seen.event, seen.time_ns)
    np.maximum.at(last, seen.event, seen.time_ns)
    photons = join([seen, draw_noise(first, last, site, rng)])
    return form_pulses(photons, site, rng, launches=True)


LIVE_S = 6_000 * 40e-6


def test_muons_alone_trigger_at_the_published_rates(alone):
    """Source: arXiv:1612.05093, trigger table; one muon may fire a trigger several times."""
    fired, _ = trigger_times(alone, alone.event.max() + 1, icecube_site())
    assert np.isfinite(fired).sum() / LIVE_S == pytest.approx(2_100, rel=0.25)
    hits = launches(alone)
    for windows, published_hz in ((string_windows(hits), 2_200), (volume_windows(hits), 3_700)):
        place = np.lexsort((windows.start_ns, windows.event))
        event, start, end = (
            of_each[place] for of_each in (windows.event, windows.start_ns, windows.end_ns)
        )
        apart = (event[1:] != event[:-1]) | (start[1:] > end[:-1])
        assert (1 + apart.sum()) / LIVE_S == pytest.approx(published_hz, rel=0.35)


def test_neutrinos_out_of_sight_are_read_out_when_a_muon_triggers(alone, monkeypatch):
    """A window of 50 us has no trigger with probability exp(-rate x window): Poisson bundles."""
    # the surplus of a block stays, so that what is read out can be divided by what was tried
    monkeypatch.setattr(SimulatedEvents, "head", lambda self, n: self)
    config = SimulationConfig(out_of_sight_share=0.999, earth=False)
    found = simulate_block(config, icecube86(), 0)
    unseen = ~found.truth.in_sight
    assert (found.neutrino_pe[unseen] == 0).all()
    # dark hits alone hardly ever trigger
    assert (found.muon_pe[unseen] > 0).mean() > 0.98
    n_firing = len(np.unique(trigger_windows(alone).event))
    expected = found.n_tried * -np.expm1(-n_firing / LIVE_S * 50e-6)
    error = expected * np.hypot(1 / np.sqrt(expected), 1 / np.sqrt(n_firing))
    assert unseen.sum() == pytest.approx(expected, abs=4 * error)
