"""The runbook's chapter 'after installing, prove it', in its order.

`make test-cluster` does it on the cluster that KF_PIPELINES_ENDPOINT and the kubeconfig name. The
same tests run against a stand-in, which shows that they pass where they can. A cluster needs, too:
ICEAGGR_IMAGE, raw events in ICEAGGR_RAW_URI, and AWS_* that lead to the object store from here,
with keys that may read ICEAGGR_WORK_URI, to which the steps write.
"""

import json
import re
import time

import pytest

from tests.cluster.proof import cluster_of_environment
from tests.cluster.stand_in_cluster import stand_in_cluster
from tests.manifests.rendering import MANIFESTS

SCHEDULE = "iceaggr-proof"
LONG = {"config.training.n_epochs": "1000", "config.training.max_minutes": "5"}
"""A training that is still at work when something is done to it."""


@pytest.fixture(
    scope="module",
    params=[
        pytest.param("real", marks=pytest.mark.cluster),
        pytest.param("stand-in", marks=[pytest.mark.integration, pytest.mark.slow]),
    ],
)
def cluster(request, tmp_path_factory):
    if request.param == "stand-in":
        store = request.getfixturevalue("local_services").env
        with stand_in_cluster(tmp_path_factory.mktemp("cluster"), store) as found:
            yield found
        return
    found = cluster_of_environment()
    if found is None:
        pytest.skip("needs KF_PIPELINES_ENDPOINT and a kubeconfig")
    yield found


@pytest.fixture(scope="module")
def first_run(cluster):
    """The small run that everything else follows."""
    run_id = cluster.submit("--wait")
    assert cluster.end_of(run_id) == "SUCCEEDED"
    return cluster.summary(run_id)


def test_steps_may_write_to_the_work_folder_that_is_taken_when_none_is_named(monkeypatch, tmp_path):
    (tmp_path / "config").write_text("")
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "config"))
    monkeypatch.setenv("KF_PIPELINES_ENDPOINT", "http://127.0.0.1:8080")
    monkeypatch.delenv("ICEAGGR_WORK_URI", raising=False)
    policy = json.loads((MANIFESTS / "policies" / "pipeline.json").read_text())
    writes = [s for s in policy["Statement"] if "s3:PutObject" in s["Action"]]
    allowed = [r.removeprefix("arn:aws:s3:::").rstrip("*") for s in writes for r in s["Resource"]]
    folder = cluster_of_environment().work_uri.removeprefix("s3://") + "/"
    assert any(folder.startswith(place) for place in allowed)


def test_small_run_gives_a_registered_model(cluster, first_run):
    assert first_run["n_events_test"] > 0
    assert re.search(r"models:/.+/\d+", first_run["model_uri"]), first_run["reason"]


def test_training_goes_on_where_its_pod_was_deleted(cluster, first_run):
    run_id = cluster.submit(**LONG)
    pod = cluster.training_pod(run_id)
    cluster.pods.delete_namespaced_pod(pod, cluster.namespace)
    again = cluster.training_pod(run_id, other_than=pod)
    resumed = re.search(r"resuming at step (\d+)", cluster.log(again))
    assert resumed, f"{again} began anew"
    assert int(resumed[1]) > 0
    assert cluster.end_of(run_id) == "SUCCEEDED"


def test_schedule_retrains_from_the_champion_and_compares_with_it(cluster, first_run):
    retrain = cluster.settings(train_start_from="champion")
    account = ("--service-account", "iceaggr-runner")
    every = ("--cron", "0 */2 * * * *", "--name", SCHEDULE)
    cluster.call("schedule", *every, *account, *retrain)
    try:
        assert SCHEDULE in cluster.call("schedule", "--list")
        run = cluster.until("a run of the schedule", lambda: cluster.runs_of_schedule(SCHEDULE))[-1]
    finally:
        # while its run goes on it is disabled and stays: no second one starts
        cluster.call("schedule", "--delete", "--name", SCHEDULE)
    assert cluster.end_of(run.run_id) == "SUCCEEDED"
    summary = cluster.summary(run.run_id)
    assert "models:/" in summary["started_from"]
    # compared, whatever came of it: a registry that cannot be asked compares nothing
    assert summary["margin_deg"] is not None, summary["reason"]
    if SCHEDULE in cluster.schedule_names():
        cluster.call("schedule", "--delete", "--name", SCHEDULE)
    assert SCHEDULE not in cluster.schedule_names()


def test_terminated_run_ends_and_closes(cluster, first_run):
    run_id = cluster.submit(**LONG)
    cluster.training_pod(run_id)
    asked_at = time.monotonic()
    cluster.kfp.terminate_run(run_id)
    assert cluster.end_of(run_id) in ("FAILED", "CANCELED")
    closing = cluster.until("close_run", lambda: cluster.pods_of(run_id, "close-run"))
    assert closing[-1].status.phase in ("Pending", "Running", "Succeeded")
    assert time.monotonic() - asked_at < 600
