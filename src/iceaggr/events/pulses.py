"""Streaming a batch file: bounded chunks of whole events, in file order."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import numpy.typing as npt

from iceaggr.errors import RawDataError
from iceaggr.events.decoding import Pulses, decode_checked
from iceaggr.events.meta import EventTable
from iceaggr.events.schema import PULSE_COLUMNS, check_columns, open_parquet
from iceaggr.interfaces import ObjectStore

PULSES_PER_READ = 1 << 18
"""Rows decoded at a time: the working set stays near the caches, and memory bounded."""


@dataclass(frozen=True)
class PulseChunk:
    """Consecutive whole events: rows [first_event, stop_event) of the event table."""

    first_event: int
    stop_event: int
    first_pulse: int
    pulses: Pulses


def stream_pulses(
    store: ObjectStore, uri: str, n_rows: int, table: EventTable
) -> Iterator[PulseChunk]:
    """Read a batch file in chunks of about PULSES_PER_READ pulses, cut between events.

    n_rows: pulses that the meta file gives this batch file; table: its events, or the first ones.
    Raises: RawDataError if the file is damaged or does not fit its meta rows.
    """
    ends = np.cumsum(table.n_pulses)
    with open_parquet(store, uri) as file, closing(_read_ahead(file, uri)) as portions:
        check_columns(file.schema_arrow, PULSE_COLUMNS, uri)
        _check_length(file.metadata.num_rows, n_rows, uri)
        done = 0
        for chunk in _whole_events(portions, ends):
            _check_event_ids(chunk, table, uri)
            yield chunk
            done = chunk.stop_event
        if done < table.n_events:  # only events without any pulse, in a file without rows
            first_pulse = int(ends[done - 1]) if done else 0
            nothing = decode_checked(file.schema_arrow.empty_table(), uri)
            _check_length(first_pulse, int(ends[-1]), uri)
            yield PulseChunk(done, table.n_events, first_pulse, nothing)


def _whole_events(portions: Iterator[Pulses], ends: npt.NDArray[np.int64]) -> Iterator[PulseChunk]:
    """Cut portions between events; only the event that spans portions is copied, to join it.

    ends: (B,) int64, pulses up to the end of each event.
    """
    done, n_before = 0, 0
    begun: list[Pulses] = []  # the start of an event that no portion has ended yet
    for portion in portions:
        n_read = n_before + len(portion)
        stop = int(np.searchsorted(ends, n_read, side="right"))
        if stop == done:
            begun.append(portion)
            n_before = n_read
            continue
        if begun:
            end = int(ends[done])
            after = int(np.searchsorted(ends, end, side="right"))
            spanning = _join([*begun, portion.take(slice(0, end - n_before))])
            yield PulseChunk(done, after, end - len(spanning), spanning)
            done, portion, n_before = after, portion.take(slice(end - n_before, None)), end
        n_complete = int(ends[stop - 1]) - n_before
        if stop > done:
            yield PulseChunk(done, stop, n_before, portion.take(slice(0, n_complete)))
        if stop == len(ends):
            return
        rest = portion.take(slice(n_complete, None))
        begun = [rest] if len(rest) else []
        done, n_before = stop, n_read


def _read_ahead(file: Any, uri: str) -> Generator[Pulses]:
    """Decode the next portion in a thread while the caller works on this one."""
    batches = file.iter_batches(PULSES_PER_READ, columns=list(PULSE_COLUMNS))
    decoded = (decode_checked(rows, uri) for rows in batches)
    with ThreadPoolExecutor(1, thread_name_prefix="pulse-reader") as thread:
        upcoming = thread.submit(next, decoded, None)
        while (portion := upcoming.result()) is not None:
            upcoming = thread.submit(next, decoded, None)
            yield portion


def _check_length(found: int, expected: int, uri: str) -> None:
    if found == expected:
        return
    beyond = "the meta file points outside it" if found < expected else "pulses belong to no event"
    raise RawDataError(
        f"raw file and meta file disagree: {beyond}",
        where=uri,
        found=f"{found} pulses",
        expected=f"{expected} pulses (greatest last_pulse_index + 1)",
        remedy="Copy the file again, or use the meta file that was written with it",
    )


def _check_event_ids(chunk: PulseChunk, table: EventTable, uri: str) -> None:
    events = slice(chunk.first_event, chunk.stop_event)
    expected = np.repeat(table.event_id[events], table.n_pulses[events])
    if np.array_equal(chunk.pulses.event_id, expected):
        return
    row = int(np.flatnonzero(chunk.pulses.event_id != expected)[0])
    raise RawDataError(
        "event_id of the raw file and of the meta file disagree",
        where=f"{uri} pulse {chunk.first_pulse + row}",
        found=f"event_id {chunk.pulses.event_id[row]}",
        expected=f"event_id {expected[row]} as in the meta file",
        remedy="Use the meta file that was written with this batch file",
    )


def _join(parts: list[Pulses]) -> Pulses:
    names = [field.name for field in fields(Pulses)]
    return Pulses(*(np.concatenate([getattr(part, name) for part in parts]) for name in names))
