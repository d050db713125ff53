import pytest

from iceaggr.config import ExperimentConfig, parse_config
from iceaggr.detector import icecube86
from iceaggr.errors import ConfigError
from iceaggr.evaluation.report import ReportContext
from iceaggr.models.bundle import LoadedModel
from iceaggr.normalization_document import Normalization
from iceaggr.steps.context import RunContext
from iceaggr.steps.documents import ModelPointer
from iceaggr.steps.evaluate_model import context_of_report
from iceaggr.steps.training_choices import TrainingChoices
from tests.shards.shard_manifest_builder import manifest_of
from tests.steps.conftest import small_model

CONFIGURED = parse_config({"training": {"max_minutes": 7.0, "start_from": "champion"}})


def test_choices_leave_the_settings_as_they_are_unless_something_is_chosen():
    training = TrainingChoices().applied_to(CONFIGURED).training
    assert (training.max_minutes, training.start_from, training.device) == (7.0, "champion", "auto")


def test_choices_win_over_the_settings():
    training = TrainingChoices(3.0, "2", "scratch").applied_to(CONFIGURED).training
    assert (training.max_minutes, training.start_from, training.device) == (3.0, "scratch", "cuda")


@pytest.mark.parametrize("device", ["auto", "cpu", "cuda"])
def test_device_of_the_settings_stands_unless_a_number_of_gpus_is_chosen(device):
    config = parse_config({"training": {"device": device}})
    assert TrainingChoices().applied_to(config).training.device == device
    assert TrainingChoices().n_processes == 1


@pytest.mark.parametrize(
    ("gpu_count", "device", "n_processes"), [("0", "cpu", 1), ("1", "cuda", 1), ("4", "cuda", 4)]
)
def test_number_of_gpus_decides_for_settings_that_leave_it_open(gpu_count, device, n_processes):
    choices = TrainingChoices(gpu_count=gpu_count)
    assert choices.applied_to(parse_config({})).training.device == device
    assert choices.applied_to(choices.applied_to(parse_config({}))).training.device == device
    assert choices.n_processes == n_processes


@pytest.mark.parametrize(("gpu_count", "device"), [("0", "cuda"), ("1", "cpu"), ("8", "cpu")])
def test_number_of_gpus_that_the_settings_contradict_is_refused(gpu_count, device):
    config = parse_config({"training": {"device": device}})
    found = f"found device {device} and {gpu_count} GPUs"
    with pytest.raises(ConfigError, match=f"name another device than the run has .*{found}"):
        TrainingChoices(gpu_count=gpu_count).applied_to(config)


@pytest.mark.parametrize(
    ("choices", "wrong"),
    [
        ({"gpu_count": "²"}, "bad number .gpu_count.*found '²'"),
        ({"gpu_count": "one"}, "bad number .gpu_count.*found 'one'"),
        ({"gpu_count": "-1"}, "bad number .gpu_count.*found '-1'"),
        ({"max_minutes": -1.0}, r"bad limit of training.*found -1\.0"),
        ({"max_minutes": float("nan")}, "bad limit of training.*found nan"),
        ({"max_minutes": float("inf")}, "bad limit .*found inf, expected .*an end"),
        ({"start_from": "best"}, "cannot start from this .*'best', expected one of"),
    ],
)
def test_choices_that_mean_nothing_are_refused(choices, wrong):
    with pytest.raises(ConfigError, match=wrong):
        TrainingChoices(**choices)


# The report tells what training had, whoever chose it.


def report_of(trained_with: ExperimentConfig | None) -> ReportContext:
    """Begin the report of a run with the settings CONFIGURED."""
    facts = {"experiment": trained_with.model_dump(mode="json")} if trained_with else {}
    loaded = LoadedModel(small_model(Normalization.seed()), icecube86(), facts)
    pointer = ModelPointer(
        model_uri="file:///model",
        manifest_digest="0",
        mlflow_run_id="",
        n_steps=1,
        stopped_because="time",
        started_from="scratch",
    )
    context = RunContext("run-1", "x", "file:///work", CONFIGURED, tracked=False)
    return context_of_report(context, pointer, manifest_of({}), "file:///raw", "", loaded)


def test_report_shows_the_settings_in_force_and_which_the_run_chose() -> None:
    report = report_of(TrainingChoices(3.0, "0").applied_to(CONFIGURED))
    training = report.settings["training"]
    assert (training["max_minutes"], training["device"]) == (3.0, "cpu")
    assert training["start_from"] == "champion"
    assert report.settings["data"] == CONFIGURED.model_dump(mode="json")["data"]
    told = report.facts["chosen for this run"].split(", ")
    assert sorted(told) == [
        "training.device cpu (configured auto)",
        "training.max_minutes 3.0 (configured 7.0)",
    ]


@pytest.mark.parametrize("trained_with", [TrainingChoices().applied_to(CONFIGURED), None])
def test_report_of_a_run_that_chose_nothing_says_nothing_of_it(trained_with) -> None:
    report = report_of(trained_with)
    assert report.settings == CONFIGURED.model_dump(mode="json")
    assert "chosen for this run" not in report.facts
