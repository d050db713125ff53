import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from iceaggr.errors import RawDataError
from iceaggr.events import meta
from iceaggr.events.meta import count_events, read_event_tables, refuse_repeated_ids
from iceaggr.storage import open_store
from tests.events.raw_tables import meta_frame


def write_meta(tmp_path, frame, **options):
    path = tmp_path / "train_meta.parquet"
    frame.to_parquet(path, index=False, **options)
    return path.as_uri()


def read_one(tmp_path, frame, **options):
    uri = write_meta(tmp_path, frame, **options)
    return read_event_tables(open_store(), uri, [1], labelled=True)[1]


def test_read_event_tables_counts_the_last_pulse(tmp_path):
    frame = meta_frame([3, 1, 7])
    table = read_one(tmp_path, frame)
    assert table.n_pulses.tolist() == [3, 1, 7]
    assert table.event_id.tolist() == [100, 101, 102]
    np.testing.assert_array_equal(table.zenith, frame["zenith"].to_numpy(np.float64))


def test_read_event_tables_sorts_rows_by_their_pulses(tmp_path):
    table = read_one(tmp_path, meta_frame([3, 0, 7]).iloc[::-1])
    assert table.event_id.tolist() == [100, 101, 102]
    assert table.n_pulses.tolist() == [3, 0, 7]


def test_read_event_tables_separates_batches_whatever_the_row_groups(tmp_path):
    parts = [meta_frame([2, 5, 4], batch_id=b, event_id=10 * b + np.arange(3)) for b in (1, 2, 3)]
    mixed = pd.concat(parts).sample(frac=1, random_state=0)
    for frame, size in ((pd.concat(parts), 3), (pd.concat(parts), 4), (mixed, 2)):
        uri = write_meta(tmp_path, frame, row_group_size=size)
        tables = read_event_tables(open_store(), uri, [3, 1, 9], labelled=True)
        assert sorted(tables) == [1, 3]
        assert tables[3].event_id.tolist() == [30, 31, 32]
        assert count_events(open_store(), uri) == {1: 3, 2: 3, 3: 3}


def test_read_event_tables_reads_a_file_without_statistics(tmp_path):
    uri = write_meta(tmp_path, meta_frame([2, 5]), write_statistics=False)
    assert read_event_tables(open_store(), uri, [1], labelled=True)[1].n_events == 2
    assert count_events(open_store(), uri) == {1: 2}


def test_read_event_tables_gives_no_labels_when_there_are_none(tmp_path):
    uri = write_meta(tmp_path, meta_frame([2, 5]).drop(columns=["azimuth", "zenith"]))
    table = read_event_tables(open_store(), uri, [1], labelled=False)[1]
    assert np.isnan(table.azimuth).all()
    assert np.isnan(table.zenith).all()


def test_read_event_tables_refuses_a_labelled_file_without_labels(tmp_path):
    uri = write_meta(tmp_path, meta_frame([2, 5]).drop(columns=["zenith"]))
    with pytest.raises(RawDataError, match="no columns named zenith"):
        read_event_tables(open_store(), uri, [1], labelled=True)


@pytest.mark.parametrize(
    ("first", "last", "message"),
    [
        ([0, 4], [2, 9], "gap or overlap at event 101"),
        ([0, 2], [2, 9], "gap or overlap at event 101"),
        ([1, 3], [2, 9], "gap or overlap at event 100"),
        ([0, 3], [2, 1], "gap or overlap at event 101"),
    ],
)
def test_read_event_tables_refuses_pulse_ranges_that_do_not_join(tmp_path, first, last, message):
    frame = meta_frame([3, 7], first_pulse_index=first, last_pulse_index=last)
    with pytest.raises(RawDataError, match=message):
        read_one(tmp_path, frame)


def test_read_event_tables_refuses_an_id_that_occurs_twice(tmp_path):
    with pytest.raises(RawDataError, match=r"occurs twice.*event_id 7 2 times"):
        read_one(tmp_path, meta_frame([3, 7, 1], event_id=[7, 8, 7]))


def test_read_event_tables_refuses_missing_values(tmp_path):
    frame = meta_frame([3, 7], event_id=pd.array([7, None], "Int64"))
    with pytest.raises(RawDataError, match=r"event_id has missing values.*1 nulls"):
        read_one(tmp_path, frame)


def test_read_event_tables_refuses_ids_beyond_64_signed_bits(tmp_path):
    frame = meta_frame([3, 7], event_id=np.array([7, 2**64 - 1], np.uint64))
    with pytest.raises(RawDataError, match="event_id exceeds 64-bit"):
        read_one(tmp_path, frame)


def test_event_table_digest_changes_with_every_column(tmp_path):
    plain = read_one(tmp_path, meta_frame([3, 7]))
    assert read_one(tmp_path, meta_frame([3, 7])).digest() == plain.digest()
    for other in (
        meta_frame([4, 6]),
        meta_frame([3, 7], event_id=[100, 102]),
        meta_frame([3, 7], azimuth=[0.1, 0.2]),
        meta_frame([3, 7], zenith=[0.1, 0.2]),
    ):
        assert read_one(tmp_path, other).digest() != plain.digest()


