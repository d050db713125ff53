import itertools

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from iceaggr.errors import RawDataError
from iceaggr.events import pulses
from iceaggr.events.meta import read_event_tables
from iceaggr.events.pulses import stream_pulses
from iceaggr.storage import open_store
from tests.events.raw_tables import meta_frame, pulse_frame, write_raw


def stream(tmp_path, pulse_table, meta_table, n_events=None):
    uri = write_raw(tmp_path, pulse_table, meta_table)
    table = read_event_tables(open_store(), f"{uri}/train_meta.parquet", [1], labelled=True)[1]
    n_rows = int(table.n_pulses.sum())
    table = table.head(n_events or table.n_events)
    return list(stream_pulses(open_store(), f"{uri}/train/batch_1.parquet", n_rows, table))


def joined(chunks, name):
    return np.concatenate([getattr(chunk.pulses, name) for chunk in chunks])


@pytest.mark.parametrize("n_rows_per_read", [1, 3, 10, 1000])
def test_stream_pulses_gives_whole_events_whatever_the_read_size(
    tmp_path, monkeypatch, n_rows_per_read
):
    monkeypatch.setattr(pulses, "PULSES_PER_READ", n_rows_per_read)
    counts = [3, 1, 0, 25, 4, 0]
    chunks = stream(tmp_path, pulse_frame(counts), meta_frame(counts))
    assert chunks[0].first_event == 0
    assert chunks[-1].stop_event == len(counts)
    for before, after in itertools.pairwise(chunks):
        assert before.stop_event == after.first_event
        assert before.first_pulse + len(before.pulses) == after.first_pulse
    np.testing.assert_array_equal(joined(chunks, "time_ns"), 10_000 + np.arange(33))
    np.testing.assert_array_equal(joined(chunks, "event_id"), pulse_frame(counts)["event_id"])


@pytest.mark.parametrize("n_rows_per_read", [1, 3, 10, 1000])
def test_stream_pulses_unpacks_flags_from_any_row_on(tmp_path, monkeypatch, n_rows_per_read):
    monkeypatch.setattr(pulses, "PULSES_PER_READ", n_rows_per_read)
    auxiliary = np.random.default_rng(0).random(33) < 0.5
    counts = [3, 1, 0, 25, 4, 0]
    chunks = stream(tmp_path, pulse_frame(counts, auxiliary=auxiliary), meta_frame(counts))
    np.testing.assert_array_equal(joined(chunks, "auxiliary"), auxiliary)


def test_stream_pulses_copies_only_the_event_that_two_reads_share(tmp_path, monkeypatch):
    monkeypatch.setattr(pulses, "PULSES_PER_READ", 10)
    counts = [4, 4, 4, 4, 0, 4, 4]
    chunks = stream(tmp_path, pulse_frame(counts), meta_frame(counts))
    assert [(chunk.first_event, chunk.stop_event) for chunk in chunks] == [
        (0, 2),
        (2, 3),
        (3, 6),
        (6, 7),
    ]
    is_view = [not chunk.pulses.time_ns.flags.writeable for chunk in chunks]  # of Arrow's memory
    assert is_view == [True, False, True, True]


def test_stream_pulses_stops_after_the_events_asked_for(tmp_path, monkeypatch):
    monkeypatch.setattr(pulses, "PULSES_PER_READ", 4)
    counts = [3, 1, 25, 4]
    chunks = stream(tmp_path, pulse_frame(counts), meta_frame(counts), n_events=2)
    assert chunks[-1].stop_event == 2
    assert sum(len(chunk.pulses) for chunk in chunks) == 4


def test_stream_pulses_reads_a_file_without_pulses(tmp_path):
    chunks = stream(tmp_path, pulse_frame([0, 0]), meta_frame([0, 0]))
    assert [(chunk.first_event, chunk.stop_event) for chunk in chunks] == [(0, 2)]
    assert len(chunks[0].pulses) == 0


