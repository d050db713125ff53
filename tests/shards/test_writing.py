import os
import shutil
from itertools import pairwise

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest

from iceaggr.config import DataConfig
from iceaggr.detector import icecube86
from iceaggr.errors import RawDataError, ShardError
from iceaggr.events.cleaning import EVENT_REASONS, PULSE_REASONS
from iceaggr.events.meta import read_event_tables
from iceaggr.shards.encoding import SPLITS
from iceaggr.shards.manifest import merge_manifests
from iceaggr.shards.planning import plan_shards
from iceaggr.shards.reading import read_shard
from iceaggr.shards.sketches import split_sketches_from_json
from iceaggr.shards.sketching import sketch_events
from iceaggr.shards.split import split_idx
from iceaggr.shards.writing import shard_unit
from iceaggr.storage import open_store
from tests.events.raw_layout import write_raw_layout
from tests.events.raw_tables import meta_frame, pulse_frame, write_raw
from tests.shards.raw_shards import contents, read_all, shard_all

STORE = open_store()


def reused(manifest):
    return [source.reused for source in manifest.source_files]


def test_sharding_again_reuses_everything(tmp_path):
    uri = write_raw_layout(tmp_path / "raw", n_files=2)
    first = shard_all(uri, tmp_path / "out")
    before = contents(tmp_path / "out")
    again = shard_all(uri, tmp_path / "out")
    assert reused(first) == [False, False]
    assert reused(again) == [True, True]
    assert again.shards == first.shards
    assert contents(tmp_path / "out") == before


def test_sharding_one_more_file_shards_only_that_file(tmp_path):
    uri = write_raw_layout(tmp_path / "raw", n_files=2)
    first = shard_all(uri, tmp_path / "out")
    more = write_raw_layout(tmp_path / "more", n_files=3)
    shutil.copy(tmp_path / "more/train/batch_3.parquet", tmp_path / "raw/train")
    shutil.copy(tmp_path / "more/train_meta.parquet", tmp_path / "raw")
    grown = shard_all(uri, tmp_path / "out")
    assert reused(grown) == [True, True, False]
    assert set(first.shards) < set(grown.shards)
    assert read_all(grown).n_events == 150
    assert more != uri


def test_sharding_recognises_a_file_that_moved(tmp_path):
    write_raw_layout(tmp_path / "raw", n_files=1)
    shard_all((tmp_path / "raw").as_uri(), tmp_path / "out")
    (tmp_path / "raw").rename(tmp_path / "moved")
    manifest = shard_all((tmp_path / "moved").as_uri(), tmp_path / "out")
    assert reused(manifest) == [True]
    assert manifest.source_files[0].uri.endswith("/moved/train/batch_1.parquet")
    assert manifest.geometry_uri.endswith("/moved/sensor_geometry.csv")


@pytest.mark.parametrize(
    "change",
    [
        {"split_salt": "other"},
        {"validation_share": 0.2},
        {"test_share": 0.2},
        {"n_events_per_shard": 7},
        {"n_events": 30},
    ],
)
def test_sharding_with_other_settings_reuses_nothing(tmp_path, change):
    uri = write_raw_layout(tmp_path / "raw", n_files=1)
    shard_all(uri, tmp_path / "out")
    assert reused(shard_all(uri, tmp_path / "out", DataConfig(**change))) == [False]


def test_sharding_with_other_limits_of_a_unit_reuses_everything(tmp_path):
    uri = write_raw_layout(tmp_path / "raw", n_files=2)
    shard_all(uri, tmp_path / "out")
    config = DataConfig(max_work_units=1, work_unit_mib=1)
    assert reused(shard_all(uri, tmp_path / "out", config)) == [True, True]


def test_sharding_after_a_label_changed_reuses_only_the_other_file(tmp_path):
    uri = write_raw_layout(tmp_path / "raw", n_files=2)
    shard_all(uri, tmp_path / "out")
    path = tmp_path / "raw/train_meta.parquet"
    meta = pd.read_parquet(path)
    meta.loc[3, "zenith"] = 1.0
    meta.to_parquet(path)
    assert reused(shard_all(uri, tmp_path / "out")) == [False, True]


