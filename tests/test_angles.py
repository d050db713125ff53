import math

import numpy as np
import pytest
import torch
from scipy import integrate

from iceaggr.angles import (
    azimuth_zenith,
    kappa_of_mean_cosine,
    mean_cosine,
    opening_angle,
    sphere_density,
    unit_vector,
)


def test_unit_vector_points_up_when_zenith_is_zero() -> None:
    up = unit_vector(torch.tensor([1.3]), torch.tensor([0.0]))
    torch.testing.assert_close(up, torch.tensor([[0.0, 0.0, 1.0]]))


def test_unit_vector_follows_the_stated_convention() -> None:
    azimuth, zenith = torch.tensor([0.5]), torch.tensor([1.1])
    x, y, z = unit_vector(azimuth, zenith)[0].tolist()
    assert x == pytest.approx(math.cos(0.5) * math.sin(1.1))
    assert y == pytest.approx(math.sin(0.5) * math.sin(1.1))
    assert z == pytest.approx(math.cos(1.1))


def test_unit_vector_refuses_different_shapes() -> None:
    with pytest.raises(ValueError, match="azimuth has shape"):
        unit_vector(torch.zeros(2), torch.zeros(3))


def test_angles_survive_the_round_trip() -> None:
    generator = torch.Generator().manual_seed(0)
    azimuth = torch.rand(10_000, generator=generator, dtype=torch.float64) * 2 * math.pi
    zenith = torch.rand(10_000, generator=generator, dtype=torch.float64) * math.pi
    back = azimuth_zenith(3.7 * unit_vector(azimuth, zenith))
    torch.testing.assert_close(back[0], azimuth, atol=1e-12, rtol=0)
    torch.testing.assert_close(back[1], zenith, atol=1e-12, rtol=0)


def test_azimuth_stays_below_two_pi_when_y_is_a_tiny_negative() -> None:
    azimuth, _ = azimuth_zenith(torch.tensor([[1.0, -1e-12, 0.0]]))
    assert 0 <= azimuth.item() < 2 * math.pi


def test_azimuth_zenith_refuses_other_than_three_components() -> None:
    with pytest.raises(ValueError, match=r"expected \(\.\.\., 3\)"):
        azimuth_zenith(torch.zeros(4, 2))


@pytest.mark.parametrize("angle", [1e-7, 1e-3, 0.5, 1.5, math.pi - 1e-3, math.pi - 1e-7])
def test_opening_angle_is_exact_near_zero_and_pi(angle: float) -> None:
    a = torch.tensor([[1.0, 0.0, 0.0]], dtype=torch.float64)
    b = torch.tensor([[math.cos(angle), math.sin(angle), 0.0]], dtype=torch.float64)
    assert opening_angle(a, b).item() == pytest.approx(angle, rel=1e-8)


def test_opening_angle_refuses_different_shapes() -> None:
    with pytest.raises(ValueError, match="predicted has shape"):
        opening_angle(torch.zeros(2, 3), torch.zeros(3, 3))


def test_mean_length_is_inverted_from_a_silent_network_to_a_sharp_fit() -> None:
    kappa = np.array([1e-3, 0.1, 1.0, 5.0, 30.0, 99.0, 101.0, 1e3, 1e8])
    np.testing.assert_allclose(kappa_of_mean_cosine(mean_cosine(kappa)), kappa, rtol=1e-5)
    assert kappa_of_mean_cosine(np.array([0.0, 1.0])) == pytest.approx([1e-4, 1e12], rel=1e-3)
    inside = integrate.quad(
        lambda c: 2 * np.pi * sphere_density(np.array([3.0]), np.array([c]))[0], -1, 1
    )
    assert inside[0] == pytest.approx(1.0)
