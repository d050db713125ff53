from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from iceaggr.detector import icecube86
from iceaggr.errors import DetectorError
from iceaggr.events.dom_events import DomEvents
from iceaggr.shards import sketching
from iceaggr.shards.histograms import summarise
from iceaggr.shards.sketches import FEATURES
from iceaggr.shards.sketching import feature_binnings, sketch_events
from tests.shards.dom_events_builder import random_dom_events

DETECTOR = icecube86()
EXACT = 1e-12


def rows_of(events: DomEvents) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Values and weights of every feature, written out event by event as the reference."""
    values: dict[str, list[float]] = {name: [] for name in FEATURES}
    weights: dict[str, list[float]] = {name: [] for name in FEATURES}

    def add(name: str, many: np.ndarray) -> None:
        values[name].extend(many.tolist())
        weights[name].extend([1 / len(many)] * len(many))

    for event in range(events.n_events):
        doms = slice(*events.event_dom_offsets[event : event + 2])
        offsets = events.dom_pulse_offsets[doms.start : doms.stop + 1]
        pulses = slice(offsets[0], offsets[-1])
        rows = DETECTOR.sensor_idx(events.sensor_id[doms])
        charge = events.charge_pe[pulses].astype(np.float64)
        add("time_ns", events.time_ns[pulses])
        add("charge_pe", charge)
        add("log10_charge", np.log10(charge))
        add("auxiliary", events.auxiliary[pulses].astype(float))
        for k, axis in enumerate("xyz"):
            add(f"{axis}_m", DETECTOR.xyz_m[rows, k])
        add("sensor_idx", rows)
        add("n_pulses_per_dom", np.diff(offsets))
        add("n_pulses", np.array([pulses.stop - pulses.start]))
        add("n_doms", np.array([len(rows)]))
        add("first_pulse_time_ns", events.time_ns[pulses].min(keepdims=True))
        add("zenith", events.zenith[event : event + 1])
        add("azimuth", events.azimuth[event : event + 1])
    return {name: (np.array(values[name]), np.array(weights[name])) for name in FEATURES}


def test_sketch_matches_two_pass_reference(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sketching, "N_PULSES_PER_BLOCK", 5000)
    events = random_dom_events(300, seed=1)
    sketch = sketch_events(events, DETECTOR)
    for name, (values, weights) in rows_of(events).items():
        feature = sketch.features[name]
        mean = np.average(values, weights=weights)
        m2 = np.sum(weights * (values - mean) ** 2)
        np.testing.assert_allclose(feature.weight, 300, rtol=EXACT, err_msg=name)
        np.testing.assert_allclose(feature.mean, mean, rtol=1e-11, err_msg=name)
        np.testing.assert_allclose(feature.m2, m2, rtol=1e-11, err_msg=name)
        assert (feature.low, feature.high) == (values.min(), values.max()), name
        expected, _ = np.histogram(values, bins=feature.binning.edges(), weights=weights)
        np.testing.assert_allclose(feature.histogram[1:-1], expected, atol=1e-9, err_msg=name)
        assert feature.n_values == len(values), name


def test_sketch_keeps_late_narrow_times_where_float32_sums_fail() -> None:
    events = random_dom_events(2000, seed=2)
    narrow = 10_000 + np.arange(events.n_pulses) % 7
    sketch = sketch_events(replace(events, time_ns=narrow), DETECTOR)
    n_pulses = np.diff(events.event_pulse_offsets())
    weights = np.repeat(1 / n_pulses, n_pulses)
    mean = np.average(narrow.astype(np.float64), weights=weights)
    variance = np.average((narrow - mean) ** 2, weights=weights)
    time = sketch.features["time_ns"]
    assert time.std**2 == pytest.approx(variance, rel=EXACT)
    t, w = narrow.astype(np.float32), weights.astype(np.float32)
    naive = (w * t * t).sum() / w.sum() - ((w * t).sum() / w.sum()) ** 2
    assert abs(naive - variance) > 0.5 * variance


def test_sketch_counts_each_event_equally_when_one_is_a_giant() -> None:
    many = random_dom_events(50, seed=3, median_pulses=20)
    giant = random_dom_events(1, seed=4, median_pulses=100_000)
    giant = replace(giant, time_ns=giant.time_ns + 30_000)
    small, large = sketch_events(many, DETECTOR), sketch_events(giant, DETECTOR)
    both = small.merge(large)
    expected = (50 * small.features["time_ns"].mean + large.features["time_ns"].mean) / 51
    assert both.features["time_ns"].mean == pytest.approx(expected, rel=EXACT)
    assert both.n_pulses > 30 * small.n_pulses


def test_sketch_names_a_sensor_that_the_detector_lacks() -> None:
    events = random_dom_events(5, seed=7)
    sensor_id = events.sensor_id.copy()
    sensor_id[3] = 9999
    with pytest.raises(DetectorError, match=r"sensor_id 9999.*1 DOMs of unknown sensors"):
        sketch_events(replace(events, sensor_id=sensor_id), DETECTOR)


def test_sketch_counts_what_is_not_finite() -> None:
    events = random_dom_events(30, seed=8, labelled=False)
    charge = events.charge_pe.copy()
    charge[:4] = [0.0, -1.0, np.nan, np.inf]
    sketch = sketch_events(replace(events, charge_pe=charge), DETECTOR)
    assert sketch.features["log10_charge"].n_not_finite == 4
    assert sketch.features["charge_pe"].n_not_finite == 2
    assert sketch.features["charge_pe"].low == -1.0
    assert sketch.features["charge_pe"].histogram[0] > 0
    assert sketch.features["zenith"].n_not_finite == 30
    assert sketch.features["zenith"].n_values == 0


def test_dom_hits_count_events_per_sensor() -> None:
    events = random_dom_events(200, seed=9)
    sketch = sketch_events(events, DETECTOR)
    np.testing.assert_array_equal(sketch.dom_hits, np.bincount(events.sensor_id, minlength=5160))
    assert sketch.dom_hits.sum() == events.n_doms == sketch.n_doms


@pytest.mark.parametrize("name", FEATURES)
def test_binning_agrees_with_numpy_histogram_at_its_edges(name: str) -> None:
    binning = feature_binnings(DETECTOR)[name]
    edges = binning.edges()
    middles = (edges[1:] + edges[:-1]) / 2
    values = np.concatenate([edges[:1] - 1, edges[:1], middles, edges[-1:], edges[-1:] + 1])
    counts = np.bincount(binning.bin_idx(values), minlength=binning.n_slots())
    expected, _ = np.histogram(values, bins=edges)
    assert counts[0] == 1
    inclusive = 0 if binning.spacing == "counts" else 1
    np.testing.assert_array_equal(counts[1:-2], expected[:-1])
    assert counts[-2] == expected[-1] - 1 + inclusive
    assert counts[-1] == 2 - inclusive


@pytest.mark.parametrize("charge", ["digitised", "continuous"])
@pytest.mark.parametrize("time_shift", [0, 8_000_000])
def test_sketch_is_the_same_with_and_without_tables(charge: str, time_shift: int) -> None:
    events = random_dom_events(300, seed=11, charge_dtype=np.float64)
    if charge == "continuous":
        noise = np.random.default_rng(0).uniform(0, 0.01, events.n_pulses)
        events = replace(events, charge_pe=events.charge_pe + noise)
    events = replace(events, time_ns=events.time_ns + time_shift)
    values = rows_of(events)
    sketch = sketch_events(events, DETECTOR)
    for name in ("time_ns", "charge_pe", "log10_charge", "auxiliary"):
        expected = summarise(*values[name], sketch.features[name].binning)
        found = sketch.features[name]
        assert (found.n_values, found.n_not_finite) == (expected.n_values, 0), name
        assert (found.low, found.high) == (expected.low, expected.high), name
        np.testing.assert_allclose(found.mean, expected.mean, rtol=EXACT, err_msg=name)
        np.testing.assert_allclose(found.m2, expected.m2, rtol=1e-11, err_msg=name)
        np.testing.assert_allclose(found.histogram, expected.histogram, atol=1e-11, err_msg=name)
