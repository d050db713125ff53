"""Events grouped by DOM, as flat numpy arrays with offsets.

What a shard holds, in memory; what sharding writes, sketches summarise and loading batches.
"""

from __future__ import annotations

import ctypes
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, ClassVar, TypeVar

import numpy as np
import numpy.typing as npt

from iceaggr.events.schema import PULSE_NAMES

N_ROWS_PER_COPY = 1 << 15
"""Their times or charges fit into the cache of one core."""
EVENT_NAMES = ("event_id", "azimuth", "zenith")
DOM_NAMES = ("sensor_id",)


@dataclass(frozen=True)
class EventDoms:
    """Events with their DOMs sorted by sensor, and how many pulses each DOM has.

    event_id:          (B,)   int64
    azimuth, zenith:   (B,)   float64, radians, direction to the origin; NaN without a label
    event_dom_offsets: (B+1,) int64, DOMs of event b are rows [offsets[b], offsets[b+1])
    sensor_id:         (D,)   int32
    dom_pulse_offsets: (D+1,) int64, pulses of DOM d are rows [offsets[d], offsets[d+1])
    """

    event_id: npt.NDArray[np.int64]
    azimuth: npt.NDArray[np.float64]
    zenith: npt.NDArray[np.float64]
    event_dom_offsets: npt.NDArray[np.int64]
    sensor_id: npt.NDArray[np.int32]
    dom_pulse_offsets: npt.NDArray[np.int64]

    PULSE_FIELDS: ClassVar[tuple[str, ...]] = ()

    @property
    def n_events(self) -> int:
        """Count the events (B)."""
        return len(self.event_id)

    @property
    def n_doms(self) -> int:
        """Count the DOMs of all events (D)."""
        return len(self.sensor_id)

    @property
    def n_pulses(self) -> int:
        """Count the pulses of all events (N)."""
        return int(self.dom_pulse_offsets[-1])

    def event_pulse_offsets(self) -> npt.NDArray[np.int64]:
        """Give the pulse range of each event: (B+1,) int64."""
        return self.dom_pulse_offsets[self.event_dom_offsets]

    def without_pulses(self) -> EventDoms:
        """Copy all but the pulses, so that what these are part of can be forgotten."""
        return EventDoms(*(getattr(self, field.name).copy() for field in fields(EventDoms)))


@dataclass(frozen=True)
class PulseArrays:
    """What each pulse carries: one field for each of `schema.PULSE_VALUES`.

    time_ns:   (N,) int64
    charge_pe: (N,) float32 or float64, as in the raw file
    auxiliary: (N,) bool, True = not part of the trigger decision
    """

    time_ns: npt.NDArray[np.int64]
    charge_pe: npt.NDArray[np.floating]
    auxiliary: npt.NDArray[np.bool_]


@dataclass(frozen=True)
class DomEvents(PulseArrays, EventDoms):
    """Events with the pulses of each DOM sorted by time."""

    PULSE_FIELDS = PULSE_NAMES

    @property
    def n_pulses(self) -> int:
        """Count the pulses of all events (N)."""
        return len(self.time_ns)

    def copy_pulses(self, name: str, out: npt.NDArray[Any]) -> None:
        """Copy one of PULSE_NAMES into (N,) of its type."""
        out[:] = getattr(self, name)

    def pulse_dtype(self, name: str) -> np.dtype[Any]:
        """Give the type of one of PULSE_NAMES."""
        return getattr(self, name).dtype


@dataclass(frozen=True)
class SortedEvents(EventDoms):
    """DomEvents whose pulses still lie in the order of the raw file, to be copied only once.

    pulse_rows: (N,) int64, the row of each pulse in raw_pulses
    raw_pulses: the columns PULSE_NAMES, with other pulses besides
    """

    pulse_rows: npt.NDArray[np.int64]
    raw_pulses: Mapping[str, npt.NDArray[Any]]

    PULSE_FIELDS = ("pulse_rows",)

    def copy_pulses(self, name: str, out: npt.NDArray[Any]) -> None:
        """Copy one of PULSE_NAMES into (N,) of its type."""
        column = self.raw_pulses[name]
        for start in range(0, len(out), N_ROWS_PER_COPY):
            rows = self.pulse_rows[start : start + N_ROWS_PER_COPY]
            stretch = column[rows[0] : rows[-1] + 1]
            if column.itemsize > 1 and len(stretch) < 2 * len(rows):
                # read in order, it comes into the cache at once; in random order, bit by bit
                stretch.max(initial=0)
            # any other mode writes to a buffer first; the rows are ours, so none is out of range
            column.take(rows, out=out[start : start + len(rows)], mode="clip")

    def pulse_dtype(self, name: str) -> np.dtype[Any]:
        """Give the type of one of PULSE_NAMES."""
        return self.raw_pulses[name].dtype

    def gathered(self) -> DomEvents:
        """Copy the pulses into their order."""
        doms = {field.name: getattr(self, field.name) for field in fields(EventDoms)}
        # quicker than [pulse_rows]
        pulses = {name: self.raw_pulses[name].take(self.pulse_rows) for name in PULSE_NAMES}
        return DomEvents(**doms, **pulses)


