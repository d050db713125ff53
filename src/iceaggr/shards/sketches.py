"""Sketches: statistics of events that merge in any order, written with the shards.

Every event counts equally. Inside an event each pulse weighs 1/n_pulses and each DOM 1/n_doms, so
that the few events of 100,000 pulses do not rule the statistics of the many of 50. Positions and
sensor rows are those of the DOMs that were hit.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ValidationError

from iceaggr.detector import Detector
from iceaggr.errors import DetectorError, ShardError
from iceaggr.events.dom_events import DomEvents
from iceaggr.events.joining import take_range
from iceaggr.shards.format import SPLITS
from iceaggr.shards.histograms import (
    Binning,
    FeatureSketch,
    Floats,
    empty_feature,
    feature_from_document,
    summarise,
)
from iceaggr.shards.pulse_features import first_pulse_times, pulse_features
from iceaggr.validation import first_problem, shown

SKETCH_VERSION = 1
_WHOLE = "a sketch as sharding writes it"
PULSE_FEATURES = ("time_ns", "charge_pe", "log10_charge", "auxiliary")
DOM_FEATURES = ("x_m", "y_m", "z_m", "sensor_idx", "n_pulses_per_dom")
EVENT_FEATURES = ("n_pulses", "n_doms", "first_pulse_time_ns", "zenith", "azimuth")
FEATURES = PULSE_FEATURES + DOM_FEATURES + EVENT_FEATURES
N_PULSES_PER_BLOCK = 1 << 19  # a usual shard is one block; 4 MiB per float64 array


@dataclass(frozen=True, eq=False)
class Sketch:
    """Statistics of a set of events.

    features: one FeatureSketch for each name in FEATURES
    dom_hits: (S,) int64, events in which each row of the detector's table was hit
    """

    n_events: int
    n_doms: int
    n_pulses: int
    features: dict[str, FeatureSketch]
    dom_hits: npt.NDArray[np.int64]

    def merge(self, other: Sketch) -> Sketch:
        """Join the sketches of two disjoint sets of events; order and grouping do not matter.

        Raises: ShardError if they belong to different detectors or bins.
        """
        if len(self.dom_hits) != len(other.dom_hits):
            raise ShardError(
                "sketches belong to different detectors",
                where="dom_hits",
                found=f"{len(other.dom_hits)} sensors",
                expected=f"{len(self.dom_hits)} sensors",
                remedy="Merge only what was sharded with one geometry",
            )
        return Sketch(
            self.n_events + other.n_events,
            self.n_doms + other.n_doms,
            self.n_pulses + other.n_pulses,
            {name: self.features[name].merge(other.features[name]) for name in FEATURES},
            self.dom_hits + other.dom_hits,
        )

    def to_json(self) -> str:
        """Serialise without rounding: floats come back bit by bit."""
        document = {
            "sketch_version": SKETCH_VERSION,
            "n_events": self.n_events,
            "n_doms": self.n_doms,
            "n_pulses": self.n_pulses,
            "features": {name: self.features[name].to_document() for name in FEATURES},
            "dom_hits": self.dom_hits.tolist(),
        }
        return json.dumps(document, allow_nan=False, separators=(",", ":"))

    @staticmethod
    def from_json(text: str | bytes, where: str = "sketch") -> Sketch:
        """Read a sketch. Raises: ShardError if it is damaged or of another version."""
        try:
            return _sketch_from_document(json.loads(text), where)
        except (ValueError, RecursionError) as error:
            raise _damaged(str(error), _WHOLE, where) from None


def _sketch_from_document(document: dict[str, Any], where: str) -> Sketch:
    try:
        version = document["sketch_version"]
        if version != SKETCH_VERSION:
            raise ShardError(
                "sketch of another version",
                where=where,
                found=f"version {version}",
                expected=f"version {SKETCH_VERSION}",
                remedy="Shard the raw events again with this version of iceaggr",
            )
        features = document["features"]
        dom_hits = np.array(document["dom_hits"])
        counts = [document[name] for name in ("n_events", "n_doms", "n_pulses")]
        if not all(type(count) is int and 0 <= count < 1 << 62 for count in counts):
            raise ValueError(f"counts {shown(counts)}")
        if dom_hits.ndim != 1 or dom_hits.dtype != np.int64 or (dom_hits < 0).any():
            raise ValueError(f"dom_hits {shown(document['dom_hits'])}")
        read = {name: feature_from_document(features[name]) for name in FEATURES}
        n_events, n_doms, n_pulses = counts
        return Sketch(n_events, n_doms, n_pulses, read, dom_hits)
    except ValidationError as error:
        problem = first_problem(error, BaseModel)
        raise _damaged(problem.found_in_field, problem.expected, where) from None
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise _damaged(f"{type(error).__name__}: {error}", _WHOLE, where) from None


def _damaged(found: str, expected: str, where: str) -> ShardError:
    return ShardError(
        "damaged sketch",
        where=where,
        found=found,
        expected=expected,
        remedy="Shard the raw events again; sketches are never edited by hand",
    )


def merge_sketches(sketches: Iterable[Sketch]) -> Sketch:
    """Join any number of sketches. Raises: ShardError if there is none."""
    parts = iter(sketches)
    merged = next(parts, None)
    if merged is None:
        raise ShardError(
            "no sketches to merge",
            where="sketches",
            found="none",
            expected="at least one",
            remedy="Shard the raw events first",
        )
    for part in parts:
        merged = merged.merge(part)
    return merged


def split_sketches_to_json(sketches: Mapping[str, Sketch]) -> str:
    """Serialise one sketch per split into one JSON object {split: sketch}."""
    return "{" + ",".join(f'"{split}":{s.to_json()}' for split, s in sketches.items()) + "}"


def split_sketches_from_json(text: str | bytes, where: str) -> dict[str, Sketch]:
    """Read `split_sketches_to_json`. Raises: ShardError if it is damaged."""
    try:
        parts = json.loads(text).items()
    except (ValueError, AttributeError, RecursionError) as error:
        raise _damaged(str(error), "a JSON object of sketches", where) from None
    unknown = sorted({split for split, _ in parts} - {*SPLITS})
    if unknown:
        raise _damaged(f"split {shown(unknown[0])}", f"some of {', '.join(SPLITS)}", where)
    return {split: _sketch_from_document(part, f"{where} {split}") for split, part in parts}


def feature_binnings(detector: Detector) -> dict[str, Binning]:
    """Choose the bins of every feature: fixed, except that positions span the detector.

    Bins of whole-number times are powers of two wide, so that no value is rounded across an edge.
    """
    least, greatest = detector.bounds_m
    low, high = np.floor(least) - 10, np.ceil(greatest) + 10
    n_sensors = detector.n_sensors
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
        "sensor_idx": Binning("linear", -0.5, n_sensors - 0.5, min(n_sensors, 86)),
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
