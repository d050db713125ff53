"""NuBench's layouts: recognised, converted with their own split, resumed, and refused when cut."""

from __future__ import annotations

import json
import sqlite3
from contextlib import closing
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from iceaggr.cli import app
from iceaggr.config import DataConfig
from iceaggr.errors import ConfigError, DetectorError, RawDataError
from iceaggr.events.conversion import nubench_groups
from iceaggr.events.truth import read_truth
from iceaggr.shards.manifest import parse_manifest
from iceaggr.shards.planning import plan_shards
from iceaggr.shards.reading import read_shard
from iceaggr.shards.split import split_idx
from iceaggr.shards.statistics import load_file_sketches
from iceaggr.shards.writing import shard_unit
from iceaggr.steps.compute_statistics import _unlike
from iceaggr.storage import open_store
from tests.events.conversion.nubench_files import TABLES, nubench_frames, write_nubench


def convert(folder: Path, out: Path, *flags: str) -> str:
    arguments = ["convert", str(folder), "--out", out.as_uri(), *flags]
    result = CliRunner().invoke(app, arguments, input="")
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == 0, result.output
    return result.output


@pytest.fixture(scope="module")
def frames() -> dict:
    return nubench_frames()


@pytest.fixture(params=["sqlite", "parquet"])
def layout(request: pytest.FixtureRequest) -> str:
    return request.param


def raw_pulses(out: Path) -> pd.DataFrame:
    files = sorted((out / "train").glob("batch_*.parquet"), key=lambda p: int(p.stem[6:]))
    return pd.concat([pd.read_parquet(file) for file in files], ignore_index=True)


def expected_pulses(frames: dict) -> pd.DataFrame:
    """What each split is to hold, from the tables alone: event, sensor, whole ns, charge."""
    tables, parts = frames["tables"], []
    for split, name in (("train", "merged_photons"), ("test", "pulses_no_noise")):
        table = tables[name][tables[name]["event_no"].isin(frames["selections"][split])]
        part = table.assign(time=np.round(table["t"]).astype(int))
        parts.append(part.sort_values(["event_no", "time"], kind="stable"))
    columns = {"event_no": "event_id", "sensor_id": "sensor_id"}
    whole = pd.concat(parts, ignore_index=True).rename(columns=columns)
    return whole[["event_id", "sensor_id", "time", "charge"]]


def test_training_has_noise_testing_has_none_and_selections_are_kept(
    frames: dict, layout: str, tmp_path: Path
) -> None:
    out = tmp_path / "raw"
    said = convert(write_nubench(tmp_path / "set", frames, layout), out, "--events-per-file", "40")
    assert "215 train and 75 test events, 10 in no selection" in said
    found, expected = raw_pulses(out), expected_pulses(frames)
    order = ["event_id", "time", "sensor_id", "charge"]
    pd.testing.assert_frame_equal(
        found.sort_values(order, ignore_index=True)[list(expected)],
        expected.sort_values(order, ignore_index=True),
        check_dtype=False,
    )
    meta = pd.read_parquet(out / "train_meta.parquet")
    for split, ids in frames["selections"].items():
        assert set(meta.loc[meta["split"] == split, "event_id"]) == set(ids)
        batches = meta[meta["split"] == split].groupby("batch_id")["event_id"].count()
        assert (batches.iloc[:-1] == 40).all()
    truth = frames["tables"]["mc_truth"].set_index("event_no").loc[meta["event_id"]]
    np.testing.assert_allclose(meta["zenith"], truth["initial_state_zenith"])
    np.testing.assert_allclose(meta["azimuth"], truth["initial_state_azimuth"])
    own = read_truth(open_store(), out.as_uri()).set_index("event_id").loc[meta["event_id"]]
    assert (own["flavour"].to_numpy() == truth["initial_state_type"].to_numpy()).all()
    assert ((own["interaction"] == "cc").to_numpy() == (truth["interaction"] == 1)).all()
    np.testing.assert_allclose(own["bjorken_x"], truth["bjorken_x"])
    np.testing.assert_allclose(own["inelasticity"], truth["bjorken_y"])
    np.testing.assert_allclose(own["muon_zenith"], truth["muon_zenith"])
    np.testing.assert_allclose(own["vertex_z_m"], truth["initial_state_z"])


