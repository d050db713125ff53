"""Numbers of a configuration are numbers, however YAML writes them; text and flags are none."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import annotated_types
import pytest
from pydantic.fields import FieldInfo

from iceaggr.config import BatchConfig, ExperimentConfig, Section, load_config, parse_config
from iceaggr.errors import ConfigError


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("1e-3", 0.001),
        ("1E-3", 0.001),
        ("1e+0", 1.0),
        (".5e-3", 0.0005),
        ("1.0e-3", 0.001),
        ("1", 1.0),
    ],
)
def test_load_config_reads_numbers_with_and_without_a_point(
    text: str, expected: float, tmp_path: Path
) -> None:
    path = tmp_path / "settings.yaml"
    path.write_text(f"training: {{learning_rate: {text}}}\n")
    assert load_config(path).training.learning_rate == expected
    path.write_text(f"learning_check: {{learning_rates: [{text}, 0.1]}}\n")
    assert load_config(path).learning_check.learning_rates == (expected, 0.1)


@pytest.mark.parametrize(
    ("text", "expected"),
    [("010", 10), ("08", 8), ("+7", 7), ("1_000", 1000), ("0x10", 16), ("0o10", 8), ("0b11", 3)],
)
def test_load_config_reads_whole_numbers_as_people_do(
    text: str, expected: int, tmp_path: Path
) -> None:
    path = tmp_path / "settings.yaml"
    path.write_text(f"training: {{n_epochs: {text}}}\n")
    assert load_config(path).training.n_epochs == expected


@pytest.mark.parametrize("text", ["1:30", "1:30:00", "1:30.5", "1__0", "0o9", "._5"])
def test_load_config_takes_no_time_of_day_for_a_number(text: str, tmp_path: Path) -> None:
    path = tmp_path / "settings.yaml"
    path.write_text(f"training: {{max_minutes: {text}}}\n")
    with pytest.raises(ConfigError, match=rf"max_minutes .*found '{text}', expected a number, not"):
        load_config(path)


@pytest.mark.parametrize(
    ("section", "field", "value", "expected"),
    [
        ("training", "n_epochs", "3", "a whole number, not text"),
        ("training", "learning_rate", "1e-3", "a number, not text"),
        ("training", "learning_rate", "much", "a number, not text"),
        ("training", "n_epochs", True, "a number, not true or false"),
        ("learning_check", "learning_rates", [1e-3, "1e-2"], "a number, not text"),
        ("learning_check", "learning_rates", [1e-3, True], "a number, not true or false"),
    ],
)
def test_section_refuses_what_is_no_number(
    section: str, field: str, value: object, expected: str
) -> None:
    with pytest.raises(ConfigError, match=rf"{section}\.{field}.*expected {expected}"):
        parse_config({section: {field: value}})


@pytest.mark.parametrize("quoted", ['"3"', "'3'"])
def test_load_config_refuses_a_number_in_quotes(quoted: str, tmp_path: Path) -> None:
    path = tmp_path / "settings.yaml"
    path.write_text(f"training: {{n_epochs: {quoted}}}\n")
    with pytest.raises(ConfigError, match=r"training\.n_epochs.*found '3', expected a whole"):
        load_config(path)


@pytest.mark.parametrize("name", ["1e5abc", "1e", "e5", "1e-3 and more"])
def test_load_config_keeps_text_that_only_begins_like_a_number(name: str, tmp_path: Path) -> None:
    path = tmp_path / "settings.yaml"
    path.write_text(f"name: {name}\n")
    assert load_config(path).name == name


# Every number of the configuration has two bounds, and absurd values are refused by name.
#
# A new field without bounds fails here, and so does one that takes an absurd value unless `TAKEN`
# says that the value is of use.

ABSURD = (-1, 0, math.nan, math.inf, 1e300, 2**70, 10**9)
ANY, NONE, OFF = "no limit", "none", "switched off"
TAKEN: dict[str, dict[float, str]] = {
    "data.n_events": {0: "all", 10**9: ANY},
    "normalization.max_abs": {10**9: "beyond every raw value: " + OFF},
    "normalization.max_outlier_share": {0: NONE},
    "batches.max_doms_per_batch": {0: ANY},
    "batches.n_workers": {0: "in the caller"},
    "batches.seed": {0: "a seed", 10**9: "a seed"},
    "model.n_dom_layers": {0: "dom_statistics in their place"},
    "model.dropout": {0: OFF},
    "model.max_rows_per_chunk": {0: "what suits the device", 10**9: "in one piece"},
    "model.max_rows_kept": {0: "what suits the device", 10**9: "all"},
    "model.fourier_bands": {0: NONE},
    "loss.angle_from_progress": {0: "from the beginning"},
    "loss.likelihood_share": {0: NONE},
    "training.max_minutes": {0: ANY},
    "training.weight_decay": {0: OFF},
    "training.max_gradient_norm": {10**9: OFF},
    "training.warmup_share": {0: NONE},
    "training.ema_decay": {0: OFF},
    "training.validation_every_minutes": {0: "at the end of an epoch"},
    "training.max_validation_events": {10**9: "all"},
    "training.max_kappa_map_events": {10**9: "all"},
    "training.stop_if_not_learning_after_n_steps": {0: OFF, 10**9: "in effect " + OFF},
    "training.seed": {0: "a seed", 10**9: "a seed"},
    "learning_check.min_loss_drop": {0: "any fall"},
    "evaluation.max_events": {0: "all", 10**9: "all"},
    "evaluation.n_displays": {0: NONE},
    "evaluation.refine_events": {0: NONE},
    "evaluation.seed": {0: "a seed", 10**9: "a seed"},
    "promotion.min_gain_deg": {0: "any gain"},
    "promotion.min_sigma": {0: "any gain"},
    "promotion.max_calibration_loss": {0: NONE},
    "promotion.min_shared_events": {10**9: "no champion of another split"},
}
"""Of the absurd values, those that a field takes, and what they mean there."""


def test_evaluation_is_not_cut_to_one_event() -> None:
    with pytest.raises(ConfigError, match=r"evaluation\.max_events.*at least 2"):
        parse_config({"evaluation": {"max_events": 1}}, "here")
    assert parse_config({"evaluation": {"max_events": 2}}, "here").evaluation.max_events == 2


WITH = {"model.n_dom_layers": {"dom_statistics": True}}
"""What must stand beside such a value."""


def numeric_fields() -> Iterator[tuple[str, FieldInfo, Any]]:
    """List section.field, what pydantic knows of it and the annotation of its number."""
    for section, part in ExperimentConfig.model_fields.items():
        kind = part.annotation
        if not (isinstance(kind, type) and issubclass(kind, Section)):
            continue
        for name, field in kind.model_fields.items():
            inner = (*get_args(field.annotation), None)[0]
            number = getattr(inner, "__origin__", inner) or field.annotation
            if number in (int, float):
                yield f"{section}.{name}", field, inner


FIELDS = {path: (field, inner) for path, field, inner in numeric_fields()}


def bounds_of(path: str) -> set[str]:
    """Name the bounds of a field: below, above."""
    field, inner = FIELDS[path]
    constraints = [*field.metadata]
    for extra in getattr(inner, "__metadata__", ()):
        constraints += getattr(extra, "metadata", [extra])
    below, above = (
        (annotated_types.Ge, annotated_types.Gt),
        (annotated_types.Le, annotated_types.Lt),
    )
    found = {"below" for one in constraints if isinstance(one, below)}
    return found | {"above" for one in constraints if isinstance(one, above)}


def settings(path: str, value: float) -> dict[str, Any]:
    section, name = path.split(".")
    is_list = FIELDS[path][1] is not None
    return {section: {name: [value] if is_list else value, **WITH.get(path, {})}}


def test_walk_meets_all_kinds_of_numbers() -> None:
    assert len(FIELDS) > 50
    assert {"training.seed", "learning_check.learning_rates", "loss.likelihood_share"} < set(FIELDS)
    assert set(TAKEN) <= set(FIELDS)


@pytest.mark.parametrize("path", FIELDS)
def test_number_has_a_lower_and_an_upper_bound(path: str) -> None:
    assert bounds_of(path) == {"below", "above"}


@pytest.mark.parametrize("path", FIELDS)
def test_absurd_number_is_refused_by_name_or_is_of_use(path: str) -> None:
    taken = TAKEN.get(path, {})
    for value in ABSURD:
        if value in taken:
            parse_config(settings(path, value))
            continue
        with pytest.raises(ConfigError, match=rf"^bad value for {path}\b.*expected ") as refused:
            parse_config(settings(path, value))
        assert "and 1 more" not in str(refused.value)


@pytest.mark.parametrize(
    ("rates", "n_rates"), [([], 0), ([0.1] * 101, 101)], ids=["no rate", "101 rates"]
)
def test_learning_check_has_a_rate_and_an_end(rates: list[float], n_rates: int) -> None:
    with pytest.raises(
        ConfigError, match=rf"learning_rates .*expected 1 to 100 rates, not {n_rates}"
    ):
        parse_config({"learning_check": {"learning_rates": rates}})


def test_salt_is_short_enough_to_be_quoted() -> None:
    with pytest.raises(ConfigError, match=r"split_salt .*expected at most 100 characters, not 101"):
        parse_config({"data": {"split_salt": "x" * 101}})


@pytest.mark.parametrize("folder", ["a\0b", "a\nb"])
def test_cache_folder_can_be_named(folder: str) -> None:
    with pytest.raises(ConfigError, match=r"cache_folder .*printable characters only"):
        parse_config({"batches": {"cache_folder": folder}})
    assert BatchConfig(cache_folder="/größer/a b").cache_folder
