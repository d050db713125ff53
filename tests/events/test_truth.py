"""Truth side files: read where they are, absent for real data, wrong ones named to the row."""

import math
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from iceaggr.errors import RawDataError
from iceaggr.events.truth import TRUTH_COLUMNS, read_truth, read_truth_ids
from iceaggr.storage import open_store

SOUND = {
    "event_id": [7, 3, 5],
    "energy_gev": [100.0, 2.5e6, 1e-3],
    "topology": ["track", "cascade", "track"],
    "contained": [True, False, True],
    "neutrino_muon_angle": [0.1, math.nan, math.pi],
    "interaction": ["cc", "nc", "cc"],
    "flavour": [14, -14, 12],
    "muon_azimuth": [6.28, math.nan, -3.14],
    "muon_zenith": [0.0, math.nan, math.pi],
    "inelasticity": [0.0, 1.0, math.nan],
    "visible_inelasticity": [0.5, 0.25, 0.0],
    "bjorken_x": [0.1, 0.2, 1.0],
    "vertex_x_m": [-1500.0, 0.0, 1e3],
    "vertex_y_m": [0.0, 0.0, 0.0],
    "vertex_z_m": [-2000.0, 12.5, 0.0],
    "coincident_muon": [True, False, False],
    "coincident_muon_azimuth": [6.2, math.nan, math.nan],
    "coincident_muon_zenith": [0.4, math.nan, math.nan],
}


@pytest.fixture
def raw(tmp_path: Path) -> Path:
    (tmp_path / "truth").mkdir()
    return tmp_path


def write(raw: Path, number: int = 1, **columns: object) -> None:
    """Write a truth file: SOUND with other columns; None leaves one out."""
    whole = {name: values for name, values in (SOUND | columns).items() if values is not None}
    pq.write_table(pa.table(whole), raw / "truth" / f"batch_{number}.parquet")


def test_truth_joins_all_files_and_keeps_known_columns(raw: Path) -> None:
    others = dict.fromkeys(TRUTH_COLUMNS[2:])
    write(raw, 1, **others, other=[0, 0, 0])
    write(raw, 2, event_id=[2, 1, 4], **others)
    truth = read_truth(open_store(), raw.as_uri() + "/")
    assert truth is not None
    assert sorted(truth["event_id"]) == [1, 2, 3, 4, 5, 7]
    assert list(truth.columns) == ["event_id", "energy_gev", "topology"]
    ids = read_truth_ids(open_store(), raw.as_uri())
    assert ids is not None
    assert ids.tolist() == [1, 2, 3, 4, 5, 7]


def test_truth_is_none_for_real_data(tmp_path: Path) -> None:
    assert read_truth(open_store(), tmp_path.as_uri()) is None
    assert read_truth_ids(open_store(), tmp_path.as_uri()) is None


@pytest.mark.parametrize(
    "columns",
    [
        {"event_id": pa.array([7, 3, 5], pa.uint8()), "energy_gev": pa.array([1, 2, 3])},
        {"energy_gev": np.array([1, 2, 3], np.float16), "contained": [0, 1, 1]},
        {"topology": pa.array(["track", "cascade", "track"]).dictionary_encode()},
        {"neutrino_muon_angle": pa.array([0.1, None, np.pi], pa.float32())},
        {name: None for name in SOUND if name != "event_id"},
    ],
)
def test_any_width_is_a_sound_truth(raw: Path, columns: dict[str, object]) -> None:
    write(raw, **columns)
    truth = read_truth(open_store(), raw.as_uri())
    assert truth is not None
    assert truth["event_id"].tolist() == [7, 3, 5]
    assert truth["event_id"].dtype == np.int64


