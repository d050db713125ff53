"""The training loop: epochs, validation, checkpoints, and how a run ends."""

from __future__ import annotations

import ctypes
import math
import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from typing import NoReturn

from torch import nn

from iceaggr.batches.event_batch import EventBatch
from iceaggr.config import ExperimentConfig, TrainingConfig
from iceaggr.errors import PartnerError, TrainingError
from iceaggr.signals import Interruption, TrainingInterruptedError
from iceaggr.training.device import LoadedBatch, Processes, placed, positioned
from iceaggr.training.guards import check_batch
from iceaggr.training.inputs import BatchSource
from iceaggr.training.keeper import Keeper, RunState
from iceaggr.training.reporting import Reporter
from iceaggr.training.step import OptimiserStep
from iceaggr.training.validation import Validator

# Learning rate and the share of the run that is done.
#
# Everything that changes during a run (learning rate, mix of losses) is a function of one number,
# the progress in [0, 1]:
#
#     progress = max(steps done / steps planned, time used / time available)
#
# Steps planned are all epochs, each as long as the first; time available is `max_minutes` less what
# the last validation is expected to take. Progress never falls. Without a time limit it depends on
# the step alone, and a run is reproducible and resumes bit for bit; with one it depends on the
# clock, and a repeated run differs slightly.

START_SHARE = 1 / 25
"""one_cycle starts at this share of the peak rate."""
MAX_RESERVED_SHARE = 0.5
"""The last validation may claim at most this share of the time limit."""


class Pace:
    """Says how much of a run is done; never goes backwards."""

    def __init__(self, n_steps_planned: int, limit_s: float, reached: float = 0.0) -> None:
        self.n_steps_planned = n_steps_planned
        self.limit_s = limit_s
        self.reached = reached
        self.time_is_up = False

    def advance(self, step: int, elapsed_s: float, reserve_s: float) -> float:
        """Give the progress after `step` steps and `elapsed_s` seconds.

        reserve_s: seconds to keep for the last validation and checkpoint.
        """
        done = step / self.n_steps_planned
        if self.limit_s > 0:
            reserve_s = min(reserve_s, MAX_RESERVED_SHARE * self.limit_s)
            time_share = elapsed_s / (self.limit_s - reserve_s)
            self.time_is_up = time_share >= 1
            done = max(done, time_share)
        self.reached = min(1.0, max(self.reached, done))
        return self.reached


def learning_rate_at(progress: float, config: TrainingConfig) -> float:
    """Give the learning rate at a progress in [0, 1].

    one_cycle: linear from 1/25 of the peak to the peak during warm-up, then a half cosine to zero.
    Raises: ValueError if the progress is outside [0, 1].
    """
    if not 0.0 <= progress <= 1.0:
        raise ValueError(f"progress is {progress}, expected 0..1")
    if config.schedule == "constant":
        return config.learning_rate
    warmup = config.warmup_share
    if progress < warmup:
        return config.learning_rate * (START_SHARE + (1 - START_SHARE) * progress / warmup)
    share = (progress - warmup) / (1 - warmup)
    return config.learning_rate * 0.5 * (1 + math.cos(math.pi * share))


# Memory of a long run: batches of ever new sizes leave holes in the heap.

TRIM_EVERY_S = 30.0
"""Seconds between two returns; one takes some hundredths of a second."""


class HeapTrimmer:
    """Gives free pages back to the system now and then.

    The tensors in use stay at a few hundred MB, but the C library keeps what lies free between
    them: measured over five minutes on two cores, the process grew from 0.8 to 1.5 GiB and on.
    """

    def __init__(self) -> None:
        # only glibc keeps holes, and only glibc has the function
        self._trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
        self._trimmed_at = time.monotonic()

    def trim_if_due(self) -> None:
        """Return free pages if the last time is long enough ago."""
        now = time.monotonic()
        if self._trim is not None and now - self._trimmed_at >= TRIM_EVERY_S:
            self._trim(0)
            self._trimmed_at = now


VALIDATION_MARGIN = 1.3
"""The last validation may take this much longer, event by event, than the longest so far."""


