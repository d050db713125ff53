"""Step 3: merge manifests and sketches -> manifest, normalisation, data card."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path

import numpy as np
import numpy.typing as npt

from iceaggr.detector import Detector
from iceaggr.errors import IceaggrError, ShardError, StorageError
from iceaggr.events.dom_events import DomEvents, take_range
from iceaggr.events.label_reading import LabelFit, LabelReading
from iceaggr.events.reading import read_raw_events
from iceaggr.interfaces import ObjectStore, Tracker
from iceaggr.paths import WorkPaths
from iceaggr.progress import StepProgress
from iceaggr.reconstruction.label_fit import (
    MAX_EVENTS,
    FittedLabels,
    doubtful_labels,
    fit_lines,
    judge_labels,
    refuse_other_labels,
)
from iceaggr.shards.data_card import data_card_html
from iceaggr.shards.encoding import SPLITS
from iceaggr.shards.manifest import (
    ShardEntry,
    ShardManifest,
    load_manifest,
    manifest_facts,
    merge_manifests,
    parse_manifest,
    reuse_words,
)
from iceaggr.shards.planning import check_coverage
from iceaggr.shards.plausibility import (
    doubtful_charges,
    doubtful_times,
    files_unlike_the_others,
    refuse_implausible_files,
    refuse_mass_rejection,
    refuse_one_direction,
    refuse_times_of_another_unit,
)
from iceaggr.shards.reading import load_recorded_detector, read_shard
from iceaggr.shards.sketches import Sketch
from iceaggr.shards.split import refuse_small_splits
from iceaggr.shards.statistics import (
    FileSketches,
    compute_statistics,
    load_file_sketches,
    load_sketches,
    merge_files,
    merge_splits,
)
from iceaggr.steps.context import RunContext
from iceaggr.steps.documents import read_file, write_document
from iceaggr.steps.plan_shards import read_work_units
from iceaggr.training.validation import too_few_to_learn_from

# A sample of the train events, judged by what no sketch holds: labels against hits, and charges.
#
# Each raw file has its part in the sample, so that one of other labels among many is found.

MAX_SHARDS = 32
"""Shards that are read: 130 MiB of the usual 2048 events of 170 pulses, two seconds of one core."""


@dataclass(frozen=True)
class EventSample:
    """What the sample showed.

    label_fit: the labels of all files together.  doubts: sentences for the reader of the last line
    and of the data card.
    """

    label_fit: LabelFit
    doubts: tuple[str, ...]


def judge_sample(
    store: ObjectStore, manifest: ShardManifest, detector: Detector, accept_label_reading: bool
) -> EventSample:
    """Read a sample of the train split and compare its labels with the line fit.

    accept_label_reading: labels that would be refused are a doubt.
    Raises: RawDataError naming the reading of the labels that fits, for all files or one of them;
    StorageError, ShardError.
    """
    reading = LabelReading.of(manifest.label_reading)
    by_file: dict[str, list[FittedLabels]] = {}
    charges = []
    for uri, events in _sample(store, manifest):
        charges.append(events.charge_pe)
        if manifest.labelled:
            by_file.setdefault(uri, []).append(fit_lines(events, detector))
    files = {uri: FittedLabels.joined(parts) for uri, parts in by_file.items()}
    together = judge_labels(FittedLabels.joined(list(files.values())), reading)
    doubts = [doubtful_charges(np.concatenate(charges))] if charges else []
    if together.better is not None:
        n_events, n_files = sum(len(labels.azimuth) for labels in files.values()), len(files)
        counted = f"{n_events:,} train events of {n_files:,} raw file{'s' * (n_files > 1)}"
        fits, remedy = {f"azimuth and zenith of {counted}": together}, ""
    else:
        fits = {f"{uri} azimuth and zenith": judge_labels(f, reading) for uri, f in files.items()}
        remedy = "Write the labels of this file like those of the others"
    for where, fit in fits.items():
        if not accept_label_reading:
            refuse_other_labels(fit, where, remedy)
        elif fit.better is not None:
            doubts.append(f"labels were accepted [{where}], {fit.found()}")
    if manifest.labelled:
        doubts.append(doubtful_labels(together))
    return EventSample(together, tuple(doubt for doubt in doubts if doubt))


def _sample(store: ObjectStore, manifest: ShardManifest) -> Iterator[tuple[str, DomEvents]]:
    """Read the sampled shards one by one: the URI of the raw file, and the events taken."""
    chosen = _chosen(manifest)
    n_each = -(-MAX_EVENTS // max(len(chosen), 1))
    for uri, entry in chosen:
        events = read_shard(store, entry)
        yield uri, take_range(events, 0, min(n_each, events.n_events))


def _chosen(manifest: ShardManifest) -> list[tuple[str, ShardEntry]]:
    """Choose train shards: one of each of many files, several of each of few, until they do."""
    sources = {source.content_key: source.uri for source in manifest.source_files}
    by_file: dict[str, list[ShardEntry]] = {}
    for entry in sorted(manifest.shards_of("train"), key=lambda entry: entry.uri):
        key = entry.uri.rsplit("/", 2)[-2]
        by_file.setdefault(sources.get(key, key), []).append(entry)
    uris = sorted(by_file)
    spread: npt.NDArray[np.float64] = np.linspace(0, len(uris) - 1, min(len(uris), MAX_SHARDS))
    files = [uris[int(index)] for index in spread.round()]
    chosen: list[tuple[str, ShardEntry]] = []
    for turn in range(max(map(len, by_file.values()), default=0)):
        for uri in files:
            n_events = sum(entry.n_events for _, entry in chosen)
            if len(chosen) >= MAX_SHARDS or (turn and n_events >= MAX_EVENTS):
                return chosen
            if turn < len(by_file[uri]):
                chosen.append((uri, by_file[uri][turn]))
    return chosen


log = logging.getLogger(__name__)


def run_compute_statistics(
    context: RunContext,
    unit_manifest_paths: list[Path],
    *,
    manifest_path: Path,
    normalization_path: Path,
    data_card_path: Path,
) -> dict[str, float]:
    """Merge what the sharding tasks wrote and fit the normalisation on the train split.

    Returns the counts of events and pulses.
    Raises: ShardError, also if a planned work unit is missing; RawDataError if much of a raw file
    was rejected, or if all labels are one direction, another reading of the labels fits the events
    far better or times are of another unit, in all data or in one raw file; NormalizationError
    naming the feature that is unusable.
    """
    with (
        StepProgress("compute_statistics", run_id=context.run_id) as progress,
        context.tracking("compute_statistics") as tracker,
    ):
        store = context.open_store()
        manifest = _merged_manifest(context, store, unit_manifest_paths)
        n_events = {split: manifest.n_events(split) for split in SPLITS}
        where = f"kept events of {len(manifest.source_files)} raw files"
        refuse_small_splits(n_events, manifest.validation_share, manifest.test_share, where)
        file_sketches = load_file_sketches(store, manifest)
        sketches, files = merge_files(file_sketches), merge_splits(file_sketches)
        refuse_one_direction(manifest, sketches)
        detector = load_recorded_detector(store, manifest)
        refuse_times_of_another_unit(sketches, detector)
        refuse_implausible_files(files, detector)
        unlike = _unlike(manifest, file_sketches)
        statistics = compute_statistics(manifest, sketches, context.config.normalization)
        normalization = statistics.normalization.to_json()
        sample = judge_sample(store, manifest, detector, context.config.data.accept_label_reading)
        odd = [*too_few_to_learn_from(n_events["train"]), *sample.doubts]
        write_document(manifest_path, manifest.to_json())
        write_document(normalization_path, normalization)
        card = data_card_html(
            manifest,
            statistics.sketches,
            statistics.normalization,
            detector,
            previous=_previous_sketch(context, store, manifest),
            unlike_files=unlike,
            label_fit=sample.label_fit,
            doubts=odd,
        )
        write_document(data_card_path, card)
        facts = manifest_facts(manifest)
        _track(tracker, manifest, facts, card, normalization)
        _point_to_latest(context, store, manifest)
        doubts = (*odd, doubtful_times(statistics.sketches["train"], detector), _told(unlike))
        progress.conclude(_conclusion(facts, [doubt for doubt in doubts if doubt]))
        return facts


def _merged_manifest(
    context: RunContext, store: ObjectStore, unit_manifest_paths: list[Path]
) -> ShardManifest:
    """Read what the sharding tasks wrote; whole as planned, and not mostly rejected."""
    remedy = "Shard the raw events again"
    manifests = [
        parse_manifest(read_file(path, "manifest of a work unit", remedy), str(path))
        for path in unit_manifest_paths
    ]
    check_coverage(store, read_work_units(store, context), manifests)
    manifest = merge_manifests(manifests)
    share = context.config.data.max_rejected_share
    refuse_mass_rejection(manifest, share, store, partial(_completed, store, manifest))
    return manifest


def _completed(store: ObjectStore, manifest: ShardManifest, found: LabelReading) -> LabelReading:
    """Ask the line fit what else the labels are, so that one round gives the whole setting.

    found: a reading whose range holds the labels of the raw files, most of which are in no shard.
    """
    try:
        detector = load_recorded_detector(store, manifest)
        events = read_raw_events(store, _raw_uri(manifest), "train", detector)
        fitted = FittedLabels.joined([fit_lines(chunk, detector) for chunk in islice(events, 2)])
    except IceaggrError as error:
        log.warning("labels out of range were not compared with a line fit: %s", error)
        return found
    angles = found.apply(fitted.azimuth, fitted.zenith)
    better = judge_labels(FittedLabels(fitted.direction, *angles), found).better
    return better.reading if better else found


def _raw_uri(manifest: ShardManifest) -> str:
    return manifest.source_files[0].uri.rsplit("/", 2)[0]


def _conclusion(facts: dict[str, float], doubts: list[str]) -> str:
    return (
        f"{reuse_words(facts)}; {facts['pulses_in']:,.0f} pulses in ="
        f" {facts['pulses_kept']:,.0f} kept + {facts['pulses_rejected']:,.0f} rejected"
        + "".join(f"; warning: {doubt}" for doubt in doubts)
    )


def _unlike(manifest: ShardManifest, file_sketches: FileSketches) -> list[str]:
    """Compare raw files; where these bring a split, those of tests with each other only.

    A benchmark's test events may be without the noise that those of training have.
    """
    groups: dict[bool, list[tuple[str, Mapping[str, Sketch]]]] = {}
    for uri, splits in file_sketches:
        is_test = manifest.official_split and "test" in splits
        groups.setdefault(is_test, []).append((uri, splits))
    merged = [merge_splits(group) for group in groups.values()]
    return [sentence for files in merged for sentence in files_unlike_the_others(files)]


def _told(unlike: list[str]) -> str:
    """Point to the sentences on the data card; '' where there are none."""
    count = {0: "", 1: "1 raw file is"}.get(len(unlike), f"{len(unlike)} raw files are")
    return f"{count} unlike the others, see the data card" if count else ""


def _previous_sketch(
    context: RunContext, store: ObjectStore, manifest: ShardManifest
) -> Sketch | None:
    """Load the train sketch of the data set before this one, for the drift table.

    A retry finds the pointer at this data set already, and compares with the one before as well.
    """
    try:
        work = WorkPaths(context.work_uri)
        for uri in (work.latest_manifest_uri, work.previous_manifest_uri):
            if store.stat(uri) is None:
                return None
            previous = load_manifest(store, uri)
            if previous.digest() != manifest.digest():
                return load_sketches(store, previous).get("train")
    except (StorageError, ShardError) as error:
        # cleaned away since, or of another version: there is nothing to compare with
        log.warning("no drift table: %s", error)
    return None


def _point_to_latest(context: RunContext, store: ObjectStore, manifest: ShardManifest) -> None:
    """Name this data set as the latest, after remembering the one that was."""
    work = WorkPaths(context.work_uri)
    latest = work.latest_manifest_uri
    if store.stat(latest) is not None:
        with suppress(ShardError):  # of another version: a retry cannot compare with it either
            old = load_manifest(store, latest)
            if old.digest() != manifest.digest():
                store.write_bytes(work.previous_manifest_uri, old.to_json().encode())
    store.write_bytes(latest, manifest.to_json().encode())


def _track(
    tracker: Tracker,
    manifest: ShardManifest,
    facts: dict[str, float],
    card: str,
    normalization: str,
) -> None:
    tracker.log_metrics({f"volume/{name}": value for name, value in facts.items()})
    tracker.log_dataset(
        name="iceaggr-events",
        digest=manifest.digest(),
        source_uri=_raw_uri(manifest),
        context="training",
        facts=facts,
    )
    tracker.set_tags({"data_digest": manifest.digest()})
    tracker.log_text(card, "data/data_card.html")
    tracker.log_text(normalization, "data/normalization.json")
    tracker.log_text(manifest.to_json(), "data/manifest.json")
