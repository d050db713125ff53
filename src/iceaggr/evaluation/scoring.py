"""Scoring: one pass over the test events with the model and every baseline."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch
from torch import nn

from iceaggr.angles import unit_vector
from iceaggr.batches.event_batch import EventBatch
from iceaggr.config import EvaluationConfig
from iceaggr.evaluation.baselines import (
    BaselineTimer,
    chosen_fits,
    constant_angles_deg,
    random_angles_deg,
    true_direction,
)
from iceaggr.evaluation.event_display import EventSnapshot, snapshot
from iceaggr.evaluation.event_table import Columns, concatenate, score_batch
from iceaggr.evaluation.prediction import predict_batch

N_SPARE_SNAPSHOTS = 128
"""Events drawn at random while scoring, among which the median displays are found."""


@dataclass(frozen=True)
class ScoredEvents:
    """The result of one pass over the test events.

    events: one row per event, sorted by event_id, with <baseline>_angle_deg for every baseline.
    seconds_per_event: of the model and the classical fits; failed_share: of events that
    a fit could not reconstruct; displays: (`Best` | `Median` | `Worst`, event) in this order.
    """

    events: pd.DataFrame
    seconds_per_event: dict[str, float]
    failed_share: dict[str, float]
    displays: list[tuple[str, EventSnapshot]]


def score_events(
    model: nn.Module,
    batches: Iterable[EventBatch],
    config: EvaluationConfig,
    on_progress: Callable[[int], None] | None = None,
) -> ScoredEvents:
    """Run the model and the classical fits on labelled events, once.

    on_progress: called with the number of events scored so far after each minibatch.
    Raises: EvaluationError for unlabelled, repeated or no events and non-finite predictions.
    """
    device = next((parameter.device for parameter in model.parameters()), torch.device("cpu"))
    timer, gallery = BaselineTimer(chosen_fits(config)), Gallery(config.n_displays, config.seed)
    parts: list[Columns] = []
    n_scored, model_seconds = 0, 0.0
    was_training = model.training
    model.eval()
    try:
        for batch in batches:
            started = time.perf_counter()
            predictions = predict_batch(model, batch, device)
            model_seconds += time.perf_counter() - started
            columns = score_batch(batch, predictions)
            gallery.offer(batch, columns, predictions.direction.numpy())
            fits = timer.angles_deg(batch)
            parts.append({**columns, **{f"{name}_angle_deg": fits[name] for name in fits}})
            n_scored += batch.n_events
            if on_progress is not None:
                on_progress(n_scored)
            if config.max_events and n_scored >= config.max_events:
                break
    finally:
        model.train(was_training)
    events = _add_constant_and_random(concatenate(parts), config.seed)
    seconds = {"model": model_seconds, **timer.seconds}
    return ScoredEvents(
        events=events,
        seconds_per_event={name: spent / n_scored for name, spent in seconds.items()},
        failed_share={name: failed / n_scored for name, failed in timer.n_failed.items()},
        displays=gallery.choose(float(events["opening_angle_deg"].median())),
    )


class Gallery:
    """Keeps the few events worth a display while events stream by, in bounded memory."""

    def __init__(self, n_each: int, seed: int) -> None:
        self._n_each = n_each
        self._rng = np.random.default_rng(seed)
        self._n_seen = 0
        self._best: list[EventSnapshot] = []
        self._worst: list[EventSnapshot] = []
        self._spare: list[EventSnapshot] = []

    def offer(
        self, batch: EventBatch, columns: Columns, predicted: npt.NDArray[np.float64]
    ) -> None:
        """Look at a scored minibatch; predicted: (B, 3) unit vectors."""
        if not self._n_each:
            return
        angle_deg, kappa = columns["opening_angle_deg"], columns["kappa"]
        true = true_direction(batch).numpy()

        def take(row: int) -> EventSnapshot:
            taken = snapshot(batch, row, true[row], predicted[row])
            return replace(taken, angle_deg=float(angle_deg[row]), kappa=float(kappa[row]))

        order = np.argsort(angle_deg, kind="stable")
        best = [take(int(row)) for row in order[: self._n_each]]
        worst = [take(int(row)) for row in order[::-1][: self._n_each]]
        self._best = sorted([*self._best, *best], key=_by_angle)[: self._n_each]
        self._worst = sorted([*self._worst, *worst], key=_by_angle)[-self._n_each :]
        self._sample(take, batch.n_events)

    def choose(self, median_deg: float) -> list[tuple[str, EventSnapshot]]:
        """Name the best, the median and the worst events seen."""
        spare = sorted(self._spare, key=lambda event: abs(event.angle_deg - median_deg))
        median = [("Median", event) for event in spare[: self._n_each]]
        best = [("Best", event) for event in self._best]
        return [*best, *median, *(("Worst", event) for event in reversed(self._worst))]

    def _sample(self, take: Callable[[int], EventSnapshot], n_events: int) -> None:
        """Keep a uniform sample of all events so far (reservoir sampling)."""
        place = self._n_seen + np.arange(n_events)
        lot = (self._rng.random(n_events) * (place + 1)).astype(np.int64)
        for row in np.flatnonzero(lot < N_SPARE_SNAPSHOTS):
            if len(self._spare) < N_SPARE_SNAPSHOTS:
                self._spare.append(take(int(row)))
            else:
                self._spare[lot[row]] = take(int(row))
        self._n_seen += n_events


def _by_angle(event: EventSnapshot) -> float:
    return event.angle_deg


def _add_constant_and_random(events: pd.DataFrame, seed: int) -> pd.DataFrame:
    azimuth = torch.from_numpy(events["true_azimuth"].to_numpy(copy=True))
    zenith = torch.from_numpy(events["true_zenith"].to_numpy(copy=True))
    true = unit_vector(azimuth, zenith)
    return events.assign(
        random_angle_deg=random_angles_deg(true, seed),
        constant_angle_deg=constant_angles_deg(true),
    )
