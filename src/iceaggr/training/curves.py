"""Training curves: sums over the steps since the last point, kept on the device until it is due."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass

import psutil
import torch

from iceaggr.angles import opening_angle
from iceaggr.batches.event_batch import EventBatch
from iceaggr.training.distributed import Processes
from iceaggr.training.step import StepOutcome

_GIB = 1 << 30
# What a step adds up, per event: loss, angle, unit vector, length of the raw vector.
_N_SUMS = 6


@dataclass(frozen=True)
class CurvePoint:
    """Means over the events of some steps, over all processes; angles in degrees.

    mean_vector_length: of the mean predicted unit vector; 1 = always the same direction
    gradient_norm: mean over the steps, before clipping
    events_per_s: of all processes together, validation and checkpoints left out
    data_wait_share: of this time, what was spent waiting for batches
    pulses_dropped_share: of all pulses of these events, what the configured caps left out
    memory_gib: of all processes together: resident now, or the most ever allocated on GPUs
    """

    loss: float
    opening_angle_deg: float
    mean_vector_length: float
    mean_z: float
    mean_kappa: float
    gradient_norm: float
    learning_rate: float
    events_per_s: float
    data_wait_share: float
    pulses_dropped_share: float
    memory_gib: float

    def metrics(self) -> dict[str, float]:
        """Name the values as points of curves."""
        return {f"train/{name}": float(value) for name, value in vars(self).items()}


class CurveWindow:
    """Adds up steps; `point` reads them out and starts anew."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._clear()

    def _clear(self) -> None:
        self._sums = torch.zeros(_N_SUMS, dtype=torch.float64, device=self.device)
        self._gradient_norm = torch.zeros((), dtype=torch.float64, device=self.device)
        self._n_events = 0
        self._n_steps = self._n_pulses = self._n_pulses_dropped = 0
        self._wait_s = 0.0
        self._paused_s = 0.0
        self._started = time.monotonic()

    @torch.no_grad()
    def add(self, outcome: StepOutcome, batch: EventBatch) -> None:
        """Add a step and its labelled batch."""
        assert batch.direction is not None, "check_batch lets only labelled events pass"
        vector = outcome.vector.double()
        length = vector.norm(dim=-1, keepdim=True)
        unit = vector / length.clamp_min(1e-12)
        angle = opening_angle(unit, batch.direction.double())
        sums = [outcome.event_loss.double().sum(), angle.sum(), *unit.sum(dim=0), length.sum()]
        self._sums += torch.stack(sums)
        self._gradient_norm += outcome.gradient_norm.double()
        self._n_events += len(vector)
        self._n_steps += 1
        self._n_pulses += batch.n_pulses
        self._n_pulses_dropped += batch.n_pulses_dropped

    def waited(self, seconds: float) -> None:
        """Count time spent waiting for a batch."""
        self._wait_s += seconds

    def paused(self, seconds: float) -> None:
        """Leave out time spent on validation and checkpoints."""
        self._paused_s += seconds

    @property
    def is_empty(self) -> bool:
        """Tell whether no step was added since the last point."""
        return self._n_steps == 0

    def point(self, processes: Processes, learning_rate: float) -> CurvePoint:
        """Average over all processes, and start anew; every process must call it together."""
        seconds = max(1e-9, time.monotonic() - self._started - self._paused_s)
        mine = [*self._sums.tolist(), float(self._gradient_norm), self._n_events, self._n_steps]
        mine += [self._wait_s, seconds, _memory_bytes(self.device)]
        mine += [self._n_pulses, self._n_pulses_dropped]
        everyone = processes.gather(mine)
        self._clear()
        total = everyone.sum(dim=0).tolist()
        loss, angle, x, y, z, kappa, norm, n_events, n_steps = total[:9]
        waited, all_seconds, memory, n_pulses, n_dropped = total[9:]
        return CurvePoint(
            loss=loss / n_events,
            opening_angle_deg=math.degrees(angle / n_events),
            mean_vector_length=math.hypot(x, y, z) / n_events,
            mean_z=z / n_events,
            mean_kappa=kappa / n_events,
            gradient_norm=norm / n_steps,
            learning_rate=learning_rate,
            events_per_s=n_events * processes.world_size / all_seconds,
            data_wait_share=waited / all_seconds,
            pulses_dropped_share=n_dropped / max(1.0, n_pulses + n_dropped),
            memory_gib=memory / _GIB,
        )


def _memory_bytes(device: torch.device) -> float:
    if device.type == "cuda":
        return float(torch.cuda.max_memory_allocated(device))
    return float(psutil.Process().memory_info().rss)
