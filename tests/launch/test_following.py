import json
import time

import pytest

from launch import following, workflow
from launch.following import Followed, RunFailedError, RunGoesOnError, follow_run
from launch.kfp_api import Connection, SubmissionError, connect
from launch.submission import RunOrder, start_run, upload_version
from launch.workflow import own_error
from tests.launch.argo_run import INNER, ArgoRun

STEPS = ("plan-shards", "shard-events", "train-model", "promote-model", "close-run")
SUMMARY = {"table": [], "reason": "promoted", "run_name": "night"}
NO_ACCOUNT = (
    'pods "iceaggr-direction-x7k2p" is forbidden: error looking up service account'
    ' kubeflow/nobody: serviceaccount "nobody" not found'
)
OUR_LOG = """\
train_model                  start       0.0 s
Traceback (most recent call last):
  File "/x.py", line 3, in <module>
iceaggr.errors.TrainingError: the loss is not finite [step 12]: found nan. Lower the rate.
I1128 18:30:00.000000 1 launcher_v2.go:211] publish success.
F1128 18:30:00.000000 1 main.go:62] failed to execute component: exit status 1
"""


@pytest.fixture
def client(server):
    return connect(Connection(server.url))


@pytest.fixture
def run_id(client, compiled):
    return start_run(client, RunOrder(upload_version(client, compiled), "x", {}), "night")


@pytest.fixture
def follow(server, client, run_id):
    """Follow the run; gives what was said and the end: what it returned or raised."""

    def run(patience_s=5.0, pause_s=0.0, **known):
        said = []
        known = {"page": "http://kfp/run", "again": "look-again", **known}
        followed = Followed(run_id, STEPS, **known)
        try:
            end = follow_run(client, followed, said.append, pause_s, patience_s)
        except Exception as error:
            end = error
        return said, end

    return run


def play(server, run_id, *frames):
    """Let each question for the run find it one frame later; a frame changes run and workflow."""
    argo = server.workflows.setdefault(run_id, ArgoRun())

    def turn(frame):
        def change(run):
            state = frame(argo, run)
            run.state = state if isinstance(state, str) else "RUNNING"

        return change

    server.frames = [turn(frame) for frame in frames]
    return argo


def words(said):
    """Leave the times out."""
    return [" ".join(line.split()[1:3]) if line[2:3] == ":" else line for line in said]


def test_follow_run_says_each_step_as_it_starts_and_ends(server, run_id, follow):
    log = f"promote_model done\nsummary.json: {json.dumps(SUMMARY)}\n"
    play(
        server,
        run_id,
        lambda argo, run: "PENDING",
        lambda argo, run: argo.step("plan-shards", "Running"),
        lambda argo, run: argo.step("plan-shards", "Succeeded", seconds=62),
        lambda argo, run: argo.step("promote-model", "Succeeded", log=log),
        lambda argo, run: argo.end("Succeeded") and "SUCCEEDED",
    )
    said, end = follow()
    assert words(said) == [
        "plan-shards started",
        "plan-shards done",
        "promote-model started",
        "promote-model done",
    ]
    assert "1:12" in said[1]
    assert (end.summary, end.caution) == (SUMMARY, "")


def test_follow_run_counts_the_tasks_of_a_loop_and_waits_for_the_last(server, run_id, follow):
    def unit(index, phase):
        def change(argo, run):
            inside = f"{INNER}.for-loop-2.iteration-item({index}:{index})"
            argo.node(f"{INNER}.for-loop-2", "DAG", "Running")
            argo.node(inside, "DAG", phase)
            return argo.step("shard-events", phase, inside=inside)

        return change

    play(
        server,
        run_id,
        unit(0, "Succeeded"),
        unit(1, "Running"),
        unit(1, "Succeeded"),
        lambda argo, run: argo.node(f"{INNER}.for-loop-2", "DAG", "Succeeded"),
        lambda argo, run: argo.end("Succeeded") and "SUCCEEDED",
    )
    said, _ = follow(looped=("shard-events",))
    assert words(said) == ["shard-events started", "shard-events done"]
    assert said[1].endswith("2 tasks")


@pytest.mark.parametrize("packed", [False, True])
def test_follow_run_names_the_step_that_failed_with_its_own_error(server, run_id, follow, packed):
    argo = play(
        server,
        run_id,
        # an attempt that failed, of a step that succeeded later, is no cause
        lambda argo, run: argo.step("plan-shards", "Failed", "Succeeded"),
        lambda argo, run: argo.step(
            "train-model", "Failed", "Failed", log=OUR_LOG, message="Error (exit code 1)"
        ),
        lambda argo, run: argo.step("close-run", "Succeeded", inside="root"),
        lambda argo, run: argo.end("Failed") and "FAILED",
    )
    argo.packed = packed
    said, end = follow()
    pod = argo.pod_name(f"{INNER}.train-model.executor(1)")
    assert isinstance(end, RunFailedError)
    assert str(end).startswith(
        "train-model failed: the loss is not finite [step 12]: found nan. Lower the rate [night, "
    )
    assert [line.split(maxsplit=1) for line in said[-2:]] == [
        ["log", f"kubectl -n kubeflow logs {pod} -c main"],
        ["page", "http://kfp/run"],
    ]


