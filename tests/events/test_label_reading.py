"""Label conventions: translated there and back, and found out by their ranges."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest
import torch

from iceaggr.angles import unit_vector
from iceaggr.events.label_reading import (
    AS_DOCUMENTED,
    WORDS,
    LabelReading,
    axis_readings,
    in_range,
    range_remedy,
)

RNG = np.random.default_rng(1)
AZIMUTH = RNG.uniform(0, 2 * np.pi, 500)
ZENITH = np.arccos(RNG.uniform(-1, 1, 500))
SIGNED = np.where(np.pi < AZIMUTH, AZIMUTH - 2 * np.pi, AZIMUTH)


def vectors(azimuth: np.ndarray, zenith: np.ndarray) -> np.ndarray:
    return unit_vector(torch.from_numpy(azimuth), torch.from_numpy(zenith)).numpy()


OURS = vectors(AZIMUTH, ZENITH)


@pytest.mark.parametrize(
    "words", [words for n in (1, 2, 3) for words in combinations(WORDS, n)], ids=".".join
)
def test_what_a_reading_undoes_it_does_again(words) -> None:
    reading = LabelReading.of(reversed(words))
    columns = reading.undo(AZIMUTH, ZENITH)
    assert reading.in_range(*columns).all()
    assert vectors(*reading.apply(*columns)) == pytest.approx(OURS, abs=1e-12)


@pytest.mark.parametrize(
    ("word", "columns"),
    [
        ("degrees", (np.rad2deg(AZIMUTH), np.rad2deg(ZENITH))),
        ("columns_swapped", (ZENITH, AZIMUTH)),
        ("azimuth_from_minus_pi", (SIGNED, ZENITH)),
        ("elevation", (AZIMUTH, np.pi / 2 - ZENITH)),
        ("particle", ((AZIMUTH + np.pi) % (2 * np.pi), np.pi - ZENITH)),
        ("mirror_y", (2 * np.pi - AZIMUTH, ZENITH)),
        ("mirror_z", (AZIMUTH, np.pi - ZENITH)),
    ],
)
def test_each_word_means_what_its_sentence_says(word, columns) -> None:
    assert vectors(*LabelReading((word,)).apply(*columns)) == pytest.approx(OURS, abs=1e-12)


@pytest.mark.parametrize(
    ("word", "matrix"),
    [
        ("particle", -np.eye(3)),
        ("mirror_x", np.diag([-1, 1, 1])),
        ("mirror_y", np.diag([1, -1, 1])),
        ("mirror_z", np.diag([1, 1, -1])),
        ("x_y_swapped", np.eye(3)[[1, 0, 2]]),
    ],
)
def test_words_about_axes_turn_the_vector(word, matrix) -> None:
    turned = vectors(*LabelReading((word,)).apply(AZIMUTH, ZENITH))
    assert turned == pytest.approx(OURS @ matrix.T, abs=1e-12)


def test_all_sixteen_ways_of_the_axes_differ() -> None:
    found = axis_readings(LabelReading(("degrees",)))
    columns = np.rad2deg(AZIMUTH), np.rad2deg(ZENITH)
    ways = {tuple(vectors(*reading.apply(*columns))[0].round(9)) for reading in found}
    assert len(found) == len(ways) == 16
    assert all("degrees" in reading for reading in found)


@pytest.mark.parametrize("word", WORDS)
@pytest.mark.parametrize("azimuth", [-400.0, 400.0, np.nan, np.inf])
def test_what_is_out_of_range_stays_so(word, azimuth) -> None:
    reading = LabelReading((word,))
    columns = (np.array([azimuth]), np.array([1.0]))
    columns = columns[::-1] if word == "columns_swapped" else columns
    assert not in_range(*reading.apply(*columns)).any()


@pytest.mark.parametrize("azimuth", [-0.1, -3.5, 7.0])
def test_only_the_named_turn_is_accepted(azimuth) -> None:
    columns = np.array([azimuth]), np.array([1.0])
    assert not LabelReading(("particle",)).in_range(*columns).any()
    signed = LabelReading(("azimuth_from_minus_pi",))
    assert signed.in_range(*columns).all() == (azimuth == -0.1)
    assert not signed.in_range(np.array([4.0]), np.array([1.0])).any()


@pytest.mark.parametrize(
    ("azimuth", "zenith", "words"),
    [
        (SIGNED, ZENITH, ["azimuth_from_minus_pi"]),
        (np.rad2deg(AZIMUTH), np.rad2deg(ZENITH), ["degrees"]),
        (np.rad2deg(SIGNED), np.rad2deg(ZENITH), ["degrees", "azimuth_from_minus_pi"]),
        (ZENITH, AZIMUTH, ["columns_swapped"]),
        (ZENITH, SIGNED, ["columns_swapped", "azimuth_from_minus_pi"]),
        (AZIMUTH, np.pi / 2 - ZENITH, ["elevation"]),
    ],
)
def test_range_names_the_reading(azimuth, zenith, words) -> None:
    remedy = range_remedy(azimuth, zenith, AS_DOCUMENTED)
    assert remedy.startswith("All would fit if ")
    assert remedy.endswith(f"set data.label_reading: [{', '.join(words)}]")


@pytest.mark.parametrize(
    ("azimuth", "zenith", "told"),
    [
        (np.rad2deg(AZIMUTH), ZENITH, "One column looks like degrees, the other like radians"),
        (AZIMUTH, np.cos(ZENITH), "zenith looks like its own cosine"),
        (1000 * AZIMUTH, 1000 * ZENITH, "Write azimuth and zenith in radians"),
        (AZIMUTH[:0], ZENITH[:0], "Write azimuth and zenith in radians"),
    ],
)
def test_no_setting_is_named_where_none_helps(azimuth, zenith, told) -> None:
    assert range_remedy(azimuth, zenith, AS_DOCUMENTED).startswith(told)


def test_reading_that_was_declared_in_error_is_taken_back() -> None:
    remedy = range_remedy(AZIMUTH, ZENITH, LabelReading(("azimuth_from_minus_pi",)))
    assert "set data.label_reading: []" in remedy
