"""Events grouped by DOM, as flat numpy arrays with offsets.

What a shard holds, in memory; what sharding writes, sketches summarise and loading batches.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, ClassVar

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
