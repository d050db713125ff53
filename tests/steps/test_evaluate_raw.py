"""Labelled raw events scored: a model beside the fits, of few events a row for each."""

import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from typer.testing import CliRunner

from iceaggr import cli
from iceaggr.angles import opening_angle
from iceaggr.batches.collation import iter_batches
from iceaggr.config import BatchConfig
from iceaggr.detector import icecube86
from iceaggr.errors import ConfigError, EvaluationError, RawDataError
from iceaggr.evaluation.baselines import CLASSICAL_FITS, BaselineTimer
from iceaggr.evaluation.calibration import probability_inside
from iceaggr.evaluation.event_table import directions
from iceaggr.evaluation.report import plus_minus
from iceaggr.events.reading import read_raw_events
from iceaggr.models.bundle import load_model, save_model
from iceaggr.steps.compare import LISTED
from iceaggr.steps.predict import MAX_EVENTS_LISTED, run_evaluate_raw, run_predict
from iceaggr.storage import open_store
from tests.events.raw_layout import write_raw_layout
from tests.steps.conftest import SETTINGS

REAL = Path(__file__).parents[3] / "shared" / "data" / "real" / "competition_train"


@pytest.fixture
def raw(tmp_path: Path) -> Path:
    write_raw_layout(tmp_path / "raw", n_files=2, n_events_per_file=6)
    return tmp_path / "raw"


def change_meta(raw: Path, change: Callable[[pd.DataFrame], pd.DataFrame]) -> None:
    meta = pd.read_parquet(raw / "train_meta.parquet")
    change(meta).to_parquet(raw / "train_meta.parquet", index=False)


def listed(text: str) -> pd.DataFrame:
    """Read the rows of the events back from what was printed."""
    lines = [line for line in text.splitlines() if line.startswith("|")]
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    assert set("".join(cells[1])) == {"-", ":"}
    return pd.DataFrame(cells[2:], columns=cells[0]).set_index("event")


def angles_deg(table: pd.DataFrame, meta: pd.DataFrame) -> pd.Series:
    """Measure predicted directions against the meta file's, event by event."""
    meta = meta.set_index("event_id").loc[table["event_id"]]
    angle = opening_angle(*(directions(one, "azimuth", "zenith") for one in (table, meta)))
    return pd.Series(torch.rad2deg(angle).numpy(), table["event_id"].map(str))


