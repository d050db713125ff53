"""The local folder: used, verified, bounded."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from iceaggr.batches import EventLoader
from iceaggr.batches.shard_cache import ShardCache
from iceaggr.config import BatchConfig
from iceaggr.detector import icecube86
from iceaggr.errors import ShardError, StorageError
from iceaggr.shards.manifest import ShardManifest
from iceaggr.storage import open_store
from tests.batches.shard_builder import write_shards


class CountingStore:
    """The real store, which remembers what was read."""

    def __init__(self) -> None:
        self._store = open_store()
        self.reads: list[str] = []

    def __getattr__(self, name: str) -> object:
        return getattr(self._store, name)

    def read_bytes(self, uri: str, compare_tag: bool = True) -> bytes:
        self.reads.append(uri)
        return self._store.read_bytes(uri, compare_tag)


@pytest.fixture
def manifest(tmp_path: Path) -> ShardManifest:
    return write_shards(tmp_path / "shards", [30, 30, 30])


def test_cache_reads_a_remote_shard_once(manifest: ShardManifest, tmp_path: Path) -> None:
    store = CountingStore()
    for _ in range(2):  # the second time as a new process would
        cache = ShardCache(store, tmp_path / "cache", max_bytes=10**9)
        for entry in manifest.shards:
            assert cache.read(entry).n_events == 30
    assert store.reads == [entry.uri for entry in manifest.shards]
    assert cache.n_bytes() == sum(entry.n_bytes for entry in manifest.shards)


def test_cache_deletes_the_least_recently_used_to_stay_within_its_size(
    manifest: ShardManifest, tmp_path: Path
) -> None:
    store = CountingStore()
    first, second, third = manifest.shards
    size = max(entry.n_bytes for entry in manifest.shards)
    cache = ShardCache(store, tmp_path / "cache", max_bytes=2 * size)
    for age, entry in ((20, first), (10, second)):
        cache.read(entry)
        path = tmp_path / "cache" / f"{entry.blake3}.arrow"
        os.utime(path, (path.stat().st_atime - age, path.stat().st_mtime - age))
    cache.read(first)  # used again: now the second is the oldest
    cache.read(third)
    assert cache.n_bytes() <= 2 * size
    store.reads.clear()
    cache.read(first)
    cache.read(third)
    assert store.reads == []
    cache.read(second)
    assert store.reads == [second.uri]


def test_cache_fetches_a_damaged_copy_again(manifest: ShardManifest, tmp_path: Path) -> None:
    store = CountingStore()
    entry = manifest.shards[0]
    cache = ShardCache(store, tmp_path / "cache", max_bytes=10**9)
    whole = cache.read(entry)
    path = tmp_path / "cache" / f"{entry.blake3}.arrow"
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    np.testing.assert_array_equal(cache.read(entry).time_ns, whole.time_ns)
    assert store.reads == [entry.uri] * 2


def test_cache_refuses_a_remote_shard_that_is_damaged_itself(
    manifest: ShardManifest, tmp_path: Path
) -> None:
    entry = manifest.shards[0]
    Path(entry.uri.removeprefix("file://")).write_bytes(b"not a shard")
    cache = ShardCache(CountingStore(), tmp_path / "cache", max_bytes=10**9)
    with pytest.raises(ShardError, match=entry.uri):
        cache.read(entry)
    assert not list((tmp_path / "cache").glob("*.part"))


def test_cache_keeps_nothing_that_is_damaged(manifest: ShardManifest, tmp_path: Path) -> None:
    entry = manifest.shards[0]
    data = bytearray(Path(entry.uri.removeprefix("file://")).read_bytes())
    data[len(data) // 2] ^= 1
    Path(entry.uri.removeprefix("file://")).write_bytes(data)
    store = CountingStore()
    cache = ShardCache(store, tmp_path / "cache", max_bytes=10**9)
    with pytest.raises(ShardError, match=r"differs from its manifest.*blake3"):
        cache.read(entry)
    assert store.reads == [entry.uri] * 3
    assert list((tmp_path / "cache").iterdir()) == []


def test_cache_says_what_to_do_when_its_folder_takes_no_copy(
    manifest: ShardManifest, tmp_path: Path
) -> None:
    cache = ShardCache(CountingStore(), tmp_path / "cache", max_bytes=10**9)
    (tmp_path / "cache").rmdir()
    with pytest.raises(StorageError, match=r"cannot keep a local copy.*batches\.cache_gib"):
        cache.read(manifest.shards[0])


@pytest.mark.parametrize(
    ("name", "found"), [("file", "File exists"), ("file/below", "Not a directory")]
)
def test_loader_names_the_setting_of_a_folder_that_cannot_be_made(
    manifest: ShardManifest, tmp_path: Path, name: str, found: str
) -> None:
    (tmp_path / "file").write_text("")
    settings = BatchConfig(cache_folder=str(tmp_path / name))
    with pytest.raises(
        StorageError, match=rf"cannot be used \[batches\.cache_folder .*{name}\]: found {found}"
    ):
        EventLoader(open_store(), manifest, "train", icecube86(), settings)


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="needs a folder without files")
def test_folder_that_takes_no_files_is_told_before_a_shard_is_read(
    manifest: ShardManifest,
) -> None:
    store = CountingStore()
    with pytest.raises(StorageError, match=r"batches\.cache_folder /proc\]: found No such file"):
        ShardCache(store, Path("/proc"), max_bytes=10**9)
    assert store.reads == []
