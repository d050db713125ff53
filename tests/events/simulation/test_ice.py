import numpy as np
import pytest

from iceaggr.events.simulation.ice import reference_lengths, south_pole_ice


def lengths(z_from: float, z_to: float) -> tuple[float, float]:
    scattering, absorption = south_pole_ice().mean_lengths(np.array([z_from]), np.array([z_to]))
    return float(scattering[0]), float(absorption[0])


@pytest.mark.parametrize(
    ("depth_m", "scattering_m", "absorption_m"),
    [(1_398.4, 13.2, 45.1), (1_418.4, 14.7, 53.2), (2_048.5, 5.0, 17.9), (2_488.4, 56.7, 185.2)],
)
def test_layers_are_those_of_spice_mie(depth_m, scattering_m, absorption_m):
    """Effective scattering and absorption length at 400 nm. Source: arXiv:1301.5361, p. 31."""
    # z = 0 lies 1948.07 m deep
    z = 1_948.07 - depth_m
    assert lengths(z - 0.4, z + 0.4) == pytest.approx((scattering_m, absorption_m), rel=0.05)


def test_dust_layer_is_the_worst_ice():
    dust, clear = lengths(-101, -99), lengths(-400, -398)
    assert dust[0] < 8
    assert dust[1] < 25
    assert clear[0] > 5 * dust[0]


def test_mean_is_the_harmonic_one_of_its_parts():
    whole, upper, lower = lengths(-200, 100), lengths(0, 100), lengths(-200, 0)
    for k in (0, 1):
        # each path is widened by 1 m, hence the tolerance
        np.testing.assert_allclose(300 / whole[k], 100 / upper[k] + 200 / lower[k], rtol=0.01)


def test_direction_of_the_path_does_not_matter():
    assert lengths(-300, 50) == lengths(50, -300)


def test_ice_goes_on_beyond_the_table():
    np.testing.assert_allclose(lengths(600, 700), (13.2, 45.1), rtol=1e-6)
    np.testing.assert_allclose(lengths(1_500, 1_600), (13.2, 45.1), rtol=1e-6)


def test_reference_ice_resembles_the_amanda_ice():
    scattering, absorption = reference_lengths()
    assert 18 < scattering < 33
    assert 70 < absorption < 130
