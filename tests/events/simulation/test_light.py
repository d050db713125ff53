"""Light of muons and cascades against closed forms and the numbers of PPC."""

import numpy as np
import pytest
from scipy.integrate import quad
from scipy.stats import chisquare, kstest

from iceaggr.detector import ICE, WATER
from iceaggr.events.simulation import light
from iceaggr.events.simulation.light import (
    CONTINUOUS_B_PER_M,
    V_CUT,
    draw_losses,
    muon_energy,
    muon_range_m,
)
from tests.events.simulation.conftest import LEVEL

COS_CHERENKOV, SIN_CHERENKOV = light.cherenkov(ICE)
SCATTERING, ABSORPTION = np.array([25.0]), np.array([100.0])


def test_point_flux_tends_to_the_inverse_square_near_the_source():
    near = np.array([0.5])
    expected = 1 / (4 * np.pi * near**2)
    np.testing.assert_allclose(light.point_flux(near, SCATTERING, ABSORPTION), expected, rtol=0.05)


def test_track_flux_tends_to_the_inverse_distance_near_the_track():
    near = np.array([0.2])
    expected = 1 / (2 * np.pi * near * SIN_CHERENKOV)
    np.testing.assert_allclose(light.track_flux(near, SCATTERING, ABSORPTION), expected, rtol=0.05)


def diffuse(r: float) -> float:
    """Diffusion with absorption from a point: 3 / (4 pi l r) e^(-r / sqrt(l a / 3)), per m2."""
    return 3 / (4 * np.pi * 5.0 * r) * np.exp(-r / np.sqrt(5.0 * 200.0 / 3))


def test_point_flux_tends_to_diffusion_far_from_the_source():
    found = light.point_flux(np.array([100.0, 250.0]), np.full(2, 5.0), np.full(2, 200.0))
    np.testing.assert_allclose(found, [diffuse(100.0), diffuse(250.0)], rtol=0.03)


def test_track_flux_tends_to_diffusion_from_every_metre_of_the_track():
    for distance in (100.0, 250.0):
        found = light.track_flux(np.array([distance]), np.array([5.0]), np.array([200.0]))[0]
        expected = 2 * quad(lambda s, d=distance: diffuse(np.hypot(s, d)), 0, 600)[0]
        assert found == pytest.approx(expected, rel=0.04)


def test_water_shines_more_and_loses_light_by_absorption_alone():
    """Photons a metre go as sin^2 of the Cherenkov angle, 1 - 1/n^2.

    Source: Frank and Tamm 1937.
    """
    expected = (1 - 1.3499**-2) / (1 - 1.3195**-2)
    assert light.relative_yield(WATER) == pytest.approx(expected)
    scattering, absorption = np.array([WATER.scattering_m]), np.array([WATER.absorption_m])
    assert light.attenuation_length(scattering, absorption)[0] == WATER.absorption_m
    # in ice the way is a random walk: sqrt(l a / 3)
    found = light.attenuation_length(np.array([25.0]), np.array([100.0]))
    np.testing.assert_allclose(found, np.sqrt(25 * 100 / 3))


def test_acceptance_is_the_published_polynomial():
    """0.34 + 0.16 c + 0.88 c^3 - 1.05 c^5 + 0.35 c^7. Source: PPC spice_ftp-v3m, as.dat."""
    found = light.angular_acceptance(np.array([1.0, 0.5, 0.0, -0.5, -1.0]))
    np.testing.assert_allclose(found, [0.68, 0.499922, 0.34, 0.180078, 0.0], atol=1e-6)


