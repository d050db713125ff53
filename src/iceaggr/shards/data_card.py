"""The data card: one self-contained HTML page that shows a physicist what the model will see."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from importlib import resources
from typing import Any

import jinja2
import numpy as np
from markupsafe import Markup

from iceaggr.detector import Detector
from iceaggr.errors import ShardError
from iceaggr.events.label_reading import LabelFit, LabelReading
from iceaggr.normalization import INPUT_FEATURES, POSITIONS, Normalization
from iceaggr.shards import data_card_maps as maps
from iceaggr.shards import data_card_plots as plots
from iceaggr.shards.drift import drift_table, newly_silent_doms
from iceaggr.shards.format import SPLITS
from iceaggr.shards.histograms import FeatureSketch
from iceaggr.shards.manifest import ShardManifest
from iceaggr.shards.plausibility import doubtful_times
from iceaggr.shards.sketches import Sketch, merge_sketches
from iceaggr.shards.statistics import normalized_feature

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
    present = {s: sketches[s] for s in SPLITS if s in sketches and sketches[s].n_events}
    if "train" not in present:
        raise ShardError(
            "no train split to describe",
            where=f"manifest {manifest.digest()}",
            found=list(present),
            expected="train",
            remedy="Shard more raw events, or lower the shares of the other splits",
        )
    every = merge_sketches(present.values())
    page = _template().render(
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
    return page


def _template() -> jinja2.Template:
    text = (
        resources.files("iceaggr.resources").joinpath("data_card.html").read_text(encoding="utf-8")
    )
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters["count"] = lambda n: f"{n:,}"
    environment.filters["share"] = lambda x: f"{100 * x:.3g} %"
    environment.filters["figure"] = lambda x: f"{x:.5g}"
    return environment.from_string(text)


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
        "n_silent": len(silent),
        "silent": ", ".join(map(str, named)) + (" ..." if len(silent) > N_NAMED_DOMS else ""),
        "n_hit_not_in_use": int(np.count_nonzero(every.dom_hits[~detector.in_use])),
        "median_hits": float(np.median(used)) if len(used) else 0.0,
        "top": Markup(maps.occupancy_top_view(detector, occupancy)),
        "side": Markup(maps.occupancy_side_view(detector, occupancy)),
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
