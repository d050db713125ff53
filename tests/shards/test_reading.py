import logging

import pytest

from iceaggr.config import DataConfig
from iceaggr.errors import DetectorError, ShardError, StorageError
from iceaggr.shards.manifest import merge_manifests
from iceaggr.shards.planning import plan_shards
from iceaggr.shards.reading import load_recorded_detector, read_shard
from iceaggr.shards.writing import shard_unit
from iceaggr.storage import open_store
from tests.events.raw_layout import write_raw_layout
from tests.shards.raw_shards import shard_all


@pytest.fixture
def entry(tmp_path):
    return shard_all(write_raw_layout(tmp_path / "raw", n_files=1), tmp_path / "out").shards[0]


def test_read_shard_gives_what_the_manifest_counts(entry):
    events = read_shard(open_store(), entry)
    found = (events.n_events, events.n_doms, events.n_pulses)
    assert found == (entry.n_events, entry.n_doms, entry.n_pulses)


def test_read_shard_names_the_shard_when_one_bit_differs(entry):
    store = open_store()
    data = bytearray(store.read_bytes(entry.uri))
    data[len(data) // 2] ^= 1
    store.write_bytes(entry.uri, bytes(data))
    with pytest.raises(ShardError, match=rf"differs from its manifest \[{entry.uri}\].*blake3"):
        read_shard(store, entry)


def test_read_shard_refuses_wrong_counts(entry):
    wrong = entry.model_copy(update={"n_pulses": entry.n_pulses + 1})
    with pytest.raises(ShardError, match="found events, DOMs, pulses"):
        read_shard(open_store(), wrong)


def test_read_shard_names_a_missing_shard(entry):
    open_store().delete(entry.uri)
    with pytest.raises(StorageError, match=entry.uri.rsplit("/", 1)[-1]):
        read_shard(open_store(), entry)


# The detector of a manifest: the one that its events were sharded with, or an error.

STORE = open_store()


def move_a_sensor(raw):
    path = raw / "sensor_geometry.csv"
    lines = path.read_text().splitlines()
    lines[5] = "4,1.0,2.0,3.0"
    path.write_text("\n".join(lines))


@pytest.fixture
def raw(tmp_path):
    write_raw_layout(tmp_path / "raw", n_files=2, n_events_per_file=10)
    return tmp_path / "raw"


def test_detector_of_a_manifest_is_that_of_sharding(raw, tmp_path):
    move_a_sensor(raw)
    manifest = shard_all(raw.as_uri(), tmp_path / "out")
    detector = load_recorded_detector(STORE, manifest)
    assert detector.xyz_m[4].tolist() == [1.0, 2.0, 3.0]
    assert detector.digest() == manifest.detector_digest


def test_geometry_that_changed_after_sharding_is_refused(raw, tmp_path):
    manifest = shard_all(raw.as_uri(), tmp_path / "out")
    move_a_sensor(raw)
    with pytest.raises(
        DetectorError, match=r"geometry changed after .*sensor_geometry\.csv\]: found 5160 sensors"
    ):
        load_recorded_detector(STORE, manifest)


def test_two_geometries_give_two_digests_of_the_data(raw, tmp_path):
    first = shard_all(raw.as_uri(), tmp_path / "out")
    move_a_sensor(raw)
    second = shard_all(raw.as_uri(), tmp_path / "out")
    # the shards hold no positions: only the detector tells the two sets apart
    assert [e.blake3 for e in first.shards] == [e.blake3 for e in second.shards]
    assert first.digest() != second.digest()


def test_units_sharded_before_and_after_the_geometry_changed_are_not_merged(raw, tmp_path):
    out_uri = (tmp_path / "out").as_uri()
    [unit] = plan_shards(STORE, raw.as_uri(), DataConfig(), out_uri)
    plan_uri = unit.rpartition("#")[0]
    first = shard_unit(STORE, f"{plan_uri}#0:1", out_uri, DataConfig())
    move_a_sensor(raw)
    second = shard_unit(STORE, f"{plan_uri}#1:2", out_uri, DataConfig())
    with pytest.raises(ShardError, match=r"sharded differently .*batch_2.*found detector_digest"):
        merge_manifests([first, second])


def test_manifest_of_the_version_before_warns_and_is_completed_by_sharding_again(
    raw, tmp_path, caplog
):
    manifest = shard_all(raw.as_uri(), tmp_path / "out")
    before = {"format_version": 2, "detector_digest": None}
    with caplog.at_level(logging.WARNING):
        load_recorded_detector(STORE, manifest.model_copy(update=before))
    assert "does not say with which geometry" in caplog.text
    for path in (tmp_path / "out").glob("shards/*/manifest.json"):
        [source] = [s for s in manifest.source_files if s.content_key == path.parent.name]
        shards = tuple(e for e in manifest.shards if path.parent.name in e.uri)
        old = manifest.model_copy(update={**before, "source_files": (source,), "shards": shards})
        path.write_text(old.to_json())
    again = shard_all(raw.as_uri(), tmp_path / "out")
    assert [source.reused for source in again.source_files] == [True, True]
    assert (again.digest(), again.format_version) == (manifest.digest(), 3)
