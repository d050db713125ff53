"""Every built-in detector, in its medium: where its sensors are, and that it can be simulated."""

import dataclasses
import re
import tokenize
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest

from iceaggr import cli
from iceaggr.built_in_detectors import (
    BUILT_IN_NAMES,
    built_in_detector,
    built_in_name,
    detectors_table,
    name_of,
    names_around,
)
from iceaggr.config.sections import DataConfig
from iceaggr.detector import ICE, WATER, Detector, icecube86
from iceaggr.errors import DetectorError
from iceaggr.evaluation.published import set_of
from iceaggr.events.conversion.sensors import read_geometry
from iceaggr.events.layout import load_detector
from iceaggr.events.simulation import SimulationConfig, block, simulate
from iceaggr.events.simulation.ice import icecube_site, site_of
from iceaggr.events.simulation.interactions import draw_interactions
from iceaggr.events.simulation.pairs import Tracks, track_pairs
from iceaggr.events.simulation.photons import draw_noise
from iceaggr.events.simulation.pulses import form_pulses
from iceaggr.events.simulation.run import detector_of
from iceaggr.storage import open_store

TABLES = Path(__file__).parents[3].parent / "shared" / "data" / "nubench"
needs_tables = pytest.mark.skipif(not TABLES.is_dir(), reason=f"no geometry tables at {TABLES}")
SIZES = {
    "flower-xl": (1211, 24220),
    "flower-l": (115, 2070),
    "hexagon": (86, 5160),
    "hexagon-ice": (86, 5160),
    "flower-s": (150, 3300),
    "cluster": (8, 288),
    "triangle": (3, 60),
}


@pytest.mark.parametrize("name", SIZES)
def test_strings_and_sensors_are_as_many_as_published(name):
    detector = built_in_detector(name)
    assert (len(np.unique(detector.string_id)), detector.n_sensors) == SIZES[name]
    assert detector.medium == (ICE if name == "hexagon-ice" else WATER)


@needs_tables
@pytest.mark.parametrize("name", SIZES)
def test_sensors_stand_where_the_published_table_has_them(name):
    file = TABLES / f"{name.removesuffix('-ice').replace('-', '_')}.parquet"
    table = pd.read_parquet(file).reset_index(drop=True).sort_values("sensor_id")
    detector = built_in_detector(name)
    xyz_m = table[[f"sensor_pos_{axis}" for axis in "xyz"]].to_numpy()
    np.testing.assert_array_equal(detector.sensor_id, table["sensor_id"])
    np.testing.assert_array_equal(detector.string_id, table["sensor_string_id"])
    np.testing.assert_allclose(detector.xyz_m, xyz_m, rtol=0, atol=1e-3)


@pytest.mark.parametrize("name", BUILT_IN_NAMES)
def test_detector_is_known_by_its_places_whatever_the_numbers(name):
    known = built_in_detector(name)
    turned = np.random.default_rng(1).permutation(known.n_sensors)
    moved = known.xyz_m[turned] + 0.004
    arrays = (known.string_id[turned], known.efficiency[turned], known.in_use[turned])
    other = Detector(known.sensor_id + 7, moved, *arrays, known.stated_medium)
    assert name_of(other) == name
    far = Detector(known.sensor_id, known.xyz_m + 0.5, *arrays, known.stated_medium)
    assert name_of(far) == ""


@pytest.mark.parametrize("name", [*SIZES, "icecube86"])
def test_every_detector_is_simulated(name, tmp_path, monkeypatch):
    # fewer events in a block than the product has, which is all that takes time here
    monkeypatch.setattr(block, "N_EVENTS_PER_BLOCK", 30)
    raw_uri = f"file://{tmp_path}"
    config = SimulationConfig(
        preset="easy", n_events=30, n_processes=1, detector=name, flavour="numu",
        min_energy_gev=10, max_energy_gev=1e5, spectral_index=1.5,
    )  # fmt: skip
    simulate(open_store(), raw_uri, config)
    known = built_in_detector(name)
    written = load_detector(open_store(), f"{raw_uri}/sensor_geometry.csv")
    assert written.difference_from(known) == ""
    pulses = pq.read_table(tmp_path / "train" / "batch_1.parquet").to_pandas()
    assert (written.sensor_idx(pulses["sensor_id"].to_numpy()) >= 0).all()
    assert pulses["time"].min() >= 0
    seen = pulses[~pulses["auxiliary"]].groupby(level=0).size()
    assert (seen >= site_of(known).n_trigger_hits).all()
    truth = pq.read_table(tmp_path / "truth" / "batch_1.parquet").to_pandas()
    assert set(truth["interaction"]) == {"cc", "nc"}
    assert set(truth["flavour"]) == {14, -14}


