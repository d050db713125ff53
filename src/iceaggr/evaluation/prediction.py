"""Prediction: any number of events through a model, in bounded memory."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa
import torch
from torch import Tensor, nn

from iceaggr.angles import azimuth_zenith
from iceaggr.batches.event_batch import EventBatch
from iceaggr.errors import EvaluationError

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
) -> Iterator[pa.Table]:
    """Predict events as a stream of tables of at least n_rows_per_table rows, the last one shorter.

    Columns as `predict_batches`; memory holds one table and one minibatch, however many events.
    Raises: EvaluationError if a prediction is not finite.
    """
    pending: list[pa.Table] = []
    for predictions in _predictions(model, batches, device):
        pending.append(pa.table(predictions.columns(), schema=PREDICTION_SCHEMA))
        if sum(table.num_rows for table in pending) >= n_rows_per_table:
            yield pa.concat_tables(pending).combine_chunks()
            pending = []
    if pending:
        yield pa.concat_tables(pending).combine_chunks()


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
