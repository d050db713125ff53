"""NuBench's layout: found by itself, converted part by part, its official selections kept.

    merged/merged.db                        SQLite, tables mc_truth, merged_photons, pulses_no_noise
    merged/TABLE/TABLE_N.parquet            or the same as GraphNeT's Parquet folders
    selections/train_selection.parquet      official selections, column event_no
    selections/test_selection.parquet
    geometry.parquet                        all sensors

Events of the train selection take the pulses with noise, those of the test selection the pulses
without, as the benchmark wants. A set of 100 GB is never held: one group of batch files after the
other is read by its event numbers, and a conversion that was cut goes on with the next group.
"""

from __future__ import annotations

import hashlib
import json
import re
import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from operator import itemgetter
from pathlib import Path

import numpy as np
import pyarrow as pa

from iceaggr.errors import RawDataError
from iceaggr.events.conversion.tables import (
    ROWS_PER_READ,
    Columns,
    Ints,
    JoinedTable,
    connected,
    is_among,
    quoted,
    reading_source,
    refuse_cut,
    rows_as_columns,
    whole_numbers,
)
from iceaggr.events.schema import open_parquet
from iceaggr.interfaces import ObjectStore, StoredObject
from iceaggr.storage.uris import FILE_SCHEME, file_path

TRUTH, NOISY, CLEAN = "mc_truth", "merged_photons", "pulses_no_noise"
PULSES_OF = {"train": NOISY, "test": CLEAN}
"""Split -> table of its pulses."""
EVENT = "event_no"
PARTS_PER_GROUP = 4
"""Parquet parts that a group reads at least: those at its two ends are read by two groups."""

_DATABASE = re.compile(r"(merged/)?merged\.db")
_PART = re.compile(r"(?:merged/)?(?P<table>\w+)/(?P=table)_(?P<number>\d+)\.parquet")
_SELECTION = re.compile(r"selections/(train|test)_selection\.parquet")
_GEOMETRY = re.compile(r"(geometry/)?[^/]+\.(parquet|csv|geo)")
DOWNLOAD = "Download what is missing, or once more what was cut"


@dataclass(frozen=True)
class NuBenchFiles:
    """The files of a set that was recognised; what is missing is told by `check_complete`.

    database: of SQLite, None where parts are there.  parts: table -> (number, file), ascending.
    selections: split -> file.  geometries: files that may hold all sensors.
    """

    root_uri: str
    database: StoredObject | None
    parts: Mapping[str, tuple[tuple[int, StoredObject], ...]]
    selections: Mapping[str, StoredObject]
    geometries: tuple[str, ...]

    def digest(self) -> str:
        """Hash names, sizes and tags of all files that are read: 16 hex digits."""
        files = [self.database, *self.selections.values()]
        files += [file for parts in self.parts.values() for _, file in parts]
        content = sorted((f.uri.removeprefix(self.root_uri), f.n_bytes, f.etag) for f in files if f)
        return hashlib.sha256(json.dumps(content).encode()).hexdigest()[:16]

    def check_complete(self) -> None:
        """Refuse a set that was downloaded by half. Raises: RawDataError naming what is missing."""
        for split in PULSES_OF:
            if split not in self.selections:
                raise incomplete(
                    f"{self.root_uri}/selections",
                    f"no {split}_selection.parquet",
                    "the official selections, train and test, beside merged/",
                    f"{DOWNLOAD}; where there are none, give the file or the folder of the tables"
                    " itself: its events are then split as any others",
                )
        if self.database is None and not self.parts:
            neither = "neither merged.db nor Parquet parts"
            raise incomplete(f"{self.root_uri}/merged", neither, f"the tables {_TABLES_TOLD}")
        if self.database is None:
            numbers = {table: [n for n, _ in self.parts.get(table, ())] for table in _TABLES}
            for table, found in numbers.items():
                _refuse_gaps(self.root_uri, table, found, max(map(len, numbers.values())))


_TABLES = (TRUTH, NOISY, CLEAN)
_TABLES_TOLD = ", ".join(_TABLES)


