"""Simulated sets in NuBench's layouts: the events of our own files, read back by convert."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from pydantic import ValidationError

from iceaggr.errors import RawDataError
from iceaggr.events.conversion import ConversionSettings
from iceaggr.events.simulation import SimulationConfig, simulate
from iceaggr.steps.convert import run_convert
from iceaggr.storage import open_store

SMALL = {
    "n_events": 60,
    "seed": 3,
    "n_processes": 1,
    "detector": "triangle",
    "flavour": "numu",
    "min_energy_gev": 1e3,
    "max_energy_gev": 1e5,
}


@pytest.fixture(scope="module")
def sets(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The same events in all three layouts."""
    folders = {}
    for layout in ("raw", "nubench-sqlite", "nubench-parquet"):
        folders[layout] = tmp_path_factory.mktemp(layout) / "set"
        config = SimulationConfig(**SMALL, layout=layout, n_events_per_file=25)
        simulate(open_store(), folders[layout].as_uri(), config)
    return folders


def own_pulses(folder: Path) -> pd.DataFrame:
    files = sorted((folder / "train").glob("batch_*.parquet"))
    pulses = pd.concat([pd.read_parquet(file).reset_index() for file in files])
    return pulses.sort_values(["event_id", "time", "sensor_id", "charge"], ignore_index=True)


@pytest.mark.parametrize("layout", ["nubench-sqlite", "nubench-parquet"])
def test_converted_events_are_those_of_our_own_layout(
    sets: dict[str, Path], layout: str, tmp_path: Path
) -> None:
    out = tmp_path / "raw"
    run_convert([sets[layout]], ConversionSettings(), out.as_uri())
    meta = pd.read_parquet(out / "train_meta.parquet").set_index("event_id")
    own = pd.read_parquet(sets["raw"] / "train_meta.parquet").set_index("event_id")
    assert set(meta.index) == set(own.index)
    for name in ("azimuth", "zenith"):
        np.testing.assert_allclose(meta[name], own.loc[meta.index, name], atol=1e-12)
    train = meta.index[meta["split"] == "train"]
    found, expected = own_pulses(out), own_pulses(sets["raw"])
    columns = ["event_id", "sensor_id", "time", "charge"]
    pd.testing.assert_frame_equal(
        found.loc[found["event_id"].isin(train), columns].reset_index(drop=True),
        expected.loc[expected["event_id"].isin(train), columns].reset_index(drop=True),
        check_dtype=False,
    )
    # what is tested lacks the noise, and nothing but the noise
    of_test = [t[~t["event_id"].isin(train)] for t in (found, expected)]
    assert len(of_test[0]) < len(of_test[1])
    merged = of_test[0][columns].merge(of_test[1][columns], how="left", indicator=True)
    assert (merged["_merge"] == "both").all()


def test_truth_names_what_the_benchmark_names(sets: dict[str, Path]) -> None:
    with closing(sqlite3.connect(sets["nubench-sqlite"] / "merged" / "merged.db")) as connection:
        truth = pd.read_sql("SELECT * FROM mc_truth", connection).set_index("event_no")
        names = {n for (n,) in connection.execute("SELECT name FROM sqlite_master")}
    files = sorted((sets["raw"] / "truth").glob("*.parquet"))
    own = pd.concat([pd.read_parquet(file) for file in files]).set_index("event_id")
    assert {"event_no_merged_photons", "event_no_pulses_no_noise"} <= names
    assert set(truth["interaction"]) == {1, 2}
    assert ((truth["interaction"] == 1) == (own["interaction"] == "cc")).all()
    assert set(truth["initial_state_type"]) == {14, -14}
    np.testing.assert_allclose(truth["initial_state_energy"], own["energy_gev"])
    is_track = (truth["interaction"] == 1) & (truth["initial_state_type"].abs() == 14)
    assert (truth["muon_zenith"].notna() == is_track).all()
    assert ((truth["visible_inelasticity"] >= 0) & (truth["visible_inelasticity"] <= 1)).all()
    parts = [
        pd.read_parquet(sets["nubench-parquet"] / "merged" / "mc_truth" / f"mc_truth_{k}.parquet")
        for k in range(len(list((sets["nubench-parquet"] / "merged" / "mc_truth").iterdir())))
    ]
    joined = pd.concat(parts)
    assert joined.index.name == "event_no"
    pd.testing.assert_frame_equal(joined, truth[joined.columns], check_dtype=False)


def test_a_folder_of_others_and_a_complete_set_stay(sets: dict[str, Path], tmp_path: Path) -> None:
    config = SimulationConfig(**SMALL, layout="nubench-parquet")
    with pytest.raises(RawDataError, match="already holds a complete set"):
        simulate(open_store(), sets["nubench-parquet"].as_uri(), config)
    (tmp_path / "merged.txt").write_text("mine")
    with pytest.raises(RawDataError, match=r"another writer wrote.*merged.txt"):
        simulate(open_store(), tmp_path.as_uri(), config)
    assert [path.name for path in tmp_path.iterdir()] == ["merged.txt"]


def test_events_without_labels_have_no_such_layout() -> None:
    with pytest.raises(ValidationError, match="layout raw only"):
        SimulationConfig(**SMALL, layout="nubench-sqlite", labels=False)
