"""The tables of the files to convert, whatever their format, read some rows at a time."""

from __future__ import annotations

import re
import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import pyarrow as pa

from iceaggr.errors import RawDataError

ROWS_PER_READ = 1 << 18
SUFFIXES = {
    "SQLite": (".db", ".sqlite", ".sqlite3", ".db3"),
    "Parquet": (".parquet", ".pq"),
    "HDF5": (".h5", ".hdf5", ".hdf", ".he5"),
}
_SKIPPED = (".", "_", "~")
"""A folder or file whose name begins so is a copy, a checkpoint or an unfinished rest."""
_NUMBERED = re.compile(r"(.*?)[._-]*\d.*")
_NAMELESS = ("", "part", "batch", "chunk", "file", "data")

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


def open_tables(inputs: Sequence[Path]) -> dict[str, JoinedTable]:
    """Find the tables in all files, and in the files of all folders: name -> table.

    Raises: RawDataError if a file cannot be read or is of no known format.
    """
    found: dict[str, list[tuple[int, SourceTable]]] = {}
    for number, given in enumerate(inputs):
        for path in _files(given):
            tables = _tables_of(path, given)
            if not tables:
                raise _unreadable(path, "no table in it", "tables of pulses and of truth")
            for table in tables:
                found.setdefault(table.name, []).append((number, table))
    return {name: JoinedTable(name, tuple(parts)) for name, parts in found.items()}


def _files(given: Path) -> list[Path]:
    if given.is_file():
        return [given]
    if not given.exists():
        raise _unreadable(given, "nothing of this name", "a file or a folder")
    known = {suffix for suffixes in SUFFIXES.values() for suffix in suffixes}
    files = [
        path
        for path in sorted(given.rglob("*"), key=_in_order)
        if path.suffix.lower() in known
        and path.is_file()
        and not any(part.startswith(_SKIPPED) for part in path.relative_to(given).parts)
    ]
    if not files:
        raise _unreadable(given, "no such file in the folder", f"files that end in {_endings()}")
    if any(path.name in ("train_meta.parquet", "test_meta.parquet") for path in files):
        raise RawDataError(
            "the folder holds the raw layout already",
            where=str(given),
            found="train_meta.parquet or test_meta.parquet",
            expected="events in another layout",
            remedy=f"Use it as it is: --raw-uri {given.absolute().as_uri()}",
        )
    return files


def _in_order(path: Path) -> list[Any]:
    """Sort part 10 after part 9."""
    return [(int(t), "") if t.isdecimal() else (-1, t) for t in re.split(r"(\d+)", str(path))]


def _endings() -> str:
    return ", ".join(suffix for suffixes in SUFFIXES.values() for suffix in suffixes)


def _tables_of(path: Path, given: Path) -> Sequence[SourceTable]:
    with path.open("rb") as file:
        head = file.read(16)
    suffix = path.suffix.lower()
    if head.startswith(b"SQLite format 3\0") or suffix in SUFFIXES["SQLite"]:
        return _sqlite_tables(path)
    if head.startswith(b"PAR1") or suffix in SUFFIXES["Parquet"]:
        from iceaggr.events.conversion.parquet_tables import parquet_tables

        return parquet_tables(path, table_name(path, given))
    if head.startswith(b"\x89HDF\r\n\x1a\n") or suffix in SUFFIXES["HDF5"]:
        from iceaggr.events.conversion.hdf5_tables import hdf5_tables

        return hdf5_tables(path)
    raise _unreadable(path, f"begins with {head[:8]!r}", "SQLite, Parquet or HDF5")


def table_name(path: Path, given: Path) -> str:
    """Name the table that a file is a part of: `total_3.parquet` and `total/part-3.parquet`."""
    numbered = _NUMBERED.fullmatch(path.stem)
    stem = numbered[1] if numbered else path.stem
    return stem if stem.lower() not in _NAMELESS else (path.parent.name or given.name or path.stem)


def _unreadable(path: Path, found: str, expected: str) -> RawDataError:
    return RawDataError(
        "cannot read the source",
        where=str(path),
        found=found,
        expected=expected,
        remedy="Check the path; a file that was copied half is copied again",
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
        raise _unreadable(path, found, "a complete file that this user may read") from None


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
        names = ", ".join(_quoted(name) for name in columns)
        with reading_source(self.path, sqlite3.Error), closing(_connect(self.path)) as connection:
            cursor = connection.execute(f"SELECT {names} FROM {_quoted(self.name)}")
            while rows := cursor.fetchmany(ROWS_PER_READ):
                values = zip(*rows, strict=True)
                yield {n: self._array(n, v) for n, v in zip(columns, values, strict=True)}

    def _array(self, name: str, values: Sequence[Any]) -> Any:
        try:
            return pa.array(values)
        except (pa.ArrowInvalid, pa.ArrowTypeError, OverflowError) as error:
            raise RawDataError(
                f"column {self.name}.{name} mixes what does not belong together",
                where=self.where,
                found=" ".join(str(error).split())[:200],
                expected="numbers only",
                remedy="Mend the column in the source",
            ) from None


def _sqlite_tables(path: Path) -> list[SourceTable]:
    listing = "SELECT name FROM sqlite_master WHERE type IN ('table', 'view') ORDER BY rowid"
    with reading_source(path, sqlite3.Error), closing(_connect(path)) as connection:
        tables: list[SourceTable] = []
        for (name,) in connection.execute(listing).fetchall():
            quoted = _quoted(name)
            rows = connection.execute(f"PRAGMA table_info({quoted})").fetchall()
            (n_rows,) = connection.execute(f"SELECT COUNT(*) FROM {quoted}").fetchone()
            tables.append(_SqliteTable(path, name, tuple(row[1] for row in rows), n_rows))
        return tables


def _connect(path: Path) -> sqlite3.Connection:
    return sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True)


def _quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'
