"""Sharding one work unit: raw parquet -> shards, sketches and quarantine, each under its own key.

Everything made from one raw file lies in a folder named by a hash of all that decides its content,
and the manifest is written last. So a retried, doubled or killed run leaves the same objects, and
a file that was sharded before is recognised.
"""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from iceaggr.config import DataConfig
from iceaggr.detector import Detector
from iceaggr.errors import ShardError
from iceaggr.events.cleaning import EVENT_REASONS, PULSE_REASONS, Account, CleanChunk, clean
from iceaggr.events.dom_events import keep_freed_memory, take_range
from iceaggr.events.grouping import sort_by_dom
from iceaggr.events.label_reading import AS_DOCUMENTED, LabelReading
from iceaggr.events.layout import load_detector
from iceaggr.events.meta import EventTable, read_event_tables
from iceaggr.events.pulses import PulseChunk, stream_pulses
from iceaggr.events.reading import check_sensor_width, missing_meta_rows
from iceaggr.events.schema import PULSE_VALUES, open_parquet, reading_again
from iceaggr.interfaces import ObjectStore
from iceaggr.paths import ShardPaths, WorkPaths
from iceaggr.shards.encoding import FORMAT_VERSION, SPLITS
from iceaggr.shards.manifest import (
    MANIFEST_VERSION,
    ShardEntry,
    ShardManifest,
    SourceFile,
    Split,
    merge_manifests,
    parse_manifest,
)
from iceaggr.shards.planning import (
    PlannedFile,
    ShardPlan,
    changed_after_plan,
    check_unchanged,
    load_work_unit,
)
from iceaggr.shards.shard_writer import ShardWriter
from iceaggr.shards.sketches import SKETCH_VERSION, split_sketches_to_json
from iceaggr.shards.split import split_idx

# Recognising what was sharded before: the key that names a raw file's shards, and the check.

SHARDING_VERSION = 5
"""Raise it whenever the same raw file would give other shards, sketches or rejections."""


def content_key(
    file: PlannedFile, table: EventTable, detector: Detector, config: DataConfig
) -> str:
    """Hash all that decides the shards of a raw file, and nothing else: 32 hex digits.

    table: all meta rows of the file, its labels as they are read: another reading is another key.
    The URI is left out: a file that moves keeps its shards.
    """
    decisive = [
        [FORMAT_VERSION, SHARDING_VERSION, SKETCH_VERSION],
        [file.etag, file.n_bytes, table.digest(), detector.digest()],
        [config.split_salt, config.validation_share, config.test_share],
        [config.n_events_per_shard, file.n_events_used],
    ]
    return hashlib.sha256(json.dumps(decisive).encode()).hexdigest()[:32]


def reusable_manifest(store: ObjectStore, folder_uri: str) -> ShardManifest | None:
    """Read the manifest of a content key if all that it names is there, else None.

    Sizes are compared, not hashes: reading a shard verifies its hash anyway.
    Raises: StorageError.
    """
    uri = ShardPaths(folder_uri).manifest_uri
    if store.stat(uri) is None:
        return None
    try:
        manifest = parse_manifest(store.read_bytes(uri), uri)
    except ShardError:
        return None  # half a manifest cannot happen, a damaged one can: make it again
    present = {stored.uri: stored.n_bytes for stored in store.list(f"{folder_uri}/")}
    source = manifest.source_files[0]
    needed = {source.sketch_uri, source.quarantine_uri} - {""}
    if not needed <= present.keys():
        return None
    if any(present.get(entry.uri) != entry.n_bytes for entry in manifest.shards):
        return None
    return manifest.model_copy(
        update={"source_files": (source.model_copy(update={"reused": True}),)}
    )


def as_planned(
    manifest: ShardManifest,
    plan: ShardPlan,
    file: PlannedFile,
    detector: Detector,
    reading: LabelReading = AS_DOCUMENTED,
) -> ShardManifest:
    """Name a reused manifest's source as it is called today, and its detector if it does not yet.

    detector: the one in the content key under which the manifest was found.  reading: of today;
    two readings that give the same labels have the same shards.
    """
    source = manifest.source_files[0].model_copy(update={"uri": file.uri})
    update = {
        "format_version": MANIFEST_VERSION,
        "source_files": (source,),
        "geometry_uri": plan.geometry_uri,
        "detector_digest": detector.digest(),
        "label_reading": reading.words,
        "notes": plan.notes,
    }
    return manifest.model_copy(update=update)


