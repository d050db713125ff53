"""EventPool: events of many shards in one block of memory, from which batches are gathered."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from iceaggr.angles import unit_vector
from iceaggr.batches.capping import cap_events
from iceaggr.batches.event_batch import IntArray
from iceaggr.config import BatchConfig
from iceaggr.detector import Detector
from iceaggr.errors import DetectorError, ShardError
from iceaggr.events.dom_events import DomEvents
from iceaggr.events.schema import PULSE_VALUES
from iceaggr.shards.manifest import ShardEntry


@dataclass(frozen=True)
class Extent:
    """A number of events, DOMs and pulses: the size of something, or where it begins."""

    n_events: int
    n_doms: int
    n_pulses: int

    def __add__(self, other: Extent) -> Extent:
        return Extent(
            self.n_events + other.n_events,
            self.n_doms + other.n_doms,
            self.n_pulses + other.n_pulses,
        )

    @classmethod
    def of(cls, events: DomEvents | ShardEntry) -> Extent:
        """Measure events."""
        return cls(events.n_events, events.n_doms, events.n_pulses)

    @classmethod
    def of_all(cls, shards: Iterable[ShardEntry]) -> Extent:
        """Measure several shards together."""
        return sum((cls.of(entry) for entry in shards), NOTHING)


NOTHING = Extent(0, 0, 0)
_DOM_COLUMNS = ("sensor_idx", "dom_n_pulses")


@dataclass(frozen=True)
class EventPool:
    """Events within the caps, in the types of EventBatch; the caps leave gaps between shards.

    event_id: (B,) int64.  direction: (B, 3) float32, NaN without a label.
    dom_start, n_doms, pulse_start, n_pulses: (B,) int64, the rows of each event.
    n_doms_dropped, n_pulses_dropped: (B,) int64, what the caps left out.
    sensor_idx: (D,) int32, row in the detector's table.  dom_n_pulses: (D,) int32.
    pulses: each of `schema.PULSE_VALUES`, (N,) of its type in a minibatch.
    """

    event_id: IntArray
    direction: npt.NDArray[np.float32]
    dom_start: IntArray
    n_doms: IntArray
    pulse_start: IntArray
    n_pulses: IntArray
    n_doms_dropped: IntArray
    n_pulses_dropped: IntArray
    sensor_idx: npt.NDArray[np.int32]
    dom_n_pulses: npt.NDArray[np.int32]
    pulses: dict[str, npt.NDArray[Any]]

    @classmethod
    def with_room_for(cls, extent: Extent) -> EventPool:
        """Reserve memory; the pages are only touched when they are filled."""
        b, d, n = extent.n_events, extent.n_doms, extent.n_pulses
        return cls(
            event_id=np.zeros(b, np.int64),
            direction=np.full((b, 3), np.nan, np.float32),
            dom_start=np.zeros(b, np.int64),
            n_doms=np.zeros(b, np.int64),
            pulse_start=np.zeros(b, np.int64),
            n_pulses=np.zeros(b, np.int64),
            n_doms_dropped=np.zeros(b, np.int64),
            n_pulses_dropped=np.zeros(b, np.int64),
            sensor_idx=np.empty(d, np.int32),
            dom_n_pulses=np.empty(d, np.int32),
            pulses={value.name: np.empty(n, value.batched) for value in PULSE_VALUES},
        )

    def first(self, extent: Extent) -> EventPool:
        """Give a view of the first rows, to be filled anew."""
        b, d, n = extent.n_events, extent.n_doms, extent.n_pulses
        of_events = [f.name for f in fields(self) if f.name not in (*_DOM_COLUMNS, "pulses")]
        return EventPool(
            **{name: getattr(self, name)[:b] for name in of_events},
            **{name: getattr(self, name)[:d] for name in _DOM_COLUMNS},
            pulses={name: column[:n] for name, column in self.pulses.items()},
        )

    @classmethod
    def of(cls, events: DomEvents, detector: Detector, config: BatchConfig) -> EventPool:
        """Hold the given events. Raises: as `fill`."""
        pool = cls.with_room_for(Extent.of(events))
        pool.fill(NOTHING, events, detector, config)
        return pool

    @property
    def n_events(self) -> int:
        """Count the events (B)."""
        return len(self.event_id)

    def fill(
        self, begin: Extent, events: DomEvents, detector: Detector, config: BatchConfig
    ) -> None:
        """Apply the caps and write events into their place; threads may fill different places.

        Raises: DetectorError for a sensor the detector does not have; ShardError if only some
        events have a direction.
        """
        capped, dropped = cap_events(events, config)
        b = slice(begin.n_events, begin.n_events + capped.n_events)
        d = slice(begin.n_doms, begin.n_doms + capped.n_doms)
        n = slice(begin.n_pulses, begin.n_pulses + capped.n_pulses)
        pulse_offsets = capped.event_pulse_offsets()
        self.event_id[b] = capped.event_id
        self.direction[b] = _directions(capped)
        self.dom_start[b] = begin.n_doms + capped.event_dom_offsets[:-1]
        self.n_doms[b] = np.diff(capped.event_dom_offsets)
        self.pulse_start[b] = begin.n_pulses + pulse_offsets[:-1]
        self.n_pulses[b] = np.diff(pulse_offsets)
        self.n_doms_dropped[b] = dropped.n_doms
        self.n_pulses_dropped[b] = dropped.n_pulses
        self.sensor_idx[d] = _sensor_idx(capped.sensor_id, detector)
        self.dom_n_pulses[d] = np.diff(capped.dom_pulse_offsets)
        for name, column in self.pulses.items():
            column[n] = getattr(capped, name)

    def is_labelled(self) -> bool:
        """Tell whether the events have directions.

        Raises: ShardError if some have one and others do not.
        """
        known = np.isfinite(self.direction[:, 0])
        if known.all() or not known.any():
            return bool(known.all())
        raise ShardError(
            "event without a direction among labelled events",
            where=f"event_id {self.event_id[~known][0]}",
            found=f"{int((~known).sum())} of {len(known)} events without one",
            expected="a direction for every event or for none",
            remedy="Shard the raw events again: labels are checked there",
        )


def _directions(events: DomEvents) -> npt.NDArray[np.float32]:
    azimuth = torch.from_numpy(np.array(events.azimuth, np.float64))
    zenith = torch.from_numpy(np.array(events.zenith, np.float64))
    return unit_vector(azimuth, zenith).float().numpy()


def _sensor_idx(sensor_id: npt.NDArray[np.int32], detector: Detector) -> IntArray:
    sensor_idx = detector.sensor_idx(sensor_id)
    if len(sensor_idx) and sensor_idx.min() < 0:
        raise DetectorError(
            "event has a sensor that the detector does not",
            where="geometry",
            found=f"sensor_id {sensor_id[sensor_idx < 0][0]}",
            expected=f"one of the {detector.n_sensors} sensors of the geometry",
            remedy="Use the geometry that the events were sharded with",
        )
    return sensor_idx