def test_cascade_emission_is_that_of_tilted_particles_and_their_cherenkov_cones():
    """1 - cos(tilt) = (-ln(1 - u I) / 2.61)^(1 / 0.39), I = 1 - e^(-2.61 2^0.39).

    Source: PPC pro.cu. Drawn photon by photon here.
    """
    n = 400_000
    rng = np.random.default_rng(12)
    u, turn = rng.random(n), 2 * np.pi * rng.random(n)
    norm = 1 - np.exp(-2.61 * 2**0.39)
    cos_tilt = 1 - np.minimum((-np.log(1 - u * norm) / 2.61) ** (1 / 0.39), 2)
    sin_tilt = np.sqrt(1 - cos_tilt**2)
    # n = 1.3195, that of the Cherenkov angle of 40.7 degrees
    cosine = cos_tilt / 1.3195 + sin_tilt * np.sqrt(1 - 1.3195**-2) * np.cos(turn)
    # one class for ten cells of the table; the peak lies in a class of its own
    counts, _ = np.histogram(cosine, 20, (-1, 1))
    centres = (np.arange(200) + 0.5) / 100 - 1
    expected = light.cascade_emission(centres).reshape(20, 10).sum(axis=1) * n / 200
    assert chisquare(counts, expected * n / expected.sum()).pvalue > LEVEL


def test_cascades_have_the_published_light_and_length():
    """Source: PPC f2k.cxx: 5.321 x 0.910 / 0.9216 m a GeV; a = 2.01849 + 0.63176 ln E."""
    assert pytest.approx(5.2540, abs=1e-4) == light.CASCADE_M_PER_GEV
    np.testing.assert_allclose(
        light.shower_shape(np.array([1.0, 1e3])), [2.01849, 6.382533], rtol=1e-6
    )
    assert pytest.approx(0.61939, abs=1e-5) == light.SHOWER_STEP_M


@pytest.mark.parametrize("flux", [light.point_flux, light.track_flux])
def test_flux_falls_with_distance_and_faster_in_dirty_ice(flux):
    distance = np.linspace(5, 400, 50)
    clear = flux(distance, 50 + 0 * distance, 200 + 0 * distance)
    dirty = flux(distance, 50 + 0 * distance, 50 + 0 * distance)
    assert (np.diff(clear) < 0).all()
    assert (dirty[10:] < clear[10:]).all()


def test_bare_muon_at_ten_metres_gives_five_photo_electrons_without_scattering():
    flux = light.track_flux(np.array([10.0]), np.array([1e4]), np.array([1e4]))
    photo_electrons = light.PHOTONS_PER_M * light.DOM_AREA_M2 * flux
    np.testing.assert_allclose(photo_electrons, 5.1, rtol=0.02)


def test_acceptance_is_largest_for_light_from_below():
    cosine = np.linspace(-1, 1, 201)
    acceptance = light.angular_acceptance(cosine)
    assert cosine[np.argmax(acceptance)] > 0.8
    np.testing.assert_allclose(acceptance.max(), 0.68, atol=0.03)
    np.testing.assert_allclose(acceptance.mean(), light.ISOTROPIC_ACCEPTANCE, atol=0.01)


def test_scattered_light_forgets_its_direction():
    far, cosine = np.array([2_000.0, 2_000.0]), np.array([-1.0, 1.0])
    acceptance = light.arrival_acceptance(cosine, far, np.array([25.0, 25.0]))
    np.testing.assert_allclose(acceptance, light.ISOTROPIC_ACCEPTANCE, rtol=1e-6)


def test_cascade_emission_peaks_at_the_cherenkov_angle_and_averages_to_one():
    cosine = np.linspace(-1, 1, 20_001)[:-1]
    emission = light.cascade_emission(cosine)
    np.testing.assert_allclose(emission.mean(), 1.0, rtol=1e-3)
    np.testing.assert_allclose(cosine[np.argmax(emission)], COS_CHERENKOV, atol=0.02)
    assert emission[-1] > emission[0]


