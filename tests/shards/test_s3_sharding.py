"""Sharding from and to a real object store."""

from pathlib import Path

import pytest

from iceaggr.config import DataConfig
from iceaggr.events.reading import read_raw_events
from iceaggr.shards.planning import plan_shards
from iceaggr.shards.reading import read_shard
from iceaggr.shards.writing import shard_unit
from iceaggr.storage import open_store
from tests.events.raw_layout import write_raw_layout
from tests.shards.raw_shards import shard_all


@pytest.mark.integration
def test_sharding_in_an_object_store_gives_the_same_shards_as_on_disk(
    object_store_service, tmp_path
):
    store, raw_uri, out_uri = open_store(), "s3://iceaggr/shards/raw", "s3://iceaggr/shards/out"
    local_uri = write_raw_layout(tmp_path / "raw", n_files=2, n_events_per_file=300)
    for path in Path(tmp_path / "raw").rglob("*.*"):
        store.upload(path, f"{raw_uri}/{path.relative_to(tmp_path / 'raw')}")
    config = DataConfig(n_events_per_shard=64)
    [work_unit] = plan_shards(store, raw_uri, config, out_uri)
    manifest = shard_unit(store, work_unit, out_uri, config)
    on_disk = shard_all(local_uri, tmp_path / "out", config)
    assert {e.blake3 for e in manifest.shards} == {e.blake3 for e in on_disk.shards}
    assert sum(read_shard(store, entry).n_events for entry in manifest.shards) == 600
    again = shard_unit(store, work_unit, out_uri, config)
    assert all(source.reused for source in again.source_files)
    assert again.shards == manifest.shards
    assert sum(chunk.n_events for chunk in read_raw_events(store, raw_uri)) == 600