@dataclass(frozen=True)
class LoopParts:
    """What the loop works with.

    train_loader: batches of this process; every process has the same number of them per epoch
    normalizer: on the CPU, for checking batches as loaded
    """

    config: ExperimentConfig
    step: OptimiserStep
    train_loader: BatchSource
    normalizer: nn.Module
    validator: Validator
    keeper: Keeper
    reporter: Reporter
    processes: Processes


class Loop:
    """Runs from a state to the end of the run."""

    def __init__(self, parts: LoopParts, state: RunState, interruption: Interruption) -> None:
        self.parts = parts
        self.settings = parts.config.training
        self.state = state
        self.interruption = interruption
        n_planned = self.settings.n_epochs * parts.train_loader.n_batches(0)
        if n_planned == 0:
            raise TrainingError(
                "the train split is empty",
                where="manifest",
                found="no batch",
                expected="at least one batch",
                remedy="Shard more raw events, or lower the shares of the other splits",
            )
        self.pace = Pace(n_planned, self.settings.max_minutes * 60, state.progress)
        now = time.monotonic()
        self._started = now - state.elapsed_s
        self._validated_at = self._saved_at = now
        self._first_step = state.step
        self._n_events_here, self._train_s, self._save_s = 0, 0.0, 0.0
        self._rate = 0.0
        self._trimmer = HeapTrimmer()

    def run(self) -> None:
        """Train until the epochs or the time are used up; the state says which.

        Raises: TrainingInterruptedError after SIGTERM, with a checkpoint written; TrainingError.
        """
        if self.state.step == 0:
            self._save()
        if self.state.validation_due:
            self._validate()
        while not self.state.stopped and self.state.epoch < self.settings.n_epochs:
            self._run_epoch()
            if self.state.validation_due:
                self._validate()
                if self.state.epoch % self.settings.checkpoint_every_n_epochs == 0:
                    self._save()
        self.state.stopped = self.state.stopped or "epochs"
        self._log()
        if self.state.validated_step != self.state.step:
            self._validate()
        self._save()

    def _run_epoch(self) -> None:
        state, loader = self.state, self.parts.train_loader
        with closing(positioned(loader, state.epoch, state.loader_position)) as batches:
            step = self.parts.step
            ahead = partial(self._check, where="read ahead")
            for loaded in self._timed(placed(batches, step.device, step.model, ahead)):
                self._take_step(loaded)
                self._do_what_is_due()
                if state.stopped:
                    return
        n_batches = loader.n_batches(state.epoch)
        if state.n_batches_in_epoch != n_batches:
            raise TrainingError(
                "the epoch has another length than planned",
                where=f"epoch {state.epoch + 1}",
                found=f"{state.n_batches_in_epoch} batches",
                expected=f"{n_batches}",
                remedy="Shard the raw events again: the manifest disagrees with its shards",
            )
        state.epoch += 1
        state.n_batches_in_epoch, state.loader_position = 0, None
        state.validation_due = True

    def _timed(self, batches: Iterator[LoadedBatch]) -> Iterator[LoadedBatch]:
        while True:
            started = time.monotonic()
            loaded = next(batches, None)
            if loaded is None:
                return
            self.parts.reporter.window.waited(time.monotonic() - started)
            yield loaded
            self._train_s += time.monotonic() - started

    def _take_step(self, loaded: LoadedBatch) -> None:
        state, parts = self.state, self.parts
        n_events, some_are_empty = self._agree(loaded)
        state.n_batches_in_epoch += 1
        state.loader_position = loaded.position
        if some_are_empty:
            # fewer events than processes are left of the epoch; a step needs every process
            state.n_events_left_out += n_events
            return
        self._rate = learning_rate_at(state.progress, self.settings)
        outcome = parts.step.take(loaded, state.step + 1, state.progress, self._rate, n_events)
        parts.reporter.window.add(outcome, loaded.placed)
        state.step += 1
        state.n_events_seen += n_events
        self._n_events_here += n_events

    def _check(self, batch: EventBatch, where: str) -> None:
        check_batch(batch, self.parts.normalizer, self.parts.config.normalization, where)

    def _agree(self, loaded: LoadedBatch) -> tuple[int, bool]:
        """Check the batch in every process: events over all of them, and whether one has none."""
        where = f"step {self.state.step + 1}"
        problem: TrainingError | None = None
        try:
            if not loaded.is_sound:
                self._check(loaded.host, where)
        except TrainingError as error:
            problem = error
        everyone = self.parts.processes.gather([float(problem is not None), loaded.host.n_events])
        if problem is not None:
            raise problem
        if everyone[:, 0].any():
            rank = int(everyone[:, 0].argmax())
            raise PartnerError(
                "another process refused its batch",
                where=f"{where}, rank {rank}",
                found="a refused batch",
                expected="sound batches in every process",
                remedy="See the error of that process",
            )
        return int(everyone[:, 1].sum()), bool((everyone[:, 1] == 0).any())

    def _do_what_is_due(self) -> None:
        """Stop, validate or save between two steps; every process decides the same."""
        self._trimmer.trim_if_due()
        now = time.monotonic()
        validate_after_s = self.settings.validation_every_minutes * 60
        mine = [
            float(self.interruption.requested),
            float(0 < validate_after_s < now - self._validated_at),
            float(now - self._saved_at > self.settings.checkpoint_every_minutes * 60),
            now - self._started,
            self._reserve_s(),
        ]
        everyone = self.parts.processes.gather(mine)
        interrupted, validate, save, elapsed_s, reserve_s = everyone.amax(dim=0).tolist()
        self.state.progress = self.pace.advance(self.state.step, elapsed_s, reserve_s)
        if self.state.step % self.settings.log_every_n_steps == 0:
            self._log()
        if interrupted:
            self._save_and_leave()
        if self.pace.time_is_up:
            self.state.stopped = "time"
            return
        if validate:
            self._validate()
        if save:
            # the steps since the last point count too: what is kept is good, or not written over
            self._log()
            if not self.parts.reporter.n_diverged_windows(self.state):
                self._save()

    def _reserve_s(self) -> float:
        """Expect how long the last step, validation and checkpoint take."""
        event_s = self._train_s / max(1, self._n_events_here)
        last_step_s = self._train_s / max(1, self.state.step - self._first_step)
        validator = self.parts.validator
        n_last = validator.n_events_planned(is_last=True)
        share = n_last / max(1, validator.n_events_planned())
        validation_s = VALIDATION_MARGIN * self.state.validation_s * share
        if validation_s == 0:
            # scoring an event costs less than learning from it, so this errs on the safe side
            validation_s = n_last * event_s
        return last_step_s + validation_s + self._save_s

    def _validate(self) -> None:
        started = time.monotonic()
        self.parts.step.check_kept(f"validation of step {self.state.step}")
        is_last = bool(self.state.stopped) or self.state.epoch >= self.settings.n_epochs
        with self.parts.step.best_weights() as model:
            result = self.parts.validator.run(
                model, self.state.progress, lambda: self.interruption.requested, is_last
            )
        if result is None:
            self._save_and_leave()
        self.parts.reporter.validation(result, self.state)
        self._validated_at = time.monotonic()
        self.parts.reporter.window.paused(self._validated_at - started)

    def _log(self) -> None:
        self.state.elapsed_s = time.monotonic() - self._started
        self.parts.reporter.point(self.state, self._rate, self.pace.n_steps_planned)

    def _save(self) -> None:
        started = time.monotonic()
        self.state.elapsed_s = started - self._started
        self.parts.keeper.save(self.state)
        self._saved_at = time.monotonic()
        self._save_s = self._saved_at - started
        self.parts.reporter.window.paused(self._save_s)

    def _save_and_leave(self) -> NoReturn:
        self._save()
        raise TrainingInterruptedError(
            "training was asked to stop",
            where=f"step {self.state.step}",
            found="SIGTERM",
            remedy="A checkpoint is written: the same command goes on from it",
        )
