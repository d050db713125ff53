import json
import math
import time
import uuid
from concurrent.futures import ThreadPoolExecutor

import pytest

from iceaggr.errors import TrackingError
from iceaggr.tracking import run_target
from iceaggr.tracking.connection import connect
from iceaggr.tracking.outbox import RECORDS, RunSender
from iceaggr.tracking.run import fetch_run_file, open_tracker
from iceaggr.tracking.unsent import replay
from tests.tracking.outage import Door

EXPERIMENT = "tracking tests"


def unique_id():
    return uuid.uuid4().hex


def opened(step="step", run_id=None, uri=""):
    return open_tracker(uri, EXPERIMENT, run_id or unique_id(), "a run", step)


@pytest.fixture
def tracker(mlflow_service):
    tracker = opened()
    yield tracker
    tracker.finish()


@pytest.fixture
def door(mlflow_service):
    door = Door(mlflow_service.mlflow_uri)
    door.open()
    yield door
    door.shut()


def history(tracker, key):
    points = tracker.client.get_metric_history(tracker.run_id, key)
    return sorted((point.step, point.value) for point in points)


@pytest.mark.integration
def test_steps_that_start_together_share_one_run(mlflow_service, monkeypatch):
    # they agree as long as no run takes longer to create; on a busy machine one may
    monkeypatch.setattr(run_target, "_SETTLE_S", 6.0)
    run_id = unique_id()
    with ThreadPoolExecutor(4) as pool:
        trackers = list(pool.map(lambda step: opened(step, run_id), "abcd"))
    retried = opened("a", run_id)
    assert len({tracker.run_id for tracker in [*trackers, retried]}) == 1
    experiment = retried.client.get_experiment_by_name(EXPERIMENT).experiment_id
    found = retried.client.search_runs([experiment], f"tags.`iceaggr.pipeline_run_id` = '{run_id}'")
    assert len(found) == 1
    for tracker in [*trackers, retried]:
        assert tracker.finish() is None


@pytest.mark.integration
def test_run_ends_with_its_last_step_and_runs_again_on_a_retry(mlflow_service):
    run_id = unique_id()
    with opened("first", run_id) as first:
        pass

    def status():
        return first.client.get_run(first.run_id).info.status

    assert status() == "RUNNING"
    with pytest.raises(ZeroDivisionError, match="division"), opened("second", run_id):
        raise ZeroDivisionError("division by zero")
    assert status() == "FAILED"
    failed = first.client.get_run(first.run_id).data.tags["step/second"]
    assert failed.startswith("failed on ")
    retried = opened("second", run_id)
    assert status() == "RUNNING"
    retried.finish("FINISHED")
    run = first.client.get_run(first.run_id)
    assert run.info.status == "FINISHED"
    assert run.data.tags["step/first"].startswith("done on ")
    assert run.data.tags["step/second"].startswith("done on ")
    assert "iceaggr.created_by" not in run.data.tags


@pytest.mark.integration
def test_params_are_prefixed_flattened_and_kept_whole(tracker):
    tracker.log_params({"name": "n", "training": {"learning_rate": 3e-4, "rates": (1, 2)}})
    tracker.log_params({"long": "x" * 10_000, "many": {f"key{i}": i for i in range(250)}})
    assert tracker.flush() == 0
    params = tracker.client.get_run(tracker.run_id).data.params
    assert all(key.startswith("config/") for key in params)
    assert params["config/name"] == "n"
    assert params["config/training/learning_rate"] == "0.0003"
    assert params["config/training/rates"] == "[1, 2]"
    assert params["config/many/key249"] == "249"
    assert len(params["config/long"]) == 6000
    paths = [file.path for file in tracker.client.list_artifacts(tracker.run_id, "params")]
    assert paths == ["params/long.txt"]


@pytest.mark.integration
def test_param_that_differs_on_a_retry_is_shown_and_blocks_nothing(tracker):
    tracker.log_params({"a": 1, "b": 2})
    assert tracker.flush() == 0
    tracker.log_params({"a": 5, "b": 2, "c": 3})
    tracker.log_metrics({"after": 1.0})
    assert tracker.flush() == 0
    data = tracker.client.get_run(tracker.run_id).data
    assert data.params == {"config/a": "1", "config/b": "2", "config/c": "3"}
    assert data.tags["changed/config/a"] == "5"
    assert data.metrics["after"] == 1.0


