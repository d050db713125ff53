import inspect
from importlib import import_module
from pathlib import Path

import pytest

from components.parameters import MEANINGS, described
from launch.run_form import MEANINGS as FORM

STEPS = sorted(
    path.stem
    for path in (Path(__file__).parents[2] / "components").glob("*.py")
    if "@dsl.component" in path.read_text()
)


@pytest.mark.parametrize("name", STEPS)
def test_every_parameter_of_a_step_is_described_in_its_docstring(name):
    step = getattr(import_module(f"components.{name}"), name)
    sentence, _, arguments = step.python_func.__doc__.partition("\n\nArgs:\n")
    assert sentence.endswith(".")
    assert "\n" not in sentence
    described_ones = [line.split(":")[0].strip() for line in arguments.splitlines()]
    assert described_ones == list(inspect.signature(step.python_func).parameters)


def test_described_refuses_a_parameter_without_a_meaning():
    with pytest.raises(KeyError, match="speed"):
        described(MEANINGS)(lambda speed: None)


def test_every_shared_meaning_is_shared():
    used = [
        name
        for step in STEPS
        for name in inspect.signature(
            getattr(import_module(f"components.{step}"), step).python_func
        ).parameters
    ]
    assert [name for name in MEANINGS if used.count(name) < 2] == []


def test_meanings_of_the_run_form_are_sorted_as_the_form_lists_them():
    assert list(FORM) == sorted(FORM)