def test_both_layouts_give_the_same_bytes(frames: dict, tmp_path: Path) -> None:
    for kind in ("sqlite", "parquet"):
        folder = write_nubench(tmp_path / kind, frames, kind, n_parts=7)
        convert(folder, tmp_path / f"raw-{kind}", "--events-per-file", "50")
    one, other = (tmp_path / f"raw-{kind}" for kind in ("sqlite", "parquet"))
    files = sorted(p.relative_to(one) for p in one.rglob("*.parquet"))
    assert len(files) == 2 * 7 + 1
    assert files == sorted(p.relative_to(other) for p in other.rglob("*.parquet"))
    for file in files:
        assert (one / file).read_bytes() == (other / file).read_bytes(), file


def test_shards_take_the_official_split_and_validation_from_train(
    frames: dict, tmp_path: Path
) -> None:
    out, store, config = tmp_path / "raw", open_store(), DataConfig()
    convert(write_nubench(tmp_path / "set", frames, "sqlite"), out, "--events-per-file", "100")
    work = (tmp_path / "work").as_uri()
    found: dict[str, list[int]] = {"train": [], "validation": [], "test": []}
    for unit in plan_shards(store, out.as_uri(), config, work):
        manifest = shard_unit(store, unit, work, config)
        assert parse_manifest(manifest.to_json().encode(), "here").official_split
        for entry in manifest.shards:
            found[entry.split] += read_shard(store, entry).event_id.tolist()
    selections = {name: set(ids.tolist()) for name, ids in frames["selections"].items()}
    assert set(found["test"]) == selections["test"]
    assert set(found["train"]) | set(found["validation"]) == selections["train"]
    ids = np.array(sorted(selections["train"]))
    by_hash = split_idx(ids, config.split_salt, config.validation_share, 0.0) == 1
    assert set(found["validation"]) == set(ids[by_hash].tolist())
    assert found["validation"]


def test_event_numbers_may_be_an_index_that_only_counts(tmp_path: Path) -> None:
    frames, outs = nubench_frames(), []
    order = frames["tables"]["mc_truth"]["event_no"].to_numpy()
    for table in frames["tables"].values():
        table["event_no"] = 500 + np.searchsorted(order, table["event_no"])
    ids = frames["tables"]["mc_truth"]["event_no"].to_numpy()
    frames["selections"] = {"train": ids[:220], "test": ids[220:290]}
    for kind in ("column", "index"):
        folder = write_nubench(tmp_path / kind, frames, "parquet")
        for path in [*folder.glob("selections/*"), *folder.glob("merged/mc_truth/*")]:
            if kind == "index":
                _count_instead(path)
        outs.append(tmp_path / f"raw-{kind}")
        convert(folder, outs[-1], "--events-per-file", "50")
    files = [path.relative_to(outs[0]) for path in outs[0].rglob("*.parquet")]
    assert len(files) == 2 * 7 + 1
    for file in files:
        assert (outs[0] / file).read_bytes() == (outs[1] / file).read_bytes(), file


def _count_instead(path: Path) -> None:
    """Write the event numbers as pandas does where they follow each other: not as a column."""
    table = pd.read_parquet(path)
    table = table if table.index.name == "event_no" else table.set_index("event_no")
    first = int(table.index[0])
    index = pd.RangeIndex(first, first + len(table), name="event_no")
    table.set_axis(index).to_parquet(path)
    assert "event_no" not in pq.read_schema(path).names


