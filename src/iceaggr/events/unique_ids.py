"""Event ids across batch files: each at most once, checked exactly and in bounded memory.

The split of an event is a function of its id, so an id that two files share puts two events, or one
event twice, where only one is expected: into both test tables, or twice into training. Ids of one
file are checked when it is read (`meta`); here only those of different files can meet.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from iceaggr.errors import RawDataError
from iceaggr.events.meta import integer_column, may_hold
from iceaggr.events.parquet_footer import RowGroup, read_row_groups
from iceaggr.events.schema import META_COLUMNS, check_columns, open_parquet, reading_again
from iceaggr.interfaces import ObjectStore

ROWS_PER_READ = 1 << 20
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
) -> Iterator[Ids]:
    """Read the event ids of these batch files: (n,) int64, at most ROWS_PER_READ at a time."""
    wanted = np.unique(np.fromiter(batch_ids, np.int64))
    with open_parquet(store, meta_uri) as file:
        check_columns(file.schema_arrow, META_COLUMNS, meta_uri)
        groups = [g.index for g in read_row_groups(store, meta_uri) if may_hold(g, wanted)]
        for _, ids in _read(file, groups, wanted, meta_uri):
            yield ids


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
    for rows in file.iter_batches(ROWS_PER_READ, row_groups=row_groups, columns=_COLUMNS):
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
