from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from iceaggr.detector import icecube86, parse_geometry
from iceaggr.errors import ShardError
from iceaggr.events.dom_events import take_range
from iceaggr.shards.histograms import Binning, summarise
from iceaggr.shards.sketches import (
    FEATURES,
    Sketch,
    merge_sketches,
    split_sketches_from_json,
    split_sketches_to_json,
)
from iceaggr.shards.sketching import empty_sketch, sketch_events
from tests.shards.dom_events_builder import random_dom_events

DETECTOR = icecube86()
EXACT = 1e-12


def assert_same(left: Sketch, right: Sketch) -> None:
    assert (left.n_events, left.n_doms, left.n_pulses) == (
        right.n_events,
        right.n_doms,
        right.n_pulses,
    )
    np.testing.assert_array_equal(left.dom_hits, right.dom_hits)
    for name in FEATURES:
        a, b = left.features[name], right.features[name]
        assert (a.n_values, a.n_not_finite, a.low, a.high) == (
            b.n_values,
            b.n_not_finite,
            b.low,
            b.high,
        ), name
        np.testing.assert_allclose([a.weight, a.m2], [b.weight, b.m2], rtol=EXACT, err_msg=name)
        assert abs(a.mean - b.mean) <= EXACT * max(abs(b.mean), b.std), name
        np.testing.assert_allclose(a.histogram, b.histogram, rtol=EXACT, atol=1e-13, err_msg=name)


@settings(max_examples=25, deadline=None)
@given(cuts=st.lists(st.integers(0, 120), max_size=6), order=st.randoms(use_true_random=False))
def test_sketch_merges_in_any_order_and_grouping(cuts: list[int], order: object) -> None:
    events = random_dom_events(120, seed=5, median_pulses=30)
    bounds = [0, *sorted(cuts), 120]
    parts = [
        sketch_events(take_range(events, first, last), DETECTOR)
        for first, last in itertools.pairwise(bounds)
    ]
    order.shuffle(parts)  # type: ignore[attr-defined]
    half = len(parts) // 2
    left = merge_sketches([empty_sketch(DETECTOR), *parts[:half]])
    right = merge_sketches([*parts[half:], empty_sketch(DETECTOR)])
    assert_same(left.merge(right), sketch_events(events, DETECTOR))


def test_sketch_json_round_trip_is_exact_and_small() -> None:
    sketch = sketch_events(random_dom_events(500, seed=6), DETECTOR)
    text = sketch.to_json()
    again = Sketch.from_json(text)
    assert again.to_json() == text
    assert again.features["time_ns"].mean == sketch.features["time_ns"].mean
    np.testing.assert_array_equal(
        again.features["n_pulses"].histogram, sketch.features["n_pulses"].histogram
    )
    assert len(text) < 60 * 1024


def test_split_sketches_json_round_trip_keeps_empty_splits() -> None:
    sketch = sketch_events(random_dom_events(20, seed=6), DETECTOR)
    parts = {"train": sketch, "test": empty_sketch(DETECTOR)}
    again = split_sketches_from_json(split_sketches_to_json(parts), "here")
    assert list(again) == ["train", "test"]
    assert_same(again["train"], sketch)
    assert_same(again["test"], empty_sketch(DETECTOR))


@pytest.mark.parametrize("text", ["{", "[]", '{"sketch_version": 1}', "null"])
def test_sketch_refuses_damaged_json(text: str) -> None:
    with pytest.raises(ShardError, match=r"damaged sketch \[s3://x\]"):
        Sketch.from_json(text, "s3://x")


def test_sketch_refuses_another_version() -> None:
    text = empty_sketch(DETECTOR).to_json().replace('"sketch_version":1', '"sketch_version":9')
    with pytest.raises(ShardError, match=r"found version 9, expected version 1"):
        Sketch.from_json(text)


def test_sketch_refuses_to_merge_another_detector() -> None:
    small = parse_geometry("sensor_id,x,y,z\n1,0,0,0\n2,5,5,5\n", "small.csv")
    with pytest.raises(ShardError, match=r"different detectors.*found 2 sensors, expected 5160"):
        empty_sketch(DETECTOR).merge(empty_sketch(small))
    moved = parse_geometry("sensor_id,x,y,z\n1,0,0,0\n2,5,5,900\n", "moved.csv")
    with pytest.raises(ShardError, match="different bins"):
        empty_sketch(small).merge(empty_sketch(moved))


def test_quantile_and_share_beyond_are_right_to_within_a_bin() -> None:
    rng = np.random.default_rng(1)
    values = rng.normal(50, 10, 100_000)
    feature = summarise(values, np.ones(len(values)), Binning("linear", 0, 100, 200))
    for share in (0.001, 0.25, 0.5, 0.999):
        assert feature.quantile(share) == pytest.approx(np.quantile(values, share), abs=0.5)
    beyond = np.mean((values < 40) | (values > 65))
    assert feature.share_beyond(40, 65) == pytest.approx(beyond, abs=0.002)
    assert feature.share_beyond(-1e9, 1e9) == 0
    assert feature.share_beyond(1e9, 2e9) == 1