@pytest.mark.parametrize(
    ("column", "values", "found"),
    [
        ("energy_gev", [1.0, math.nan, 1.0], r"nan of event_id 3 \(row 1\), expected a number abo"),
        ("energy_gev", [1.0, 1.0, math.inf], r"inf of event_id 5 \(row 2\)"),
        ("energy_gev", [0.0, 1.0, -1.0], r"0\.0 of event_id 7 \(row 0\), and 1 more of 3 rows"),
        ("energy_gev", [1e30, 1.0, 1.0], r"1e\+30 of event_id 7 .* at most 1e\+12"),
        ("energy_gev", [1.0, None, 1.0], r"null of event_id 3"),
        ("energy_gev", [1, 0, 1], r"0 of event_id 3"),
        ("topology", ["track", "double_bang", "track"], r"'double_bang' of event_id 3 .* track or"),
        ("topology", ["Track", "cascade", "track"], r"'Track' of event_id 7"),
        ("topology", ["track", None, "track"], r"null of event_id 3"),
        ("contained", [True, None, False], r"null of event_id 3 .* true or false in every row"),
        ("contained", [1, 0, 2], r"2 of event_id 5"),
        ("neutrino_muon_angle", [0.1, math.inf, 0.1], r"inf of event_id 3 .* expected 0 to pi"),
        ("neutrino_muon_angle", [0.1, 0.2, 57.3], r"57\.3 of event_id 5"),
        ("interaction", ["cc", "CC", "nc"], r"'CC' of event_id 3 .* cc or nc in every row"),
        ("flavour", [14, 13, 14], r"13 of event_id 3 .* a PDG id"),
        ("flavour", [14, None, 14], r"null of event_id 3"),
        ("muon_zenith", [0.1, -0.1, 0.1], r"-0\.1 of event_id 3"),
        ("muon_azimuth", [0.1, 0.1, 359.0], r"359\.0 of event_id 5 .* -pi to 2 pi"),
        ("inelasticity", [0.1, 1.5, 0.1], r"1\.5 of event_id 3"),
        ("visible_inelasticity", [0.1, -1.0, 0.1], r"-1\.0 of event_id 3"),
        ("vertex_x_m", [0.0, math.nan, 0.0], r"nan of event_id 3 .* metres in every row"),
        ("coincident_muon", [0, 3, 0], r"3 of event_id 3 .* true or false"),
        ("coincident_muon_zenith", [0.4, 57.3, math.nan], r"57\.3 of event_id 3 .* 0 to pi"),
    ],
)
def test_impossible_value_names_file_column_row_and_event(
    raw: Path, column: str, values: list[object], found: str
) -> None:
    write(raw, **{column: values})
    words = rf"{column} holds .* \[file:.*/truth/batch_1\.parquet {column}\]: found {found}"
    for read in (read_truth, read_truth_ids):
        with pytest.raises(RawDataError, match=words):
            read(open_store(), raw.as_uri())


@pytest.mark.parametrize(
    ("columns", "words"),
    [
        ({"event_id": None}, "no columns named event_id"),
        ({"event_id": [7.5, 3.0, 5.0]}, r"event_id is not a whole number .* found 7\.5"),
        ({"event_id": [7, None, 5]}, "event_id holds what is no id .*: found 1 nulls"),
        ({"event_id": pa.array([7, 3, 2**63], pa.uint64())}, "found numbers beyond 64 signed bits"),
        ({"topology": [0, 1, 0]}, "topology has the wrong type .* found int64, expected text"),
        ({"energy_gev": ["1", "2", "3"]}, "energy_gev has the wrong type .* found string"),
        ({"event_id": [7, 3, 7]}, r"an event twice .*: found event_id 7 in 2 rows, and 0 more"),
    ],
)
def test_wrong_columns_name_the_file(raw: Path, columns: dict[str, object], words: str) -> None:
    write(raw, **columns)
    for read in (read_truth, read_truth_ids):
        with pytest.raises(RawDataError, match=words) as caught:
            read(open_store(), raw.as_uri())
        assert "truth/batch_1.parquet" in str(caught.value.where)


def test_event_in_two_truth_files_names_both(raw: Path) -> None:
    for number, ids in ((1, [1, 2, 3]), (2, [4, 5, 6]), (3, [7, 8, 3])):
        write(raw, number, event_id=ids)
    words = r"twice \[file:.*batch_1\.parquet and file:.*batch_3\.parquet\]: found event_id 3 in 2"
    for read in (read_truth, read_truth_ids):
        with pytest.raises(RawDataError, match=words):
            read(open_store(), raw.as_uri())


def test_damaged_truth_names_the_file(raw: Path) -> None:
    (raw / "truth" / "batch_1.parquet").write_bytes(b"not parquet at all")
    with pytest.raises(RawDataError, match=r"not parquet \[file:.*truth/batch_1"):
        read_truth(open_store(), raw.as_uri())


def test_truth_that_is_read_has_the_types_that_evaluation_bins(raw: Path) -> None:
    write(raw)
    truth = read_truth(open_store(), raw.as_uri())
    assert truth is not None
    assert pd.api.types.is_float_dtype(truth["energy_gev"])
    assert truth["topology"].tolist() == SOUND["topology"]
    assert list(truth.columns) == ["event_id", *TRUTH_COLUMNS]


def test_interactions_of_earlier_simulations_are_read(raw: Path) -> None:
    write(raw, interaction=["nu_mu_cc", "nu_e_cc", "nu_nc"])
    truth = read_truth(open_store(), raw.as_uri())
    assert truth is not None
    assert truth["interaction"].tolist() == ["cc", "cc", "nc"]
