import json
import math
import shutil
from pathlib import Path

import pandas as pd
import pytest
import torch

from iceaggr.config import BatchConfig, ModelConfig
from iceaggr.detector import icecube86
from iceaggr.errors import ConfigError, DetectorError, ModelError, RawDataError
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


@pytest.fixture(scope="module")
def faulty_uri(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Raw events of which the first of each file has no valid pulse, and one file nothing else."""
    folder = tmp_path_factory.mktemp("faulty")
    uri = write_raw_layout(folder, n_files=2, n_events_per_file=20, labels=False)
    for path, n_spoilt in zip(sorted((folder / "test").iterdir()), (1, 20), strict=True):
        pulses = pd.read_parquet(path)
        spoilt = pulses.index.unique()[:n_spoilt]
        pulses.loc[pulses.index.isin(spoilt), "charge"] = -1.0
        pulses.to_parquet(path)
    return uri


def test_predict_keeps_the_row_of_an_event_without_a_valid_pulse(
    model_uri: str, faulty_uri: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_predict(model_uri, faulty_uri, tmp_path / "out.parquet", accept_doubtful=True) == 40
    table = pd.read_parquet(tmp_path / "out.parquet")
    meta = pd.read_parquet(Path(faulty_uri.removeprefix("file://")) / "test_meta.parquet")
    assert sorted(table["event_id"]) == sorted(meta["event_id"])
    unpredicted = table[table["kappa"].isna()]
    assert set(unpredicted["event_id"]) == {meta["event_id"][0], *meta["event_id"][20:]}
    assert unpredicted[["azimuth", "zenith"]].isna().all(axis=None)
    assert table[table["kappa"].notna()].notna().all(axis=None)
    last = capsys.readouterr().out.splitlines()[-1]
    assert "21 of them without a valid pulse have azimuth nan, zenith nan" in last


def test_predict_submits_a_direction_for_every_event(
    model_uri: str, faulty_uri: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run_predict(model_uri, faulty_uri, tmp_path / "submission.csv", accept_doubtful=True)
    table = pd.read_csv(tmp_path / "submission.csv").set_index("event_id")
    meta = pd.read_parquet(Path(faulty_uri.removeprefix("file://")) / "test_meta.parquet")
    assert sorted(table.index) == sorted(meta["event_id"])
    assert table["azimuth"].between(0, 2 * math.pi).all()
    assert table["zenith"].between(0, math.pi).all()
    assert (table.loc[meta["event_id"][20:]] == 0).all(axis=None)
    assert (table.loc[meta["event_id"][1:20]] != 0).all(axis=None)
    last = capsys.readouterr().out.splitlines()[-1]
    assert "21 of them without a valid pulse have azimuth 0, zenith 0" in last


def test_predict_reports_after_every_batch(
    model_uri: str, faulty_uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ICEAGGR_PROGRESS_FILE", str(tmp_path / "progress"))
    monkeypatch.setattr("iceaggr.progress._SECONDS_BETWEEN_UPDATES", 0.0)
    monkeypatch.setattr("iceaggr.steps.predict.batches_of", lambda loaded: BatchConfig(n_events=4))
    run_predict(model_uri, faulty_uri, tmp_path / "out.parquet", accept_doubtful=True)
    lines = [json.loads(line) for line in (tmp_path / "progress").read_text().splitlines()]
    done = [line["done"] for line in lines if line["kind"] == "update"]
    assert done == [5, 9, 13, 17, 20]
    assert {line["total"] for line in lines if line["kind"] == "update"} == {40}


@pytest.mark.parametrize(
    ("both", "words"), [(False, "100 events of test/ in"), (True, "test/ (train/ is left out) in")]
)
def test_predict_names_the_folder_that_it_predicted(
    model_uri: str,
    raw_uri: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    both: bool,
    words: str,
) -> None:
    folder = raw_copy(raw_uri, tmp_path)
    if both:
        write_raw_layout(folder, n_files=1, n_events_per_file=3)
    assert run_predict(model_uri, folder.as_uri(), tmp_path / "out.parquet") == 100
    assert words in capsys.readouterr().out.splitlines()[-1]


def test_predict_names_train_where_there_is_nothing_else(
    model_uri: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    uri = write_raw_layout(tmp_path / "raw", n_files=1, n_events_per_file=3)
    run_predict(model_uri, uri, tmp_path / "out.parquet")
    assert "3 events of train/ in" in capsys.readouterr().out.splitlines()[-1]


def raw_copy(raw_uri: str, tmp_path: Path) -> Path:
    """Copy the raw events, to be damaged."""
    folder = tmp_path / "raw"
    shutil.copytree(raw_uri.removeprefix("file://"), folder)
    return folder


def test_predict_refuses_an_event_id_that_two_files_share(
    model_uri: str, raw_uri: str, tmp_path: Path
) -> None:
    folder = raw_copy(raw_uri, tmp_path)
    meta = pd.read_parquet(folder / "test_meta.parquet")
    shared, other = meta["event_id"].iloc[0], meta["event_id"].iloc[-1]
    meta.loc[meta["event_id"] == other, "event_id"] = shared
    meta.to_parquet(folder / "test_meta.parquet", index=False)
    pulses = pd.read_parquet(folder / "test" / "batch_2.parquet")
    pulses.rename(index={other: shared}).to_parquet(folder / "test" / "batch_2.parquet")
    with pytest.raises(RawDataError, match=f"event_id {shared} in batch_id 1, 2"):
        run_predict(model_uri, folder.as_uri(), tmp_path / "out.parquet")
    assert not (tmp_path / "out.parquet").exists()


def test_predict_counts_the_events_whose_file_is_missing(
    model_uri: str, raw_uri: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = raw_copy(raw_uri, tmp_path)
    (folder / "test" / "batch_2.parquet").unlink()
    assert run_predict(model_uri, folder.as_uri(), tmp_path / "out.parquet") == 50
    assert "50 events have no raw file" in capsys.readouterr().out.splitlines()[-1]


def test_predict_names_a_file_that_the_meta_file_does_not_know_before_it_predicts(
    model_uri: str, raw_uri: str, tmp_path: Path
) -> None:
    folder = raw_copy(raw_uri, tmp_path)
    shutil.copy(folder / "test" / "batch_2.parquet", folder / "test" / "batch_7.parquet")
    with pytest.raises(RawDataError, match=r"no rows in the meta file \[.*batch_7.parquet"):
        run_predict(model_uri, folder.as_uri(), tmp_path / "out.parquet")


def test_predict_refuses_an_unknown_format(model_uri: str, raw_uri: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"unknown format \[--output .*out.json\]"):
        run_predict(model_uri, raw_uri, tmp_path / "out.json")


@pytest.mark.parametrize("name", ["folder.parquet", "x" * 250 + ".parquet", "no/out.csv"])
def test_predict_refuses_an_output_that_cannot_be_written_before_it_begins(
    raw_uri: str, tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "folder.parquet").mkdir()
    with pytest.raises(ConfigError, match=r"(cannot write here|folder does not exist) \[--output "):
        run_predict("file:///no-model", raw_uri, tmp_path / name)
    assert capsys.readouterr().out == ""


def test_predict_does_not_write_over_the_file_that_a_raw_link_names(
    model_uri: str, raw_uri: str, tmp_path: Path
) -> None:
    folder, elsewhere = raw_copy(raw_uri, tmp_path), tmp_path / "b1.parquet"
    (folder / "test" / "batch_1.parquet").rename(elsewhere)
    (folder / "test" / "batch_1.parquet").symlink_to(elsewhere)
    before = elsewhere.read_bytes()
    with pytest.raises(ConfigError, match=r"among the raw events .* found the file of file://"):
        run_predict(model_uri, folder.as_uri(), elsewhere)
    assert elsewhere.read_bytes() == before


def test_predict_takes_events_without_a_geometry_only_if_told_that_they_are_of_the_models_detector(
    model_uri: str, tmp_path: Path
) -> None:
    uri = write_raw_layout(tmp_path / "raw", 1, 20, labels=False)
    (tmp_path / "raw" / "sensor_geometry.csv").unlink()
    with pytest.raises(DetectorError, match=r"no geometry.*--same-detector"):
        run_predict(model_uri, uri, tmp_path / "out.parquet")
    assert run_predict(model_uri, uri, tmp_path / "out.parquet", same_detector=True) == 20


def test_predict_names_the_folder_that_holds_no_model(raw_uri: str, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="no saved model here"):
        run_predict((tmp_path / "none").as_uri(), raw_uri, tmp_path / "out.parquet")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["table.parquet", "table.csv", "notes.csv"])
def test_predict_overwrites_its_own_earlier_results_only(
    model_uri: str, raw_uri: str, tmp_path: Path, name: str
) -> None:
    path = tmp_path / name
    table = pd.DataFrame({"event_id": [1], "mine": [2]})
    table.to_parquet(path) if path.suffix == ".parquet" else table.to_csv(path, index=False)
    before = path.read_bytes()
    with pytest.raises(ConfigError, match=r"something else has this name \[--output"):
        run_predict(model_uri, raw_uri, path)
    assert path.read_bytes() == before
    path.unlink()
    assert run_predict(model_uri, raw_uri, path) == 100
    assert run_predict(model_uri, raw_uri, path) == 100
