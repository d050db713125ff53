import numpy as np

from iceaggr.events.simulation.ice import ICE_DENSITY
from iceaggr.events.simulation.muon import (
    CONTINUOUS_B_PER_M,
    V_CUT,
    draw_losses,
    muon_energy,
    muon_range_m,
)

B_PER_M = 0.363e-3 * ICE_DENSITY


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
