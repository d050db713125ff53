import numpy as np
import pytest

from iceaggr.detector import icecube86
from iceaggr.errors import StorageError
from iceaggr.events.dom_events import concatenate, take_range
from iceaggr.shards import shard_writer
from iceaggr.shards.reading import read_shard
from iceaggr.shards.shard_writer import ShardWriter
from iceaggr.shards.sketching import sketch_events
from iceaggr.storage import open_store
from tests.shards.dom_events_builder import random_dom_events


def write(tmp_path, events, portions, n_events_per_shard):
    writer = ShardWriter(open_store(), tmp_path.as_uri(), icecube86(), n_events_per_shard)
    start = 0
    for n in portions:
        writer.add("train", take_range(events, start, start + n))
        start += n
    return writer.finish()


@pytest.mark.parametrize("portions", [[100], [1] * 100, [33, 33, 34], [0, 64, 0, 36]])
def test_shard_writer_cuts_at_the_same_events_whatever_the_portions(tmp_path, portions):
    events = random_dom_events(100, 0)
    entries, sketches = write(tmp_path, events, portions, 32)
    assert [entry.n_events for entry in entries] == [32, 32, 32, 4]
    assert entries[0].uri.rsplit("/", 1)[-1] == "train-00000.arrow"
    read = concatenate([read_shard(open_store(), entry) for entry in entries])
    np.testing.assert_array_equal(read.event_id, events.event_id)
    np.testing.assert_array_equal(read.time_ns, events.time_ns)
    np.testing.assert_array_equal(read.dom_pulse_offsets, events.dom_pulse_offsets)
    assert sketches["train"].n_pulses == events.n_pulses
    assert sketches["train"].features["time_ns"].mean == pytest.approx(
        sketch_events(events, icecube86()).features["time_ns"].mean, rel=1e-12
    )


def test_shard_writer_closes_a_shard_before_it_grows_too_long(tmp_path, monkeypatch):
    monkeypatch.setattr(shard_writer, "MAX_PULSES_PER_SHARD", 200)
    events = random_dom_events(100, 0)
    largest = int(np.diff(events.event_pulse_offsets()).max())
    assert largest > 200
    for portions in ([100], [1] * 100):
        entries, _ = write(tmp_path, events, portions, 32)
        assert all(entry.n_pulses <= 200 or entry.n_events == 1 for entry in entries)
        assert sum(entry.n_events for entry in entries) == 100
    read = concatenate([read_shard(open_store(), entry) for entry in entries])
    np.testing.assert_array_equal(read.time_ns, events.time_ns)


def test_shard_writer_raises_what_failed_in_the_background(tmp_path):
    (tmp_path / "file").write_text("in the way")
    events = random_dom_events(10, 0)
    with pytest.raises(StorageError, match="file"):
        write(tmp_path / "file", events, [10], 2)
