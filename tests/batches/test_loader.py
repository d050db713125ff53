"""The loader: pure, mixed, bounded, and clear about what it cannot use."""

from __future__ import annotations

import gc
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from iceaggr.batches import EventLoader
from iceaggr.batches.event_pool import EventPool, Extent
from iceaggr.batches.loader import ShardCache
from iceaggr.config import BatchConfig
from iceaggr.detector import icecube86, parse_geometry
from iceaggr.errors import DetectorError, ShardError, StorageError
from iceaggr.shards.manifest import ShardManifest
from iceaggr.storage import open_store
from tests.batches.shard_builder import write_shards
from tests.batches.small_loaders import N_EVENTS, SIZES, ids, loader
from tests.batches.test_collation import assert_same_batch

# The local folder: used, verified, bounded.


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
def thirty_each(tmp_path: Path) -> ShardManifest:
    return write_shards(tmp_path / "shards", [30, 30, 30])


def test_cache_reads_a_remote_shard_once(thirty_each: ShardManifest, tmp_path: Path) -> None:
    store = CountingStore()
    for _ in range(2):  # the second time as a new process would
        cache = ShardCache(store, tmp_path / "cache", max_bytes=10**9)
        for entry in thirty_each.shards:
            assert cache.read(entry).n_events == 30
    assert store.reads == [entry.uri for entry in thirty_each.shards]
    assert cache.n_bytes() == sum(entry.n_bytes for entry in thirty_each.shards)


def test_cache_deletes_the_least_recently_used_to_stay_within_its_size(
    thirty_each: ShardManifest, tmp_path: Path
) -> None:
    store = CountingStore()
    first, second, third = thirty_each.shards
    size = max(entry.n_bytes for entry in thirty_each.shards)
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


def test_cache_fetches_a_damaged_copy_again(thirty_each: ShardManifest, tmp_path: Path) -> None:
    store = CountingStore()
    entry = thirty_each.shards[0]
    cache = ShardCache(store, tmp_path / "cache", max_bytes=10**9)
    whole = cache.read(entry)
    path = tmp_path / "cache" / f"{entry.blake3}.arrow"
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    np.testing.assert_array_equal(cache.read(entry).time_ns, whole.time_ns)
    assert store.reads == [entry.uri] * 2


def test_cache_refuses_a_remote_shard_that_is_damaged_itself(
    thirty_each: ShardManifest, tmp_path: Path
) -> None:
    entry = thirty_each.shards[0]
    Path(entry.uri.removeprefix("file://")).write_bytes(b"not a shard")
    cache = ShardCache(CountingStore(), tmp_path / "cache", max_bytes=10**9)
    with pytest.raises(ShardError, match=entry.uri):
        cache.read(entry)
    assert not list((tmp_path / "cache").glob("*.part"))


def test_cache_keeps_nothing_that_is_damaged(thirty_each: ShardManifest, tmp_path: Path) -> None:
    entry = thirty_each.shards[0]
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
    thirty_each: ShardManifest, tmp_path: Path
) -> None:
    cache = ShardCache(CountingStore(), tmp_path / "cache", max_bytes=10**9)
    (tmp_path / "cache").rmdir()
    with pytest.raises(StorageError, match=r"cannot keep a local copy.*batches\.cache_gib"):
        cache.read(thirty_each.shards[0])


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


@pytest.mark.parametrize("budget", [0, 600])
@pytest.mark.parametrize("n_workers", [1, 3])
def test_batches_do_not_depend_on_the_number_of_workers(
    manifest: ShardManifest, n_workers: int, budget: int
) -> None:
    settings_ = {"n_events": 16, "n_mixed_shards": 4, "max_doms_per_batch": budget}
    alone = list(loader(manifest, BatchConfig(n_workers=0, **settings_)).epoch(0))
    threaded = list(loader(manifest, BatchConfig(n_workers=n_workers, **settings_)).epoch(0))
    for left, right in zip(alone, threaded, strict=True):
        assert_same_batch(left, right)


@pytest.mark.parametrize("n_mixed_shards", [1, 4])
def test_batches_hold_the_events_they_name(manifest: ShardManifest, n_mixed_shards: int) -> None:
    in_order = {
        event_id: event
        for batch in loader(manifest, BatchConfig(n_events=1), shuffle=False).epoch(0)
        for event_id, event in [(int(batch.event_id), batch)]
    }
    config = BatchConfig(n_events=16, n_mixed_shards=n_mixed_shards, n_workers=3)
    for batch in loader(manifest, config).epoch(0):
        charge = torch.segment_reduce(
            batch.charge_pe,
            "sum",
            offsets=batch.dom_pulse_offsets[batch.event_dom_offsets],
        )
        for row, event_id in enumerate(batch.event_id.tolist()):
            event = in_order[event_id]
            doms = slice(*batch.event_dom_offsets[row : row + 2].tolist())
            assert torch.equal(batch.sensor_idx[doms], event.sensor_idx)
            assert torch.equal(batch.direction[row], event.direction[0])
            torch.testing.assert_close(charge[row], event.charge_pe.sum())


