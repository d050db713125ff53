"""The tables of the files to convert, whatever their format, read some rows at a time."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from iceaggr.errors import RawDataError

# Values of foreign columns, checked: a null is never a number, and nothing is rounded.

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]

_RUN_BITS, _EVENT_BITS, _SUB_BITS = 20, 32, 11
"""Of an id that is made of run, event and part of the event: 63 bits together."""
_OTHER_COLUMN = "Mend the source, or name another column with the flag"


def whole_numbers(column: Any, place: str, where: str) -> Ints:
    """Take ids: (n,) int64.

    place: table, column and flag.  where: the file.
    Raises: RawDataError if one is null, no number, has a fraction or exceeds 64 signed bits.
    """
    column = _plain(column)
    if column.null_count or pa.types.is_null(column.type):
        found = f"null in {column.null_count:,} of {len(column):,} rows read"
        raise _refused("an id is missing", place, where, found)
    if pa.types.is_integer(column.type) or pa.types.is_boolean(column.type):
        try:
            return np.asarray(column.cast(pa.int64()).to_numpy(zero_copy_only=False), np.int64)
        except pa.ArrowInvalid:
            raise _refused("an id exceeds 64 bits", place, where, str(pc.max(column))) from None
    values = _as_float(column, place, where)
    # up to 2^53 every whole number is a float64
    wrong = ~((np.abs(values) <= 2.0**53) & (values == np.floor(values)))
    if wrong.any():
        found = f"{values[wrong][0]:g}"
        raise _refused("an id is no whole number", place, where, found)
    return values.astype(np.int64)


def numbers(column: Any, place: str, where: str) -> Floats:
    """Take measured values: (n,) float64, NaN where one is null. Raises: RawDataError for text."""
    return _as_float(_plain(column), place, where)


def flags(column: Any, place: str, where: str) -> Floats:
    """Take flags: (n,) float64, 0 or 1, NaN where one is null. Raises: RawDataError for others."""
    values = _as_float(_plain(column), place, where)
    wrong = ~(np.isnan(values) | (values == 0) | (values == 1))
    if wrong.any():
        raise _refused("a flag is neither 0 nor 1", place, where, f"{values[wrong][0]:g}")
    return values


def combined_ids(columns: list[Ints], place: str, where: str) -> Ints:
    """Make one id of run, event and, if there is a third, part of the event: (n,) int64.

    The same event has the same id in whatever file it lies.
    Raises: RawDataError if one does not fit into its bits.
    """
    sub = columns[2] if len(columns) > 2 else np.zeros_like(columns[0])
    parts = ((columns[0], _RUN_BITS), (columns[1], _EVENT_BITS), (sub, _SUB_BITS))
    for values, n_bits in parts:
        wrong = (values < 0) | (values >= 1 << n_bits)
        if wrong.any():
            what = "run and event make no id"
            raise _refused(what, place, where, f"{values[wrong][0]}, not 0 to {(1 << n_bits) - 1}")
    shifted = columns[0] << (_EVENT_BITS + _SUB_BITS)
    return np.asarray(shifted | (columns[1] << _SUB_BITS) | sub, np.int64)


def by_event_and_time(row: Any, time: Any) -> Ints:
    """Give the order by both, (n,) each; one key of 64 bits is five times as fast as two."""
    if not (np.abs(time) < 2.0**38).all() or row.max(initial=0) >= 1 << 24:
        return np.asarray(np.lexsort((time, row)))
    return np.argsort((row.astype(np.int64) << 39) + time.astype(np.int64), kind="stable")


def _plain(column: Any) -> Any:
    if isinstance(column, pa.ChunkedArray):
        column = column.combine_chunks()
    if pa.types.is_dictionary(column.type):
        column = column.dictionary_decode()
    return column


def _as_float(column: Any, place: str, where: str) -> Floats:
    kind = column.type
    if pa.types.is_null(kind):
        return np.full(len(column), np.nan)
    if pa.types.is_boolean(kind):
        column = column.cast(pa.int8())
    elif not (pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_decimal(kind)):
        raise _refused("a column holds no numbers", place, where, f"{kind} {column[0]}")
    # not `cast`, which refuses integers beyond 2^53
    values = column.cast(pa.float64()) if pa.types.is_decimal(kind) else column
    return np.asarray(values.to_numpy(zero_copy_only=False), np.float64)


def _refused(what: str, place: str, where: str, found: str) -> RawDataError:
    return RawDataError(
        what,
        where=f"{where} {place}",
        found=found,
        expected="numbers; ids whole and in every row",
        remedy=_OTHER_COLUMN,
    )


ROWS_PER_READ = 1 << 18
Columns = dict[str, Any]
"""Column name -> Arrow array, all of one length."""


class SourceTable(Protocol):
    """One table of one file."""

    @property
    def name(self) -> str:
        """Name the table."""

    @property
    def where(self) -> str:
        """Name the file."""

    @property
    def columns(self) -> tuple[str, ...]:
        """Name the columns."""

    @property
    def n_rows(self) -> int:
        """Count the rows."""

    @property
    def n_events(self) -> int:
        """Count the events, where each row of the file is one and has no other number; else 0."""

    def read(self, columns: Sequence[str], first_row: int) -> Iterator[Columns]:
        """Read some columns, some rows at a time. first_row: number of the first event."""


@dataclass(frozen=True)
class JoinedTable:
    """The tables of one name in all files.

    parts: (number of the input it belongs to, table), in the order of the files.
    """

    name: str
    parts: tuple[tuple[int, SourceTable], ...]

    @property
    def columns(self) -> tuple[str, ...]:
        """Name the columns of the first part; `read` says which part lacks one."""
        return self.parts[0][1].columns

    @property
    def n_rows(self) -> int:
        """Count the rows of all parts."""
        return sum(part.n_rows for _, part in self.parts)

    def read(self, columns: Sequence[str]) -> Iterator[tuple[int, str, Columns]]:
        """Read some columns of all parts: (number of the input, file, columns).

        Raises: RawDataError naming a file that lacks a column or cannot be read.
        """
        first_row = 0
        for number, part in self.parts:
            absent = [name for name in columns if name not in part.columns]
            if absent:
                raise RawDataError(
                    f"table {self.name} lacks column {absent[0]} in one of the files",
                    where=part.where,
                    found=f"columns {', '.join(part.columns)}",
                    expected=f"the columns of {self.parts[0][1].where}",
                    remedy="Convert files of one kind together, others by themselves",
                )
            for chunk in part.read(columns, first_row):
                yield number, part.where, chunk
            first_row += part.n_events


def unreadable(path: Path, found: str, expected: str) -> RawDataError:
    """Word the error of a source that cannot be read."""
    remedy = "Check the path; a file that was copied half is copied again"
    if "locked" in found:  # SQLite's word
        remedy = "Wait for the program that writes to it, or end it, and convert again"
    return RawDataError(
        "cannot read the source", where=str(path), found=found, expected=expected, remedy=remedy
    )


@contextmanager
def reading_source(path: Path, *errors: type[Exception]) -> Iterator[None]:
    """Tell what a library says of a damaged file as an error that names it."""
    try:
        yield
    except RawDataError:
        raise
    except errors as error:
        found = (" ".join(str(error).split()) or type(error).__name__)[:300]
        raise unreadable(path, found, "a complete file that this user may read") from None


@dataclass(frozen=True)
class _SqliteTable:
    path: Path
    name: str
    columns: tuple[str, ...]
    n_rows: int
    n_events: int = 0

    @property
    def where(self) -> str:
        return str(self.path)

    def read(self, columns: Sequence[str], first_row: int) -> Iterator[Columns]:
        names = ", ".join(quoted(name) for name in columns)
        with reading_source(self.path, sqlite3.Error), closing(connected(self.path)) as connection:
            cursor = connection.execute(f"SELECT {names} FROM {quoted(self.name)}")
            while rows := cursor.fetchmany(ROWS_PER_READ):
                yield rows_as_columns(rows, columns, self.name, self.where)


def rows_as_columns(
    rows: Sequence[tuple[Any, ...]], names: Sequence[str], table: str, where: str
) -> Columns:
    """Turn rows of SQLite into columns. Raises: RawDataError for one of several types."""
    values = zip(*rows, strict=True)
    return {n: _array(v, f"{table}.{n}", where) for n, v in zip(names, values, strict=True)}


def _array(values: Sequence[Any], place: str, where: str) -> Any:
    try:
        return pa.array(values)
    except (pa.ArrowInvalid, pa.ArrowTypeError, OverflowError) as error:
        raise RawDataError(
            f"column {place} mixes what does not belong together",
            where=where,
            found=" ".join(str(error).split())[:200],
            expected="numbers only",
            remedy="Mend the column in the source",
        ) from None


def refuse_cut(path: Path) -> None:
    """Compare a SQLite file's size with the number of pages that its header counts.

    Raises: RawDataError if bytes are missing.
    Source: SQLite, "Database File Format", 1.3: page size at 16, change counter at 24, pages at 28,
    counter for which these are valid at 92.
    """
    with reading_source(path, OSError), path.open("rb") as file:
        head = file.read(100)
    size = int.from_bytes(head[16:18], "big")
    n_bytes = (65536 if size == 1 else size) * int.from_bytes(head[28:32], "big")
    if not head.startswith(b"SQLite format 3\0"):
        raise unreadable(path, f"begins with {head[:8]!r}", "a SQLite file")
    if len(head) < 100 or (head[24:28] == head[92:96] and path.stat().st_size < n_bytes):
        expected = f"{n_bytes:,} bytes, as its header says"
        raise unreadable(path, f"{path.stat().st_size:,} bytes", expected)


def sqlite_tables(path: Path) -> list[SourceTable]:
    """List the tables and views of a SQLite file. Raises: RawDataError."""
    listing = "SELECT name FROM sqlite_master WHERE type IN ('table', 'view') ORDER BY rowid"
    refuse_cut(path)
    with reading_source(path, sqlite3.Error), closing(connected(path)) as connection:
        tables: list[SourceTable] = []
        for (name,) in connection.execute(listing).fetchall():
            table = quoted(name)
            rows = connection.execute(f"PRAGMA table_info({table})").fetchall()
            (n_rows,) = connection.execute(f"SELECT COUNT(*) FROM {table}").fetchone()
            tables.append(_SqliteTable(path, name, tuple(row[1] for row in rows), n_rows))
        return tables


def connected(path: Path) -> sqlite3.Connection:
    """Open a SQLite file for reading."""
    return sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True)


def quoted(name: str) -> str:
    """Quote a name for SQLite."""
    return '"' + name.replace('"', '""') + '"'


def is_among(known: Ints, ids: Ints) -> Any:
    """Tell which ids are among known ones, which ascend: (n,) bool."""
    # an event's rows follow each other: the first of them is looked up
    is_first = np.ones(len(ids), bool)
    is_first[1:] = ids[1:] != ids[:-1]
    first = ids[is_first]
    if not len(known) or not len(ids):
        return np.zeros(len(ids), bool)
    found = known[np.searchsorted(known, first).clip(max=len(known) - 1)] == first
    return found[np.cumsum(is_first) - 1]
