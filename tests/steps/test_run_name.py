"""The name of a run: the one that Kubeflow lists, in every step."""

import pytest

from iceaggr.config import ExperimentConfig
from iceaggr.progress import find_summary, say_summary
from iceaggr.steps.context import RunContext, make_context
from iceaggr.steps.plan_shards import planned_context, write_work_units


@pytest.mark.parametrize(
    ("given", "name"),
    [
        ("laptop-raw-scratch-1128-182818", "laptop-raw-scratch-1128-182818"),
        # of a run that a schedule started: no name, or the placeholder as it is
        ("", "laptop-01234567"),
        ("{{$.pipeline_job_name}}", "laptop-01234567"),
    ],
)
def test_run_name_is_the_one_of_kubeflow_if_it_gives_one(given, name):
    context = make_context("0123456789", "x", "s3://b/work", {"name": "laptop"}, given)
    assert context.run_name == name


def test_run_name_reaches_a_sharding_task_through_the_plan(tmp_path):
    context = RunContext("run-1", "x", tmp_path.as_uri(), ExperimentConfig(), name="mine")
    write_work_units(context.open_store(), context, ["a"], "file:///raw")
    assert planned_context("run-1", tmp_path.as_uri()).run_name == "mine"


def test_summary_is_found_again_in_the_log_of_a_step(tmp_path, capsys):
    (tmp_path / "summary").write_text('{\n "reason": "better by 1.0 ± 0.1"\n}', encoding="utf-8")
    say_summary(tmp_path / "summary")
    say_summary(tmp_path / "absent")
    log = ["start", *capsys.readouterr().out.splitlines(), "summary.json: {cut", "end"]
    assert find_summary(f"    {line}" for line in log) == find_summary(log)
    assert find_summary(log) == {"reason": "better by 1.0 ± 0.1"}
    assert find_summary(["start", "end"]) is None