@pytest.mark.integration
def test_metrics_keep_every_point_also_those_that_are_no_numbers(tracker):
    for step in range(500):
        tracker.log_metrics({"loss": 1 / (step + 1), "odd (name) %": 1.0}, step)
    tracker.log_metrics({"broken": math.nan, "boundless": -math.inf}, 3)
    assert tracker.flush() == 0
    assert history(tracker, "loss") == [(step, 1 / (step + 1)) for step in range(500)]
    assert len(history(tracker, "odd _name_ _")) == 500
    for key in ("broken", "boundless"):
        ((step, value),) = history(tracker, key)
        assert step == 3
        assert math.isnan(value)


@pytest.mark.integration
def test_files_and_texts_arrive_even_if_the_caller_deletes_them(tracker, tmp_path):
    (tmp_path / "f.csv").write_text("a,b")
    tracker.log_file(tmp_path / "f.csv", "tables")
    (tmp_path / "f.csv").unlink()
    tracker.log_text("<b>ü</b>", "reports/r.html")
    assert tracker.flush() == 0
    target = tmp_path / "fetched"
    target.mkdir()
    tracker.client.download_artifacts(tracker.run_id, "", str(target))
    assert (target / "tables" / "f.csv").read_text() == "a,b"
    assert (target / "reports" / "r.html").read_text(encoding="utf-8") == "<b>ü</b>"
    with pytest.raises(TrackingError, match=r"no such file to track \[.*f\.csv\]"):
        tracker.log_file(tmp_path / "f.csv", "tables")


@pytest.mark.integration
def test_dataset_and_surroundings_are_recorded(tracker):
    tracker.log_dataset("events", "0123456789abcdef", "s3://b/raw", "training", {"n_events": 7})
    assert tracker.flush() == 0
    run = tracker.client.get_run(tracker.run_id)
    (given,) = run.inputs.dataset_inputs
    assert (given.dataset.name, given.dataset.digest) == ("events", "0123456789abcdef")
    assert json.loads(given.dataset.source) == {"uri": "s3://b/raw"}
    assert json.loads(given.dataset.profile) == {"n_events": 7}
    assert {tag.value for tag in given.tags} == {"training"}
    assert "cores" in run.data.tags["step/step"]
    assert "iceaggr 0" in run.data.tags["code/versions"]


@pytest.mark.integration
@pytest.mark.parametrize("injected", ["MLFLOW_RUN_ID", "KFP_MLFLOW_CONFIG"])
def test_run_of_kubeflows_plugin_is_used_instead_of_an_own_one(
    mlflow_service, monkeypatch, injected
):
    with opened() as parent:
        client = parent.client
    experiment = client.get_experiment_by_name(EXPERIMENT).experiment_id
    plugin_run = client.create_run(experiment, run_name="made by the plugin").info.run_id
    client.log_param(plugin_run, "raw_uri", '"s3://quoted by the launcher"')
    settings = {"endpoint": mlflow_service.mlflow_uri, "parentRunId": plugin_run}
    value = plugin_run if injected == "MLFLOW_RUN_ID" else json.dumps(settings)
    monkeypatch.setenv(injected, value)
    with opened() as tracker:
        tracker.log_params({"raw_uri": "s3://ours"})
    assert tracker.run_id == plugin_run
    params = client.get_run(plugin_run).data.params
    assert params == {
        "raw_uri": '"s3://quoted by the launcher"',
        "config/raw_uri": "s3://ours",
    }


@pytest.mark.integration
def test_outage_delays_nothing_and_loses_nothing(door):
    tracker = opened(uri=door.uri)
    tracker.log_metrics({"loss": 0.0}, 0)
    assert tracker.flush() == 0
    door.shut()
    before = time.monotonic()
    for step in range(1, 400):
        tracker.log_metrics({"loss": float(step)}, step)
    tracker.log_text("text", "from/the_outage.txt")
    # were they sent at once, each would wait for the server: minutes
    assert time.monotonic() - before < 15
    assert tracker.flush(within_s=1.0) > 0
    door.open()
    assert tracker.flush() == 0
    assert history(tracker, "loss") == [(step, float(step)) for step in range(400)]
    assert [f.path for f in tracker.client.list_artifacts(tracker.run_id, "from")] == [
        "from/the_outage.txt"
    ]
    assert tracker.finish() is None


