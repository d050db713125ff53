"""From events to EventBatch: vectorised, without padding, without a loop over events or DOMs."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields, replace
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from iceaggr.batches.event_batch import EventBatch, IntArray, offsets_of, ragged_rows
from iceaggr.batches.event_pool import EventPool
from iceaggr.config import BatchConfig
from iceaggr.detector import Detector, Medium
from iceaggr.events.dom_events import DOM_NAMES, EVENT_NAMES, DomEvents
from iceaggr.events.schema import PULSE_NAMES


@dataclass(frozen=True)
class SensorTable:
    """What batches take of a detector: xyz_m (S, 3), efficiency (S,), float32; its medium."""

    xyz_m: npt.NDArray[np.float32]
    efficiency: npt.NDArray[np.float32]
    medium: Medium

    @classmethod
    def of(cls, detector: Detector) -> SensorTable:
        """Convert a detector once, for many batches."""
        xyz_m, efficiency = detector.xyz_m, detector.efficiency
        return cls(xyz_m.astype(np.float32), efficiency.astype(np.float32), detector.medium)


class Gatherer:
    """Assembles any selection of a pool's events into a batch."""

    def __init__(self, pool: EventPool, table: SensorTable) -> None:
        self.pool = pool
        self.table = table
        self._is_labelled = pool.is_labelled()

    def gather(self, event_rows: IntArray) -> EventBatch:
        """Copy the selected events into one batch.

        event_rows: (B,) int64 rows of the pool, any order.
        """
        return self.gather_several([event_rows])[0]

    def gather_several(self, rows_of_batches: Sequence[IntArray]) -> list[EventBatch]:
        """Copy the selected events of several batches at once; each batch is a view.

        Threads hand the interpreter over at every array operation, so a few long ones cost less
        than many short ones.
        """
        pool = self.pool
        rows = np.concatenate(rows_of_batches)
        n_doms, n_pulses = pool.n_doms[rows], pool.n_pulses[rows]
        doms = torch.from_numpy(ragged_rows(pool.dom_start[rows], n_doms))
        pulses = torch.from_numpy(ragged_rows(pool.pulse_start[rows], n_pulses))
        sensor_idx = _take(pool.sensor_idx, doms).astype(np.int64)
        # mode="clip" skips a second look for rows out of range; filling the pool refused them.
        # torch would take ten times as long to copy rows of three
        whole = _Columns(
            rows=rows,
            dom_offsets=offsets_of(n_doms),
            pulse_offsets=offsets_of(n_pulses),
            sensor_idx=sensor_idx,
            xyz_m=self.table.xyz_m.take(sensor_idx, axis=0, mode="clip"),
            efficiency=self.table.efficiency.take(sensor_idx, mode="clip"),
            dom_pulse_offsets=offsets_of(_take(pool.dom_n_pulses, doms)),
            pulses={name: _take(column, pulses) for name, column in pool.pulses.items()},
        )
        edges = offsets_of(np.array([len(part) for part in rows_of_batches])).tolist()
        return [self._batch(whole, first, end) for first, end in pairwise(edges)]

    def _batch(self, whole: _Columns, first: int, end: int) -> EventBatch:
        """Give events [first, end) as views."""
        pool, rows = self.pool, whole.rows[first:end]
        d = slice(whole.dom_offsets[first], whole.dom_offsets[end])
        n = slice(whole.pulse_offsets[first], whole.pulse_offsets[end])
        dom_offsets = whole.dom_offsets[first : end + 1] - d.start
        dom_pulse_offsets = whole.dom_pulse_offsets[d.start : d.stop + 1] - n.start
        direction = torch.from_numpy(pool.direction[rows]) if self._is_labelled else None
        doms_dropped, pulses_dropped = pool.n_doms_dropped[rows], pool.n_pulses_dropped[rows]
        return EventBatch(
            event_id=torch.from_numpy(pool.event_id[rows]),
            event_dom_offsets=torch.from_numpy(dom_offsets),
            sensor_idx=torch.from_numpy(whole.sensor_idx[d]),
            xyz_m=torch.from_numpy(whole.xyz_m[d]),
            efficiency=torch.from_numpy(whole.efficiency[d]),
            dom_pulse_offsets=torch.from_numpy(dom_pulse_offsets),
            **{name: torch.from_numpy(column[n]) for name, column in whole.pulses.items()},
            direction=direction,
            n_doms_dropped=int(doms_dropped.sum()),
            n_pulses_dropped=int(pulses_dropped.sum()),
            event_doms_dropped=torch.from_numpy(doms_dropped),
            event_pulses_dropped=torch.from_numpy(pulses_dropped),
            medium=self.table.medium,
        )


