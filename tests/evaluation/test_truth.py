"""Truth side files: read where they are, absent for real data, damaged ones named."""

import pandas as pd
import pytest

from iceaggr.errors import RawDataError
from iceaggr.evaluation.truth import read_truth
from iceaggr.storage import open_store


@pytest.fixture
def raw(tmp_path):
    (tmp_path / "truth").mkdir()
    return tmp_path


def test_truth_joins_all_files_and_keeps_known_columns(raw):
    for number in (1, 2):
        columns = {"event_id": [number], "energy_gev": [10.0], "topology": ["track"], "other": [0]}
        pd.DataFrame(columns).to_parquet(raw / "truth" / f"batch_{number}.parquet")
    truth = read_truth(open_store(), raw.as_uri() + "/")
    assert sorted(truth["event_id"]) == [1, 2]
    assert list(truth.columns) == ["event_id", "energy_gev", "topology"]


def test_truth_is_none_for_real_data(tmp_path):
    assert read_truth(open_store(), tmp_path.as_uri()) is None


def test_damaged_truth_names_the_file(raw):
    (raw / "truth" / "batch_1.parquet").write_bytes(b"not parquet at all")
    with pytest.raises(RawDataError, match=r"not parquet \[file:.*truth/batch_1"):
        read_truth(open_store(), raw.as_uri())


def test_truth_without_event_id_is_an_error(raw):
    pd.DataFrame({"energy_gev": [1.0]}).to_parquet(raw / "truth" / "batch_1.parquet")
    with pytest.raises(RawDataError, match=r"no columns named event_id \[file:.*truth/batch_1"):
        read_truth(open_store(), raw.as_uri())
