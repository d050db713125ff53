import pytest

from iceaggr.config import parse_config
from iceaggr.errors import ConfigError
from iceaggr.steps.training_choices import TrainingChoices

CONFIGURED = parse_config({"training": {"max_minutes": 7.0, "start_from": "champion"}})


def test_choices_leave_the_settings_as_they_are_unless_something_is_chosen():
    training = TrainingChoices().applied_to(CONFIGURED).training
    assert (training.max_minutes, training.start_from, training.device) == (7.0, "champion", "cpu")


def test_choices_win_over_the_settings():
    training = TrainingChoices(3.0, "2", "scratch").applied_to(CONFIGURED).training
    assert (training.max_minutes, training.start_from, training.device) == (3.0, "scratch", "cuda")


@pytest.mark.parametrize(
    ("choices", "wrong"),
    [
        (TrainingChoices(gpu_count="one"), "bad GPU count .gpu_count.*found 'one'"),
        (TrainingChoices(gpu_count="-1"), "bad GPU count .gpu_count.*found '-1'"),
        (TrainingChoices(max_minutes=-1.0), r"bad limit of training.*found -1\.0"),
        (TrainingChoices(max_minutes=float("nan")), "bad limit of training.*found nan"),
        (TrainingChoices(max_minutes=float("inf")), "bad limit .*found inf, expected .*an end"),
        (TrainingChoices(start_from="best"), "cannot start from this .*'best', expected one of"),
    ],
)
def test_choices_that_mean_nothing_are_refused(choices, wrong):
    with pytest.raises(ConfigError, match=wrong):
        choices.applied_to(CONFIGURED)
