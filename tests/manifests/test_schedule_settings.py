"""What an operator writes for the schedule is read, or refused with what was meant."""

import re

import pytest
import yaml

from launch.settings import run_values
from manifests import objects
from manifests.check import main, setting_problems
from tests.manifests.rendering import OVERLAYS, find, render


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_overlay_says_all_that_the_schedule_reads_and_nothing_else(overlay):
    documents = render(overlay)
    assert list(setting_problems(documents)) == []
    settings = find(documents, "ConfigMap", "iceaggr-schedule")["data"]
    settings["SCHEDULE_CORN"] = settings.pop("SCHEDULE_CRON")
    assert list(setting_problems(documents)) == [
        "ConfigMap iceaggr-schedule: nothing reads SCHEDULE_CORN; did you mean SCHEDULE_CRON?",
        "ConfigMap iceaggr-schedule: SCHEDULE_CRON is missing",
    ]


def test_check_fails_on_a_setting_that_nothing_reads(tmp_path, capsys):
    documents = render("existing")
    find(documents, "ConfigMap", "iceaggr-schedule")["data"]["TRAIN_GPU_COUNT"] = "1"
    path = tmp_path / "existing.yaml"
    path.write_text(yaml.safe_dump_all(documents))
    assert main([str(path)]) == 1
    assert "nothing reads TRAIN_GPU_COUNT" in capsys.readouterr().out


def test_setting_problems_names_a_setting_of_the_steps_that_nothing_reads():
    documents = render("existing")
    settings = find(documents, "ConfigMap", "iceaggr-settings")["data"]
    settings["allowed-uri"] = settings.pop("allowed-uris")
    assert list(setting_problems(documents)) == [
        "ConfigMap iceaggr-settings: nothing reads allowed-uri; did you mean allowed-uris?",
        "ConfigMap iceaggr-settings: allowed-uris is missing; empty = every place",
    ]


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("SCHEDULE_CRON", "0 3 * * 0", "SCHEDULE_CRON: bad cron expression"),
        ("CONFIG", "nope.yaml", "CONFIG: no such configuration .*best.yaml, laptop.yaml"),
        ("CONFIG", "../configs/best.yaml", "CONFIG: no such configuration"),
        ("SCHEDULE_NAME", "", "SCHEDULE_NAME: invalid name"),
        ("EXPERIMENT", " ", "EXPERIMENT: invalid name"),
        ("RUN_NAMESPACE", "Bad_NS!", "RUN_NAMESPACE: invalid name of a namespace"),
        ("KFP_HOST", "ml-pipeline:8888", "KFP_HOST: not an address"),
        ("KFP_HOST", "https://token@kfp:8888", "KFP_HOST: address holds a user or a password"),
    ],
)
def test_setting_problems_names_a_value_that_the_schedule_job_would_refuse(name, value, message):
    documents = render("existing")
    find(documents, "ConfigMap", "iceaggr-schedule")["data"][name] = value
    (problem,) = setting_problems(documents)
    assert re.search(message, problem)


@pytest.mark.parametrize("value", ["ml-pipeline:8888", "https://token@kfp:8888"])
def test_setting_problems_names_an_address_that_the_last_step_cannot_ask(value):
    documents = render("existing")
    find(documents, "ConfigMap", "iceaggr-settings")["data"]["kfp-api"] = value
    (problem,) = setting_problems(documents)
    assert problem.startswith("ConfigMap iceaggr-settings: kfp-api: ")


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_overlay_schedules_with_parameters_that_the_pipeline_has(overlay, compiled, tmp_path):
    settings = find(render(overlay), "ConfigMap", "iceaggr-schedule-parameters")["data"]
    path = tmp_path / "parameters.env"
    path.write_text(settings["parameters.env"])
    values = run_values(compiled.parameters, [], None, path)
    assert {"raw_uri", "work_uri"} <= set(values)


def test_pipeline_objects_are_not_written_when_a_schedule_has_an_unknown_parameter(tmp_path):
    (tmp_path / "parameters.env").write_text("train_node=2\n")
    output = tmp_path / "pipeline.yaml"
    with pytest.raises(SystemExit, match=r"unknown parameter.*Did you mean train_nodes\?"):
        objects.main(["pipeline", str(output), "--check", str(tmp_path / "parameters.env")])
    assert not output.exists()


def test_pipeline_objects_are_not_written_for_a_name_that_is_no_namespace(tmp_path):
    output = tmp_path / "pipeline.yaml"
    with pytest.raises(SystemExit, match="invalid name of a namespace"):
        objects.main(["pipeline", str(output), "--namespace", "Bad_NS!"])
    assert not output.exists()
