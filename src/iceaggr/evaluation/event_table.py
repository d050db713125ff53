"""The event table: one row per scored event, everything that slices and plots need."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch
from torch import Tensor

from iceaggr.angles import azimuth_zenith, opening_angle
from iceaggr.batches.event_batch import EventBatch
from iceaggr.errors import EvaluationError
from iceaggr.evaluation.baselines import true_direction
from iceaggr.evaluation.calibration import negative_log_likelihood, probability_inside
from iceaggr.evaluation.prediction import Predictions
from iceaggr.events.truth import TRUTH_COLUMNS

Columns = dict[str, npt.NDArray[np.generic]]


def score_batch(batch: EventBatch, predictions: Predictions) -> Columns:
    """Measure each event of a minibatch once.

    Returns columns of length B: event_id, azimuth, zenith, kappa (predicted), true_azimuth,
    true_zenith (radians), opening_angle_deg, bias_x, bias_y, bias_z (predicted minus true unit
    vector) and the size of the event (`event_sizes`).
    Raises: EvaluationError if the minibatch has no labels.
    """
    if batch.direction is None:
        raise EvaluationError(
            "events have no true direction",
            where="evaluation",
            found="an unlabelled batch",
            expected="labelled events",
            remedy="Use `iceaggr predict` for unlabelled events",
        )
    true = true_direction(batch)
    azimuth, zenith = azimuth_zenith(true)
    bias = (predictions.direction - true).numpy()
    return {
        **predictions.columns(),
        "true_azimuth": azimuth.numpy(),
        "true_zenith": zenith.numpy(),
        "opening_angle_deg": torch.rad2deg(opening_angle(predictions.direction, true)).numpy(),
        "bias_x": bias[:, 0],
        "bias_y": bias[:, 1],
        "bias_z": bias[:, 2],
        **event_sizes(batch),
    }


def event_sizes(batch: EventBatch) -> Columns:
    """Count what each event holds: n_pulses, n_doms, n_non_auxiliary (int64), charge_pe (float64).

    Pulses and DOMs are the event's own, with those beyond the configured caps; of the latter the
    minibatch knows neither charge nor kind, so n_non_auxiliary and charge_pe are within the caps.
    """
    dom_offsets = batch.event_dom_offsets.cpu().numpy()
    pulse_offsets = batch.dom_pulse_offsets.cpu().numpy()[dom_offsets]
    triggering = ~batch.auxiliary.cpu().numpy()
    charge_pe = batch.charge_pe.cpu().numpy().astype(np.float64)
    return {
        "n_pulses": np.diff(pulse_offsets) + _dropped(batch.event_pulses_dropped),
        "n_doms": np.diff(dom_offsets) + _dropped(batch.event_doms_dropped),
        "n_non_auxiliary": _segment_sums(triggering.astype(np.int64), pulse_offsets),
        "charge_pe": _segment_sums(charge_pe, pulse_offsets),
    }


def _dropped(per_event: Tensor | None) -> npt.NDArray[np.int64] | int:
    return 0 if per_event is None else per_event.cpu().numpy()


def concatenate(parts: list[Columns]) -> pd.DataFrame:
    """Join the columns of all minibatches into one table, sorted by event_id.

    Raises: EvaluationError if there is no event, or one was scored twice.
    """
    if not parts:
        raise EvaluationError(
            "no event to score",
            where="test split",
            found="none",
            expected="at least one labelled event",
            remedy="The test split is empty: use more events or a larger data.test_share",
        )
    events = pd.DataFrame(
        {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    )
    twice = events["event_id"][events["event_id"].duplicated()]
    if len(twice):
        raise EvaluationError(
            "events were scored twice",
            where=f"event_id {twice.iloc[0]}",
            found=f"{len(twice)} repeated events",
            expected="each event once",
            remedy="Shard the raw events again: an event belongs to one shard",
        )
    return events.sort_values("event_id", kind="stable", ignore_index=True)


def join_truth(events: pd.DataFrame, truth: pd.DataFrame | None) -> pd.DataFrame:
    """Add the simulated truth of each event: those of TRUTH_COLUMNS that the truth has.

    Raises: EvaluationError if the truth lists an event twice or lacks some of the events.
    """
    if truth is None:
        return events
    known = [name for name in TRUTH_COLUMNS if name in truth]
    twice = truth["event_id"][truth["event_id"].duplicated()]
    if len(twice):
        raise EvaluationError(
            "truth lists an event twice",
            where=f"event_id {twice.iloc[0]}",
            found=f"{len(twice)} repeated rows",
            expected="one row per event_id",
            remedy="Remove the truth file that was added twice",
        )
    missing = ~events["event_id"].isin(truth["event_id"])
    if missing.any():
        raise EvaluationError(
            "truth lacks events",
            where=f"event_id {events['event_id'][missing].iloc[0]}",
            found=f"{int(missing.sum())} of {len(events)} events without truth",
            expected="a row for every test event, or no truth at all",
            remedy="Give the truth/ folder that was written with these events",
        )
    return events.merge(truth[["event_id", *known]], on="event_id", how="left")


def angles_of(events: pd.DataFrame, method: str) -> npt.NDArray[np.float64]:
    """Read the opening angles of the model or of a baseline: (N,) degrees."""
    column = "opening_angle_deg" if method == "model" else f"{method}_angle_deg"
    return events[column].to_numpy(np.float64)


def pit_of(events: pd.DataFrame) -> npt.NDArray[np.float64]:
    """Compute the probability integral transform of each event: (N,), see `probability_inside`."""
    angle_rad = np.deg2rad(angles_of(events, "model"))
    return np.asarray(probability_inside(angle_rad, events["kappa"].to_numpy()), np.float64)


def nats_of(events: pd.DataFrame) -> npt.NDArray[np.float64]:
    """Compute the model's negative log-likelihood of each true direction: (N,) nats."""
    angle_rad = np.deg2rad(angles_of(events, "model"))
    return np.asarray(negative_log_likelihood(angle_rad, events["kappa"].to_numpy()), np.float64)


def _segment_sums(
    values: npt.NDArray[np.generic], offsets: npt.NDArray[np.int64]
) -> npt.NDArray[np.generic]:
    total = np.concatenate([np.zeros(1, values.dtype), np.cumsum(values)])
    return total[offsets[1:]] - total[offsets[:-1]]
