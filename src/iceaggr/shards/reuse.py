"""Recognising what was sharded before: the key that names a raw file's shards, and the check."""

from __future__ import annotations

import hashlib
import json

from iceaggr.config import DataConfig
from iceaggr.detector import Detector
from iceaggr.errors import ShardError
from iceaggr.events.label_reading import AS_DOCUMENTED, LabelReading
from iceaggr.events.meta import EventTable
from iceaggr.interfaces import ObjectStore
from iceaggr.shards.format import FORMAT_VERSION
from iceaggr.shards.manifest import MANIFEST_VERSION, ShardManifest, parse_manifest
from iceaggr.shards.planned import PlannedFile
from iceaggr.shards.planning import ShardPlan
from iceaggr.shards.sketches import SKETCH_VERSION

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
    uri = f"{folder_uri}/manifest.json"
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