def test_stream_pulses_reads_event_ids_from_the_pandas_index(tmp_path):
    counts = [3, 2]
    uri = write_raw(tmp_path, pulse_frame(counts), meta_frame(counts))
    pulse_frame(counts).set_index("event_id").to_parquet(tmp_path / "train/batch_1.parquet")
    table = read_event_tables(open_store(), f"{uri}/train_meta.parquet", [1], labelled=True)[1]
    chunks = list(stream_pulses(open_store(), f"{uri}/train/batch_1.parquet", 5, table))
    np.testing.assert_array_equal(joined(chunks, "event_id"), [100, 100, 100, 101, 101])


@pytest.mark.parametrize(
    ("dtype", "kept"),
    [("float16", "float32"), ("float32", "float32"), ("float64", "float64"), ("int32", "float64")],
)
def test_stream_pulses_keeps_charges_exactly(tmp_path, dtype, kept):
    charge = np.array([1, 2, 3, 7, 64], dtype)
    chunks = stream(tmp_path, pulse_frame([5], charge=charge), meta_frame([5]))
    assert joined(chunks, "charge_pe").dtype == kept
    np.testing.assert_array_equal(joined(chunks, "charge_pe"), charge.astype(kept))


@pytest.mark.parametrize("dtype", ["int32", "uint16", "float32", "float64", "uint64"])
def test_stream_pulses_accepts_times_of_any_type(tmp_path, dtype):
    chunks = stream(tmp_path, pulse_frame([2], time=np.array([5, 60_000], dtype)), meta_frame([2]))
    assert joined(chunks, "time_ns").tolist() == [5, 60_000]
    assert joined(chunks, "time_ns").dtype == np.int64


def test_stream_pulses_accepts_flags_as_integers(tmp_path):
    chunks = stream(tmp_path, pulse_frame([3], auxiliary=[0, 1, 1]), meta_frame([3]))
    assert joined(chunks, "auxiliary").tolist() == [False, True, True]


def test_stream_pulses_marks_missing_values_and_times_that_are_no_number(tmp_path):
    frame = pulse_frame([4], time=np.array([1, np.nan, np.inf, 4]))
    frame["sensor_id"] = pd.array([1, 2, 3, None], "Int32")
    chunks = stream(tmp_path, frame, meta_frame([4]))
    assert joined(chunks, "is_missing").tolist() == [False, True, True, True]


INTEGERS = ("int8", "uint64")
FLOATS = ("float16", "float64")
TYPES = {
    "sensor_id": INTEGERS,
    "time": (*INTEGERS, *FLOATS),
    "charge": (*INTEGERS, *FLOATS),
    "auxiliary": ("bool", *INTEGERS),
}


@pytest.mark.parametrize(("name", "dtype"), [(n, t) for n, types in TYPES.items() for t in types])
def test_stream_pulses_marks_a_null_in_a_column_of_any_type(tmp_path, name, dtype):
    meta, mask = meta_frame([4]), np.array([False, False, True, False])
    uri = write_raw(tmp_path, pulse_frame([4]), meta)
    path = tmp_path / "train/batch_1.parquet"
    table = pq.read_table(path)
    column = pa.array(np.array([1, 0, 1, 1], dtype), mask=mask)
    pq.write_table(table.set_column(table.column_names.index(name), name, column), path)
    events = read_event_tables(open_store(), f"{uri}/train_meta.parquet", [1], labelled=True)[1]
    [chunk] = stream_pulses(open_store(), path.as_uri(), 4, events)
    assert chunk.pulses.is_missing.tolist() == mask.tolist()
    if name == "auxiliary":
        assert chunk.pulses.auxiliary.tolist() == [True, False, False, True]


def test_stream_pulses_refuses_times_with_a_fraction(tmp_path):
    with pytest.raises(RawDataError, match=r"time is not in whole nanoseconds.*time 7\.5"):
        stream(tmp_path, pulse_frame([2], time=[1.0, 7.5]), meta_frame([2]))


def test_stream_pulses_refuses_flags_beyond_one(tmp_path):
    with pytest.raises(RawDataError, match=r"auxiliary is not a flag.*values from 0 to 2"):
        stream(tmp_path, pulse_frame([3], auxiliary=[0, 1, 2]), meta_frame([3]))


