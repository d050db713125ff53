import json
import math
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from iceaggr.config import BatchConfig
from iceaggr.detector import icecube86
from iceaggr.errors import ConfigError, DetectorError, ModelError, RawDataError
from iceaggr.events.layout import find_layout
from iceaggr.models.bundle import load_model, save_model
from iceaggr.normalization_document import Normalization
from iceaggr.reconstruction.refinement import MIN_CHARGE_PE
from iceaggr.steps.predict import PredictionInput, run_predict
from iceaggr.storage import open_store
from tests.events.raw_layout import write_raw_layout
from tests.steps.conftest import small_model

# What a model is asked about: wrong files are refused and leave no file, few events are let by.

N_PER_FILE = 35
Change = Callable[[pd.DataFrame], object]


@pytest.fixture
def raw(tmp_path: Path) -> Path:
    write_raw_layout(tmp_path / "raw", n_files=2, n_events_per_file=N_PER_FILE, labels=False)
    return tmp_path / "raw"


def change(raw: Path, change_pulses: Change, numbers: tuple[int, ...] = (2,)) -> None:
    for number in numbers:
        path = raw / "test" / f"batch_{number}.parquet"
        pulses = pd.read_parquet(path)
        change_pulses(pulses)
        pulses.to_parquet(path)


def spoil(n_events: int) -> Change:
    """Make every charge of the first events negative."""

    def change_pulses(pulses: pd.DataFrame) -> None:
        spoilt = pulses.index.isin(pulses.index.unique()[:n_events])
        pulses.loc[spoilt, "charge"] = -1.0

    return change_pulses


def in_microseconds(pulses: pd.DataFrame) -> None:
    pulses["time"] //= 1000


def charge_in_other_units(pulses: pd.DataFrame) -> None:
    pulses["charge"] = np.clip(pulses["charge"] * 1e4, None, 9e5)


REFUSED = [
    (spoil(N_PER_FILE), r"too many events of a raw file .*batch_2\.parquet\]: found 100\.0% of 35"),
    (spoil(8), r"batch_2\.parquet\]: found 22\.9% of 35 events: .* at most 20\.0% \(data\.max_rej"),
    (in_microseconds, r"pulse times are not in nanoseconds \[.*batch_2\.parquet time\]: .* 124 ns"),
    (charge_in_other_units, r"not like those .*batch_2\.parquet log10_charge\]: found a median of"),
]


@pytest.mark.parametrize(("damage", "words"), REFUSED)
def test_file_that_is_wrong_as_a_whole_is_refused_and_nothing_is_written(
    trained_uri: str, raw: Path, tmp_path: Path, damage: Change, words: str
) -> None:
    change(raw, damage)
    with pytest.raises(RawDataError, match=rf"{words}.*nothing was written, and --accept-doubtful"):
        run_predict(trained_uri, raw.as_uri(), tmp_path / "out.csv")
    assert [path.name for path in tmp_path.iterdir()] == ["raw"]


@pytest.mark.parametrize(("damage", "words"), REFUSED)
def test_doubtful_file_is_predicted_with_a_warning_when_it_is_accepted(
    trained_uri: str,
    raw: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    damage: Change,
    words: str,
) -> None:
    change(raw, damage, (1, 2))
    n_rows = run_predict(trained_uri, raw.as_uri(), tmp_path / "out.parquet", accept_doubtful=True)
    assert n_rows == 2 * N_PER_FILE
    last = capsys.readouterr().out.splitlines()[-1]
    assert "; warning: " in last
    assert "batch_1.parquet" in last
    assert "and 1 more such files" in last


