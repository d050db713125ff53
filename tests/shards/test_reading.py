import pytest

from iceaggr.errors import ShardError, StorageError
from iceaggr.shards.reading import read_shard
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
