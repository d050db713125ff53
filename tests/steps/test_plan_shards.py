"""What planning refuses before anything is written, and what it leaves for the statistics."""

from pathlib import Path

import pytest

from iceaggr.config import parse_config
from iceaggr.errors import ConfigError
from iceaggr.steps.context import RunContext
from iceaggr.steps.plan_shards import read_work_units, run_plan_shards
from iceaggr.storage import open_store
from tests.events.raw_layout import write_raw_layout


def test_run_plan_shards_refuses_a_run_whose_training_could_not_be_as_chosen(tmp_path):
    config = parse_config({"training": {"device": "cuda"}})
    context = RunContext("run-1", "x", (tmp_path / "work").as_uri(), config, tracked=False)
    raw_uri = (tmp_path / "raw").as_uri()
    with pytest.raises(ConfigError, match="found device cuda and 0 GPUs"):
        run_plan_shards(context, raw_uri, "0")
    assert not list(tmp_path.iterdir())


def context_of(folder: Path, **batches: str) -> RunContext:
    config = parse_config({"batches": batches})
    return RunContext("run-1", "x", (folder / "work").as_uri(), config, tracked=False)


@pytest.mark.parametrize("raw", ["", "work", "work/plans"])
def test_run_plan_shards_refuses_results_among_the_raw_events(raw, tmp_path):
    with pytest.raises(ConfigError, match=r"among the raw events \[work_uri\]"):
        run_plan_shards(context_of(tmp_path), (tmp_path / raw).as_uri())
    assert not list(tmp_path.iterdir())


def test_run_plan_shards_refuses_a_cache_of_shards_among_the_raw_events(tmp_path):
    raw = tmp_path / "raw"
    context = context_of(tmp_path, cache_folder=str(raw / "cache"))
    with pytest.raises(ConfigError, match=r"among the raw events \[batches\.cache_folder\]"):
        run_plan_shards(context, raw.as_uri())


def test_run_plan_shards_leaves_the_list_of_work_units(tmp_path):
    raw_uri = write_raw_layout(tmp_path / "raw", n_events_per_file=80, mean_pulses=5)
    context = context_of(tmp_path)
    units = run_plan_shards(context, raw_uri)
    assert read_work_units(open_store(), context) == tuple(units)
