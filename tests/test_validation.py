from typing import Annotated, Literal

import pytest
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from iceaggr.config import parse_config
from iceaggr.errors import ConfigError
from iceaggr.validation import first_problem, shown


class Part(BaseModel):
    model_config = ConfigDict(extra="forbid")

    colour: Literal["red", "green"] = "red"
    size: Annotated[int, Field(ge=1)] = 1


class Whole(BaseModel):
    model_config = ConfigDict(extra="forbid")

    parts: tuple[Part, ...] = ()
    first: Part = Part()
    weight: float


@pytest.mark.parametrize(
    ("document", "field", "found", "expected", "hint"),
    [
        ({}, "weight", "nothing", "a value", ""),
        ({"weight": "x"}, "weight", "'x'", "a number", ""),
        ({"weight": 1, "wieght": 2}, "wieght", "2", "parts, first, weight", "Did you mean weight?"),
        ({"weight": 1, "size": 2}, "size", "2", "parts, first, weight", "Did you mean first.size?"),
        (
            {"weight": 1, "first": {"sise": 2}},
            "first.sise",
            "2",
            "size",
            "Did you mean first.size?",
        ),
        ({"weight": 1, "parts": [{"size": 0}]}, "parts.0.size", "0", "1 or more", ""),
        ({"weight": 1, "parts": [{"sise": 0}]}, "parts.0.sise", "0", "one of colour, size", None),
        ({"weight": 1, "first": 3}, "first", "3", "names with values", ""),
        ({"weight": 1, "first": {"colour": "gren"}}, "first.colour", "'gren'", "'green'", "green"),
    ],
)
def test_first_problem_names_field_found_expected_and_hint(document, field, found, expected, hint):
    with pytest.raises(ValidationError, match=r"\S") as caught:
        Whole.model_validate(document)
    problem = first_problem(caught.value, Whole)
    assert problem.field == field
    assert problem.found == found
    assert expected in problem.expected
    assert "Input should" not in problem.expected
    assert hint is None or hint in problem.hint
    assert bool(problem.hint) or not hint


def test_first_problem_counts_what_else_is_wrong():
    with pytest.raises(ConfigError, match=r"bad value for data.n_events \(and 1 more\)"):
        parse_config({"data": {"n_events": -1, "n_events_per_shard": 0}})


def test_shown_is_short_however_large_the_value():
    deep = []
    for _ in range(30):
        deep = [deep, deep]  # written out it would have 2^30 brackets
    assert len(shown(deep)) < 200
    assert len(shown("x" * 10**6)) < 200
