"""The model card: what it counts, and which failures it shows."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from iceaggr.batches import EventLoader
from iceaggr.config import ExperimentConfig
from iceaggr.detector import icecube86
from iceaggr.evaluation.event_table import concatenate, predict_batch, score_batch
from iceaggr.models import build_model
from iceaggr.models.bundle import LoadedModel
from iceaggr.normalization_document import Normalization
from iceaggr.steps.champion import batches_of
from iceaggr.steps.documents import AngleRow, EvaluationPointer, ModelPointer
from iceaggr.steps.model_card import failure_facts, find_events, make_card, worst_events
from iceaggr.storage import open_store
from tests.batches.shard_builder import write_shards

SMALL = {"d_model": 16, "n_heads": 2, "n_dom_layers": 1, "n_event_layers": 1}


@pytest.fixture(scope="module")
def loaded() -> LoadedModel:
    settings = {"model": SMALL, "loss": {"kind": "von_mises_fisher"}}
    experiment = ExperimentConfig.model_validate(settings)
    torch.manual_seed(0)
    model = build_model(experiment.model, Normalization.seed()).eval()
    return LoadedModel(model, icecube86(), {"experiment": experiment.model_dump(mode="json")})


def table_of(**columns: object) -> pd.DataFrame:
    return pd.DataFrame({"event_id": np.arange(len(next(iter(columns.values())))), **columns})


def test_worst_events_are_wrong_for_their_confidence():
    angles, kappa = np.array([170.0, 3.0, 60.0, 90.0, 20.0]), np.array([0.1, 1e4, 900.0, 5.0, 50.0])
    events = table_of(opening_angle_deg=angles, kappa=kappa)
    # 170 degrees at kappa 0.1 is no surprise: whoever knows nothing is that wrong at times
    assert worst_events(events, by_confidence=True)["event_id"].tolist() == [2, 1, 3]
    assert worst_events(events, by_confidence=False)["event_id"].tolist() == [0, 3, 2]


def test_failures_are_counted():
    angles = np.array([50.0, 10.0, 120.0, 45.0, 1.0])
    events = table_of(
        opening_angle_deg=angles,
        kappa=np.array([300.0, 300.0, 1.0, 201.0, 5000.0]),
        n_pulses=np.array([9, 50, 60, 70, 80]),
        topology=np.array(["track", "track", "cascade", "cascade", "track"]),
        coincident_muon=np.array([True, False, False, False, False]),
    )
    facts = failure_facts(events)
    assert (
        facts["kappa above 200 and yet more than 40 deg wrong"]
        == "2 of 4 such sure events (50.0 %)"
    )
    assert facts["more than 90 deg wrong"].startswith("20.0 %")
    assert facts["cascades"] == "mean 82.5 deg, 2 events"
    assert facts["with a coincident muon"] == "mean 50.0 deg, 1 event"
    assert facts["without one"] == "mean 44.0 deg, 4 events"


def test_card_shows_the_events_it_names(tmp_path: Path, loaded: LoadedModel):
    store, manifest = open_store(), write_shards(tmp_path, [200, 100], split="test")
    loader = EventLoader(store, manifest, "test", loaded.detector, batches_of(loaded))
    parts = [
        score_batch(batch, predict_batch(loaded.model, batch, "cpu")) for batch in loader.epoch(0)
    ]
    events = concatenate(parts)
    worst = worst_events(events, by_confidence=True)
    found = find_events(store, manifest, loaded, worst)
    assert [event.event_id for event in found] == worst["event_id"].tolist()
    for event, row in zip(found, worst.to_dict("records"), strict=True):
        cosine = float(np.clip(event.true @ event.predicted, -1, 1))
        assert np.rad2deg(np.arccos(cosine)) == pytest.approx(row["opening_angle_deg"], abs=0.1)
        assert event.charge_pe.sum() == pytest.approx(row["charge_pe"], rel=1e-4)
    headline = EvaluationPointer(
        model_digest="m", data_digest=manifest.digest(), events_uri="e", events_sha256="s",
        report_uri="r", n_events=len(events), table=(row_of(events),), refined="40 of 99",
    )  # fmt: skip
    pointer = ModelPointer(
        model_uri="u", manifest_digest=manifest.digest(), mlflow_run_id="", n_steps=12,
        stopped_because="epochs", started_from="scratch",
    )  # fmt: skip
    card = make_card(store, manifest, loaded, pointer, headline, events, "some-name")
    assert card.html.count("<img") == 3
    assert "- predict --refine: 40 of 99\n" in card.text
    for words in (
        "some-name",
        "40 of 99",
        "12 steps from scratch",
        manifest.digest(),
        "in ice",
    ):
        assert words in card.html, words
    assert f"{events['opening_angle_deg'].mean():.2f} ± " in card.text
    assert len(card.text) < 5000, "MLflow keeps no longer description"


def row_of(events: pd.DataFrame) -> AngleRow:
    angle = events["opening_angle_deg"]
    figures = {"mean_deg": angle.mean(), "median_deg": angle.median(), "p68_deg": 1.0}
    errors = dict.fromkeys(("mean_error_deg", "median_error_deg", "p68_error_deg"), 0.1)
    return AngleRow(name="model", title="This model", **figures, **errors)
