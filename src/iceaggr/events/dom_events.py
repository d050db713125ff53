"""DomEvents: labelled events grouped by DOM, as flat numpy arrays with offsets.

What a shard holds, in memory; what sharding writes, sketches summarise and loading batches.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True)
class DomEvents:
    """Events with their DOMs sorted by sensor and the pulses of each DOM sorted by time.

    event_id:          (B,)   int64
    azimuth, zenith:   (B,)   float64, radians, direction to the origin; NaN without a label
    event_dom_offsets: (B+1,) int64, DOMs of event b are rows [offsets[b], offsets[b+1])
    sensor_id:         (D,)   int32
    dom_pulse_offsets: (D+1,) int64, pulses of DOM d are rows [offsets[d], offsets[d+1])
    time_ns:           (N,)   int64
    charge_pe:         (N,)   float32 or float64, as in the raw file
    auxiliary:         (N,)   bool
    """

    event_id: npt.NDArray[np.int64]
    azimuth: npt.NDArray[np.float64]
    zenith: npt.NDArray[np.float64]
    event_dom_offsets: npt.NDArray[np.int64]
    sensor_id: npt.NDArray[np.int32]
    dom_pulse_offsets: npt.NDArray[np.int64]
    time_ns: npt.NDArray[np.int64]
    charge_pe: npt.NDArray[np.floating]
    auxiliary: npt.NDArray[np.bool_]

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
        return len(self.time_ns)

    def event_pulse_offsets(self) -> npt.NDArray[np.int64]:
        """Give the pulse range of each event: (B+1,) int64."""
        return self.dom_pulse_offsets[self.event_dom_offsets]
