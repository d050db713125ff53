import numpy as np
import pandas as pd
import pytest

from iceaggr.detector import BUILT_IN, icecube86
from iceaggr.errors import DetectorError, RawDataError
from iceaggr.events.layout import find_layout, geometry_of, load_detector
from iceaggr.events.truth import read_truth_ids
from iceaggr.storage import open_store
from tests.events.raw_layout import write_raw_layout


def test_find_layout_orders_files_by_number(tmp_path):
    uri = write_raw_layout(tmp_path, n_files=11, n_events_per_file=2)
    layout = find_layout(open_store(), uri + "/")
    assert [file.batch_id for file in layout.files] == list(range(1, 12))
    assert layout.labelled
    assert layout.geometry_uri == f"{uri}/sensor_geometry.csv"


def test_find_layout_prefers_unlabelled_events_when_asked_for_any(tmp_path):
    write_raw_layout(tmp_path, n_files=1)
    uri = write_raw_layout(tmp_path, n_files=1, labels=False)
    assert not find_layout(open_store(), uri).labelled
    assert find_layout(open_store(), uri, "train").labelled


def test_a_set_without_a_geometry_is_of_no_detector_unless_one_is_declared(tmp_path):
    uri = write_raw_layout(tmp_path, n_files=1)
    (tmp_path / "sensor_geometry.csv").unlink()
    layout = find_layout(open_store(), uri)
    with pytest.raises(DetectorError, match=r"no geometry.*data\.detector: icecube86"):
        geometry_of(open_store(), layout)
    assert geometry_of(open_store(), layout, BUILT_IN) == BUILT_IN


def test_find_layout_names_the_missing_meta_file(tmp_path):
    uri = write_raw_layout(tmp_path, n_files=1)
    (tmp_path / "train_meta.parquet").unlink()
    with pytest.raises(RawDataError, match=r"meta file is missing \[.*train_meta.parquet\]"):
        find_layout(open_store(), uri)


def test_find_layout_names_the_folder_without_batch_files(tmp_path):
    uri = write_raw_layout(tmp_path, n_files=1)
    (tmp_path / "train" / "batch_1.parquet").rename(tmp_path / "train" / "other.parquet")
    with pytest.raises(RawDataError, match=r"no raw batch files \[.*/train/\]"):
        find_layout(open_store(), uri)


def test_find_layout_refuses_two_files_of_one_batch(tmp_path):
    uri = write_raw_layout(tmp_path, n_files=1)
    (tmp_path / "train" / "batch_01.parquet").write_bytes(b"")
    with pytest.raises(RawDataError, match="two raw files for batch 1"):
        find_layout(open_store(), uri)


def test_find_layout_reads_the_notes_of_a_converted_source(tmp_path):
    uri = write_raw_layout(tmp_path, n_files=1)
    (tmp_path / "source_notes.json").write_text('["charge: absent"]')
    assert find_layout(open_store(), uri).notes == ("charge: absent",)


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("{", "line 1"),
        ('{"a": 1}', r"\{'a': 1\}"),
        ('"abc"', "'abc'"),
        ("null", "None"),
        ('["charge: absent", 7]', "7 in the list"),
        ('["charge: absent", ["nested"]]', r"\['nested'\] in the list"),
        ("[" * 100_000, "recursion"),
    ],
    ids=["cut", "object", "string", "null", "number", "list", "deep"],
)
def test_find_layout_refuses_notes_that_are_no_sentences(tmp_path, text, found):
    uri = write_raw_layout(tmp_path, n_files=1, n_events_per_file=2)
    (tmp_path / "source_notes.json").write_text(text)
    expected = rf"notes are not a JSON list of sentences \[.*source_notes\.json\]: found .*{found}"
    with pytest.raises(RawDataError, match=expected):
        find_layout(open_store(), uri)


@pytest.mark.parametrize("inside", [(), ("part-0.csv",)], ids=["empty", "with a file"])
def test_find_layout_refuses_a_geometry_that_is_a_folder(tmp_path, inside):
    uri = write_raw_layout(tmp_path, n_files=1, n_events_per_file=2)
    (tmp_path / "sensor_geometry.csv").unlink()
    (tmp_path / "sensor_geometry.csv").mkdir()
    for name in inside:
        (tmp_path / "sensor_geometry.csv" / name).write_text("sensor_id,x,y,z")
    with pytest.raises(RawDataError, match=r"sensor_geometry\.csv\]: found a folder, expected a f"):
        find_layout(open_store(), uri)


@pytest.mark.parametrize("name", ["Sensor_Geometry.csv", "sensor_geometry.CSV"])
def test_find_layout_refuses_a_geometry_in_other_letters(tmp_path, name):
    uri = write_raw_layout(tmp_path, n_files=1, n_events_per_file=2)
    (tmp_path / "sensor_geometry.csv").rename(tmp_path / name)
    with pytest.raises(RawDataError, match=rf"{name}\]: found {name}, expected .* Rename the file"):
        find_layout(open_store(), uri)


def test_find_layout_takes_no_file_of_another_name_for_the_geometry(tmp_path):
    uri = write_raw_layout(tmp_path, n_files=1, n_events_per_file=2)
    (tmp_path / "sensor_geometry.csv").rename(tmp_path / "sensor_geometry.csv.bak")
    (tmp_path / "train" / "sensor_geometry.csv").write_text("")
    assert find_layout(open_store(), uri).geometry_uri == ""


