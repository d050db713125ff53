import dataclasses
import os
import signal
import threading
import time

import pytest
from kubernetes import client

from iceaggr.errors import TrainingError
from iceaggr.machines import train_job
from iceaggr.machines.job_api import JobApi, KubernetesAwayError, KubernetesError
from iceaggr.machines.train_job import run_train_job, stop_train_job
from iceaggr.signals import TrainingInterruptedError
from tests.machines.kubernetes_stand_in import JOBS, KubernetesStandIn
from tests.machines.test_train_job import order
from tests.stand_in import HttpError

NAME = order().name
PAUSE_S = 0.02


@pytest.fixture
def server():
    with KubernetesStandIn() as running:
        yield running


@pytest.fixture
def api(server):
    settings = client.Configuration()
    settings.host = server.url
    # the client of Kubernetes repeats a failed connection; here it must be told at once
    settings.retries = False
    return JobApi(client.ApiClient(settings), "runs")


def when(condition, action):
    """Do something once the launcher has come so far; after a minute all the same."""

    def wait():
        until = time.monotonic() + 60
        while not condition() and time.monotonic() < until:
            time.sleep(0.005)
        action()

    threading.Thread(target=wait, daemon=True).start()


def end(server, kind="Complete", *why, once=lambda: True):
    """Let the job end once the launcher has asked for it, and something else has come."""
    when(lambda: asked(server) and once(), lambda: server.end(NAME, kind, *why))


def asked(server):
    return NAME in server.jobs and server.names("GET", "/trainjobs/")


def n_readings(server, of=""):
    return len(server.names("GET", f"{of}/log$"))


def terminate():
    # nobody listens any more where the test has failed before: that would end all tests
    if signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL:
        os.kill(os.getpid(), signal.SIGTERM)


def run(api):
    said = []
    run_train_job(api, order(), said.append, PAUSE_S)
    return said


def test_run_train_job_launches_waits_and_shows_the_log(server, api):
    lines = ["epoch 1", "epoch 2 – ö", "", "done"]
    server.add_pod("node-0", "Running", lines)
    end(server)
    said = run(api)
    # the log is followed beside the job: only the order within each is certain
    assert said.count(f"TrainJob {NAME} created") == 1
    assert [line for line in said if "TrainJob" not in line] == [
        "epoch 1",
        "epoch 2 – ö",
        "",
        "done",
    ]
    assert len(server.created) == 1
    assert server.names("DELETE") == []


def test_run_train_job_reads_on_when_the_server_ends_the_stream(server, api):
    server.add_pod("node-0", "Running", ["epoch 1"])
    when(lambda: n_readings(server) > 1, lambda: server.logs["node-0"].extend(["epoch 2", "done"]))
    end(server, once=lambda: n_readings(server) > 3)
    assert [line for line in run(api) if "TrainJob" not in line] == ["epoch 1", "epoch 2", "done"]
    assert n_readings(server) > 2


@pytest.mark.parametrize("cut", [5, 33, 36, 38, 39, 50, 74])
def test_run_train_job_shows_no_line_that_was_cut_on_its_way(server, api, cut):
    server.add_pod("node-0", "Running", ["epoch 1", "epoch 2"])
    server.log_cuts = [cut, cut]
    end(server, once=lambda: n_readings(server) > 3)
    assert [line for line in run(api) if "TrainJob" not in line] == ["epoch 1", "epoch 2"]


def test_run_train_job_reads_the_log_of_an_ended_pod_once(server, api):
    server.add_pod("node-0", "Succeeded", ["epoch 1"])
    end(server, once=lambda: len(server.names("GET", "/pods$")) > 4)
    run(api)
    assert n_readings(server) == 1


def test_run_train_job_waits_for_a_pod_that_is_pending(server, api):
    server.add_pod("node-0", "Pending", ["first"])
    when(
        lambda: len(server.names("GET", "/pods$")) > 1,
        lambda: server.pods[0]["status"].update(phase="Running"),
    )
    end(server, once=lambda: n_readings(server))
    assert "first" in run(api)


def test_run_train_job_shows_the_log_of_a_restarted_pod_too(server, api):
    server.add_pod("node-0-old", "Failed", ["before"])
    when(
        lambda: n_readings(server, "node-0-old"),
        lambda: server.add_pod("node-0-new", "Running", ["after"], "2026-01-02T00:00:00Z"),
    )
    end(server, once=lambda: n_readings(server, "node-0-new"))
    assert [line for line in run(api) if line in ("before", "after")] == ["before", "after"]


def test_run_train_job_tells_why_a_job_failed(server, api):
    end(server, "Failed", "DeadlineExceeded", "active for too long")
    with pytest.raises(TrainingError, match="DeadlineExceeded: active for too long"):
        run(api)


def test_run_train_job_adopts_the_job_of_an_earlier_attempt(server, api):
    api.create(train_job.build_train_job(order()))
    end(server)
    assert f"TrainJob {NAME} is there already: adopted" in run(api)
    assert len(server.created) == 1


def test_run_train_job_makes_an_adopted_job_its_own(server, api):
    api.create(train_job.build_train_job(dataclasses.replace(order(), owner=("earlier", "uid-0"))))
    end(server, once=lambda: server.names("PATCH"))
    run(api)
    (owner,) = server.jobs[NAME]["metadata"]["ownerReferences"]
    assert (owner["name"], owner["uid"]) == order().owner
    assert len(server.names("PATCH")) == 1