def test_direction_of_flight_is_recognised_and_turned(layout: str, tmp_path: Path) -> None:
    folder = write_nubench(tmp_path / "set", nubench_frames(particle=True), layout)
    said = convert(folder, tmp_path / "raw")
    assert "where the particle travels to" in said
    meta = pd.read_parquet(tmp_path / "raw" / "train_meta.parquet").set_index("event_id")
    origin = nubench_frames()["tables"]["mc_truth"].set_index("event_no").loc[meta.index]
    np.testing.assert_allclose(meta["zenith"], origin["initial_state_zenith"])
    np.testing.assert_allclose(meta["azimuth"], origin["initial_state_azimuth"])
    truth = read_truth(open_store(), (tmp_path / "raw").as_uri()).set_index("event_id")
    np.testing.assert_allclose(truth.loc[meta.index, "muon_zenith"], origin["muon_zenith"])


def test_other_labels_are_refused_not_guessed(frames: dict, tmp_path: Path) -> None:
    truth = frames["tables"]["mc_truth"]
    turned = truth.assign(initial_state_azimuth=2 * np.pi - truth["initial_state_azimuth"])
    changed = {**frames, "tables": {**frames["tables"], "mc_truth": turned}}
    folder = write_nubench(tmp_path / "set", changed, "sqlite")
    with pytest.raises(RawDataError, match=r"do not point.*--label-reading mirror_y"):
        convert(folder, tmp_path / "raw")
    assert not (tmp_path / "raw").exists()


