"""The statistics step: from sketches to a normalisation that was checked on the train split."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from iceaggr.config import NormalizationConfig
from iceaggr.errors import NormalizationError, RawDataError, ShardError
from iceaggr.events.layout import absent_features
from iceaggr.interfaces import ObjectStore
from iceaggr.normalization_document import INPUT_FEATURES, POSITIONS, FeatureScaling, Normalization
from iceaggr.shards.encoding import SPLITS
from iceaggr.shards.histograms import FeatureSketch
from iceaggr.shards.manifest import ShardManifest
from iceaggr.shards.sketches import Sketch, merge_sketches, split_sketches_from_json

# Fitting a normalisation to the statistics of the train split.

TAIL_SHARE, TAIL_REACH = 0.001, 6.0
"""The quantiles of this share lie within this many scales of the mean."""
LOG_REACH = 9.5
"""The extremes of log10 charge do, below the 10 beyond which a value counts as an outlier."""


def fit_normalization(sketch: Sketch, constant_features: Collection[str] = ()) -> Normalization:
    """Fit centre and scale to a sketch of the train split, each event counting equally.

    Time, log10 charge and sensor row: mean, and the standard deviation or, for a heavy tail, a
    scale that holds the tail (TAIL_REACH); log10 charge one that holds its extremes (LOG_REACH),
    because a bright event may fill a batch alone. x, y and z have their own means
    but one common scale, so that angles survive. The auxiliary flag becomes -1 or +1: a fitted
    scale would blow up the rarer value.
    constant_features: what this detector does not record; it becomes 0 with scale 1.
    Raises: NormalizationError naming every feature that is missing, not finite or constant.
    """
    check_usable(sketch, constant_features)
    charge, time, row = (sketch.features[f] for f in ("log10_charge", "time_ns", "sensor_idx"))
    spread = sum(sketch.features[axis].std ** 2 for axis in POSITIONS) / len(POSITIONS)
    common_scale = spread**0.5 or 1.0
    positions = {
        axis: FeatureScaling(centre=sketch.features[axis].mean, scale=common_scale)
        for axis in POSITIONS
    }
    flag = sketch.features["auxiliary"]
    return Normalization(
        preset="fitted",
        time_ns=_fit(time),
        charge_pe=_fit(charge, "log10"),
        auxiliary=_fit(flag) if flag.is_constant else FeatureScaling(centre=0.5, scale=0.5),
        sensor_idx=_fit(row),
        **positions,
    )


def _fit(
    feature: FeatureSketch, transform: Literal["identity", "log10"] = "identity"
) -> FeatureScaling:
    if feature.is_constant:
        return FeatureScaling(transform=transform, centre=feature.low)
    tails = (feature.quantile(1 - TAIL_SHARE), feature.quantile(TAIL_SHARE))
    scale = max(feature.std, *(abs(tail - feature.mean) / TAIL_REACH for tail in tails))
    if transform == "log10":
        ends = (feature.low, feature.high)
        scale = max(scale, *(abs(end - feature.mean) / LOG_REACH for end in ends))
    return FeatureScaling(transform=transform, centre=feature.mean, scale=scale)


def check_usable(sketch: Sketch, constant_features: Collection[str] = ()) -> None:
    """Refuse a sketch with an input feature that is missing, not finite or constant.

    Raises: NormalizationError naming each such feature with its figures.
    """
    unknown = sorted(set(constant_features) - set(INPUT_FEATURES))
    if unknown:
        raise NormalizationError(
            "unknown constant feature",
            where="normalization.constant_features",
            found=unknown,
            expected=f"some of {INPUT_FEATURES}",
            remedy="Correct the name",
        )
    problems = []
    for name in INPUT_FEATURES:
        feature = sketch.features["log10_charge" if name == "charge_pe" else name]
        if feature.n_not_finite:
            problem = f"{feature.n_not_finite} of {feature.n_values + feature.n_not_finite} values"
            problems.append(f"{name}: {problem} are not finite or have no logarithm")
        elif feature.n_values == 0:
            problems.append(f"{name}: no values")
        elif feature.is_constant and name not in constant_features:
            value = sketch.features[name].low  # of charge as it was, not its logarithm
            problems.append(f"{name}: all {feature.n_values} values are {value:g}")
    if problems:
        raise NormalizationError(
            "features cannot be normalised",
            where=f"statistics of {sketch.n_events} events",
            found="; ".join(problems),
            expected="finite values that vary",
            remedy="Mend the raw data, or name what the detector lacks in "
            "normalization.constant_features",
        )


FileSketches = Sequence[tuple[str, Mapping[str, Sketch]]]
"""URI of each raw file, and its sketches: split -> sketch."""
MIN_STD, MAX_STD, MAX_MEAN = 0.01, 10.0, 10.0


@dataclass(frozen=True)
class NormalizedFeature:
    """How one input feature looks after normalisation, each event counting equally."""

    name: str
    mean: float
    std: float
    low: float
    high: float
    share_beyond: float


@dataclass(frozen=True)
class Statistics:
    """What compute_statistics found.

    sketches: merged over all source files, per split.
    normalization: fitted on the train split only, or the configured preset.
    normalized: one entry per input feature, of the train split.
    """

    sketches: dict[str, Sketch]
    normalization: Normalization
    normalized: tuple[NormalizedFeature, ...]


def load_file_sketches(store: ObjectStore, manifest: ShardManifest) -> FileSketches:
    """Read the sketches of all source files, in the order of the manifest.

    Raises: StorageError, ShardError naming a missing or damaged sketch.
    """
    return [
        (file.uri, split_sketches_from_json(store.read_bytes(file.sketch_uri), file.sketch_uri))
        for file in manifest.source_files
    ]


def load_sketches(store: ObjectStore, manifest: ShardManifest) -> dict[str, Sketch]:
    """Read and merge the sketches of all source files: one per split that has any.

    Raises: StorageError, ShardError naming a missing or damaged sketch.
    """
    return merge_files(load_file_sketches(store, manifest))


def merge_files(files: FileSketches) -> dict[str, Sketch]:
    """Merge sketches over all source files: split -> sketch."""
    parts: dict[str, list[Sketch]] = {}
    for _, splits in files:
        for split, sketch in splits.items():
            parts.setdefault(split, []).append(sketch)
    return {split: merge_sketches(found) for split, found in parts.items()}


def merge_splits(files: FileSketches) -> dict[str, Sketch]:
    """Merge sketches over the splits: URI of the raw file -> sketch, where it has any events."""
    return {uri: merge_sketches(splits.values()) for uri, splits in files if splits}


def compute_statistics(
    manifest: ShardManifest, sketches: Mapping[str, Sketch], config: NormalizationConfig
) -> Statistics:
    """Fit the normalisation on the train split, or take the preset, and check its effect.

    sketches: split -> sketch of that split, see `load_sketches`; only train decides anything. What
    the notes of the manifest say the source never had may be constant, as config.constant_features.
    Raises: ShardError if sketches and manifest disagree; NormalizationError naming every feature
    that is missing, not finite, constant or badly scaled.
    """
    _check_complete(manifest, sketches)
    train = sketches["train"]
    constant = {*config.constant_features, *absent_features(manifest.notes)}
    config = config.model_copy(update={"constant_features": tuple(sorted(constant))})
    if config.preset == "fitted":
        normalization = fit_normalization(train, config.constant_features)
    else:
        check_usable(train, config.constant_features)
        normalization = Normalization.seed() if config.preset == "seed" else Normalization.raw()
    return Statistics(dict(sketches), normalization, check_scaling(train, normalization, config))


def check_scaling(
    sketch: Sketch, normalization: Normalization, config: NormalizationConfig
) -> tuple[NormalizedFeature, ...]:
    """Judge the normalised range of every input feature from its sketch.

    Badly scaled is a share above config.max_outlier_share beyond config.max_abs, a mean beyond 10,
    or a standard deviation outside [0.01, 10]; a feature named as constant has no spread to judge.
    Raises: NormalizationError naming every such feature with its figures.
    """
    found = tuple(
        normalized_feature(name, sketch, normalization, config.max_abs) for name in INPUT_FEATURES
    )
    problems = [
        f"{f.name}: mean {f.mean:.4g}, std {f.std:.4g}, range {f.low:.4g} .. {f.high:.4g}, "
        f"{f.share_beyond:.2%} beyond {config.max_abs:g}"
        for f in found
        if f.share_beyond > config.max_outlier_share
        or abs(f.mean) > MAX_MEAN
        or f.std > MAX_STD
        or (f.std < MIN_STD and f.name not in config.constant_features)
    ]
    if problems:
        raise NormalizationError(
            "features are badly scaled after normalisation",
            where=f"preset {normalization.preset}, train split of {sketch.n_events} events",
            found="; ".join(problems),
            expected=f"std in [{MIN_STD:g}, {MAX_STD:g}], mean within {MAX_MEAN:g}, at most "
            f"{config.max_outlier_share:.2%} beyond {config.max_abs:g}",
            remedy="Use normalization.preset: fitted, or mend the raw data",
        )
    return found


def normalized_feature(
    name: str, sketch: Sketch, normalization: Normalization, max_abs: float
) -> NormalizedFeature:
    """Transform the moments, range and outlier share of one input feature."""
    feature: FeatureSketch = sketch.features[normalization.sketched_feature(name)]
    scaling = normalization.scaling(name)
    reach = max_abs * scaling.scale
    return NormalizedFeature(
        name=name,
        mean=(feature.mean - scaling.centre) / scaling.scale,
        std=feature.std / scaling.scale,
        low=(feature.low - scaling.centre) / scaling.scale,
        high=(feature.high - scaling.centre) / scaling.scale,
        share_beyond=feature.share_beyond(scaling.centre - reach, scaling.centre + reach),
    )


def _check_complete(manifest: ShardManifest, sketches: Mapping[str, Sketch]) -> None:
    """Refuse sketches that describe other events than the shards hold."""
    for split in SPLITS:
        entries = manifest.shards_of(split)
        in_shards = tuple(sum(getattr(e, n) for e in entries) for n in ("n_events", "n_pulses"))
        sketch = sketches.get(split)
        in_sketch = (sketch.n_events, sketch.n_pulses) if sketch else (0, 0)
        if in_shards != in_sketch:
            raise ShardError(
                f"sketches do not describe the {split} shards",
                where=", ".join(source.sketch_uri for source in manifest.source_files[:3]),
                found="{} events with {} pulses".format(*in_sketch),
                expected="{} events with {} pulses".format(*in_shards),
                remedy="Shard the raw events again",
            )
    if not manifest.n_events("train"):
        raise ShardError(
            "the train split has no events",
            where=", ".join(source.uri for source in manifest.source_files[:3]),
            found=f"{sum(e.n_events for e in manifest.shards)} events in all splits",
            expected="at least one",
            remedy="Give more raw events",
        )


# Whether events are like those that a model was trained on, by the model's own normalisation.
#
# A fitted centre is the mean of the training data and a scale at least their standard deviation, so
# that the document alone bounds where they lay, whatever their distribution.

JUDGED_FEATURES = ("time_ns", "charge_pe", "sensor_idx")
"""Positions follow from the sensor, and the auxiliary flag has two values only."""
MAX_SHIFT = 3.0
"""Scales from the centre to the median: beyond lay at most a tenth of the training data (on one
side; a hundredth if they were about normal), and half of these.
Source: Cantelli's inequality, 1 / (1 + 3^2)."""
MIN_SPREAD_NORM = 0.05
"""Standard deviation in scales. That of the training data was 0.19 at least, since a scale exceeds
it only to hold the tail beyond a share of 0.001 (`fitting.TAIL_SHARE`) within 6 scales."""


