"""The registered model: raw pulses in, directions out. MLflow runs this file to build it.

"Models from code": MLflow keeps this file and the model folder (safetensors, JSON, CSV) and nothing
pickled. Input is the raw schema, one row per pulse, the pulses of an event in any place; output is
one row per event, in order of first appearance. An event without a single valid pulse keeps its
row, with NaN, so that no caller loses count.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pandas as pd
import pyarrow as pa

from iceaggr.batches import iter_batches
from iceaggr.errors import ModelError, RawDataError
from iceaggr.evaluation.event_table import COLUMNS, predict_batches
from iceaggr.events.cleaning import Account, clean
from iceaggr.events.grouping import group_by_dom
from iceaggr.events.meta import EventTable
from iceaggr.events.pulses import PulseChunk, Pulses, decode_pulses
from iceaggr.events.schema import FLAG, PULSE_COLUMNS, exact_integers
from iceaggr.models.bundle import load_model
from iceaggr.storage import open_folder
from iceaggr.storage.uris import file_uri

log = logging.getLogger(__name__)


class RawPulseModel(mlflow.pyfunc.PythonModel):
    """Predicts azimuth, zenith (radians, direction to the origin) and kappa from raw pulses."""

    def load_context(self, context: Any) -> None:
        """Read the model folder, once.

        Raises: ModelError if it is damaged, or was saved without its batching.
        """
        path = Path(context.artifacts["model"])
        folder = file_uri(path)
        loaded = load_model(open_folder(path), folder)
        if loaded.experiment is None:
            raise ModelError(
                "saved model does not say how its events were batched",
                where=folder,
                found=f"facts {', '.join(loaded.facts) or '(none)'}",
                expected="facts with the key experiment",
                remedy="Save it with the configuration it was trained with",
            )
        self._model, self._detector = loaded.model, loaded.detector
        self._batching = loaded.experiment.batches

    def predict(self, context: Any, model_input: pd.DataFrame, params: Any = None) -> pd.DataFrame:
        """Predict every event of a table of raw pulses.

        model_input: event_id, sensor_id, time (ns), charge (p.e.), auxiliary; one row per pulse.
        Floats without a fraction and flags 0 and 1, as JSON and pandas make them, are taken too.
        Returns event_id int64, azimuth, zenith, kappa float64.
        Raises: RawDataError if a column is missing or of another kind, or a value cannot be taken
        without changing it.
        """
        pulses = _decode(model_input)
        event_id, first_row, event_idx = np.unique(
            pulses.event_id, return_index=True, return_inverse=True
        )
        by_appearance = np.argsort(first_row)
        rank = np.empty_like(by_appearance)
        rank[by_appearance] = np.arange(len(rank))
        chunk, events = _chunk_of(pulses, event_id[by_appearance], rank[event_idx])
        return self._predict(chunk, events)

    def _predict(self, chunk: PulseChunk, events: EventTable) -> pd.DataFrame:
        account = Account()
        cleaned = clean(chunk, events, self._detector, labelled=False, account=account)
        if account.rejected_pulses:
            log.warning("rejected pulses, by reason: %s", dict(account.rejected_pulses))
        asked_for = pd.DataFrame({"event_id": events.event_id})
        if not len(cleaned.events):
            return asked_for.reindex(columns=list(COLUMNS)).astype(dict.fromkeys(COLUMNS[1:], "f8"))
        grouped = group_by_dom(cleaned, events, self._detector)
        batches = iter_batches(iter([grouped]), self._detector, self._batching)
        predicted = predict_batches(self._model, batches)
        return asked_for.merge(predicted, on="event_id", how="left", validate="one_to_one")


def _decode(model_input: pd.DataFrame) -> Pulses:
    try:
        table = pa.Table.from_pandas(model_input, preserve_index=False)
        return decode_pulses(_with_whole_numbers(table), "model input")
    except (pa.ArrowException, ValueError, TypeError, OverflowError) as error:
        raise RawDataError(
            "pulses cannot be read",
            where="model input",
            found=" ".join(str(error).split())[:300],
            expected="event_id, sensor_id, time, charge, auxiliary: one number per pulse",
            remedy="Send one row per pulse in the layout of docs/data_formats.md",
        ) from None


def _with_whole_numbers(table: pa.Table) -> pa.Table:
    """Turn flags that came as floats into integers; ids and times are looked at by decoding."""
    for position, name in enumerate(table.column_names):
        if PULSE_COLUMNS.get(name) == FLAG:
            column = exact_integers(table.column(position), name, "model input", tell_row=True)
            table = table.set_column(position, name, column)
    return table


def _chunk_of(pulses: Any, event_id: Any, event_idx: Any) -> tuple[PulseChunk, EventTable]:
    """Bring the pulses of each event together, in the order of the table."""
    n_events = len(event_id)
    unlabelled = np.full(n_events, np.nan)
    table = EventTable(event_id, np.bincount(event_idx, minlength=n_events), unlabelled, unlabelled)
    return PulseChunk(0, n_events, 0, pulses.take(np.argsort(event_idx, kind="stable"))), table


mlflow.models.set_model(RawPulseModel())
