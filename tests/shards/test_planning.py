from __future__ import annotations

import json
import os
from itertools import pairwise
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from pydantic import ValidationError

from iceaggr.config import DataConfig
from iceaggr.errors import RawDataError, ShardError
from iceaggr.shards.manifest import merge_manifests
from iceaggr.shards.planning import (
    PlannedFile,
    PlannedObject,
    check_coverage,
    check_unchanged,
    cut_units,
    load_work_unit,
    plan_shards,
)
from iceaggr.shards.split import TEST, split_idx
from iceaggr.shards.writing import shard_unit
from iceaggr.storage import open_store
from tests.events.raw_layout import write_raw_layout

STORE = open_store()


def test_check_unchanged_refuses_a_raw_file_that_is_gone_or_another(tmp_path):
    path = tmp_path / "batch_1.parquet"
    path.write_bytes(b"pulses")
    planned = PlannedObject(**vars(STORE.stat(path.as_uri())))
    check_unchanged(STORE, planned)
    path.write_bytes(b"pulses and more")
    with pytest.raises(RawDataError, match=r"changed after it was planned \[.*batch_1.parquet\]"):
        check_unchanged(STORE, planned)
    path.unlink()
    with pytest.raises(RawDataError, match=r"raw file is missing \[.*batch_1.parquet\]"):
        check_unchanged(STORE, planned)


def test_planned_file_uses_no_more_events_than_it_has():
    counts = {"n_events": 3, "n_events_used": 4}
    with pytest.raises(ValidationError, match="at most 3 events used"):
        PlannedFile(uri="file:///b", n_bytes=1, etag="t", batch_id=1, **counts)


# The truth of a simulation: what evaluation would refuse is refused when a run is planned.

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


def planned_with_truth(raw: Path, config: DataConfig = CONFIG) -> list[str]:
    return plan_shards(open_store(), raw.as_uri(), config, (raw / "work").as_uri())


def is_test(ids: np.ndarray) -> np.ndarray:
    split = split_idx(ids, CONFIG.split_salt, CONFIG.validation_share, CONFIG.test_share)
    return np.asarray(split == TEST)


def test_plan_takes_a_truth_in_any_files_and_order(raw: Path) -> None:
    assert planned_with_truth(raw)
    ids = event_ids(raw)
    write_truth(raw, np.concatenate([ids[::-1], [1, 2, 3]]))  # three are no events
    assert planned_with_truth(raw)


def test_plan_asks_for_the_truth_of_test_events_only(raw: Path) -> None:
    ids = event_ids(raw)
    write_truth(raw, ids[is_test(ids)])
    assert planned_with_truth(raw)


def test_plan_refuses_a_truth_without_a_test_event(raw: Path) -> None:
    ids = event_ids(raw)
    test = ids[is_test(ids)]
    write_truth(raw, np.setdiff1d(ids, test[3:5]))
    words = (
        rf"truth lacks events \[.*/truth/\]: found no row of event_id {test[3]}; 2 of {len(test)}"
    )
    with pytest.raises(RawDataError, match=words):
        planned_with_truth(raw)
    assert not (raw / "work").exists()


@pytest.mark.parametrize("shift", [1_000_000_000, None])
def test_plan_refuses_the_truth_of_other_events(raw: Path, shift: int | None) -> None:
    write_truth(raw, event_ids(raw) + shift if shift else np.empty(0, np.int64))
    with pytest.raises(RawDataError, match=r"truth lacks events .* (\d+) of \1 events of the test"):
        planned_with_truth(raw)


def test_plan_needs_no_truth_of_files_that_are_not_used(raw: Path) -> None:
    ids = event_ids(raw)
    write_truth(raw, ids[:30])
    assert planned_with_truth(raw, DataConfig(test_share=0.3, n_events=30))
    with pytest.raises(RawDataError, match="truth lacks events"):
        planned_with_truth(raw)


def test_plan_names_an_impossible_value_before_anything_is_written(raw: Path) -> None:
    path = raw / "truth" / "all.parquet"
    truth = pd.read_parquet(path)
    truth.loc[4, "energy_gev"] = np.nan
    truth.to_parquet(path, index=False)
    with pytest.raises(RawDataError, match=rf"null of event_id {truth['event_id'][4]} \(row 4\)"):
        planned_with_truth(raw)
    assert not (raw / "work").exists()


MIB = 1 << 20


def plan(raw_uri, tmp_path, **config):
    out_uri = (tmp_path / "out").as_uri()
    return plan_shards(STORE, raw_uri, DataConfig(**config), out_uri)


def files_of(units):
    return [file for unit in units for file in load_work_unit(STORE, unit)[1]]


def test_cut_units_joins_small_files_and_separates_large_ones():
    config = DataConfig(work_unit_mib=100)
    assert cut_units([60 * MIB] * 4, config) == [(0, 2), (2, 4)]
    assert cut_units([250 * MIB, 10 * MIB, 10 * MIB], config) == [(0, 1), (1, 3)]
    assert cut_units([MIB], config) == [(0, 1)]


