"""EventBatch: a ragged minibatch of raw events, as flat tensors with offsets.

Shape letters of the whole project: B events, D DOMs, N pulses, C width, H heads.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from iceaggr.detector import ICE, Medium


@dataclass(frozen=True)
class EventBatch:
    """A minibatch of events in raw physical units; nothing is padded.

    event_id:           (B,)   int64
    event_dom_offsets:  (B+1,) int64, DOMs of event b are rows [offsets[b], offsets[b+1])
    sensor_idx:         (D,)   int64, row of the DOM in the detector's table
    xyz_m:              (D, 3) float32, position in metres
    efficiency:         (D,)   float32, relative quantum efficiency (1 = standard DOM)
    dom_pulse_offsets:  (D+1,) int64, pulses of DOM d are rows [offsets[d], offsets[d+1])
    time_ns:            (N,)   float32, non-decreasing within a DOM
    charge_pe:          (N,)   float32, photo-electrons
    auxiliary:          (N,)   bool, True = not part of the trigger decision
    direction:          (B, 3) float32 unit vector to the origin, or None for unlabelled events
    n_doms_dropped, n_pulses_dropped: what the configured caps left out of this batch
    event_doms_dropped, event_pulses_dropped: (B,) int64, the same for each event, or None when the
                        batch was not made from events under caps
    medium:             what the detector stands in; classical fits, and features made of them, use
                        its constants of light
    """

    event_id: Tensor
    event_dom_offsets: Tensor
    sensor_idx: Tensor
    xyz_m: Tensor
    efficiency: Tensor
    dom_pulse_offsets: Tensor
    time_ns: Tensor
    charge_pe: Tensor
    auxiliary: Tensor
    direction: Tensor | None = None
    n_doms_dropped: int = 0
    n_pulses_dropped: int = 0
    event_doms_dropped: Tensor | None = None
    event_pulses_dropped: Tensor | None = None
    medium: Medium = ICE

    @property
    def n_events(self) -> int:
        """Count the events (B)."""
        return self.event_id.shape[0]

    @property
    def n_doms(self) -> int:
        """Count the DOMs of all events (D)."""
        return self.sensor_idx.shape[0]

    @property
    def n_pulses(self) -> int:
        """Count the pulses of all events (N)."""
        return self.time_ns.shape[0]

    def dom_event_idx(self) -> Tensor:
        """Map each DOM to its event: (D,) int64."""
        return segment_idx(self.event_dom_offsets, self.n_doms)

    def pulse_dom_idx(self) -> Tensor:
        """Map each pulse to its DOM: (N,) int64."""
        return segment_idx(self.dom_pulse_offsets, self.n_pulses)

    def to(self, device: torch.device | str, non_blocking: bool = False) -> EventBatch:
        """Copy every tensor to a device."""
        return self._with_each(lambda tensor: tensor.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> EventBatch:
        """Copy every tensor to page-locked memory, so that transfers to a GPU can overlap."""
        return self._with_each(Tensor.pin_memory)

    def _with_each(self, change: Callable[[Tensor], Tensor]) -> EventBatch:
        columns = {f.name: getattr(self, f.name) for f in fields(self)}
        tensors = {name: column for name, column in columns.items() if isinstance(column, Tensor)}
        changed: dict[str, Any] = {name: change(tensor) for name, tensor in tensors.items()}
        return replace(self, **changed)


def segment_idx(offsets: Tensor, n_rows: int) -> Tensor:
    """Expand offsets to one segment index per row.

    offsets: (S+1,) int64, non-decreasing. Returns (n_rows,) int64 in [0, S).
    """
    n_segments = offsets.shape[0] - 1
    segments = torch.arange(n_segments, device=offsets.device)
    return torch.repeat_interleave(segments, offsets.diff(), output_size=n_rows)


# Ragged arrays: offsets and the row numbers of many ranges at once.

IntArray = npt.NDArray[np.int64]


def offsets_of(counts: npt.NDArray[np.integer | np.bool_]) -> IntArray:
    """Turn segment lengths into offsets.

    counts: (S,) integer >= 0, or bool.
    Returns (S+1,) int64, the first 0, the last the number of rows.
    """
    offsets = np.zeros(len(counts) + 1, np.int64)
    np.cumsum(counts, out=offsets[1:])
    return offsets


def ragged_rows(starts: IntArray, counts: IntArray) -> IntArray:
    """List the rows of ranges [start, start + count), one range after the other.

    starts, counts: (S,) int64. Returns (sum of counts,) int64.
    """
    offsets = offsets_of(counts)
    rows = np.arange(offsets[-1])
    rows += np.repeat(starts - offsets[:-1], counts)
    return rows
