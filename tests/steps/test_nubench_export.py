"""The benchmark's layout from raw events: test events only, with the truth, and what they are."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from iceaggr.batches.collation import iter_batches
from iceaggr.config import BatchConfig, ExperimentConfig
from iceaggr.detector import icecube86
from iceaggr.errors import ConfigError, EvaluationError, RawDataError
from iceaggr.evaluation.baselines import CLASSICAL_FITS, BaselineTimer
from iceaggr.evaluation.prediction_files import facts_of, read_predictions
from iceaggr.evaluation.published import DataOrigin
from iceaggr.events.reading import read_raw_events
from iceaggr.shards.split import TEST, split_idx
from iceaggr.steps.compare import QUICK_FITS, run_evaluate_predictions, run_export
from iceaggr.steps.documents import EvaluationPointer
from iceaggr.steps.evaluate_model import origin_of, parquet_of
from iceaggr.steps.predict import run_predict
from iceaggr.steps.run_folder import RunFolder
from iceaggr.storage import open_store
from iceaggr.validation import sha256_of
from tests.events.raw_layout import write_raw_layout
from tests.steps.conftest import SETTINGS


def write_truth(folder: Path, **columns: object) -> pd.DataFrame:
    """Write the truth of all events; None leaves a column out."""
    event_id = pd.read_parquet(folder / "train_meta.parquet")["event_id"].to_numpy()
    rng = np.random.default_rng(8)
    is_track = rng.random(len(event_id)) < 0.5
    sound = {
        "event_id": event_id,
        "energy_gev": 10 ** rng.uniform(1, 5, len(event_id)),
        "interaction": np.where(is_track, "cc", "nc"),
        "flavour": np.where(is_track, -14, 14),
        "muon_zenith": np.where(is_track, 0.5, np.nan),
        "muon_azimuth": np.where(is_track, 1.5, np.nan),
        "vertex_z_m": rng.uniform(-500, 500, len(event_id)),
    }
    truth = pd.DataFrame({k: v for k, v in (sound | columns).items() if v is not None})
    (folder / "truth").mkdir(exist_ok=True)
    truth.to_parquet(folder / "truth" / "batch_1.parquet", index=False)
    return truth.set_index("event_id")


@pytest.fixture
def raw(tmp_path: Path) -> Path:
    write_raw_layout(tmp_path / "raw", n_files=2, n_events_per_file=35)
    return tmp_path / "raw"


def exported(trained_uri: str, raw: Path, output: Path) -> pd.DataFrame:
    run_predict(trained_uri, raw.as_uri(), output, layout_name="nubench")
    return read_predictions(output).events


def test_test_events_of_the_models_split_are_written_with_truth_and_label(
    trained_uri: str, raw: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    truth = write_truth(raw)
    found = exported(trained_uri, raw, tmp_path / "mine_direction.parquet").set_index("event_id")
    meta = pd.read_parquet(raw / "train_meta.parquet").set_index("event_id")
    data = SETTINGS.data
    ids = meta.index.to_numpy()
    split = split_idx(ids, data.split_salt, data.validation_share, data.test_share)
    assert sorted(found.index) == sorted(ids[split == TEST])
    assert 15 < len(found) < 45
    for name in ("energy_gev", "interaction", "flavour", "vertex_z_m", "muon_zenith"):
        assert found[name].equals(truth.loc[found.index, name].astype(found[name].dtype))
    assert found["true_zenith"].to_numpy() == pytest.approx(meta.loc[found.index, "zenith"])
    assert f"{len(found)} events of train/ in " in capsys.readouterr().out
    # the same directions as a plain prediction has
    run_predict(trained_uri, raw.as_uri(), tmp_path / "plain.parquet")
    plain = pd.read_parquet(tmp_path / "plain.parquet").set_index("event_id").loc[found.index]
    assert found["zenith"].to_numpy() == pytest.approx(plain["zenith"], abs=1e-5)
    assert found["kappa"].to_numpy() == pytest.approx(plain["kappa"], rel=1e-4)
    assert read_predictions(tmp_path / "mine_direction.parquet").settings["n_bootstrap"] == 123


def test_a_file_from_raw_events_has_the_quick_fits_as_rivals(
    trained_uri: str, raw: Path, tmp_path: Path
) -> None:
    write_truth(raw)
    output = tmp_path / "mine_direction.parquet"
    found = exported(trained_uri, raw, output).set_index("event_id")
    detector, store = icecube86(), open_store()
    expected: dict[int, tuple[float, float]] = {}
    chunks = read_raw_events(store, raw.as_uri(), "train", detector)
    for batch in iter_batches(chunks, detector, BatchConfig(n_events=64)):
        timer = BaselineTimer({name: CLASSICAL_FITS[name] for name in QUICK_FITS})
        angles = timer.angles_deg(batch)
        rows = zip(angles["line_fit"], angles["tensor_of_inertia"], strict=True)
        expected |= dict(zip(batch.event_id.tolist(), rows, strict=True))
    for name, k in (("line_fit", 0), ("tensor_of_inertia", 1)):
        of_run = [expected[event_id][k] for event_id in found.index]
        assert found[f"{name}_angle_deg"].to_numpy() == pytest.approx(of_run, abs=1e-4)
    evaluation = run_evaluate_predictions(output)
    assert {"line_fit", "improved_line_fit"} <= {one.name for one in evaluation.summaries}


def test_official_test_selection_goes_before_the_split_by_id(
    trained_uri: str, raw: Path, tmp_path: Path
) -> None:
    write_truth(raw)
    meta = pd.read_parquet(raw / "train_meta.parquet")
    official = np.where(np.arange(len(meta)) % 7 == 0, "test", "train")
    meta.assign(split=official).to_parquet(raw / "train_meta.parquet", index=False)
    found = exported(trained_uri, raw, tmp_path / "mine_direction.parquet")
    assert found["event_id"].tolist() == sorted(meta["event_id"][official == "test"])


def test_events_without_what_the_benchmark_holds_are_refused_before_any_is_predicted(
    trained_uri: str, raw: Path, tmp_path: Path
) -> None:
    output = tmp_path / "mine_direction.parquet"
    with pytest.raises(ConfigError, match=r"events have no truth \[--layout nubench\]"):
        exported(trained_uri, raw, output)
    write_truth(raw, flavour=None)
    with pytest.raises(EvaluationError, match="found no flavour, expected interaction"):
        exported(trained_uri, raw, output)
    write_truth(raw)
    with pytest.raises(ConfigError, match="the benchmark's tool would not find this file"):
        exported(trained_uri, raw, tmp_path / "mine.parquet")
    assert not output.exists()
    output.write_text("my notes")
    with pytest.raises(ConfigError, match="a file of something else has this name"):
        exported(trained_uri, raw, output)


def test_events_without_labels_are_refused(trained_uri: str, tmp_path: Path) -> None:
    write_raw_layout(tmp_path / "bare", n_files=1, n_events_per_file=35, labels=False)
    with pytest.raises(ConfigError, match=r"events have no truth .* found .*test/ without labels"):
        exported(trained_uri, tmp_path / "bare", tmp_path / "mine_direction.parquet")


def note(folder: Path, name: str, **content: object) -> str:
    folder.mkdir(exist_ok=True)
    (folder / name).write_text(json.dumps(content))
    return folder.as_uri()


def test_origin_is_what_lies_beside_the_raw_events(tmp_path: Path) -> None:
    store, detector = open_store(), icecube86()
    real = tmp_path / "real"
    real.mkdir()
    assert origin_of(store, real.as_uri(), detector) == DataOrigin(azimuth_period_deg=60)
    old = note(tmp_path / "old", "simulation.json", seed=1)
    assert origin_of(store, old, detector).preset == "easy"
    new = note(tmp_path / "new", "simulation.json", seed=1, preset="competition")
    assert origin_of(store, f"{new}/", detector).preset == "competition"
    counts = {"train": 80, "test": 15, "left_out": 5}
    converted = note(
        tmp_path / "nubench", "conversion.json", layout="nubench", root_uri=old, n_events=counts
    )
    assert origin_of(store, converted, detector) == DataOrigin("", "easy", 15, 100, 60)
    (tmp_path / "old" / "simulation.json").unlink()
    assert origin_of(store, converted, detector) == DataOrigin("", "", 15, 100, 60)


def test_damaged_note_is_named(tmp_path: Path) -> None:
    (tmp_path / "simulation.json").write_text("{")
    with pytest.raises(RawDataError, match=r"note beside the raw events is damaged .*simulation"):
        origin_of(open_store(), tmp_path.as_uri(), icecube86())


def test_run_in_a_folder_is_exported_as_it_was_scored(raw: Path, tmp_path: Path) -> None:
    rng = np.random.default_rng(4)
    n_events = 50
    angles = {
        f"{of}{name}": rng.uniform(0.1, 3.0, n_events)
        for of in ("", "true_", "muon_")
        for name in ("azimuth", "zenith")
    }
    events = pd.DataFrame(
        {
            "event_id": np.arange(n_events),
            **angles,
            "kappa": rng.uniform(1, 50, n_events),
            "energy_gev": 10 ** rng.uniform(1, 5, n_events),
            "interaction": "cc",
            "flavour": 14,
            "line_fit_angle_deg": rng.uniform(0, 180, n_events),
        }
    )
    facts = facts_of(DataOrigin("Hexagon", "easy", n_official=50), {"n_bootstrap": 321})
    data = parquet_of(events, facts)
    run = RunFolder.create(tmp_path / "run", raw.as_uri(), "", "test", ExperimentConfig())
    events_uri = (tmp_path / "events.parquet").as_uri()
    open_store().write_bytes(events_uri, data)
    pointer = EvaluationPointer(
        model_digest="m",
        data_digest="d",
        events_uri=events_uri,
        events_sha256=sha256_of(data),
        report_uri=events_uri,
        n_events=n_events,
        table=(),
    )
    run.evaluation.write_text(pointer.model_dump_json())
    output = tmp_path / "mine_direction.parquet"
    assert run_export(tmp_path / "run", "", output) == n_events
    read = read_predictions(output)
    assert read.origin == DataOrigin("Hexagon", "easy", n_official=50)
    assert read.settings == {"n_bootstrap": 321}
    found, expected = read.events, events
    for name in ("true_azimuth", "true_zenith", "kappa", "energy_gev", "line_fit_angle_deg"):
        assert found[name].tolist() == expected[name].tolist()
    assert found["zenith"].to_numpy() == pytest.approx(expected["zenith"], abs=1e-12)
    # written anew over its own, never over a table that was changed since
    assert run_export(tmp_path / "run", "", output) == n_events
    open_store().write_bytes(events_uri, parquet_of(events.head(10), facts))
    with pytest.raises(EvaluationError, match="table of test events was changed"):
        run_export(tmp_path / "run", "", output)
