"""The statistics step: from sketches to a normalisation that was checked on the train split."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from iceaggr.config import NormalizationConfig
from iceaggr.errors import NormalizationError, ShardError
from iceaggr.events.layout import absent_features
from iceaggr.interfaces import ObjectStore
from iceaggr.normalization import INPUT_FEATURES, Normalization, check_usable, fit_normalization
from iceaggr.shards.format import SPLITS
from iceaggr.shards.histograms import FeatureSketch
from iceaggr.shards.manifest import ShardManifest
from iceaggr.shards.sketches import Sketch, merge_sketches, split_sketches_from_json

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
