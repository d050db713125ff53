import hashlib
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from iceaggr.cli_options import MAX_PROCESSES, MAX_SEED, MAX_SIMULATED_EVENTS
from iceaggr.detector import Detector
from iceaggr.errors import RawDataError
from iceaggr.events.simulation import SimulationConfig, simulate
from iceaggr.events.simulation import run as run_module
from iceaggr.events.truth import read_truth
from iceaggr.steps.check_simulation import read_sample
from iceaggr.storage import open_store
from tests.events.simulation.conftest import SAMPLE


def write(folder: Path, **settings) -> None:
    simulate(open_store(), f"file://{folder}", SimulationConfig(**{"preset": "easy"} | settings))


def files(folder: Path) -> dict[str, bytes]:
    found = (path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in found}


def test_layout_is_the_public_one(sample, columns):
    folder, summary = sample
    expected = {"train_meta.parquet", "sensor_geometry.csv", "simulation.json"}
    expected |= {f"{kind}/batch_{k}.parquet" for kind in ("train", "truth") for k in (1, 2, 3)}
    assert set(files(folder)) == expected
    assert summary.n_files == 3
    batch = pd.read_parquet(folder / "train/batch_1.parquet")
    assert batch.index.name == "event_id"
    kinds = {name: str(kind) for name, kind in batch.dtypes.items()}
    assert kinds == {
        "sensor_id": "int16", "time": "int64", "charge": "float64", "auxiliary": "bool"
    }  # fmt: skip
    geometry = pd.read_csv(folder / "sensor_geometry.csv")
    assert list(geometry.columns) == ["sensor_id", "x", "y", "z"]
    assert len(geometry) == 5160


def test_meta_points_at_the_pulses_of_its_events(sample, columns):
    meta = columns("train_meta.parquet")
    assert meta["batch_id"].tolist() == sorted(meta["batch_id"])
    for k in (1, 2, 3):
        rows = meta["batch_id"] == k
        batch = columns(f"train/batch_{k}.parquet")
        first, last = meta["first_pulse_index"][rows], meta["last_pulse_index"][rows]
        assert first[0] == 0
        assert last[-1] == len(batch["time"]) - 1
        np.testing.assert_array_equal(first[1:], last[:-1] + 1)
        np.testing.assert_array_equal(
            np.repeat(meta["event_id"][rows], last - first + 1), batch["event_id"]
        )


def test_meta_has_one_row_group_per_batch_file(sample):
    folder, _ = sample
    meta = pq.ParquetFile(folder / "train_meta.parquet")
    sizes = [meta.metadata.row_group(k).num_rows for k in range(meta.num_row_groups)]
    assert sizes == [1_700, 1_700, 600]


def test_pulses_are_sorted_by_time_in_each_event(columns):
    batch = columns("train/batch_2.parquet")
    same = batch["event_id"][1:] == batch["event_id"][:-1]
    assert (np.diff(batch["time"])[same] >= 0).all()


def test_truth_lists_the_same_events_and_its_muon_stays_near_the_label(columns):
    meta = columns("train_meta.parquet")
    truth = columns("truth/batch_1.parquet")
    rows = meta["batch_id"] == 1
    np.testing.assert_array_equal(truth["event_id"], meta["event_id"][rows])
    track = truth["topology"] == "track"
    assert np.isfinite(truth["muon_zenith"][track]).all()
    assert np.isnan(truth["muon_zenith"][~track]).all()
    zenith, turn = meta["zenith"][rows], meta["azimuth"][rows] - truth["muon_azimuth"]
    cosine = np.cos(zenith) * np.cos(truth["muon_zenith"])
    cosine += np.sin(zenith) * np.sin(truth["muon_zenith"]) * np.cos(turn)
    np.testing.assert_allclose(
        np.arccos(np.clip(cosine[track], -1, 1)), truth["neutrino_muon_angle"][track], atol=1e-6
    )
    assert 0.003 < np.median(truth["neutrino_muon_angle"][track]) < 0.05


def test_about_half_to_two_thirds_are_cascades(columns):
    topology = np.concatenate([columns(f"truth/batch_{k}.parquet")["topology"] for k in (1, 2, 3)])
    assert 0.55 <= (topology == "cascade").mean() <= 0.61


def test_data_do_not_depend_on_the_number_of_processes(sample, tmp_path):
    folder, _ = sample
    write(tmp_path / "one", **SAMPLE.model_dump() | {"n_processes": 1, "n_events": 1_700})
    for name in ("train/batch_1.parquet", "truth/batch_1.parquet"):
        assert (tmp_path / "one" / name).read_bytes() == (folder / name).read_bytes()


def test_more_events_extend_the_same_data(sample, tmp_path):
    folder, _ = sample
    write(tmp_path / "short", n_events=700, n_events_per_file=1_700, seed=1, n_processes=1)
    few = pd.read_parquet(tmp_path / "short/train/batch_1.parquet")
    many = pd.read_parquet(folder / "train/batch_1.parquet")
    pd.testing.assert_frame_equal(few, many.iloc[: len(few)])


