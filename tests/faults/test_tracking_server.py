"""The tracking server slow, faulty, refusing: what the steps make of it, against the real one.

Down at the start, in the middle and at the end, and back again: tests/steps/test_tracking_outage.py
and tests/tracking.
"""

from __future__ import annotations

import time
import uuid

import pytest
from mlflow import MlflowClient

from iceaggr.errors import TrackingError
from iceaggr.steps import context as step_context
from iceaggr.tracking.run_target import PIPELINE_RUN_TAG
from tests.faults.fault_plan import FaultPlan
from tests.faults.fault_proxy import FaultProxy
from tests.faults.pipeline_runs import STEPS, TinyRun, results

pytestmark = pytest.mark.integration

FAULTS = ("internal_error", "slow_down", "reset", "answer_lost", "truncated")
UP_TO_TRAINING = STEPS[: STEPS.index("train_model") + 1]


@pytest.fixture
def server(mlflow_service, monkeypatch):
    """A proxy in front of the real tracking server, which the steps use from now on."""
    with FaultProxy(mlflow_service.mlflow_uri) as server:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", server.uri)
        yield server


@pytest.fixture
def run(raw_files, tmp_path):
    name = f"tracked-{uuid.uuid4().hex}"
    return TinyRun(
        raw_files.as_uri(), (tmp_path / "work").as_uri(), tmp_path / "run", name, True, name
    )


def curves(mlflow_service, run):
    """Give the curves that arrived: name -> [(step, value), ...]."""
    client = MlflowClient(mlflow_service.mlflow_uri)
    experiment = client.get_experiment_by_name("faults").experiment_id
    (found,) = client.search_runs([experiment], f"tags.`{PIPELINE_RUN_TAG}` = '{run.run_id}'")
    return {
        name: [(p.step, p.value) for p in client.get_metric_history(found.info.run_id, name)]
        for name in found.data.metrics
        if name.startswith(("train/", "validation/")) and "per_s" not in name
    }


def test_server_that_refuses_stops_the_first_step_in_one_line(server, run):
    server.refuse_with = 403
    with pytest.raises(TrackingError, match="cannot open the run") as caught:
        run.run_step("plan_shards")
    assert "\n" not in str(caught.value)
    server.refuse_with = 0
    run.run_step("plan_shards")


@pytest.mark.slow
def test_faulty_server_costs_no_point_of_a_curve(server, mlflow_service, run):
    with server.faults(FaultPlan(FAULTS, rate=0.3, seed=5)) as plan:
        run.run(UP_TO_TRAINING)
    assert plan.counts.total() >= 10, plan.counts
    found = curves(mlflow_service, run)
    assert found
    assert all(len(points) == len(set(points)) for points in found.values())
    print(dict(plan.counts), {name: len(points) for name, points in found.items()})


@pytest.mark.slow
def test_slow_server_does_not_slow_the_training(server, mlflow_service, run):
    run.run(UP_TO_TRAINING[:-1])
    server.delay_s = 1.0
    began = time.monotonic()
    run.run_step("train_model")
    seconds = time.monotonic() - began
    assert curves(mlflow_service, run)
    print(f"train_model took {seconds:.1f} s with a second per request")
    assert seconds < 90


@pytest.mark.slow
def test_server_that_refuses_from_the_middle_on_loses_nothing(server, run, monkeypatch):
    monkeypatch.setattr(step_context, "FINISH_WITHIN_S", 0.5)
    run.run(UP_TO_TRAINING[:-1])
    server.refuse_with = 503
    run.run_step("train_model")
    server.refuse_with = 0
    kept = run.context().open_store().list(run.context().unsent_uri)
    assert kept, "the records lie in the work folder"
    run.run_step("evaluate_model")
    assert not run.context().open_store().list(run.context().unsent_uri)
    assert results(run)["evaluation"]
