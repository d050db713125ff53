"""Tables of events that come from the tracking server: sound, or named as damaged."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from iceaggr.errors import EvaluationError
from iceaggr.steps.compare import read_event_table
from iceaggr.steps.evaluate_model import parquet_of


@pytest.fixture
def events() -> pd.DataFrame:
    rng = np.random.default_rng(0)
    return pd.DataFrame({"event_id": np.arange(500), "opening_angle_deg": rng.uniform(0, 180, 500)})


def test_table_of_an_evaluation_comes_back(events: pd.DataFrame, tmp_path: Path) -> None:
    path = tmp_path / "events.parquet"
    path.write_bytes(parquet_of(events))
    pd.testing.assert_frame_equal(read_event_table(path, "run"), events)


@pytest.mark.parametrize("place", [0.1, 0.3, 0.5, 0.7])
def test_table_with_a_changed_bit_is_refused(
    events: pd.DataFrame, tmp_path: Path, place: float
) -> None:
    data = bytearray(parquet_of(events))
    data[int(place * len(data))] ^= 1
    path = tmp_path / "events.parquet"
    path.write_bytes(bytes(data))
    with pytest.raises(
        EvaluationError, match=r"is damaged \[run one evaluation/events\.parquet\]: found \S"
    ):
        read_event_table(path, "one")


def test_table_cut_short_is_refused(events: pd.DataFrame, tmp_path: Path) -> None:
    path = tmp_path / "events.parquet"
    path.write_bytes(parquet_of(events)[:-100])
    with pytest.raises(EvaluationError, match=r"is damaged .*evaluate the run again"):
        read_event_table(path, "one")
