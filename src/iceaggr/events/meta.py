"""The meta file: which rows of a batch file belong to which event, and the labels.

The real one has 132 million rows. Its row groups carry the least and greatest batch_id, so reading
the events of a few files costs the same however long the meta file is, the footer aside.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from iceaggr.errors import RawDataError
from iceaggr.events.label_reading import AS_DOCUMENTED, LabelReading
from iceaggr.events.parquet_footer import RowGroup, read_row_groups
from iceaggr.events.schema import (
    LABEL_COLUMNS,
    META_COLUMNS,
    check_columns,
    exact_integers,
    open_parquet,
    reading_again,
)
from iceaggr.interfaces import ObjectStore

ROWS_PER_READ = 1 << 17
SPLIT_COLUMN = "split"
"""Of the meta file, where the raw events bring a split of their own: `train` or `test`."""


@dataclass(frozen=True)
class EventTable:
    """The events of one batch file, in the order of their pulses.

    event_id:        (B,) int64
    n_pulses:        (B,) int64, may be 0
    azimuth, zenith: (B,) float64, radians; NaN where there is no label
    is_test:         (B,) bool, the split that the raw events bring; None where they bring none
    """

    event_id: npt.NDArray[np.int64]
    n_pulses: npt.NDArray[np.int64]
    azimuth: npt.NDArray[np.float64]
    zenith: npt.NDArray[np.float64]
    is_test: npt.NDArray[np.bool_] | None = None

    @property
    def n_events(self) -> int:
        """Count the events (B)."""
        return len(self.event_id)

    def head(self, n_events: int) -> EventTable:
        """Take the first events."""
        return EventTable(
            self.event_id[:n_events],
            self.n_pulses[:n_events],
            self.azimuth[:n_events],
            self.zenith[:n_events],
            None if self.is_test is None else self.is_test[:n_events],
        )

    def digest(self) -> str:
        """Hash every value: 64 hex digits."""
        content = hashlib.sha256()
        for column in (self.event_id, self.n_pulses, self.azimuth, self.zenith):
            content.update(np.ascontiguousarray(column).data)
        if self.is_test is not None:
            content.update(np.ascontiguousarray(self.is_test).data)
        return content.hexdigest()


@reading_again
def count_events(store: ObjectStore, meta_uri: str) -> dict[int, int]:
    """Count the events of every batch: exact, mostly from the row group statistics alone.

    Raises: RawDataError if the file is damaged or lacks a column.
    """
    counts: Counter[int] = Counter()
    with open_parquet(store, meta_uri) as file:
        check_columns(file.schema_arrow, META_COLUMNS, meta_uri)
        unclear = []
        for group in read_row_groups(store, meta_uri):
            bounds = group.bounds.get("batch_id")
            if bounds is not None and bounds[0] == bounds[1]:
                counts[bounds[0]] += group.n_rows
            else:
                unclear.append(group.index)
        for rows in file.iter_batches(1 << 20, row_groups=unclear, columns=["batch_id"]):
            column = rows.column("batch_id")
            _refuse_nulls(column, "batch_id", meta_uri)
            for entry in pc.value_counts(column).to_pylist():
                counts[entry["values"]] += entry["counts"]
    _refuse_odd_batches(counts, meta_uri)
    return dict(counts)


def _refuse_odd_batches(counts: Counter[int], uri: str) -> None:
    odd = [batch_id for batch_id in counts if not 0 <= batch_id < 1 << 63]
    if odd or not counts:
        raise RawDataError(
            "meta file has no events" if not counts else "meta column batch_id is out of range",
            where=uri,
            found=f"batch_id {odd[0]}" if odd else "no rows",
            expected="one row per event, batch_id from 0 to 2^63 - 1",
            remedy="Write the meta file anew",
        )


@reading_again
def read_event_tables(
    store: ObjectStore,
    meta_uri: str,
    batch_ids: Iterable[int],
    labelled: bool,
    reading: LabelReading = AS_DOCUMENTED,
) -> dict[int, EventTable]:
    """Read the meta rows of some batch files, and only the row groups that can hold them.

    reading: what the label columns mean; the tables have the labels in the project's own meaning.
    Returns one table per batch_id that has rows.
    Raises: RawDataError if the file is damaged, lacks a column or contradicts itself.
    """
    wanted = np.unique(np.fromiter(batch_ids, np.int64))
    expected = META_COLUMNS | (LABEL_COLUMNS if labelled else {})
    with open_parquet(store, meta_uri) as file:
        check_columns(file.schema_arrow, expected, meta_uri)
        row_groups = [g.index for g in read_row_groups(store, meta_uri) if may_hold(g, wanted)]
        own_split = [SPLIT_COLUMN] if SPLIT_COLUMN in file.schema_arrow.names else []
        columns = {name: [] for name in (*expected, *own_split)}  # type: dict[str, list[Any]]
        for rows in file.iter_batches(ROWS_PER_READ, row_groups=row_groups, columns=list(columns)):
            mask = np.isin(integer_column(rows, "batch_id", meta_uri), wanted)
            for name in META_COLUMNS:
                columns[name].append(integer_column(rows, name, meta_uri)[mask])
            for name in LABEL_COLUMNS if labelled else ():
                angles = rows.column(name).cast(pa.float64()).to_numpy(zero_copy_only=False)
                columns[name].append(angles[mask])
            for name in own_split:
                columns[name].append(is_test_column(rows.column(name), meta_uri)[mask])
    if not columns["batch_id"]:
        return {}
    joined = {name: np.concatenate(parts) for name, parts in columns.items()}
    if labelled:
        joined |= dict(zip(LABEL_COLUMNS, reading.apply(*_labels(joined)), strict=True))
    return dict(_tables(joined, wanted, meta_uri))


def _labels(columns: dict[str, npt.NDArray[Any]]) -> Iterator[npt.NDArray[np.float64]]:
    return (columns[name] for name in LABEL_COLUMNS)


def _tables(
    columns: dict[str, npt.NDArray[Any]], wanted: npt.NDArray[np.int64], uri: str
) -> Iterator[tuple[int, EventTable]]:
    for batch_id in wanted:
        rows = np.flatnonzero(columns["batch_id"] == batch_id)
        if not len(rows):
            continue
        first, last = columns["first_pulse_index"][rows], columns["last_pulse_index"][rows]
        # an event without pulses has last = first - 1, so it sorts before the event that follows
        order = np.lexsort((last, first))
        rows, first, last = rows[order], first[order], last[order]
        event_id = columns["event_id"][rows]
        _check_ranges(event_id, first, last, f"{uri} batch_id {batch_id}")
        unlabelled = np.full(len(rows), np.nan)
        yield (
            int(batch_id),
            EventTable(
                event_id=event_id,
                n_pulses=last - first + 1,
                azimuth=columns["azimuth"][rows] if "azimuth" in columns else unlabelled,
                zenith=columns["zenith"][rows] if "zenith" in columns else unlabelled,
                is_test=columns[SPLIT_COLUMN][rows] if SPLIT_COLUMN in columns else None,
            ),
        )


def _check_ranges(
    event_id: npt.NDArray[np.int64],
    first: npt.NDArray[np.int64],
    last: npt.NDArray[np.int64],
    where: str,
) -> None:
    starts = np.concatenate([[0], last[:-1] + 1])
    # beyond 2^62 the sums below and the lengths would wrap around
    wrong = np.flatnonzero((first != starts) | (last < first - 1) | (last > 1 << 62))
    if len(wrong):
        row = wrong[0]
        raise RawDataError(
            f"pulse ranges of the meta file leave a gap or overlap at event {event_id[row]}",
            where=where,
            found=f"first_pulse_index {first[row]}, last_pulse_index {last[row]}",
            expected=f"first_pulse_index {starts[row]} and a last one (inclusive) not before it",
            remedy="Every pulse belongs to one event: write the meta file and the batch file anew",
        )
    ids, counts = np.unique(event_id, return_counts=True)
    if len(ids) != len(event_id):
        raise RawDataError(
            "event_id occurs twice in one raw file",
            where=where,
            found=f"event_id {ids[counts > 1][0]} {counts.max()} times",
            expected="unique ids",
            remedy="Renumber the events or remove the double ones",
        )


def may_hold(group: RowGroup, batch_ids: npt.NDArray[np.int64]) -> bool:
    """Tell whether a row group can hold rows of some batches, from the footer alone."""
    bounds = group.bounds.get("batch_id")
    if bounds is None:
        return True
    return bool(((batch_ids >= bounds[0]) & (batch_ids <= bounds[1])).any())


def is_test_column(column: Any, uri: str) -> npt.NDArray[np.bool_]:
    """Take the split that raw events bring: (B,) bool. Raises: RawDataError for another word."""
    words = column.cast(pa.string())
    known = pc.is_in(words, pa.array(["train", "test"]))
    if not pc.all(known).as_py() and len(column):
        strange = words.filter(pc.invert(known))[0].as_py()
        raise RawDataError(
            f"meta column {SPLIT_COLUMN} holds another word",
            where=f"{uri} {SPLIT_COLUMN}",
            found=repr(strange),
            expected="train or test in every row; a part of train becomes validation",
            remedy="Write the meta file anew, or without the column: ids then decide",
        )
    return np.asarray(pc.equal(words, "test").to_numpy(zero_copy_only=False), np.bool_)


def integer_column(rows: Any, name: str, uri: str) -> npt.NDArray[np.int64]:
    """Take a column as (B,) int64. Raises: RawDataError if a value is missing or does not fit."""
    column = exact_integers(rows.column(name), name, uri)
    _refuse_nulls(column, name, uri)
    try:
        return column.cast(pa.int64()).to_numpy(zero_copy_only=False)
    except pa.ArrowInvalid as error:
        raise RawDataError(
            f"meta column {name} exceeds 64-bit signed integers",
            where=uri,
            found=str(error),
            expected="at most 2^63 - 1",
            remedy=f"Write {name} as int64",
        ) from None


def _refuse_nulls(column: Any, name: str, uri: str) -> None:
    if column.null_count:
        raise RawDataError(
            f"meta column {name} has missing values",
            where=uri,
            found=f"{column.null_count} nulls",
            expected="none",
            remedy="Write the meta file anew",
        )


# Event ids across batch files: each at most once, checked exactly and in bounded memory.
#
# The split of an event is a function of its id, so an id that two files share puts two events, or
# one event twice, where only one is expected: into both test tables, or twice into training. Ids of
# one file are checked when it is read (`meta`); here only those of different files can meet.

IDS_PER_READ = 1 << 20
MAX_IDS_TOGETHER = 1 << 24
"""Ids held at a time, 128 MiB; more ids that could meet are read once per part of them."""
_COLUMNS = ["batch_id", "event_id"]
_LOWEST = -(2**64)

Ids = npt.NDArray[np.int64]


@reading_again
def refuse_repeated_ids(store: ObjectStore, meta_uri: str, batch_ids: Collection[int]) -> None:
    """Compare the event ids of all these batch files.

    Row groups whose ranges of ids do not overlap cannot share one, so of a meta file in the order
    of its ids each row group is compared with itself only.
    Raises: RawDataError naming an id that occurs twice, and the files that hold it.
    """
    wanted = np.unique(np.fromiter(batch_ids, np.int64))
    with open_parquet(store, meta_uri) as file:
        check_columns(file.schema_arrow, META_COLUMNS, meta_uri)
        groups = [group for group in read_row_groups(store, meta_uri) if may_hold(group, wanted)]
        for together in _overlapping(groups):
            row_groups = sorted(group.index for group in together)
            n_parts = -(-sum(group.n_rows for group in together) // MAX_IDS_TOGETHER)
            for part in range(n_parts):
                repeated = _repeated_id(_read(file, row_groups, wanted, meta_uri), part, n_parts)
                if repeated is not None:
                    raise _twice(file, row_groups, wanted, repeated, meta_uri)


def stream_event_ids(
    store: ObjectStore, meta_uri: str, batch_ids: Collection[int]
) -> Iterator[tuple[Ids, npt.NDArray[np.bool_] | None]]:
    """Read the event ids of these batch files, and the split that the raw events bring.

    Gives (n,) int64 and (n,) bool, see `EventTable.is_test`, for at most IDS_PER_READ rows.
    """
    wanted = np.unique(np.fromiter(batch_ids, np.int64))
    with open_parquet(store, meta_uri) as file:
        check_columns(file.schema_arrow, META_COLUMNS, meta_uri)
        groups = [g.index for g in read_row_groups(store, meta_uri) if may_hold(g, wanted)]
        names = [*_COLUMNS, *({SPLIT_COLUMN} & {*file.schema_arrow.names})]
        for rows in file.iter_batches(IDS_PER_READ, row_groups=groups, columns=names):
            batch_id, event_id = (integer_column(rows, name, meta_uri) for name in _COLUMNS)
            used = np.isin(batch_id, wanted)
            is_test = None
            if SPLIT_COLUMN in names:
                is_test = is_test_column(rows.column(SPLIT_COLUMN), meta_uri)[used]
            yield event_id[used], is_test


def _overlapping(groups: list[RowGroup]) -> Iterator[list[RowGroup]]:
    """Put together what could share an id; a row group of one batch alone is left out."""
    together: list[RowGroup] = []
    reach = _LOWEST
    for group in sorted(groups, key=_id_range):
        low, high = _id_range(group)
        if together and low > reach:
            yield from _unless_one_batch(together)
            together, reach = [], _LOWEST
        together.append(group)
        reach = max(reach, high)
    yield from _unless_one_batch(together)


def _unless_one_batch(together: list[RowGroup]) -> Iterator[list[RowGroup]]:
    batches = together[0].bounds.get("batch_id") if together else None
    if len(together) > 1 or (together and not (batches and batches[0] == batches[1])):
        yield together


def _id_range(group: RowGroup) -> tuple[int, int]:
    return group.bounds.get("event_id") or (_LOWEST, -_LOWEST)


def _read(file: Any, row_groups: list[int], wanted: Ids, uri: str) -> Iterator[tuple[Ids, Ids]]:
    """Read (batch_id, event_id) of the wanted batches, some rows at a time."""
    for rows in file.iter_batches(IDS_PER_READ, row_groups=row_groups, columns=_COLUMNS):
        batch_id, event_id = (integer_column(rows, name, uri) for name in _COLUMNS)
        used = np.isin(batch_id, wanted)
        yield (batch_id, event_id) if used.all() else (batch_id[used], event_id[used])


def _repeated_id(reads: Iterator[tuple[Ids, Ids]], part: int, n_parts: int) -> int | None:
    """Find an id that occurs twice in one part of all ids: those that leave `part` as remainder."""
    seen = np.empty(0, np.int64)
    for _, ids in reads:
        chosen = ids[ids % n_parts == part] if n_parts > 1 else ids
        seen = np.concatenate([seen, chosen])
        if len(seen) > 1 and not (np.diff(seen) > 0).all():
            seen.sort(kind="stable")  # nearly sorted already: a merge
            twice = np.flatnonzero(seen[1:] == seen[:-1])
            if len(twice):
                return int(seen[twice[0]])
    return None


def _twice(file: Any, row_groups: list[int], wanted: Ids, event_id: int, uri: str) -> RawDataError:
    reads = _read(file, row_groups, wanted, uri)
    holders = np.sort(np.concatenate([batch[ids == event_id] for batch, ids in reads])).tolist()
    return RawDataError(
        "event_id occurs twice in the raw files",
        where=uri,
        found=f"event_id {event_id} in batch_id {', '.join(map(str, holders))}",
        expected="each event_id once over all batch files",
        remedy="Remove the file that was added twice, or renumber its events",
    )
