"""What a run tells while it goes on: curves to the tracker, points to the progress callback."""

from __future__ import annotations

import logging
import math

from iceaggr.config import ExperimentConfig
from iceaggr.interfaces import Tracker
from iceaggr.losses import loss_of_ignorance
from iceaggr.training.curves import CurvePoint, CurveWindow
from iceaggr.training.distributed import Processes
from iceaggr.training.divergence import check_validation, check_windows, ruinous_excess
from iceaggr.training.inputs import ProgressCallback, TrainingProgress
from iceaggr.training.state import RunState
from iceaggr.training.validation import ValidationResult

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