# Cutting and joining DomEvents.

Events = TypeVar("Events", bound=DomEvents | SortedEvents)


def take_range(events: Events, start: int, stop: int) -> Events:
    """Take events [start, stop) without copying pulses."""
    doms = slice(*events.event_dom_offsets[[start, stop]])
    pulses = slice(*events.dom_pulse_offsets[[doms.start, doms.stop]])
    rows = {EVENT_NAMES: slice(start, stop), DOM_NAMES: doms, events.PULSE_FIELDS: pulses}
    return replace(
        events,
        event_dom_offsets=events.event_dom_offsets[start : stop + 1] - doms.start,
        dom_pulse_offsets=events.dom_pulse_offsets[doms.start : doms.stop + 1] - pulses.start,
        **{name: getattr(events, name)[of] for names, of in rows.items() for name in names},
    )


def concatenate(parts: Sequence[DomEvents]) -> DomEvents:
    """Join events end to end; at least one part."""
    if len(parts) == 1:
        return parts[0]
    return with_pulses(parts, _joined(parts, PULSE_NAMES))


def with_pulses(parts: Sequence[EventDoms], pulses: Mapping[str, npt.NDArray[Any]]) -> DomEvents:
    """Join events end to end, at least one part, and give them their pulses.

    pulses: the columns PULSE_NAMES of all parts, (N,) each; they are taken as they are.
    """
    return DomEvents(
        event_dom_offsets=_offsets(
            [part.event_dom_offsets for part in parts], [part.n_doms for part in parts]
        ),
        dom_pulse_offsets=_offsets(
            [part.dom_pulse_offsets for part in parts], [part.n_pulses for part in parts]
        ),
        **_joined(parts, (*EVENT_NAMES, *DOM_NAMES)),
        **pulses,
    )


def _joined(parts: Sequence[EventDoms], names: Sequence[str]) -> dict[str, npt.NDArray[Any]]:
    return {name: np.concatenate([getattr(part, name) for part in parts]) for name in names}


def _offsets(parts: Sequence[np.ndarray], n_rows: Sequence[int]) -> np.ndarray:
    before = np.cumsum([0, *n_rows])
    shifted = [part[:-1] + shift for part, shift in zip(parts, before[:-1], strict=True)]
    return np.concatenate([*shifted, before[-1:]])


# Memory that is used again: fresh pages cost the kernel more time than filling them does.

_HEADROOM = 1.5
# from malloc.h of glibc
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
_KEPT_BYTES, _LARGEST_KEPT_BYTES = 1 << 28, 1 << 25


def keep_freed_memory() -> None:
    """Let the C library keep freed memory for the next array, for the rest of this process.

    By default each array of a few MiB is fresh pages from the kernel, and goes back when freed.
    At most 256 MiB per heap are kept, in pieces of up to 32 MiB, the most that glibc allows; other
    C libraries are left as they are.
    Source: mallopt(3).
    """
    set_option = getattr(ctypes.CDLL(None), "mallopt", None)
    if set_option is not None:
        set_option(_M_TRIM_THRESHOLD, _KEPT_BYTES)
        set_option(_M_MMAP_THRESHOLD, _LARGEST_KEPT_BYTES)


class PulseColumns:
    """Grows columns of pulses, one for each of PULSE_NAMES, in memory that can be used again."""

    def __init__(self) -> None:
        self._memory: dict[str, npt.NDArray[Any]] = {}
        self.n_pulses = 0

    def add(self, events: DomEvents | SortedEvents) -> None:
        """Append the pulses of some events; those of one shard have one type of charge."""
        start, stop = self.n_pulses, self.n_pulses + events.n_pulses
        for name in PULSE_NAMES:
            column = self._with_room(name, stop, events.pulse_dtype(name))
            events.copy_pulses(name, out=column[start:stop])
        self.n_pulses = stop

    def filled(self) -> dict[str, npt.NDArray[Any]]:
        """Give views of the columns, valid until `clear`."""
        return {name: column[: self.n_pulses] for name, column in self._memory.items()}

    def clear(self) -> None:
        """Forget the pulses, but not their memory."""
        self.n_pulses = 0

    def _with_room(self, name: str, n_values: int, dtype: np.dtype[Any]) -> npt.NDArray[Any]:
        column = self._memory.get(name)
        if column is None or len(column) < n_values or column.dtype != dtype:
            longer = np.empty(math.ceil(n_values * _HEADROOM), dtype)
            if column is not None:
                longer[: self.n_pulses] = column[: self.n_pulses]
            column = self._memory[name] = longer
        return column