def test_follow_run_tells_what_kubernetes_said_of_a_process_that_was_killed(server, run_id, follow):
    play(
        server,
        run_id,
        lambda argo, run: argo.step(
            "train-model", "Failed", log="step 3\n", message="OOMKilled (exit code 137)"
        ),
        lambda argo, run: argo.end("Failed") and "FAILED",
    )
    assert str(follow()[1]).startswith("train-model failed: OOMKilled (exit code 137) [")


OVERCOME_LOG = """\
Traceback (most recent call last):
  File "/x.py", line 3, in <module>
RuntimeError: CUDA error: an illegal memory access was encountered
training process ended: unexpected RuntimeError: CUDA error. Restart 1 from step 100 in 5 s
step 200
"""


@pytest.mark.parametrize("log", [OVERCOME_LOG, OUR_LOG], ids=["overcome", "late"])
@pytest.mark.parametrize(
    ("phase", "message"),
    [
        ("Failed", "OOMKilled (exit code 137)"),
        ("Failed", "Error (exit code 137)"),
        ("Error", "pod deleted"),
        ("Failed", "The node was low on resource: memory. Threshold quantity: 100Mi"),
    ],
)
def test_follow_run_tells_what_ended_a_pod_before_what_its_log_says(
    server, run_id, follow, phase, message, log
):
    play(
        server,
        run_id,
        lambda argo, run: argo.step("train-model", phase, log=log, message=message),
        lambda argo, run: argo.end("Failed") and "FAILED",
    )
    _, end = follow()
    assert str(end).startswith(f"train-model failed: {message} [")


def test_follow_run_says_why_a_run_never_started_a_step(server, run_id, follow):
    play(
        server,
        run_id,
        lambda argo, run: (
            argo.node("root-driver", "Pod", "Error", "system-dag-driver", NO_ACCOUNT) and "FAILED"
        ),
    )
    assert str(follow()[1]).startswith(f"the run failed before its first step: {NO_ACCOUNT} [")


def test_follow_run_tells_the_failed_driver_of_a_step_as_that_step(server, run_id, follow):
    play(
        server,
        run_id,
        lambda argo, run: argo.step("plan-shards", "Succeeded"),
        lambda argo, run: argo.node(
            f"{INNER}.train-model-driver(0)", "Pod", "Failed", "system-container-driver", "no map"
        ),
        lambda argo, run: argo.end("Failed") and "FAILED",
    )
    assert str(follow()[1]).startswith("train-model failed: no map [")


def test_follow_run_says_that_a_step_waits_for_a_node(server, run_id, follow, monkeypatch):
    monkeypatch.setattr(following, "_SECONDS_BETWEEN_QUESTIONS", 0.0)
    why = "Unschedulable: 0/1 nodes are available: 1 Insufficient nvidia.com/gpu."
    play(
        server,
        run_id,
        lambda argo, run: argo.step("train-model", "Pending", message=why),
        lambda argo, run: None,
        lambda argo, run: argo.step("train-model", "Running"),
        lambda argo, run: argo.end("Succeeded") and "SUCCEEDED",
    )
    said, _ = follow()
    waits = [line for line in said if "waits" in line]
    assert len(waits) == 1
    assert waits[0].endswith(why)
    assert "train-model" in waits[0]
    assert words(said) == ["train-model started", "train-model waits", "train-model works"]


@pytest.mark.parametrize("told_by", ["state", "history", "workflow"])
def test_follow_run_tells_a_terminated_run_as_such(server, run_id, follow, told_by):
    from kfp_server_api import V2beta1RuntimeStatus

    def stop(argo, run):
        argo.step("train-model", "Failed", message="Error (exit code 143)").end("Failed")
        if told_by == "workflow":
            argo.stopped = True
        if told_by == "history":
            run.state_history = [V2beta1RuntimeStatus(state="CANCELING")]
        return "CANCELED" if told_by == "state" else "FAILED"

    play(server, run_id, stop)
    assert str(follow()[1]).startswith("the run was terminated by somebody, it did not fail [")


