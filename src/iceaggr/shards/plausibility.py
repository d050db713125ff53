"""Data that are read without an error and are wrong as a whole: refused before anything is fitted.

What is judged here cannot be seen in one pulse or event: how many of a file were rejected, whether
all labels are one direction, whether times go with the size of the detector.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from iceaggr.detector import C_M_PER_NS, Detector
from iceaggr.errors import RawDataError
from iceaggr.events.cleaning import Account
from iceaggr.events.label_reading import LabelReading, range_remedy
from iceaggr.interfaces import ObjectStore
from iceaggr.shards.histograms import FeatureSketch
from iceaggr.shards.manifest import ShardManifest, SourceFile
from iceaggr.shards.sketches import FEATURES, Sketch, merge_sketches, split_sketches_from_json
from iceaggr.shards.writing import read_labels_out_of_range

MIN_SPREAD = 1e-6
"""Radians; labels that differ by less all point one way."""
MIN_CROSSINGS, MAX_CROSSINGS = 0.02, 8.0
"""Spread of pulse times, in the times that light needs across the detector: about 0.8 in simulated
IceCube events and 0.2 in those of a small detector without noise; in microseconds a thousandth of
that. A small detector that listens for long has more."""

MIN_MEDIAN_CHARGE_PE, MAX_MEDIAN_CHARGE_PE = 0.1, 5.0
"""Median charge of pulses: 0.8 in simulation and in the public set, where most are one photon's."""

REMEDIES = {
    "value_missing": "Write every value: a null in a column of the pulses counts as missing",
    "time_negative": "Write times from the beginning of each event's readout, in ns",
    "time_beyond_10_ms": "Write times from the beginning of each event's readout, in ns",
    "sensor_not_in_geometry": "Give the sensor_geometry.csv of this detector, with every sensor_id",
    "charge_not_finite": "Write charges in photo-electrons",
    "charge_not_positive": "Write charges in photo-electrons, and no pulse where there is none",
    "charge_out_of_range": "Write charges in photo-electrons, about 1 for one photon",
    "label_not_finite": "Write azimuth and zenith of every event, or leave events without out",
    "label_out_of_range": "Write azimuth and zenith in radians, as docs/data_formats.md says",
    "no_pulses": "Events without any light have no direction to find: leave them out of the meta"
    " file, or raise data.max_rejected_share to have them skipped",
}
"""What mends a file of which much was rejected, by the reason of most."""


def refuse_mass_rejection(
    manifest: ShardManifest,
    max_share: float,
    store: ObjectStore | None = None,
    complete: Callable[[LabelReading], LabelReading] = lambda found: found,
) -> None:
    """Stop where rejection is the rule: wrong units, another geometry, another detector.

    store: where the quarantine lies, from which labels out of range are told by their values.
    complete: as `range_remedy` takes it.
    Raises: RawDataError naming the raw file with the largest share of rejected events, or of
    rejected pulses if all files keep their events; StorageError.
    """
    for kind in ("events", "pulses"):
        worst = max(manifest.source_files, key=lambda f: _rejected_share(f, kind), default=None)
        if worst is None or _rejected_share(worst, kind) <= max_share:
            continue
        labels = OutOfRange.of(store, manifest, worst, complete) if store else None
        remedy = f"{worst.quarantine_uri} lists what was rejected"
        refuse_many_rejected(worst, kind, max_share, worst.uri, remedy, labels)


def refuse_many_rejected(
    file: SourceFile | Account,
    kind: str,
    max_share: float,
    where: str,
    remedy: str,
    labels: OutOfRange | None = None,
) -> None:
    """Stop where a larger share of the events or pulses was rejected. Raises: RawDataError."""
    if _rejected_share(file, kind) <= max_share:
        return
    # events without a valid pulse are understood by why their pulses were rejected
    rejected = {**file.rejected_events, **file.rejected_pulses}
    reasons = ", ".join(f"{name} {n:,}" for name, n in rejected.items())
    n_in = getattr(file, f"n_{kind}_in")
    cause = _main_cause(file, kind)
    by_label = labels if cause == "label_out_of_range" else None
    mend = by_label.remedy if by_label else REMEDIES.get(cause, "Mend the file")
    raise RawDataError(
        f"too many {kind} of a raw file were rejected",
        where=where,
        found=f"{_rejected_share(file, kind):.1%} of {n_in:,} {kind}: {reasons}"
        + (f"; {by_label.example}" if by_label else ""),
        expected=f"at most {max_share:.1%} (data.max_rejected_share)"
        + (f"; {by_label.wanted}" if by_label else ""),
        remedy=f"{mend}; {remedy}",
    )


