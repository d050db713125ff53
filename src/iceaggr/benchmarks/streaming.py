"""How fast shards in an object store on this machine become batches, without and with a cache."""

from __future__ import annotations

import statistics
import tempfile
from pathlib import Path
from typing import Any

import torch

from iceaggr.benchmarks.loader import listed_manifest, load_epoch, sharded_events
from iceaggr.config import BatchConfig
from iceaggr.interfaces import ObjectStore
from iceaggr.local_services import LocalServices
from iceaggr.shards.manifest import ShardEntry, ShardManifest
from iceaggr.storage import UriStore, open_store

FOLDER = "s3://iceaggr/bench"
N_ROUNDS = 3


def bench_streaming() -> dict[str, Any]:
    """Load the same epochs from local files, from the store, and from the store with a cache.

    Starts the object store itself. All variants run in turn, N_ROUNDS times; figures are medians.
    Returns JSON types: events_per_s of each variant, and ratio_to_local of the streaming ones.
    cache_filling starts with an empty cache folder; it finds there what it lists again, so an epoch
    that reads every shard for the first time is no faster than from the store.
    """
    manifest = listed_manifest(sharded_events())
    n_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with (
            tempfile.TemporaryDirectory(prefix="iceaggr-bench-") as scratch,
            LocalServices(Path(scratch) / "services") as addresses,
        ):
            speeds = _measure(UriStore(addresses.env), manifest, Path(scratch))
    finally:
        torch.set_num_threads(n_threads)
    local = speeds["local"]
    return {
        "events_per_s": {name: round(speed) for name, speed in speeds.items()},
        "ratio_to_local": {name: round(speed / local, 3) for name, speed in speeds.items()},
        "n_workers": BatchConfig().n_workers,
    }


def _measure(store: ObjectStore, local: ShardManifest, scratch: Path) -> dict[str, float]:
    remote = _upload(store, local)
    plain = BatchConfig()
    speeds: dict[str, list[float]] = {
        name: [] for name in ("local", "store", "cache_filling", "cache_filled")
    }
    load_epoch(local, plain)  # warms the page cache
    for number in range(N_ROUNDS):
        cached = plain.model_copy(update={"cache_folder": str(scratch / f"cache-{number}")})
        speeds["local"].append(load_epoch(local, plain).events_per_s)
        speeds["store"].append(load_epoch(remote, plain, store).events_per_s)
        speeds["cache_filling"].append(load_epoch(remote, cached, store).events_per_s)
        speeds["cache_filled"].append(load_epoch(remote, cached, store).events_per_s)
    return {name: statistics.median(values) for name, values in speeds.items()}


def _upload(store: ObjectStore, manifest: ShardManifest) -> ShardManifest:
    entries: list[ShardEntry] = []
    for entry in manifest.shards:
        uri = f"{FOLDER}/{entry.blake3}.arrow"
        if not entries or store.stat(uri) is None:
            store.write_bytes(uri, open_store().read_bytes(entry.uri))
        entries.append(entry.model_copy(update={"uri": uri}))
    return manifest.model_copy(update={"shards": tuple(entries)})
