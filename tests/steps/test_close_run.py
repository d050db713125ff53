from dataclasses import replace

import pytest
from kubernetes import client

from iceaggr.config import ExperimentConfig
from iceaggr.machines.job_api import JobApi
from iceaggr.machines.train_job import build_train_job
from iceaggr.signals import TerminatedError, TrainingInterruptedError
from iceaggr.steps import close_run
from iceaggr.steps import context as step_context
from iceaggr.steps.close_run import (
    KEPT_DAYS,
    delete_given_up,
    delete_temporary,
    end_status,
    note_unfinished,
    run_close_run,
    who_stopped,
)
from iceaggr.steps.context import RunContext
from iceaggr.storage.file_store import FileStore
from tests.machines.kubernetes_stand_in import KubernetesStandIn
from tests.machines.test_train_job import order
from tests.stand_in import Answer, StandIn
from tests.tracking.outage import Door

LEFT = (
    "checkpoints/step-1/model.safetensors",
    "checkpoints/latest.json",
    "has_checkpoints.json",
    "request/request.json",
    "start/model.json",
    "start.json",
)


@pytest.fixture
def failed(tmp_path):
    """A failed run with all that a retry needs, and its note."""
    context = RunContext("failed-run", "x", tmp_path.as_uri(), ExperimentConfig(), tracked=False)
    store = context.open_store()
    for name in (*LEFT, "model/m.json"):
        store.write_bytes(f"{context.run_uri}/training/{name}", b"x")
    note_unfinished(store, context, "FAILED")
    return context


@pytest.fixture
def later(failed):
    return replace(failed, run_id="later-run")


@pytest.fixture
def days_pass(monkeypatch):
    """Let time pass for the module under test."""
    real = close_run.time.time

    def pass_(days):
        monkeypatch.setattr(close_run.time, "time", lambda: real() + days * 24 * 3600)

    return pass_


def left(context):
    found = context.open_store().list(f"{context.run_uri}/training/")
    return {item.uri.split("/training/")[1] for item in found}


def notes(context):
    return context.open_store().list(f"{context.work_uri}/unfinished_runs/")


def test_delete_given_up_leaves_a_run_that_may_be_retried(failed, later, days_pass):
    days_pass(KEPT_DAYS - 1)
    assert delete_given_up(later.open_store(), later) == 0
    assert len(left(failed)) == len(LEFT) + 1


def test_delete_given_up_deletes_what_no_retry_came_for(failed, later, days_pass):
    days_pass(KEPT_DAYS + 1)
    assert delete_given_up(later.open_store(), later) == len(LEFT) - 1
    assert left(failed) == {"model/m.json"}
    assert notes(failed) == []


def test_delete_given_up_leaves_a_run_that_went_on(failed, later, days_pass):
    newer = f"{failed.run_uri}/training/checkpoints/latest.json"
    failed.open_store().write_bytes(newer, b"newer")
    days_pass(KEPT_DAYS + 1)
    assert delete_given_up(later.open_store(), later) == 0
    assert len(left(failed)) == len(LEFT) + 1


class StoppingStore(FileStore):
    """Is killed at the n-th deletion."""

    def __init__(self, n_deletions):
        self.n_left = n_deletions

    def delete(self, uri):
        if self.n_left == 0:
            raise KeyboardInterrupt
        self.n_left -= 1
        super().delete(uri)


@pytest.mark.parametrize("n_deletions", range(len(LEFT) - 1))
def test_delete_temporary_killed_half_way_keeps_the_pointer_and_is_repeated(failed, n_deletions):
    with pytest.raises(KeyboardInterrupt):
        delete_temporary(StoppingStore(n_deletions), failed.paths.training)
    # with it the rest is an incomplete checkpoint: neither a beginning nor a mark without one
    assert "checkpoints/latest.json" in left(failed)
    assert (
        delete_temporary(failed.open_store(), failed.paths.training) == len(LEFT) - 1 - n_deletions
    )
    assert left(failed) == {"start.json", "model/m.json"}


def test_close_run_forgets_a_run_whose_retry_succeeded(failed):
    failed.open_store().write_bytes(f"{failed.run_uri}/summary.json", b"{}")
    assert run_close_run(failed, "COMPLETE") == "FINISHED"
    assert notes(failed) == []


@pytest.mark.parametrize("state", ["FAILED", "RUNNING"])
def test_close_run_notes_a_run_without_success(later, state):
    run_close_run(later, state)
    assert [item.uri.rpartition("/")[2] for item in notes(later)] == [
        "failed-run.json",
        "later-run.json",
    ]


