import numpy as np

from iceaggr.detector import C_M_PER_NS, N_GROUP
from iceaggr.events.simulation.ice import icecube_site
from iceaggr.events.simulation.pairs import Cascades, Tracks, cascade_pairs, track_pairs


def vertical_track(first_m: float = -750.0, last_m: float = 750.0) -> Tracks:
    """A muon straight down, 20 m beside string 36."""
    return Tracks(
        event=np.array([7]),
        nearest_m=np.array([[46.0 + 20.0, -34.0, 0.0]]),
        travel=np.array([[0.0, 0.0, -1.0]]),
        vertex_m=np.array([first_m]),
        first_m=np.array([first_m]),
        last_m=np.array([last_m]),
        energy_gev=np.array([1e4]),
    )


def cascade(energy_gev: float, axis: tuple[float, float, float]) -> Cascades:
    return Cascades(
        event=np.array([3]),
        vertex_m=np.array([[0.0, 0.0, -350.0]]),
        axis=np.array([axis]),
        time_ns=np.array([100.0]),
        energy_gev=np.array([energy_gev]),
    )


def test_track_light_comes_at_the_cherenkov_time():
    pairs = track_pairs(vertical_track(), icecube_site())
    xyz = icecube_site().sensors.xyz_m[pairs.sensor]
    along = -xyz[:, 2]
    # bracket of the standard formula, n_group / sin - 1 / tan = 0.91733
    expected = (along + pairs.distance_m * 0.91733) / C_M_PER_NS
    np.testing.assert_allclose(pairs.arrival_ns, expected, atol=0.05)
    assert (pairs.event == 7).all()


def test_track_light_falls_with_distance():
    pairs = track_pairs(vertical_track(), icecube_site())
    near = pairs.expected_pe[pairs.distance_m < 40].mean()
    far = pairs.expected_pe[pairs.distance_m > 100].mean()
    assert near > 20 * far


def test_starting_track_lights_nothing_far_upstream():
    lit = track_pairs(vertical_track(first_m=0.0), icecube_site())
    height = icecube_site().sensors.xyz_m[lit.sensor, 2]
    whole = track_pairs(vertical_track(), icecube_site())
    above = icecube_site().sensors.xyz_m[whole.sensor, 2] > 200
    assert lit.expected_pe[height > 200].sum() < 0.01 * whole.expected_pe[above].sum()
    assert lit.expected_pe[height < -150].sum() > 0


def test_cascade_light_spreads_at_the_group_velocity():
    pairs = cascade_pairs(cascade(1e3, (0.0, 0.0, 1.0)), icecube_site())
    late = pairs.arrival_ns - 100.0
    # the mean point of the shower lies a few metres ahead of the vertex
    start = late - N_GROUP * pairs.distance_m / C_M_PER_NS
    np.testing.assert_allclose(start, start[0], atol=1e-6)
    assert 5 < start[0] < 25


def test_cascade_light_grows_with_energy_and_reaches_farther():
    faint, bright = (cascade_pairs(cascade(e, (0.0, 0.0, 1.0)), icecube_site()) for e in (1e2, 1e4))
    # within 40 m the narrow Cherenkov peak and the shift of the longer shower decide
    ratio = bright.expected_pe[bright.distance_m > 40].sum()
    ratio /= faint.expected_pe[faint.distance_m > 40].sum()
    np.testing.assert_allclose(ratio, 100, rtol=0.15)
    assert bright.distance_m.max() > 1.3 * faint.distance_m.max()


def test_cascade_shines_forward():
    pairs = cascade_pairs(cascade(1e4, (1.0, 0.0, 0.0)), icecube_site())
    middle = (pairs.distance_m > 60) & (pairs.distance_m < 150)
    ahead = pairs.expected_pe[middle & (pairs.cosine > 0.3)].mean()
    behind = pairs.expected_pe[middle & (pairs.cosine < -0.3)].mean()
    assert ahead > 1.5 * behind


def test_far_light_is_later_than_unscattered_light():
    pairs = track_pairs(vertical_track(), icecube_site())
    near, far = pairs.distance_m < 30, pairs.distance_m > 100
    mean_delay = pairs.xi / pairs.rho_per_ns
    assert mean_delay[far].mean() > 2 * mean_delay[near].mean()