def find_nubench(store: ObjectStore, root_uri: str) -> NuBenchFiles | None:
    """Recognise the layout below a folder by its names; None if it is another one."""
    root_uri = root_uri.rstrip("/")
    database: StoredObject | None = None
    parts: dict[str, list[tuple[int, StoredObject]]] = {}
    selections: dict[str, StoredObject] = {}
    geometries, n_others = [], 0
    for stored in store.list(f"{root_uri}/"):
        name = stored.uri.removeprefix(f"{root_uri}/")
        if _DATABASE.fullmatch(name):
            database = stored
        elif match := _PART.fullmatch(name):
            parts.setdefault(match["table"], []).append((int(match["number"]), stored))
        elif match := _SELECTION.fullmatch(name):
            selections[match[1]] = stored
        elif _GEOMETRY.fullmatch(name):
            geometries.append(stored.uri)
        else:
            n_others += not name.startswith("merged/")
    is_parquet = NOISY in parts or CLEAN in parts or (bool(selections) and TRUTH in parts)
    is_sqlite = database is not None and (bool(selections) or _has_its_tables(database))
    # of a download that has just begun
    is_begun = bool(selections) and database is None and not n_others
    if not is_parquet and not is_sqlite and not is_begun:
        return None
    return NuBenchFiles(
        root_uri=root_uri,
        database=database if is_sqlite else None,
        parts={}
        if is_sqlite
        else {t: tuple(sorted(p, key=itemgetter(0))) for t, p in parts.items()},
        selections=selections,
        geometries=tuple(geometries),
    )


def _has_its_tables(database: StoredObject) -> bool:
    """Look into a local file: GraphNeT gives other sets the same name."""
    if not database.uri.startswith(FILE_SCHEME):
        return False
    path = file_path(database.uri)
    try:
        with closing(connected(path)) as connection:
            names = {name for (name,) in connection.execute("SELECT name FROM sqlite_master")}
    except sqlite3.Error:
        return False  # whoever reads it says why
    return bool({NOISY, CLEAN} & names)


def incomplete(where: str, found: str, expected: str, remedy: str = DOWNLOAD) -> RawDataError:
    """Word the error of a set of which something is missing."""
    return RawDataError(
        "the set is not complete", where=where, found=found, expected=expected, remedy=remedy
    )


def _refuse_gaps(root_uri: str, table: str, found: Sequence[int], n_parts: int) -> None:
    """Refuse a Parquet table that lacks a part which another table has, or one in between."""
    absent = sorted(set(range(n_parts)) - set(found))
    if table == NOISY and not found:
        raise without_noise(f"{root_uri}/merged", "no such folder")
    if absent or len(found) != n_parts:
        some = ", ".join(f"{table}_{n}.parquet" for n in absent[:3])
        what = f"no {some}" + (f" and {len(absent) - 3} more" if len(absent) > 3 else "")
        raise incomplete(
            f"{root_uri}/merged/{table}",
            what if absent else f"{len(found)} parts, up to number {found[-1]}",
            f"parts 0 to {n_parts - 1}, as the other tables have",
        )


def without_noise(where: str, found: str) -> RawDataError:
    """Word the error of a set that has no pulses for training."""
    return RawDataError(
        "the pulses for training have no noise",
        where=where,
        found=found,
        expected=f"table {NOISY}: training reads the pulses with noise, testing {CLEAN}",
        remedy=f"Download {NOISY}, too; {CLEAN} is only for testing",
    )


# What both kinds of sets give: columns, event numbers, and the rows of some events.


@dataclass(frozen=True)
class Chosen:
    """Some events of one split: their numbers, ascending, and the tables that give their rows."""

    event_id: Ints
    truth: JoinedTable
    pulses: JoinedTable


class SqliteSet:
    """A set in one SQLite file, read by its index of event numbers."""

    def __init__(self, path: Path, selections: Mapping[str, Ints]) -> None:
        """path: of the local file.  selections: split -> event numbers, ascending.

        Raises: RawDataError if the file is cut, locked, or lacks a table or an index.
        """
        self._path, self._selections = path, selections
        refuse_cut(path)
        self.columns = {}
        with reading_source(path, sqlite3.Error), closing(connected(path)) as connection:
            for table in _TABLES:
                rows = connection.execute(f"PRAGMA table_info({table})").fetchall()
                if not rows and table == NOISY:
                    raise without_noise(str(path), f"no table {NOISY}")
                if not rows:
                    raise incomplete(str(path), f"no table {table}", f"tables {_TABLES_TOLD}")
                self.columns[table] = tuple(row[1] for row in rows)
                _refuse_slow(connection, path, table)

    def event_ids(self) -> Iterator[tuple[int, Ints]]:
        """Give all events of the truth as one part: (number of the part, ids)."""
        statement = f"SELECT {EVENT} FROM {TRUTH} ORDER BY {EVENT}"
        found = []
        with reading_source(self._path, sqlite3.Error), closing(connected(self._path)) as db:
            cursor = db.execute(statement)
            while rows := cursor.fetchmany(ROWS_PER_READ):
                column = pa.array([row[0] for row in rows])
                found.append(whole_numbers(column, f"{TRUTH}.{EVENT}", str(self._path)))
        yield 0, np.concatenate([np.empty(0, np.int64), *found])

    def choose(self, split: str, start: int, stop: int) -> Chosen:
        """Choose the events of a split from one place of its order to another."""
        return self._chosen(PULSES_OF[split], self._selections[split][start:stop])

    def sample(self, split: str, n_events: int, table: str = "") -> Chosen:
        """Choose events of the whole range, evenly; table: of pulses, '' = that of the split."""
        ids = self._selections[split]
        return self._chosen(table or PULSES_OF[split], ids[_spread(len(ids), n_events)])

    def _chosen(self, table: str, ids: Ints) -> Chosen:
        truth, pulses = (
            JoinedTable(name, ((0, _SqliteRows(self._path, name, self.columns[name], ids)),))
            for name in (TRUTH, table)
        )
        return Chosen(ids, truth, pulses)


