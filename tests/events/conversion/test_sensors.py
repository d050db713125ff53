import numpy as np
import pandas as pd
import pytest

from iceaggr.built_in_detectors import built_in_detector
from iceaggr.detector import ICE, WATER, icecube86
from iceaggr.errors import DetectorError, RawDataError
from iceaggr.events.conversion import plan_conversion
from iceaggr.events.conversion.sensors import Sensors, read_geometry
from iceaggr.events.layout import load_detector
from iceaggr.events.sources import ChosenTable
from iceaggr.storage import open_store
from tests.events.conversion.foreign_files import (
    SHARED,
    converted,
    frames,
    sensor_frame,
    settings,
    write_nested,
    write_sqlite,
)

NUBENCH = SHARED / "nubench"
ICECUBE = SHARED / "real" / "icecube86.parquet"


def geometry_of(folder):
    return pd.read_csv(folder / "sensor_geometry.csv")


def few(tmp_path, n_lit=3, **columns):
    """A file in which few sensors recorded a pulse."""
    pulses, truth = frames()
    pulses = pulses[pulses["sensor_id"] < n_lit].assign(**columns)
    return write_sqlite(tmp_path / "few.db", pulses, truth)


def test_without_a_geometry_only_lit_sensors_are_known_and_that_is_told(tmp_path):
    _, _, notes = converted(tmp_path / "raw", few(tmp_path))
    assert geometry_of(tmp_path / "raw")["sensor_id"].max() < 3
    assert any(note.startswith("geometry: incomplete, only the") for note in notes)


@pytest.mark.parametrize(
    ("name", "medium"),
    [("icecube86", ICE), ("triangle", WATER), ("flower-xl", WATER), ("hexagon", None)],
)
def test_a_built_in_detector_is_known_by_few_lit_sensors_whatever_their_numbers(name, medium):
    known = built_in_detector(name)
    lit = np.array([3, 17, 40])
    columns = {"x_m": "x", "y_m": "y", "z_m": "z", "sensor_id": "s"}
    chosen = ChosenTable("hits", ("event",), columns, {}, {})
    sensors = Sensors(chosen, None, "column")
    sensors.number({"sensor_id": 900 - lit}, known.xyz_m[lit], "here")
    found, renamed, sentence = sensors.detector()
    assert found.n_sensors == known.n_sensors
    assert found.stated_medium == medium
    to_id = dict(zip(renamed["number"], renamed["sensor_id"], strict=True))
    assert [to_id[number] for number in 900 - lit] == known.sensor_id[lit].tolist()
    assert f"3 sensors that recorded a pulse stand where those of {name}" in sentence


@pytest.mark.parametrize("kind", ["csv", "blanks", "parquet", "index", "pairs", "places"])
def test_a_geometry_gives_all_sensors(tmp_path, kind):
    sensors = sensor_frame()
    if kind == "csv":
        sensors = sensors.rename(columns={f"sensor_pos_{axis}": axis for axis in "xyz"})
        sensors = sensors.rename(columns={"sensor_string_id": "string"})
    if kind == "blanks":
        sensors = sensors.drop(columns=["sensor_string_id", "dom"])
        sensors = sensors.rename(columns={"sensor_id": "om_id"})
        for axis in "xyz":
            sensors[f"{axis.upper()} (cm)"] = sensors.pop(f"sensor_pos_{axis}") * 100
    if kind == "index":  # which only counts: pandas keeps it in the metadata
        assert sensors.pop("sensor_id").tolist() == list(range(len(sensors)))
        sensors.index.name = "sensor_id"
    is_csv = kind in ("csv", "blanks")
    path = tmp_path / ("g.csv" if is_csv else "g.parquet")
    sensors.to_csv(path, index=False) if is_csv else sensors.to_parquet(path)
    chosen = {"geometry": str(path)}
    if kind == "pairs":
        source = few(tmp_path, sensor_id=lambda p: p["sensor_id"] % 6)
        chosen["sensor_ids"] = "string"
    elif kind == "places":
        source = few(tmp_path, sensor_id=999)
        chosen["sensor_ids"] = "position"
    else:
        source = few(tmp_path)
    found, _, _ = converted(tmp_path / "raw", source, **chosen)
    plain, _, _ = converted(tmp_path / "plain", few(tmp_path / "again"))
    assert len(geometry_of(tmp_path / "raw")) == 24
    assert geometry_of(tmp_path / "raw")["z"].min() == -2000
    assert found["sensor_id"].tolist() == plain["sensor_id"].tolist()