def test_close_run_closes_although_a_note_of_another_run_is_damaged(failed, later, capfd):
    failed.open_store().write_bytes(notes(failed)[0].uri, b"{}")
    assert run_close_run(later, "FAILED") == "FAILED"
    told = capfd.readouterr().out
    assert "those of earlier runs stay: not the note about an unfinished run" in told


@pytest.fixture
def run(tmp_path):
    """An untracked run with two checkpoints and a model."""
    context = RunContext("run-1", "x", tmp_path.as_uri(), ExperimentConfig(), tracked=False)
    store = context.open_store()
    for name in ("checkpoints/latest.json", "checkpoints/step-1/model.safetensors", "model/m.json"):
        store.write_bytes(f"{context.run_uri}/training/{name}", b"x")
    return context


def names(context):
    return [item.uri.split("/training/")[1] for item in context.open_store().list(context.run_uri)]


def summed_up(context):
    context.open_store().write_bytes(f"{context.work_uri}/runs/run-1/summary.json", b"{}")


@pytest.mark.parametrize("state", ["COMPLETE", "SUCCEEDED"])
def test_close_run_deletes_what_a_finished_run_needs_no_more(run, state):
    temporary = ("start/3/model.json", "request/manifest.json", "has_checkpoints.json")
    for name in (*temporary, "start.json"):
        run.open_store().write_bytes(f"{run.run_uri}/training/{name}", b"x")
    run.open_store().write_bytes(f"{run.work_uri}/runs/run-2/training/checkpoints/latest.json", b"")
    summed_up(run)
    assert run_close_run(run, state) == "FINISHED"
    left = [item.uri.removeprefix(run.work_uri) for item in run.open_store().list(run.work_uri)]
    assert left == [
        "/runs/run-1/summary.json",
        "/runs/run-1/training/model/m.json",
        "/runs/run-1/training/start.json",
        "/runs/run-2/training/checkpoints/latest.json",
    ]


@pytest.mark.parametrize(("state", "end"), [("FAILED", "FAILED"), ("RUNNING", "KILLED")])
def test_close_run_keeps_the_checkpoints_that_a_retry_needs(run, state, end):
    assert run_close_run(run, state) == end
    assert len(names(run)) == 3


def test_close_run_can_be_repeated(run):
    summed_up(run)
    assert [run_close_run(run, "COMPLETE") for _ in range(2)] == ["FINISHED", "FINISHED"]


def test_end_status_does_not_believe_in_success_without_a_summary():
    assert end_status("COMPLETE", has_summary=False) == "FAILED"
    assert end_status("COMPLETE", has_summary=True) == "FINISHED"
    assert end_status("", has_summary=False) == "KILLED"


@pytest.fixture
def kfp():
    """A stand-in for the API of Kubeflow Pipelines that answers with a state, or refuses."""

    class Kfp(StandIn):
        state = ""

        def answer(self, request):
            assert request.path == "/apis/v2beta1/runs/run-1"
            status = 200 if self.state else 401
            return Answer.of({"run_id": "run-1", "state": self.state}, status)

    with Kfp() as server:
        yield server


@pytest.mark.parametrize(
    ("state", "status", "words"),
    [
        ("CANCELING", "KILLED", "by a person"),
        ("RUNNING", "FAILED", "ended by the platform"),
        ("", "KILLED", "did not tell"),
    ],
)
def test_run_stopped_from_outside_is_told_as_who_stopped_it(kfp, state, status, words):
    kfp.state = state
    pod = {"KUBERNETES_SERVICE_HOST": "x", "ICEAGGR_KFP_API": kfp.url}
    found, reason = who_stopped("run-1", pod)
    assert found == status
    assert words in reason


def test_api_that_restarts_is_waited_for_before_a_run_is_told_as_killed(kfp, monkeypatch):
    kfp.state = "RUNNING"
    pod = {"KUBERNETES_SERVICE_HOST": "x", "ICEAGGR_KFP_API": f"{kfp.url}/"}
    for status in (503, 0, 500):
        kfp.fail("GET", ".*", status)
    assert who_stopped("run-1", pod)[0] == "FAILED"
    assert kfp.failures == []
    monkeypatch.setattr(close_run, "_PATIENCE_S", 0.1)
    for _ in range(100):
        kfp.fail("GET", ".*", 503)
    status, reason = who_stopped("run-1", pod)
    assert status == "KILLED"
    assert f"did not tell whether by a person ({kfp.url}: HTTP Error 503" in reason


def test_api_that_asks_for_a_login_is_not_waited_for(kfp):
    pod = {"KUBERNETES_SERVICE_HOST": "x", "ICEAGGR_KFP_API": kfp.url}
    assert who_stopped("run-1", pod)[0] == "KILLED"
    assert len(kfp.requests) == 1


