import json

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from iceaggr.errors import RawDataError, StorageError
from iceaggr.events.schema import META_COLUMNS, PULSE_COLUMNS, check_columns, open_parquet
from iceaggr.storage import open_store
from tests.events.raw_tables import pulse_frame


def pulse_schema(**types: pa.DataType) -> pa.Schema:
    plain = {
        "event_id": pa.int64(),
        "sensor_id": pa.int16(),
        "time": pa.int64(),
        "charge": pa.float32(),
        "auxiliary": pa.bool_(),
    }
    return pa.schema(plain | types)


@pytest.mark.parametrize("integer", [pa.int8(), pa.uint16(), pa.int32(), pa.uint64()])
@pytest.mark.parametrize("charge", [pa.float32(), pa.float64(), pa.int32()])
def test_check_columns_accepts_any_width(integer, charge):
    check_columns(pulse_schema(sensor_id=integer, time=integer, charge=charge), PULSE_COLUMNS, "f")


def test_check_columns_ignores_further_columns():
    check_columns(pulse_schema(note=pa.string()), PULSE_COLUMNS, "f")


@pytest.mark.parametrize("name", PULSE_COLUMNS)
def test_check_columns_names_file_and_column_when_one_is_missing(name):
    schema = pulse_schema()
    schema = schema.remove(schema.names.index(name))
    with pytest.raises(RawDataError, match=rf"no columns named {name} \[some/file\].*expected one"):
        check_columns(schema, PULSE_COLUMNS, "some/file")


@pytest.mark.parametrize(
    ("name", "wrong", "expected"),
    [
        ("time", pa.string(), "an integer or float type"),
        ("charge", pa.bool_(), "an integer or float type"),
        ("sensor_id", pa.string(), "an integer type"),
        ("event_id", pa.string(), "an integer type"),
        ("auxiliary", pa.float32(), "a boolean"),
    ],
)
def test_check_columns_names_found_and_expected_when_a_type_is_wrong(name, wrong, expected):
    with pytest.raises(RawDataError, match=f"{name} has the wrong type.*{wrong}.*{expected}"):
        check_columns(pulse_schema(**{name: wrong}), PULSE_COLUMNS, "f")


def test_check_columns_refuses_a_column_that_occurs_twice():
    schema = pulse_schema().append(pa.field("time", pa.int64()))
    with pytest.raises(RawDataError, match="2 columns named time"):
        check_columns(schema, PULSE_COLUMNS, "f")


def test_check_columns_refuses_a_meta_file_without_index():
    with pytest.raises(RawDataError, match="no columns named batch_id"):
        check_columns(pulse_schema(), META_COLUMNS, "f")


def test_open_parquet_names_the_file_when_it_is_truncated(tmp_path):
    path = tmp_path / "batch_1.parquet"
    pulse_frame([50]).to_parquet(path)
    path.write_bytes(path.read_bytes()[:-20])
    with (
        pytest.raises(RawDataError, match=r"truncated or not parquet \[file:.*batch_1.parquet\]"),
        open_parquet(open_store(), path.as_uri()),
    ):
        pass


def test_open_parquet_names_the_file_when_its_pages_are_damaged(tmp_path):
    path = tmp_path / "batch_1.parquet"
    pd.DataFrame({"a": np.arange(10_000)}).to_parquet(path)
    data = bytearray(path.read_bytes())
    data[100:2000] = bytes(1900)
    path.write_bytes(data)
    with (
        pytest.raises(RawDataError, match="damaged"),
        open_parquet(open_store(), path.as_uri()) as file,
    ):
        file.read()


def test_open_parquet_passes_storage_errors_on(tmp_path):
    with (
        pytest.raises(StorageError, match="batch_9"),
        open_parquet(open_store(), (tmp_path / "batch_9.parquet").as_uri()),
    ):
        pass


def test_open_parquet_passes_storage_errors_on_while_reading(tmp_path):
    path = tmp_path / "batch_1.parquet"
    pd.DataFrame({"a": np.arange(100_000)}).to_parquet(path)

    class FailingStore:
        def open_input(self, uri):
            return FailingFile(path.open("rb"))

    with (
        pytest.raises(StorageError, match="connection lost"),
        open_parquet(FailingStore(), path.as_uri()) as file,
    ):
        list(file.iter_batches())