@dataclass(frozen=True)
class _Columns:
    """Events of several batches, one after the other; offsets count from the first event."""

    rows: IntArray
    dom_offsets: IntArray
    pulse_offsets: IntArray
    sensor_idx: IntArray
    xyz_m: npt.NDArray[np.float32]
    efficiency: npt.NDArray[np.float32]
    dom_pulse_offsets: IntArray
    pulses: dict[str, npt.NDArray[Any]]


def _take(column: npt.NDArray[Any], rows: Tensor) -> npt.NDArray[Any]:
    # torch selects bytes several times as fast as booleans
    raw = column.view(np.uint8) if column.dtype == np.bool_ else column
    return torch.from_numpy(raw).index_select(0, rows).numpy().view(column.dtype)


def collate(
    events: DomEvents,
    event_rows: npt.NDArray[np.integer],
    detector: Detector,
    config: BatchConfig,
) -> EventBatch:
    """Assemble selected events into one batch, applying the caps.

    event_rows: (B,) integer rows of `events`, any order.
    Raises: DetectorError for a sensor the detector does not have; ShardError if only some events
    have a direction.
    """
    selected = select_events(events, np.asarray(event_rows, np.int64))
    pool = EventPool.of(selected, detector, config)
    return Gatherer(pool, SensorTable.of(detector)).gather(np.arange(pool.n_events))


def select_events(events: DomEvents, event_rows: IntArray) -> DomEvents:
    """Copy some events, in the order asked for.

    event_rows: (B,) int64 rows of `events`.
    """
    n_doms = np.diff(events.event_dom_offsets)[event_rows]
    doms = ragged_rows(events.event_dom_offsets[event_rows], n_doms)
    pulse_offsets = events.event_pulse_offsets()
    pulses = ragged_rows(pulse_offsets[event_rows], np.diff(pulse_offsets)[event_rows])
    rows = {EVENT_NAMES: event_rows, DOM_NAMES: doms, PULSE_NAMES: pulses}
    return replace(
        events,
        event_dom_offsets=offsets_of(n_doms),
        dom_pulse_offsets=offsets_of(np.diff(events.dom_pulse_offsets)[doms]),
        **{name: getattr(events, name)[of] for names, of in rows.items() for name in names},
    )


def join_batches(batches: Sequence[EventBatch]) -> EventBatch:
    """Concatenate batches of one detector, in order; all or none have directions."""
    if len(batches) == 1:
        return batches[0]
    joined: dict[str, Tensor | int | Medium | None] = {}
    for field in fields(EventBatch):
        parts = [getattr(batch, field.name) for batch in batches]
        if field.name.endswith("_offsets"):
            counts = torch.cat([part.diff() for part in parts])
            joined[field.name] = torch.from_numpy(offsets_of(counts.numpy()))
        elif isinstance(parts[0], Tensor):
            joined[field.name] = torch.cat(parts)
        elif isinstance(parts[0], Medium):
            joined[field.name] = parts[0]
        else:
            joined[field.name] = None if parts[0] is None else sum(parts)
    return EventBatch(**joined)  # type: ignore[arg-type]


def iter_batches(
    chunks: Iterator[DomEvents],
    detector: Detector,
    config: BatchConfig,
    keep: Callable[[IntArray], npt.NDArray[np.bool_]] | None = None,
) -> Iterator[EventBatch]:
    """Batch a stream of events in its order, for prediction; a batch never spans two chunks.

    keep: tells of event ids, (B,) int64, which are batched; None takes all.
    Raises: DetectorError, ShardError as `collate`.
    """
    table = SensorTable.of(detector)
    for chunk in chunks:
        gatherer = Gatherer(EventPool.of(chunk, detector, config), table)
        pool = gatherer.pool
        rows = (
            np.arange(len(pool.event_id)) if keep is None else np.flatnonzero(keep(pool.event_id))
        )
        ends = batch_ends(pool.n_doms[rows], config) if len(rows) else rows
        for first, end in zip(np.append(0, ends[:-1]), ends, strict=len(rows) > 0):
            yield gatherer.gather(rows[first:end])


def batch_ends(n_doms: IntArray, config: BatchConfig) -> IntArray:
    """Cut events, in order, into batches of n_events at most and within the token budget.

    n_doms: (B,) int64, at most max_doms_per_event each. Returns the end of each batch, int64.
    """
    n_events = len(n_doms)
    if not config.max_doms_per_batch:
        return np.append(np.arange(config.n_events, n_events, config.n_events), n_events)[
            : -(-n_events // config.n_events)
        ]
    offsets = offsets_of(n_doms)
    ends = [0]
    while ends[-1] < n_events:
        budget = offsets[ends[-1]] + config.max_doms_per_batch
        within_budget = int(np.searchsorted(offsets, budget, side="right")) - 1
        ends.append(min(within_budget, ends[-1] + config.n_events))
    return np.array(ends[1:], np.int64)
