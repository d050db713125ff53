"""What a user gets wrong ends in one clear line, exit code 1, and nothing half-registered."""

import subprocess
from pathlib import Path

import mlflow
import pyarrow.parquet as pq
import pytest
import yaml

from tests.events.raw_layout import write_raw_layout
from tests.test_end_to_end import run_pipeline

pytestmark = pytest.mark.integration

NOBODY_LISTENS = "http://127.0.0.1:9"


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump({"promotion": {"model_name": "bad-input"}}))
    return path


def failure_line(done: subprocess.CompletedProcess[str]) -> str:
    assert done.returncode == 1, done.stdout + done.stderr
    lines = [line for line in done.stderr.splitlines() if line.strip()]
    assert len(lines) == 1, done.stderr
    assert lines[0].startswith("error: ")
    assert "Traceback" not in done.stdout
    sentence = lines[0].partition("failed: ")[2] or lines[0]
    # that a server is asked again is told once, while it is waited for
    told = [line for line in done.stdout.splitlines() if "asking again for" not in line]
    assert not any(sentence[:60] in line for line in told), f"told twice: {done.stdout}"
    return lines[0]


def assert_nothing_registered() -> None:
    assert not mlflow.MlflowClient().search_model_versions("name='bad-input'")


def test_run_names_the_missing_folder(tmp_path: Path, config: Path, mlflow_service: object) -> None:
    uri = (tmp_path / "nothing").as_uri()
    line = failure_line(run_pipeline(tmp_path, "--raw-uri", uri, "--config", str(config)))
    assert f"{uri}/train_meta.parquet" in line
    assert "plan_shards failed" in line
    assert_nothing_registered()


def test_run_names_the_missing_column(tmp_path: Path, config: Path, mlflow_service: object) -> None:
    uri = write_raw_layout(tmp_path / "raw", n_files=1)
    path = tmp_path / "raw" / "train" / "batch_1.parquet"
    table = pq.read_table(path)
    pq.write_table(
        table.rename_columns([n.replace("charge", "amp") for n in table.column_names]), path
    )
    line = failure_line(run_pipeline(tmp_path, "--raw-uri", uri, "--config", str(config)))
    assert "batch_1.parquet" in line
    assert "charge" in line
    assert_nothing_registered()


def test_run_marks_the_tracked_run_failed(
    tmp_path: Path, config: Path, mlflow_service: object
) -> None:
    options = ["--raw-uri", (tmp_path / "no").as_uri(), "--config", str(config)]
    failure_line(run_pipeline(tmp_path, *options, "--experiment-name", "bad-input"))
    client = mlflow.MlflowClient()
    experiment = client.get_experiment_by_name("bad-input")
    [run] = client.search_runs([experiment.experiment_id])
    assert run.info.status == "FAILED"
    assert run.data.tags["failed_step"] == "plan_shards"
    assert "train_meta.parquet" in run.data.tags["failure"]


def test_run_refuses_an_unknown_config_key(tmp_path: Path) -> None:
    path = tmp_path / "typo.yaml"
    path.write_text("training:\n  lerning_rate: 1.0e-3\n")
    line = failure_line(run_pipeline(tmp_path, "--raw-uri", "file:///x", "--config", str(path)))
    assert "unknown key training.lerning_rate" in line


def test_run_refuses_a_missing_config(tmp_path: Path) -> None:
    missing = str(tmp_path / "none.yaml")
    line = failure_line(run_pipeline(tmp_path, "--raw-uri", "file:///x", "--config", missing))
    assert "configuration file not found" in line


def test_run_refuses_a_path_that_is_no_uri(tmp_path: Path, config: Path) -> None:
    line = failure_line(run_pipeline(tmp_path, "--raw-uri", "/data/raw", "--config", str(config)))
    assert "not a storage URI [--raw-uri]" in line


def test_run_names_the_tracking_server_that_is_away(
    tmp_path: Path, config: Path, object_store_service: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", NOBODY_LISTENS)
    uri = write_raw_layout(tmp_path / "raw", n_files=1)
    line = failure_line(run_pipeline(tmp_path, "--raw-uri", uri, "--config", str(config)))
    assert NOBODY_LISTENS in line


def test_run_names_the_object_store_that_is_away(
    tmp_path: Path, config: Path, mlflow_service: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3"):
        monkeypatch.setenv(name, NOBODY_LISTENS)
    uri = write_raw_layout(tmp_path / "raw", n_files=1)
    line = failure_line(run_pipeline(tmp_path, "--raw-uri", uri, "--config", str(config)))
    assert NOBODY_LISTENS in line
    assert_nothing_registered()


def test_run_refuses_a_store_without_a_tracking_server(
    tmp_path: Path, config: Path, object_store_service: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    line = failure_line(run_pipeline(tmp_path, "--raw-uri", "s3://b/raw", "--config", str(config)))
    assert "an object store is configured but no tracking server" in line