def _spread(n: int, n_wanted: int) -> Ints:
    return np.unique(np.linspace(0, n - 1, min(n, n_wanted)).astype(np.int64))


def _refuse_slow(connection: sqlite3.Connection, path: Path, table: str) -> None:
    """Refuse a table that would be read as a whole for every group of events."""
    statement = f"EXPLAIN QUERY PLAN SELECT 1 FROM {table} WHERE {EVENT} = 1"
    steps = [row[3] for row in connection.execute(statement)]
    if not any(step.startswith("SEARCH") for step in steps):
        raise RawDataError(
            f"table {table} has no index of its events",
            where=f"{path} {table}.{EVENT}",
            found="; ".join(steps),
            expected="an index, as the benchmark's files have",
            remedy=f"Make one: sqlite3 {path.name} 'CREATE INDEX {EVENT}_{table} ON {table}"
            f" ({EVENT})'",
        )


@dataclass(frozen=True)
class _SqliteRows:
    """The rows of some events, in the order of their numbers."""

    path: Path
    name: str
    columns: tuple[str, ...]
    event_id: Ints
    n_rows: int = 0
    n_events: int = 0

    @property
    def where(self) -> str:
        return str(self.path)

    def read(self, columns: Sequence[str], first_row: int) -> Iterator[Columns]:
        names = ", ".join(f"rows.{quoted(name)}" for name in columns)
        # a cross join keeps this order: one search of the index for each event
        statement = (
            f"SELECT {names} FROM wanted CROSS JOIN {self.name} AS rows"
            f" ON rows.{EVENT} = wanted.id ORDER BY wanted.id"
        )
        with reading_source(self.path, sqlite3.Error), closing(connected(self.path)) as connection:
            connection.execute("CREATE TEMP TABLE wanted (id INTEGER PRIMARY KEY)")
            ids = ((number,) for number in self.event_id.tolist())
            connection.executemany("INSERT INTO wanted VALUES (?)", ids)
            cursor = connection.execute(statement)
            while rows := cursor.fetchmany(ROWS_PER_READ):
                yield rows_as_columns(rows, columns, self.name, self.where)