@pytest.mark.parametrize("n_files", [1, 7, 660])
def test_cut_units_covers_every_file_once_within_the_limit(n_files):
    sizes = [(37 * i) % 200 * MIB for i in range(n_files)]
    units = cut_units(sizes, DataConfig(work_unit_mib=1, max_work_units=5))
    assert len(units) <= 5
    assert units[0][0] == 0
    assert units[-1][1] == n_files
    assert all(a[1] == b[0] for a, b in pairwise(units))


def test_plan_shards_gives_a_short_list_for_the_whole_public_set():
    # 660 files of 127 MiB; a pipeline parameter may hold some hundred KiB
    most = DataConfig().max_work_units
    spans = cut_units([127 * MIB] * 660, DataConfig())
    plan_uri = f"s3://{'b' * 63}/{'prefix/' * 20}plans/0123456789abcdef.json"
    work_units = [f"{plan_uri}#{first}:{last}" for first, last in spans]
    assert 0.9 * most < len(work_units) <= most
    assert len(json.dumps(work_units)) < 80 * 1024


def test_plan_shards_lists_files_in_numeric_order(tmp_path):
    uri = write_raw_layout(tmp_path / "raw", n_files=12, n_events_per_file=1)
    units = plan(uri, tmp_path, work_unit_mib=1)
    assert [file.batch_id for file in files_of(units)] == list(range(1, 13))


def test_plan_shards_names_the_plan_by_its_content(tmp_path):
    uri = write_raw_layout(tmp_path / "raw", n_files=2)
    first = plan(uri, tmp_path)
    assert plan(uri, tmp_path) == first
    assert len(list((tmp_path / "out" / "plans").iterdir())) == 1
    write_raw_layout(tmp_path / "raw", n_files=3)
    assert plan(uri, tmp_path) != first


@pytest.mark.parametrize(
    ("n_events", "expected"),
    [(0, [50, 50, 50]), (1, [1]), (50, [50]), (51, [50, 1]), (120, [50, 50, 20]), (999, [50] * 3)],
)
def test_plan_shards_takes_the_first_events_only(tmp_path, n_events, expected):
    uri = write_raw_layout(tmp_path / "raw", n_files=3, n_events_per_file=50)
    units = plan(uri, tmp_path, n_events=n_events)
    assert [file.n_events_used for file in files_of(units)] == expected


def test_plan_shards_refuses_a_meta_file_whose_raw_files_are_missing(tmp_path):
    uri = write_raw_layout(tmp_path / "raw", n_files=3)
    (tmp_path / "raw" / "train" / "batch_2.parquet").unlink()
    with pytest.raises(RawDataError, match=r"1 batches.*no raw file.*batch_2.*allow_missing_files"):
        plan(uri, tmp_path)
    with pytest.raises(RawDataError, match="no batch_2"):
        plan(uri, tmp_path, n_events=60)


def test_plan_shards_states_missing_files_when_they_are_allowed(tmp_path):
    uri = write_raw_layout(tmp_path / "raw", n_files=3)
    (tmp_path / "raw" / "train" / "batch_2.parquet").unlink()
    units = plan(uri, tmp_path, allow_missing_files=True)
    shard_plan, files = load_work_unit(STORE, units[0])
    assert [file.batch_id for file in files] == [1, 3]
    assert shard_plan.notes == (
        "1 batches of the meta file have no raw file: their 50 events were not sharded",
    )


def test_plan_shards_needs_no_files_beyond_the_events_asked_for(tmp_path):
    uri = write_raw_layout(tmp_path / "raw", n_files=3)
    (tmp_path / "raw" / "train" / "batch_3.parquet").unlink()
    assert len(files_of(plan(uri, tmp_path, n_events=100))) == 2


def test_plan_shards_refuses_a_raw_file_that_the_meta_file_does_not_know(tmp_path):
    uri = write_raw_layout(tmp_path / "raw", n_files=2)
    path = tmp_path / "raw" / "train_meta.parquet"
    meta = pd.read_parquet(path)
    meta[meta["batch_id"] == 1].to_parquet(path)
    with pytest.raises(RawDataError, match=r"no rows in the meta file \[.*batch_2.parquet\]"):
        plan(uri, tmp_path)


@pytest.mark.parametrize("work_unit", ["", "x", "file:///p.json", "file:///p.json#1", "p#a:b"])
def test_load_work_unit_refuses_what_is_none(work_unit):
    with pytest.raises(ShardError, match="not a work unit"):
        load_work_unit(STORE, work_unit)


def test_load_work_unit_refuses_a_span_outside_the_plan(tmp_path):
    units = plan(write_raw_layout(tmp_path / "raw", n_files=2), tmp_path)
    with pytest.raises(ShardError, match=r"outside its plan.*found 2 files"):
        load_work_unit(STORE, units[0].replace("#0:2", "#1:3"))


