"""The truth of a simulation: what evaluation would refuse is refused when a run is planned."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from iceaggr.config import DataConfig
from iceaggr.errors import RawDataError
from iceaggr.shards.planning import plan_shards
from iceaggr.shards.split import TEST, split_idx
from iceaggr.storage import open_store
from tests.events.raw_layout import write_raw_layout

CONFIG = DataConfig(test_share=0.3)


@pytest.fixture
def raw(tmp_path: Path) -> Path:
    """Two files of raw events and the truth of all in one file."""
    write_raw_layout(tmp_path, n_files=2, n_events_per_file=30)
    (tmp_path / "truth").mkdir()
    write_truth(tmp_path, event_ids(tmp_path))
    return tmp_path


def event_ids(raw: Path) -> np.ndarray:
    return pd.read_parquet(raw / "train_meta.parquet")["event_id"].to_numpy()


def write_truth(raw: Path, ids: np.ndarray) -> None:
    truth = pd.DataFrame({"event_id": ids, "energy_gev": 10.0, "topology": "track"})
    truth.to_parquet(raw / "truth" / "all.parquet", index=False)


def plan(raw: Path, config: DataConfig = CONFIG) -> list[str]:
    return plan_shards(open_store(), raw.as_uri(), config, (raw / "work").as_uri())


def is_test(ids: np.ndarray) -> np.ndarray:
    split = split_idx(ids, CONFIG.split_salt, CONFIG.validation_share, CONFIG.test_share)
    return np.asarray(split == TEST)


def test_plan_takes_a_truth_in_any_files_and_order(raw: Path) -> None:
    assert plan(raw)
    ids = event_ids(raw)
    write_truth(raw, np.concatenate([ids[::-1], [1, 2, 3]]))  # three are no events
    assert plan(raw)


def test_plan_asks_for_the_truth_of_test_events_only(raw: Path) -> None:
    ids = event_ids(raw)
    write_truth(raw, ids[is_test(ids)])
    assert plan(raw)


def test_plan_refuses_a_truth_without_a_test_event(raw: Path) -> None:
    ids = event_ids(raw)
    test = ids[is_test(ids)]
    write_truth(raw, np.setdiff1d(ids, test[3:5]))
    words = (
        rf"truth lacks events \[.*/truth/\]: found no row of event_id {test[3]}; 2 of {len(test)}"
    )
    with pytest.raises(RawDataError, match=words):
        plan(raw)
    assert not (raw / "work").exists()


@pytest.mark.parametrize("shift", [1_000_000_000, None])
def test_plan_refuses_the_truth_of_other_events(raw: Path, shift: int | None) -> None:
    write_truth(raw, event_ids(raw) + shift if shift else np.empty(0, np.int64))
    with pytest.raises(RawDataError, match=r"truth lacks events .* (\d+) of \1 events of the test"):
        plan(raw)


def test_plan_needs_no_truth_of_files_that_are_not_used(raw: Path) -> None:
    ids = event_ids(raw)
    write_truth(raw, ids[:30])
    assert plan(raw, DataConfig(test_share=0.3, n_events=30))
    with pytest.raises(RawDataError, match="truth lacks events"):
        plan(raw)


def test_plan_names_an_impossible_value_before_anything_is_written(raw: Path) -> None:
    path = raw / "truth" / "all.parquet"
    truth = pd.read_parquet(path)
    truth.loc[4, "energy_gev"] = np.nan
    truth.to_parquet(path, index=False)
    with pytest.raises(RawDataError, match=rf"null of event_id {truth['event_id'][4]} \(row 4\)"):
        plan(raw)
    assert not (raw / "work").exists()
