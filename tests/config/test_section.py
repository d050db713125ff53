"""Numbers of a configuration are numbers, however YAML writes them; text and flags are none."""

from __future__ import annotations

from pathlib import Path

import pytest

from iceaggr.config import load_config, parse_config
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
