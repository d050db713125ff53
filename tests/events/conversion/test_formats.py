"""The same events in whatever format and layout give the same raw files."""

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest

from iceaggr.errors import RawDataError
from iceaggr.events.conversion.file_tables import open_tables
from tests.events.conversion.foreign_files import (
    converted,
    expected,
    frames,
    write_nested,
    write_parts,
    write_sqlite,
)


def same(out, *inputs, **chosen):
    """Compare what a conversion gives with what was written."""
    pulses, meta, notes = converted(out, *inputs, **chosen)
    raw, rows = expected(*frames())
    pd.testing.assert_frame_equal(pulses, raw, check_dtype=False)
    pd.testing.assert_frame_equal(meta, rows, check_dtype=False)
    return notes


def test_sqlite(tmp_path):
    notes = same(tmp_path / "raw", write_sqlite(tmp_path / "merged" / "merged.db", *frames()))
    assert [note.split(":")[0] for note in notes] == ["geometry", "label"]


def test_folder_with_a_database(tmp_path):
    write_sqlite(tmp_path / "in" / "merged" / "merged.db", *frames())
    same(tmp_path / "raw", tmp_path / "in")


def test_parquet_folder_of_parts_in_any_order(tmp_path):
    folder = write_parts(tmp_path / "in", *frames())
    copies = folder / "mc_truth" / ".ipynb_checkpoints"
    copies.mkdir()
    (copies / "mc_truth_0.parquet").write_bytes(
        (folder / "mc_truth/mc_truth_0.parquet").read_bytes()
    )
    same(tmp_path / "raw", folder)


def test_parquet_files_by_themselves(tmp_path):
    pulses, truth = frames()
    pulses.set_index("event_no").to_parquet(tmp_path / "hits.parquet")
    truth.to_parquet(tmp_path / "labels.parquet")
    same(tmp_path / "raw", tmp_path / "hits.parquet", tmp_path / "labels.parquet")


def test_parquet_whose_events_are_numbered_by_an_index_that_only_counts(tmp_path):
    pulses, truth = frames()
    pulses.to_parquet(tmp_path / "hits.parquet")
    truth = truth.sort_values("event_no").set_index("event_no")
    index = pd.RangeIndex(100, 112, name="event_no")
    assert index.equals(truth.index)
    truth.set_axis(index).to_parquet(tmp_path / "labels.parquet")
    assert "event_no" not in pq.read_schema(tmp_path / "labels.parquet").names
    same(tmp_path / "raw", tmp_path / "hits.parquet", tmp_path / "labels.parquet")


def test_spark_folder_takes_the_name_of_its_folder(tmp_path):
    pulses, truth = frames()
    for name, table in (("hits", pulses), ("labels", truth)):
        (tmp_path / "in" / name).mkdir(parents=True)
        for k in range(2):
            table.iloc[k::2].to_parquet(
                tmp_path / "in" / name / f"part-0000{k}-a1b2.snappy.parquet"
            )
    assert set(open_tables([tmp_path / "in"])) == {"hits", "labels"}
    same(tmp_path / "raw", tmp_path / "in")


def test_one_flat_table_with_the_label_on_every_pulse(tmp_path):
    pulses, truth = frames()
    joint = pulses.merge(truth, on="event_no")
    joint.to_parquet(tmp_path / "all.parquet")
    found, meta, _ = converted(tmp_path / "raw", tmp_path / "all.parquet")
    raw, rows = expected(pulses, truth)
    rows = rows[rows["last_pulse_index"] >= rows["first_pulse_index"]].reset_index(drop=True)
    pd.testing.assert_frame_equal(found, raw, check_dtype=False)
    pd.testing.assert_frame_equal(meta, rows, check_dtype=False)


def test_prometheus_rows_of_whole_events_are_numbered_by_row(tmp_path):
    pulses, truth = frames()
    (tmp_path / "in").mkdir()
    for k, part in enumerate((truth.iloc[:5], truth.iloc[5:])):
        write_nested(tmp_path / "in" / f"events_{k}.parquet", pulses, part)
    found, meta, _ = converted(tmp_path / "raw", tmp_path / "in")
    number = dict(zip(truth["event_no"], range(len(truth)), strict=True))
    pulses, truth = (t.assign(event_no=t["event_no"].map(number)) for t in (pulses, truth))
    raw, rows = expected(pulses, truth)
    by_all = ["event_id", "time", "sensor_id"]
    pd.testing.assert_frame_equal(
        found.sort_values(by_all, ignore_index=True),
        raw.sort_values(by_all, ignore_index=True),
        check_dtype=False,
    )
    pd.testing.assert_frame_equal(meta, rows, check_dtype=False)


