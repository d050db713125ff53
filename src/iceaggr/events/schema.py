"""The raw layout's columns: names and kinds, checked before any value is read.

Widths vary between copies of the public set (int16 to int64, float32 or float64), so a column has
a kind, not a type. Foreign column names live in `sources.py` only.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from functools import wraps
from typing import Any, ParamSpec, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from iceaggr.errors import IceaggrError, RawDataError
from iceaggr.interfaces import ObjectStore
from iceaggr.validation import N_READS

logger = logging.getLogger(__name__)

Arguments = ParamSpec("Arguments")
Answer = TypeVar("Answer")


@dataclass(frozen=True)
class Kind:
    """A family of column types that mean the same."""

    words: str
    accepts: Callable[[Any], bool]


INTEGER = Kind("an integer type", pa.types.is_integer)
IDENTITY = Kind(
    "an integer type, or a float type without fractions",
    lambda found: pa.types.is_integer(found) or pa.types.is_floating(found),
)
NUMBER = Kind(
    "an integer or float type",
    lambda found: pa.types.is_integer(found) or pa.types.is_floating(found),
)
FLAG = Kind(
    "a boolean, or an integer type holding 0 and 1",
    lambda found: pa.types.is_boolean(found) or pa.types.is_integer(found),
)

TEXT = Kind(
    "text",
    lambda found: (
        pa.types.is_string(found)
        or pa.types.is_large_string(found)
        or (pa.types.is_dictionary(found) and pa.types.is_string(found.value_type))
    ),
)

NANOSECONDS = Kind("an integer or float type holding whole nanoseconds", NUMBER.accepts)


@dataclass(frozen=True)
class PulseValue:
    """A measured value of a pulse, on its way from the raw file to the minibatch.

    name:     in memory and in shards, with its unit
    raw_name: its column of a batch file
    kind:     decides how the column is read: INTEGER and NANOSECONDS become int64, FLAG bool, and
              NUMBER keeps its float type
    stored:   its Arrow type in a shard; None: the float type of the raw file
    batched:  its numpy type in a minibatch
    """

    name: str
    raw_name: str
    kind: Kind
    stored: Any
    batched: type[np.generic]


PULSE_VALUES = (
    PulseValue("time_ns", "time", NANOSECONDS, pa.int64(), np.float32),
    PulseValue("charge_pe", "charge", NUMBER, None, np.float32),
    PulseValue("auxiliary", "auxiliary", FLAG, pa.bool_(), np.bool_),
)
"""The one list of what a pulse carries. A new value also needs its field in `PulseArrays`
(`dom_events`) and in `EventBatch`; reading, shards, quarantine, caps and batches follow."""
PULSE_NAMES = tuple(value.name for value in PULSE_VALUES)

PULSE_COLUMNS = {
    "event_id": IDENTITY,
    "sensor_id": IDENTITY,
    **{value.raw_name: value.kind for value in PULSE_VALUES},
}
"""Columns of a batch file, one row per pulse; event_id may also be its pandas index."""

META_COLUMNS = {
    "batch_id": INTEGER,
    "event_id": IDENTITY,
    "first_pulse_index": INTEGER,
    "last_pulse_index": INTEGER,
}
"""Columns of the meta file, one row per event; last_pulse_index is inclusive."""

LABEL_COLUMNS = {"azimuth": NUMBER, "zenith": NUMBER}
"""Further columns of the meta file where events are labelled: radians, towards the origin."""


def check_columns(schema: Any, expected: dict[str, Kind], uri: str) -> None:
    """Compare a parquet schema with the columns that it must have; others are ignored.

    Raises: RawDataError naming the file, the column, what was found and what was expected.
    """
    for name, kind in expected.items():
        occurrences = schema.names.count(name)
        if occurrences != 1:
            raise RawDataError(
                f"raw file has {occurrences or 'no'} columns named {name}",
                where=uri,
                found=f"columns {', '.join(schema.names)}",
                expected=f"one column {name} of {kind.words}",
                remedy="Write it in the layout of docs/data_formats.md",
            )
        found = schema.field(name).type
        if not kind.accepts(found):
            raise RawDataError(
                f"raw column {name} has the wrong type",
                where=uri,
                found=str(found),
                expected=kind.words,
                remedy=f"Write {name} as {kind.words}",
            )


def exact_integers(column: Any, name: str, where: str, *, tell_row: bool = False) -> Any:
    """Turn an Arrow column of floats into int64 where nothing is lost; leave any other as it is.

    A missing value stays one, and NaN becomes one.
    tell_row: the column is whole, not a part of a file, so that its rows can be named.
    Raises: RawDataError naming a value with a fraction, or beyond what the type counts in
    ones: 2^53 - 1 of float64, 2^24 - 1 of float32, so that a neighbour may have been rounded to it.
    """
    if not pa.types.is_floating(column.type):
        return column
    number = column.to_numpy(zero_copy_only=False)
    exact = 2.0 ** (np.finfo(number.dtype).nmant + 1) - 1
    is_absent = np.isnan(number)
    bad = np.flatnonzero(~is_absent & ((number != np.floor(number)) | (np.abs(number) > exact)))
    if len(bad):
        raise RawDataError(
            f"{name} is not a whole number",
            where=f"{where}, row {bad[0]}" if tell_row else where,
            found=repr(float(number[bad[0]])),
            expected=f"integers, or {number.dtype} without a fraction up to {exact:.0f}",
            remedy=f"Give {name} as integers: nothing is rounded here",
        )
    return pa.array(np.where(is_absent, 0, number).astype(np.int64), mask=is_absent)


class DamagedFileError(RawDataError):
    """Arrow could not make sense of a raw file, or a checksum of it is wrong."""


def reading_again(read: Callable[Arguments, Answer]) -> Callable[Arguments, Answer]:
    """Repeat a reader that met damage, up to twice: it may have struck on the way from storage.

    Ranged reads carry no checksum of the store, so that only the file's own checksums tell.
    """

    @wraps(read)
    def patiently(*arguments: Arguments.args, **options: Arguments.kwargs) -> Answer:
        for _ in range(N_READS - 1):
            try:
                return read(*arguments, **options)
            except DamagedFileError as error:
                logger.warning("reading again: %s", error)
        return read(*arguments, **options)

    return patiently


# what pyarrow raises on damaged bytes; a RuntimeError is an exception of C++ that has no name there
_DAMAGE = (pa.ArrowException, OSError, UnicodeDecodeError, RuntimeError, OverflowError)


@contextmanager
def open_parquet(store: ObjectStore, uri: str) -> Iterator[ParquetReader]:
    """Open a parquet file in storage; only the ranges that are read are transferred.

    Whatever Arrow finds wrong inside the block is raised as DamagedFileError naming the file.
    """
    try:
        with (
            closing(store.open_input(uri)) as stream,
            pq.ParquetFile(stream, page_checksum_verification=True) as file,
        ):
            yield ParquetReader(file, uri)
    except IceaggrError:
        raise
    except _DAMAGE as error:
        found = (str(error) or type(error).__name__).splitlines()[0][:300]
        raise damaged_file(uri, found) from error


def damaged_file(uri: str, found: str) -> DamagedFileError:
    """Word the error of a file that is no sound parquet."""
    return DamagedFileError(
        "raw file is damaged, truncated or not parquet",
        where=uri,
        found=found,
        expected="a complete parquet file",
        remedy="Copy the file again from its source and compare the sizes",
    )


# An index of pandas that only counts is no column on disk: the metadata have its ends and step.


class ParquetReader:
    """An open parquet file with the columns that pandas sees: an index that only counts is one."""

    def __init__(self, file: Any, where: str) -> None:
        """file: a pyarrow.parquet.ParquetFile.  where: its name in errors."""
        self._file, self._where = file, where
        self._index = _counting_index(file.schema_arrow)

    @property
    def schema_arrow(self) -> Any:
        """Give all columns, the counting index last."""
        schema = self._file.schema_arrow
        return schema.append(pa.field(self._index[0], pa.int64())) if self._index else schema

    @property
    def n_rows(self) -> int:
        """Count the rows; of a file without columns its index does."""
        if self._index and not self._file.schema_arrow.names:
            return len(self._index[1])
        return int(self._file.metadata.num_rows)

    def read(self, columns: Sequence[str] | None = None) -> Any:
        """Read some columns as an Arrow table, None = all. Raises: as `iter_batches`."""
        stored = self._stored(columns)
        if stored is columns or self._index is None:
            return self._file.read(columns=columns)
        name, numbers = self._index[0], self._numbers(0, self.n_rows)
        if not stored:
            return pa.table({name: numbers})
        return self._file.read(columns=stored).append_column(name, numbers)

    def iter_batches(
        self,
        batch_size: int = 1 << 16,
        row_groups: Sequence[int] | None = None,
        columns: Sequence[str] | None = None,
    ) -> Iterator[Any]:
        """Read some columns and row groups, None = all, some rows at a time.

        Raises: RawDataError if the index is asked for and counts other rows than the file has.
        """
        stored = self._stored(columns)
        if stored is columns or self._index is None:
            yield from self._file.iter_batches(batch_size, row_groups=row_groups, columns=columns)
            return
        for first, n_rows, group in self._parts(row_groups):
            chosen = {"row_groups": group, "columns": stored}
            rest = self._file.iter_batches(batch_size, **chosen) if stored else None
            for start in range(first, first + n_rows, batch_size) if rest is None else ():
                numbers = self._numbers(start, min(batch_size, first + n_rows - start))
                yield pa.record_batch({self._index[0]: numbers})
            for rows in rest or ():
                numbers = self._numbers(first, rows.num_rows)
                yield rows.append_column(self._index[0], numbers)
                first += rows.num_rows

    def _stored(self, columns: Sequence[str] | None) -> Sequence[str] | None:
        """Leave the index out of the columns to read; the same object if it is not asked for."""
        if self._index is None or (columns is not None and self._index[0] not in columns):
            return columns
        name, numbers = self._index
        if len(numbers) != self.n_rows:
            raise RawDataError(
                f"pandas' index {name} counts other rows than the file has",
                where=self._where,
                found=f"{len(numbers):,} numbers, {numbers}, for {self.n_rows:,} rows",
                expected=f"one for each row, or {name} as a column",
                remedy=f"Rows were taken out after pandas wrote it: write it with a column {name}",
            )
        names = self._file.schema_arrow.names if columns is None else columns
        return [stored for stored in names if stored != name]

    def _parts(
        self, row_groups: Sequence[int] | None
    ) -> Iterator[tuple[int, int, list[int] | None]]:
        """Give first row, rows and number of each row group; of all at once if all are wanted."""
        if row_groups is None:
            yield 0, self.n_rows, None
            return
        metadata = self._file.metadata
        sizes = [metadata.row_group(k).num_rows for k in range(metadata.num_row_groups)]
        for group in row_groups:
            yield sum(sizes[:group]), sizes[group], [group]

    def _numbers(self, first_row: int, n_rows: int) -> Any:
        assert self._index is not None, "only asked of a file with an index"
        part = self._index[1][first_row : first_row + n_rows]
        return pa.array(np.arange(part.start, part.stop, part.step, dtype=np.int64))


def _counting_index(schema: Any) -> tuple[str, range] | None:
    """Take name and numbers of pandas' index, if it counts, has a name and is no column.

    Metadata that pandas would not have written say nothing: whoever needs the column misses it.
    Source: pandas, "Storing pandas DataFrame objects in Apache Parquet format", index_columns.
    """
    try:
        (index,) = json.loads(schema.metadata[b"pandas"])["index_columns"]
        name, numbers = index["name"], range(index["start"], index["stop"], index["step"])
    except (KeyError, TypeError, ValueError):
        return None
    ends = (numbers.start, numbers.stop)
    fits = all(-(2**63) <= end < 2**63 for end in ends) and index["kind"] == "range"
    return (name, numbers) if fits and isinstance(name, str) and name not in schema.names else None