def test_a_geometry_of_another_detector_than_declared_is_refused(tmp_path):
    uri = write_raw_layout(tmp_path, 1, 3)
    layout = find_layout(open_store(), uri)
    assert geometry_of(open_store(), layout, BUILT_IN) == layout.geometry_uri
    table = pd.read_csv(tmp_path / "sensor_geometry.csv")
    table.assign(z=table["z"] + 1).to_csv(tmp_path / "sensor_geometry.csv", index=False)
    with pytest.raises(DetectorError, match=r"not of the detector.*1\.00 m apart"):
        geometry_of(open_store(), layout, BUILT_IN)


def test_load_detector_completes_bare_built_in_positions(tmp_path):
    uri = write_raw_layout(tmp_path, n_files=1)
    detector = load_detector(open_store(), f"{uri}/sensor_geometry.csv")
    np.testing.assert_array_equal(detector.efficiency, icecube86().efficiency)
    np.testing.assert_array_equal(detector.string_id, icecube86().string_id)


def test_load_detector_leaves_other_positions_as_they_are(tmp_path):
    uri = write_raw_layout(tmp_path, n_files=1)
    table = pd.read_csv(tmp_path / "sensor_geometry.csv")
    table["z"] += 1.0
    table.to_csv(tmp_path / "sensor_geometry.csv", index=False)
    detector = load_detector(open_store(), f"{uri}/sensor_geometry.csv")
    assert (detector.efficiency == 1).all()
    assert (detector.string_id == -1).all()


def test_load_detector_believes_a_table_with_efficiencies(tmp_path):
    uri = write_raw_layout(tmp_path, n_files=1)
    table = pd.read_csv(tmp_path / "sensor_geometry.csv").assign(efficiency=1.0)
    table.to_csv(tmp_path / "sensor_geometry.csv", index=False)
    detector = load_detector(open_store(), f"{uri}/sensor_geometry.csv")
    assert (detector.efficiency == 1).all()


def test_load_detector_knows_the_built_in_name():
    assert load_detector(open_store(), BUILT_IN) is icecube86()


COPIES = [
    ".ipynb_checkpoints/batch_1-checkpoint.parquet",
    ".ipynb_checkpoints/batch_1.parquet",
    "old/batch_1.parquet",
    "old files/batch_2.parquet",
    "backup_2024/batch_1.parquet",
    "_temporary/0/batch_1.parquet",
    "_temporary/batch_1.parquet/part-0.parquet",
    "_delta_log/checkpoint.parquet",
    "Copy of train/batch_1.parquet",
    "train copy/batch_1.parquet",
    "Copy of batch_1.parquet",
    "batch_1 (1).parquet",
    "batch_1-Copy1.parquet",
    "batch_1_old.parquet",
    "batch_1.parquet.bak",
    ".batch_1.parquet",
    "sub/tmp/batch_1.parquet",
]


@pytest.mark.parametrize("name", COPIES)
def test_copy_is_skipped_and_counted(tmp_path, name):
    uri = write_raw_layout(tmp_path)
    before = find_layout(open_store(), uri, "train")
    assert before.skipped_words == ""
    copy = tmp_path / "train" / name
    copy.parent.mkdir(parents=True, exist_ok=True)
    copy.write_bytes(b"half of a file")
    found = find_layout(open_store(), uri, "train")
    assert found.files == before.files
    assert found.skipped_words == f"1 file was skipped as a copy or for its name: train/{name}"


def test_same_batch_in_two_ordinary_folders_is_ambiguous(tmp_path):
    uri = write_raw_layout(tmp_path)
    (tmp_path / "train" / "run2").mkdir()
    (tmp_path / "train" / "run2" / "batch_1.parquet").write_bytes(b"")
    with pytest.raises(RawDataError, match="two raw files for batch 1"):
        find_layout(open_store(), uri, "train")


@pytest.mark.parametrize("folder", ["run2", "bold", "2024_data", "copyright", "template"])
def test_ordinary_folder_is_read(tmp_path, folder):
    uri = write_raw_layout(tmp_path)
    batch = tmp_path / "train" / "batch_1.parquet"
    (tmp_path / "train" / folder).mkdir()
    batch.rename(tmp_path / "train" / folder / "batch_1.parquet")
    found = find_layout(open_store(), uri, "train")
    assert found.files[0].stored.uri.endswith(f"{folder}/batch_1.parquet")
    assert not found.skipped


def test_missing_batch_that_is_there_as_a_copy_is_told(tmp_path):
    uri = write_raw_layout(tmp_path, n_files=1)
    batch = tmp_path / "train" / "batch_1.parquet"
    batch.rename(batch.with_name("batch_1 (1).parquet"))
    with pytest.raises(RawDataError, match=r"no raw batch files .*train/batch_1 \(1\)\.parquet"):
        find_layout(open_store(), uri)


def test_copy_of_the_truth_is_no_second_row(tmp_path):
    (tmp_path / "truth" / ".ipynb_checkpoints").mkdir(parents=True)
    for folder in ("truth", "truth/.ipynb_checkpoints"):
        pd.DataFrame({"event_id": [1]}).to_parquet(tmp_path / folder / "batch_1.parquet")
    assert read_truth_ids(open_store(), tmp_path.as_uri()).tolist() == [1]