def test_follow_run_does_not_tell_a_run_with_a_result_as_failed(server, run_id, follow):
    log = f"summary.json: {json.dumps(SUMMARY)}\n"
    play(
        server,
        run_id,
        lambda argo, run: argo.step("promote-model", "Succeeded", log=log),
        lambda argo, run: argo.step("close-run", "Failed", inside="root", log=OUR_LOG),
        lambda argo, run: argo.end("Failed") and "FAILED",
    )
    _, end = follow()
    assert end.summary == SUMMARY
    assert end.caution.startswith("the result is complete, but close-run failed: the loss is not")


def test_follow_run_keeps_the_figures_of_a_promotion_that_failed(server, run_id, follow):
    log = f"summary.json: {json.dumps(SUMMARY)}\nsummary.json: {{\n{OUR_LOG}"
    play(
        server,
        run_id,
        lambda argo, run: argo.step("promote-model", "Failed", log=log),
        lambda argo, run: argo.end("Failed") and "FAILED",
    )
    _, end = follow()
    assert str(end).startswith("promote-model failed: the loss is not finite")
    assert end.summary == SUMMARY


def test_follow_run_knows_less_when_the_server_hands_nothing_more_out(server, run_id, follow):
    server.old_api = server.pod_logs = False
    play(
        server,
        run_id,
        lambda argo, run: argo.step("train-model", "Failed", log=OUR_LOG),
        lambda argo, run: argo.end("Failed") and "FAILED",
    )
    said, end = follow()
    assert str(end).startswith("train-model failed [night, ")
    assert f"pods      kubectl -n kubeflow describe pods -l pipeline/runid={run_id}" in said


def test_follow_run_does_not_name_a_step_when_nothing_is_known(server, run_id, follow):
    server.states = ["FAILED"]
    server.old_api = False
    assert "the run failed, and the server does not report where" in str(follow()[1])


def test_follow_run_waits_for_a_server_that_comes_back(server, run_id, follow):
    server.states = ["RUNNING", "SUCCEEDED"]
    for status in (503, 500):
        server.fail("GET", ".*v2beta1/runs/.*", status)
    said, end = follow()
    assert end.summary is None
    assert len(said) == 2
    assert said[0].startswith("Kubeflow Pipelines refused the request")
    assert said[0].endswith("asking again for 5 s; the run goes on")
    assert said[1] == "Kubeflow Pipelines answers again"


def test_follow_run_asks_again_when_the_server_falls_silent(server, run_id, follow, monkeypatch):
    monkeypatch.setattr(following, "_ANSWER_S", 1)
    monkeypatch.setattr(workflow, "_ANSWER_S", 1)
    real, silences = server.get_run, iter([2.5] * 4)

    def slow(*arguments):
        # the HTTP client tries four times before it gives up
        time.sleep(next(silences, 0.0))
        return real(*arguments)

    server.get_run, server.states = slow, ["RUNNING"] * 4 + ["SUCCEEDED"]
    said, _ = follow()
    assert said[0].startswith("Kubeflow Pipelines cannot be reached")
    assert said[-1] == "Kubeflow Pipelines answers again"


@pytest.mark.parametrize("status", [503, 401])
def test_follow_run_ends_with_the_word_that_the_run_goes_on(server, run_id, follow, status):
    for _ in range(200):
        server.fail("GET", ".*v2beta1/runs/.*", status)
    _, end = follow(patience_s=0.1, pause_s=0.02)
    assert isinstance(end, RunGoesOnError)
    assert not isinstance(end, SubmissionError)
    assert str(end).startswith(
        "the run goes on, but Kubeflow Pipelines no longer reports its state"
    )
    assert f"HTTP {status}" in str(end)
    assert "Look again: look-again, or http://kfp/run" in str(end)


def test_follow_run_stops_at_once_when_the_run_is_gone(client):
    with pytest.raises(SubmissionError, match="HTTP 404: run nowhere not found"):
        follow_run(client, Followed("nowhere", STEPS), lambda words: None, pause_s=0.0)


@pytest.mark.parametrize(
    ("log", "error"),
    [
        (OUR_LOG, "the loss is not finite [step 12]: found nan. Lower the rate."),
        ("a\nValueError: no such thing\nF1128 exit status 1", "ValueError: no such thing"),
        (
            "torch.OutOfMemoryError: CUDA out of memory",
            "torch.OutOfMemoryError: CUDA out of memory",
        ),
        (OVERCOME_LOG, ""),
        (OVERCOME_LOG + OUR_LOG, "the loss is not finite [step 12]: found nan. Lower the rate."),
        ("all is well\nstep 3: Error rate 0.1", ""),
        ("", ""),
    ],
)
def test_own_error_finds_the_line_that_says_why(log, error):
    assert own_error(log.splitlines()) == error
