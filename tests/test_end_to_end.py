"""The whole pipeline through KFP's local runner, on small data, against real services."""

import io
import json
import os
import subprocess
import sys
from pathlib import Path

import mlflow
import numpy as np
import pandas as pd
import pytest
import torch
import yaml

from iceaggr.angles import opening_angle, unit_vector
from iceaggr.events.simulation import SimulationConfig, simulate
from iceaggr.steps.compare import run_compare
from iceaggr.steps.predict import run_predict
from iceaggr.storage import open_store
from iceaggr.tracking.registry import ModelRegistry
from tests.tracking.test_run_target import SHARED_VIEW

pytestmark = pytest.mark.integration

ROOT = Path(__file__).parent.parent
N_EVENTS = 1200
SUMMARY_KEYS = {
    "mean_opening_angle_deg",
    "median_opening_angle_deg",
    "line_fit_mean_opening_angle_deg",
    "n_events_train",
    "n_events_test",
    "pulses_in",
    "pulses_kept",
    "pulses_rejected",
    "mlflow_run_id",
    "model_uri",
    "promoted",
    "reason",
}


def small_config(
    folder: Path, name: str, model_name: str, *, d_model: int = 32, min_gain_deg: float = 0.01
) -> Path:
    """The laptop settings, shrunk until the pipeline takes seconds."""
    settings = yaml.safe_load((ROOT / "configs" / "laptop.yaml").read_text())
    settings["name"] = name
    settings["data"] = {"n_events_per_shard": 128, "test_share": 0.2}
    settings["batches"] = {**settings.get("batches", {}), "n_events": 64}
    settings["training"] = {**settings["training"], "n_epochs": 2, "max_minutes": 0}
    settings["model"] = {**settings["model"], "d_model": d_model, "n_event_layers": 1}
    settings["learning_check"] = {"n_steps": 20, "n_events_per_batch": 32}
    settings["evaluation"] = {"n_bootstrap": 200, "refine_events": 2}
    settings["promotion"] = {
        "model_name": model_name,
        "min_gain_deg": min_gain_deg,
        # two epochs may leave it behind the fit that it starts from
        "first_beats_fits": False,
    }
    path = folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump(settings))
    return path


def run_pipeline(tmp_path: Path, *options: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "ICEAGGR_STATE_FOLDER": str(tmp_path / "state")}
    return subprocess.run(
        [sys.executable, str(ROOT / "pipeline.py"), "run", *options],
        env=environment,
        capture_output=True,
        text=True,
        timeout=1500,
    )


@pytest.fixture(scope="module")
def raw_uri(tmp_path_factory: pytest.TempPathFactory) -> str:
    uri = tmp_path_factory.mktemp("raw").as_uri()
    simulate(open_store(), uri, SimulationConfig(n_events=N_EVENTS, n_events_per_file=400, seed=3))
    return uri


def test_pipeline_turns_raw_events_into_a_champion(
    raw_uri: str, tmp_path: Path, mlflow_service: object
) -> None:
    config = small_config(tmp_path, "small", "end-to-end")
    options = ["--raw-uri", raw_uri, "--config", str(config), "--experiment-name", "end-to-end"]
    summary_path = tmp_path / "summary.json"
    first = run_pipeline(tmp_path, *options, "--summary", str(summary_path))
    assert first.returncode == 0, first.stdout + first.stderr
    summary = json.loads(summary_path.read_text())
    check_summary(summary)
    check_screen(first.stdout)
    check_tracking(summary)
    champion = ModelRegistry().champion("end-to-end")
    assert champion is not None
    assert champion.uri == summary["model_uri"]
    check_model_card(summary, tmp_path)

    smaller = small_config(tmp_path, "smaller", "end-to-end", d_model=16, min_gain_deg=180.0)
    options[3] = str(smaller)
    second = run_pipeline(tmp_path, *options, "--summary", str(summary_path))
    assert second.returncode == 0, second.stdout + second.stderr
    again = json.loads(summary_path.read_text())
    assert again["n_source_files_reused"] == 3
    assert again["data_digest"] == summary["data_digest"]
    assert again["n_events_test"] == summary["n_events_test"]
    assert not again["promoted"], "no gain is 180 degrees"
    assert "the champion" in again["reason"]
    assert ModelRegistry().champion("end-to-end") == champion
    check_prediction(tmp_path)
    check_same_numbers(raw_uri, summary["events_uri"], tmp_path)
    check_comparison(summary, again, tmp_path)
    check_saved_view(summary["mlflow_run_id"])


def check_summary(summary: dict[str, object]) -> None:
    assert set(summary) >= SUMMARY_KEYS
    assert summary["pulses_in"] == summary["pulses_kept"] + summary["pulses_rejected"]
    assert summary["n_events_test"] > 150
    assert summary["n_events_train"] > 700
    assert summary["promoted"], summary["reason"]
    assert summary["mean_opening_angle_deg"] < summary["constant_mean_opening_angle_deg"]


def check_screen(text: str) -> None:
    for step in ("plan_shards", "shard_events", "check_learning", "train_model", "promote_model"):
        assert f"{step} " in text
    for words in (
        "Line fit",
        "Best constant direction",
        "rejected",
        "MLflow",
        "viewStateShareKey=iceaggr",
        "report",
        "log",
    ):
        assert words in text
    assert "Streamed logs" not in text, "KFP's own log belongs in a file"