LONG_META_READER = """
import sys
from iceaggr.events.meta import read_event_tables
from iceaggr.storage import open_store
tables = read_event_tables(open_store(), sys.argv[1], [25], labelled=True)
assert tables[25].n_events == 200_000, tables[25].n_events
lines = open("/proc/self/status").read().splitlines()
print(next(line.split()[1] for line in lines if line.startswith("VmHWM")))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads the peak memory from /proc")
def test_read_event_tables_needs_little_memory_for_ten_million_rows(tmp_path):
    write_long_meta(tmp_path / "train_meta.parquet", n_batches=50, n_events=200_000)
    result = subprocess.run(
        [sys.executable, "-c", LONG_META_READER, (tmp_path / "train_meta.parquet").as_uri()],
        capture_output=True,
        text=True,
        check=True,
    )
    kib = int(result.stdout)  # the whole process, interpreter and libraries included
    assert kib < 300 << 10


def test_read_event_tables_touches_only_its_row_groups(tmp_path):
    path = tmp_path / "train_meta.parquet"
    write_long_meta(path, n_batches=50, n_events=20_000)
    store = CountingStore()
    read_event_tables(store, path.as_uri(), [25], labelled=True)
    assert 0 < sum(store.reads) < path.stat().st_size / 10


class CountingStore:
    """Opens files and notes how many bytes are read from them."""

    def __init__(self):
        self.reads = []

    def open_input(self, uri):
        stream = open_store().open_input(uri)
        plain_read = stream.read

        def read(n_bytes=-1):
            data = plain_read(n_bytes)
            self.reads.append(len(data))
            return data

        return SimpleNamespace(
            read=read,
            seek=stream.seek,
            tell=stream.tell,
            close=stream.close,
            closed=False,
            readable=lambda: True,
            seekable=lambda: True,
            writable=lambda: False,
        )


def write_long_meta(path, n_batches, n_events):
    names = ["batch_id", "event_id", "first_pulse_index", "last_pulse_index", "azimuth", "zenith"]
    rng = np.random.default_rng(0)
    last = np.cumsum(rng.integers(1, 300, n_events)) - 1
    first = np.concatenate([[0], last[:-1] + 1])
    angle = rng.random(n_events, np.float32)
    types = [pa.int64()] * 4 + [pa.float32()] * 2
    schema = pa.schema(list(zip(names, types, strict=True)))
    with pq.ParquetWriter(path, schema, use_dictionary=["batch_id"]) as writer:
        for batch_id in range(1, n_batches + 1):
            event_id = batch_id * 10**7 + np.arange(n_events)
            columns = [np.full(n_events, batch_id), event_id, first, last, angle, angle]
            writer.write_table(pa.table(columns, schema=schema))


N_EVENTS = 30


def write_ids(tmp_path, ids_of_batches, **options):
    """Write a meta file: the event ids of batch 1, of batch 2, and so on."""
    parts = [
        meta_frame([2] * len(ids), batch_id=batch_id, event_id=np.array(ids))
        for batch_id, ids in enumerate(ids_of_batches, start=1)
    ]
    path = tmp_path / "train_meta.parquet"
    pd.concat(parts).to_parquet(path, index=False, **options)
    return path.as_uri()


def interleaved(n_batches):
    """Ids of which every batch has some everywhere."""
    return [list(range(batch, N_EVENTS * n_batches, n_batches)) for batch in range(n_batches)]


@pytest.mark.parametrize("options", [{"row_group_size": 30}, {"row_group_size": 7}, {}])
@pytest.mark.parametrize("statistics", [True, False])
def test_ids_that_differ_are_accepted_whatever_the_row_groups(tmp_path, options, statistics):
    for ids in (interleaved(4), [list(range(30)), list(range(30, 60)), list(range(60, 90))]):
        uri = write_ids(tmp_path, ids, write_statistics=statistics, **options)
        refuse_repeated_ids(open_store(), uri, range(1, len(ids) + 1))


@pytest.mark.parametrize("options", [{"row_group_size": 30}, {"row_group_size": 7}, {}])
@pytest.mark.parametrize("limit", [1 << 24, 40])
@pytest.mark.parametrize("places", [((0, 0), (3, 29)), ((1, 15), (2, 15))])
def test_one_repeated_id_is_found_and_named_with_its_files(
    tmp_path, monkeypatch, options, limit, places
):
    monkeypatch.setattr(meta, "MAX_IDS_TOGETHER", limit)
    ids = interleaved(4)
    (batch, row), (other, other_row) = places
    ids[other][other_row] = ids[batch][row]
    uri = write_ids(tmp_path, ids, **options)
    found = rf"event_id {ids[batch][row]} in batch_id {batch + 1}, {other + 1},"
    with pytest.raises(RawDataError, match=rf"occurs twice in the raw files \[.*{found}"):
        refuse_repeated_ids(open_store(), uri, [1, 2, 3, 4])


def test_batches_that_are_not_used_do_not_count(tmp_path):
    uri = write_ids(tmp_path, [[1, 2, 3], [4, 5, 6], [3, 7, 8]], row_group_size=2)
    refuse_repeated_ids(open_store(), uri, [1, 2])
    with pytest.raises(RawDataError, match="event_id 3 in batch_id 1, 3,"):
        refuse_repeated_ids(open_store(), uri, [1, 3])


def test_row_groups_that_cannot_share_an_id_are_not_read(tmp_path, monkeypatch):
    ids = [list(range(100 * batch, 100 * batch + 30)) for batch in range(5)]
    uri = write_ids(tmp_path, ids, row_group_size=30)
    monkeypatch.setattr(meta, "_read", None)  # nothing may be read
    refuse_repeated_ids(open_store(), uri, [1, 2, 3, 4, 5])
