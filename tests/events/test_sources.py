import sqlite3
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from iceaggr.batches import EventLoader, iter_batches
from iceaggr.config import BatchConfig, DataConfig
from iceaggr.errors import RawDataError
from iceaggr.events.layout import load_detector
from iceaggr.events.reading import read_raw_events
from iceaggr.events.sources import GraphnetSqlite, convert_graphnet_sqlite
from iceaggr.storage import open_store
from tests.shards.raw_shards import read_all, shard_all

STORE = open_store()
PROMETHEUS = Path(__file__).parents[2].parent / "shared" / "data" / "prometheus-events.db"
ACCEPTED = GraphnetSqlite(accept_missing=("charge", "auxiliary"), n_events_per_file=20)

needs_prometheus = pytest.mark.skipif(
    not PROMETHEUS.exists(), reason=f"the Prometheus sample is not at {PROMETHEUS}"
)


def small_tables():
    pulses = pd.DataFrame(
        {
            "event_no": [7, 7, 7, 5, 5],
            "t": [30.4, 10.6, 20.0, 5.0, 6.0],
            "sensor_id": [2, 40, 2, 9, 40],
            "sensor_pos_x": [0.0, 1.0, 0.0, 2.0, 1.0],
            "sensor_pos_y": [0.0, 0.0, 0.0, 0.0, 0.0],
            "sensor_pos_z": [5.0, -5.0, 5.0, 1.0, -5.0],
        }
    )
    truth = pd.DataFrame(
        {
            "event_no": [7, 5, 6],
            "injection_azimuth": [0.5, 6.0, 1.0],
            "injection_zenith": [1.0, 2.0, 3.0],
        }
    )
    return pulses, truth


def database_of(tmp_path, pulses, truth):
    path = tmp_path / "events.db"
    connection = sqlite3.connect(path)
    pulses.to_sql("total", connection, index=False)
    truth.to_sql("mc_truth", connection, index=False)
    connection.close()
    return path


def convert(tmp_path, pulses, truth, source=ACCEPTED):
    out_uri = (tmp_path / "raw").as_uri()
    database = database_of(tmp_path, pulses, truth)
    return out_uri, convert_graphnet_sqlite(STORE, database, out_uri, source)


def test_convert_refuses_to_invent_charge_and_auxiliary(tmp_path):
    with pytest.raises(RawDataError, match=r"no charge and no auxiliary.*accept_missing="):
        convert(tmp_path, *small_tables(), GraphnetSqlite())
    assert not (tmp_path / "raw").exists()


def test_convert_refuses_what_was_not_accepted(tmp_path):
    with pytest.raises(RawDataError, match=r"source has no auxiliary \["):
        convert(tmp_path, *small_tables(), GraphnetSqlite(accept_missing=("charge",)))


def test_convert_states_what_is_missing(tmp_path):
    uri, notes = convert(tmp_path, *small_tables())
    assert [note.split(":")[0] for note in notes] == [
        "charge",
        "auxiliary",
        "time",
        "geometry",
        "label",
    ]
    assert shard_all(uri, tmp_path / "out").notes == notes


def test_convert_takes_charges_and_flags_that_are_there(tmp_path):
    pulses, truth = small_tables()
    pulses = pulses.assign(charge=[1.5, 2, 3, 4, 5], auxiliary=[1, 0, 0, 1, 0], t=[3.0, 1, 2, 5, 6])
    uri, notes = convert(tmp_path, pulses, truth, GraphnetSqlite())
    assert [note.split(":")[0] for note in notes] == ["geometry", "label"]
    raw = pd.read_parquet(tmp_path / "raw/train/batch_1.parquet")
    assert raw["charge"].tolist() == [4, 5, 2, 3, 1.5]
    assert raw["auxiliary"].tolist() == [True, False, False, False, True]
    assert uri


def test_convert_writes_events_that_shard_exactly(tmp_path):
    uri, _ = convert(tmp_path, *small_tables())
    manifest = shard_all(uri, tmp_path / "out")
    source = manifest.source_files[0]
    assert source.rejected_events == {"no_pulses": 1}
    events = read_all(manifest)
    order = np.argsort(events.event_id)
    assert events.event_id[order].tolist() == [5, 7]
    assert events.azimuth[order].tolist() == [6.0, 0.5]
    assert sorted(events.time_ns.tolist()) == [5, 6, 11, 20, 30]
    assert load_detector(STORE, manifest.geometry_uri).sensor_id.tolist() == [2, 9, 40]