def check_tracking(summary: dict[str, object]) -> None:
    run = mlflow.MlflowClient().get_run(summary["mlflow_run_id"])
    assert run.info.status == "FINISHED"
    assert run.data.params["config/name"] == "small"
    assert run.data.metrics["test/mean_deg"] == pytest.approx(summary["mean_opening_angle_deg"])
    assert run.inputs.dataset_inputs[0].dataset.digest == summary["data_digest"]
    names = {item.path for item in mlflow.MlflowClient().list_artifacts(run.info.run_id)}
    assert {"data", "evaluation", "learning_check.html", "summary.json"} <= names


def check_model_card(summary: dict[str, object], tmp_path: Path) -> None:
    """The registered version carries its card: figures of this run, and three failures drawn."""
    version = str(summary["model_uri"]).rpartition("/")[2]
    description = mlflow.MlflowClient().get_model_version("end-to-end", version).description
    mean = f"{summary['mean_opening_angle_deg']:.2f} ± "
    assert str(summary["reason"]) in description
    assert mean in description
    card = mlflow.artifacts.download_artifacts(
        artifact_uri=f"{summary['model_uri']}/model_card.html", dst_path=str(tmp_path)
    )
    page = Path(card).read_text(encoding="utf-8")
    for words in (mean, str(summary["data_digest"]), f"{summary['n_events_train']:,} of the train"):
        assert words in page, words
    assert page.count("<img") == 3
    events = pd.read_parquet(io.BytesIO(open_store().read_bytes(str(summary["events_uri"]))))
    wrong = int(((events["kappa"] > 200) & (events["opening_angle_deg"] > 40)).sum())
    assert f"{wrong} of " in page


def check_prediction(tmp_path: Path) -> None:
    """Unlabelled events go through the champion."""
    uri = (tmp_path / "unlabelled").as_uri()
    config = SimulationConfig(n_events=100, n_events_per_file=50, seed=9, labels=False)
    simulate(open_store(), uri, config)
    output = tmp_path / "directions.parquet"
    command = [sys.executable, "-m", "iceaggr.cli", "predict"]
    options = ["--model", "models:/end-to-end@champion", "--raw-uri", uri, "--output", str(output)]
    done = subprocess.run([*command, *options], capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr
    table = pd.read_parquet(output)
    assert list(table.columns) == ["event_id", "azimuth", "zenith", "kappa"]
    assert table["event_id"].nunique() == 100
    assert table["azimuth"].between(0, 2 * 3.1416).all()
    assert table["zenith"].between(0, 3.1416).all()
    assert (table["kappa"] > 0).all()


def check_same_numbers(raw_uri: str, events_uri: str, tmp_path: Path) -> None:
    """The champion says of raw events what evaluation said of the same events in shards."""
    output = tmp_path / "again.parquet"
    run_predict("models:/end-to-end@champion", raw_uri, output)
    evaluated = pd.read_parquet(io.BytesIO(open_store().read_bytes(events_uri)))
    both = pd.read_parquet(output).merge(evaluated, on="event_id", suffixes=("", "_evaluated"))
    assert len(both) == len(evaluated)
    # as vectors: the azimuth of a vertical direction means nothing
    apart_rad = opening_angle(_directions(both, ""), _directions(both, "_evaluated"))
    assert apart_rad.max() < 1e-3, both.loc[int(apart_rad.argmax())]
    np.testing.assert_allclose(both["kappa"], both["kappa_evaluated"], rtol=1e-3)


def _directions(events: pd.DataFrame, suffix: str) -> torch.Tensor:
    azimuth, zenith = (
        torch.from_numpy(events[name + suffix].to_numpy(copy=True))
        for name in ("azimuth", "zenith")
    )
    return unit_vector(azimuth, zenith)


def check_comparison(first: dict[str, object], second: dict[str, object], tmp_path: Path) -> None:
    """Two configurations, judged on the same events: what `compare` says is what MLflow holds."""
    client = mlflow.MlflowClient()
    runs = [client.get_run(summary["mlflow_run_id"]) for summary in (first, second)]
    page = tmp_path / "comparison.html"
    comparison = run_compare([run.info.run_name for run in runs], page)
    assert comparison.n_events == first["n_events_test"]
    assert list(comparison.overall["model"]) == [run.info.run_name for run in runs]
    for row, run in zip(comparison.overall.to_dict("records"), runs, strict=True):
        assert row["mean_deg"] == pytest.approx(run.data.metrics["test/mean_deg"])
        assert row["median_deg"] == pytest.approx(run.data.metrics["test/median_deg"])
    difference = comparison.overall["difference"].iloc[1]
    assert difference == pytest.approx(
        runs[1].data.metrics["test/mean_deg"] - runs[0].data.metrics["test/mean_deg"]
    )
    # promotion scored the champion anew, in other batches: a seed fit between two minima may tip
    assert second["margin_deg"] == pytest.approx(-difference, abs=0.05)
    assert second["margin_error_deg"] == pytest.approx(comparison.overall["error"].iloc[1], rel=0.2)
    assert page.read_text().count("<table") >= 1


def check_saved_view(run_id: str) -> None:
    """Every column of the saved view has something to show for a real run."""
    client = mlflow.MlflowClient()
    run = client.get_run(run_id)
    view = json.loads(client.get_experiment(run.info.experiment_id).tags[SHARED_VIEW])
    known = {"metrics": run.data.metrics, "params": run.data.params, "tags": run.data.tags}
    for column in json.loads(view["state"])["selectedColumns"]:
        kind, name = column.rstrip("`").split(".`")
        assert name in known[kind]
