import pytest

from iceaggr.errors import ConfigError
from launch.run_form import DROPDOWNS, add_dropdowns


def root(**parameters):
    return {"inputDefinitions": {"parameters": parameters}}


def test_add_dropdowns_writes_the_allowed_values():
    graph = root(size={"parameterType": "STRING", "defaultValue": "1"})
    add_dropdowns(graph, {"size": ("0", "1")})
    assert graph["inputDefinitions"]["parameters"]["size"]["literals"] == ["0", "1"]


def test_add_dropdowns_refuses_a_default_that_is_not_allowed():
    graph = root(size={"parameterType": "STRING", "defaultValue": "7"})
    with pytest.raises(ConfigError, match=r"size has another value .*default.*found '7'"):
        add_dropdowns(graph, {"size": ("0", "1")})


@pytest.mark.parametrize(
    ("graph", "found"),
    [(root(size={"parameterType": "NUMBER_INTEGER"}), "NUMBER_INTEGER"), (root(), "no such param")],
)
def test_add_dropdowns_refuses_a_parameter_that_is_no_text(graph, found):
    with pytest.raises(ConfigError, match=f"a dropdown needs a text parameter.*found {found}"):
        add_dropdowns(graph, {"size": ("0", "1")})


def test_dropdown_values_pass_the_check_of_the_training_step():
    from iceaggr.config import ExperimentConfig
    from iceaggr.steps.training_choices import STARTS, TrainingChoices

    for count in DROPDOWNS["train_gpu_count"]:
        config = TrainingChoices(gpu_count=count).applied_to(ExperimentConfig())
        assert config.training.device == ("cpu" if count == "0" else "cuda")
    assert DROPDOWNS["train_start_from"] == STARTS