@pytest.mark.integration
def test_server_down_for_good_leaves_a_folder_that_can_be_replayed(door, caplog):
    tracker = opened(uri=door.uri)
    assert tracker.flush() == 0
    door.shut()
    tracker.log_metrics({"loss": 1.0}, 1)
    tracker.log_text("text", "late.txt")
    spool = tracker.finish("FINISHED", within_s=0.5)
    assert (spool / RECORDS).is_file()
    assert f"python -m iceaggr.tracking.unsent {spool}" in caplog.text
    with pytest.raises(TrackingError, match="not reachable"):
        replay(spool)
    door.open()
    assert replay(spool) == 4  # metric, text, tag of the step, status
    assert not spool.exists()
    assert history(tracker, "loss") == [(1, 1.0)]
    assert tracker.client.get_run(tracker.run_id).info.status == "FINISHED"


@pytest.mark.integration
def test_refused_point_does_not_take_the_others_with_it(tracker):
    sender = RunSender(tracker.client, tracker.run_id)
    point = {"kind": "metric", "value": 1.0, "step": 0, "timestamp_ms": 1}
    keys = ["good", "(refused)", "better"]
    sender.send([{**point, "key": key} for key in keys])
    assert sender.n_refused == 1
    assert set(tracker.client.get_run(tracker.run_id).data.metrics) == {"good", "better"}


def test_missing_server_is_told_within_seconds():
    before = time.monotonic()
    with pytest.raises(TrackingError, match=r"not reachable \[http://127\.0\.0\.1:9\]: found"):
        opened(uri="http://127.0.0.1:9")
    assert time.monotonic() - before < 20


def test_missing_address_is_told(monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    with pytest.raises(TrackingError, match="no tracking server given"):
        opened()


def test_damaged_plugin_settings_are_told(monkeypatch):
    monkeypatch.setenv("KFP_MLFLOW_CONFIG", "[1, 2")
    with pytest.raises(TrackingError, match="KFP_MLFLOW_CONFIG is not a JSON object"):
        opened()


@pytest.mark.integration
@pytest.mark.parametrize("run_id", ["", 'with "quotes"'])
def test_impossible_pipeline_run_id_is_refused(mlflow_service, run_id):
    with pytest.raises(TrackingError, match="not the id of a pipeline run"):
        open_tracker("", EXPERIMENT, run_id, "a run", "step")


# Runs are found by whatever a user sees of them: name, its beginning, id, address.

pytestmark = pytest.mark.integration
FILE = "evaluation/events.parquet"


def make_run(name, text=""):
    with open_tracker("", "run files", uuid.uuid4().hex, name, "step") as tracker:
        if text:
            tracker.log_text(text, FILE)
    return tracker.run_id


@pytest.fixture
def stem(mlflow_service):
    return f"config{uuid.uuid4().hex[:8]}"


def test_run_is_found_by_what_users_see(stem, tmp_path):
    name = f"{stem}-one"
    run_id = make_run(name, "the events")
    address = f"http://127.0.0.1:5000/#/experiments/1/runs/{run_id}/artifacts"
    for number, run in enumerate((name, run_id, f"runs:/{run_id}", address, stem)):
        found = fetch_run_file(run, FILE, tmp_path / str(number))
        assert (found.run_name, found.run_id) == (name, run_id)
        assert found.path.read_text() == "the events"


def test_file_of_a_step_is_found_by_the_pipelines_run(stem, tmp_path):
    """Kubeflow's plugin keeps each step in a run of its own, below that of the pipeline."""
    parent = make_run(f"{stem}-pipeline")
    child = make_run(f"{stem}-evaluate-model", "the events")
    connect("").set_tag(child, "mlflow.parentRunId", parent)
    found = fetch_run_file(f"{stem}-pipeline", FILE, tmp_path)
    assert (found.run_name, found.run_id) == (f"{stem}-pipeline", parent)
    assert found.path.read_text() == "the events"


def test_run_that_is_not_the_only_one_or_not_there_is_told_with_those_that_are(stem, tmp_path):
    run_id = make_run(f"{stem}-one")
    make_run(f"{stem}-two")
    several = rf"several runs are meant \[{stem}\]: found .*{stem}-one \({run_id}\)"
    with pytest.raises(TrackingError, match=several):
        fetch_run_file(stem, FILE, tmp_path)
    with pytest.raises(TrackingError, match=rf"no such run \[nobody\]: found newest .*{stem}-two"):
        fetch_run_file("nobody", FILE, tmp_path)
    with pytest.raises(TrackingError, match=rf"no such file \[{stem}-one\].*evaluation is done"):
        fetch_run_file(run_id, FILE, tmp_path)
