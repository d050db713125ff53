import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from iceaggr.errors import RawDataError
from iceaggr.events.raw_folder import RawFolder
from iceaggr.events.simulation import SimulationConfig, simulate
from iceaggr.storage import open_store
from tests.events.raw_layout import write_raw_layout

GEOMETRY = b"sensor_id,x,y,z\n0,0,0,0\n1,0,0,50\n"


def contents(folder):
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*.*")}


def fill(folder, scratch, labelled=True, marker="own.json", geometry=GEOMETRY, finish=True):
    scratch.mkdir(parents=True, exist_ok=True)
    with RawFolder(open_store(), folder.as_uri(), scratch, labelled) as raw:
        raw.claim(marker, {"n": 1}, geometry, ("a note",))
        for publish in (raw.publish, raw.publish_truth) if labelled else (raw.publish,):
            pq.write_table(pa.table({"event_id": [1]}), scratch / "batch_1.parquet")
            publish(scratch / "batch_1.parquet")
        raw.append_meta(pa.table({"event_id": [1]}))
        if finish:
            raw.finish()


@pytest.fixture
def raw(tmp_path):
    fill(tmp_path / "raw", tmp_path / "scratch")
    return tmp_path / "raw"


def refused(raw, tmp_path, words, **others):
    before = contents(raw)
    with pytest.raises(RawDataError, match=words):
        fill(raw, tmp_path / "again", **others)
    assert contents(raw) == before


def test_a_complete_set_is_never_overwritten(raw, tmp_path):
    refused(raw, tmp_path, "already holds complete raw events.*train_meta.parquet")
    refused(raw, tmp_path, "already holds complete raw events", marker="other.json")


@pytest.mark.parametrize(
    "name", ["train/batch_1.parquet", "truth/batch_9.parquet", "sensor_geometry.csv"]
)
def test_files_of_unknown_origin_are_left_alone(tmp_path, name):
    path = tmp_path / "raw" / name
    path.parent.mkdir(parents=True)
    path.write_bytes(b"measured")
    refused(tmp_path / "raw", tmp_path, f"files that another writer wrote.*found {name}")


def test_the_rest_of_ones_own_is_cleared_and_that_of_others_is_not(tmp_path):
    raw = tmp_path / "raw"
    fill(raw, tmp_path / "scratch", finish=False)
    refused(raw, tmp_path, "files that another writer wrote", marker="other.json")
    fill(raw, tmp_path / "again")
    assert "train_meta.parquet" in contents(raw)


def test_a_test_set_beside_keeps_what_belongs_to_train(raw, tmp_path):
    before = contents(raw)
    fill(raw, tmp_path / "again", labelled=False)
    assert contents(raw).items() > before.items()
    assert set(contents(raw)) - set(before) == {"test/batch_1.parquet", "test_meta.parquet"}


def test_a_test_set_of_another_detector_or_writer_is_refused_beside_train(raw, tmp_path):
    other = GEOMETRY.replace(b"50", b"60")
    refused(raw, tmp_path, "another detector", labelled=False, geometry=other)
    refused(raw, tmp_path, "another writer", labelled=False, marker="other.json")


def test_simulated_test_events_leave_the_truth_of_simulated_train_events(tmp_path):
    for labels in (True, False):
        config = SimulationConfig(n_events=20, n_processes=1, labels=labels)
        simulate(open_store(), (tmp_path / "raw").as_uri(), config)
    assert len(pd.read_parquet(tmp_path / "raw/truth/batch_1.parquet")) == 20
    assert len(pd.read_parquet(tmp_path / "raw/test_meta.parquet")) == 20


def test_a_simulation_never_enters_a_set_of_other_events(tmp_path):
    uri = write_raw_layout(tmp_path / "raw")
    before = contents(tmp_path / "raw")
    for labels in (True, False):
        config = SimulationConfig(n_events=5, n_processes=1, labels=labels)
        with pytest.raises(RawDataError, match="folder"):
            simulate(open_store(), uri, config)
    assert contents(tmp_path / "raw") == before
