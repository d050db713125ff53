"""The event table: one row per scored event, everything that slices and plots need."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import torch
from torch import Tensor, nn

from iceaggr.angles import azimuth_zenith, opening_angle, unit_vector
from iceaggr.batches.event_batch import EventBatch
from iceaggr.errors import EvaluationError, naming
from iceaggr.evaluation.calibration import (
    containment_angle,
    negative_log_likelihood,
    probability_inside,
)
from iceaggr.events.label_reading import WORDS, LabelReading
from iceaggr.events.truth import TRUTH_COLUMNS
from iceaggr.reconstruction.refinement import Refiner
from iceaggr.storage.file_store import partial_file, replace_durably
from iceaggr.validation import shown

# Prediction: any number of events through a model, in bounded memory.

COLUMNS = ("event_id", "azimuth", "zenith", "kappa")
"""Columns of every table of predictions: int64, then float64 (radians, radians, number)."""

PREDICTION_SCHEMA = pa.schema(
    [(COLUMNS[0], pa.int64()), *((name, pa.float64()) for name in COLUMNS[1:])]
)


@dataclass(frozen=True)
class Predictions:
    """What the model says about one minibatch, on the CPU.

    event_id: (B,) int64; direction: (B, 3) float64 unit vector to the origin; kappa: (B,) float64.
    """

    event_id: npt.NDArray[np.int64]
    direction: Tensor
    kappa: npt.NDArray[np.float64]

    def columns(self) -> dict[str, npt.NDArray[np.generic]]:
        """Lay out as COLUMNS, angles in radians."""
        azimuth, zenith = azimuth_zenith(self.direction)
        values = (self.event_id, azimuth.numpy(), zenith.numpy(), self.kappa)
        return dict(zip(COLUMNS, values, strict=True))


def true_direction(batch: EventBatch) -> Tensor:
    """Give the labels as (B, 3) float64 unit vectors on the CPU."""
    assert batch.direction is not None, "only labelled events are scored"
    direction = batch.direction.to("cpu", torch.float64)
    return direction / torch.linalg.vector_norm(direction, dim=-1, keepdim=True)


def predict_batch(model: nn.Module, batch: EventBatch, device: torch.device | str) -> Predictions:
    """Predict one minibatch with a model that is in evaluation mode.

    Raises: EvaluationError naming the events whose direction or kappa is not finite.
    """
    with torch.inference_mode():
        output = model(batch.to(device))
        direction = output.direction.to("cpu", torch.float64)
        kappa = output.kappa.to("cpu", torch.float64)
    bad = ~(torch.isfinite(direction).all(dim=-1) & torch.isfinite(kappa))
    if bad.any():
        events = batch.event_id.cpu()[bad].tolist()
        raise EvaluationError(
            "predictions are not finite",
            where=f"event_id {', '.join(str(event) for event in events[:5])}",
            found=f"{len(events)} of {batch.n_events} events of a batch",
            expected="finite directions and kappa",
            remedy="Check these events with `iceaggr stats`, or the weights of the model",
        )
    # a unit vector in the model's precision is not one in float64, and angles are taken there
    direction = direction / torch.linalg.vector_norm(direction, dim=-1, keepdim=True)
    return Predictions(batch.event_id.cpu().numpy(), direction.clone(), kappa.numpy())


def predict_batches(
    model: nn.Module, batches: Iterable[EventBatch], device: torch.device | str = "cpu"
) -> pd.DataFrame:
    """Predict every event: columns event_id, azimuth, zenith (radians), kappa, one row per event.

    Raises: EvaluationError if a prediction is not finite.
    """
    tables = list(stream_predictions(model, batches, device))
    return pa.concat_tables([PREDICTION_SCHEMA.empty_table(), *tables]).to_pandas()


def stream_predictions(
    model: nn.Module,
    batches: Iterable[EventBatch],
    device: torch.device | str = "cpu",
    n_rows_per_table: int = 65536,
    refiner: Refiner | None = None,
) -> Iterator[pa.Table]:
    """Predict events as a stream of tables of at least n_rows_per_table rows, the last one shorter.

    refiner: has the last word on bright events, if it watches the chunks of the batches.
    Columns as `predict_batches`; memory holds one table and one minibatch, however many events.
    Raises: EvaluationError if a prediction is not finite.
    """
    pending: list[pa.Table] = []
    for predictions in _predictions(model, batches, device):
        if refiner:
            predictions = _refined(predictions, refiner)
        pending.append(pa.table(predictions.columns(), schema=PREDICTION_SCHEMA))
        if sum(table.num_rows for table in pending) >= n_rows_per_table:
            yield pa.concat_tables(pending).combine_chunks()
            pending = []
    if pending:
        yield pa.concat_tables(pending).combine_chunks()


def _refined(predictions: Predictions, refiner: Refiner) -> Predictions:
    found = refiner(predictions.event_id, predictions.direction.numpy(), predictions.kappa)
    return Predictions(predictions.event_id, torch.from_numpy(found.direction), found.kappa)


def _predictions(
    model: nn.Module, batches: Iterable[EventBatch], device: torch.device | str
) -> Iterator[Predictions]:
    was_training = model.training
    model.eval()
    try:
        for batch in batches:
            yield predict_batch(model, batch, device)
    finally:
        model.train(was_training)


def write_predictions(
    tables: Iterable[pa.Table], output: Path, schema: pa.Schema = PREDICTION_SCHEMA
) -> int:
    """Stream predictions to a temporary name beside the file, which appears when it is complete.

    Returns the number of events.  Raises: OSError that names the file.
    """
    n_events = 0
    with partial_file(output) as partial:
        with _writer(partial, output, schema) as writer:
            for table in tables:
                # not around the tables: a raw file that cannot be read is another one
                with naming(output):
                    writer.write_table(table.select(writer.schema.names))
                n_events += table.num_rows
        with naming(output):
            replace_durably(partial, output)
    return n_events


@contextmanager
def _writer(partial: Path, output: Path, schema: pa.Schema) -> Iterator[Any]:
    with naming(output):
        if output.suffix == ".csv":
            writer = _SubmissionWriter(partial)
        else:
            writer = pq.ParquetWriter(partial, schema)
    try:
        yield writer
    except BaseException:
        with suppress(OSError, pa.ArrowException):  # what it could not write is told already
            writer.close()
        raise
    with naming(output):
        writer.close()


class _SubmissionWriter(pa.csv.CSVWriter):
    """Writes the columns that the public competition scores, without kappa."""

    schema = pa.schema([PREDICTION_SCHEMA.field(name) for name in COLUMNS[:3]])

    def __init__(self, path: Path) -> None:
        super().__init__(path, self.schema)


# Scoring: each event measured once, its truth beside it.

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
            where="test events",
            found="none",
            expected="at least one labelled event",
            remedy="The test split is empty: use more events or a larger data.test_share; of raw"
            " events, none has both a label and a valid pulse",
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
    return derived_truth(events.merge(truth[["event_id", *known]], on="event_id", how="left"))


def derived_truth(events: pd.DataFrame) -> pd.DataFrame:
    """Add what follows from other truth: topology and neutrino_muon_angle (radians).

    A track is the charged current of a muon neutrino. Without a muon its angle is NaN.
    """
    columns = set(events.columns)
    if "topology" not in columns and {"interaction", "flavour"} <= columns:
        charged = events["interaction"] == "cc"
        is_track = charged & (events["flavour"].abs() == 14)
        events = events.assign(topology=np.where(is_track, "track", "cascade"))
    if "neutrino_muon_angle" not in columns and {"muon_azimuth", "muon_zenith"} <= columns:
        muon = directions(events, "muon_azimuth", "muon_zenith")
        angle = opening_angle(muon, directions(events, "true_azimuth", "true_zenith"))
        events = events.assign(neutrino_muon_angle=angle.numpy())
    return events


def directions(events: pd.DataFrame, azimuth: str, zenith: str) -> Tensor:
    """Read two columns of angles, radians, as (N, 3) float64 unit vectors."""
    columns = (events[name].to_numpy(np.float64, copy=True) for name in (azimuth, zenith))
    return unit_vector(*map(torch.from_numpy, columns))


def measured(events: pd.DataFrame, predicted: Tensor) -> pd.DataFrame:
    """Measure all events at once: opening_angle_deg and bias_x, bias_y, bias_z.

    events: with true_azimuth and true_zenith, radians.  predicted: (N, 3) float64 unit vectors.
    Whoever holds the same vectors has the same figures to the last bit.
    """
    true = directions(events, "true_azimuth", "true_zenith")
    bias = (predicted - true).numpy()
    named = {f"bias_{axis}": bias[:, place] for place, axis in enumerate("xyz")}
    angle_deg = torch.rad2deg(opening_angle(predicted, true)).numpy()
    return events.assign(opening_angle_deg=angle_deg, **named)


def listing(
    events: pd.DataFrame, fits: Mapping[str, str], refined: pd.DataFrame | None = None
) -> str:
    """Lay few events out as a Markdown table: a row for each, all angles in degrees.

    fits: name -> title, of those whose angles to the truth are shown beside the model's. refined:
    rows of some events with refined_angle_deg, too few for a mean. Column 68 % is the radius of the
    region in which kappa claims the truth with 68 %. The last row has means with standard errors.
    """
    shown = pd.DataFrame({"event": events["event_id"].map(str), "pulses": events["n_pulses"]})
    for name in ("zenith", "azimuth"):
        true_deg = np.rad2deg(events[f"true_{name}"].to_numpy(np.float64))
        shown[name] = [f"{one:.1f}" for one in true_deg.tolist()]
    angles = {title: angles_of(events, name) for name, title in fits.items()}
    angles["model"] = angles_of(events, "model")
    last = ["mean", "", "", ""]
    for title, angle_deg in angles.items():
        shown[title] = [f"{one:.1f}" for one in angle_deg.tolist()]
        mean, n = float(angle_deg.mean()), len(angle_deg)
        error = f" ± {float(angle_deg.std(ddof=1)) / math.sqrt(n):.1f}" if n > 1 else ""
        last.append(f"{mean:.1f}{error}")
    kappa = events["kappa"].to_numpy(np.float64)
    shown["kappa"] = [f"{one:.0f}" if one > 99.5 else f"{one:.3g}" for one in kappa.tolist()]
    shown["68 %"] = np.rad2deg(containment_angle(kappa, 0.68)).round().astype(int)
    if refined is not None and len(refined):
        found = refined.set_index("event_id")["refined_angle_deg"].reindex(events["event_id"])
        shown["refined"] = ["" if np.isnan(one) else f"{one:.1f}" for one in found]
    last += [""] * (len(shown.columns) - len(last))
    rows = [[str(cell) for cell in row] for row in (shown.columns, *shown.values, last)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    rows.insert(1, [f"{'-' * (width - 1)}:" for width in widths])
    padded = ([c.rjust(width) for c, width in zip(row, widths, strict=True)] for row in rows)
    return "\n".join(f"| {' | '.join(row)} |" for row in padded)


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


# What a stored table says of itself, beside its rows.

_METADATA = b"iceaggr"


def with_facts(table: pa.Table, facts: Mapping[str, Any]) -> pa.Table:
    """Let a table say what it is, in its schema. facts: see `facts_of` of prediction files."""
    said = {**(table.schema.metadata or {}), _METADATA: json.dumps(facts).encode()}
    return table.replace_schema_metadata(said)


def facts_in(schema: pa.Schema) -> dict[str, Any]:
    """Take what a table says of itself, {} if nothing. Raises: ValueError if it is no JSON."""
    said = json.loads((schema.metadata or {}).get(_METADATA, b"{}"))
    return said if isinstance(said, dict) else {}


def reading_in(facts: Mapping[str, Any], where: str) -> LabelReading:
    """Take how the set's truth is meant; another model's file says nothing.

    Raises: EvaluationError if a word is none.
    """
    words = facts.get("label_reading") or []
    if not set(words) <= set(WORDS):
        raise _damaged(where, f"label_reading {words}", f"words of {', '.join(WORDS)}")
    return LabelReading.of(words)


def failed_share_in(facts: Mapping[str, Any], where: str) -> dict[str, float]:
    """Take the share of events that each fit could not reconstruct, where it is said.

    Raises: EvaluationError if one is no share.
    """
    found = facts.get("failed_share") or {}
    shares = found if isinstance(found, dict) else {"": None}
    if not all(isinstance(one, int | float) and 0 <= one <= 1 for one in shares.values()):
        raise _damaged(where, f"failed_share {shown(found)}", "a share from 0 to 1 by fit")
    return dict(shares)


def _damaged(where: str, found: str, expected: str) -> EvaluationError:
    return EvaluationError(
        "the file's own note is damaged",
        where=where,
        found=found,
        expected=expected,
        remedy="Write the file anew",
    )
