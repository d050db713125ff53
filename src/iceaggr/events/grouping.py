"""Grouping pulses by DOM: one radix-like sort of packed 64-bit keys per chunk."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from iceaggr.detector import Detector
from iceaggr.events.cleaning import CleanChunk
from iceaggr.events.dom_events import DomEvents, SortedEvents
from iceaggr.events.meta import EventTable
from iceaggr.events.schema import PULSE_NAMES


def group_by_dom(
    cleaned: CleanChunk,
    table: EventTable,
    detector: Detector,
    order: npt.NDArray[np.int64] | None = None,
) -> DomEvents:
    """Bring the events of a chunk into the form of a shard; see `sort_by_dom`."""
    return sort_by_dom(cleaned, table, detector, order).gathered()


def sort_by_dom(
    cleaned: CleanChunk,
    table: EventTable,
    detector: Detector,
    order: npt.NDArray[np.int64] | None = None,
) -> SortedEvents:
    """Find the order that the pulses of a chunk have in a shard.

    order: (B,) int64 permutation, row b of the result is event order[b] of the chunk; None keeps
    the order. Pulses of equal time in one DOM keep the order of the raw file.
    """
    n_events = len(cleaned.events)
    order = np.arange(n_events) if order is None else order
    rank = np.empty(n_events, np.uint64)
    rank[order] = np.arange(n_events, dtype=np.uint64)
    pulse_order, group, n_sensor_bits = _sorted_groups(rank, cleaned, detector.n_sensors)
    first = _run_starts(group)
    raw_time = cleaned.pulses.time_ns
    if falls_within(raw_time[1:] < raw_time[:-1], np.cumsum(cleaned.n_pulses)[:-1]):
        # times within an event need not be sorted in the raw file: sort them, stably, here
        dom = np.repeat(np.arange(len(first)), np.diff(np.append(first, len(group))))
        pulse_order = pulse_order[np.lexsort((raw_time[pulse_order], dom))]
    dom_group = group.take(first)
    dom_event = dom_group >> np.uint64(n_sensor_bits)
    dom_sensor_idx = (dom_group & np.uint64((1 << n_sensor_bits) - 1)).view(np.int64)
    rows = cleaned.events[order]
    return SortedEvents(
        event_id=table.event_id[rows],
        azimuth=table.azimuth[rows],
        zenith=table.zenith[rows],
        event_dom_offsets=np.searchsorted(dom_event, np.arange(n_events + 1, dtype=np.uint64)),
        sensor_id=detector.sensor_id.take(dom_sensor_idx).astype(np.int32),
        dom_pulse_offsets=np.append(first, len(group)),
        pulse_rows=pulse_order,
        raw_pulses={name: getattr(cleaned.pulses, name) for name in PULSE_NAMES},
    )


def _sorted_groups(
    rank: npt.NDArray[np.uint64], cleaned: CleanChunk, n_sensors: int
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.uint64], int]:
    """Sort by (event, sensor, position); give the positions, the (event, sensor) keys, a shift."""
    n_pulses = len(cleaned.pulses)
    n_position_bits = max(n_pulses - 1, 1).bit_length()
    n_sensor_bits = max(n_sensors - 1, 1).bit_length()
    n_event_bits = max(len(rank) - 1, 1).bit_length()
    assert n_event_bits + n_sensor_bits + n_position_bits <= 64, "chunk too large for packed keys"
    # the position in the lowest bits makes all keys different, so an unstable sort is stable
    key = np.repeat(rank << np.uint64(n_sensor_bits), cleaned.n_pulses)
    key |= cleaned.sensor_idx.view(f"u{cleaned.sensor_idx.itemsize}")  # rows are not negative
    key <<= np.uint64(n_position_bits)
    key |= np.arange(n_pulses, dtype=np.uint64)
    key.sort()
    position = (key & np.uint64((1 << n_position_bits) - 1)).view(np.int64)
    key >>= np.uint64(n_position_bits)
    return position, key, n_sensor_bits


def _run_starts(group: npt.NDArray[np.uint64]) -> npt.NDArray[np.int64]:
    is_first = np.ones(len(group), np.bool_)
    np.not_equal(group[1:], group[:-1], out=is_first[1:])
    return np.flatnonzero(is_first)


def falls_within(falls: npt.NDArray[np.bool_], starts: npt.NDArray[np.int64]) -> bool:
    """Tell whether values fall anywhere but from one group to the next, where anything may happen.

    falls: (N - 1,), value i + 1 is out of order after value i; it is changed.
    starts: rows where the groups begin, but for the first one.
    """
    falls[starts - 1] = False
    return bool(falls.any())
