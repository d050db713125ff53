"""A pipeline whose training is killed half-way: the last step runs, closes and cleans up."""

import json
import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import mlflow
import psutil
import pytest
import yaml

from iceaggr.config import ExperimentConfig
from iceaggr.events.simulation import SimulationConfig, simulate
from iceaggr.steps.close_run import KEPT_DAYS, run_close_run
from iceaggr.steps.context import RunContext
from iceaggr.storage import open_store
from tests.test_end_to_end import ROOT, small_config

pytestmark = [pytest.mark.integration, pytest.mark.slow]

NAME = "failing"
WORK_URI = "s3://iceaggr/failing"
PATIENCE_S = 240


def start_endless_run(tmp_path: Path) -> subprocess.Popen[str]:
    """Start a pipeline that would train for hours."""
    raw = tmp_path / "raw"
    simulate(open_store(), raw.as_uri(), SimulationConfig(n_events=800, n_events_per_file=400))
    path = small_config(tmp_path, NAME, NAME)
    settings = yaml.safe_load(path.read_text())
    settings["training"]["n_epochs"] = 100_000
    path.write_text(yaml.safe_dump(settings))
    options = ["--raw-uri", raw.as_uri(), "--config", str(path)]
    options += ["--work-uri", WORK_URI, "--experiment-name", NAME]
    return subprocess.Popen(
        [sys.executable, str(ROOT / "pipeline.py"), "run", *options],
        env={**os.environ, "ICEAGGR_STATE_FOLDER": str(tmp_path / "state")},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def stored(below: str) -> set[str]:
    return {item.uri.removeprefix(f"{WORK_URI}/") for item in open_store().list(below)}


def kill_training_after_a_checkpoint(run: subprocess.Popen[str]) -> None:
    until = time.monotonic() + PATIENCE_S
    while not any("latest.json" in name for name in stored(f"{WORK_URI}/runs/")):
        assert run.poll() is None, run.communicate()
        assert time.monotonic() < until, "no checkpoint appears"
        time.sleep(0.2)
    for process in psutil.Process(run.pid).children(recursive=True):
        with suppress(psutil.NoSuchProcess):
            if "train_model" in " ".join(process.cmdline()):
                process.send_signal(signal.SIGKILL)


def test_run_that_is_killed_half_way_is_closed_and_cleaned_up(tmp_path, mlflow_service):
    run = start_endless_run(tmp_path)
    kill_training_after_a_checkpoint(run)
    screen, error = run.communicate(timeout=PATIENCE_S)
    assert run.returncode == 1, screen
    assert error.startswith("error: "), error
    assert "close_run" in screen

    (tracked,) = mlflow.search_runs(experiment_names=[NAME], output_format="list")
    assert tracked.info.status == "FAILED"
    assert tracked.info.end_time is not None

    # a retry of the run would go on from these
    (note,) = stored(f"{WORK_URI}/unfinished_runs/")
    run_id = note.removeprefix("unfinished_runs/").removesuffix(".json")
    kept = stored(f"{WORK_URI}/runs/{run_id}/training/")
    assert any(name.endswith("checkpoints/latest.json") for name in kept)
    shards = stored(f"{WORK_URI}/shards/")

    later = RunContext("later", NAME, WORK_URI, ExperimentConfig(), tracked=False)
    run_close_run(later, "FAILED")
    assert stored(f"{WORK_URI}/runs/{run_id}/training/") == kept

    age(f"{WORK_URI}/{note}")
    run_close_run(later, "FAILED")
    left = stored(f"{WORK_URI}/runs/{run_id}/training/")
    assert not [name for name in left if "checkpoints/" in name]
    assert stored(f"{WORK_URI}/unfinished_runs/") == {"unfinished_runs/later.json"}
    assert shards
    assert stored(f"{WORK_URI}/shards/") == shards


def age(note_uri: str) -> None:
    """Let a run have ended long ago."""
    store = open_store()
    note = json.loads(store.read_bytes(note_uri))
    note["closed_at_s"] -= (KEPT_DAYS + 1) * 24 * 3600
    store.write_bytes(note_uri, json.dumps(note).encode())
