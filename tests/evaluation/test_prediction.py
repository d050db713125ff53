"""Prediction: the same numbers in any batching, in bounded memory, never NaN."""

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest
import torch

from iceaggr.angles import opening_angle, unit_vector
from iceaggr.batches.event_batch import EventBatch
from iceaggr.errors import EvaluationError
from iceaggr.evaluation.prediction import COLUMNS, predict_batches, stream_predictions
from iceaggr.reconstruction import line_fit
from tests.evaluation.track_events import LineFitModel, Output, track_batch


def batches(n_batches: int, n_events: int = 8) -> Iterator[EventBatch]:
    for number in range(n_batches):
        yield track_batch(n_events, seed=number, first_event_id=1000 * number)


def test_predictions_have_one_row_per_event_in_the_order_of_the_batches():
    table = predict_batches(LineFitModel(), batches(3))
    assert tuple(table.columns) == COLUMNS
    expected = [1000 * number + row for number in range(3) for row in range(8)]
    assert table["event_id"].tolist() == expected
    assert table["azimuth"].between(0, 2 * np.pi, inclusive="left").all()
    assert table["zenith"].between(0, np.pi).all()


def test_predictions_are_the_directions_of_the_model():
    table = predict_batches(LineFitModel(blur=0.0), batches(1))
    found = unit_vector(torch.tensor(table["azimuth"]), torch.tensor(table["zenith"]))
    expected = line_fit(track_batch(8, seed=0)).direction.double()
    assert opening_angle(found, expected).max() < 1e-6


def test_predictions_of_unlabelled_events_are_the_same():
    bare = (replace(batch, direction=None) for batch in batches(2))
    assert predict_batches(LineFitModel(), bare).equals(predict_batches(LineFitModel(), batches(2)))


def test_predictions_of_no_events_are_an_empty_table():
    table = predict_batches(LineFitModel(), [])
    assert tuple(table.columns) == COLUMNS
    assert len(table) == 0


def test_stream_yields_a_table_before_the_batches_end():
    n_drawn = 0

    def counted() -> Iterator[EventBatch]:
        nonlocal n_drawn
        for batch in batches(6):
            n_drawn += 1
            yield batch

    stream = stream_predictions(LineFitModel(), counted(), n_rows_per_table=16)
    assert next(stream).num_rows == 16
    assert n_drawn == 2
    assert [table.num_rows for table in stream] == [16, 16]


def test_prediction_leaves_the_model_in_its_mode():
    model = LineFitModel().train()
    seen = []
    model.register_forward_pre_hook(lambda module, _: seen.append(module.training))
    predict_batches(model, batches(1))
    assert model.training
    assert seen == [False]


def test_prediction_names_the_event_when_kappa_is_nan():
    class Broken(LineFitModel):
        def forward(self, batch: EventBatch) -> Output:
            output = super().forward(batch)
            output.kappa[3] = torch.nan
            return output

    with pytest.raises(EvaluationError, match=r"not finite \[event_id 3\]: found 1 of 8"):
        predict_batches(Broken(), batches(1))
