"""What a model is asked about: wrong files are refused and leave no file, few events are let by."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from iceaggr.config import ExperimentConfig, ModelConfig
from iceaggr.detector import icecube86
from iceaggr.errors import RawDataError
from iceaggr.events.reading import read_raw_events
from iceaggr.models import build_model
from iceaggr.models.bundle import save_model
from iceaggr.normalization import fit_normalization
from iceaggr.shards.sketches import merge_sketches
from iceaggr.shards.sketching import sketch_events
from iceaggr.steps.predict import run_predict
from iceaggr.storage import open_store
from tests.events.raw_layout import write_raw_layout

N_PER_FILE = 35
Change = Callable[[pd.DataFrame], object]


@pytest.fixture(scope="module")
def model_uri(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A model whose normalisation is fitted to events like those of `raw`."""
    store = open_store()
    trained = write_raw_layout(tmp_path_factory.mktemp("trained"), seed=5)
    sketches = [sketch_events(chunk, icecube86()) for chunk in read_raw_events(store, trained)]
    torch.manual_seed(0)
    config = ModelConfig(d_model=8, n_heads=1, n_dom_layers=1, n_event_layers=1, dropout=0.0)
    model = build_model(config, fit_normalization(merge_sketches(sketches)))
    settings = ExperimentConfig.model_validate({"data": {"max_rejected_share": 0.2}})
    facts = {"experiment": settings.model_dump(mode="json")}
    uri = (tmp_path_factory.mktemp("model") / "saved").as_uri()
    return save_model(store, uri, model, icecube86().to_csv(), facts)


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
    model_uri: str, raw: Path, tmp_path: Path, damage: Change, words: str
) -> None:
    change(raw, damage)
    with pytest.raises(RawDataError, match=rf"{words}.*nothing was written, and --accept-doubtful"):
        run_predict(model_uri, raw.as_uri(), tmp_path / "out.csv")
    assert [path.name for path in tmp_path.iterdir()] == ["raw"]


@pytest.mark.parametrize(("damage", "words"), REFUSED)
def test_doubtful_file_is_predicted_with_a_warning_when_it_is_accepted(
    model_uri: str,
    raw: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    damage: Change,
    words: str,
) -> None:
    change(raw, damage, (1, 2))
    n_rows = run_predict(model_uri, raw.as_uri(), tmp_path / "out.parquet", accept_doubtful=True)
    assert n_rows == 2 * N_PER_FILE
    last = capsys.readouterr().out.splitlines()[-1]
    assert "; warning: " in last
    assert "batch_1.parquet" in last
    assert "and 1 more such files" in last


def test_sound_files_with_single_bad_events_are_predicted_without_a_warning(
    model_uri: str, raw: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    change(raw, spoil(7))
    assert run_predict(model_uri, raw.as_uri(), tmp_path / "out.parquet") == 2 * N_PER_FILE
    last = capsys.readouterr().out.splitlines()[-1]
    assert "7 of them without a valid pulse" in last
    assert "warning" not in last


def test_too_few_events_to_judge_are_predicted(model_uri: str, tmp_path: Path) -> None:
    write_raw_layout(tmp_path / "raw", n_files=2, n_events_per_file=14, labels=False)
    change(tmp_path / "raw", in_microseconds, (1,))
    change(tmp_path / "raw", spoil(14))
    assert run_predict(model_uri, (tmp_path / "raw").as_uri(), tmp_path / "out.parquet") == 28
    assert pd.read_parquet(tmp_path / "out.parquet")["kappa"].isna().sum() == 14


def test_many_small_files_are_judged_together(model_uri: str, tmp_path: Path) -> None:
    write_raw_layout(tmp_path / "raw", n_files=3, n_events_per_file=14, labels=False)
    change(tmp_path / "raw", spoil(14), (1, 3))
    words = r"raw/test/, its 3 small files together\]: found 66\.7% of 42 events"
    with pytest.raises(RawDataError, match=words):
        run_predict(model_uri, (tmp_path / "raw").as_uri(), tmp_path / "out.parquet")
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
    model_uri: str,
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
    n_rows = run_predict(model_uri, raw.as_uri(), output, unpredicted)
    table = (pd.read_csv if output.suffix == ".csv" else pd.read_parquet)(output)
    found = table[table["event_id"].isin(spoilt)].drop(columns="event_id")
    assert len(table) == n_rows == 2 * N_PER_FILE - (2 if rows is None else 0)
    np.testing.assert_array_equal(found.to_numpy(float), [rows] * 2 if rows else found)
    assert len(found) == (2 if rows else 0)
    assert words in capsys.readouterr().out.splitlines()[-1]
