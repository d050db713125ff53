"""The adapter of one machine for real: torchrun, two processes, gloo on the CPU."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest

from iceaggr.errors import ConfigError, IceaggrError, StorageError, TrainingError
from iceaggr.machines.supervision import WORKER_MODULE, Limits, run_here
from iceaggr.signals import EXIT_CODE_INTERRUPTED, LAUNCHER_VARIABLE, end_with_launcher
from iceaggr.steps.context import RunContext
from iceaggr.steps.train_request import (
    TrainAnswer,
    deadline_s,
    n_steps_saved,
    parse_machines,
    read_request,
    run_train_here,
    train_in_processes,
)
from iceaggr.steps.training_choices import TrainingChoices
from tests.training.small_runs import small_config, small_inputs


@pytest.fixture
def documents(tmp_path):
    """Manifest and normalisation of a small data set, as the statistics step leaves them."""
    inputs = small_inputs(tmp_path / "data", small_config())
    manifest, normalization = tmp_path / "manifest.json", tmp_path / "normalization.json"
    manifest.write_text(inputs.manifest.to_json())
    normalization.write_text(inputs.normalization.to_json())
    return manifest, normalization


@pytest.fixture
def context(tmp_path):
    return RunContext("run-1", "x", (tmp_path / "work").as_uri(), small_config(), tracked=False)


def train(context, documents, tmp_path, launch):
    return train_in_processes(
        context,
        *documents,
        model_path=tmp_path / "model.json",
        choices=TrainingChoices(),
        launch=launch,
        paths=context.paths.training.job_request,
    )


def test_train_in_processes_trains_together_and_hands_the_result_on(context, documents, tmp_path):
    facts = train(context, documents, tmp_path, lambda uri: run_here(uri, 2))
    pointer = json.loads((tmp_path / "model.json").read_text())
    assert facts.labels == {
        "model_uri": pointer["model_uri"],
        "started_from": "scratch",
        "trained_on": "cpu in 2 processes",
    }
    assert facts.figures["n_steps"] == pointer["n_steps"] > 0
    store = context.open_store()
    assert store.stat(f"{pointer['model_uri']}/model.json") is not None


@pytest.mark.parametrize("n_processes", [1, 2])
def test_run_here_gives_the_error_of_its_processes_at_once(context, capfd, n_processes):
    with pytest.raises(StorageError, match=r"file not found \[.*absent.json\]"):
        run_here(f"{context.run_uri}/absent.json", n_processes)
    told = capfd.readouterr().err
    assert "Restart" not in told
    assert "file not found" not in told, "the step tells it: once is enough"


def test_process_that_nobody_supervises_tells_its_own_error(context):
    uri = f"{context.run_uri}/absent.json"
    command = [sys.executable, "-m", WORKER_MODULE, uri]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 1
    assert done.stderr.count("error: file not found") == 1


def test_training_without_its_gpu_fails_at_once_with_the_settings_name(
    context, documents, tmp_path, monkeypatch
):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    config = small_config(training={"device": "cuda"})
    with pytest.raises(TrainingError, match=r"no GPU for this process \[training.device\]"):
        run_train_here(
            replace(context, config=config),
            *documents,
            model_path=tmp_path / "model.json",
            choices=TrainingChoices(),
        )


FOREIGN = {"RANK": "3", "WORLD_SIZE": "4", "MASTER_ADDR": "10.255.255.1", "MASTER_PORT": "29500"}


@pytest.mark.parametrize("n_processes", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_killed_training_goes_on_from_its_checkpoint_to_the_same_weights(
    context, documents, tmp_path, monkeypatch, capfd, caplog, n_processes
):
    # what another job left, which must neither be believed nor reach torchrun
    for name, text in {**FOREIGN, "LOCAL_RANK": "3", "PET_NNODES": "2"}.items():
        monkeypatch.setenv(name, text)
    config = small_config(training={"n_epochs": 5})
    # a machine without GPUs is never asked for two processes
    monkeypatch.setattr(TrainingChoices, "n_processes", n_processes)
    runs = [replace(context, run_id=name, config=config) for name in ("whole", "killed")]
    weights = []
    for run in runs:
        if run.run_id == "killed":
            threading.Thread(target=kill_once, args=(run,), daemon=True).start()
        facts = run_train_here(
            run,
            *documents,
            model_path=tmp_path / "model.json",
            choices=TrainingChoices(),
            limits=Limits(first_pause_s=0.1),
        )
        uri = json.loads((tmp_path / "model.json").read_text())["model_uri"]
        weights.append(run.open_store().read_bytes(f"{uri}/weights.safetensors"))
    assert weights[0] == weights[1]
    told = capfd.readouterr().err
    assert told.count("Restart 1 from step") == 1
    assert "Restart 2" not in told
    assert "ignored LOCAL_RANK=3, MASTER_ADDR=10.255.255.1" in caplog.text
    assert "from step" in facts.labels["restarts"]


def kill_once(run):
    """Kill a training process of a run as soon as there is a checkpoint of some steps."""
    store, until = run.open_store(), time.monotonic() + 120
    while n_steps_saved(store, run.paths.training) < 5 and time.monotonic() < until:
        time.sleep(0.02)
    workers = processes_naming(f"{run.run_uri}/training/here/request.json")
    os.kill(max(workers), signal.SIGKILL)


def test_train_in_processes_misses_the_result_of_processes_that_wrote_none(
    context, documents, tmp_path
):
    with pytest.raises(TrainingError, match="left no result"):
        train(context, documents, tmp_path, lambda uri: None)


def test_train_in_processes_names_an_answer_that_is_damaged(context, documents, tmp_path):
    def answer_badly(uri):
        result = read_request(context.open_store(), uri).result_uri
        context.open_store().write_bytes(result, b'{"pointer": 7}')

    with pytest.raises(
        IceaggrError, match=r"not the answer of a training \[.*result.json\]: found pointer: 7"
    ):
        train(context, documents, tmp_path, answer_badly)


def test_read_request_names_a_request_that_is_damaged(context):
    uri = f"{context.run_uri}/request.json"
    context.open_store().write_bytes(uri, b"{")
    with pytest.raises(IceaggrError, match=r"not the request for a training \[.*request.json\]"):
        read_request(context.open_store(), uri)


def test_train_in_processes_checks_the_limits_before_anything_is_launched(
    context, documents, tmp_path
):
    with pytest.raises(ConfigError, match="bad number"):
        run_train_here(
            context,
            *documents,
            model_path=tmp_path / "model.json",
            choices=TrainingChoices(gpu_count="many"),
        )


@pytest.fixture
def endless(documents, tmp_path):
    """A program that trains in two processes until somebody ends it, and its checkpoints."""
    config = small_config(training={"n_epochs": 100_000, "checkpoint_every_minutes": 1000.0})
    context = RunContext("run-2", "x", (tmp_path / "work").as_uri(), config, tracked=False)
    with pytest.raises(TrainingError, match="left no result"):
        train(context, documents, tmp_path, lambda uri: None)
    request = f"{context.run_uri}/training/request/request.json"
    program = (
        "import sys\n"
        "from iceaggr.machines.supervision import run_here\n"
        "from iceaggr.signals import TrainingInterruptedError\n"
        "try: run_here(sys.argv[1], 2)\n"
        "except TrainingInterruptedError as error: sys.exit(error.exit_code)\n"
    )
    store, latest = context.open_store(), f"{context.run_uri}/training/checkpoints/latest.json"
    process = subprocess.Popen([sys.executable, "-c", program, request], env=os.environ)
    try:
        until = time.monotonic() + 300
        while store.stat(latest) is None:
            assert process.poll() is None, "ended without a checkpoint"
            assert time.monotonic() < until, "no checkpoint appears"
            time.sleep(0.1)
        yield process, request, lambda: store.read_bytes(latest)
    finally:
        process.kill()


def test_run_here_saves_a_checkpoint_when_it_is_asked_to_stop(endless):
    process, _, read_latest = endless
    first = read_latest()
    time.sleep(1.0)
    process.send_signal(signal.SIGTERM)
    assert process.wait(300) == EXIT_CODE_INTERRUPTED
    assert read_latest() != first


def processes_naming(word):
    """The ids of all processes with a word in their command line."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with suppress(OSError):
            if word.encode() in path.read_bytes():
                found.append(int(path.parent.name))
    return found


