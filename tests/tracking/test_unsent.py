"""Outages that outlast a step: nothing is lost, the run goes on."""

import uuid

import pytest

from iceaggr.errors import TrackingError
from iceaggr.steps import context as step_context
from iceaggr.steps.context import make_context
from iceaggr.storage import open_store
from iceaggr.tracking.unsent import main, send_kept
from tests.tracking.outage import Door


@pytest.fixture
def door(mlflow_service, monkeypatch):
    door = Door(mlflow_service.mlflow_uri)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", door.uri)
    monkeypatch.setattr(step_context, "FINISH_WITHIN_S", 0.5)
    yield door
    door.shut()


@pytest.fixture
def come_back(door, monkeypatch):
    """Open the door; what is sent from then on has all the time it needs."""

    def call():
        door.open()
        monkeypatch.setattr(step_context, "FINISH_WITHIN_S", 60.0)

    return call


@pytest.fixture
def run(tmp_path):
    return make_context(uuid.uuid4().hex, "outages", tmp_path.as_uri(), {"name": "outage"})


@pytest.mark.integration
def test_step_that_begins_without_a_server_is_sent_by_the_next_one(come_back, run):
    with run.tracking("train_model") as tracker:
        assert tracker.run_id == ""
        tracker.log_metrics({"loss": 3.0}, 7)
        tracker.log_text("text", "late.txt")
    store = open_store()
    assert store.list(run.unsent_uri)
    come_back()
    with run.tracking("evaluate_model", end="FINISHED") as tracker:
        client, run_id = tracker.client, tracker.run_id
    assert not store.list(run.unsent_uri)
    (point,) = client.get_metric_history(run_id, "loss")
    assert (point.step, point.value) == (7, 3.0)
    assert [file.path for file in client.list_artifacts(run_id)] == ["late.txt"]
    found = client.get_run(run_id)
    assert found.info.status == "FINISHED"
    assert found.info.run_name == run.run_name
    assert found.data.tags["step/train_model"].startswith("done on ")


@pytest.mark.integration
def test_server_that_comes_back_during_a_step_gets_all_of_it(come_back, run):
    with run.tracking("train_model") as tracker:
        tracker.log_metrics({"loss": 3.0}, 7)
        come_back()
        assert tracker.flush() == 0
        assert tracker.client.get_run(tracker.run_id).data.metrics["loss"] == 3.0
    assert not open_store().list(run.unsent_uri)


@pytest.mark.integration
def test_unsent_records_are_replayed_by_hand(come_back, run, capsys):
    with run.tracking("train_model") as tracker:
        tracker.log_metrics({"loss": 3.0}, 7)
    assert send_kept(open_store(), run.unsent_uri) == 0, "the server is still away"
    come_back()
    assert main([run.unsent_uri]) == 0
    assert "records sent" in capsys.readouterr().out
    with run.tracking("look") as tracker:
        assert tracker.client.get_run(tracker.run_id).data.metrics["loss"] == 3.0


def test_first_step_of_a_run_insists_on_the_server(run, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    with pytest.raises(TrackingError, match="not reachable"), run.tracking("plan_shards"):
        pass


@pytest.mark.integration
def test_endpoint_of_kubeflows_plugin_is_enough(mlflow_service, run, monkeypatch):
    with run.tracking("plan_shards") as tracker:
        plugin_run = tracker.run_id
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    settings = f'{{"endpoint": "{mlflow_service.mlflow_uri}", "parentRunId": "{plugin_run}"}}'
    monkeypatch.setenv("KFP_MLFLOW_CONFIG", settings)
    with run.tracking("train_model") as tracker:
        assert tracker.run_id == plugin_run