def test_each_event_has_the_angles_of_model_and_fits_to_its_label(
    trained_uri: str, raw: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run_predict(trained_uri, raw.as_uri(), tmp_path / "out.parquet")
    predicted = pd.read_parquet(tmp_path / "out.parquet")
    meta = pd.read_parquet(raw / "train_meta.parquet")
    capsys.readouterr()
    options = ["evaluate", "--model", trained_uri, "--raw-uri", f"{raw.as_uri()}/"]
    result = CliRunner().invoke(cli.app, options)
    assert result.exit_code == 0, result.output
    rows = listed(result.output)
    assert sorted(rows.index) == sorted([*meta["event_id"].map(str), "mean"])
    events = rows.drop("mean")
    truth = meta.set_index(meta["event_id"].map(str)).loc[events.index]
    n_pulses = truth["last_pulse_index"] - truth["first_pulse_index"] + 1
    assert events["pulses"].astype(int).tolist() == n_pulses.tolist()
    for name in ("zenith", "azimuth"):
        assert np.allclose(events[name].astype(float), np.rad2deg(truth[name]), atol=0.051)
    expected = angles_deg(predicted, meta).loc[events.index]
    assert np.allclose(events["model"].astype(float), expected, atol=0.051)
    assert float(rows["model"]["mean"].split(" ± ")[0]) == pytest.approx(expected.mean(), abs=0.06)
    kappa = predicted.set_index(predicted["event_id"].map(str))["kappa"].loc[events.index]
    assert np.allclose(events["kappa"].astype(float), kappa, rtol=0.01)
    radius = np.deg2rad(events["68 %"].astype(float).to_numpy())
    assert np.allclose(probability_inside(radius, kappa.to_numpy()), 0.68, atol=0.01)
    for name, angles in fitted(raw).items():
        assert np.allclose(events[LISTED[name]].astype(float), angles[events.index], atol=0.051)
    assert "12 events, nothing rejected" in result.output.splitlines()[-1]
    assert [path.name for path in tmp_path.iterdir() if path.suffix != ".parquet"] == ["raw"]


def fitted(raw: Path) -> dict[str, pd.Series]:
    """Fit the events of a folder by themselves: name of a fit -> degrees by event."""
    detector = icecube86()
    timer = BaselineTimer({name: CLASSICAL_FITS[name] for name in LISTED})
    chunks = read_raw_events(open_store(), raw.as_uri(), "train", detector)
    parts = [
        pd.DataFrame(timer.angles_deg(batch), index=batch.event_id.numpy().astype(str))
        for batch in iter_batches(chunks, detector, BatchConfig(n_events=4))
    ]
    return dict(pd.concat(parts).items())


def test_labels_are_meant_as_the_model_was_told(
    trained_uri: str, raw: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = run_evaluate_raw(trained_uri, raw.as_uri())
    change_meta(
        raw, lambda m: m.assign(azimuth=np.rad2deg(m["azimuth"]), zenith=np.rad2deg(m["zenith"]))
    )
    store = open_store()
    loaded = load_model(store, trained_uri)
    settings = SETTINGS.model_dump(mode="json")
    settings["data"]["label_reading"] = ["degrees"]
    uri = (tmp_path / "told").as_uri()
    save_model(store, uri, loaded.model, icecube86().to_csv(), {"experiment": settings})
    after = run_evaluate_raw(uri, raw.as_uri())
    for column in ("opening_angle_deg", "line_fit_angle_deg", "true_zenith"):
        assert np.allclose(after.events[column], before.events[column], atol=1e-3)
    capsys.readouterr()
    with pytest.raises(EvaluationError, match=r"no event to score .*has both a label"):
        run_evaluate_raw(trained_uri, raw.as_uri())


def test_an_event_without_a_label_is_left_out_and_counted(
    trained_uri: str, raw: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    change_meta(raw, lambda m: m.assign(zenith=m["zenith"].where(m.index != 3)))
    left_out = pd.read_parquet(raw / "train_meta.parquet")["event_id"][3]
    events = run_evaluate_raw(trained_uri, raw.as_uri()).events
    assert len(events) == 11
    assert left_out not in events["event_id"].tolist()
    assert "11 events, 1 more without a valid" in capsys.readouterr().out.splitlines()[-1]


def test_of_many_events_the_figures_are_printed_and_the_page_is_written_where_it_is_asked_for(
    trained_uri: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    n_events = MAX_EVENTS_LISTED + 2
    uri = write_raw_layout(tmp_path / "raw", n_files=2, n_events_per_file=n_events // 2)
    page = tmp_path / "page.html"
    evaluation = run_evaluate_raw(trained_uri, uri, page)
    told = capsys.readouterr().out
    assert "|" not in told
    for one in evaluation.summaries:
        assert re.search(rf"{one.title}  +{plus_minus(one.estimates['mean'])} ", told), one.title
    split = SETTINGS.data
    assert split.test_share == 0.4
    assert re.search(r"; \d\d of them fall into the test part of the model's split", told)
    assert evaluation.report_html == page.read_text()
    assert (tmp_path / "page.methods.csv").exists()
    page.write_text("notes")
    with pytest.raises(ConfigError, match=r"something else has this name \[--report"):
        run_evaluate_raw(trained_uri, uri, page)


def test_the_page_is_never_written_among_the_raw_events(trained_uri: str, raw: Path) -> None:
    before = sorted(raw.rglob("*"))
    with pytest.raises(ConfigError, match=r"among the raw events \[--report\]"):
        run_evaluate_raw(trained_uri, raw.as_uri(), raw / "train" / "page.html")
    assert sorted(raw.rglob("*")) == before


def test_events_without_labels_cannot_be_scored(trained_uri: str, tmp_path: Path) -> None:
    uri = write_raw_layout(tmp_path / "raw", n_files=1, n_events_per_file=3, labels=False)
    with pytest.raises(RawDataError, match=r"train_meta\.parquet"):
        run_evaluate_raw(trained_uri, uri)


@pytest.mark.parametrize(
    ("options", "found"),
    [
        (["--model", "m"], "found --model,"),
        (
            ["--folder", "f", "--model", "m", "--raw-uri", "r"],
            "found --folder, --model, --raw-uri,",
        ),
        (["--predictions", "a", "--predictions", "b"], "found --predictions, --predictions,"),
        ([], "found neither,"),
    ],
)
def test_one_thing_is_evaluated(options: list[str], found: str) -> None:
    result = CliRunner().invoke(cli.app, ["evaluate", *options])
    assert isinstance(result.exception, ConfigError)
    assert f"not one thing to evaluate [iceaggr evaluate]: {found}" in str(result.exception)


@pytest.mark.skipif(not REAL.is_dir(), reason="the twelve real events are not beside the checkout")
def test_the_real_events_have_their_table(
    trained_uri: str, capsys: pytest.CaptureFixture[str]
) -> None:
    run_evaluate_raw(trained_uri, REAL.as_uri(), accept_doubtful=True)
    rows = listed(capsys.readouterr().out)
    assert len(rows) == 13
    # measured in docs/physics.md, whatever the model
    assert rows.loc["mean", "line fit"].startswith("69.3 ± ")
    assert rows.loc["79", ["line fit", "ensemble", "likelihood"]].tolist() == ["3.6", "12.8", "0.9"]
