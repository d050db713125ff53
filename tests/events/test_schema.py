import numpy as np
import pandas as pd
import pyarrow as pa
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
