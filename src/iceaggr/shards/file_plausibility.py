"""Raw files that are read without an error and are wrong as a whole, among others that are right.

Raw files come a few at a time, and one that is wrong hardly moves the figures of all data. So each
is judged by itself, by what cannot be; what is only unlike the other files is told, not refused.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from iceaggr.detector import Detector
from iceaggr.errors import RawDataError
from iceaggr.shards.histograms import FeatureSketch
from iceaggr.shards.plausibility import MIN_CROSSINGS, MIN_SPREAD, crossing_ns
from iceaggr.shards.sketches import FEATURES, Sketch, merge_sketches

MIN_EVENTS = 30
"""A file of fewer kept events is not judged. Among so many, chance makes none of the faults: their
hits lie on one sensor of two in one of 2^29 files; and the least spread of times of 30 events among
50,000 draws from simulated cascades of 20 to 200 GeV without their noise, the closest in time, is
0.10 crossings, five times MIN_CROSSINGS (of 5 events it is 0.03, of one 0.016)."""
MIN_DISTANCE = 0.15
"""Kolmogorov-Smirnov distance to the middle of all files from which on a file is unlike them. In
simulation, files of tracks alone and of cascades alone are at most 0.14 apart in any feature, files
of energies above and below a TeV 0.55 in the number of pulses."""
CHANCE = 2.5
"""Distances below so many sqrt(1/n + 1/m) are chance: one in 130,000 comparisons exceeds it.
Source: Kolmogorov's limiting distribution, 2 exp(-2 CHANCE^2)."""
N_NAMED_FEATURES = 3
_COMPARED = tuple(name for name in FEATURES if name != "log10_charge")
_OTHERWISE = "or move the file away and set data.allow_missing_files"


@dataclass(frozen=True)
class _Fault:
    """What is wrong with all of one file."""

    problem: str
    field: str
    found: str
    expected: str
    remedy: str


def refuse_implausible_files(files: Mapping[str, Sketch], detector: Detector) -> None:
    """Stop where all that a raw file holds of one kind is impossible.

    files: URI of each raw file -> sketch of its events of all splits, see `merge_splits`; those of
    fewer than MIN_EVENTS are left alone.
    Raises: RawDataError naming the first such file, and how many more have the same fault.
    """
    if not files:
        return
    every = merge_sketches(files.values())
    for judge in _JUDGES:
        faults = {
            uri: fault
            for uri, sketch in files.items()
            if sketch.n_events >= MIN_EVENTS and (fault := judge(sketch, every, detector))
        }
        if faults:
            uri, fault = next(iter(faults.items()))
            more = f", and {len(faults) - 1} more of {len(files)} files" if len(faults) > 1 else ""
            raise RawDataError(
                fault.problem,
                where=f"{uri} {fault.field}{more}",
                found=fault.found,
                expected=fault.expected,
                remedy=f"{fault.remedy}, {_OTHERWISE}",
            )


def files_unlike_the_others(files: Mapping[str, Sketch]) -> list[str]:
    """Describe the raw files whose distributions are far from the middle of all files.

    files: as in `refuse_implausible_files`. The middle is the median over files of the share of
    events below each value, so that a few odd files do not move it.
    Returns one sentence per file, for the reader of the data card.
    """
    judged = {uri: sketch for uri, sketch in files.items() if sketch.n_events >= MIN_EVENTS}
    far: dict[str, dict[str, float]] = {uri: {} for uri in judged}
    words: dict[tuple[str, str], str] = {}
    for name in _COMPARED:
        features = {uri: sketch.features[name] for uri, sketch in judged.items()}
        features = {uri: feature for uri, feature in features.items() if feature.weight > 0}
        middle = float(np.median([f.mean for f in features.values()])) if features else 0.0
        for uri, distance in _distances(features).items():
            far[uri][name] = distance
            mean = features[uri].mean
            words[uri, name] = f"{name} has mean {mean:.4g}, in the middle file {middle:.4g}"
    return [
        f"{uri} ({judged[uri].n_events:,} events): {_listed(uri, found, words)}"
        for uri, found in far.items()
        if found
    ]


