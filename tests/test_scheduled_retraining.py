"""What a schedule does: the pipeline twice on the same settings, one raw file added in between."""

import json
import shutil
from pathlib import Path
from typing import Any

import mlflow
import pytest

from iceaggr.events.simulation import SimulationConfig, simulate
from iceaggr.models.bundle import load_model
from iceaggr.storage import open_store
from iceaggr.tracking.registry import ModelRegistry
from tests.test_end_to_end import run_pipeline, small_config

pytestmark = [pytest.mark.integration, pytest.mark.slow]

NAME = "retraining"
WORK_URI = "s3://iceaggr/retraining"
N_EVENTS_PER_FILE = 400


def simulate_files(folder: Path, n_files: int) -> None:
    """Simulate so many files; more of them extend the same data."""
    n_events = n_files * N_EVENTS_PER_FILE
    config = SimulationConfig(n_events=n_events, n_events_per_file=N_EVENTS_PER_FILE, seed=5)
    simulate(open_store(), folder.as_uri(), config)


def deliver_one_more_file(raw: Path, n_files: int) -> None:
    """Bring a new batch file and the grown list of events; the files before stay as they are."""
    later = raw.with_name("later")
    simulate_files(later, n_files)
    for folder in ("train", "truth"):
        shutil.copy(later / folder / f"batch_{n_files}.parquet", raw / folder)
    shutil.copy(later / "train_meta.parquet", raw)


def run_once(tmp_path: Path, raw: Path) -> tuple[dict[str, Any], str]:
    """Run as the schedule does, always from the champion; gives summary and screen."""
    options = ["--raw-uri", raw.as_uri(), "--work-uri", WORK_URI, "--start-from", "champion"]
    options += ["--config", str(small_config(tmp_path, NAME, NAME)), "--experiment-name", NAME]
    summary = tmp_path / "summary.json"
    done = run_pipeline(tmp_path, *options, "--summary", str(summary))
    assert done.returncode == 0, done.stdout + done.stderr
    return json.loads(summary.read_text()), done.stdout


def shards() -> dict[str, str]:
    """List the shard files in storage with their etags."""
    found = open_store().list(f"{WORK_URI}/")
    return {item.uri: item.etag for item in found if item.uri.endswith(".arrow")}


def tracked(summary: dict[str, Any]) -> Any:
    return mlflow.MlflowClient().get_run(summary["mlflow_run_id"]).data


def statistics(summary: dict[str, Any]) -> dict[str, Any]:
    uri = f"runs:/{summary['mlflow_run_id']}/data/normalization.json"
    document: dict[str, Any] = json.loads(mlflow.artifacts.load_text(uri))
    return document


def kept_normalization(version: str) -> dict[str, Any]:
    with_registry = ModelRegistry()
    folder = Path(mlflow.artifacts.download_artifacts(artifact_uri=f"models:/{NAME}/{version}"))
    uri = with_registry.fetch(f"models:/{NAME}/{version}", folder)
    document: dict[str, Any] = load_model(open_store(), uri).model.normalization.model_dump()
    return document


def test_second_run_shards_the_new_file_only_and_trains_from_the_champion(
    tmp_path: Path, mlflow_service: object
) -> None:
    raw = tmp_path / "raw"
    simulate_files(raw, 3)
    first, first_screen = run_once(tmp_path, raw)
    before = shards()
    assert "3 raw files: 0 sharded before, 3 new" in first_screen
    assert first["started_from"] == f"scratch, as {NAME} has no champion yet"
    assert first["promoted"]

    deliver_one_more_file(raw, 4)
    second, second_screen = run_once(tmp_path, raw)
    after = shards()

    # what was there was neither written again nor left out; all that is new is one file's
    assert "4 raw files: 3 sharded before, 1 new" in second_screen
    assert before.items() < after.items()
    assert len({uri.rsplit("/", 1)[0] for uri in after.keys() - before.keys()}) == 1
    splits = [f"n_events_{split}" for split in ("train", "validation", "test")]
    n_events = [sum(int(run[name]) for name in splits) for run in (first, second)]
    assert n_events == [3 * N_EVENTS_PER_FILE, 4 * N_EVENTS_PER_FILE]
    assert all(second[name] > first[name] for name in splits)
    assert second["data_digest"] != first["data_digest"]

    # statistics are those of the grown data, yet the weights keep the ones they were learned with
    assert statistics(second) != statistics(first)
    assert kept_normalization("2") == kept_normalization("1") == statistics(first)

    # people see it: on the screen, in the run, on the version
    start = f"champion models:/{NAME}/1"
    assert second["started_from"] == start
    assert f"start    {start}" in second_screen
    run = tracked(second)
    assert run.tags["training/started_from"] == start
    assert run.metrics["volume/n_source_files"] == 4
    assert run.metrics["volume/n_source_files_reused"] == 3
    assert 0 < run.metrics["train_start/normalization_centre_shift"] < 0.2
    assert "4 raw files: 3 sharded before, 1 new" in run.tags["mlflow.note.content"]
    assert ModelRegistry().version(NAME, "2").tags["started_from"] == start

    # promotion decides: the champion is the winner of the two on the same test events
    assert "the champion" in second["reason"]
    winner = second if second["promoted"] else first
    champion = ModelRegistry().champion(NAME)
    assert champion is not None
    assert champion.uri == winner["model_uri"]