@pytest.mark.parametrize("name", ["flower-s", "triangle"])
def test_light_in_water_keeps_the_cherenkov_time_of_water(name):
    site = site_of(built_in_detector(name))
    centre = site.extent.centre_m
    one = np.array([1.0])
    track = Tracks(
        event=np.array([0]), nearest_m=centre[None] + np.array([[11.0, 0, 0]]),
        travel=np.array([[0.0, 0.0, 1.0]]), vertex_m=-2e3 * one, first_m=-2e3 * one,
        last_m=2e3 * one, energy_gev=1e4 * one,
    )  # fmt: skip
    pairs = track_pairs(track, site)
    along = site.sensors.xyz_m[pairs.sensor, 2] - centre[2]
    angle = np.arccos(1 / WATER.n_phase)
    slope = WATER.n_group / np.sin(angle) - 1 / np.tan(angle)
    expected = (along + slope * pairs.distance_m) / 0.299792458
    np.testing.assert_allclose(pairs.arrival_ns, expected, atol=1e-6)


def test_neighbours_go_by_height_on_the_string_and_not_by_number():
    upward = built_in_detector("triangle")
    sensors = site_of(upward).sensors
    row = 24
    assert sensors.neighbour[:, row].tolist() == [26, 25, 23, 22]
    assert sensors.neighbour[:, 19].tolist() == [-1, -1, 18, 17]
    downward = icecube_site().sensors
    assert downward.sensor_id[downward.neighbour[2, 100]] == downward.sensor_id[100] + 1


def test_numbers_of_one_detector_stand_in_its_own_file_only():
    root = Path(__file__).parents[3]
    owners = {"detector.py", "built_in_detectors.py"}
    files = [*root.glob("src/**/*.py"), *root.glob("components/*.py"), root / "pipeline.py"]
    # smaller ones occur as other numbers
    sizes = {"86", *(str(n) for both in SIZES.values() for n in both if n > 300)}
    for file in (file for file in files if file.name not in owners):
        with file.open("rb") as source:
            numbers = [t for t in tokenize.tokenize(source.readline) if t.type == tokenize.NUMBER]
        told = {t.string.replace("_", "") for t in numbers} & sizes
        assert not told, f"{file} knows a detector by its size: {told}"


@pytest.mark.parametrize(
    ("name", "depth_m"),
    [("icecube86", 1948), ("hexagon", 1942), ("cluster", 970), ("flower-l", 3194)],
)
def test_no_muon_starts_above_the_surface_wherever_the_array_is(name, depth_m):
    assert site_of(built_in_detector(name)).overburden_m == pytest.approx(depth_m, abs=1)


@pytest.mark.parametrize("name", SIZES)
def test_detector_is_known_by_the_places_of_some_hits(name):
    hits = built_in_detector(name).xyz_m[1:60:7] + 0.004
    assert name in names_around(hits)
    assert names_around(hits + 0.5) == []
    assert names_around(hits[:0]) == []


def test_hexagon_in_ice_has_the_layers_of_the_south_pole():
    shift = built_in_detector("hexagon").xyz_m[0] - icecube86().xyz_m[0]
    hexagon = site_of(built_in_detector("hexagon-ice"))
    z_m = np.array([-100.0, 300.0])
    found = hexagon.lengths.mean_lengths(z_m + shift[2], z_m + shift[2] + 20)
    expected = icecube_site().lengths.mean_lengths(z_m, z_m + 20)
    np.testing.assert_allclose(found, expected, rtol=1e-9)


def test_medium_asked_for_replaces_that_of_the_detector():
    config = SimulationConfig(detector="hexagon", medium="ice")
    assert detector_of(config).medium == ICE
    assert detector_of(SimulationConfig(detector="hexagon")).medium == WATER
    assert detector_of(SimulationConfig()).medium == ICE


def test_clock_of_icecube_is_read_off_its_published_trigger():
    site = icecube_site()
    assert site.n_trigger_hits == 8
    windows = (site.trigger_window_ns, site.readout_before_ns, site.readout_after_ns)
    assert windows == (5_000, 4_000, 6_000)
    # a larger array is read no longer, because the readout goes on while hits do
    larger = site_of(built_in_detector("flower-xl"))
    assert larger.trigger_window_ns > 6_000
    assert (larger.readout_before_ns, larger.readout_after_ns) == (4_000, 6_000)


def test_settings_accept_every_built_in_name():
    for name in BUILT_IN_NAMES:
        assert DataConfig(detector=name).detector == name
        assert load_detector(open_store(), name).n_sensors == built_in_detector(name).n_sensors


def test_names_are_listed_with_their_size_and_medium(capsys):
    cli.detectors()
    rows = {line.split()[0]: line.split() for line in capsys.readouterr().out.splitlines()}
    assert set(rows) == {"name", *BUILT_IN_NAMES}
    assert rows["flower-xl"][1:4] == ["1,211", "24,220", "water"]
    assert rows["icecube86"][-1] == icecube86().digest()[:16]


def test_unknown_detector_is_refused_with_the_names_there_are():
    with pytest.raises(DetectorError, match=r"detector ice-cube; built-in: icecube86, hexagon"):
        detector_of(SimulationConfig(detector="ice-cube"))


def test_file_without_a_medium_is_taken_as_water_where_its_places_are_known(tmp_path):
    known = built_in_detector("triangle")
    file = tmp_path / "geometry.csv"
    file.write_text(dataclasses.replace(known, stated_medium=None).to_csv())
    assert detector_of(SimulationConfig(detector=str(file))).medium == WATER


