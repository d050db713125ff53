"""Events beside the training data are told from the normalisation alone, others are not."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from iceaggr.detector import icecube86
from iceaggr.errors import RawDataError
from iceaggr.events.dom_events import DomEvents
from iceaggr.normalization import Normalization, fit_normalization
from iceaggr.normalization.likeness import MIN_SPREAD, refuse_unlike_training
from iceaggr.shards.sketches import Sketch
from iceaggr.shards.sketching import sketch_events
from tests.shards.dom_events_builder import random_dom_events

DETECTOR = icecube86()
FITTED = fit_normalization(sketch_events(random_dom_events(200, seed=1), DETECTOR))
EVENTS = random_dom_events(60, seed=2)


def sketch(**changes: object) -> Sketch:
    return sketch_events(replace(EVENTS, **changes), DETECTOR)


def test_other_events_of_the_same_kind_are_accepted() -> None:
    refuse_unlike_training(sketch(), FITTED, "here")
    refuse_unlike_training(sketch(charge_pe=2 * EVENTS.charge_pe), FITTED, "here")
    refuse_unlike_training(sketch(time_ns=EVENTS.time_ns + 1000), FITTED, "here")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"time_ns": EVENTS.time_ns + 100_000}, r"here time_ns\]: found a median of 1\.\d*e\+05"),
        ({"time_ns": 11_000 + EVENTS.time_ns // 100}, r"here time_ns\]: found a spread .* scales"),
        ({"charge_pe": EVENTS.charge_pe * 1e4}, r"\[here log10_charge\]: found a median of .* \+"),
        ({"charge_pe": EVENTS.charge_pe / 1e4}, r"\[here log10_charge\]: found a median of .* -\d"),
        ({"charge_pe": np.ones_like(EVENTS.charge_pe)}, r"charge\]: found a spread .* of 0, 0 sc"),
    ],
)  # fmt: skip
def test_events_beside_the_training_data_are_refused(
    changes: dict[str, object], words: str
) -> None:
    with pytest.raises(RawDataError, match=words):
        refuse_unlike_training(sketch(**changes), FITTED, "here")


def test_events_of_a_few_sensors_are_refused() -> None:
    few = one_string_of(EVENTS)
    with pytest.raises(RawDataError, match=r"here sensor_idx\]: found a spread .* least 0\.05"):
        refuse_unlike_training(sketch_events(few, DETECTOR), FITTED, "here")


def one_string_of(events: DomEvents) -> DomEvents:
    """Move every hit to one string, whose sensors an event then has more than once."""
    return replace(events, sensor_id=events.sensor_id % 60)


def test_feature_that_was_constant_in_training_may_be_so_again() -> None:
    ones = np.ones_like(EVENTS.charge_pe)
    fitted = fit_normalization(sketch(charge_pe=ones), ("charge_pe",))
    refuse_unlike_training(sketch(charge_pe=ones), fitted, "here")


def test_constants_of_a_preset_judge_nothing() -> None:
    far = sketch(time_ns=EVENTS.time_ns + 1_000_000)
    for preset in (Normalization.seed(), Normalization.raw()):
        refuse_unlike_training(far, preset, "here")


def test_least_spread_is_below_that_of_any_training_data() -> None:
    # the worst case of the bound: all but a thousandth of the events at one time
    rare = np.full(EVENTS.n_pulses, 10_000)
    rng = np.random.default_rng(0)
    rare[rng.random(EVENTS.n_pulses) < 0.0012] = 90_000
    feature = sketch(time_ns=np.sort(rare)).features["time_ns"]
    fitted = fit_normalization(sketch(time_ns=np.sort(rare)))
    assert feature.std / fitted.time_ns.scale > 3 * MIN_SPREAD
