"""Data that are read without an error and are wrong as a whole: refused before anything is fitted.

What is judged here cannot be seen in one pulse or event: how many of a file were rejected, whether
all labels are one direction, whether times go with the size of the detector.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from iceaggr.detector import Detector
from iceaggr.errors import RawDataError
from iceaggr.events.cleaning import Account
from iceaggr.light_in_ice import C_M_PER_NS
from iceaggr.shards.manifest import ShardManifest, SourceFile
from iceaggr.shards.sketches import Sketch

MIN_SPREAD = 1e-6
"""Radians; labels that differ by less all point one way."""
MIN_CROSSINGS, MAX_CROSSINGS = 0.02, 8.0
"""Spread of pulse times, in the times that light needs across the detector: about 0.8 in simulated
IceCube events and 0.2 in those of a small detector without noise; in microseconds a thousandth of
that. A small detector that listens for long has more."""


def refuse_mass_rejection(manifest: ShardManifest, max_share: float) -> None:
    """Stop where rejection is the rule: wrong units, another geometry, another detector.

    Raises: RawDataError naming the raw file with the largest share of rejected events, or of
    rejected pulses if all files keep their events.
    """
    for kind in ("events", "pulses"):
        worst = max(manifest.source_files, key=lambda f: _rejected_share(f, kind), default=None)
        if worst is not None:
            look_at = f"Look at {worst.quarantine_uri}: units, angles, geometry and sensor ids"
            refuse_many_rejected(worst, kind, max_share, worst.uri, f"{look_at} come first")


def refuse_many_rejected(
    file: SourceFile | Account, kind: str, max_share: float, where: str, remedy: str
) -> None:
    """Stop where a larger share of the events or pulses was rejected. Raises: RawDataError."""
    if _rejected_share(file, kind) <= max_share:
        return
    # events without a valid pulse are understood by why their pulses were rejected
    rejected = {**file.rejected_events, **file.rejected_pulses}
    reasons = ", ".join(f"{name} {n:,}" for name, n in rejected.items())
    n_in = getattr(file, f"n_{kind}_in")
    raise RawDataError(
        f"too many {kind} of a raw file were rejected",
        where=where,
        found=f"{_rejected_share(file, kind):.1%} of {n_in:,} {kind}: {reasons}",
        expected=f"at most {max_share:.1%} (data.max_rejected_share)",
        remedy=remedy,
    )


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
    zenith, azimuth = (train.features[name] for name in ("zenith", "azimuth"))
    if max(zenith.std, azimuth.std) < MIN_SPREAD:
        raise RawDataError(
            "all labels point one way",
            where=f"azimuth and zenith of {train.n_events} train events",
            found=f"azimuth {azimuth.mean:.6g}, zenith {zenith.mean:.6g} in every event",
            expected="directions that differ from event to event",
            remedy="Write the true directions into the meta file; a column may hold a default",
        )


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
    time, crossing = train.features["time_ns"], crossing_ns(detector)
    # a constant is told by the normalisation
    if not time.is_constant and time.std < MIN_CROSSINGS * crossing:
        raise RawDataError(
            "pulse times are not in nanoseconds",
            where=f"time of {train.n_events} train events",
            found=f"a spread (standard deviation) of {time.std:.3g}",
            expected=f"at least {MIN_CROSSINGS * crossing:.3g} ns: light needs {crossing:,.0f} ns"
            " across this detector",
            remedy="Write times in ns, not in microseconds, and the geometry in metres",
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