def test_shuffle_changes_with_seed_and_epoch_only(manifest: ShardManifest) -> None:
    first = ids(loader(manifest).epoch(0))
    assert first == ids(loader(manifest).epoch(0))
    assert first != ids(loader(manifest).epoch(1))
    assert first != ids(loader(manifest, BatchConfig(n_events=16, seed=1)).epoch(0))
    moved = manifest.model_copy(update={"geometry_uri": "file:///elsewhere.csv"})
    assert first == ids(loader(moved).epoch(0))


def test_order_is_that_of_the_manifest_when_not_shuffled(manifest: ShardManifest) -> None:
    batches = list(loader(manifest, shuffle=False).epoch(3))
    assert ids(batches) == list(range(N_EVENTS))
    assert [batch.n_events for batch in batches] == [16] * (N_EVENTS // 16) + [N_EVENTS % 16]


def test_validation_is_not_shuffled_by_default(tmp_path: Path) -> None:
    held_out = write_shards(tmp_path, [20, 20], split="validation")
    one = EventLoader(open_store(), held_out, "validation", icecube86(), BatchConfig(n_events=16))
    assert ids(one.epoch(0)) == list(range(40))


@pytest.mark.parametrize(
    ("n_shards", "settings"),
    [
        (64, {"n_events": 32, "n_mixed_shards": 16}),
        # batches of half as many events as in best.yaml, of a quarter of the shards' size
        (256, {"n_events": 128, "n_mixed_shards": 16}),
        (768, {"n_events": 32, "n_mixed_shards": 16, "max_doms_per_batch": 200}),
    ],
    ids=["usual", "large batches", "token budget"],
)
def test_neighbours_of_the_raw_file_meet_no_more_often_than_in_a_perfect_shuffle(
    tmp_path: Path, n_shards: int, settings: dict[str, int]
) -> None:
    n_events = 256
    mixed = write_shards(tmp_path, [n_events] * n_shards, median_pulses=1.0)
    config = BatchConfig(max_doms_per_event=64, **settings)
    n_epochs, met, expected, mixes = 2, np.zeros(8), 0.0, []
    for epoch in range(n_epochs):
        batch_of = np.empty(n_shards * n_events, int)
        for number, batch in enumerate(loader(mixed, config).epoch(epoch)):
            batch_of[batch.event_id] = number
            mixes.append(len(np.unique(batch.event_id // n_events)) / min(batch.n_events, 32))
            expected += batch.n_events * (batch.n_events - 1) / (n_shards * n_events)
        met += [(batch_of[d:] == batch_of[:-d]).sum() for d in range(1, 9)]
    assert (met <= expected + 3 * np.sqrt(expected)).all(), met
    assert min(mixes) >= 8 / 32


def test_events_of_one_batch_scatter_over_the_batches_of_the_next_epoch(
    manifest: ShardManifest,
) -> None:
    config = BatchConfig(n_events=20)
    number = np.empty((2, N_EVENTS), int)
    for epoch in range(2):
        for i, batch in enumerate(loader(manifest, config).epoch(epoch)):
            number[epoch, batch.event_id] = i
    assert abs(np.corrcoef(number)[0, 1]) < 4 / np.sqrt(N_EVENTS)


def test_a_giant_gets_a_small_batch_under_a_token_budget(tmp_path: Path) -> None:
    giants = write_shards(tmp_path, [200, 200], median_pulses=80)
    config = BatchConfig(n_events=64, max_doms_per_event=512, max_doms_per_batch=1000)
    batches = list(loader(giants, config).epoch(0))
    assert sorted(ids(batches)) == list(range(400))
    assert max(batch.n_doms for batch in batches) <= 1000
    longest = [int(batch.event_dom_offsets.diff().max()) for batch in batches]
    sizes = [batch.n_events for batch in batches]
    assert sizes[int(np.argmax(longest))] <= 3 < max(sizes)


def test_loader_counts_what_the_caps_dropped(manifest: ShardManifest) -> None:
    config = BatchConfig(n_events=16, max_doms_per_event=3, max_pulses_per_dom=1)
    batches = list(loader(manifest, config).epoch(0))
    n_pulses = sum(entry.n_pulses for entry in manifest.shards)
    n_doms = sum(entry.n_doms for entry in manifest.shards)
    assert sum(batch.n_pulses + batch.n_pulses_dropped for batch in batches) == n_pulses
    assert sum(batch.n_doms + batch.n_doms_dropped for batch in batches) == n_doms


def test_position_counts_the_batches_handed_out_not_those_read_ahead(
    manifest: ShardManifest,
) -> None:
    one = loader(manifest, BatchConfig(n_events=16, n_workers=2, n_batches_ahead=8))
    iterator = one.epoch(5)
    next(iterator)
    next(iterator)
    assert one.position == {"epoch": 5, "n_events_done": 32}


@pytest.mark.parametrize("how", ["close", "forget", "exhaust"])
def test_threads_end_with_the_iterator(
    manifest: ShardManifest, how: str, own_threads: Callable[[], set[threading.Thread]]
) -> None:
    iterator = loader(manifest, BatchConfig(n_events=4, n_workers=3)).epoch(0)
    next(iterator)
    assert own_threads()
    if how == "close":
        iterator.close()  # type: ignore[attr-defined]
    elif how == "exhaust":
        list(iterator)
    else:
        del iterator
        gc.collect()
    assert not own_threads()


@pytest.mark.parametrize("n_workers", [0, 2])
def test_a_damaged_shard_is_named_in_the_consumer(
    tmp_path: Path, n_workers: int, own_threads: Callable[[], set[threading.Thread]]
) -> None:
    damaged = write_shards(tmp_path, SIZES)
    entry = damaged.shards[4]
    path = Path(entry.uri.removeprefix("file://"))
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ShardError, match=entry.uri):
        list(loader(damaged, BatchConfig(n_events=16, n_workers=n_workers)).epoch(0))
    assert not own_threads()


def test_a_foreign_sensor_is_refused_with_its_shard_named(manifest: ShardManifest) -> None:
    tiny = parse_geometry("sensor_id,x,y,z\n1,0,0,0\n", "test")
    one = EventLoader(open_store(), manifest, "train", tiny, BatchConfig())
    with pytest.raises(DetectorError, match=r"train-\d+\.arrow.*one of the 1 sensors"):
        next(one.epoch(0))


def test_loader_works_with_another_detector(tmp_path: Path) -> None:
    geometry = "sensor_id,x,y,z\n" + "\n".join(f"{10 * i + 3},{i},0,{-i}" for i in range(60))
    detector = parse_geometry(geometry, "test")
    other = write_shards(tmp_path, [20, 20], detector=detector)
    one = EventLoader(open_store(), other, "train", detector, BatchConfig())
    batch = next(one.epoch(0))
    torch.testing.assert_close(batch.xyz_m[:, 0], batch.sensor_idx.float())


def test_unlabelled_events_have_no_direction(tmp_path: Path) -> None:
    unlabelled = write_shards(tmp_path, [9], labelled=False)
    assert next(loader(unlabelled).epoch(0)).direction is None


def test_loader_reads_through_its_cache_folder(manifest: ShardManifest, tmp_path: Path) -> None:
    config = BatchConfig(n_events=16, cache_folder=str(tmp_path / "cache"))
    batches = list(loader(manifest, config).epoch(0))
    for left, right in zip(batches, loader(manifest).epoch(0), strict=False):
        assert left.n_events == right.n_events
    assert sorted(ids(batches)) == list(range(N_EVENTS))
    assert len(list((tmp_path / "cache").iterdir())) == len(SIZES)


@pytest.mark.parametrize("n_workers", [0, 3])
def test_loader_reads_at_most_one_window_ahead(manifest: ShardManifest, n_workers: int) -> None:
    store = CountingStore()
    config = BatchConfig(n_events=1, n_mixed_shards=2, n_workers=n_workers, n_batches_ahead=3)
    # in order: a shuffle takes windows large enough to keep neighbours apart
    iterator = EventLoader(store, manifest, "train", icecube86(), config, shuffle=False).epoch(0)
    next(iterator)
    time.sleep(0.1)  # threads have the time to read too much
    assert 2 <= len(store.reads) <= 4
    list(iterator)
    assert sorted(store.reads) == sorted(entry.uri for entry in manifest.shards)


def test_loader_uses_the_memory_of_a_window_again(
    manifest: ShardManifest, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[EventPool] = []
    plain = EventPool.with_room_for

    def counted(extent: Extent) -> EventPool:
        made.append(plain(extent))
        return made[-1]

    monkeypatch.setattr(EventPool, "with_room_for", counted)
    config = BatchConfig(n_events=1, n_mixed_shards=1, n_batches_ahead=1)
    assert ids(loader(manifest, config, shuffle=False).epoch(0)) == list(range(N_EVENTS))
    # threads decide when a window is let go: on a busy machine some come too late to be used again
    assert len(made) < 0.8 * len(SIZES)


def test_loader_refuses_an_empty_split(manifest: ShardManifest) -> None:
    with pytest.raises(ShardError, match="no events in the test split"):
        EventLoader(open_store(), manifest, "test", icecube86(), BatchConfig())