def test_run_train_job_takes_the_end_of_a_job_that_finished_meanwhile(server, api):
    api.create(train_job.build_train_job(order()))
    server.end(NAME, "Complete")
    run(api)
    assert len(server.created) == 1


def test_run_train_job_replaces_a_failed_job_once_it_is_gone(server, api):
    api.create(train_job.build_train_job(order()))
    server.end(NAME, "Failed")
    server.removal_s = 0.2
    end(server, once=lambda: len(server.created) == 2)
    assert f"TrainJob {NAME} of an earlier attempt failed: replaced" in run(api)
    assert len(server.created) == 2


def test_run_train_job_deletes_the_job_when_it_is_asked_to_stop(server, api):
    when(lambda: asked(server), terminate)
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(TrainingInterruptedError, match="asked to stop"):
        run(api)
    assert server.jobs == {}
    assert signal.getsignal(signal.SIGTERM) is before


def test_run_train_job_is_patient_with_a_server_that_is_away_for_a_moment(server, api):
    for _ in range(3):
        server.fail("GET", ".*/trainjobs/.*", 503)
    end(server)
    run(api)
    assert server.failures == []


@pytest.mark.parametrize("status", [503, 0])
def test_run_train_job_is_patient_with_the_server_while_it_launches(server, api, status):
    for _ in range(2):
        server.fail("POST", ".*/trainjobs", status)
    end(server)
    assert f"TrainJob {NAME} created" in run(api)
    assert server.failures == []


def test_run_train_job_gives_up_launching_when_the_server_stays_away(server, api, monkeypatch):
    monkeypatch.setattr(train_job, "_PATIENCE_S", 0.1)
    for _ in range(1000):
        server.fail("POST", ".*/trainjobs", 503)
    with pytest.raises(KubernetesAwayError, match="creating TrainJob"):
        run(api)


def test_run_train_job_leaves_no_job_when_the_server_is_away_as_it_stops(server, api):
    for _ in range(3):
        server.fail("DELETE", ".*", 503)
    when(lambda: asked(server), terminate)
    with pytest.raises(TrainingInterruptedError, match="asked to stop"):
        run(api)
    assert server.jobs == {}


def test_run_train_job_gives_up_on_a_server_that_stays_away(server, api, monkeypatch):
    monkeypatch.setattr(train_job, "_PATIENCE_S", 0.1)
    for _ in range(1000):
        server.fail("GET", ".*/trainjobs/.*", 503)
    with pytest.raises(KubernetesAwayError, match="reading TrainJob"):
        run(api)


def test_run_train_job_says_when_somebody_deleted_the_job(server, api):
    when(lambda: asked(server), lambda: server.jobs.clear())
    with pytest.raises(TrainingError, match="deleted by somebody"):
        run(api)


def test_run_train_job_says_which_right_is_missing(server, api):
    server.fail("POST", ".*/trainjobs", 403)
    with pytest.raises(KubernetesError, match=r"creating TrainJob .*found 403.*service account"):
        run(api)


def test_run_train_job_goes_on_without_the_log(server, api):
    for _ in range(4):
        server.fail("GET", ".*/pods", 403)
    end(server, once=lambda: not server.failures)
    assert [line for line in run(api) if "interrupted" in line]


def test_stop_train_job_deletes_a_job_that_still_works(server, api):
    api.create(train_job.build_train_job(order()))
    server.fail("GET", ".*/trainjobs/.*", 503)
    server.fail("DELETE", ".*/trainjobs/.*", 503)
    assert stop_train_job(api, order().run_id, PAUSE_S)
    assert server.jobs == {}
    assert not stop_train_job(api, order().run_id)


def test_stop_train_job_leaves_an_ended_job_with_its_logs(server, api):
    api.create(train_job.build_train_job(order()))
    server.end(NAME, "Failed")
    assert not stop_train_job(api, order().run_id)
    assert NAME in server.jobs


def test_job_api_needs_a_cluster(monkeypatch):
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
    with pytest.raises(KubernetesError, match="several machines need a cluster"):
        JobApi.of_this_pod()


def test_job_api_says_when_nobody_answers():
    settings = client.Configuration()
    settings.host, settings.retries = "http://127.0.0.1:9", False
    with pytest.raises(KubernetesAwayError, match="Kubernetes cannot be reached"):
        JobApi(client.ApiClient(settings), "runs").get("x")


def test_stop_request_is_only_heard_where_python_hears_signals(server, api):
    end(server)
    failures = []

    def elsewhere():
        try:
            run(api)
        except Exception as error:
            failures.append(error)

    thread = threading.Thread(target=elsewhere)
    thread.start()
    thread.join(timeout=120)
    assert (failures, thread.is_alive()) == ([], False)


def test_refused_job_is_told_in_the_words_of_the_server(server, api):
    server.fail("POST", JOBS, 403)
    with pytest.raises(
        KubernetesError, match=r"made to fail.*found 403.*rights of manifests/base"
    ) as told:
        run_train_job(api, order(), print)
    assert told.value.status == 403


@pytest.mark.parametrize(
    ("status", "said"),
    [
        (404, "the server could not find the requested resource"),
        (403, "admission webhook denied the request: spec.runtimeRef: runtime must exist"),
    ],
)
def test_missing_trainer_or_runtime_is_told_with_its_remedy(server, api, monkeypatch, status, said):
    def refuse(job):
        raise HttpError(status, said)

    monkeypatch.setattr(server, "_create", refuse)
    with pytest.raises(KubernetesError) as refused:
        run_train_job(api, order(), print)
    assert said in str(refused.value)
    assert "Install Kubeflow Trainer" in refused.value.remedy
