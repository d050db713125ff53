"""What a run tells while it goes on: curves to the tracker, points to the progress callback."""

from __future__ import annotations

import logging
import math
import time
from dataclasses import dataclass

import psutil
import torch

from iceaggr.angles import opening_angle
from iceaggr.batches.event_batch import EventBatch
from iceaggr.config import ExperimentConfig
from iceaggr.interfaces import Tracker
from iceaggr.losses import loss_of_ignorance
from iceaggr.training.device import Processes
from iceaggr.training.inputs import ProgressCallback, TrainingProgress
from iceaggr.training.keeper import RunState
from iceaggr.training.step import StepOutcome
from iceaggr.training.validation import (
    ValidationResult,
    check_validation,
    check_windows,
    ruinous_excess,
)

# Training curves: sums over the steps since the last point, kept on the device until it is due.

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


logger = logging.getLogger(__name__)

EXCESS = "train/loss_above_ignorance"
"""Training loss minus that of whoever knows nothing."""
N_DIVERGED = "train/n_diverged_windows"
"""Windows in a row whose loss is ruin; kept with the metrics, so that it survives a restart."""


class Reporter:
    """Turns steps and validations into points; tracker and callback speak in one process only."""

    def __init__(
        self,
        window: CurveWindow,
        config: ExperimentConfig,
        processes: Processes,
        tracker: Tracker,
        on_progress: ProgressCallback | None,
    ) -> None:
        self.window = window
        self.config = config
        self.processes = processes
        self.tracker = tracker
        self.on_progress = on_progress if processes.is_main else None
        self._had_problem = False

    def point(self, state: RunState, learning_rate: float, n_steps_planned: int) -> None:
        """Report the steps since the last point, if any; every process must call it together.

        Raises: TrainingError when the loss stays that of a ruined model, if so configured.
        """
        if self.window.is_empty:
            return
        point = self.window.point(self.processes, learning_rate)
        loss, progress = self.config.loss, state.progress
        excess = point.loss - loss_of_ignorance(loss, progress)
        is_ruin = excess > ruinous_excess(loss, progress)
        n_diverged = (self.n_diverged_windows(state) + 1) if is_ruin else 0
        counters = {
            EXCESS: excess,
            N_DIVERGED: float(n_diverged),
            "train/progress": state.progress,
            "train/n_events_seen": float(state.n_events_seen),
            "train/n_events_left_out": float(state.n_events_left_out),
        }
        self._record({**point.metrics(), **counters}, state)
        if self.on_progress is not None:
            self.on_progress(self._progress(state, point, n_steps_planned))
        check_windows(n_diverged, excess, self.config.training, state.step)

    @staticmethod
    def n_diverged_windows(state: RunState) -> int:
        """Count the windows in a row, up to the last point, whose loss was that of a ruined model.

        A checkpoint that is due by time waits while there are any.
        """
        return int(state.metrics.get(N_DIVERGED) or 0)

    def _progress(
        self, state: RunState, point: CurvePoint, n_steps_planned: int
    ) -> TrainingProgress:
        validated = state.last_validation_opening_angle_deg
        return TrainingProgress(
            share=state.progress,
            step=state.step,
            n_steps_planned=n_steps_planned,
            epoch=state.epoch,
            n_epochs=self.config.training.n_epochs,
            elapsed_s=state.elapsed_s,
            loss=point.loss,
            opening_angle_deg=point.opening_angle_deg,
            validation_opening_angle_deg=math.nan if validated is None else validated,
            learning_rate=point.learning_rate,
            gradient_norm=point.gradient_norm,
            events_per_s=point.events_per_s,
            data_wait_share=point.data_wait_share,
        )

    def validation(self, result: ValidationResult, state: RunState) -> None:
        """Note a validation in the state, report it, stop it if ruined or learning nothing.

        Raises: TrainingError when so configured.
        """
        angle = result.opening_angle_deg
        best = state.best_validation_opening_angle_deg
        state.validation_due, state.validated_step = False, state.step
        state.validation_s = max(state.validation_s, result.seconds)
        state.best_validation_opening_angle_deg = angle if best is None else min(best, angle)
        state.last_validation_opening_angle_deg = angle
        state.kappa_map = result.kappa_map
        self._record({**result.metrics(), "validation/epoch": float(state.epoch)}, state)
        excess = state.metrics.get(EXCESS)
        problem = check_validation(result, self.config, state.progress, state.step, excess)
        # said when it begins and when it ends, not at every validation in between
        if bool(problem) != self._had_problem:
            logger.warning("step %d: %s", state.step, problem or "the model has begun to learn")
        self._had_problem = bool(problem)

    def _record(self, metrics: dict[str, float], state: RunState) -> None:
        state.metrics |= {k: v if math.isfinite(v) else None for k, v in metrics.items()}
        if self.processes.is_main:
            self.tracker.log_metrics(metrics, step=state.step)
