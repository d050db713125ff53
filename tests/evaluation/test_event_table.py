"""The event table: counted like a loop would, each event once, truth complete."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from iceaggr.batches import collate
from iceaggr.batches.collation import join_batches
from iceaggr.config import BatchConfig
from iceaggr.detector import icecube86
from iceaggr.errors import EvaluationError
from iceaggr.evaluation.event_table import concatenate, event_sizes, join_truth, score_batch
from iceaggr.evaluation.prediction import predict_batch
from tests.evaluation.track_events import LineFitModel, track_batch, truth_of
from tests.shards.dom_events_builder import random_dom_events

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
