import pytest

from iceaggr.config import parse_config
from iceaggr.errors import ConfigError
from iceaggr.steps.training_choices import TrainingChoices

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
