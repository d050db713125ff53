import numpy as np
import pytest

from iceaggr.events.simulation.config import SimulationConfig
from iceaggr.events.simulation.ice import icecube_site
from iceaggr.events.simulation.interactions import (
    NU_E_CC,
    NU_TAU_CC,
    draw_interactions,
    earth_transmission,
    inside_array,
)


@pytest.fixture(scope="module")
def drawn():
    config = SimulationConfig(preset="easy")
    return draw_interactions(40_000, config, icecube_site(), np.random.default_rng(5))


def test_directions_are_isotropic_unit_vectors(drawn):
    np.testing.assert_allclose(np.linalg.norm(drawn.origin, axis=1), 1, atol=1e-12)
    np.testing.assert_allclose(np.linalg.norm(drawn.travel, axis=1), 1, atol=1e-12)
    np.testing.assert_allclose(drawn.origin.mean(axis=0), 0, atol=0.015)
    np.testing.assert_allclose((drawn.origin**2).mean(axis=0), 1 / 3, atol=0.01)


def test_cascade_travels_straight_on_and_muon_nearly(drawn):
    straight = -(drawn.origin * drawn.travel).sum(axis=1)
    np.testing.assert_allclose(straight[~drawn.is_track], 1, atol=1e-12)
    angle = np.degrees(np.arccos(np.clip(straight[drawn.is_track], -1, 1)))
    energy = drawn.energy_gev[drawn.is_track]
    around_1_tev = np.median(angle[(energy > 700) & (energy < 1_400)])
    assert 0.3 < around_1_tev < 1.2
    assert np.median(angle[energy > 1e4]) < 0.4 * around_1_tev


def test_muon_takes_what_the_hadrons_leave(drawn):
    track = drawn.is_track
    expected = (1 - drawn.inelasticity[track]) * drawn.energy_gev[track]
    np.testing.assert_allclose(drawn.muon_gev[track], expected)
    assert (drawn.muon_gev[~track] == 0).all()
    assert (drawn.cascade_gev <= drawn.energy_gev * (1 + 1e-12)).all()
    np.testing.assert_allclose(drawn.inelasticity.mean(), 0.375, atol=0.01)


def test_neutral_currents_show_only_their_hadrons(drawn):
    share = drawn.cascade_gev / drawn.energy_gev
    assert (share <= drawn.inelasticity + 1e-12)[drawn.code == 2].all()
    assert share[drawn.code == 1].mean() > 0.8


def test_vertices_lie_on_their_track_below_the_surface(drawn):
    track = drawn.is_track
    nearest = drawn.vertex_m - drawn.vertex_along_m[:, None] * drawn.travel
    closest = (nearest * drawn.travel).sum(axis=1)
    np.testing.assert_allclose(closest[track], 0, atol=1e-6)
    assert (drawn.vertex_m[:, 2] <= 1_949).all()


def test_energies_stay_in_the_configured_range():
    config = SimulationConfig(min_energy_gev=1e3, max_energy_gev=1e4)
    energy = draw_interactions(5_000, config, icecube_site(), np.random.default_rng(6)).energy_gev
    assert (energy >= 1e3 * (1 - 1e-9)).all()
    assert (energy <= 1e4 * (1 + 1e-9)).all()


def test_centre_is_inside_the_array_and_its_surroundings_are_not():
    points = np.array([[0, 0, 0], [0, 0, 600], [700, 0, 0], [0, 0, -505], [-400, -400, 0.0]])
    assert inside_array(points, icecube_site()).tolist() == [True, False, False, True, False]


@pytest.fixture(scope="module")
def hard():
    config = SimulationConfig(preset="competition")
    return draw_interactions(60_000, config, icecube_site(), np.random.default_rng(6))


def test_earth_transmits_as_its_column_depth_and_the_cross_section_say():
    # through the centre: 2 x 3480 km of 11 g/cm3 and 2 x 2891 km of 4.5 g/cm3
    column = 1e5 * (6_960 * 11.0 + 5_782 * 4.5)
    expected = np.exp(-6.022e23 * column * 1.4 * 4.54e-35)
    found = earth_transmission(np.array([1e4]), np.array([-1.0]))[0]
    assert found == pytest.approx(expected, rel=1e-3)
    # a chord above the core: 2 R cos(zenith) of mantle
    column = 1e5 * 2 * 6_371 * 0.5 * 4.5
    expected = np.exp(-6.022e23 * column * 1.4 * 1.96e-34)
    assert earth_transmission(np.array([1e5]), np.array([-0.5]))[0] == pytest.approx(expected)
    assert earth_transmission(np.array([1e8]), np.array([0.3]))[0] == 1
    # the Earth is opaque from about 40 TeV on. Source: hep-ph/9807264
    assert earth_transmission(np.array([4e4]), np.array([-1.0]))[0] == pytest.approx(0.37, abs=0.15)


def test_earth_takes_the_energetic_from_below(hard):
    up = hard.origin[:, 2] < -0.5
    bright = hard.energy_gev > 1e5
    assert (bright & up).sum() < 0.5 * (bright & (hard.origin[:, 2] > 0.5)).sum()
    low = hard.energy_gev < 1e3
    assert up[low].mean() == pytest.approx(0.25, abs=0.01)


def test_taus_decay_in_their_published_shares_and_hide_energy(hard):
    tau = hard.code == NU_TAU_CC
    others = hard.code == NU_E_CC
    assert tau.sum() / (tau | others).sum() == pytest.approx(0.25, abs=0.02)
    assert (np.abs(hard.flavour[tau]) == 16).all()
    to_muon = hard.muon_gev[tau] > 0
    assert to_muon.mean() == pytest.approx(0.174, abs=0.03)
    assert hard.is_track[tau].sum() == to_muon.sum()
    seen = (hard.cascade_gev + hard.muon_gev)[tau]
    assert (seen <= hard.energy_gev[tau]).all()
    assert (hard.cascade_gev[tau] >= hard.hadronic_gev[tau] - 1e-9).all()
    assert np.median(seen / hard.energy_gev[tau]) < np.median(
        (hard.cascade_gev / hard.energy_gev)[others]
    )


def test_out_of_sight_is_out_of_reach_of_the_light(hard):
    far = ~hard.in_sight
    assert far.mean() == pytest.approx(0.2, abs=0.01)
    cascade, track = far & ~hard.is_track, far & hard.is_track
    assert np.linalg.norm(hard.vertex_m[cascade], axis=1).min() > 899
    nearest = hard.vertex_m - hard.vertex_along_m[:, None] * hard.travel
    assert np.linalg.norm(nearest[track], axis=1).min() > 899
    assert not inside_array(hard.vertex_m[cascade], icecube_site()).any()