def test_sharding_after_a_sensor_moved_reuses_nothing(tmp_path):
    uri = write_raw_layout(tmp_path / "raw", n_files=1)
    shard_all(uri, tmp_path / "out")
    path = tmp_path / "raw/sensor_geometry.csv"
    table = pd.read_csv(path)
    table.loc[17, "x"] += 5
    table.to_csv(path, index=False)
    assert reused(shard_all(uri, tmp_path / "out")) == [False]


@pytest.mark.parametrize("damage", ["shard missing", "shard short", "sketch missing", "manifest"])
def test_sharding_repairs_what_is_missing_or_damaged(tmp_path, damage):
    uri = write_raw_layout(tmp_path / "raw", n_files=1)
    first = shard_all(uri, tmp_path / "out")
    shard_uri, sketch_uri = first.shards[0].uri, first.source_files[0].sketch_uri
    if damage == "shard missing":
        STORE.delete(shard_uri)
    elif damage == "shard short":
        STORE.write_bytes(shard_uri, STORE.read_bytes(shard_uri)[:-1])
    elif damage == "sketch missing":
        STORE.delete(sketch_uri)
    else:
        STORE.write_bytes(sketch_uri.replace("sketch", "manifest"), b"{}")
    again = shard_all(uri, tmp_path / "out")
    assert reused(again) == [False]
    assert again.shards == first.shards
    assert read_all(again).n_events == 50


def test_shard_unit_puts_each_event_into_its_split_once(tmp_path):
    uri = write_raw_layout(tmp_path / "raw", n_files=2, n_events_per_file=100)
    config = DataConfig(n_events_per_shard=16)
    manifest = shard_all(uri, tmp_path / "out", config)
    found = []
    for split_number, split in enumerate(SPLITS):
        for entry in manifest.shards_of(split):
            ids = read_shard(STORE, entry).event_id
            shares = (config.validation_share, config.test_share)
            assert (split_idx(ids, config.split_salt, *shares) == split_number).all()
            found.extend(ids.tolist())
    assert (
        sorted(found) == pd.read_parquet(tmp_path / "raw/train_meta.parquet")["event_id"].tolist()
    )
    assert max(entry.n_events for entry in manifest.shards) == 16


def test_shard_unit_writes_the_sketch_of_each_split(tmp_path):
    uri = write_raw_layout(tmp_path / "raw", n_files=1, n_events_per_file=100)
    manifest = shard_all(uri, tmp_path / "out", DataConfig(n_events_per_shard=16))
    sketch_uri = manifest.source_files[0].sketch_uri
    sketches = split_sketches_from_json(STORE.read_bytes(sketch_uri), sketch_uri)
    assert list(sketches) == list(SPLITS)
    for split, sketch in sketches.items():
        assert sketch.n_events == manifest.n_events(split)
    first = read_shard(STORE, manifest.shards_of("test")[0])
    expected = sketch_events(first, icecube86()).features["charge_pe"].mean
    assert sketches["test"].features["charge_pe"].mean == pytest.approx(expected, rel=1e-12)


def test_shard_unit_accounts_for_every_pulse(tmp_path):
    counts = [2, 1, 3, 0, 4]
    charge = np.array([1, 1, np.nan, 1, -1, 1, 1, 1, 1, 1], np.float32)
    zenith = [0.1, 0.2, 0.3, 0.4, 99.0]
    frame = pulse_frame(counts, charge=charge, sensor_id=[0, 6000, 2, 3, 4, 5, 6, 7, 8, 9])
    uri = write_raw(tmp_path / "raw", frame, meta_frame(counts, zenith=zenith))
    manifest = shard_all(uri, tmp_path / "out")
    source = manifest.source_files[0]
    assert (source.n_events_in, source.n_events_kept) == (5, 2)
    assert (source.n_pulses_in, source.n_pulses_kept) == (10, 3)
    assert source.rejected_events == {
        "label_out_of_range": 1,
        "no_pulses": 1,
        "no_valid_pulses": 1,
    }
    assert source.rejected_pulses == {
        "sensor_not_in_geometry": 1,
        "value_missing": 1,
        "charge_not_positive": 1,
        "event_rejected": 4,
    }
    assert sorted(read_all(manifest).event_id.tolist()) == [100, 102]


