"""A tracking server that goes away for good after the first step: all but promotion succeeds."""

import json

import pytest

from iceaggr.config import ExperimentConfig
from iceaggr.events.simulation import SimulationConfig, simulate
from iceaggr.steps import context as step_context
from iceaggr.steps import promote_model as promotion
from iceaggr.steps.close_run import run_close_run
from iceaggr.steps.compute_statistics import run_compute_statistics
from iceaggr.steps.evaluate_model import run_evaluate_model
from iceaggr.steps.plan_shards import run_plan_shards, run_shard_events
from iceaggr.steps.run_folder import RunFolder
from iceaggr.steps.train_model import run_check_learning, run_train_model
from iceaggr.steps.training_choices import TrainingChoices
from iceaggr.storage import open_store
from iceaggr.tracking.unsent import main
from tests.tracking.outage import Door

pytestmark = [pytest.mark.integration, pytest.mark.slow]

SETTINGS = {
    "name": "outage",
    "data": {"n_events_per_shard": 128, "test_share": 0.2},
    "batches": {"n_events": 64},
    "model": {"d_model": 16, "n_heads": 2, "n_dom_layers": 1, "n_event_layers": 1, "dropout": 0.0},
    "training": {"n_epochs": 2, "learning_rate": 2e-3},
    "learning_check": {"n_steps": 10, "n_events_per_batch": 32},
    "evaluation": {"n_bootstrap": 100, "n_displays": 0, "refine_events": 0},
    "promotion": {"model_name": "outage"},
}


@pytest.fixture
def door(mlflow_service, monkeypatch):
    door = Door(mlflow_service.mlflow_uri)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", door.uri)
    monkeypatch.setattr(step_context, "FINISH_WITHIN_S", 0.5)
    monkeypatch.setattr(promotion, "PATIENCE_S", 1.0)
    door.open()
    yield door
    door.shut()


@pytest.fixture
def run(tmp_path):
    raw_uri = (tmp_path / "raw").as_uri()
    simulate(open_store(), raw_uri, SimulationConfig(n_events=600, n_events_per_file=600, seed=4))
    config = ExperimentConfig.model_validate(SETTINGS)
    return RunFolder.create(tmp_path / "run", raw_uri, "", "outages", config)


def run_later_steps(run, context, units):
    for index, unit in enumerate(units):
        run_shard_events(context, unit, run.unit_manifest(index))
    run_compute_statistics(
        context,
        run.unit_manifests(),
        manifest_path=run.manifest,
        normalization_path=run.normalization,
        data_card_path=run.data_card,
    )
    run_check_learning(context, run.manifest, run.normalization, run.learning_table)
    run_train_model(
        context, run.manifest, run.normalization, model_path=run.model, choices=TrainingChoices()
    )
    paths = {"evaluation_path": run.evaluation, "report_path": run.report}
    run_evaluate_model(context, run.manifest, run.model, run.raw_uri, **paths)
    paths = {"summary_path": run.summary, "verdict_path": run.verdict}
    return promotion.run_promote_model(context, run.manifest, run.model, run.evaluation, **paths)


def test_run_without_its_server_fails_at_promotion_alone_and_says_where_its_metrics_lie(door, run):
    context = run.context()
    units = run_plan_shards(context, run.raw_uri)
    door.shut()
    with pytest.raises(promotion.PromotionError) as told:
        run_later_steps(run, context, units)
    assert str(told.value).startswith("promotion did not happen: tracking server not reachable [")
    assert context.unsent_uri in str(told.value)
    assert run_close_run(context, "FAILED") == "FAILED"
    summary = json.loads(run.summary.read_text())
    assert (summary["promoted"], summary["promotion"]) == (False, "not compared")
    assert summary["reason"].startswith("promotion did not happen: ")
    assert "not promoted" not in summary["reason"]
    assert run.verdict.read_text().endswith(f"{summary['reason']}\n")
    assert open_store().list(summary["model_uri"])

    door.open()
    assert main([context.unsent_uri]) == 0
    with context.tracking("look", end="FINISHED") as tracker:
        client, run_id = tracker.client, tracker.run_id
    data = client.get_run(run_id).data
    assert (data.tags["promoted"], data.tags["promotion"]) == ("undecided", "not compared")
    assert data.metrics["test/mean_deg"] == pytest.approx(summary["mean_opening_angle_deg"])
    assert client.get_metric_history(run_id, "train/loss")
    assert "step/close_run" in data.tags
    reports = [file.path for file in client.list_artifacts(run_id, "evaluation")]
    names = {"report.html", "methods.csv", "bins.csv"}
    assert {f"evaluation/{name}" for name in names} <= set(reports)
    for name in names:
        beside = run.report.with_name(name).read_bytes()
        assert beside == open_store().read_bytes(f"{context.run_uri}/evaluation/{name}")