def test_flat_lists_with_a_number_of_the_event(tmp_path):
    pulses, truth = frames()
    lists = pulses.groupby("event_no").agg(list).reset_index()
    truth.merge(lists, on="event_no", how="left").to_parquet(tmp_path / "events.parquet")
    same(tmp_path / "raw", tmp_path / "events.parquet")


@pytest.mark.parametrize("layout", ["table", "fixed", "data_columns"])
def test_hdf5_of_pandas(tmp_path, layout):
    pytest.importorskip("tables")
    pytest.importorskip("h5py")
    options = {"format": "fixed"} if layout == "fixed" else {"format": "table"}
    if layout == "data_columns":
        options["data_columns"] = True
    pulses, truth = frames()
    path = tmp_path / "events.h5"
    pulses.set_index("event_no").to_hdf(path, key="pulses", mode="w", **options)
    truth.to_hdf(path, key="mc/truth", **options)
    same(tmp_path / "raw", path)


@pytest.mark.parametrize("layout", ["records", "columns"])
def test_hdf5_of_h5py(tmp_path, layout):
    h5py = pytest.importorskip("h5py")
    with h5py.File(tmp_path / "events.hdf5", "w") as file:
        for name, table in zip(("pulses", "truth"), frames(), strict=True):
            if layout == "records":
                file.create_dataset(name, data=table.to_records(index=False), compression="gzip")
            else:
                for column in table.columns:
                    file[f"{name}/{column}"] = table[column].to_numpy()
    same(tmp_path / "raw", tmp_path / "events.hdf5")


def test_hdf5_of_icetray_with_run_event_and_flags(tmp_path):
    h5py = pytest.importorskip("h5py")
    pulses, truth = frames()
    pair = {"Run": 140000, "SubEvent": 0, "SubEventStream": 0, "exists": 1}
    string, om = np.divmod(pulses["sensor_id"].to_numpy(), 60)
    series = pd.DataFrame({"Event": pulses["event_no"], "string": string + 1, "om": om + 1})
    series = series.assign(time=pulses["t"], charge=pulses["charge"], width=8.0, **pair)
    series["flags"] = np.where(pulses["auxiliary"] == 1, 6, 7)
    primary = pd.DataFrame({"Event": truth["event_no"], **pair})
    primary["zenith"], primary["azimuth"] = (
        truth["initial_state_zenith"],
        truth["initial_state_azimuth"],
    )
    with h5py.File(tmp_path / "events.hd5.h5", "w") as file:
        file["InIcePulses"] = series.to_records(index=False)
        file["MCPrimary"] = primary.to_records(index=False)
    found, meta, _ = converted(tmp_path / "raw", tmp_path / "events.hd5.h5", geometry="icecube86")
    raw, rows = expected(pulses, truth)
    for table in (raw, rows):
        table["event_id"] = 140000 * 2**43 + table["event_id"] * 2**11
    pd.testing.assert_frame_equal(found, raw, check_dtype=False)
    pd.testing.assert_frame_equal(meta, rows, check_dtype=False)
    with pytest.raises(RawDataError, match=r"where the sensors stand.*--geometry icecube86"):
        converted(tmp_path / "other", tmp_path / "events.hd5.h5")


def test_hdf5_that_is_compressed_by_a_plugin_is_told(tmp_path):
    pytest.importorskip("tables")
    pytest.importorskip("h5py")
    pulses, truth = frames()
    pulses.to_hdf(tmp_path / "e.h5", key="pulses", format="table", complib="blosc", complevel=5)
    truth.to_hdf(tmp_path / "e.h5", key="truth", format="table")
    with pytest.raises(RawDataError, match=r"filter that is not installed.*ptrepack"):
        converted(tmp_path / "raw", tmp_path / "e.h5")


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("cut.db", b"SQLite format 3\0" + b"\x10\x00" * 50),
        ("no.parquet", b"PAR1 and nothing that follows"),
        ("no.h5", b"\x89HDF\r\n\x1a\n and nothing"),
        ("events.txt", b"1 2 3"),
        ("empty.db", b""),
    ],
)
def test_what_is_no_such_file_is_refused_by_name(tmp_path, name, data):
    if name.endswith("h5"):
        pytest.importorskip("h5py")
    (tmp_path / name).write_bytes(data)
    with pytest.raises(RawDataError, match=name) as caught:
        converted(tmp_path / "raw", tmp_path / name)
    assert "Error" not in str(caught.value)
    with pytest.raises(RawDataError, match="nothing of this name"):
        converted(tmp_path / "raw", tmp_path / "absent.db")


def test_the_raw_layout_needs_no_conversion(tmp_path):
    converted(tmp_path / "raw", write_sqlite(tmp_path / "a.db", *frames()))
    with pytest.raises(RawDataError, match=r"raw layout already.*--raw-uri file:"):
        converted(tmp_path / "again", tmp_path / "raw")
