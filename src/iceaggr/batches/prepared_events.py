"""PreparedEvents: events as batches need them, from which any selection is gathered quickly."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from iceaggr.angles import unit_vector
from iceaggr.batches.capping import cap_events
from iceaggr.batches.ragged import IntArray, offsets_of
from iceaggr.config import BatchConfig
from iceaggr.detector import Detector
from iceaggr.errors import DetectorError, ShardError
from iceaggr.events.dom_events import DomEvents


@dataclass(frozen=True)
class PreparedEvents:
    """Events within the caps, in the types of EventBatch, with a length instead of each offset.

    event_id:  (B,) int64              direction: (B, 3) float32, or None without labels
    n_doms, n_pulses: (B,) int64       n_doms_dropped, n_pulses_dropped: (B,) int64
    sensor_idx, dom_n_pulses: (D,) int64
    time_ns, charge_pe: (N,) float32   auxiliary: (N,) bool
    """

    event_id: Tensor
    direction: Tensor | None
    n_doms: IntArray
    n_pulses: IntArray
    n_doms_dropped: IntArray
    n_pulses_dropped: IntArray
    sensor_idx: Tensor
    dom_n_pulses: Tensor
    time_ns: Tensor
    charge_pe: Tensor
    auxiliary: Tensor

    @property
    def n_events(self) -> int:
        """Count the events (B)."""
        return len(self.n_doms)

    def event_dom_offsets(self) -> IntArray:
        """Give the DOM range of each event: (B+1,) int64."""
        return offsets_of(self.n_doms)

    def event_pulse_offsets(self) -> IntArray:
        """Give the pulse range of each event: (B+1,) int64."""
        return offsets_of(self.n_pulses)


def prepare(events: DomEvents, detector: Detector, config: BatchConfig) -> PreparedEvents:
    """Apply the caps, look up the sensors and convert to the types of EventBatch.

    Raises: DetectorError for a sensor the detector does not have; ShardError if only some events
    have a direction.
    """
    events, dropped = cap_events(events, config)
    return PreparedEvents(
        event_id=torch.from_numpy(np.array(events.event_id, np.int64)),
        direction=_directions(events),
        n_doms=np.diff(events.event_dom_offsets),
        n_pulses=np.diff(events.event_pulse_offsets()),
        n_doms_dropped=dropped.n_doms,
        n_pulses_dropped=dropped.n_pulses,
        sensor_idx=torch.from_numpy(_sensor_idx(events.sensor_id, detector)),
        dom_n_pulses=torch.from_numpy(np.diff(events.dom_pulse_offsets)),
        time_ns=torch.from_numpy(events.time_ns.astype(np.float32)),
        charge_pe=torch.from_numpy(events.charge_pe.astype(np.float32)),
        auxiliary=torch.from_numpy(np.array(events.auxiliary, bool)),
    )


def concatenate(parts: Sequence[PreparedEvents]) -> PreparedEvents:
    """Join the events of several shards, in order.

    Raises: ShardError if some parts have directions and others do not; ValueError without parts.
    """
    if not parts:
        raise ValueError("nothing to concatenate")
    labelled = {part.direction is not None for part in parts}
    if len(labelled) > 1:
        raise ShardError("some shards have directions, others do not", expected="all or none")
    joined: dict[str, Any] = {}
    for field in fields(PreparedEvents):
        columns = [getattr(part, field.name) for part in parts]
        if isinstance(columns[0], Tensor):
            joined[field.name] = torch.cat(columns)
        else:
            joined[field.name] = None if columns[0] is None else np.concatenate(columns)
    return PreparedEvents(**joined)


def _directions(events: DomEvents) -> Tensor | None:
    known = np.isfinite(events.azimuth) & np.isfinite(events.zenith)
    if not known.any():
        return None
    if not known.all():
        raise ShardError(
            "event without a direction among labelled events",
            where=f"event_id {events.event_id[~known][0]}",
            expected="a direction for every event or for none",
        )
    azimuth = torch.from_numpy(np.array(events.azimuth, np.float64))
    zenith = torch.from_numpy(np.array(events.zenith, np.float64))
    return unit_vector(azimuth, zenith).float()


def _sensor_idx(sensor_id: npt.NDArray[np.int32], detector: Detector) -> IntArray:
    sensor_idx = detector.sensor_idx(sensor_id)
    if len(sensor_idx) and sensor_idx.min() < 0:
        raise DetectorError(
            "event has a sensor that the detector does not",
            found=f"sensor_id {sensor_id[sensor_idx < 0][0]}",
            expected=f"one of the {detector.n_sensors} sensors of the geometry",
            remedy="Use the geometry that the events were sharded with",
        )
    return sensor_idx
