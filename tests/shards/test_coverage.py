"""A work unit that is missing, or of another plan, is told from the plan."""

from __future__ import annotations

import pytest

from iceaggr.config import DataConfig
from iceaggr.errors import ShardError
from iceaggr.shards.coverage import check_coverage
from iceaggr.shards.merging import merge_manifests
from iceaggr.shards.planning import plan_shards
from iceaggr.shards.writing import shard_unit
from iceaggr.storage import open_store
from tests.events.raw_layout import write_raw_layout


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