def test_another_seed_gives_other_events_with_other_ids(sample, tmp_path):
    folder, _ = sample
    write(tmp_path / "other", n_events=100, seed=2, n_processes=1)
    other = pd.read_parquet(tmp_path / "other/train_meta.parquet")
    first = pd.read_parquet(folder / "train_meta.parquet")
    assert not set(other["event_id"]) & set(first["event_id"])
    assert not np.isin(other["zenith"], first["zenith"]).any()


def test_unlabelled_data_carry_no_direction_and_the_same_pulses(sample, tmp_path):
    folder, _ = sample
    write(tmp_path / "test", n_events=200, seed=1, labels=False, n_processes=1)
    assert set(files(tmp_path / "test")) == {
        "test/batch_1.parquet", "test_meta.parquet", "sensor_geometry.csv", "simulation.json"
    }  # fmt: skip
    meta = pq.read_table(tmp_path / "test/test_meta.parquet")
    expected = ["batch_id", "event_id", "first_pulse_index", "last_pulse_index"]
    assert meta.column_names == expected
    blind = pd.read_parquet(tmp_path / "test/test/batch_1.parquet")
    labelled = pd.read_parquet(folder / "train/batch_1.parquet").iloc[: len(blind)]
    pd.testing.assert_frame_equal(blind, labelled)


def test_interrupted_run_has_no_meta_and_can_be_started_again(tmp_path):
    class InterruptedByHandError(Exception):
        pass

    def stop(n_done: int) -> None:
        if n_done > 500:
            raise InterruptedByHandError("stopped by hand")

    config = SimulationConfig(n_events=1_000, n_events_per_file=400, n_processes=1)
    folder = tmp_path / "raw"
    with pytest.raises(InterruptedByHandError, match="stopped by hand"):
        simulate(open_store(), f"file://{folder}", config, stop)
    assert "train/batch_2.parquet" in files(folder)
    assert "train_meta.parquet" not in files(folder)
    write(folder, n_events=300, n_events_per_file=400, n_processes=1)
    assert "train/batch_2.parquet" not in files(folder)
    assert json.loads((folder / "simulation.json").read_text())["n_events"] == 300
    assert len(pd.read_parquet(folder / "train_meta.parquet")) == 300


def test_complete_folder_is_refused(sample):
    folder, _ = sample
    before = files(folder)
    with pytest.raises(RawDataError, match="already holds complete raw events"):
        write(folder, n_events=10)
    assert files(folder) == before


def test_foreign_files_are_never_deleted(tmp_path):
    foreign = tmp_path / "raw/train/batch_1.parquet"
    foreign.parent.mkdir(parents=True)
    foreign.write_bytes(b"measured data")
    with pytest.raises(RawDataError, match="files that another writer wrote"):
        write(tmp_path / "raw", n_events=10)
    assert foreign.read_bytes() == b"measured data"


def test_progress_counts_events_up_to_the_end(tmp_path):
    seen: list[int] = []
    config = SimulationConfig(n_events=700, n_processes=1)
    summary = simulate(open_store(), f"file://{tmp_path}/raw", config, seen.append)
    assert seen == [500, 700]
    assert summary.n_events == 700
    assert summary.n_interactions_tried > 700


def test_dead_worker_is_a_clear_error(tmp_path, monkeypatch):
    monkeypatch.setattr(run_module, "simulate_block", leave)
    with pytest.raises(RawDataError, match="a simulation process died"):
        write(tmp_path / "raw", n_events=1_000, n_processes=2)


def leave(config: SimulationConfig, detector: Detector, block: int) -> None:
    import os

    os._exit(1)


def test_worker_processes_start_without_torch():
    script = "import sys, iceaggr.events.simulation.run; print('torch' in sys.modules)"
    shown = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert shown.stdout.strip() == "False", shown.stderr


def test_energies_in_the_wrong_order_are_refused():
    with pytest.raises(ValueError, match=r"a lower energy below the upper one, not 1e\+09"):
        SimulationConfig(min_energy_gev=1e9)


def test_every_number_has_two_bounds_and_those_of_the_command_are_the_same():
    fields = SimulationConfig.model_json_schema()["properties"]
    numbers = {name: of for name, of in fields.items() if of["type"] in ("integer", "number")}
    for name, of in numbers.items():
        assert {"minimum", "exclusiveMinimum"} & set(of), name
        assert {"maximum", "exclusiveMaximum"} & set(of), name
    assert numbers["n_events"]["maximum"] == MAX_SIMULATED_EVENTS
    assert numbers["n_events_per_file"]["maximum"] == MAX_SIMULATED_EVENTS
    assert numbers["n_processes"]["maximum"] == MAX_PROCESSES
    assert numbers["seed"]["exclusiveMaximum"] == MAX_SEED + 1


