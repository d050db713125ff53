import shutil

import pandas as pd
import pytest

from iceaggr.config import DataConfig
from iceaggr.storage import open_store
from tests.events.raw_layout import write_raw_layout
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