def test_hadronic_cascades_are_dimmer_at_the_published_share():
    """F = 1 - (E / 0.18792)^-0.16268 (1 - 0.30974). Source: PPC f2k.cxx, pi+."""
    rng, n = np.random.default_rng(1), 20_000
    for energy in (1e2, 1e3, 1e4, 1e5):
        seen = light.hadronic_light(np.full(n, energy), rng) / energy
        expected = 1 - (energy / 0.18792) ** -0.16268 * (1 - 0.30974)
        # no cascade is brighter than an electron's, which takes less than 0.0003 of the mean
        assert seen.mean() == pytest.approx(expected, abs=4 * seen.std() / np.sqrt(n) + 3e-4)
    # relative width 0.959 (ln E)^-1.356, by quantiles, which the limit of 1 leaves alone
    low, middle, high = np.quantile(
        light.hadronic_light(np.full(40_000, 1e3), rng), [0.16, 0.5, 0.84]
    )
    width = 0.959 * np.log(1e3) ** -1.356
    assert 0.5 * (high - low) / middle == pytest.approx(
        0.9945 * width, rel=4 * 1.1 / np.sqrt(40_000)
    )


def test_high_energy_muon_is_brighter():
    none = np.zeros(2)
    energy = np.array([1e2, 1e6])
    faint, bright = light.muon_track_light(energy, none)
    np.testing.assert_allclose([faint, bright], [1.28, 1.47], atol=0.01)
    assert light.muon_track_light(energy, none + 1.0)[0] > faint + 5


B_PER_M = 0.363e-3 * ICE.density


def test_ranges_are_the_published_ones():
    range_km = muon_range_m(np.array([1e2, 1e3, 1e4, 1e5, 1e6])) / 1e3
    np.testing.assert_allclose(range_km, [0.39, 2.6, 8.1, 14.9, 21.8], rtol=0.02)


def test_muon_stops_at_the_end_of_its_range():
    start = np.array([500.0, 5e4])
    reach = muon_range_m(start)
    assert (muon_energy(start, reach * 0.999) > 0).all()
    np.testing.assert_allclose(muon_energy(start, reach * 1.001), 0.0)


def test_losses_carry_their_share_of_the_mean_loss():
    rng = np.random.default_rng(3)
    n, length = 20_000, 100.0
    start = np.full(n, 1e5)
    zero = np.zeros(n)
    losses = draw_losses(start, zero, zero, zero + length, rng)
    energy = muon_energy(start[:1], np.array([length / 2]))[0]
    expected = (B_PER_M - CONTINUOUS_B_PER_M) * energy * length
    np.testing.assert_allclose(losses.energy_gev.sum() / n, expected, rtol=0.04)


def test_losses_are_as_many_as_their_cross_sections_say():
    """b = 0.363e-3 per mwe, 45 % of it in pairs as v^-2 up to 0.1, the rest as 1/v up to 1.

    Source: hep-ph/0407075, Table 3, and its shares at TeV energies.
    """
    n, length = 20_000, 100.0
    start, zero = np.full(n, 1e5), np.zeros(n)
    losses = draw_losses(start, zero, zero, zero + length, np.random.default_rng(13))
    v = losses.energy_gev / muon_energy(start[losses.row], losses.along_m)
    b = n * length * 0.363e-3 * 0.917
    for low, high in ((1e-3, 1e-2), (1e-2, 0.1), (0.1, 1.0)):
        pairs = 0.45 * b / np.log(1e3) * (1 / low - 1 / high) if high <= 0.1 else 0.0
        expected = pairs + 0.55 * b * np.log(high / low)
        found = ((v >= low) & (v < high)).sum()
        assert found == pytest.approx(expected, abs=4 * np.sqrt(expected))
    assert kstest(losses.along_m / length, "uniform").pvalue > LEVEL


def test_losses_lie_on_the_muon_and_above_the_cut():
    rng = np.random.default_rng(4)
    start, first, last = np.array([1e4, 1e4]), np.array([-50.0, 10.0]), np.array([400.0, 10.0])
    losses = draw_losses(start, first, first, last, rng)
    assert len(losses.row) > 3
    assert (losses.row == 0).all()
    assert ((losses.along_m >= -50) & (losses.along_m <= 400)).all()
    left = muon_energy(start[losses.row], losses.along_m - first[losses.row])
    share = losses.energy_gev / left
    assert ((share >= V_CUT * 0.999) & (share <= 1)).all()