# sha256 of the columns of the pulses, made by the commit before there were presets
OF_BEFORE = {
    "train/batch_1.parquet": "8324e513169fbf86a71d491c97be91924d38a995a88c1e88dea389617685e88a",
    "train/batch_2.parquet": "46fc32b4ad6dc2dfa48eb8a6ea83ad18581fd418b0c2b690d42b15b466bd02e5",
}


def test_easy_preset_gives_the_pulses_of_before_presets(tmp_path):
    settings = {"n_events": 1_000, "n_events_per_file": 700, "seed": 7, "n_processes": 1}
    write(tmp_path / "raw", preset="easy", **settings)
    for name, expected in OF_BEFORE.items():
        batch = pd.read_parquet(tmp_path / "raw" / name).reset_index()
        columns = ("event_id", "sensor_id", "time", "charge", "auxiliary")
        content = b"".join(batch[column].to_numpy().tobytes() for column in columns)
        assert hashlib.sha256(content).hexdigest() == expected, name
    other = tmp_path / "competition"
    write(other, preset="competition", **settings)
    assert len(pd.read_parquet(other / "train_meta.parquet")) == 1_000
    assert not pd.read_parquet(other / "train/batch_1.parquet").equals(
        pd.read_parquet(tmp_path / "raw/train/batch_1.parquet")
    )


def test_a_preset_sets_what_is_not_given_and_says_so_with_the_data(tmp_path):
    assert SimulationConfig().muon_window_us == 50
    easy = SimulationConfig(preset="easy", spectral_index=3)
    assert (easy.muon_window_us, easy.min_energy_gev, easy.spectral_index) == (0, 60, 3)
    with pytest.raises(ValueError, match="preset"):
        SimulationConfig(preset="hard")
    write(tmp_path / "raw", preset="competition", n_events=20)
    written = json.loads((tmp_path / "raw/simulation.json").read_text())
    assert SimulationConfig(**written).model_dump(exclude={"n_processes"}) == {
        name: value for name, value in written.items() if name in SimulationConfig.model_fields
    }


def test_truth_tells_the_coincident_muon_and_the_label_stays_the_neutrinos(tmp_path):
    write(tmp_path / "raw", preset="competition", n_events=1_000, n_processes=2)
    meta = pq.read_table(tmp_path / "raw/train_meta.parquet").to_pandas()
    truth = pq.read_table(tmp_path / "raw/truth/batch_1.parquet").to_pandas()
    has_muon = truth["coincident_muon"]
    assert 0.2 < has_muon.mean() < 0.4
    assert truth["coincident_muon_zenith"].notna().equals(has_muon)
    assert (truth["coincident_muon_pe"] > 0).equals(has_muon)
    # bundles come from above, neutrinos from everywhere, also where only the muon is seen
    assert truth["coincident_muon_zenith"].max() < np.pi / 2
    unseen = truth["neutrino_pe"] == 0
    assert 0.1 < unseen.mean() < 0.3
    assert has_muon[unseen].mean() > 0.98
    assert 0.4 < (meta["zenith"][unseen] > np.pi / 2).mean() < 0.6
    assert set(truth["interaction"]) == {"cc", "nc"}
    assert set(truth["flavour"].abs()) == {12, 14, 16}
    read = read_truth(open_store(), f"file://{tmp_path}/raw")
    assert {"coincident_muon", "coincident_muon_zenith", "coincident_muon_azimuth"} <= set(read)


def test_a_muons_light_follows_its_own_direction(tmp_path):
    """The line fit of events with a muon's light alone points to the muon, not to the label."""
    write(tmp_path / "raw", preset="competition", n_events=1_500, n_processes=2, seed=3)
    truth = pq.read_table(tmp_path / "raw/truth/batch_1.parquet").to_pandas()
    sample = read_sample(open_store(), f"file://{tmp_path}/raw")
    alone = ((truth["neutrino_pe"] == 0) & (truth["coincident_muon_pe"] > 30)).to_numpy()
    assert alone.sum() > 80
    assert sample.angles_rad["line fit"][alone].mean() > 1.3
    zenith, azimuth = (truth[f"coincident_muon_{name}"] for name in ("zenith", "azimuth"))
    meta = pq.read_table(tmp_path / "raw/train_meta.parquet").to_pandas()
    relabelled = meta.assign(zenith=zenith.fillna(1.0), azimuth=azimuth.fillna(1.0))
    frame = pa.Table.from_pandas(relabelled, preserve_index=False)
    pq.write_table(frame, tmp_path / "raw/train_meta.parquet")
    of_muon = read_sample(open_store(), f"file://{tmp_path}/raw")
    assert of_muon.angles_rad["line fit"][alone].mean() < 0.8


def test_a_preset_of_icecube_is_refused_for_other_detectors():
    assert SimulationConfig(detector="hexagon").preset == "easy"
    with pytest.raises(ValueError, match="those of icecube86 in ice"):
        SimulationConfig(detector="hexagon", preset="competition")
    with pytest.raises(ValueError, match="those of icecube86 in ice"):
        SimulationConfig(medium="water", muon_window_us=10)