class FailingFile:
    """A file whose connection breaks once the footer is read."""

    closed = False

    def __init__(self, file):
        self._file = file

    def read(self, n_bytes=-1):
        if self._file.tell() < 1000:
            raise StorageError("connection lost")
        return self._file.read(n_bytes)

    def __getattr__(self, name):
        return getattr(self._file, name)


def counted(path, n_rows=100, name="event_id", **columns):
    """Write a table whose index only counts: 7, 10, 13, ...; pandas keeps it in the metadata."""
    index = pd.RangeIndex(7, 7 + 3 * n_rows, 3, name=name)
    pd.DataFrame(columns, index=index).to_parquet(path, row_group_size=30)
    assert name not in pq.ParquetFile(path).schema_arrow.names
    return path


def test_an_index_that_only_counts_is_read_as_pandas_reads_it(tmp_path):
    path = counted(tmp_path / "f.parquet", a=np.arange(100.0), b=np.arange(100))
    expected = pd.read_parquet(path).reset_index()
    with open_parquet(open_store(), path.as_uri()) as file:
        assert file.schema_arrow.names == ["a", "b", "event_id"]
        for columns in (None, ["event_id", "b"], ["event_id"]):
            whole = file.read(columns).to_pandas(ignore_metadata=True)
            rows = list(file.iter_batches(40, columns=columns))
            assert max(part.num_rows for part in rows) <= 40
            parts = pa.Table.from_batches(rows).to_pandas(ignore_metadata=True)
            for found in (whole, parts):
                pd.testing.assert_frame_equal(found, expected[list(found)])
                assert set(found) == set(columns or expected)
        # of groups that are not the first ones, or are left out
        rows = file.iter_batches(1000, row_groups=[1, 3], columns=["event_id", "b"])
        found = pa.Table.from_batches(rows).to_pandas(ignore_metadata=True)
        wanted = expected.iloc[[*range(30, 60), *range(90, 100)]].reset_index(drop=True)
        pd.testing.assert_frame_equal(found, wanted[list(found)])
        assert file.read(["b"]).column_names == ["b"]


def test_a_file_of_nothing_but_an_index_that_counts_has_its_rows(tmp_path):
    path = counted(tmp_path / "f.parquet")
    with open_parquet(open_store(), path.as_uri()) as file:
        assert file.n_rows == 100
        assert file.read(["event_id"]).column(0).to_pylist() == [*range(7, 307, 3)]


def test_an_index_that_counts_other_rows_is_refused_where_it_is_needed(tmp_path):
    path = counted(tmp_path / "f.parquet", a=np.arange(100.0))
    pq.write_table(pq.read_table(path).slice(0, 60), path)
    with open_parquet(open_store(), path.as_uri()) as file:
        assert file.read(["a"]).num_rows == 60
        words = r"counts other rows .*f.parquet\]: found 100 numbers.*60 rows.*column event_id"
        with pytest.raises(RawDataError, match=words):
            file.read()
        with pytest.raises(RawDataError, match=words):
            next(file.iter_batches(columns=["event_id"]))


@pytest.mark.parametrize(
    "said",
    [b"{", b"[]", b'{"index_columns": [{"kind": "range", "name": "n"}]}']
    + [
        json.dumps({"index_columns": [{"kind": "range", "start": 0} | index]}).encode()
        for index in (
            {"name": "n", "stop": 5, "step": 0},
            {"name": None, "stop": 5, "step": 1},
            {"name": "a", "stop": 5, "step": 1},
            {"name": "n", "stop": 2**70, "step": 2**68},
            {"name": "n", "stop": "5", "step": 1},
        )
    ],
)
def test_metadata_that_pandas_would_not_write_name_no_index(tmp_path, said):
    path = tmp_path / "f.parquet"
    table = pa.table({"a": [1, 2, 3, 4, 5]}).replace_schema_metadata({b"pandas": said})
    pq.write_table(table, path)
    with open_parquet(open_store(), path.as_uri()) as file:
        assert file.schema_arrow.names == ["a"]
        assert file.read().column("a").to_pylist() == [1, 2, 3, 4, 5]
