"""Runs are found by whatever a user sees of them: name, its beginning, id, address."""

import uuid

import pytest

from iceaggr.errors import TrackingError
from iceaggr.tracking.connection import connect
from iceaggr.tracking.run import open_tracker
from iceaggr.tracking.run_files import fetch_run_file

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