class ParquetSet:
    """A set in GraphNeT's Parquet folders; a part of each table holds the same events."""

    def __init__(
        self,
        store: ObjectStore,
        files: NuBenchFiles,
        selections: Mapping[str, Ints],
        counts: Sequence[tuple[int, int]] = (),
    ) -> None:
        """Look at the heads of all parts.

        selections: split -> event numbers, ascending.  counts: of each part, its events of train
        and of test, as `event_ids` tells them; needed by `choose` only.
        Raises: RawDataError if a part cannot be read.
        """
        self._store, self._files, self._selections = store, files, selections
        self.counts = list(counts)
        self.columns: dict[str, tuple[str, ...]] = {}
        for table in _TABLES:
            for _, part in files.parts[table]:
                with open_parquet(store, part.uri) as file:
                    names = tuple(file.schema_arrow.names)
                _refuse_lacking(names, part.uri, self.columns.setdefault(table, names))
                if counts:  # a worker: the plan has looked at all of them
                    break

    def event_ids(self) -> Iterator[tuple[int, Ints]]:
        """Give the events of each part of the truth: (number of the part, ids), and count them."""
        self.counts = []
        for number in range(len(self._files.parts[TRUTH])):
            ids = self._ids_of(number)
            chosen = [is_among(self._selections[split], ids).sum() for split in PULSES_OF]
            self.counts.append((int(chosen[0]), int(chosen[1])))
            yield number, ids

    def choose(self, split: str, start: int, stop: int) -> Chosen:
        """Choose the events of a split from one place of its order to another."""
        own = [of_part[list(PULSES_OF).index(split)] for of_part in self.counts]
        ends = np.cumsum(own)
        first = int(np.searchsorted(ends, start, side="right"))
        last = int(np.searchsorted(ends, stop, side="left"))
        before = int(ends[first - 1]) if first else 0
        return self._chosen(split, range(first, last + 1), slice(start - before, stop - before))

    def sample(self, split: str, n_events: int, table: str = "") -> Chosen:
        """Choose events of a few parts; table: of pulses, '' = that of the split."""
        own = np.array([of_part[list(PULSES_OF).index(split)] for of_part in self.counts])
        filled = np.flatnonzero(own)
        n_parts = -(-n_events // max(int(own[filled].mean()), 1)) if len(filled) else 0
        chosen = filled[_spread(len(filled), n_parts)].tolist() if n_parts else []
        return self._chosen(split, chosen, slice(0, n_events), table)

    def _chosen(self, split: str, numbers: Sequence[int], rows: slice, table: str = "") -> Chosen:
        found = [self._ids_of(number) for number in numbers]
        own = [np.sort(ids[is_among(self._selections[split], ids)]) for ids in found]
        event_id = np.sort(np.concatenate([np.empty(0, np.int64), *own])[rows])
        truth, pulses = (
            JoinedTable(name, tuple(self._rows(name, numbers, found, event_id)))
            for name in (TRUTH, table or PULSES_OF[split])
        )
        return Chosen(event_id, truth, pulses)

    def _rows(
        self, table: str, numbers: Sequence[int], found: Sequence[Ints], event_id: Ints
    ) -> Iterator[tuple[int, _ParquetRows]]:
        for number, ids in zip(numbers, found, strict=True):
            uri = self._files.parts[table][number][1].uri
            columns, in_part = self.columns[table], np.sort(ids)
            yield 0, _ParquetRows(self._store, uri, table, columns, in_part, event_id)

    def _ids_of(self, number: int) -> Ints:
        uri = self._files.parts[TRUTH][number][1].uri
        with open_parquet(self._store, uri) as file:
            _refuse_lacking(file.schema_arrow.names, uri)
            return whole_numbers(file.read([EVENT]).column(EVENT), f"{TRUTH}.{EVENT}", uri)


def _refuse_lacking(names: Sequence[str], uri: str, of_others: Sequence[str] = ()) -> None:
    found = f"columns {', '.join(names)}"
    if EVENT not in names:
        raise RawDataError(
            "nothing names the events",
            where=uri,
            found=found,
            expected=f"a column {EVENT}, or pandas' index of that name",
            remedy=f"Write it anew with {EVENT}",
        )
    if of_others and set(names) != set(of_others):
        raise incomplete(uri, found, f"{', '.join(of_others)}, as the part before")


@dataclass(frozen=True)
class _ParquetRows:
    """The rows of some events of one part.

    in_part: (n,) int64, ascending, all events of this part of the truth.  event_id: those wanted.
    """

    store: ObjectStore
    where: str
    name: str
    columns: tuple[str, ...]
    in_part: Ints
    event_id: Ints
    n_rows: int = 0
    n_events: int = 0

    def read(self, columns: Sequence[str], first_row: int) -> Iterator[Columns]:
        with open_parquet(self.store, self.where) as file:
            _refuse_lacking(file.schema_arrow.names, self.where)
            wanted = list(dict.fromkeys((EVENT, *columns)))
            for rows in file.iter_batches(ROWS_PER_READ, columns=wanted):
                ids = whole_numbers(rows.column(EVENT), f"{self.name}.{EVENT}", self.where)
                self._refuse_strange(ids)
                mask = pa.array(is_among(self.event_id, ids))
                yield {name: rows.column(name).filter(mask) for name in columns}

    def _refuse_strange(self, ids: Ints) -> None:
        strange = ids[~is_among(self.in_part, ids)]
        if len(strange):
            raise RawDataError(
                "pulses of events that lie in another part, or in none",
                where=self.where,
                found=f"{len(np.unique(strange)):,} events, such as {strange[0]}",
                expected=f"the events of the part of {TRUTH} with the same number",
                remedy="Download both parts again; parts of two sets are not mixed",
            )


# The official selections.


def read_selections(store: ObjectStore, files: NuBenchFiles) -> dict[str, Ints]:
    """Read the event numbers of both selections: split -> (n,) int64, ascending.

    Raises: RawDataError if a file lacks them, an event is in one twice, or in both.
    """
    found = {}
    for split, stored in files.selections.items():
        with open_parquet(store, stored.uri) as file:
            _refuse_lacking(file.schema_arrow.names, stored.uri)
            ids = whole_numbers(file.read([EVENT]).column(EVENT), EVENT, stored.uri)
        found[split] = np.unique(ids)
        if not len(ids) or len(found[split]) < len(ids):
            what = f"{len(ids):,} rows of {len(found[split]):,} events"
            raise _bad_selection("names no event, or one twice", stored.uri, what)
    both = np.intersect1d(found["train"], found["test"], assume_unique=True)
    if len(both):
        what = f"{len(both):,} events, such as {both[0]}"
        raise _bad_selection("and that of training overlap", files.selections["test"].uri, what)
    return found


def _bad_selection(what: str, where: str, found: str) -> RawDataError:
    return RawDataError(
        f"a selection {what}",
        where=where,
        found=found,
        expected="each event once, in one of both",
        remedy="Download the selections again",
    )
