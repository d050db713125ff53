import pytest

from iceaggr.config import parse_config
from iceaggr.errors import ConfigError
from iceaggr.steps.context import RunContext
from iceaggr.steps.plan_shards import run_plan_shards


def test_run_plan_shards_refuses_a_run_whose_training_could_not_be_as_chosen(tmp_path):
    config = parse_config({"training": {"device": "cuda"}})
    context = RunContext("run-1", "x", (tmp_path / "work").as_uri(), config, tracked=False)
    raw_uri = (tmp_path / "raw").as_uri()
    with pytest.raises(ConfigError, match="found device cuda and 0 GPUs"):
        run_plan_shards(context, raw_uri, "0")
    assert not list(tmp_path.iterdir())
