"""The data card: one self-contained HTML page that shows a physicist what the model will see."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from markupsafe import Markup

from iceaggr.detector import Detector
from iceaggr.errors import ShardError
from iceaggr.events.label_reading import LabelFit, LabelReading
from iceaggr.normalization_document import INPUT_FEATURES, POSITIONS, Normalization
from iceaggr.pages import render
from iceaggr.shards import data_card_plots as plots
from iceaggr.shards.encoding import SPLITS
from iceaggr.shards.histograms import FeatureSketch, Floats
from iceaggr.shards.manifest import ShardManifest
from iceaggr.shards.plausibility import doubtful_times
from iceaggr.shards.sketches import FEATURES, Sketch, merge_sketches
from iceaggr.shards.statistics import normalized_feature

# Drift: how the features of a new data set differ from those of a previous one.

MAX_SHIFT, MAX_STABILITY_INDEX, MAX_DISTANCE = 0.1, 0.1, 0.05
N_GROUPS = 10
MIN_EXPECTED_HITS = 20.0


@dataclass(frozen=True)
class DriftRow:
    """One feature, now against before; NaN where the two cannot be compared.

    shift: difference of the means in units of the feature's normalisation scale, or of its previous
    standard deviation where it is no model input.  std_ratio: now / before.
    stability_index: population stability index over tenths of the previous distribution.
    distance: Kolmogorov-Smirnov distance of the two histograms.
    flags: which of the three exceed both their limit and what chance alone can do.
    """

    name: str
    mean_before: float
    mean_now: float
    shift: float
    std_ratio: float
    stability_index: float
    distance: float
    flags: tuple[str, ...]


def drift_table(now: Sketch, before: Sketch, normalization: Normalization) -> list[DriftRow]:
    """Compare every feature of two sketches, of the same split of two data sets.

    A row is flagged where the shift exceeds 0.1, the stability index 0.1 or the distance 0.05, and
    also exceeds the fluctuation expected for the two numbers of events.
    Source: limits of the stability index as in credit scoring (0.1 watch, 0.25 act).
    """
    rows = []
    for name in FEATURES:
        if name == "log10_charge":
            continue  # compared as charge_pe, in the transform that the model uses
        sketched = normalization.sketched_feature(name) if name in INPUT_FEATURES else name
        scale = normalization.scaling(name).scale if name in INPUT_FEATURES else 0.0
        rows.append(_row(sketched, now.features[sketched], before.features[sketched], scale))
    return rows


def newly_silent_doms(now: Sketch, before: Sketch) -> list[int]:
    """List detector rows that were hit before and, against expectation, are never hit now.

    Expected hits are those before, scaled to the number of events now; at least 20 are asked for.
    Returns an empty list if the two belong to different detectors.
    """
    if len(now.dom_hits) != len(before.dom_hits) or not before.n_events:
        return []
    expected = before.dom_hits * (now.n_events / before.n_events)
    silent: list[int] = np.flatnonzero(
        (now.dom_hits == 0) & (expected >= MIN_EXPECTED_HITS)
    ).tolist()
    return silent


def stability_index(now: Floats, before: Floats) -> float:
    """Compute the population stability index, sum of (p - q) ln(p / q) over tenths of q.

    now, before: (K,) float64 weight per bin, same bins. Half an event is added to each group, so
    that an empty one counts as rare instead of impossible.
    """
    cumulative = np.cumsum(before) / before.sum()
    group = np.minimum((cumulative - before / before.sum() / 2) * N_GROUPS, N_GROUPS - 1).astype(
        int
    )
    p, q = (np.bincount(group, weights=w, minlength=N_GROUPS) for w in (now, before))
    used = (p > 0) | (q > 0)
    share_now, share_before = ((w[used] + 0.5) / (w[used] + 0.5).sum() for w in (p, q))
    return float(np.sum((share_now - share_before) * np.log(share_now / share_before)))


def _row(name: str, now: FeatureSketch, before: FeatureSketch, scale: float) -> DriftRow:
    if now.binning != before.binning or not now.n_values or not before.n_values:
        reason = "different bins" if now.binning != before.binning else "no values"
        nan = math.nan
        return DriftRow(name, before.mean, now.mean, nan, nan, nan, nan, (reason,))
    unit = scale or before.std or 1.0
    shift = (now.mean - before.mean) / unit
    index = stability_index(now.histogram, before.histogram)
    shares = [np.cumsum(f.histogram) / f.histogram.sum() for f in (now, before)]
    distance = float(np.abs(shares[0] - shares[1]).max())
    # an event is one independent draw at most, however many pulses it has
    chance = 1 / now.weight + 1 / before.weight
    limits = {
        "mean": (abs(shift), max(MAX_SHIFT, 4 * math.sqrt(chance) * before.std / unit)),
        "PSI": (index, max(MAX_STABILITY_INDEX, chance * _chi2_limit(N_GROUPS - 1))),
        "KS": (distance, max(MAX_DISTANCE, 1.95 * math.sqrt(chance))),
    }
    return DriftRow(
        name,
        before.mean,
        now.mean,
        shift,
        now.std / before.std if before.std else math.nan,
        index,
        distance,
        tuple(flag for flag, (value, limit) in limits.items() if value > limit),
    )


def _chi2_limit(degrees: int) -> float:
    """Bound a chi-square variable from above: its mean and four standard deviations."""
    return degrees + 4 * math.sqrt(2 * degrees)


UNITS = {"time_ns": "ns", "charge_pe": "p.e.", "x_m": "m", "y_m": "m", "z_m": "m"}
COUNTS = ("n_pulses", "n_doms", "n_pulses_per_dom")
MAX_ABS = 10.0
N_NAMED_DOMS = 12
N_NAMED_FILES = 10


def data_card_html(
    manifest: ShardManifest,
    sketches: Mapping[str, Sketch],
    normalization: Normalization,
    detector: Detector,
    previous: Sketch | None = None,
    unlike_files: Sequence[str] = (),
    label_fit: LabelFit | None = None,
    doubts: Sequence[str] = (),
) -> str:
    """Describe a data set on one HTML page without any outside request.

    sketches: split -> sketch, see `load_sketches`.  previous: the train sketch of the data set that
    the last model was trained on; a drift table compares it with the present one.
    unlike_files: what `files_unlike_the_others` says.  label_fit: how each reading of the labels
    agrees with the line fit.  doubts: further sentences on what is odd.
    Raises: ShardError if there is no train split.
    """
    present = _present(manifest, sketches)
    every = merge_sketches(present.values())
    return render(
        "data_card.html.j2",
        manifest=manifest,
        digest=manifest.digest(),
        normalization=normalization,
        account=_account(manifest),
        splits=_split_rows(manifest, present),
        features=_feature_sections(present, normalization, detector),
        scalings=_scaling_rows(present["train"], normalization),
        counts=[
            (plots.LABELS[n], Markup(plots.count_histogram(n, _of(present, n)))) for n in COUNTS
        ],
        first_pulse=_first_pulse(present["train"]),
        directions=_directions(every),
        n_labelled=every.features["zenith"].n_values,
        detector=_detector_facts(every, detector),
        drift=_drift(present["train"], previous, normalization),
        unlike_files=unlike_files,
        n_named_files=N_NAMED_FILES,
        doubtful_times=doubtful_times(present["train"], detector),
        label_fit=label_fit,
        label_reading=LabelReading.of(manifest.label_reading),
        doubts=doubts,
        max_abs=MAX_ABS,
    )


def _present(manifest: ShardManifest, sketches: Mapping[str, Sketch]) -> dict[str, Sketch]:
    present = {s: sketches[s] for s in SPLITS if s in sketches and sketches[s].n_events}
    if "train" not in present:
        raise ShardError(
            "no train split to describe",
            where=f"manifest {manifest.digest()}",
            found=list(present),
            expected="train",
            remedy="Shard more raw events, or lower the shares of the other splits",
        )
    return present


def _of(sketches: Mapping[str, Sketch], name: str) -> dict[str, FeatureSketch]:
    found = {split: sketch.features[name] for split, sketch in sketches.items()}
    return {split: feature for split, feature in found.items() if feature.weight > 0}


def _account(manifest: ShardManifest) -> list[dict[str, Any]]:
    """Balance events and pulses: in = kept + rejected = in the shards + rejected."""
    rows = []
    for kind in ("events", "pulses"):
        sources = manifest.source_files
        n_in = sum(getattr(s, f"n_{kind}_in") for s in sources)
        n_kept = sum(getattr(s, f"n_{kind}_kept") for s in sources)
        n_in_shards = sum(getattr(entry, f"n_{kind}") for entry in manifest.shards)
        reasons: Counter[str] = Counter()
        for source in sources:
            reasons.update(getattr(source, f"rejected_{kind}"))
        n_rejected = sum(reasons.values())
        rows.append(
            {
                "kind": kind,
                "n_in": n_in,
                "n_kept": n_kept,
                "n_rejected": n_rejected,
                "reasons": reasons.most_common(),
                "n_unaccounted": n_in - n_kept - n_rejected,
                "n_missing_in_shards": n_kept - n_in_shards,
            }
        )
    return rows


def _split_rows(manifest: ShardManifest, sketches: Mapping[str, Sketch]) -> list[dict[str, Any]]:
    n_all = max(sum(entry.n_events for entry in manifest.shards), 1)
    configured = {"validation": manifest.validation_share, "test": manifest.test_share}
    if manifest.official_split:  # the hash takes validation out of what is not for testing
        configured["test"] = manifest.n_events("test") / n_all
        configured["validation"] *= 1 - configured["test"]
    configured["train"] = 1 - sum(configured.values())
    rows = []
    for split in SPLITS:
        entries = manifest.shards_of(split)
        sketch = sketches.get(split)
        n_events = manifest.n_events(split)
        share = configured[split]
        rows.append(
            {
                "split": split,
                "n_events": n_events,
                "share": n_events / n_all,
                "configured": share,
                "deviation": (n_events - share * n_all) / (share * (1 - share) * n_all) ** 0.5,
                "n_pulses": sum(entry.n_pulses for entry in entries),
                "n_doms": sum(entry.n_doms for entry in entries),
                "median_pulses": sketch.features["n_pulses"].quantile(0.5) if sketch else 0,
                "mean_pulses": sketch.features["n_pulses"].mean if sketch else 0,
                "max_pulses": sketch.features["n_pulses"].high if sketch else 0,
                "n_shards": len(entries),
                "mib": sum(entry.n_bytes for entry in entries) / 2**20,
            }
        )
    return rows


def _feature_sections(
    sketches: Mapping[str, Sketch], normalization: Normalization, detector: Detector
) -> list[dict[str, Any]]:
    sensors = dict(zip(POSITIONS, detector.xyz_m[detector.in_use].T, strict=True))
    sections = []
    for name in INPUT_FEATURES:
        train = sketches["train"].features[normalization.sketched_feature(name)]
        scaling = normalization.scaling(name)
        drawn = plots.normalized_histogram(name, train, scaling, MAX_ABS)
        raw = plots.raw_histogram(name, _of(sketches, name), sensors.get(name))
        sections.append({"name": name, "raw": Markup(raw), "normalized": Markup(drawn)})
    return sections


def _scaling_rows(train: Sketch, normalization: Normalization) -> list[dict[str, Any]]:
    return [
        {
            "name": name,
            "unit": UNITS.get(name, ""),
            "raw": train.features[name],
            "scaling": normalization.scaling(name),
            "normalized": normalized_feature(name, train, normalization, MAX_ABS),
        }
        for name in INPUT_FEATURES
    ]


def _first_pulse(train: Sketch) -> dict[str, Any]:
    name = "first_pulse_time_ns"
    feature = train.features[name]
    end = feature.binning.high
    later = feature.share_beyond(-np.inf, end)
    return {
        "svg": Markup(plots.raw_histogram(name, {"train": feature})),
        "end": end,
        "later": later,
    }


def _directions(every: Sketch) -> list[tuple[str, Markup]]:
    angles = {name: every.features[name] for name in ("zenith", "azimuth")}
    return [
        (name, Markup(plots.direction_histogram(name, angle)))
        for name, angle in angles.items()
        if angle.weight > 0
    ]


def _detector_facts(every: Sketch, detector: Detector) -> dict[str, Any]:
    occupancy = every.dom_hits / every.n_events
    silent = np.flatnonzero((every.dom_hits == 0) & detector.in_use)
    named = [int(detector.sensor_id[row]) for row in silent[:N_NAMED_DOMS]]
    used = every.dom_hits[detector.in_use]
    return {
        "n_sensors": detector.n_sensors,
        "n_in_use": int(detector.in_use.sum()),
        "medium": detector.medium_words,
        "n_silent": len(silent),
        "silent": ", ".join(map(str, named)) + (" ..." if len(silent) > N_NAMED_DOMS else ""),
        "n_hit_not_in_use": int(np.count_nonzero(every.dom_hits[~detector.in_use])),
        "median_hits": float(np.median(used)) if len(used) else 0.0,
        "top": Markup(plots.occupancy_top_view(detector, occupancy)),
        "side": Markup(plots.occupancy_side_view(detector, occupancy)),
    }


def _drift(
    train: Sketch, previous: Sketch | None, normalization: Normalization
) -> dict[str, Any] | None:
    if previous is None:
        return None
    rows = drift_table(train, previous, normalization)
    return {
        "rows": rows,
        "n_flagged": sum(bool(row.flags) for row in rows),
        "n_events_before": previous.n_events,
        "n_events_now": train.n_events,
        "silent": newly_silent_doms(train, previous),
    }
