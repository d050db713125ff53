"""How fast shards in an object store on this machine become batches, without and with a cache."""

from __future__ import annotations

import shutil
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import torch

from benchmarks.data_path import listed_manifest, load_epoch, sharded_events
from iceaggr.config import BatchConfig
from iceaggr.interfaces import ObjectStore
from iceaggr.local_services.services import LocalServices
from iceaggr.shards.manifest import ShardEntry, ShardManifest
from iceaggr.storage import UriStore, open_store

FOLDER = "s3://iceaggr/bench"
N_ROUNDS = 5
STORE_PROGRAM = "weed"


@dataclass(frozen=True)
class Transfer:
    """A pass over all shards: events per second, microseconds of processor time per event.

    cpu_us is this process's time, store_cpu_us the object store's.
    """

    events_per_s: float
    cpu_us: float
    store_cpu_us: float


def bench_streaming() -> dict[str, Any]:
    """Load the same epochs from local files, from the store, and from the store with a cache.

    Starts the object store itself. Every epoch reads each shard once, so cache_filling, which
    starts with an empty folder, finds nothing there. download only takes the bytes, with as many
    threads as there are workers. All variants run in turn, N_ROUNDS times; figures are medians.
    Returns JSON types: events_per_s of each variant, cpu_us_per_event of this process and
    store_cpu_us_per_event of the store, ratio_to_local of the streaming ones, and
    ratio_to_local_by_cpu: what the ratio of "store" would be if every pass kept the cores equally
    busy, from the processor time of local loading and of a download, the store's own included.
    """
    manifest = listed_manifest(sharded_events(), n_listings=1)
    n_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with (
            tempfile.TemporaryDirectory(prefix="iceaggr-bench-") as scratch,
            LocalServices(Path(scratch) / "services") as addresses,
        ):
            found = _measure(UriStore(addresses.env), manifest, Path(scratch))
    finally:
        torch.set_num_threads(n_threads)
    local, download = found["local"], found["download"]
    both = local.cpu_us + download.cpu_us + download.store_cpu_us
    return {
        "events_per_s": {name: round(one.events_per_s) for name, one in found.items()},
        "cpu_us_per_event": {name: round(one.cpu_us, 2) for name, one in found.items()},
        "store_cpu_us_per_event": {name: round(one.store_cpu_us, 2) for name, one in found.items()},
        "ratio_to_local": {
            name: round(one.events_per_s / local.events_per_s, 3)
            for name, one in found.items()
            if name not in ("local", "download")
        },
        "ratio_to_local_by_cpu": round(local.cpu_us / both, 3),
        "n_events": manifest.n_events("train"),
        "n_workers": BatchConfig().n_workers,
    }


def _measure(store: ObjectStore, local: ShardManifest, scratch: Path) -> dict[str, Transfer]:
    remote = _upload(store, local)
    plain = BatchConfig()
    n_events = local.n_events("train")
    found: dict[str, list[Transfer]] = {}
    load_epoch(local, plain)  # warms the page cache
    cached = plain.model_copy(update={"cache_folder": str(scratch / "cache")})
    for _ in range(N_ROUNDS):
        variants: dict[str, Callable[[], object]] = {
            "local": lambda: load_epoch(local, plain),
            "download": lambda: _download(store, remote),
            "store": lambda: load_epoch(remote, plain, store),
            "cache_filling": lambda: load_epoch(remote, cached, store),
            "cache_filled": lambda: load_epoch(remote, cached, store),
        }
        for name, run in variants.items():
            if name == "cache_filling":
                # at once: a virtual machine gives free memory back, and new pages cost it dearly
                shutil.rmtree(scratch / "cache", ignore_errors=True)
            found.setdefault(name, []).append(_timed(run, n_events))
    return {name: _median(passes) for name, passes in found.items()}


def _timed(run: Callable[[], object], n_events: int) -> Transfer:
    store_before, own_before, began = _store_cpu_s(), time.process_time(), time.perf_counter()
    run()
    seconds = time.perf_counter() - began
    return Transfer(
        events_per_s=n_events / seconds,
        cpu_us=1e6 * (time.process_time() - own_before) / n_events,
        store_cpu_us=1e6 * (_store_cpu_s() - store_before) / n_events,
    )


def _median(passes: Sequence[Transfer]) -> Transfer:
    columns = zip(*(vars(one).values() for one in passes), strict=True)
    return Transfer(*(statistics.median(column) for column in columns))


def _store_cpu_s() -> float:
    """Add up the processor time of the object store that this process started."""
    times = [
        child.cpu_times()
        for child in psutil.Process().children(recursive=True)
        if child.name() == STORE_PROGRAM
    ]
    return sum(one.user + one.system for one in times)


def _download(store: ObjectStore, manifest: ShardManifest) -> int:
    """Take the bytes of every shard and do nothing with them."""
    with ThreadPoolExecutor(BatchConfig().n_workers) as threads:
        blobs = threads.map(lambda e: len(store.read_bytes(e.uri, False)), manifest.shards)
        return sum(blobs)


def _upload(store: ObjectStore, manifest: ShardManifest) -> ShardManifest:
    entries: list[ShardEntry] = []
    for entry in manifest.shards:
        uri = f"{FOLDER}/{entry.blake3}.arrow"
        store.write_bytes(uri, open_store().read_bytes(entry.uri))
        entries.append(entry.model_copy(update={"uri": uri}))
    return manifest.model_copy(update={"shards": tuple(entries)})
