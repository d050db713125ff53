import inspect

import pytest

from components import steps
from components.form import DROPDOWNS, FORM_MEANINGS, MEANINGS, add_dropdowns, described
from iceaggr.errors import ConfigError

STEPS = {
    name: step.python_func for name, step in vars(steps).items() if hasattr(step, "python_func")
}


@pytest.mark.parametrize("name", STEPS)
def test_every_parameter_of_a_step_is_described_in_its_docstring(name):
    sentence, _, arguments = STEPS[name].__doc__.partition("\n\nArgs:\n")
    assert sentence.endswith(".")
    assert "\n" not in sentence
    described_ones = [line.split(":")[0].strip() for line in arguments.splitlines()]
    assert described_ones == list(inspect.signature(STEPS[name]).parameters)


def test_described_refuses_a_parameter_without_a_meaning():
    with pytest.raises(KeyError, match="speed"):
        described()(lambda speed: None)


def test_every_shared_meaning_is_shared():
    used = [name for step in STEPS.values() for name in inspect.signature(step).parameters]
    of_the_form = {name.removeprefix("train_") for name in FORM_MEANINGS}
    others = [name for name in MEANINGS if name not in of_the_form and name != "n_nodes"]
    assert [name for name in others if used.count(name) < 2] == []


def test_step_is_described_with_the_sentence_of_the_form():
    for name in ("config", "work_uri", "train_gpu_count", "train_memory"):
        meaning = FORM_MEANINGS[name]
        assert f"{name.removeprefix('train_')}: {meaning}" in STEPS["train_on_machines"].__doc__


def test_meanings_of_the_run_form_are_sorted_as_the_form_lists_them():
    assert list(FORM_MEANINGS) == sorted(FORM_MEANINGS)


def root(**parameters):
    return {"inputDefinitions": {"parameters": parameters}}


def test_add_dropdowns_writes_the_allowed_values():
    graph = root(size={"parameterType": "STRING", "defaultValue": "1"})
    add_dropdowns(graph, {"size": ("0", "1")})
    assert graph["inputDefinitions"]["parameters"]["size"]["literals"] == ["0", "1"]


def test_add_dropdowns_refuses_a_default_that_is_not_allowed():
    graph = root(size={"parameterType": "STRING", "defaultValue": "7"})
    with pytest.raises(ConfigError, match=r"size has a value .*default.*found '7'"):
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
