from pathlib import Path

import pandas as pd
import pytest
import torch

from iceaggr.config import ModelConfig
from iceaggr.detector import icecube86
from iceaggr.errors import ConfigError, ModelError
from iceaggr.models import build_model
from iceaggr.models.bundle import save_model
from iceaggr.normalization import Normalization
from iceaggr.steps.predict import run_predict
from iceaggr.storage import open_store
from tests.events.raw_layout import write_raw_layout


@pytest.fixture(scope="module")
def model_uri(tmp_path_factory: pytest.TempPathFactory) -> str:
    torch.manual_seed(0)
    config = ModelConfig(d_model=8, n_heads=1, n_dom_layers=1, n_event_layers=1, dropout=0.0)
    model = build_model(config, Normalization.seed())
    uri = (tmp_path_factory.mktemp("model") / "saved").as_uri()
    return save_model(open_store(), uri, model, icecube86().to_csv(), {})


@pytest.fixture(scope="module")
def raw_uri(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_raw_layout(tmp_path_factory.mktemp("raw"), n_files=2, labels=False)


def test_predict_writes_a_row_per_event(model_uri: str, raw_uri: str, tmp_path: Path) -> None:
    assert run_predict(model_uri, raw_uri, tmp_path / "out.parquet") == 100
    table = pd.read_parquet(tmp_path / "out.parquet")
    assert list(table.columns) == ["event_id", "azimuth", "zenith", "kappa"]
    meta = pd.read_parquet(Path(raw_uri.removeprefix("file://")) / "test_meta.parquet")
    assert set(table["event_id"]) == set(meta["event_id"])
    assert [path.name for path in tmp_path.iterdir()] == ["out.parquet"]


def test_predict_writes_a_submission_with_the_same_angles(
    model_uri: str, raw_uri: str, tmp_path: Path
) -> None:
    run_predict(model_uri, raw_uri, tmp_path / "out.parquet")
    run_predict(model_uri, raw_uri, tmp_path / "submission.csv")
    submission = pd.read_csv(tmp_path / "submission.csv")
    assert list(submission.columns) == ["event_id", "azimuth", "zenith"]
    table = pd.read_parquet(tmp_path / "out.parquet")
    pd.testing.assert_frame_equal(submission, table[submission.columns], rtol=1e-12)


def test_predict_refuses_an_unknown_format(model_uri: str, raw_uri: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"unknown format \[--output .*out.json\]"):
        run_predict(model_uri, raw_uri, tmp_path / "out.json")


def test_predict_names_the_folder_that_holds_no_model(raw_uri: str, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="no saved model here"):
        run_predict((tmp_path / "none").as_uri(), raw_uri, tmp_path / "out.parquet")
    assert not list(tmp_path.iterdir())