def _one_direction(file: Sketch, every: Sketch, detector: Detector) -> _Fault | None:
    zenith, azimuth = (file.features[name] for name in ("zenith", "azimuth"))
    n_labelled = zenith.n_values
    if n_labelled < MIN_EVENTS or max(zenith.std, azimuth.std) >= MIN_SPREAD:
        return None
    return _Fault(
        "all labels of a raw file point one way",
        "azimuth and zenith",
        f"azimuth {azimuth.mean:.6g}, zenith {zenith.mean:.6g} in each of {n_labelled:,} events",
        "directions that differ from event to event",
        "Write the true directions into the meta file (its columns may hold a default)",
    )


def _one_time(file: Sketch, every: Sketch, detector: Detector) -> _Fault | None:
    time = file.features["time_ns"]
    if not time.is_constant or every.features["time_ns"].is_constant:
        return None  # where no file has times, the normalisation tells
    return _Fault(
        "all pulses of a raw file have one time",
        "time",
        f"time {time.low:g} in each of {file.n_pulses:,} pulses",
        "times that differ from pulse to pulse, as in the other files",
        "Write the measured times (the column may hold a default)",
    )


def _times_of_another_unit(file: Sketch, every: Sketch, detector: Detector) -> _Fault | None:
    time, crossing = file.features["time_ns"], crossing_ns(detector)
    if time.is_constant or time.std >= MIN_CROSSINGS * crossing:
        return None
    return _Fault(
        "pulse times of a raw file are not in nanoseconds",
        "time",
        f"a spread (standard deviation) of {time.std:.3g} over {file.n_events:,} events",
        f"at least {MIN_CROSSINGS * crossing:.3g} ns: light needs {crossing:,.0f} ns across this"
        " detector",
        "Write times in ns, not in microseconds",
    )


def _one_sensor(file: Sketch, every: Sketch, detector: Detector) -> _Fault | None:
    rows = np.flatnonzero(file.dom_hits)
    if len(rows) != 1 or np.count_nonzero(every.dom_hits) == 1:
        return None  # where no file has others, the normalisation tells
    return _Fault(
        "all pulses of a raw file are of one sensor",
        "sensor_id",
        f"sensor_id {detector.sensor_id[rows[0]]} in each of {file.n_pulses:,} pulses",
        "pulses of several sensors, as in the other files",
        "Write the sensors that were hit (the column may hold a default)",
    )


_JUDGES: tuple[Callable[[Sketch, Sketch, Detector], _Fault | None], ...] = (
    _one_direction,
    _one_time,
    _times_of_another_unit,
    _one_sensor,
)


def _distances(features: Mapping[str, FeatureSketch]) -> dict[str, float]:
    """Give the Kolmogorov-Smirnov distance of each file to the middle, where it is no chance."""
    if len(features) < 2:
        return {}
    histograms = np.array([feature.histogram for feature in features.values()])
    shares = np.cumsum(histograms, axis=1) / histograms.sum(axis=1, keepdims=True)
    distances = np.abs(shares - np.median(shares, axis=0)).max(axis=1)
    # an event is one independent draw at most, however many pulses it has
    n_events = np.array([feature.weight for feature in features.values()])
    limits = CHANCE * np.sqrt(1 / n_events + 1 / np.median(n_events))
    is_far = distances > np.maximum(limits, MIN_DISTANCE)
    return {uri: float(d) for uri, d, far in zip(features, distances, is_far, strict=True) if far}


def _listed(uri: str, found: Mapping[str, float], words: Mapping[tuple[str, str], str]) -> str:
    named = sorted(found, key=lambda name: -found[name])[:N_NAMED_FEATURES]
    n_more = len(found) - len(named)
    sentence = "; ".join(words[uri, name] for name in named)
    return f"{sentence}; and {n_more} more features" if n_more else sentence
