"""Filling and writing the shards of one raw file, in bounded memory."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field

from iceaggr.detector import Detector
from iceaggr.events.dom_events import (
    DomEvents,
    EventDoms,
    Events,
    PulseColumns,
    SortedEvents,
    take_range,
    with_pulses,
)
from iceaggr.interfaces import ObjectStore
from iceaggr.paths import ShardPaths
from iceaggr.shards.encoding import MAX_PULSES_PER_SHARD, shard_hash, shard_pieces
from iceaggr.shards.manifest import ShardEntry, Split
from iceaggr.shards.sketches import Sketch
from iceaggr.shards.sketching import sketch_events

N_TRANSFERS = 2
"""Shards that are being stored at a time: a thread that awaits storage computes nothing."""
MAX_SHARDS_IN_FLIGHT = 4
"""Full shards that may wait, so that memory stays bounded when storage is slow."""


@dataclass
class _Buffer:
    """The events of one split that do not fill a shard yet."""

    columns: PulseColumns
    parts: list[EventDoms] = field(default_factory=list)
    n_events: int = 0
    n_shards: int = 0


@dataclass(frozen=True)
class _Shard:
    """A shard that has been summarised, and may still be on its way to storage."""

    entry: ShardEntry
    sketch: Sketch
    columns: PulseColumns
    transfer: Future[None]


class ShardWriter:
    """Takes events split by split and writes a shard whenever one is full.

    While the caller groups the next events, one thread encodes, hashes and sketches shards, and
    others store them; more threads that compute would only wait for each other. Where shards are
    cut depends on the events alone, so the same raw file always gives the same shards.
    """

    def __init__(
        self, store: ObjectStore, folder_uri: str, detector: Detector, n_events_per_shard: int
    ) -> None:
        self._store = store
        self._paths = ShardPaths(folder_uri)
        self._detector = detector
        self._n_events_per_shard = n_events_per_shard
        self._buffers: dict[Split, _Buffer] = {}
        self._summaries = ThreadPoolExecutor(1, thread_name_prefix="shard-summary")
        self._transfers = ThreadPoolExecutor(N_TRANSFERS, thread_name_prefix="shard-transfer")
        self._spare_columns: list[PulseColumns] = []
        self._in_flight: list[Future[_Shard]] = []
        self._entries: list[ShardEntry] = []
        self._sketches: dict[str, Sketch] = {}

    def add(self, split: Split, events: DomEvents | SortedEvents) -> None:
        """Add events of one split, in file order; they are copied. Raises: StorageError."""
        if split not in self._buffers:
            self._buffers[split] = _Buffer(PulseColumns())
        buffer = self._buffers[split]
        for part in self._portions(split, buffer, events):
            buffer.columns.add(part)
            buffer.parts.append(part.without_pulses())
            buffer.n_events += part.n_events

    def finish(self) -> tuple[list[ShardEntry], dict[str, Sketch]]:
        """Write what is left and wait; give the shards sorted by name and a sketch per split."""
        for split, buffer in self._buffers.items():
            self._flush(split, buffer)
        while self._in_flight:
            self._collect()
        self._summaries.shutdown()
        self._transfers.shutdown()
        return sorted(self._entries, key=lambda entry: entry.uri), self._sketches

    def abort(self) -> None:
        """Stop after an error: wait for the running write, drop the rest."""
        self._summaries.shutdown(cancel_futures=True)
        self._transfers.shutdown(cancel_futures=True)

    def _portions(self, split: Split, buffer: _Buffer, events: Events) -> Iterator[Events]:
        ends = events.event_pulse_offsets()
        start = 0
        while start < events.n_events:
            stop = min(events.n_events, start + self._n_events_per_shard - buffer.n_events)
            room = MAX_PULSES_PER_SHARD - buffer.columns.n_pulses
            if ends[stop] - ends[start] > room:
                stop = int(ends.searchsorted(ends[start] + room, side="right")) - 1
                # an event that exceeds a shard by itself gets one of its own
                stop = max(stop, start) if buffer.n_events else max(stop, start + 1)
            if stop > start:
                yield take_range(events, start, stop)
                start = stop
            if buffer.n_events == self._n_events_per_shard or start < events.n_events:
                self._flush(split, buffer)

    def _flush(self, split: Split, buffer: _Buffer) -> None:
        if not buffer.n_events:
            return
        uri = self._paths.shard(split, buffer.n_shards)
        shard = self._summaries.submit(self._summarise, uri, split, buffer.parts, buffer.columns)
        self._in_flight.append(shard)
        buffer.columns = self._spare_columns.pop() if self._spare_columns else PulseColumns()
        buffer.parts, buffer.n_events = [], 0
        buffer.n_shards += 1
        if len(self._in_flight) > MAX_SHARDS_IN_FLIGHT:
            self._collect()

    def _collect(self) -> None:
        shard = self._in_flight.pop(0).result()
        shard.transfer.result()
        shard.columns.clear()
        self._spare_columns.append(shard.columns)
        self._entries.append(shard.entry)
        split = shard.entry.split
        known = self._sketches.get(split)
        self._sketches[split] = known.merge(shard.sketch) if known else shard.sketch

    def _summarise(
        self, uri: str, split: Split, parts: list[EventDoms], columns: PulseColumns
    ) -> _Shard:
        events = with_pulses(parts, columns.filled())
        pieces = shard_pieces(events)
        transfer = self._transfers.submit(self._store.write_bytes, uri, pieces)
        entry = ShardEntry(
            uri=uri,
            split=split,
            n_bytes=sum(map(len, pieces)),
            blake3=shard_hash(*pieces),
            n_events=events.n_events,
            n_pulses=events.n_pulses,
            n_doms=events.n_doms,
        )
        return _Shard(entry, sketch_events(events, self._detector), columns, transfer)
