import numpy as np
import pytest

from iceaggr.events.simulation.config import SimulationConfig
from iceaggr.events.simulation.ice import icecube_site
from iceaggr.events.simulation.interactions import draw_interactions, inside_array


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
