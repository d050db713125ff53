"""Interactions against closed forms of what they are drawn from."""

import numpy as np
import pytest
from scipy.integrate import quad
from scipy.stats import beta, kstest

from iceaggr.events.simulation.config import SimulationConfig
from iceaggr.events.simulation.ice import icecube_site
from iceaggr.events.simulation.interactions import (
    NU_MU_CC,
    NU_NC,
    NU_TAU_CC,
    draw_interactions,
    earth_transmission,
    inside_array,
)
from iceaggr.events.simulation.light import muon_range_m
from tests.events.simulation.conftest import LEVEL, near_share


@pytest.fixture(scope="module")
def drawn():
    config = SimulationConfig(preset="easy")
    return draw_interactions(40_000, config, icecube_site(), np.random.default_rng(5))


def test_directions_are_isotropic_unit_vectors(drawn):
    np.testing.assert_allclose(np.linalg.norm(drawn.origin, axis=1), 1, atol=1e-12)
    np.testing.assert_allclose(np.linalg.norm(drawn.travel, axis=1), 1, atol=1e-12)
    np.testing.assert_allclose(drawn.origin.mean(axis=0), 0, atol=0.015)
    np.testing.assert_allclose((drawn.origin**2).mean(axis=0), 1 / 3, atol=0.01)


def test_cascade_travels_straight_on_and_muon_as_its_kinematics_say(drawn):
    """sin^2(angle / 2) = M x y / (2 E (1 - y)): Q^2 = 2 M E x y = 4 E E' sin^2(angle / 2)."""
    half = 0.5 * np.linalg.norm(drawn.origin + drawn.travel, axis=1)
    np.testing.assert_allclose(half[~drawn.is_track], 0, atol=1e-12)
    x, y, energy = (
        of_each[drawn.is_track]
        for of_each in (drawn.bjorken_x, drawn.inelasticity, drawn.energy_gev)
    )
    expected = np.minimum(0.938 * x * y / (2 * energy * (1 - y)), 1)
    np.testing.assert_allclose(half[drawn.is_track] ** 2, expected, rtol=1e-6, atol=1e-15)


def test_inelasticity_is_that_of_the_parton_model(drawn):
    """Even for neutrinos on quarks, (1 - y)^2 for antineutrinos; x as a Beta of mean 0.19."""
    anti, y = drawn.flavour < 0, drawn.inelasticity
    assert anti.mean() == near_share(0.5, len(y))
    assert kstest(y[~anti], "uniform").pvalue > LEVEL
    assert kstest((1 - y[anti]) ** 3, "uniform").pvalue > LEVEL
    assert kstest(drawn.bjorken_x, beta(0.8, 3.5).cdf).pvalue > LEVEL


def test_kinds_come_in_the_shares_asked_for(hard):
    # from above, where the Earth takes none
    code = hard.code[hard.origin[:, 2] > 0]
    assert (code != NU_MU_CC).mean() == near_share(0.39, len(code))
    cascade = code[code != NU_MU_CC]
    assert (cascade == NU_NC).mean() == near_share(0.25, len(cascade))
    charged = cascade[cascade != NU_NC]
    assert (charged == NU_TAU_CC).mean() == near_share(0.25, len(charged))


@pytest.mark.parametrize(
    ("preset", "low_gev", "index", "hard_share"),
    [("easy", 60.0, 2.35, 0.005), ("competition", 100.0, 2.1, 0.016)],
)
def test_energies_follow_the_two_power_laws_of_their_preset(preset, low_gev, index, hard_share):
    """docs/physics.md: E^-index from low_gev to 10 PeV, a share of E^-1."""
    config = SimulationConfig(preset=preset, earth=False)
    n = 200_000
    energy = draw_interactions(n, config, icecube_site(), np.random.default_rng(8)).energy_gev

    def share_below(gev):
        soft = (1 - (gev / low_gev) ** (1 - index)) / (1 - (1e7 / low_gev) ** (1 - index))
        return (1 - hard_share) * soft + hard_share * np.log(gev / low_gev) / np.log(1e7 / low_gev)

    assert kstest(energy, share_below).pvalue > LEVEL
    # the giant events, which the largest difference of shares does not see
    assert (energy > 1e5).mean() == near_share(1 - share_below(1e5), n)