def test_sound_files_with_single_bad_events_are_predicted_without_a_warning(
    trained_uri: str, raw: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    change(raw, spoil(7))
    assert run_predict(trained_uri, raw.as_uri(), tmp_path / "out.parquet") == 2 * N_PER_FILE
    last = capsys.readouterr().out.splitlines()[-1]
    assert "7 of them without a valid pulse" in last
    assert "warning" not in last


def test_too_few_events_to_judge_are_predicted(trained_uri: str, tmp_path: Path) -> None:
    write_raw_layout(tmp_path / "raw", n_files=2, n_events_per_file=14, labels=False)
    change(tmp_path / "raw", in_microseconds, (1,))
    change(tmp_path / "raw", spoil(14))
    assert run_predict(trained_uri, (tmp_path / "raw").as_uri(), tmp_path / "out.parquet") == 28
    assert pd.read_parquet(tmp_path / "out.parquet")["kappa"].isna().sum() == 14


def test_many_small_files_are_judged_together(trained_uri: str, tmp_path: Path) -> None:
    write_raw_layout(tmp_path / "raw", n_files=3, n_events_per_file=14, labels=False)
    change(tmp_path / "raw", spoil(14), (1, 3))
    words = r"raw/test/, its 3 small files together\]: found 66\.7% of 42 events"
    with pytest.raises(RawDataError, match=words):
        run_predict(trained_uri, (tmp_path / "raw").as_uri(), tmp_path / "out.parquet")
    assert [path.name for path in tmp_path.iterdir()] == ["raw"]


@pytest.mark.parametrize(
    ("name", "unpredicted", "rows", "words"),
    [
        ("out.csv", "", [0, 0], "have azimuth 0, zenith 0"),
        ("out.csv", "nan", [np.nan, np.nan], "have azimuth nan, zenith nan"),
        ("out.csv", "leave-out", None, "2 more without a valid pulse are left out"),
        ("out.parquet", "zero", [0, 0, np.nan], "have azimuth 0, zenith 0"),
        ("out.parquet", "leave-out", None, "68 events of test/"),
    ],
)
def test_event_without_a_valid_pulse_gets_what_was_asked_for(
    trained_uri: str,
    raw: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    name: str,
    unpredicted: str,
    rows: list[float] | None,
    words: str,
) -> None:
    change(raw, spoil(2))
    spoilt = pd.read_parquet(raw / "test" / "batch_2.parquet").index.unique()[:2]
    output = tmp_path / name
    n_rows = run_predict(trained_uri, raw.as_uri(), output, unpredicted)
    table = (pd.read_csv if output.suffix == ".csv" else pd.read_parquet)(output)
    found = table[table["event_id"].isin(spoilt)].drop(columns="event_id")
    assert len(table) == n_rows == 2 * N_PER_FILE - (2 if rows is None else 0)
    np.testing.assert_array_equal(found.to_numpy(float), [rows] * 2 if rows else found)
    assert len(found) == (2 if rows else 0)
    assert words in capsys.readouterr().out.splitlines()[-1]


@pytest.fixture(scope="module")
def model_uri(tmp_path_factory: pytest.TempPathFactory) -> str:
    model = small_model(Normalization.seed())
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


def test_predict_refines_bright_events_only_and_says_so(
    model_uri: str, raw_uri: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = raw_copy(raw_uri, tmp_path)
    path = folder / "test" / "batch_1.parquet"
    pulses = pd.read_parquet(path)
    triggering = (~pulses["auxiliary"]).groupby(level=0).sum()
    bright = int(triggering.idxmax())
    pulses.loc[bright, "charge"] = np.float32(2 * MIN_CHARGE_PE["ice"] / triggering.max())
    others = pulses.index != bright
    pulses.loc[others, "charge"] = pulses.loc[others, "charge"].clip(upper=0.1)
    pulses.to_parquet(path)
    (folder / "test" / "batch_2.parquet").unlink()
    tables = []
    for refine in (False, True):
        output = tmp_path / f"refine_{refine}.parquet"
        run_predict(model_uri, folder.as_uri(), output, accept_doubtful=True, refine=refine)
        tables.append(pd.read_parquet(output).set_index("event_id"))
    words = capsys.readouterr().out.splitlines()[-1]
    assert re.search(
        r"; 1 of 50 .* at least 30 p\.e\. that triggered, the default in ice, are refined"
        r" \(.* ms of one",
        words,
    )
    moved = (tables[0] != tables[1]).any(axis=1)
    assert moved[moved].index.tolist() == [bright]
    assert np.isfinite(tables[1].to_numpy()).all()
    output = tmp_path / "refine_above.parquet"
    run_predict(
        model_uri, folder.as_uri(), output, accept_doubtful=True, refine=True, refine_above_pe=500.0
    )
    assert (
        "; 0 of 50 events with at least 500 p.e. that triggered are refined"
        in capsys.readouterr().out.splitlines()[-1]
    )
    pd.testing.assert_frame_equal(pd.read_parquet(output).set_index("event_id"), tables[0])


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


def test_rejected_ids_are_handed_out_once(model_uri: str, faulty_uri: str) -> None:
    store = open_store()
    layout, loaded = find_layout(store, faulty_uri), load_model(store, model_uri)
    events = PredictionInput(store, layout, loaded, accept_doubtful=True)
    taken = [(events.take_rejected_ids(), chunk)[0] for chunk in events.chunks()]
    taken += [events.take_rejected_ids(), events.take_rejected_ids()]
    assert sorted(len(ids) for ids in taken if ids) == [1, 20]
    assert taken[-1] == []
    assert events.account().rejected_events.total() == 21


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


def test_predict_refuses_events_of_another_medium_than_the_models(
    model_uri: str, raw_uri: str, tmp_path: Path
) -> None:
    uri = raw_copy(raw_uri, tmp_path).as_uri()
    path = tmp_path / "raw" / "sensor_geometry.csv"
    table = pd.read_csv(path)
    table.assign(medium="ice").to_csv(path, index=False)
    assert run_predict(model_uri, uri, tmp_path / "out.parquet") == 100
    table.assign(medium="water").to_csv(path, index=False)
    with pytest.raises(DetectorError, match=r"same sensors, but in water.*1 cm, in ice.*medium"):
        run_predict(model_uri, uri, tmp_path / "out.parquet")


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