def test_stream_pulses_refuses_missing_event_ids(tmp_path):
    frame = pulse_frame([2], event_id=pd.array([100, None], "Int64"))
    with pytest.raises(RawDataError, match="event_id has missing values"):
        stream(tmp_path, frame, meta_frame([2]))


def test_stream_pulses_names_the_row_where_event_ids_disagree(tmp_path):
    frame = pulse_frame([2, 2], event_id=[100, 100, 101, 999])
    with pytest.raises(RawDataError, match=r"disagree \[.*pulse 3\].*event_id 999.*event_id 101"):
        stream(tmp_path, frame, meta_frame([2, 2]))


def test_stream_pulses_refuses_a_meta_file_that_points_outside(tmp_path):
    with pytest.raises(RawDataError, match=r"points outside it.*found 4 pulses, expected 5"):
        stream(tmp_path, pulse_frame([2, 2]), meta_frame([2, 3]))


def test_stream_pulses_refuses_pulses_that_belong_to_no_event(tmp_path):
    with pytest.raises(RawDataError, match=r"belong to no event.*found 4 pulses, expected 3"):
        stream(tmp_path, pulse_frame([2, 2]), meta_frame([2, 1]))


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_ids_that_are_floats_without_a_fraction_are_read_where_nothing_is_lost(tmp_path, dtype):
    frame = pulse_frame([2, 1]).astype({"event_id": dtype, "sensor_id": dtype})
    meta = meta_frame([2, 1]).astype({"event_id": dtype})
    found, expected = (
        stream(tmp_path / name, *frames)
        for name, frames in {
            "floats": (frame, meta),
            "integers": (pulse_frame([2, 1]), meta_frame([2, 1])),
        }.items()
    )
    for name in ("event_id", "sensor_id"):
        assert joined(found, name).tolist() == joined(expected, name).tolist()
        assert joined(found, name).dtype.kind == "i"


@pytest.mark.parametrize(
    ("dtype", "value", "words"),
    [
        ("float64", 7.5, r"found 7\.5, expected integers, or float64 .* up to 9007199254740991"),
        ("float64", 2.0**53, r"found 9007199254740992\.0"),
        ("float32", 2.0**24, r"found 16777216\.0, expected .*float32 .* up to 16777215"),
        ("float64", np.inf, "found inf"),
    ],
)
@pytest.mark.parametrize("name", ["event_id", "sensor_id"])
def test_ids_that_a_float_may_have_changed_are_refused(tmp_path, name, dtype, value, words):
    frame = pulse_frame([2, 1]).astype({name: dtype})
    frame.loc[2, name] = value
    with pytest.raises(RawDataError, match=rf"{name} is not a whole number .*batch_1.*{words}"):
        stream(tmp_path, frame, meta_frame([2, 1]))
    if name == "event_id":
        meta = meta_frame([2, 1]).astype({name: dtype})
        meta.loc[1, name] = value
        with pytest.raises(RawDataError, match=rf"{name} is not a whole number .*meta.*{words}"):
            stream(tmp_path, pulse_frame([2, 1]), meta)


def test_an_event_id_that_is_nan_stays_an_error_and_a_sensor_id_a_missing_value(tmp_path):
    frame = pulse_frame([2, 1]).astype({"event_id": float, "sensor_id": float})
    frame.loc[1, "sensor_id"] = np.nan
    chunks = stream(tmp_path, frame, meta_frame([2, 1]))
    assert joined(chunks, "is_missing").tolist() == [False, True, False]
    frame.loc[1, "event_id"] = np.nan
    with pytest.raises(RawDataError, match="event_id has missing values"):
        stream(tmp_path, frame, meta_frame([2, 1]))
    meta = meta_frame([2, 1]).astype({"event_id": float})
    meta.loc[0, "event_id"] = np.nan
    with pytest.raises(RawDataError, match="meta column event_id has missing values"):
        stream(tmp_path, pulse_frame([2, 1]), meta)