def test_processes_end_with_the_step_that_launched_them(endless):
    process, request, _ = endless
    assert len(processes_naming(request)) >= 4  # the step, torchrun, two workers
    process.kill()  # and nobody has waited for it yet: it stays in the process table
    until = time.monotonic() + 120
    while set(processes_naming(request)) - {process.pid} and time.monotonic() < until:
        time.sleep(0.2)
    assert set(processes_naming(request)) <= {process.pid}


def test_process_whose_launcher_has_left_is_told(tmp_path):
    with pytest.raises(IceaggrError, match="without the step that launched it"):
        end_with_launcher({LAUNCHER_VARIABLE: str(tmp_path / "gone" / "running")})


def test_process_that_nobody_here_launched_runs_on():
    end_with_launcher({})


def test_answer_survives_the_way_through_storage():
    answer = TrainAnswer(
        pointer={
            "model_uri": "file:///m",
            "manifest_digest": "d",
            "mlflow_run_id": "",
            "n_steps": 3,
            "stopped_because": "epochs",
            "started_from": "scratch",
        },
        labels={"a": "b"},
        figures={"minutes": 0.5},
    )
    assert TrainAnswer.model_validate_json(answer.model_dump_json()) == answer


@pytest.mark.parametrize(
    ("n_nodes", "gpu_count", "wrong"),
    [
        ("1", "0", "train_nodes"),
        ("two", "0", "train_nodes"),
        ("2", "-1", "train_gpu_count"),
        ("2", "²", "train_gpu_count"),
    ],
)
def test_parse_machines_refuses_numbers_that_are_none(n_nodes, gpu_count, wrong):
    with pytest.raises(ConfigError, match=f"bad number .{wrong}"):
        parse_machines(n_nodes, gpu_count, "nvidia.com/gpu", "1", "1Gi", {}, [])


def test_parse_machines_reads_what_kfp_hands_on():
    machines = parse_machines("2", "4", "nvidia.com/gpu", "8", "64Gi", {"a": "b"}, [])
    assert (machines.n_nodes, machines.n_gpus, machines.node_selector) == (2, 4, {"a": "b"})


def test_deadline_leaves_time_for_restarts():
    # five minutes of training may wait a day for its machines: the limit counts that, too
    assert deadline_s(small_config(training={"max_minutes": 5.0})) > 24 * 3600
    assert deadline_s(small_config(training={"max_minutes": 30.0})) == 30 * 120 + 24 * 3600
    assert deadline_s(small_config(training={"max_minutes": 14 * 24 * 60.0})) == 14 * 24 * 3600
    assert deadline_s(small_config()) == 14 * 24 * 3600
