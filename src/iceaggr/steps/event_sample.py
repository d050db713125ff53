"""A sample of the train events, judged by what no sketch holds: labels against hits, and charges.

Each raw file has its part in the sample, so that one of other labels among many is found.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from iceaggr.detector import Detector
from iceaggr.events.dom_events import DomEvents
from iceaggr.events.joining import take_range
from iceaggr.events.label_reading import LabelFit, LabelReading
from iceaggr.interfaces import ObjectStore
from iceaggr.reconstruction.label_fit import (
    MAX_EVENTS,
    FittedLabels,
    fit_lines,
    judge_labels,
    refuse_other_labels,
)
from iceaggr.shards.manifest import ShardEntry, ShardManifest
from iceaggr.shards.plausibility import doubtful_charges
from iceaggr.shards.reading import read_shard

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
        fits, remedy = {f"azimuth and zenith of {_counted(files)}": together}, ""
    else:
        fits = {f"{uri} azimuth and zenith": judge_labels(f, reading) for uri, f in files.items()}
        remedy = "Write the labels of this file like those of the others"
    for where, fit in fits.items():
        if not accept_label_reading:
            refuse_other_labels(fit, where, remedy)
        elif fit.better is not None:
            doubts.append(f"labels were accepted [{where}], {fit.found()}")
    if together.agrees_nowhere:
        doubts.append(
            f"the labels of {together.n_events:,} train events agree with a line fit no more than"
            " by chance, in any reading: do they belong to these events?"
        )
    return EventSample(together, tuple(doubt for doubt in doubts if doubt))


def _counted(files: dict[str, FittedLabels]) -> str:
    n_events = sum(len(labels.azimuth) for labels in files.values())
    return f"{n_events:,} train events of {len(files):,} raw file{'s' * (len(files) > 1)}"


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