def test_muon_takes_what_the_hadrons_leave(drawn):
    track = drawn.is_track
    expected = (1 - drawn.inelasticity[track]) * drawn.energy_gev[track]
    np.testing.assert_allclose(drawn.muon_gev[track], expected)
    assert (drawn.muon_gev[~track] == 0).all()
    assert (drawn.cascade_gev <= drawn.energy_gev * (1 + 1e-12)).all()


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


def test_vertices_are_even_over_the_disk_along_the_way_and_in_the_cylinder(drawn):
    """780 m about the centre, from a muon's range before the array to 600 m behind it."""
    track, cascade = drawn.is_track, ~drawn.is_track
    nearest = np.linalg.norm(drawn.vertex_m - drawn.vertex_along_m[:, None] * drawn.travel, axis=1)
    assert kstest((nearest[track] / 780) ** 2, "uniform").pvalue > LEVEL
    # where the surface does not cut the way short
    up = track & (drawn.travel[:, 2] > 0)
    first = -(muon_range_m(drawn.muon_gev[up]) + 750)
    share = (drawn.vertex_along_m[up] - first) / (600 - first)
    assert kstest(share, "uniform").pvalue > LEVEL
    x, y, z = drawn.vertex_m[cascade].T
    margin = 25 * np.log10(drawn.energy_gev[cascade] / 30)
    assert kstest((x**2 + y**2) / (520 + margin) ** 2, "uniform").pvalue > LEVEL
    assert kstest(0.5 + 0.5 * z / (520 + margin), "uniform").pvalue > LEVEL


def test_bright_cascades_start_in_a_wider_cylinder():
    """25 m more for each decade of energy from 30 GeV on."""
    config = SimulationConfig(preset="easy", min_energy_gev=1e6, cascade_share=1.0)
    bright = draw_interactions(10_000, config, icecube_site(), np.random.default_rng(9))
    x, y, z = bright.vertex_m.T
    size = 520 + 25 * np.log10(bright.energy_gev / 30)
    assert kstest((x**2 + y**2) / size**2, "uniform").pvalue > LEVEL
    assert kstest(0.5 + 0.5 * z / size, "uniform").pvalue > LEVEL


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
    return draw_interactions(100_000, config, icecube_site(), np.random.default_rng(6))


# Charged-current cross sections in cm2 at powers of ten in GeV. Source: hep-ph/9807264, CTEQ4-DIS.
CROSS_SECTION_CM2 = {
    1e1: 7.77e-38, 1e2: 6.97e-37, 1e3: 6.25e-36, 1e4: 4.54e-35,
    1e5: 1.96e-34, 1e6: 6.11e-34, 1e7: 1.76e-33, 1e8: 4.78e-33,
}  # fmt: skip


def test_earth_transmits_as_its_column_depth_and_the_cross_section_say():
    # through the centre: 2 x 3480 km of 11 g/cm3 and 2 x 2891 km of 4.5 g/cm3
    through = 1e5 * (6_960 * 11.0 + 5_782 * 4.5)
    # a chord above the core: 2 R cos(zenith) of mantle
    above_core = 1e5 * 2 * 6_371 * 0.5 * 4.5
    for energy, cm2 in CROSS_SECTION_CM2.items():
        for cosine, column in ((-1.0, through), (-0.5, above_core)):
            found = earth_transmission(np.array([energy]), np.array([cosine]))[0]
            # neutral currents add 0.4 of the charged ones
            assert -np.log(found) == pytest.approx(6.022e23 * column * 1.4 * cm2, rel=1e-6)
        assert earth_transmission(np.array([energy]), np.array([0.3]))[0] == 1
    # between two energies the logarithm of the cross section is straight
    found = earth_transmission(np.array([10**4.5]), np.array([-0.5]))[0]
    expected = 6.022e23 * above_core * 1.4 * np.sqrt(4.54e-35 * 1.96e-34)
    assert -np.log(found) == pytest.approx(expected)
    # the Earth is opaque from about 40 TeV on. Source: hep-ph/9807264
    assert earth_transmission(np.array([4e4]), np.array([-1.0]))[0] == pytest.approx(0.37, abs=0.15)


