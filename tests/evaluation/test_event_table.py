"""The event table: counted like a loop would, each event once, truth complete."""

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch

from iceaggr.angles import opening_angle, unit_vector
from iceaggr.batches import collate
from iceaggr.batches.collation import join_batches
from iceaggr.batches.event_batch import EventBatch
from iceaggr.config import BatchConfig
from iceaggr.detector import icecube86
from iceaggr.errors import EvaluationError
from iceaggr.evaluation.event_table import (
    COLUMNS,
    concatenate,
    event_sizes,
    join_truth,
    predict_batch,
    predict_batches,
    score_batch,
    stream_predictions,
)
from iceaggr.reconstruction import line_fit
from tests.evaluation.track_events import LineFitModel, Output, track_batch, truth_of
from tests.shards.dom_events_builder import random_dom_events

# Prediction: the same numbers in any batching, in bounded memory, never NaN.


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


BATCH = track_batch(12, seed=5)


def scored() -> dict[str, np.ndarray]:
    return score_batch(BATCH, predict_batch(LineFitModel(), BATCH, "cpu"))


def test_event_sizes_agree_with_a_loop():
    found = event_sizes(BATCH)
    for row in range(BATCH.n_events):
        doms = range(*BATCH.event_dom_offsets[row : row + 2].tolist())
        first = int(BATCH.dom_pulse_offsets[doms.start])
        last = int(BATCH.dom_pulse_offsets[doms.stop])
        assert found["n_doms"][row] == len(doms)
        assert found["n_pulses"][row] == last - first
        assert found["n_non_auxiliary"][row] == int((~BATCH.auxiliary[first:last]).sum())
        expected = float(BATCH.charge_pe[first:last].double().sum())
        assert found["charge_pe"][row] == pytest.approx(expected, rel=1e-9)


def test_event_sizes_count_pulses_and_doms_beyond_the_caps():
    events = random_dom_events(30, seed=2, median_pulses=100)
    caps = BatchConfig(max_doms_per_event=20, max_pulses_per_dom=1)
    batches = [collate(events, rows, icecube86(), caps) for rows in np.split(np.arange(30), 3)]
    found = event_sizes(join_batches(batches))
    assert np.array_equal(found["n_doms"], np.diff(events.event_dom_offsets))
    assert np.array_equal(found["n_pulses"], np.diff(events.event_pulse_offsets()))
    assert found["n_doms"].max() > 20
    assert (found["n_non_auxiliary"] <= 20).all()


def test_score_measures_angle_and_bias_consistently():
    found = scored()
    bias = np.stack([found[f"bias_{axis}"] for axis in "xyz"])
    # a chord of the unit sphere has length 2 sin(angle / 2)
    chord = 2 * np.sin(np.deg2rad(found["opening_angle_deg"]) / 2)
    assert np.linalg.norm(bias, axis=0) == pytest.approx(chord, rel=1e-9)


def test_score_refuses_unlabelled_events():
    bare = replace(BATCH, direction=None)
    with pytest.raises(EvaluationError, match=r"no true direction.*iceaggr predict"):
        score_batch(bare, predict_batch(LineFitModel(), bare, "cpu"))


def test_concatenate_sorts_by_event():
    table = concatenate([scored()])
    backwards = concatenate([{name: values[::-1] for name, values in scored().items()}])
    assert table["event_id"].is_monotonic_increasing
    pd.testing.assert_frame_equal(table, backwards)


def test_concatenate_refuses_an_event_scored_twice():
    with pytest.raises(EvaluationError, match=r"scored twice \[event_id 0\]: found 12 repeated"):
        concatenate([scored(), scored()])


def test_concatenate_refuses_no_events():
    with pytest.raises(EvaluationError, match=r"no event to score.*test split is empty"):
        concatenate([])


def test_truth_is_joined_by_event_whatever_its_order():
    truth = truth_of([BATCH])
    joined = join_truth(concatenate([scored()]), truth.sample(frac=1, random_state=0))
    assert joined["energy_gev"].tolist() == truth["energy_gev"].tolist()
    assert joined["topology"].tolist() == truth["topology"].tolist()


def test_truth_must_have_every_event():
    with pytest.raises(EvaluationError, match=r"truth lacks events \[event_id 11\]: found 1 of 12"):
        join_truth(concatenate([scored()]), truth_of([BATCH]).head(11))


def test_truth_must_have_an_event_once():
    truth = truth_of([BATCH])
    with pytest.raises(EvaluationError, match="truth lists an event twice"):
        join_truth(concatenate([scored()]), pd.concat([truth, truth.head(1)]))