def test_shard_unit_keeps_what_it_rejects_in_quarantine(tmp_path):
    counts = [2, 0, 3]
    frame = pulse_frame(counts, charge=np.array([1, -1, 1, 1, 1], np.float32))
    meta = meta_frame(counts, zenith=[0.1, 0.2, np.nan])
    manifest = shard_all(write_raw(tmp_path / "raw", frame, meta), tmp_path / "out")
    rows = pq.read_table(STORE.open_input(manifest.source_files[0].quarantine_uri)).to_pylist()
    pulses = [row for row in rows if row["pulse_index"] is not None]
    assert [(row["event_id"], row["pulse_index"], row["pulse_reason"]) for row in pulses] == [
        (100, 1, "charge_not_positive"),
        (102, 2, "event_rejected"),
        (102, 3, "event_rejected"),
        (102, 4, "event_rejected"),
    ]
    assert pulses[0]["charge"] == -1
    assert pulses[0]["event_reason"] is None
    assert pulses[1]["event_reason"] == "label_not_finite"
    events = [row for row in rows if row["pulse_index"] is None]
    assert [(row["event_id"], row["event_reason"]) for row in events] == [(101, "no_pulses")]
    reasons = {row["pulse_reason"] for row in pulses}
    assert reasons <= set(PULSE_REASONS)
    assert {row["event_reason"] for row in events} <= set(EVENT_REASONS)


def test_shard_unit_writes_no_quarantine_when_nothing_is_rejected(tmp_path):
    uri = write_raw_layout(tmp_path / "raw", n_files=1)
    assert shard_all(uri, tmp_path / "out").source_files[0].quarantine_uri == ""
    assert not any("quarantine" in name for name in contents(tmp_path / "out"))


def test_shard_unit_accepts_a_file_whose_events_are_all_rejected(tmp_path):
    uri = write_raw(tmp_path / "raw", pulse_frame([3], charge=np.zeros(3)), meta_frame([3]))
    manifest = shard_all(uri, tmp_path / "out")
    assert manifest.shards == ()
    assert manifest.source_files[0].rejected_pulses == {"charge_not_positive": 3}


def test_shard_unit_uses_the_first_events_only_when_asked(tmp_path):
    uri = write_raw_layout(tmp_path / "raw", n_files=2, n_events_per_file=50)
    manifest = shard_all(uri, tmp_path / "out", DataConfig(n_events=70))
    ids = pd.read_parquet(tmp_path / "raw/train_meta.parquet")["event_id"][:70]
    assert sorted(read_all(manifest).event_id.tolist()) == ids.tolist()
    assert [source.n_events_in for source in manifest.source_files] == [50, 20]


def test_shard_unit_leaves_no_manifest_when_a_raw_file_is_damaged(tmp_path):
    uri = write_raw_layout(tmp_path / "raw", n_files=1)
    path = tmp_path / "raw/train/batch_1.parquet"
    pq.write_table(pq.read_table(path), path, write_page_checksum=True)
    data = bytearray(path.read_bytes())
    data[4000] ^= 1
    path.write_bytes(data)
    with pytest.raises(RawDataError, match=r"damaged.*\[.*batch_1.parquet\]"):
        shard_all(uri, tmp_path / "out")
    assert not any("manifest" in name for name in contents(tmp_path / "out"))


def test_shard_unit_refuses_a_meta_file_that_changed_after_planning(tmp_path):
    uri = write_raw_layout(tmp_path / "raw", n_files=1)
    unit = plan_shards(STORE, uri, DataConfig(), (tmp_path / "out").as_uri())[0]
    path = tmp_path / "raw/train_meta.parquet"
    pd.read_parquet(path).iloc[:-1].to_parquet(path)
    with pytest.raises(RawDataError, match=r"changed after it was planned \[.*meta.*tag .*tag"):
        shard_unit(STORE, unit, (tmp_path / "out").as_uri(), DataConfig())


def turn_all_events(path):
    meta = pd.read_parquet(path)
    meta["azimuth"] = np.mod(meta["azimuth"] + 1, 2 * np.pi).astype(np.float32)
    meta.to_parquet(path, index=False)