def test_energies_of_index_one_are_even_in_their_logarithm():
    config = SimulationConfig(
        preset="easy", min_energy_gev=10, max_energy_gev=1e5, spectral_index=1
    )
    drawn = draw_interactions(20_000, config, icecube_site(), np.random.default_rng(4))
    shares, _ = np.histogram(np.log10(drawn.energy_gev), bins=4, range=(1, 5))
    np.testing.assert_allclose(shares / 20_000, 0.25, atol=0.015)


@pytest.mark.parametrize("name", ["hexagon", "triangle"])
def test_muons_pass_any_point_of_the_array_alike(name):
    """Even over a cylinder of radius R and half height H, seen from everywhere.

    The mean square of the distance from the centre is R^2 / 3 + 2 H^2 / 9: that of a point,
    R^2 / 2 + H^2 / 3, without the part along an isotropic way, R^2 / 6 + H^2 / 9.
    """
    detector = built_in_detector(name)
    site = site_of(detector)
    config = SimulationConfig(preset="easy", cascade_share=0.0)
    drawn = draw_interactions(20_000, config, site, np.random.default_rng(7))
    middle = detector.xyz_m.min(axis=0) / 2 + detector.xyz_m.max(axis=0) / 2
    from_centre = detector.xyz_m - middle
    # light of muons that pass outside by an absorption length, 60 m in the sea, is still seen
    radius = np.hypot(from_centre[:, 0], from_centre[:, 1]).max() + 60
    half_height = from_centre[:, 2].max() + 60
    nearest = drawn.vertex_m - middle - drawn.vertex_along_m[:, None] * drawn.travel
    np.testing.assert_allclose((nearest * drawn.travel).sum(axis=1), 0, atol=1e-6)
    square = (nearest**2).sum(axis=1)
    error = square.std() / np.sqrt(len(square))
    assert square.mean() == pytest.approx(radius**2 / 3 + 2 * half_height**2 / 9, abs=4 * error)


def test_muon_neutrinos_alone_make_neutral_currents_of_both_signs():
    config = SimulationConfig(preset="easy", flavour="numu")
    drawn = draw_interactions(5_000, config, icecube_site(), np.random.default_rng(5))
    assert set(drawn.code) == {0, 2}
    np.testing.assert_allclose((drawn.flavour > 0).mean(), 0.5, atol=0.03)
    np.testing.assert_array_equal(np.abs(drawn.flavour), 14)
    # a neutral current shows its hadrons only
    neutral = drawn.code == 2
    np.testing.assert_array_equal(drawn.cascade_gev[neutral], drawn.hadronic_gev[neutral])


def test_dark_pulses_come_at_the_rate_of_the_medium():
    site = site_of(built_in_detector("flower-l"))
    rng = np.random.default_rng(6)
    n_events, duration_ns = 200, 10_000.0
    noise = draw_noise(np.zeros(n_events), np.full(n_events, duration_ns), site, rng)
    pulses = form_pulses(noise, site, rng)
    inside = (pulses.time_ns >= 0) & (pulses.time_ns <= duration_ns)
    rate_hz = inside.sum() / n_events / duration_ns * 1e9 / site.sensors.n_sensors
    assert pulses.dark.all()
    np.testing.assert_allclose(rate_hz, 1_000, rtol=0.05)


@pytest.mark.parametrize(
    ("given", "name"),
    [
        ("Hexagon Ice LE", "hexagon-ice"),
        ("hexagon-ice-le", "hexagon-ice"),
        ("hexagon_ice", "hexagon-ice"),
        ("Flower XL", "flower-xl"),
        ("Hexagon", "hexagon"),
        (" IceCube86", "icecube86"),
    ],
)
def test_a_detector_is_known_by_the_name_of_its_set_too(given, name):
    assert built_in_name(given) == name
    assert read_geometry(given).detector.digest() == built_in_detector(name).digest()
    config = SimulationConfig(detector=given)
    assert config == SimulationConfig(detector=name)
    assert detector_of(config) == built_in_detector(name)


@pytest.mark.parametrize("given", ["hexagon-le", "Hexagon Ice LE 2", "ice", ""])
def test_other_names_are_no_built_in_detector(given):
    assert built_in_name(given) == ""
    with pytest.raises(DetectorError, match=r"built-in: .*hexagon-ice"):
        detector_of(SimulationConfig(detector=given or "x"))


def test_sets_of_the_benchmark_are_known_by_the_built_in_detectors():
    sets = [set_of(built_in_detector(name)) for name in BUILT_IN_NAMES]
    assert sets == [
        "", "Hexagon", "Hexagon Ice LE", "Cluster", "Flower S", "Flower L", "Flower XL", "Triangle"
    ]  # fmt: skip
    for name, title in zip(BUILT_IN_NAMES[1:], sets[1:], strict=True):
        assert re.search(rf"^{name} .*  {title} +\w+$", detectors_table(), re.MULTILINE)