def test_convert_turns_directions_of_travel_round(tmp_path):
    source = GraphnetSqlite(accept_missing=("charge", "auxiliary"), label_points_to="destination")
    convert(tmp_path, *small_tables(), source)
    meta = pd.read_parquet(tmp_path / "raw/train_meta.parquet").set_index("event_id")
    assert meta.loc[7, "azimuth"] == pytest.approx(0.5 + np.pi)
    assert meta.loc[5, "azimuth"] == pytest.approx(6.0 - np.pi)
    assert meta.loc[5, "zenith"] == pytest.approx(np.pi - 2.0)


def test_convert_refuses_a_sensor_at_two_places(tmp_path):
    pulses, truth = small_tables()
    pulses.loc[0, "sensor_pos_z"] = 99.0
    with pytest.raises(RawDataError, match=r"stands at two places.*sensor_id 2"):
        convert(tmp_path, pulses, truth)


def test_convert_refuses_pulses_of_unknown_events(tmp_path):
    pulses, truth = small_tables()
    with pytest.raises(RawDataError, match=r"without truth.*1 events, such as 5"):
        convert(tmp_path, pulses, truth[truth["event_no"] != 5])


def test_convert_names_the_columns_that_are_not_there(tmp_path):
    pulses, truth = small_tables()
    with pytest.raises(RawDataError, match="lacks columns t, sensor_pos_x"):
        convert(tmp_path, pulses.drop(columns=["t", "sensor_pos_x"]), truth)


def test_convert_refuses_what_is_no_such_database(tmp_path):
    path = tmp_path / "events.db"
    path.write_bytes(b"not SQLite at all, but long enough to look at")
    with pytest.raises(RawDataError, match=r"cannot read the SQLite source \[.*events.db\]"):
        convert_graphnet_sqlite(STORE, path, (tmp_path / "raw").as_uri(), ACCEPTED)
    with pytest.raises(RawDataError, match="unable to open"):
        convert_graphnet_sqlite(STORE, tmp_path / "no.db", (tmp_path / "raw").as_uri(), ACCEPTED)


@pytest.fixture(scope="module")
def prometheus_uri(tmp_path_factory):
    uri = (tmp_path_factory.mktemp("prometheus") / "raw").as_uri()
    convert_graphnet_sqlite(STORE, PROMETHEUS, uri, ACCEPTED)
    return uri


@needs_prometheus
def test_prometheus_events_go_through_sharding_and_loading(prometheus_uri, tmp_path):
    manifest = shard_all(prometheus_uri, tmp_path, DataConfig(validation_share=0.2))
    assert [source.n_events_in for source in manifest.source_files] == [20, 20, 10]
    assert sum(source.n_pulses_kept for source in manifest.source_files) == 1872
    assert manifest.notes[0].startswith("charge: absent")
    detector = load_detector(STORE, manifest.geometry_uri)
    assert detector.n_sensors == 503
    config = BatchConfig(n_events=8, n_workers=0)
    loaded = [
        batch
        for split in ("train", "validation", "test")
        for batch in EventLoader(STORE, manifest, split, detector, config).epoch(0)
    ]
    assert sum(batch.n_events for batch in loaded) == 50
    assert sum(batch.n_pulses for batch in loaded) == 1872


@needs_prometheus
def test_prometheus_events_are_read_for_prediction(prometheus_uri):
    chunks = read_raw_events(STORE, prometheus_uri)
    detector = load_detector(STORE, f"{prometheus_uri}/sensor_geometry.csv")
    batches = list(iter_batches(chunks, detector, BatchConfig(n_events=16)))
    assert sum(batch.n_pulses for batch in batches) == 1872


@needs_prometheus
def test_prometheus_labels_point_to_the_origin(prometheus_uri):
    """The light of a starting event lies where the particle goes: against the label."""
    connection = sqlite3.connect(PROMETHEUS)
    truth = pd.read_sql("SELECT * FROM mc_truth", connection).set_index("event_no")
    hits = pd.read_sql("SELECT * FROM total", connection).groupby("event_no").mean()
    connection.close()
    folder = Path(prometheus_uri.removeprefix("file://"))
    meta = pd.read_parquet(folder / "train_meta.parquet").set_index("event_id").loc[truth.index]
    vertex = truth[[f"injection_position_{axis}" for axis in "xyz"]].to_numpy()
    light = hits.loc[truth.index, [f"sensor_pos_{axis}" for axis in "xyz"]].to_numpy() - vertex
    azimuth, zenith = meta["azimuth"].to_numpy(), meta["zenith"].to_numpy()
    label = np.stack(
        [np.cos(azimuth) * np.sin(zenith), np.sin(azimuth) * np.sin(zenith), np.cos(zenith)], -1
    )
    against = (light * label).sum(-1) < 0
    assert against.mean() > 0.65
