"""Sketching: the statistics of the events of a shard, in one pass over blocks of them."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from iceaggr.detector import Detector
from iceaggr.errors import DetectorError
from iceaggr.events.dom_events import DomEvents, take_range
from iceaggr.shards.histograms import (
    Binning,
    Distinct,
    EventWeights,
    FeatureSketch,
    Floats,
    distinct_pulses,
    empty_feature,
    summarise,
)
from iceaggr.shards.sketches import Sketch

# Statistics of the pulse features of a block of events: most of what a sketch costs.


def pulse_features(block: DomEvents, binnings: dict[str, Binning]) -> dict[str, FeatureSketch]:
    """Summarise time, charge, its logarithm and the auxiliary flag; each event counts equally."""
    n_pulses = np.diff(block.event_pulse_offsets())
    weights = EventWeights(n_pulses)
    times, charges = distinct_pulses(block.time_ns, block.charge_pe, weights)
    values, total = times or (block.time_ns, weights.all())
    time = summarise(
        values.astype(np.float64), total, binnings["time_ns"], n_rows=len(block.time_ns)
    )
    charges = charges or (block.charge_pe, weights.all())
    return {
        "time_ns": time,
        "auxiliary": _flag_feature(block, n_pulses, binnings["auxiliary"]),
        **_charge_features(charges, block.n_pulses, binnings),
    }


def first_pulse_times(block: DomEvents) -> Floats:
    """Find the time of the first pulse of each event: (B,) ns, NaN where there is none."""
    times = np.full(block.n_events, np.nan)
    filled = np.diff(block.event_dom_offsets) > 0
    if filled.any():
        # the pulses of a DOM are sorted: its first one is its earliest
        of_doms = block.time_ns.take(block.dom_pulse_offsets[:-1])
        times[filled] = np.minimum.reduceat(of_doms, block.event_dom_offsets[:-1][filled])
    return times


def _charge_features(
    charges: Distinct, n_rows: int, binnings: dict[str, Binning]
) -> dict[str, FeatureSketch]:
    values, total = charges
    with np.errstate(divide="ignore", invalid="ignore"):
        log10_charge = np.log10(values, dtype=np.float64)
    # both histograms of charge have the same bins, unless some charge has no logarithm
    finite = bool(np.isfinite(log10_charge).all())
    bins = binnings["log10_charge"].bin_idx(log10_charge) if finite else None
    columns = {"log10_charge": log10_charge, "charge_pe": values}
    return {
        name: summarise(column, total, binnings[name], bins, n_rows=n_rows)
        for name, column in columns.items()
    }


def _flag_feature(
    block: DomEvents, n_pulses: npt.NDArray[np.int64], binning: Binning
) -> FeatureSketch:
    """Count the flagged pulses of each event instead of weighing every pulse."""
    filled = n_pulses > 0
    starts, n_in_event = block.event_pulse_offsets()[:-1][filled], n_pulses[filled]
    n_set = np.zeros(0, np.int64)
    if len(starts):
        n_set = np.add.reduceat(block.auxiliary.view(np.uint8), starts, dtype=np.int64)
    counts = np.stack([n_in_event - n_set, n_set])
    present = np.flatnonzero(counts.any(axis=1))
    weights = (counts / n_in_event).sum(axis=1)[present]
    return summarise(present.astype(np.float64), weights, binning, n_rows=int(n_pulses.sum()))


N_PULSES_PER_BLOCK = 1 << 19
"""A usual shard is one block; 4 MiB per float64 array."""


def feature_binnings(detector: Detector) -> dict[str, Binning]:
    """Choose the bins of every feature: fixed, except that positions span the detector.

    Bins of whole-number times are powers of two wide, so that no value is rounded across an edge.
    """
    least, greatest = detector.bounds_m
    low, high = np.floor(least) - 10, np.ceil(greatest) + 10
    n_sensors = detector.n_sensors
    n_strings = int(detector.string_keys().max()) + 1
    positions = {
        f"{axis}_m": Binning("linear", float(low[k]), float(high[k]), 44)
        for k, axis in enumerate("xyz")
    }
    return {
        "time_ns": Binning("linear", 0.0, 102_400.0, 400),
        "charge_pe": Binning("log10", 0.01, 10_000.0, 96),
        "log10_charge": Binning("linear", -2.0, 4.0, 96),
        "auxiliary": Binning("linear", -0.5, 1.5, 2),
        **positions,
        "sensor_idx": Binning("linear", -0.5, n_sensors - 0.5, min(n_sensors, max(n_strings, 20))),
        "n_pulses_per_dom": Binning("counts", 1.0, 1e5, 60),
        "n_pulses": Binning("counts", 1.0, 1e6, 90),
        "n_doms": Binning("counts", 1.0, 1e5, 75),
        "first_pulse_time_ns": Binning("linear", 0.0, 20_480.0, 320),
        "zenith": Binning("linear", 0.0, math.pi, 60),
        "azimuth": Binning("linear", 0.0, 2 * math.pi, 60),
    }


def empty_sketch(detector: Detector) -> Sketch:
    """Make the sketch of no events, the neutral element of merging."""
    features = {name: empty_feature(bins) for name, bins in feature_binnings(detector).items()}
    return Sketch(0, 0, 0, features, np.zeros(detector.n_sensors, np.int64))


def sketch_events(events: DomEvents, detector: Detector) -> Sketch:
    """Summarise events, block by block, in memory that does not grow with their number.

    Raises: DetectorError if a sensor is not in the detector's table.
    """
    if not events.n_events:
        return empty_sketch(detector)
    binnings = feature_binnings(detector)
    features: dict[str, FeatureSketch] = {}
    row_weight = np.zeros(detector.n_sensors)
    dom_hits = np.zeros(detector.n_sensors, np.int64)
    for block in _blocks(events):
        dom_weights = _dom_weights(block)
        for name, part in _block_features(block, dom_weights, binnings).items():
            features[name] = features[name].merge(part) if name in features else part
        rows = _known_rows(block, detector)
        np.add.at(row_weight, rows, dom_weights)
        dom_hits += np.bincount(rows, minlength=detector.n_sensors)
    features |= _geometry_features(row_weight, dom_hits, detector, binnings)
    return Sketch(events.n_events, events.n_doms, events.n_pulses, features, dom_hits)


def _blocks(events: DomEvents) -> Iterator[DomEvents]:
    """Cut events into views of about N_PULSES_PER_BLOCK pulses, never inside an event."""
    pulse_offsets = events.event_pulse_offsets()
    first = 0
    while first < events.n_events:
        target = pulse_offsets[first] + N_PULSES_PER_BLOCK
        last = max(first + 1, int(np.searchsorted(pulse_offsets, target, side="right")) - 1)
        yield take_range(events, first, last)
        first = last


def _block_features(
    block: DomEvents, dom_weights: Floats, binnings: dict[str, Binning]
) -> dict[str, FeatureSketch]:
    """Summarise everything but the geometry."""
    n_pulses, n_doms = np.diff(block.event_pulse_offsets()), np.diff(block.event_dom_offsets)
    one = np.ones(block.n_events)
    event_values: dict[str, npt.NDArray[np.number]] = {
        "n_pulses": n_pulses,
        "n_doms": n_doms,
        "first_pulse_time_ns": first_pulse_times(block),
        "zenith": block.zenith,
        "azimuth": block.azimuth,
    }
    found = {name: summarise(v, one, binnings[name]) for name, v in event_values.items()}
    per_dom = np.diff(block.dom_pulse_offsets)
    name = "n_pulses_per_dom"
    found[name] = summarise(per_dom, dom_weights, binnings[name])
    return found | pulse_features(block, binnings)


def _dom_weights(block: DomEvents) -> Floats:
    n_doms = np.diff(block.event_dom_offsets)
    return np.repeat(1.0 / np.maximum(n_doms, 1), n_doms)


def _known_rows(block: DomEvents, detector: Detector) -> npt.NDArray[np.int64]:
    rows = detector.sensor_idx(block.sensor_id)
    if (rows < 0).any():
        raise DetectorError(
            "sensor is not in the detector's table",
            where=f"sensor_id {block.sensor_id[rows < 0][0]}",
            found=f"{np.count_nonzero(rows < 0)} DOMs of unknown sensors",
            expected=f"one of {detector.n_sensors} sensors",
            remedy="Give the geometry of the detector that recorded these events",
        )
    return rows


def _geometry_features(
    row_weight: Floats,
    dom_hits: npt.NDArray[np.int64],
    detector: Detector,
    binnings: dict[str, Binning],
) -> dict[str, FeatureSketch]:
    """Summarise what depends on the sensor only, from the weight of each sensor."""
    hit = np.flatnonzero(row_weight)
    values = {f"{axis}_m": detector.xyz_m[hit, k] for k, axis in enumerate("xyz")}
    values["sensor_idx"] = hit.astype(np.float64)
    found = {}
    for name, value in values.items():
        sketch = summarise(value, row_weight[hit], binnings[name])
        found[name] = FeatureSketch(**(vars(sketch) | {"n_values": int(dom_hits.sum())}))
    return found