# The quarantine of a raw file: every rejected pulse and event with its reason, as parquet.

SCHEMA = pa.schema(
    [
        pa.field("event_id", pa.int64(), nullable=False),
        pa.field("event_reason", pa.string()),
        pa.field("pulse_index", pa.int64()),
        pa.field("pulse_reason", pa.string()),
        pa.field("sensor_id", pa.int64()),
        *(pa.field(value.raw_name, value.stored or pa.float64()) for value in PULSE_VALUES),
        pa.field("azimuth", pa.float64()),
        pa.field("zenith", pa.float64()),
    ]
)
"""One row per rejected pulse; a rejected event without pulses has one row without pulse columns.
The label is the event's, as it was read: radians. Quarantines of before have none."""
MAX_LABELS_READ = 20_000


class QuarantineFile:
    """Writes rejected rows to a local parquet file, which exists only if there are any."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._writer: Any = None

    def close(self) -> None:
        """Complete the file, if there is one."""
        if self._writer is not None:
            self._writer.close()

    def add(self, chunk: PulseChunk, cleaned: CleanChunk, table: EventTable) -> None:
        """Write what was rejected from one chunk."""
        if cleaned.pulse_reason is None:
            return
        for rows in (_pulse_rows(chunk, cleaned, table), _event_rows(chunk, cleaned, table)):
            if not rows.num_rows:
                continue
            if self._writer is None:
                self._writer = pq.ParquetWriter(self.path, SCHEMA)
            self._writer.write_table(rows)


@reading_again
def read_labels_out_of_range(store: ObjectStore, uri: str) -> pd.DataFrame:
    """Read the events rejected for their label: event_id, azimuth and zenith as they were read.

    Returns one row per event, the first 20,000 or so; none of a quarantine without labels.
    Raises: RawDataError if the file is damaged; StorageError.
    """
    columns = ["event_id", "azimuth", "zenith"]
    parts = [pd.DataFrame(columns=columns)]
    with open_parquet(store, uri) as file:
        if "azimuth" in file.schema_arrow.names:
            for rows in file.iter_batches(columns=[*columns, "event_reason"]):
                found = rows.filter(pc.equal(rows.column("event_reason"), "label_out_of_range"))
                parts.append(found.select(columns).to_pandas().drop_duplicates("event_id"))
                if sum(map(len, parts)) >= MAX_LABELS_READ:
                    break
    filled = [part for part in parts if len(part)] or parts[:1]
    return pd.concat(filled).drop_duplicates("event_id", ignore_index=True)


def _pulse_rows(chunk: PulseChunk, cleaned: CleanChunk, table: EventTable) -> Any:
    assert cleaned.pulse_reason is not None
    rows = np.flatnonzero(cleaned.pulse_reason >= 0)
    n_pulses = table.n_pulses[chunk.first_event : chunk.stop_event]
    event = np.repeat(np.arange(len(n_pulses)), n_pulses)[rows]
    pulses = chunk.pulses.take(rows)
    return pa.table(
        {
            "event_id": pulses.event_id,
            "event_reason": _names(cleaned.event_reason[event], EVENT_REASONS),
            "pulse_index": chunk.first_pulse + rows,
            "pulse_reason": _names(cleaned.pulse_reason[rows], PULSE_REASONS),
            "sensor_id": pulses.sensor_id.astype(np.int64),
            **{value.raw_name: getattr(pulses, value.name) for value in PULSE_VALUES},
            "azimuth": table.azimuth[chunk.first_event + event],
            "zenith": table.zenith[chunk.first_event + event],
        },
        schema=SCHEMA,
    )


def _event_rows(chunk: PulseChunk, cleaned: CleanChunk, table: EventTable) -> Any:
    n_pulses = table.n_pulses[chunk.first_event : chunk.stop_event]
    rows = np.flatnonzero((cleaned.event_reason >= 0) & (n_pulses == 0))
    columns = {name: pa.nulls(len(rows), SCHEMA.field(name).type) for name in SCHEMA.names}
    columns["event_id"] = pa.array(table.event_id[chunk.first_event + rows])
    columns["event_reason"] = _names(cleaned.event_reason[rows], EVENT_REASONS)
    columns["azimuth"] = pa.array(table.azimuth[chunk.first_event + rows])
    columns["zenith"] = pa.array(table.zenith[chunk.first_event + rows])
    return pa.table(columns, schema=SCHEMA)


def _names(reason: np.ndarray, names: tuple[str, ...]) -> Any:
    return pa.array(np.array([*names, None])[reason], pa.string())  # -1 is the last: none


Progress = Callable[[float, float], None]


@dataclass(frozen=True)
class _Job:
    """One raw file to shard."""

    store: ObjectStore
    plan: ShardPlan
    detector: Detector
    config: DataConfig
    file: PlannedFile
    table: EventTable
    n_pulses_in_file: int
    paths: ShardPaths


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
    n_events = sum(file.n_events_used for file in files)
    n_done = 0
    manifests = []
    for file in files:
        job = _job(store, plan, detector, config, file, tables, WorkPaths(store_uri))
        manifest = reusable_manifest(store, job.paths.uri)
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


def _job(
    store: ObjectStore,
    plan: ShardPlan,
    detector: Detector,
    config: DataConfig,
    file: PlannedFile,
    tables: dict[int, EventTable],
    folder: WorkPaths,
) -> _Job:
    if file.batch_id not in tables:
        raise missing_meta_rows(file.uri, file.batch_id, plan.meta.uri)
    full = tables[file.batch_id]
    if full.n_events != file.n_events:
        found, expected = f"{full.n_events} events", f"{file.n_events} events"
        raise changed_after_plan(plan.meta.uri, found, expected)
    check_unchanged(store, file)
    table, n_pulses = full.head(file.n_events_used), int(full.n_pulses.sum())
    paths = folder.shards(content_key(file, full, detector, config))
    return _Job(store, plan, detector, config, file, table, n_pulses, paths)


@reading_again
def _shard_file(
    job: _Job, n_done: int, n_events: int, on_progress: Progress | None
) -> ShardManifest:
    account = Account()
    config = job.config
    writer = ShardWriter(job.store, job.paths.uri, job.detector, config.n_events_per_shard)
    quarantine_uri = ""
    with tempfile.TemporaryDirectory(prefix="iceaggr-") as scratch:
        quarantine_path = Path(scratch) / "rejected.parquet"
        try:
            with closing(QuarantineFile(quarantine_path)) as quarantine:
                for n_read in _stream_shards(job, account, writer, quarantine):
                    if on_progress:
                        on_progress(n_done + n_read, n_events)
            entries, sketches = writer.finish()
        except BaseException:
            writer.abort()
            raise
        if quarantine_path.exists():
            quarantine_uri = job.paths.quarantine_uri
            job.store.upload(quarantine_path, quarantine_uri)
    sketch_uri = job.paths.sketch_uri
    ordered = {split: sketches[split] for split in SPLITS if split in sketches}
    job.store.write_bytes(sketch_uri, split_sketches_to_json(ordered).encode())
    check_unchanged(job.store, job.file)
    source = _source_file(job, account, sketch_uri, quarantine_uri)
    manifest = _manifest(job, source, entries)
    job.store.write_bytes(job.paths.manifest_uri, manifest.to_json().encode())
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
                None if job.table.is_test is None else job.table.is_test[cleaned.events],
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
        content_key=job.paths.uri.rsplit("/", 1)[-1],
        **{name: value for name, value in vars(account).items() if name != "rejected_event_ids"},
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
        official_split=job.table.is_test is not None,
        n_events_per_shard=job.config.n_events_per_shard,
        source_files=(source,),
        shards=tuple(entries),
    )