def test_earth_takes_the_energetic_from_below(hard):
    up = hard.origin[:, 2] < -0.5
    bright = hard.energy_gev > 1e5
    assert (bright & up).sum() < 0.5 * (bright & (hard.origin[:, 2] > 0.5)).sum()
    low = hard.energy_gev < 1e3
    assert up[low].mean() == pytest.approx(0.25, abs=0.01)
    config, site = SimulationConfig(earth=False), icecube_site()
    before = draw_interactions(100_000, config, site, np.random.default_rng(6))
    share = earth_transmission(before.energy_gev, before.origin[:, 2])
    # the same draws: what is missing was absorbed
    assert len(hard.code) == pytest.approx(
        share.sum(), abs=4 * np.sqrt((share * (1 - share)).sum())
    )


# Branching ratios of hadronic decays to one and more mesons, and the mass of these in GeV.
# Source: Particle Data Group; four pions as broad as they are, taken at 1.4 GeV.
TAU_TO_HADRONS = (
    (0.108, 0.140), (0.255, 0.775), (0.183, 1.26), (0.007, 0.494), (0.014, 0.892), (0.057, 1.4)
)  # fmt: skip


def test_taus_decay_in_their_published_shares_and_hide_energy(hard):
    """17.4 % to muons and 17.8 % to electrons. Source: Particle Data Group.

    The charged lepton takes 7/20 on average: dN/dz = 5/3 - 3 z^2 + 4/3 z^3 without polarisation.
    Hadrons of mass m take (1 + m^2 / m_tau^2) / 2: a decay in two.
    """
    tau = hard.code == NU_TAU_CC
    n = tau.sum()
    assert (np.abs(hard.flavour[tau]) == 16).all()
    tau_gev = (1 - hard.inelasticity[tau]) * hard.energy_gev[tau]
    of_tau = (hard.cascade_gev - hard.hadronic_gev)[tau]
    leptonic = quad(lambda z: z * (5 / 3 - 3 * z**2 + 4 / 3 * z**3), 0, 1)[0]
    assert leptonic == pytest.approx(7 / 20)
    to_muon = hard.muon_gev[tau] > 0
    assert to_muon.mean() == near_share(0.174, n)
    np.testing.assert_allclose((hard.muon_gev[tau] / tau_gev)[to_muon], leptonic)
    np.testing.assert_allclose(of_tau[to_muon], 0, atol=1e-6)
    assert hard.is_track[tau].sum() == to_muon.sum()
    to_electron = np.isclose(of_tau, leptonic * tau_gev, rtol=1e-9)
    assert to_electron.mean() == near_share(0.178, n)
    share, mass = np.array(TAU_TO_HADRONS).T
    hadronic = (share * 0.5 * (1 + (mass / 1.777) ** 2)).sum() / share.sum()
    # hadrons shine less than electrons of their energy: these above 10 TeV by 0.88 to 0.96
    bright = ~to_muon & ~to_electron & (tau_gev > 2e4)
    seen = (of_tau / tau_gev)[bright]
    assert 0.88 * hadronic < seen.mean() < 0.96 * hadronic
    assert (of_tau[bright] < 1.02 * hadronic * tau_gev[bright]).all()


def test_out_of_sight_is_out_of_reach_of_the_light(hard):
    far = ~hard.in_sight
    assert far.mean() == near_share(0.2, len(far))
    cascade, track = far & ~hard.is_track, far & hard.is_track
    nearest = hard.vertex_m - hard.vertex_along_m[:, None] * hard.travel
    for place in (hard.vertex_m[cascade], nearest[track]):
        # even over the ring from 900 to 1,600 m
        square = (place**2).sum(axis=1)
        assert kstest((square - 900**2) / (1_600**2 - 900**2), "uniform").pvalue > LEVEL
    assert not inside_array(hard.vertex_m[cascade], icecube_site()).any()