def refuse_unlike_training(sketch: Sketch, normalization: Normalization, where: str) -> None:
    """Stop where a feature lies beside the training data, or is all but constant and was not.

    The fixed constants of a preset say nothing of any training data: then nothing is judged.
    Raises: RawDataError naming feature, figures and bounds.
    """
    if normalization.preset != "fitted":
        return
    for name in JUDGED_FEATURES:
        scaling = normalization.scaling(name)
        feature = sketch.features[normalization.sketched_feature(name)]
        shift = (feature.quantile(0.5) - scaling.centre) / scaling.scale
        spread = feature.std / scaling.scale
        if abs(shift) > MAX_SHIFT:
            found = f"a median of {feature.quantile(0.5):.4g}, {shift:+.1f} scales from the centre"
        elif spread < MIN_SPREAD_NORM and scaling.scale != 1.0:  # 1 is that of a constant feature
            found = f"a spread (standard deviation) of {feature.std:.3g}, {spread:.2g} scales"
        else:
            continue
        shown = normalization.sketched_feature(name)
        raise RawDataError(
            "events are not like those that the model was trained on",
            where=f"{where} {shown}",
            found=found,
            expected=f"around {scaling.centre:.4g}, in scales of {scaling.scale:.3g}: a median"
            f" within {MAX_SHIFT:g}, a spread of at least {MIN_SPREAD_NORM:g}",
            remedy="Look at units and sensor ids of these events, or train a model on such events",
        )
