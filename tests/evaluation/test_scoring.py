"""One pass over the events: the same table in any batching; displays are the right events."""

import numpy as np
import pandas as pd
import pytest

from iceaggr.batches import EventBatch
from iceaggr.batches.collation import join_batches
from iceaggr.config import EvaluationConfig
from iceaggr.evaluation.baselines import TITLES
from iceaggr.evaluation.scoring import N_SPARE_SNAPSHOTS, score_events
from tests.evaluation.track_events import LineFitModel, track_batch


class ConstantKappaModel(LineFitModel):
    """Gives every event the same kappa, whatever its place in the batch."""

    def forward(self, batch: EventBatch):
        output = super().forward(batch)
        output.kappa[:] = self.kappa
        return output


BATCHES = [track_batch(30, seed=seed, first_event_id=100 * seed) for seed in range(4)]
CONFIG = EvaluationConfig(n_displays=2)


def test_scores_do_not_depend_on_the_batching():
    one_by_one = score_events(ConstantKappaModel(), BATCHES, CONFIG).events
    backwards = score_events(ConstantKappaModel(), BATCHES[::-1], CONFIG).events
    at_once = score_events(ConstantKappaModel(), [join_batches(BATCHES)], CONFIG).events
    pd.testing.assert_frame_equal(one_by_one, backwards)
    pd.testing.assert_frame_equal(one_by_one, at_once, atol=1e-3)


def test_every_method_is_scored_on_every_event():
    scored = score_events(LineFitModel(), BATCHES, CONFIG)
    for name in TITLES:
        column = "opening_angle_deg" if name == "model" else f"{name}_angle_deg"
        assert scored.events[column].between(0, 180).all()
    assert set(scored.seconds_per_event) == set(TITLES) - {"random", "constant"}


def test_likelihood_fit_is_left_out_when_configured():
    config = EvaluationConfig(likelihood_fit=False)
    scored = score_events(LineFitModel(), BATCHES[:1], config)
    assert "likelihood_fit_angle_deg" not in scored.events
    assert "improved_line_fit_angle_deg" in scored.events


def test_scoring_stops_after_the_batch_that_reaches_the_limit():
    config = EvaluationConfig(max_events=31)
    progress: list[int] = []
    scored = score_events(LineFitModel(), BATCHES, config, progress.append)
    assert progress == [30, 60]
    assert len(scored.events) == 60


def test_displays_are_the_best_the_typical_and_the_worst_events():
    scored = score_events(LineFitModel(blur=0.5), BATCHES, CONFIG)
    by_angle = scored.events.sort_values("opening_angle_deg")["event_id"].tolist()
    shown = [(kind, event.event_id) for kind, event in scored.displays]
    assert shown[:2] == [("Best", by_angle[0]), ("Best", by_angle[1])]
    assert shown[4:] == [("Worst", by_angle[-1]), ("Worst", by_angle[-2])]
    angle = scored.events["opening_angle_deg"]
    for kind, event in scored.displays[2:4]:
        assert kind == "Median"
        assert angle.quantile(0.4) < event.angle_deg < angle.quantile(0.6)


def test_displays_keep_few_events_however_many_pass():
    from iceaggr.evaluation.event_table import score_batch
    from iceaggr.evaluation.prediction import predict_batch
    from iceaggr.evaluation.scoring import Gallery

    gallery, model = Gallery(2, seed=0), LineFitModel()
    batch = BATCHES[0]
    predictions = predict_batch(model, batch, "cpu")
    for _ in range(30):
        gallery.offer(batch, score_batch(batch, predictions), predictions.direction.numpy())
    assert len(gallery._spare) == N_SPARE_SNAPSHOTS
    assert len(gallery.choose(10.0)) == 6


def test_snapshot_holds_the_hits_of_its_own_event():
    scored = score_events(LineFitModel(), BATCHES, CONFIG)
    rows = scored.events.set_index("event_id")
    for _, event in scored.displays:
        row = rows.loc[event.event_id]
        assert len(event.charge_pe) == row["n_doms"]
        assert event.charge_pe.sum() == pytest.approx(row["charge_pe"], rel=1e-6)
        assert event.angle_deg == pytest.approx(row["opening_angle_deg"])
        cosine = np.clip(event.true @ event.predicted, -1, 1)
        assert np.rad2deg(np.arccos(cosine)) == pytest.approx(event.angle_deg, abs=1e-4)
        assert event.triggering.sum() <= row["n_non_auxiliary"]