def _main_cause(file: SourceFile | Account, kind: str) -> str:
    """Name the reason that rejected most, of the pulses where events fell with their pulses."""
    events: dict[str, int] = dict(file.rejected_events)
    pulses = {name: n for name, n in file.rejected_pulses.items() if name != "event_rejected"}
    main = max(events, key=lambda name: events[name], default="")
    if (kind == "pulses" or main == "no_valid_pulses") and pulses:
        return max(pulses, key=lambda name: pulses[name])
    return main


@dataclass(frozen=True)
class OutOfRange:
    """Labels of a raw file that are out of range, in words.

    example: a value and its event.  wanted: the range.  remedy: the reading that fits, if any.
    """

    example: str
    wanted: str
    remedy: str

    @classmethod
    def of(
        cls,
        store: ObjectStore,
        manifest: ShardManifest,
        file: SourceFile,
        complete: Callable[[LabelReading], LabelReading],
    ) -> OutOfRange | None:
        """Look at the rejected labels of a file, and at the range of those that were kept.

        Returns None where there are none, or the quarantine of an earlier version tells none.
        Raises: RawDataError, ShardError, StorageError if quarantine or sketch cannot be read.
        """
        if not file.rejected_events.get("label_out_of_range"):
            return None
        rejected = read_labels_out_of_range(store, file.quarantine_uri)
        if not len(rejected):
            return None
        reading = LabelReading.of(manifest.label_reading)
        kept = split_sketches_from_json(store.read_bytes(file.sketch_uri), file.sketch_uri)
        columns = reading.undo(
            *(
                np.concatenate([rejected[name], *_extremes(kept, name)]).astype(np.float64)
                for name in ("azimuth", "zenith")
            )
        )
        unit = "deg" if "degrees" in reading else "rad"
        return cls(
            example=f"such as azimuth {columns[0][0]:.5g} {unit}, zenith {columns[1][0]:.5g} {unit}"
            f" of event_id {rejected['event_id'][0]}",
            wanted=reading.wanted(),
            remedy=range_remedy(*columns, reading, complete),
        )


def _extremes(sketches: Mapping[str, Sketch], name: str) -> list[list[float]]:
    """Give the least and the greatest kept value, per split that has any."""
    features = (sketch.features[name] for sketch in sketches.values())
    return [[feature.low, feature.high] for feature in features if feature.weight > 0]


def _rejected_share(file: SourceFile | Account, kind: str) -> float:
    n_rejected = sum(getattr(file, f"rejected_{kind}").values())
    return float(n_rejected / max(getattr(file, f"n_{kind}_in"), 1))


def refuse_one_direction(manifest: ShardManifest, sketches: Mapping[str, Sketch]) -> None:
    """Stop where all labels of the train split are one direction: nothing could be learned.

    sketches: split -> sketch of that split.
    Raises: RawDataError naming the direction.
    """
    train = sketches.get("train")
    if not manifest.labelled or train is None or train.n_events < 2:
        return
    if fault := _one_direction(train, "", n_least=2):
        raise fault.error(f"{fault.field} of {train.n_events} train events")


def crossing_ns(detector: Detector) -> float:
    """Give the time that light in vacuum needs across the detector, corner to corner, in ns."""
    low, high = detector.bounds_m
    return float(np.linalg.norm(high - low)) / C_M_PER_NS


def refuse_times_of_another_unit(sketches: Mapping[str, Sketch], detector: Detector) -> None:
    """Stop where the pulses of all events lie closer in time than light allows.

    sketches: split -> sketch of that split.
    Raises: RawDataError naming both times.
    """
    train = sketches.get("train")
    if train is None or train.n_pulses < 2:
        return
    if fault := _times_of_another_unit(train, "", detector):
        raise fault.error(f"{fault.field} of {train.n_events} train events")