def test_load_work_unit_refuses_a_damaged_plan(tmp_path):
    path = tmp_path / "plan.json"
    path.write_text('{"raw_uri": "x"}')
    with pytest.raises(ShardError, match=r"damaged shard plan \[.*plan.json\]"):
        load_work_unit(STORE, f"{path.as_uri()}#0:1")


def test_load_work_unit_tells_a_plan_of_another_version_from_a_damaged_one(tmp_path):
    units = plan(write_raw_layout(tmp_path / "raw", n_files=1), tmp_path)
    [path] = (tmp_path / "out" / "plans").iterdir()
    document = json.loads(path.read_text())
    # as the version before wrote it
    document |= {"plan_version": 1, "meta_uri": document.pop("meta")["uri"]}
    path.write_text(json.dumps(document))
    with pytest.raises(
        ShardError, match=r"another version .*version 1, expected version 2\. Run plan_shards again"
    ):
        load_work_unit(STORE, units[0])


def test_plan_shards_names_the_meta_file_that_it_counted(tmp_path):
    uri = write_raw_layout(tmp_path / "raw", n_files=1)
    [unit] = plan(uri, tmp_path)
    path = tmp_path / "raw" / "train_meta.parquet"
    stored = STORE.stat(path.as_uri())
    assert load_work_unit(STORE, unit)[0].meta.model_dump() == vars(stored)
    pd.read_parquet(path).assign(zenith=1.0).to_parquet(path)
    assert plan(uri, tmp_path) != [unit]


def test_plan_shards_refuses_a_meta_file_that_changes_while_it_is_counted(tmp_path, monkeypatch):
    uri = write_raw_layout(tmp_path / "raw", n_files=1)
    path = tmp_path / "raw" / "train_meta.parquet"

    def read_then_replaced(*arguments):
        os.utime(path, (1, 1))

    monkeypatch.setattr("iceaggr.shards.planning.refuse_repeated_ids", read_then_replaced)
    with pytest.raises(
        RawDataError, match=r"changed after it was planned \[.*train_meta.parquet\]"
    ):
        plan(uri, tmp_path)
    assert not (tmp_path / "out").exists()


# A work unit that is missing, or of another plan, is told from the plan.


@pytest.fixture(scope="module")
def sharded(tmp_path_factory):
    """Work units of one raw file each, and what was sharded of them."""
    folder = tmp_path_factory.mktemp("coverage")
    raw_uri = write_raw_layout(folder / "raw", n_files=8, n_events_per_file=4, mean_pulses=5)
    [unit] = plan_shards(open_store(), raw_uri, DataConfig(), (folder / "work").as_uri())
    plan_uri = unit.partition("#")[0]
    units = [f"{plan_uri}#{first}:{first + 1}" for first in range(8)]
    out_uri = (folder / "work").as_uri()
    return units, [shard_unit(open_store(), unit, out_uri, DataConfig()) for unit in units]


def test_whole_plan_is_accepted_however_the_units_are_joined(sharded):
    units, manifests = sharded
    check_coverage(open_store(), units, manifests)
    check_coverage(open_store(), units, [merge_manifests(manifests)])


def test_missing_work_units_are_counted_and_named(sharded):
    units, manifests = sharded
    told = (
        r"work units were not sharded \[.*/plans/\w{16}\.json\]: found manifests of 7 work units, "
        r"expected those of all 8 that were planned; missing are 2:3 with 4 events of "
        r"batch_3\.parquet\. Shard the raw events again, by the same `iceaggr shard`"
    )
    with pytest.raises(ShardError, match=told):
        check_coverage(open_store(), units, manifests[:2] + manifests[3:])


def test_no_work_unit_at_all_names_the_first_that_are_missing(sharded):
    with pytest.raises(ShardError, match=r"of 0 work units.* 4:5 and 3 more with 32 events of .*m"):
        check_coverage(open_store(), sharded[0], [])


def test_work_unit_that_lacks_one_of_its_files_is_missing(sharded):
    units, manifests = sharded
    joined = units[0].replace("#0:1", "#0:8")
    with pytest.raises(ShardError, match=r"0 work units.* 0:8 with 4 events of batch_8\.parquet"):
        check_coverage(open_store(), [joined], manifests[:7])


def test_file_that_was_not_planned_is_named(sharded):
    units, manifests = sharded
    with pytest.raises(ShardError, match=r"batch_8\.parquet\]: found tag .*only the raw files of"):
        check_coverage(open_store(), units[:7], manifests)


@pytest.mark.parametrize("change", [{"etag": "of-before"}, {"n_bytes": 7}, {"n_events_in": 3}])
def test_file_that_is_another_than_planned_is_named(sharded, change):
    units, manifests = sharded
    source = manifests[0].source_files[0].model_copy(update=change)
    other = manifests[0].model_copy(update={"source_files": (source,)})
    value = next(iter(change.values()))
    with pytest.raises(ShardError, match=rf"not what was planned \[.*batch_1.*found .*\b{value}"):
        check_coverage(open_store(), units, [other, *manifests[1:]])
