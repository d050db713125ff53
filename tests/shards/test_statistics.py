from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from iceaggr.config import NormalizationConfig
from iceaggr.detector import icecube86
from iceaggr.errors import NormalizationError, ShardError
from iceaggr.events.layout import ABSENT_FLAG
from iceaggr.normalization_document import Normalization
from iceaggr.shards.sketches import Sketch, split_sketches_to_json
from iceaggr.shards.sketching import sketch_events
from iceaggr.shards.statistics import (
    check_scaling,
    compute_statistics,
    fit_normalization,
    load_sketches,
)
from iceaggr.storage import open_store
from tests.shards.dom_events_builder import random_dom_events
from tests.shards.shard_manifest_builder import manifest_of

DETECTOR = icecube86()
EVENTS = random_dom_events(300, seed=1)
TRAIN = sketch_events(EVENTS, DETECTOR)
TEST = sketch_events(random_dom_events(40, seed=2, median_pulses=20), DETECTOR)
SPLITS: dict[str, Sketch] = {"train": TRAIN, "test": TEST}
CONFIG = NormalizationConfig()


def test_statistics_use_the_train_split_only() -> None:
    statistics = compute_statistics(manifest_of(SPLITS), SPLITS, CONFIG)
    assert statistics.normalization == fit_normalization(TRAIN)
    assert statistics.normalization != fit_normalization(TRAIN.merge(TEST))
    assert statistics.sketches == SPLITS
    time = statistics.normalized[0]
    assert (time.name, time.mean, time.share_beyond) == ("time_ns", 0, 0)
    assert 0.3 < time.std <= 1


def test_statistics_take_the_seed_preset_as_it_is() -> None:
    config = NormalizationConfig(preset="seed")
    statistics = compute_statistics(manifest_of(SPLITS), SPLITS, config)
    assert statistics.normalization == Normalization.seed()
    time = TRAIN.features["time_ns"]
    assert statistics.normalized[0].mean == pytest.approx((time.mean - 1e4) / 3e4)
    assert statistics.normalized[0].std == pytest.approx(time.std / 3e4)


def test_statistics_stop_when_inputs_stay_raw() -> None:
    with pytest.raises(NormalizationError, match=r"preset raw.*time_ns: mean .* beyond 10; x_m:"):
        compute_statistics(manifest_of(SPLITS), SPLITS, NormalizationConfig(preset="raw"))


@pytest.mark.parametrize("preset", ["fitted", "seed"])
def test_statistics_stop_at_a_constant_feature_unless_it_is_named(preset: str) -> None:
    dull = sketch_events(replace(EVENTS, auxiliary=np.zeros_like(EVENTS.auxiliary)), DETECTOR)
    sketches, config = {"train": dull}, NormalizationConfig(preset=preset)
    with pytest.raises(NormalizationError, match=r"auxiliary: all .* values are 0"):
        compute_statistics(manifest_of(sketches), sketches, config)
    named = config.model_copy(update={"constant_features": ("auxiliary",)})
    flag = compute_statistics(manifest_of(sketches), sketches, named).normalized[2]
    assert (flag.name, flag.mean, flag.std) == ("auxiliary", 0, 0)


@pytest.mark.parametrize("preset", ["fitted", "seed"])
def test_statistics_take_as_constant_what_a_converted_source_never_had(preset: str) -> None:
    dull = sketch_events(replace(EVENTS, auxiliary=np.zeros_like(EVENTS.auxiliary)), DETECTOR)
    manifest = manifest_of({"train": dull}).model_copy(update={"notes": (ABSENT_FLAG,)})
    config = NormalizationConfig(preset=preset)
    flag = compute_statistics(manifest, {"train": dull}, config).normalized[2]
    assert (flag.name, flag.std) == ("auxiliary", 0)


def test_statistics_stop_at_values_that_are_not_finite() -> None:
    charge = EVENTS.charge_pe.copy()
    charge[0] = np.nan
    sketches = {"train": sketch_events(replace(EVENTS, charge_pe=charge), DETECTOR)}
    with pytest.raises(NormalizationError, match=r"charge_pe: 1 of \d+ values are not finite"):
        compute_statistics(manifest_of(sketches), sketches, CONFIG)


def test_scaling_that_hides_a_feature_is_refused() -> None:
    squeezed = Normalization.seed().model_copy(
        update={"time_ns": Normalization.seed().time_ns.model_copy(update={"scale": 1e7})}
    )
    with pytest.raises(NormalizationError, match=r"found time_ns: mean .*std 0\.000"):
        check_scaling(TRAIN, squeezed, CONFIG)


def test_scaling_with_too_many_outliers_is_refused() -> None:
    narrow = Normalization.seed().model_copy(
        update={"time_ns": Normalization.seed().time_ns.model_copy(update={"scale": 300.0})}
    )
    found = check_scaling(TRAIN, narrow, NormalizationConfig(max_outlier_share=1.0))[0]
    times, weights = EVENTS.time_ns, np.repeat(1.0, EVENTS.n_pulses)
    n_pulses = np.diff(EVENTS.event_pulse_offsets())
    weights = np.repeat(1 / n_pulses, n_pulses)
    expected = np.average(np.abs(times - 1e4) > 3000, weights=weights)
    assert found.share_beyond == pytest.approx(expected, abs=0.01)
    with pytest.raises(NormalizationError, match=r"time_ns: .*% beyond 10, expected std"):
        check_scaling(TRAIN, narrow, CONFIG)


def test_statistics_refuse_sketches_of_other_events() -> None:
    manifest = manifest_of(SPLITS)
    with pytest.raises(ShardError, match=r"train shards.*found 340 events"):
        compute_statistics(manifest, {**SPLITS, "train": TRAIN.merge(TEST)}, CONFIG)
    with pytest.raises(ShardError, match=r"test shards.*found 0 events with 0 pulses, expected 40"):
        compute_statistics(manifest, {"train": TRAIN}, CONFIG)


def test_statistics_refuse_an_empty_train_split() -> None:
    sketches = {"test": TEST}
    with pytest.raises(ShardError, match=r"train split has no events \[.*\]: found 40 events"):
        compute_statistics(manifest_of(sketches), sketches, CONFIG)


def test_load_sketches_merges_the_files_of_each_split(tmp_path: Path) -> None:
    store = open_store()
    sources = []
    for number, parts in enumerate([SPLITS, {"test": TEST}]):
        uri = f"file://{tmp_path}/sketch{number}.json"
        store.write_bytes(uri, split_sketches_to_json(parts).encode())
        sources.append(manifest_of(parts, sketch_uri=uri).source_files[0])
    manifest = manifest_of(SPLITS).model_copy(update={"source_files": tuple(sources)})
    found = load_sketches(store, manifest)
    assert found["train"].to_json() == TRAIN.to_json()
    assert found["test"].n_pulses == 2 * TEST.n_pulses