@dataclass(frozen=True)
class _Fault:
    """What is wrong with all events of a data set or of one file."""

    problem: str
    field: str
    found: str
    expected: str
    remedy: str

    def error(self, where: str, or_else: str = "") -> RawDataError:
        """Word the error; or_else: another way out than the remedy."""
        return RawDataError(
            self.problem,
            where=where,
            found=self.found,
            expected=self.expected,
            remedy=self.remedy + or_else,
        )


def _one_direction(sketch: Sketch, of_file: str, n_least: int) -> _Fault | None:
    zenith, azimuth = (sketch.features[name] for name in ("zenith", "azimuth"))
    if zenith.n_values < n_least or max(zenith.std, azimuth.std) >= MIN_SPREAD:
        return None
    return _Fault(
        f"all labels{of_file} point one way",
        "azimuth and zenith",
        f"azimuth {azimuth.mean:.6g}, zenith {zenith.mean:.6g} in each of {zenith.n_values:,}"
        " events",
        "directions that differ from event to event",
        "Write the true directions into the meta file (its columns may hold a default)",
    )


def _times_of_another_unit(sketch: Sketch, of_file: str, detector: Detector) -> _Fault | None:
    time, crossing = sketch.features["time_ns"], crossing_ns(detector)
    # a constant is told by the normalisation
    if time.is_constant or time.std >= MIN_CROSSINGS * crossing:
        return None
    return _Fault(
        f"pulse times{of_file} are not in nanoseconds",
        "time",
        f"a spread (standard deviation) of {time.std:.3g} over {sketch.n_events:,} events",
        f"at least {MIN_CROSSINGS * crossing:.3g} ns: light needs {crossing:,.0f} ns across this"
        " detector",
        "Write times in ns, not in microseconds, and the geometry in metres",
    )


def doubtful_charges(charge_pe: npt.NDArray[np.floating]) -> str:
    """Say what is odd about charges that can hardly be photo-electrons; or nothing.

    charge_pe: (N,) charges of a sample of pulses. Counts of photons are sound, so this is no error.
    """
    if not len(charge_pe) or charge_pe.min() == charge_pe.max():
        return ""  # a constant is told by the normalisation
    median = float(np.median(charge_pe))
    if bool((charge_pe == np.round(charge_pe)).all()):
        odd = "are whole numbers"
    elif not MIN_MEDIAN_CHARGE_PE <= median <= MAX_MEDIAN_CHARGE_PE:
        odd = "are not those of single photons"
    else:
        return ""
    return (
        f"charges {odd}, {charge_pe.min():.4g} to {charge_pe.max():.4g} with median {median:.4g}:"
        " are they in photo-electrons (one photon has about 1), or times over threshold or counts"
        " of a digitiser?"
    )


def doubtful_times(train: Sketch, detector: Detector) -> str:
    """Say what is odd about times that spread far, for the reader of the data card; or nothing.

    A small detector that records noise for long is sound, so that this is no error.
    """
    spread, crossing = train.features["time_ns"].std, crossing_ns(detector)
    if spread <= MAX_CROSSINGS * crossing:
        return ""
    return (
        f"pulse times spread over {spread:,.0f} ns (standard deviation), {spread / crossing:.1f}"
        f" times the {crossing:,.0f} ns that light needs across the detector: are times in ns and"
        " positions in m?"
    )


# Raw files that are read without an error and are wrong as a whole, among others that are right.
#
# Raw files come a few at a time, and one that is wrong hardly moves the figures of all data. So
# each is judged by itself, by what cannot be; what is only unlike the other files is told, not
# refused.

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
_OF_A_FILE = " of a raw file"
_OTHERWISE = "or move the file away and set data.allow_missing_files"


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
            raise fault.error(f"{uri} {fault.field}{more}", f", {_OTHERWISE}")


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
    lambda file, _, detector: _one_direction(file, _OF_A_FILE, MIN_EVENTS),
    _one_time,
    lambda file, _, detector: _times_of_another_unit(file, _OF_A_FILE, detector),
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