def test_numbers_that_count_on_each_string_are_told_apart(tmp_path):
    pulses, truth = frames(40)
    per_string = pulses.assign(sensor_id=pulses["sensor_id"] % 6)
    path = write_sqlite(tmp_path / "a.db", per_string, truth)
    with pytest.raises(RawDataError, match=r"stands at two places.*--sensor-ids string"):
        converted(tmp_path / "raw", path)
    found, _, _ = converted(tmp_path / "raw", path, sensor_ids="string")
    assert set(found["sensor_id"]) == {s // 6 * 1000 + s % 6 for s in set(pulses["sensor_id"])}


def test_prometheus_own_rows_count_on_each_string(tmp_path):
    pulses, truth = frames(40)
    own = pulses.assign(sensor_id=pulses["sensor_id"] % 6)
    own = own.rename(columns={"sensor_string_id": "string_id"})
    path = write_nested(tmp_path / "events.parquet", own, truth)
    found, _, _ = converted(tmp_path / "raw", path)
    assert set(found["sensor_id"]) == {s // 6 * 1000 + s % 6 for s in set(pulses["sensor_id"])}


def test_a_sensor_at_two_places_in_two_files_is_refused(tmp_path):
    pulses, truth = frames()
    first = write_sqlite(tmp_path / "a.db", pulses, truth)
    moved, other = frames(first_id=900)
    moved["sensor_pos_z"] += 5
    second = write_sqlite(tmp_path / "b.db", moved, other)
    with pytest.raises(RawDataError, match=r"stands at two places.*b.db"):
        converted(tmp_path / "raw", first, second)


def test_pulses_that_the_geometry_does_not_fit_are_refused(tmp_path):
    sensors = sensor_frame()
    sensors.assign(sensor_pos_z=sensors["sensor_pos_z"] + 1).to_parquet(tmp_path / "moved.parquet")
    with pytest.raises(RawDataError, match=r"pulses and geometry disagree.*--sensor-ids position"):
        converted(tmp_path / "raw", few(tmp_path), geometry=str(tmp_path / "moved.parquet"))
    sensors[2:].to_parquet(tmp_path / "half.parquet")
    with pytest.raises(RawDataError, match="sensors that the geometry lacks"):
        converted(tmp_path / "raw", few(tmp_path / "b"), geometry=str(tmp_path / "half.parquet"))


def test_sensor_ids_alone_are_never_taken_as_icecubes(tmp_path):
    path = few(tmp_path)
    pulses, truth = frames()
    pulses = pulses.drop(columns=[f"sensor_pos_{axis}" for axis in "xyz"])
    path = write_sqlite(tmp_path / "bare.db", pulses, truth)
    with pytest.raises(RawDataError, match=r"where the sensors stand.*--geometry icecube86"):
        converted(tmp_path / "raw", path)
    converted(tmp_path / "raw", path, geometry="icecube86")
    assert len(geometry_of(tmp_path / "raw")) == 5160


def test_prometheus_geometry_files_are_read(tmp_path):
    rows = [f"{x}\t{y}\t{z}\t{s}\t{d}" for _, s, d, x, y, z in sensor_frame().to_numpy().tolist()]
    text = "### Metadata ###\nMedium:\twater\n### Modules ###\n" + "\n".join(rows) + "\n"
    text = text.replace(".0\t0.0\t", ".0\t0.0\t")
    (tmp_path / "d.geo").write_text(text.replace("\t0.0\n", "\t0\n"))
    table = read_geometry(str(tmp_path / "d.geo"))
    assert table.detector.n_sensors == 24
    assert table.pair.tolist() == [s // 6 * 1000 + s % 6 for s in range(24)]
    assert table.detector.stated_medium == WATER
    source = few(tmp_path)
    converted(tmp_path / "raw", source, geometry=str(tmp_path / "d.geo"), sensor_ids="position")
    assert written(tmp_path / "raw").stated_medium == WATER
    (tmp_path / "d.geo").write_text(text.replace("water", "rock"))
    with pytest.raises(DetectorError, match=r"unknown medium \[--geometry .*d.geo, Medium.*'rock'"):
        read_geometry(str(tmp_path / "d.geo"))


def written(folder):
    return load_detector(open_store(), f"{folder.absolute().as_uri()}/sensor_geometry.csv")


def medium_told(source, **chosen):
    (row,) = [row for row in plan_conversion([source], settings(**chosen)).told if "medium" in row]
    return row[2]


def test_the_medium_is_what_the_flag_or_the_geometry_says_and_is_told_before(tmp_path):
    source, geometry = few(tmp_path), tmp_path / "g.csv"
    sensors = sensor_frame()
    sensors.to_csv(geometry, index=False)
    assert medium_told(source) == medium_told(source, geometry=str(geometry))
    assert medium_told(source).startswith("taken as ice, because nothing says it (--medium water")
    assert medium_told(source, medium="water") == "water, as --medium says"
    _, _, notes = converted(tmp_path / "silent", source)
    assert written(tmp_path / "silent").stated_medium is None
    assert any("medium: ice, because the geometry does not say" in note for note in notes)
    _, _, notes = converted(tmp_path / "flag", source, medium="water")
    assert written(tmp_path / "flag").stated_medium == WATER
    assert any(note.endswith("medium: water") for note in notes)
    sensors.assign(Medium="water").to_csv(geometry, index=False)
    assert medium_told(source, geometry=str(geometry)) == "water, as the geometry says"
    converted(tmp_path / "column", source, geometry=str(geometry))
    assert written(tmp_path / "column").stated_medium == WATER
    with pytest.raises(DetectorError, match=r"contradicts .*--medium ice\]: found .* says water"):
        plan_conversion([source], settings(geometry=str(geometry), medium="ice"))
    with pytest.raises(DetectorError, match=r"unknown medium \[--medium\]: found 'rock'"):
        plan_conversion([source], settings(medium="rock"))


def test_the_positions_of_icecube_may_stand_in_water(tmp_path):
    known = icecube86()
    table = pd.DataFrame({"sensor_id": known.sensor_id, "medium": "water"})
    table[["x", "y", "z"]] = known.xyz_m
    table.to_csv(tmp_path / "sensor_geometry.csv", index=False)
    found = written(tmp_path)
    assert (found.medium, found.string_id.max()) == (WATER, known.string_id.max())
    assert found.digest() != known.digest()


@pytest.mark.skipif(not NUBENCH.exists(), reason=f"no {NUBENCH}")
def test_nubench_detectors_that_stand_in_water_only_are_known(tmp_path):
    source = few(tmp_path)
    told = {
        path.stem: medium_told(source, geometry=str(path)).split(",")[0]
        for path in NUBENCH.iterdir()
    }
    # Hexagon stands in ice in one set and in water in another
    assert told.pop("hexagon") == "taken as ice"
    assert len(told) == 5
    assert set(told.values()) == {"water"}


@pytest.mark.parametrize("text", ["", "a,b\n1,2\n", "sensor_id,x,y,z\n1,2,3,late\n"])
def test_what_is_no_geometry_is_refused_by_its_flag(tmp_path, text):
    (tmp_path / "g.csv").write_text(text)
    with pytest.raises(DetectorError, match=r"--geometry .*g.csv"):
        read_geometry(str(tmp_path / "g.csv"))
    with pytest.raises(DetectorError, match=r"--geometry .*absent"):
        read_geometry(str(tmp_path / "absent.csv"))


@pytest.mark.skipif(not NUBENCH.exists(), reason=f"no {NUBENCH}")
def test_all_nubench_geometries_are_read():
    sizes = {path.stem: read_geometry(str(path)).detector.n_sensors for path in NUBENCH.iterdir()}
    assert sizes == {
        "cluster": 288,
        "flower_l": 2070,
        "flower_s": 3300,
        "flower_xl": 24220,
        "hexagon": 5160,
        "triangle": 60,
    }


@pytest.mark.skipif(not ICECUBE.exists(), reason=f"no {ICECUBE}")
def test_the_full_table_of_graphnet_is_read_with_its_efficiencies():
    table = read_geometry(str(ICECUBE))
    known = icecube86()
    assert table.detector.n_sensors == 5407
    rows = np.searchsorted(np.sort(table.pair), known.string_id * 1000 + known.sensor_id % 60 + 1)
    at = np.argsort(table.pair)[rows.clip(max=5406)]
    same = table.pair[at] == known.string_id * 1000 + known.sensor_id % 60 + 1
    np.testing.assert_allclose(table.detector.xyz_m[at][same], known.xyz_m[same], atol=1e-3)
