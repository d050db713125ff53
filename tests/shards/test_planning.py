import json
import os
from itertools import pairwise

import pandas as pd
import pytest

from iceaggr.config import DataConfig
from iceaggr.errors import RawDataError, ShardError
from iceaggr.shards.planning import cut_units, load_work_unit, plan_shards
from iceaggr.storage import open_store
from tests.events.raw_layout import write_raw_layout

STORE = open_store()
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
