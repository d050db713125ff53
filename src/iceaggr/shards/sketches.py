"""Sketches: statistics of events that merge in any order, written with the shards.

Every event counts equally. Inside an event each pulse weighs 1/n_pulses and each DOM 1/n_doms, so
that the few events of 100,000 pulses do not rule the statistics of the many of 50. Positions and
sensor rows are those of the DOMs that were hit.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from iceaggr.errors import ShardError
from iceaggr.shards.encoding import SPLITS
from iceaggr.shards.histograms import FeatureSketch, feature_from_document
from iceaggr.validation import Problem, read_json_object, shown

SKETCH_VERSION = 1
_WHOLE = "a sketch as sharding writes it"
PULSE_FEATURES = ("time_ns", "charge_pe", "log10_charge", "auxiliary")
DOM_FEATURES = ("x_m", "y_m", "z_m", "sensor_idx", "n_pulses_per_dom")
EVENT_FEATURES = ("n_pulses", "n_doms", "first_pulse_time_ns", "zenith", "azimuth")
FEATURES = PULSE_FEATURES + DOM_FEATURES + EVENT_FEATURES


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
        document = read_json_object(text, lambda found: _damaged(found, _WHOLE, where))
        return _sketch_from_document(document, where)


def _sketch_from_document(document: dict[str, Any], where: str) -> Sketch:
    def refused(problem: Problem) -> ShardError:
        return _damaged(problem.found_in_field, problem.expected, where)

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
        read = {name: feature_from_document(features[name], refused) for name in FEATURES}
        n_events, n_doms, n_pulses = counts
        return Sketch(n_events, n_doms, n_pulses, read, dom_hits)
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
    parts = read_json_object(
        text, lambda found: _damaged(found, "a JSON object of sketches", where)
    )
    unknown = sorted({*parts} - {*SPLITS})
    if unknown:
        raise _damaged(f"split {shown(unknown[0])}", f"some of {', '.join(SPLITS)}", where)
    return {split: _sketch_from_document(part, f"{where} {split}") for split, part in parts.items()}
