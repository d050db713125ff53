"""Sharding one work unit: raw parquet -> shards, sketches and quarantine, each under its own key.

Everything made from one raw file lies in a folder named by a hash of all that decides its content,
and the manifest is written last. So a retried, doubled or killed run leaves the same objects, and
a file that was sharded before is recognised.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

import numpy as np

from iceaggr.config import DataConfig
from iceaggr.detector import Detector
from iceaggr.events.cleaning import Account, clean
from iceaggr.events.grouping import sort_by_dom
from iceaggr.events.joining import take_range
from iceaggr.events.label_reading import LabelReading
from iceaggr.events.layout import load_detector
from iceaggr.events.meta import EventTable, read_event_tables
from iceaggr.events.pulses import stream_pulses
from iceaggr.events.reading import check_sensor_width, missing_meta_rows
from iceaggr.events.schema import reading_again
from iceaggr.events.workspace import keep_freed_memory
from iceaggr.interfaces import ObjectStore
from iceaggr.shards.format import SPLITS
from iceaggr.shards.manifest import ShardEntry, ShardManifest, SourceFile, Split
from iceaggr.shards.merging import merge_manifests
from iceaggr.shards.planned import PlannedFile, changed_after_plan, check_unchanged
from iceaggr.shards.planning import ShardPlan, load_work_unit
from iceaggr.shards.quarantine import QuarantineFile
from iceaggr.shards.reuse import as_planned, content_key, reusable_manifest
from iceaggr.shards.shard_writer import ShardWriter
from iceaggr.shards.sketches import split_sketches_to_json
from iceaggr.shards.split import split_idx

Progress = Callable[[float, float], None]


@dataclass(frozen=True)
class _Unit:
    """What the raw files of one work unit share."""

    store: ObjectStore
    plan: ShardPlan
    tables: dict[int, EventTable]
    detector: Detector
    config: DataConfig
    store_uri: str


@dataclass(frozen=True)
class _Job:
    """One raw file to shard."""

    store: ObjectStore
    file: PlannedFile
    table: EventTable
    n_pulses_in_file: int
    detector: Detector
    config: DataConfig
    plan: ShardPlan
    folder_uri: str


def shard_unit(
    store: ObjectStore,
    work_unit: str,
    store_uri: str,
    config: DataConfig,
    on_progress: Progress | None = None,
) -> ShardManifest:
    """Shard the raw files of one work unit into <store_uri>/shards/; what is there is reused.

    on_progress: called with events done and events in all. The process keeps freed memory from now
    on, see `keep_freed_memory`.
    Raises: RawDataError for structural damage, StorageError, DetectorError, ShardError.
    """
    keep_freed_memory()
    plan, files = load_work_unit(store, work_unit)
    detector = load_detector(store, plan.geometry_uri)
    check_sensor_width(detector, plan.geometry_uri)
    reading = LabelReading.of(config.label_reading)
    tables = _tables_as_planned(store, plan, [file.batch_id for file in files], reading)
    unit = _Unit(store, plan, tables, detector, config, store_uri.rstrip("/"))
    n_events = sum(file.n_events_used for file in files)
    n_done = 0
    manifests = []
    for file in files:
        job = _job(unit, file)
        manifest = reusable_manifest(store, job.folder_uri)
        manifest = manifest or _shard_file(job, n_done, n_events, on_progress)
        manifests.append(as_planned(manifest, plan, file, detector, reading))
        n_done += file.n_events_used
        if on_progress:
            on_progress(n_done, n_events)
    return merge_manifests(manifests)


def _tables_as_planned(
    store: ObjectStore, plan: ShardPlan, batch_ids: list[int], reading: LabelReading
) -> dict[int, EventTable]:
    """Read the meta file that was planned: all work units take their labels from one."""
    check_unchanged(store, plan.meta)
    tables = read_event_tables(store, plan.meta.uri, batch_ids, plan.labelled, reading)
    check_unchanged(store, plan.meta)
    return tables


def _job(unit: _Unit, file: PlannedFile) -> _Job:
    plan = unit.plan
    if file.batch_id not in unit.tables:
        raise missing_meta_rows(file.uri, file.batch_id, plan.meta.uri)
    full = unit.tables[file.batch_id]
    if full.n_events != file.n_events:
        raise changed_after_plan(
            plan.meta.uri, f"{full.n_events} events", f"{file.n_events} events"
        )
    check_unchanged(unit.store, file)
    key = content_key(file, full, unit.detector, unit.config)
    return _Job(
        store=unit.store,
        file=file,
        table=full.head(file.n_events_used),
        n_pulses_in_file=int(full.n_pulses.sum()),
        detector=unit.detector,
        config=unit.config,
        plan=plan,
        folder_uri=f"{unit.store_uri}/shards/{key}",
    )


@reading_again
def _shard_file(
    job: _Job, n_done: int, n_events: int, on_progress: Progress | None
) -> ShardManifest:
    account = Account()
    config = job.config
    writer = ShardWriter(job.store, job.folder_uri, job.detector, config.n_events_per_shard)
    quarantine_uri = ""
    with tempfile.TemporaryDirectory(prefix="iceaggr-") as scratch:
        quarantine_path = Path(scratch) / "quarantine.parquet"
        try:
            with QuarantineFile(quarantine_path) as quarantine:
                for n_read in _stream_shards(job, account, writer, quarantine):
                    if on_progress:
                        on_progress(n_done + n_read, n_events)
            entries, sketches = writer.finish()
        except BaseException:
            writer.abort()
            raise
        if quarantine_path.exists():
            quarantine_uri = f"{job.folder_uri}/quarantine.parquet"
            job.store.upload(quarantine_path, quarantine_uri)
    sketch_uri = f"{job.folder_uri}/sketch.json"
    ordered = {split: sketches[split] for split in SPLITS if split in sketches}
    job.store.write_bytes(sketch_uri, split_sketches_to_json(ordered).encode())
    check_unchanged(job.store, job.file)
    source = _source_file(job, account, sketch_uri, quarantine_uri)
    manifest = _manifest(job, source, entries)
    job.store.write_bytes(f"{job.folder_uri}/manifest.json", manifest.to_json().encode())
    return manifest


def _stream_shards(
    job: _Job, account: Account, writer: ShardWriter, quarantine: QuarantineFile
) -> Iterator[int]:
    """Pass the file through cleaning, grouping and splitting; give the events read so far."""
    config = job.config
    for chunk in stream_pulses(job.store, job.file.uri, job.n_pulses_in_file, job.table):
        cleaned = clean(chunk, job.table, job.detector, job.plan.labelled, account)
        quarantine.add(chunk, cleaned, job.table)
        if len(cleaned.events):
            split = split_idx(
                job.table.event_id[cleaned.events],
                config.split_salt,
                config.validation_share,
                config.test_share,
            )
            # it sorts by split too, so each split is one slice of the result
            events = sort_by_dom(cleaned, job.table, job.detector, np.argsort(split, kind="stable"))
            bounds = np.concatenate([[0], np.cumsum(np.bincount(split, minlength=len(SPLITS)))])
            for idx, name in enumerate(get_args(Split)):
                if bounds[idx + 1] > bounds[idx]:
                    writer.add(name, take_range(events, bounds[idx], bounds[idx + 1]))
        yield chunk.stop_event


def _source_file(job: _Job, account: Account, sketch_uri: str, quarantine_uri: str) -> SourceFile:
    n_rejected = sum(account.rejected_pulses.values())
    assert account.n_pulses_in == account.n_pulses_kept + n_rejected
    assert account.n_pulses_in == int(job.table.n_pulses.sum())
    assert account.n_events_in == job.table.n_events
    return SourceFile(
        uri=job.file.uri,
        etag=job.file.etag,
        n_bytes=job.file.n_bytes,
        content_key=job.folder_uri.rsplit("/", 1)[-1],
        n_events_in=account.n_events_in,
        n_events_kept=account.n_events_kept,
        n_pulses_in=account.n_pulses_in,
        n_pulses_kept=account.n_pulses_kept,
        rejected_events=dict(account.rejected_events),
        rejected_pulses=dict(account.rejected_pulses),
        sketch_uri=sketch_uri,
        quarantine_uri=quarantine_uri,
    )


def _manifest(job: _Job, source: SourceFile, entries: list[ShardEntry]) -> ShardManifest:
    return ShardManifest(
        geometry_uri=job.plan.geometry_uri,
        detector_digest=job.detector.digest(),
        labelled=job.plan.labelled,
        label_reading=LabelReading.of(job.config.label_reading).words,
        notes=job.plan.notes,
        split_salt=job.config.split_salt,
        validation_share=job.config.validation_share,
        test_share=job.config.test_share,
        n_events_per_shard=job.config.n_events_per_shard,
        source_files=(source,),
        shards=tuple(entries),
    )
