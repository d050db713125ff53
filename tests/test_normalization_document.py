from __future__ import annotations

import pytest

from iceaggr.errors import NormalizationError
from iceaggr.normalization_document import INPUT_FEATURES, Normalization, parse_normalization
from tests.shards.sample_events import FITTED


def test_normalization_json_round_trip_is_exact() -> None:
    assert parse_normalization(FITTED.to_json()) == FITTED


@pytest.mark.parametrize(
    ("before", "after", "problem"),
    [
        ('"version": 1', '"version": 2', "found version: 2, expected 1"),
        ('"scale": 500.0', '"scale": 0.0', r"found x_m.scale: 0.0, expected more than 0.0"),
        ('"time_ns": {\n  "transform": "identity"', '"time_ns": {"transform": "log10"', "no log"),
        ('"preset"', '"presets"', "found preset: nothing, expected a value"),
        ("{", "", "expected JSON"),
    ],
)
def test_normalization_refuses_a_damaged_document(before: str, after: str, problem: str) -> None:
    text = Normalization.seed().to_json()
    assert before in text
    with pytest.raises(NormalizationError, match=rf"\[here\].*{problem}"):
        parse_normalization(text.replace(before, after, 1), "here")


def test_every_input_feature_has_a_scaling() -> None:
    for name in INPUT_FEATURES:
        assert FITTED.scaling(name).scale > 0