def test_nobody_is_asked_who_stopped_a_run_outside_a_cluster(kfp):
    kfp.state = "RUNNING"
    assert who_stopped("run-1", {"ICEAGGR_KFP_API": kfp.url})[0] == "KILLED"


def test_close_run_ends_a_train_job_that_nobody_waits_for(run, monkeypatch):
    with KubernetesStandIn() as server:
        settings = client.Configuration()
        settings.host = server.url
        api = JobApi(client.ApiClient(settings), "runs")
        monkeypatch.setattr(JobApi, "of_this_pod", staticmethod(lambda: api))
        api.create(build_train_job(replace(order(), run_id=run.run_id)))
        # outside a cluster, and in a run that never asked for processes, nobody is asked
        run_close_run(run, "FAILED")
        monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "x")
        run_close_run(run, "FAILED")
        assert len(server.jobs) == 1
        run.open_store().write_bytes(f"{run.run_uri}/training/request/request.json", b"{}")
        run_close_run(run, "FAILED")
        assert server.jobs == {}


@pytest.mark.integration
def test_close_run_sets_the_state_of_the_mlflow_run(mlflow_service, tmp_path):
    from mlflow import MlflowClient

    context = RunContext("run-7", "closing", tmp_path.as_uri(), ExperimentConfig())
    with context.tracking("plan_shards"):
        pass
    run_close_run(context, "CANCELED")
    client = MlflowClient(mlflow_service.mlflow_uri)
    experiment = client.get_experiment_by_name("closing").experiment_id
    (found,) = client.search_runs([experiment])
    assert found.info.status == "KILLED"
    assert "did not tell whether by a person" in found.data.tags["end_reason"]


@pytest.mark.integration
def test_step_that_is_asked_to_stop_leaves_its_mlflow_run_to_its_retry(mlflow_service, tmp_path):
    from mlflow import MlflowClient

    context = RunContext("run-8", "stopping", tmp_path.as_uri(), ExperimentConfig())
    client = MlflowClient(mlflow_service.mlflow_uri)

    def found():
        experiment = client.get_experiment_by_name("stopping").experiment_id
        return client.search_runs([experiment])[0]

    for stopped in (TerminatedError(), TrainingInterruptedError("asked to stop")):
        with pytest.raises(type(stopped)), context.tracking("train_model"):
            raise stopped
        assert found().info.status == "RUNNING"
        assert found().data.tags["step/train_model"].startswith("interrupted on")
    with pytest.raises(ValueError, match="x"), context.tracking("train_model"):
        raise ValueError("x")
    assert (found().info.status, found().data.tags["failed_step"]) == ("FAILED", "train_model")
    with context.tracking("train_model"):
        pass
    assert found().info.status == "RUNNING"
    with context.tracking("close_run", end="FINISHED"):
        pass
    assert found().info.status == "FINISHED"
    assert not {"failed_step", "failure"} & set(found().data.tags)


@pytest.fixture
def outage(mlflow_service, monkeypatch):
    door = Door(mlflow_service.mlflow_uri)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", door.uri)
    monkeypatch.setattr(step_context, "FINISH_WITHIN_S", 0.5)
    door.open()
    yield door
    door.shut()


@pytest.mark.integration
def test_next_run_sends_how_a_run_ended_while_mlflow_was_away(outage, tmp_path, capfd, monkeypatch):
    name = f"closing {tmp_path.name}"
    first = RunContext("run-1", name, tmp_path.as_uri(), ExperimentConfig())
    with first.tracking("plan_shards") as tracker:
        client, run_id = tracker.client, tracker.run_id
    summed_up(first)
    outage.shut()
    with first.tracking("train_model") as tracker:
        tracker.log_metrics({"train/loss": 2.5}, 3)
    assert run_close_run(first, "COMPLETE") == "FINISHED"
    store = first.open_store()
    assert len({item.uri.rsplit("/", 2)[1] for item in store.list(first.unsent_uri)}) == 2
    # what cannot be sent does not keep the rest from it
    store.write_bytes(f"{first.unsent_uri.rpartition('/')[0]}/run-0/damaged/run.json", b"{")
    outage.open()
    assert client.get_run(run_id).info.status == "RUNNING"

    monkeypatch.setattr(step_context, "FINISH_WITHIN_S", 60.0)
    later = replace(first, run_id="run-2")
    assert run_close_run(later, "FAILED") == "FAILED"
    assert client.get_run(run_id).info.status == "FINISHED"
    assert client.get_run(run_id).data.metrics["train/loss"] == 2.5
    assert not store.list(first.unsent_uri)
    told = capfd.readouterr().out
    assert "tracking records of 1 earlier runs sent" in told
    assert "run-0 stay: not a folder of unsent tracking records" in told