def test_a_cut_conversion_goes_on_with_the_next_group(
    frames: dict, layout: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write_nubench(tmp_path / "set", frames, layout, n_parts=20)
    convert(folder, tmp_path / "whole", "--events-per-file", "40")
    real, done = nubench_groups.write_batch, []

    def cut(*arguments: object) -> object:
        if len(done) == 3:
            raise InterruptedError("killed here")
        done.append(1)
        return real(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(nubench_groups, "write_batch", cut)
    with pytest.raises(InterruptedError, match="killed here"):
        convert(folder, tmp_path / "raw", "--events-per-file", "40")
    assert not (tmp_path / "raw" / "train_meta.parquet").exists()
    monkeypatch.setattr(nubench_groups, "write_batch", real)
    kept = (tmp_path / "raw" / "train" / "batch_1.parquet").stat().st_mtime_ns
    said = convert(folder, tmp_path / "raw", "--events-per-file", "40")
    assert "3 groups found done" in said
    assert (tmp_path / "raw" / "train" / "batch_1.parquet").stat().st_mtime_ns == kept
    for file in (tmp_path / "whole").rglob("*.parquet"):
        again = tmp_path / "raw" / file.relative_to(tmp_path / "whole")
        assert again.read_bytes() == file.read_bytes()
    with pytest.raises(RawDataError, match=r"another writer|complete raw events"):
        convert(folder, tmp_path / "raw", "--events-per-file", "41")


def test_a_group_in_another_process_reads_by_the_plan(
    frames: dict, layout: str, tmp_path: Path
) -> None:
    folder = write_nubench(tmp_path / "set", nubench_frames(particle=True), layout, n_parts=6)
    convert(folder, tmp_path / "whole", "--events-per-file", "60")
    marker = json.loads((tmp_path / "whole" / "conversion.json").read_bytes())
    (tmp_path / "raw").mkdir()
    (tmp_path / "raw" / "conversion.json").write_text(json.dumps(marker))
    store, out = open_store(), (tmp_path / "raw").as_uri()
    ready = nubench_groups.open_planned(store, out, tmp_path)
    for number in reversed(range(len(ready.plan.groups))):
        nubench_groups.convert_group(ready, out, number)
    nubench_groups.finish(store, out)
    for file in (tmp_path / "whole").rglob("*.parquet"):
        again = tmp_path / "raw" / file.relative_to(tmp_path / "whole")
        assert again.read_bytes() == file.read_bytes()


def test_times_before_zero_are_moved_and_told(frames: dict, tmp_path: Path) -> None:
    tables = {
        name: table.assign(t=table["t"] - 7_300) if name != "mc_truth" else table
        for name, table in frames["tables"].items()
    }
    folder = write_nubench(tmp_path / "set", {**frames, "tables": tables}, "sqlite")
    assert "ns were added" in convert(folder, tmp_path / "raw")
    assert raw_pulses(tmp_path / "raw")["time"].min() >= 0


@pytest.mark.parametrize(
    ("z_m", "greatest_gev", "words"),
    [
        (0.0, 1e4, "geometry: icecube86, 5160 sensors; medium: ice"),
        (-1948.07, 1e4, "geometry: hexagon, 5160 sensors; medium: water"),
        (-1948.07, 900.0, "geometry: hexagon-ice, 5160 sensors; medium: ice"),
    ],
)
def test_a_built_in_detector_needs_no_table(
    frames: dict, tmp_path: Path, z_m: float, greatest_gev: float, words: str
) -> None:
    tables = {
        name: table.assign(sensor_pos_z=table["sensor_pos_z"] + z_m)
        if name != "mc_truth"
        else table.assign(
            initial_state_energy=table["initial_state_energy"].clip(None, greatest_gev)
        )
        for name, table in frames["tables"].items()
    }
    folder = write_nubench(tmp_path / "set", {**frames, "tables": tables}, "parquet")
    (folder / "geometry.parquet").unlink()
    assert words in convert(folder, tmp_path / "raw", "--dry-run")


def test_sensors_numbered_otherwise_are_told_by_place(frames: dict, tmp_path: Path) -> None:
    tables = {
        name: table.assign(sensor_id=table["sensor_id"] % 60) if name != "mc_truth" else table
        for name, table in frames["tables"].items()
    }
    folder = write_nubench(tmp_path / "set", {**frames, "tables": tables}, "sqlite")
    assert "told by their place" in convert(folder, tmp_path / "raw")
    order = ["event_id", "time", "sensor_id"]
    found = raw_pulses(tmp_path / "raw").sort_values(order, ignore_index=True)
    expected = expected_pulses(frames).sort_values(order, ignore_index=True)
    assert (found["sensor_id"] == expected["sensor_id"]).all()


# What is wrong with a set is told before anything is written.


def broken(folder: Path, how: str) -> None:
    """Break a set as downloads, programs and mix-ups do."""
    merged, selections = folder / "merged", folder / "selections"
    database = merged / "merged.db"
    if how == "no selections":
        for file in selections.iterdir():
            file.unlink()
    elif how == "half a selection":
        (selections / "test_selection.parquet").unlink()
    elif how == "strange event":
        path = selections / "train_selection.parquet"
        ids = pd.read_parquet(path)["event_no"].tolist()
        pd.DataFrame({"event_no": [*ids, 1, 2]}).to_parquet(path)
    elif how == "overlap":
        test = pd.read_parquet(selections / "test_selection.parquet")["event_no"]
        train = pd.read_parquet(selections / "train_selection.parquet")["event_no"]
        both = pd.DataFrame({"event_no": [*train, test[0]]})
        both.to_parquet(selections / "train_selection.parquet")
    elif how == "cut database":
        database.write_bytes(database.read_bytes()[:-5000])
    elif how == "no noise":
        with closing(sqlite3.connect(database)) as connection:
            connection.execute("DROP TABLE merged_photons")
            connection.commit()
    elif how == "noise removed":
        with closing(sqlite3.connect(database)) as connection:
            connection.execute("DROP TABLE merged_photons")
            connection.execute("CREATE TABLE merged_photons AS SELECT * FROM pulses_no_noise")
            connection.execute("CREATE INDEX i ON merged_photons (event_no)")
            connection.commit()
    elif how == "no index":
        with closing(sqlite3.connect(database)) as connection:
            connection.execute("DROP INDEX event_no_merged_photons")
            connection.commit()
    elif how == "moved sensors":
        table = pd.read_parquet(folder / "geometry.parquet")
        table.assign(sensor_pos_z=table["sensor_pos_z"] + 1).to_parquet(folder / "geometry.parquet")
    elif how == "no geometry":
        (folder / "geometry.parquet").unlink()
        with closing(sqlite3.connect(database)) as connection:
            for table in TABLES[1:]:
                connection.execute(f"UPDATE {table} SET sensor_pos_x = sensor_pos_x + 3")
            connection.commit()
    elif how == "last pulses missing":
        (merged / "merged_photons" / "merged_photons_4.parquet").unlink()
    elif how == "truth missing":
        (merged / "mc_truth" / "mc_truth_1.parquet").unlink()
    elif how == "no folder of noise":
        for file in (merged / "merged_photons").iterdir():
            file.unlink()
    elif how == "no tables":
        database.unlink()
    elif how == "download still runs":
        database.rename(merged / "merged.db.part")
    elif how == "rows of testing missing":
        with closing(sqlite3.connect(database)) as connection:
            ids = [n for (n,) in connection.execute("SELECT event_no FROM mc_truth ORDER BY 1")]
            half = ids[len(ids) // 2]
            connection.execute("DELETE FROM pulses_no_noise WHERE event_no > ?", (half,))
            connection.commit()
    elif how == "part without rows":
        path = merged / "merged_photons" / "merged_photons_2.parquet"
        pd.read_parquet(path).iloc[:0].to_parquet(path)
    elif how == "part without a column":
        path = merged / "merged_photons" / "merged_photons_3.parquet"
        pd.read_parquet(path).drop(columns="charge").to_parquet(path)
    elif how in ("no event numbers", "rows taken out"):
        path = merged / "mc_truth" / "mc_truth_3.parquet"
        _count_instead(path)
        table = pq.read_table(path)
        cut = table.slice(0, 20) if how == "rows taken out" else table.replace_schema_metadata(None)
        pq.write_table(cut, path)
    elif how == "selection without numbers":
        path = selections / "test_selection.parquet"
        pd.read_parquet(path).rename(columns={"event_no": "0"}).to_parquet(path)
    elif how == "all of one part missing":
        for name in TABLES:
            (merged / name / f"{name}_4.parquet").unlink()
    elif how == "cut part":
        path = merged / "pulses_no_noise" / "pulses_no_noise_2.parquet"
        path.write_bytes(path.read_bytes()[:-100])
    elif how == "parts mixed up":
        one, other = (merged / "merged_photons" / f"merged_photons_{k}.parquet" for k in (0, 1))
        content = one.read_bytes(), other.read_bytes()
        one.write_bytes(content[1])
        other.write_bytes(content[0])


@pytest.mark.parametrize(
    ("kind", "how", "words"),
    [
        ("sqlite", "no selections", r"not complete.*selections.*no train_selection.parquet"),
        ("parquet", "half a selection", r"not complete.*no test_selection.parquet"),
        ("sqlite", "strange event", r"train_selection.parquet.*2 of 217 events are not in mc_tr"),
        ("parquet", "strange event", r"train_selection.parquet.*2 of 217 events are not in mc_t"),
        ("sqlite", "overlap", r"training overlap.*1 events"),
        ("sqlite", "cut database", r"cannot read the source.*merged.db.*bytes, as its header"),
        ("sqlite", "no noise", r"training have no noise.*no table merged_photons"),
        ("sqlite", "noise removed", r"training have no noise.*215 events, and [\d,]+ in pulses_"),
        ("sqlite", "no index", r"merged_photons has no index.*CREATE INDEX"),
        ("sqlite", "moved sensors", r"pulses and geometry disagree.*sensor_id"),
        ("parquet", "moved sensors", r"pulses and geometry disagree.*sensor_id"),
        ("sqlite", "no geometry", r"where all sensors stand.*geometry.parquet"),
        ("parquet", "last pulses missing", r"not complete.*merged_photons.*no merged_photons_4"),
        ("parquet", "truth missing", r"not complete.*mc_truth.*no mc_truth_1"),
        ("parquet", "no folder of noise", r"training have no noise"),
        ("parquet", "all of one part missing", r"_selection.parquet.*events are not in mc_truth"),
        ("parquet", "cut part", r"damaged, truncated.*pulses_no_noise_2"),
        ("sqlite", "no tables", r"not complete.*merged\]: found neither merged.db nor Parquet"),
        ("sqlite", "download still runs", r"not complete.*merged\]: found neither merged.db nor"),
        (
            "sqlite",
            "rows of testing missing",
            r"not complete.*pulses_no_noise\]: found no pulse of",
        ),
        ("parquet", "part without rows", r"not complete.*merged_photons\]: found no pulse of"),
        ("parquet", "part without a column", r"not complete.*merged_photons_3.*_id, charge, t"),
        (
            "parquet",
            "no event numbers",
            r"nothing names the events.*mc_truth_3.*column event_no, or",
        ),
        ("parquet", "rows taken out", r"counts other rows.*mc_truth_3.*60 numbers.*for 20 rows"),
        (
            "parquet",
            "selection without numbers",
            r"nothing names.*test_selection.*found columns 0,",
        ),
        ("parquet", "parts mixed up", r"lie in another part.*merged_photons_0"),
    ],
)
def test_a_set_that_is_wrong_is_refused_before_anything_is_written(
    frames: dict, kind: str, how: str, words: str, tmp_path: Path
) -> None:
    folder = write_nubench(tmp_path / "set", frames, kind)
    broken(folder, how)
    with pytest.raises((RawDataError, DetectorError), match=words):
        convert(folder, tmp_path / "raw")
    assert not (tmp_path / "raw").exists()


def test_a_part_without_rows_that_no_sample_saw_is_refused_by_its_group(
    frames: dict, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write_nubench(tmp_path / "set", frames, "parquet")
    broken(folder, "part without rows")
    monkeypatch.setattr(
        "iceaggr.events.conversion.nubench_plan._refuse_cut_pulses", lambda *_: None
    )
    with pytest.raises(
        RawDataError, match=r"merged_photons\]: found no pulse of 4\d of 215 events"
    ):
        convert(folder, tmp_path / "raw")
    assert not (tmp_path / "raw" / "train_meta.parquet").exists()


def test_a_locked_database_is_told_as_one(
    frames: dict, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write_nubench(tmp_path / "set", frames, "sqlite")
    with closing(sqlite3.connect(folder / "merged" / "merged.db")) as writer:
        writer.execute("PRAGMA locking_mode = EXCLUSIVE")
        writer.execute("BEGIN EXCLUSIVE")
        with pytest.raises(RawDataError, match=r"merged.db.*locked.*Wait for the program"):
            convert(folder, tmp_path / "raw")
    assert not (tmp_path / "raw").exists()


def test_flags_that_name_tables_do_not_fit_a_known_layout(frames: dict, tmp_path: Path) -> None:
    folder = write_nubench(tmp_path / "set", frames, "sqlite")
    with pytest.raises(ConfigError, match="read as its layout says"):
        convert(folder, tmp_path / "raw", "--pulses", "pulses_no_noise")


def test_another_word_in_the_split_column_is_refused(frames: dict, tmp_path: Path) -> None:
    out = tmp_path / "raw"
    convert(write_nubench(tmp_path / "set", frames, "sqlite"), out)
    meta = pd.read_parquet(out / "train_meta.parquet")
    meta.loc[3, "split"] = "val"
    meta.to_parquet(out / "train_meta.parquet")
    with pytest.raises(RawDataError, match=r"meta column split.*'val'.*train or test"):
        plan_shards(open_store(), out.as_uri(), DataConfig(), (tmp_path / "work").as_uri())


def test_test_files_without_noise_are_compared_with_each_other(tmp_path: Path) -> None:
    frames = nubench_frames(n_events=1200)
    out, store, config = tmp_path / "raw", open_store(), DataConfig()
    convert(write_nubench(tmp_path / "set", frames, "sqlite"), out, "--events-per-file", "150")
    work = (tmp_path / "work").as_uri()
    (unit,) = plan_shards(store, out.as_uri(), config, work)
    manifest = shard_unit(store, unit, work, config)
    sketches = load_file_sketches(store, manifest)
    assert _unlike(manifest, sketches) == []
    # without that knowledge the test files stand out
    assert _unlike(manifest.model_copy(update={"official_split": False}), sketches)
