"""What sharding wrote and later steps read: shards, manifests, sketches, plans."""

from __future__ import annotations

import json

import numpy as np

from iceaggr.config import DataConfig, NormalizationConfig
from iceaggr.errors import NormalizationError
from iceaggr.events.dom_events import DomEvents
from iceaggr.shards.encoding import decode_shard, encode_shard
from iceaggr.shards.manifest import ShardManifest, merge_manifests, parse_manifest
from iceaggr.shards.planning import load_work_unit, plan_shards
from iceaggr.shards.sketches import merge_sketches, split_sketches_from_json
from iceaggr.shards.statistics import compute_statistics
from iceaggr.shards.writing import shard_unit
from tests.events.raw_tables import meta_frame
from tests.fuzz.contracts import check_events
from tests.fuzz.damage import damage_arrow, damage_json
from tests.fuzz.memory_store import MemoryStore
from tests.fuzz.raw_targets import (
    COUNTS,
    GEOMETRY,
    RAW,
    parquet_bytes,
    sound_pulses,
)
from tests.fuzz.target import Target


def small_events(charge_type: type = np.float32) -> DomEvents:
    """Three events of two, one and three DOMs."""
    return DomEvents(
        event_id=np.array([5, 3, 9]),
        azimuth=np.array([0.5, 6.0, 3.0]),
        zenith=np.array([1.0, 3.0, 0.2]),
        event_dom_offsets=np.array([0, 2, 3, 6]),
        sensor_id=np.array([1, 4, 0, 2, 5, 11], np.int32),
        dom_pulse_offsets=np.array([0, 2, 3, 4, 7, 8, 9]),
        time_ns=np.array([10, 12, 5, 7, 1, 1, 2, 9, 3]),
        charge_pe=np.linspace(0.1, 7, 9).astype(charge_type),
        auxiliary=np.array([1, 0, 1, 1, 0, 0, 1, 0, 1], bool),
    )


def small_sharding() -> tuple[MemoryStore, list[str], ShardManifest]:
    """Shard five small events; gives the store, the work units and the manifest."""
    files = {
        f"{RAW}/train_meta.parquet": parquet_bytes(meta_frame(COUNTS)),
        f"{RAW}/train/batch_1.parquet": parquet_bytes(sound_pulses()),
        f"{RAW}/sensor_geometry.csv": GEOMETRY.encode(),
    }
    store, config = MemoryStore(files), DataConfig(n_events_per_shard=2)
    units = plan_shards(store, RAW, config, "file:///out")
    manifests = [shard_unit(store, unit, "file:///out", config) for unit in units]
    return store, units, merge_manifests(manifests)


def shard() -> Target:
    def read(data: bytes) -> None:
        events = decode_shard(data, "file:///shard.arrow")
        check_events(events)
        encode_shard(events)

    seeds = (encode_shard(small_events()), encode_shard(small_events(np.float64)))
    return Target("shard", seeds, damage_arrow, read)


def sealed(data: bytes) -> bytes:
    """Write the right seal into a damaged manifest, or no reader would look any further."""
    try:
        document = json.loads(data)
        document.pop("content_sha256")
        text = ShardManifest.model_validate(document).to_json()
        document["content_sha256"] = json.loads(text)["content_sha256"]
        return json.dumps(document).encode()
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return data


def manifest() -> Target:
    def read(data: bytes) -> None:
        found = parse_manifest(sealed(data), "file:///manifest.json")
        assert parse_manifest(found.to_json(), "written again") == found
        merged = merge_manifests([found])
        assert merged.digest() == found.digest()
        for source in found.source_files:
            assert source.n_pulses_kept >= 0
            assert source.n_pulses_in == source.n_pulses_kept + source.n_pulses_rejected
            n_rejected = sum(source.rejected_events.values())
            assert source.n_events_in == source.n_events_kept + n_rejected
        n_kept = sum(source.n_pulses_kept for source in found.source_files)
        assert sum(e.n_pulses for e in found.shards) == n_kept or not found.source_files

    return Target("manifest", (small_sharding()[2].to_json().encode(),), damage_json, read)


def sketch() -> Target:
    store, _, whole = small_sharding()
    [source] = whole.source_files

    def read(data: bytes) -> None:
        sketches = split_sketches_from_json(data, "file:///sketch.json")
        for found in sketches.values():
            merged = merge_sketches([found, found])
            assert merged.n_events == 2 * found.n_events >= 0
            assert merged.n_pulses == 2 * found.n_pulses >= 0
            for feature in merged.features.values():
                assert np.isfinite([feature.mean, feature.m2, feature.weight]).all()
                assert (feature.histogram >= 0).all()
                assert np.isfinite(feature.std)
        try:
            compute_statistics(whole, sketches, NormalizationConfig())
        except NormalizationError:
            return

    return Target("sketch", (store.read_bytes(source.sketch_uri),), damage_json, read)


def plan() -> Target:
    store, units, _ = small_sharding()
    uri = units[0].rpartition("#")[0]

    def read(data: bytes) -> None:
        damaged = MemoryStore(store.objects | {uri: data})
        found, files = load_work_unit(damaged, units[0])
        assert all(0 <= f.n_events_used <= f.n_events for f in files)
        config = DataConfig(n_events_per_shard=2)
        made = shard_unit(damaged, units[0], "file:///out", config)
        assert made.labelled == found.labelled
        assert sum(s.n_events_in for s in made.source_files) == sum(f.n_events_used for f in files)

    return Target("plan", (store.read_bytes(uri),), damage_json, read)