def test_units_do_not_take_their_labels_from_two_meta_files(tmp_path):
    uri = write_raw_layout(tmp_path / "raw", n_files=2)
    out_uri = (tmp_path / "out").as_uri()
    [unit] = plan_shards(STORE, uri, DataConfig(), out_uri)
    plan_uri = unit.rpartition("#")[0]
    shard_unit(STORE, f"{plan_uri}#0:1", out_uri, DataConfig())
    before = contents(tmp_path / "out")
    turn_all_events(tmp_path / "raw/train_meta.parquet")  # as many rows as before
    with pytest.raises(
        RawDataError, match=r"changed after it was planned \[.*train_meta.parquet\]"
    ):
        shard_unit(STORE, f"{plan_uri}#1:2", out_uri, DataConfig())
    assert contents(tmp_path / "out") == before


def test_shard_unit_refuses_a_meta_file_that_changes_while_it_is_read(tmp_path, monkeypatch):
    uri = write_raw_layout(tmp_path / "raw", n_files=1)
    out_uri = (tmp_path / "out").as_uri()
    [unit] = plan_shards(STORE, uri, DataConfig(), out_uri)

    def read_and_turned(*arguments):
        tables = read_event_tables(*arguments)
        turn_all_events(tmp_path / "raw/train_meta.parquet")
        return tables

    monkeypatch.setattr("iceaggr.shards.writing.read_event_tables", read_and_turned)
    with pytest.raises(
        RawDataError, match=r"changed after it was planned \[.*train_meta.parquet\]"
    ):
        shard_unit(STORE, unit, out_uri, DataConfig())


def test_shard_unit_counts_the_events_where_the_tag_does_not_tell(tmp_path):
    uri = write_raw_layout(tmp_path / "raw", n_files=1)
    out_uri = (tmp_path / "out").as_uri()
    [unit] = plan_shards(STORE, uri, DataConfig(), out_uri)
    path = tmp_path / "raw/train_meta.parquet"
    meta = STORE.stat(path.as_uri())
    pd.read_parquet(path).iloc[:-1].to_parquet(path)

    class Forgetful:
        def __getattr__(self, name):
            return getattr(STORE, name)

        def stat(self, uri):
            return meta if uri == meta.uri else STORE.stat(uri)

    with pytest.raises(RawDataError, match=r"changed after it was planned.*49 events.*50 events"):
        shard_unit(Forgetful(), unit, out_uri, DataConfig())


def test_shard_unit_reports_progress_up_to_the_end(tmp_path):
    uri = write_raw_layout(tmp_path / "raw", n_files=2)
    out_uri = (tmp_path / "out").as_uri()
    unit = plan_shards(STORE, uri, DataConfig(), out_uri)[0]
    reports = []
    shard_unit(STORE, unit, out_uri, DataConfig(), lambda *report: reports.append(report))
    assert reports[-1] == (100, 100)
    assert all(a[0] <= b[0] for a, b in pairwise(reports))


def test_a_copy_of_the_raw_data_is_read_in_the_same_order(tmp_path):
    write_raw_layout(tmp_path / "raw", n_files=4, n_events_per_file=40)
    config = DataConfig(n_events_per_shard=8)
    orders = []
    for n_minutes in range(4):
        for path in (tmp_path / "raw").rglob("*.parquet"):
            os.utime(path, (60 * n_minutes, 60 * n_minutes))  # another etag, other names of shards
        copy = shard_all((tmp_path / "raw").as_uri(), tmp_path / f"out_{n_minutes}", config)
        orders.append([entry.blake3 for entry in copy.shards])
    assert [orders[0]] * 4 == orders


def test_merge_manifests_refuses_a_raw_file_that_is_there_twice(tmp_path):
    manifest = shard_all(write_raw_layout(tmp_path / "raw", n_files=1), tmp_path / "out")
    source = manifest.source_files[0].model_copy(update={"uri": "file:///copy.parquet"})
    copy = manifest.model_copy(update={"source_files": (source,)})
    with pytest.raises(ShardError, match=r"hold the same events \[file:.*copy.parquet"):
        merge_manifests([manifest, copy])
