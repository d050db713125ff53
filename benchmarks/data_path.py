"""How fast raw events become shards, and shards minibatches; and the input of all benchmarks."""

from __future__ import annotations

import hashlib
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from iceaggr.batches import EventBatch, EventLoader
from iceaggr.config import BatchConfig, DataConfig
from iceaggr.detector import icecube86
from iceaggr.events import pulses
from iceaggr.events.layout import GEOMETRY_FILE
from iceaggr.events.schema import PULSE_COLUMNS, open_parquet
from iceaggr.events.simulation import SimulationConfig, simulate
from iceaggr.interfaces import ObjectStore
from iceaggr.models.normalizer import Normalizer
from iceaggr.normalization_document import Normalization
from iceaggr.shards import shard_writer
from iceaggr.shards.manifest import ShardManifest, load_manifest, merge_manifests
from iceaggr.shards.planning import plan_shards
from iceaggr.shards.writing import shard_unit
from iceaggr.storage import open_store

# The input: simulated raw events, made once and kept in the user's cache.

_INPUT_VERSION = 2


def cache_folder() -> Path:
    """Find the folder for benchmark data: $XDG_CACHE_HOME/iceaggr or ~/.cache/iceaggr."""
    root = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(root) / "iceaggr" / "bench"


def simulated_raw_events(n_events: int) -> str:
    """Give the URI of one raw file of events with the simulation's default mix."""
    # below a block or two, starting processes costs more than the events
    # the data of the figures in docs/benchmarks.md, which stay comparable
    config = SimulationConfig(
        preset="easy",
        n_events=n_events,
        n_events_per_file=n_events,
        n_processes=0 if n_events > 1000 else 1,
    )
    folder = cache_folder() / f"simulated-{_key(config.model_dump_json())}"
    if not folder.exists():
        partial = folder.with_name(f"{folder.name}-{os.getpid()}")
        simulate(open_store(), partial.as_uri(), config)
        _publish(partial, folder)
    return folder.as_uri()


def repeated_raw_events(n_simulated: int, n_repeats: int) -> str:
    """Give the URI of one raw file: simulated events, repeated under new event ids.

    Repeating makes a long file in seconds with the simulation's mix of sizes; every repeat is
    decoded, sorted and written again, so the cost per pulse is that of different events.
    """
    source = Path(simulated_raw_events(n_simulated).removeprefix("file://"))
    folder = cache_folder() / f"repeated-{_key(source.name, n_repeats)}"
    if not folder.exists():
        partial = folder.with_name(f"{folder.name}-{os.getpid()}")
        _repeat(source, partial, n_repeats)
        _publish(partial, folder)
    return folder.as_uri()


def _key(*made_of: object) -> str:
    return hashlib.sha256(repr([_INPUT_VERSION, *made_of]).encode()).hexdigest()[:12]


def _publish(partial: Path, folder: Path) -> None:
    try:
        partial.rename(folder)
    except OSError:
        if not folder.exists():  # else another benchmark has made the same folder meanwhile
            raise
    shutil.rmtree(partial, ignore_errors=True)


def _repeat(source: Path, folder: Path, n_repeats: int) -> None:
    pulses = pd.read_parquet(source / "train" / "batch_1.parquet").reset_index()
    pulses = pulses.drop(columns=["index"], errors="ignore")
    meta = pd.read_parquet(source / "train_meta.parquet")
    stride = int(meta["event_id"].max()) + 1
    steps = range(n_repeats)
    (folder / "train").mkdir(parents=True, exist_ok=True)
    shutil.copyfile(source / GEOMETRY_FILE, folder / GEOMETRY_FILE)
    long = pd.concat([pulses.assign(event_id=pulses["event_id"] + stride * k) for k in steps])
    long.to_parquet(folder / "train" / "batch_1.parquet", index=False)
    del long
    shift = len(pulses) * np.arange(n_repeats)
    metas = [
        meta.assign(
            event_id=meta["event_id"] + stride * k,
            first_pulse_index=meta["first_pulse_index"] + shift[k],
            last_pulse_index=meta["last_pulse_index"] + shift[k],
        )
        for k in steps
    ]
    pd.concat(metas).to_parquet(folder / "train_meta.parquet", index=False)


def peak_memory_gib(code: str, *arguments: str) -> float:
    """Run code in a fresh process, so that its peak is that of the code alone."""
    # VmHWM because ru_maxrss starts at the peak of the process that started it
    peak = (
        'lines = open("/proc/self/status").read().splitlines()\n'
        'print(next(line.split()[1] for line in lines if line.startswith("VmHWM")))'
    )
    command = [sys.executable, "-c", f"import sys\n{code}\n{peak}", *arguments]
    found = subprocess.run(command, capture_output=True, text=True, check=True, encoding="utf-8")
    return int(found.stdout.split()[-1]) / 2**20


# `iceaggr bench loader`: how fast local shards become complete, normalised batches.

N_SIMULATED, N_REPEATS = 5_000, 24
N_LISTINGS = 2
"""An epoch lists each shard so often, to have as many windows as an epoch of more events."""
N_ROUNDS = 3
WORKER_COUNTS = (0, 1, 2)

_LOAD = """
from iceaggr.config import BatchConfig
from benchmarks.data_path import listed_manifest, load_epoch
load_epoch(listed_manifest(sys.argv[1]), BatchConfig(n_workers=int(sys.argv[2])))
"""


@dataclass(frozen=True)
class Pass:
    """One epoch: events, seconds by the clock and on all cores, seconds waiting, bytes given."""

    n_events: int
    n_pulses: int
    seconds: float
    cpu_s: float
    waiting_s: float
    n_bytes: int

    @property
    def events_per_s(self) -> float:
        """Give the speed."""
        return self.n_events / self.seconds


def bench_loader() -> dict[str, Any]:
    """Load epochs of shuffled batches of 256 events and normalise each, with one torch thread.

    Worker counts are measured in turn, N_ROUNDS times; figures are medians. The memory copy is one
    of the bytes read from shards and of the bytes given in batches, on one core.
    Returns JSON types: events_per_s with the configured number of workers and by number of
    workers, cpu_us_per_event (all cores together; hardly moved by a busy machine, unlike the
    speed), ratio_to_memory_copy, share_waiting (of the time, for the next batch), peak_memory_gib
    of a fresh process, and what was loaded.
    """
    manifest_uri = sharded_events()
    manifest = listed_manifest(manifest_uri)
    n_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        load_epoch(manifest, BatchConfig(n_workers=0))  # warms the page cache
        passes: dict[int, list[Pass]] = {n: [] for n in WORKER_COUNTS}
        copies = []
        for _ in range(N_ROUNDS):
            for n_workers, done in passes.items():
                done.append(load_epoch(manifest, BatchConfig(n_workers=n_workers)))
            copies.append(_copy_seconds(manifest, passes[0][0].n_bytes))
    finally:
        torch.set_num_threads(n_threads)
    n_default = min(BatchConfig().n_workers, max(WORKER_COUNTS))
    default = passes[n_default]
    speed = {n: statistics.median(p.events_per_s for p in done) for n, done in passes.items()}
    cpu_s = statistics.median(p.cpu_s / p.n_events for p in default)
    ratio = statistics.median(p.seconds for p in default) / statistics.median(copies)
    one = default[0]
    return {
        "events_per_s": round(speed[n_default]),
        "events_per_s_by_n_workers": {str(n): round(value) for n, value in speed.items()},
        "n_workers": n_default,
        "cpu_us_per_event": round(1e6 * cpu_s, 2),
        "ratio_to_memory_copy": round(ratio, 2),
        "share_waiting": round(statistics.median(p.waiting_s / p.seconds for p in default), 3),
        "peak_memory_gib": round(peak_memory_gib(_LOAD, manifest_uri, str(n_default)), 3),
        "n_events": one.n_events,
        "pulses_per_event": round(one.n_pulses / one.n_events, 1),
        "batch_bytes_per_event": round(one.n_bytes / one.n_events),
        "machine": f"{platform.machine()}, Python {platform.python_version()}",
    }


def listed_manifest(manifest_uri: str, n_listings: int | None = None) -> ShardManifest:
    """Read a manifest and list its train shards N_LISTINGS times, or as often as asked for."""
    manifest = load_manifest(open_store(), manifest_uri)
    n_listings = N_LISTINGS if n_listings is None else n_listings
    return manifest.model_copy(update={"shards": manifest.shards_of("train") * n_listings})


def load_epoch(
    manifest: ShardManifest, config: BatchConfig, store: ObjectStore | None = None
) -> Pass:
    """Load and normalise one epoch, from local files unless a store is given."""
    loader = EventLoader(store or open_store(), manifest, "train", icecube86(), config)
    normalizer = Normalizer(Normalization.seed())
    n_events = n_pulses = n_bytes = 0
    waiting = 0.0
    batches = loader.epoch(0)
    began, cpu_began = time.perf_counter(), time.process_time()
    while True:
        asked = time.perf_counter()
        batch = next(batches, None)
        waiting += time.perf_counter() - asked
        if batch is None:
            break
        normalizer(batch)
        n_events += batch.n_events
        n_pulses += batch.n_pulses + batch.n_pulses_dropped
        n_bytes += _n_bytes(batch)
    return Pass(
        n_events=n_events,
        n_pulses=n_pulses,
        seconds=time.perf_counter() - began,
        cpu_s=time.process_time() - cpu_began,
        waiting_s=waiting,
        n_bytes=n_bytes,
    )


def _n_bytes(batch: EventBatch) -> int:
    columns = [getattr(batch, field.name) for field in fields(batch)]
    return sum(column.nbytes for column in columns if isinstance(column, torch.Tensor))


def _copy_seconds(manifest: ShardManifest, n_batch_bytes: int) -> float:
    """Time a copy of all bytes in portions of 64 MiB, memory to memory."""
    n_bytes = n_batch_bytes + sum(entry.n_bytes for entry in manifest.shards)
    source = np.ones(64 << 20, np.uint8)
    target = np.empty_like(source)
    target[:] = source
    began = time.perf_counter()
    for first in range(0, n_bytes, len(source)):
        n = min(len(source), n_bytes - first)
        target[:n] = source[:n]
    return time.perf_counter() - began


def sharded_events(n_simulated: int | None = None, n_repeats: int | None = None) -> str:
    """Shard raw events once, by default N_SIMULATED and N_REPEATS; gives the manifest's URI."""
    n_simulated = N_SIMULATED if n_simulated is None else n_simulated
    raw_uri = repeated_raw_events(n_simulated, N_REPEATS if n_repeats is None else n_repeats)
    config = DataConfig()
    digest = raw_uri.rstrip("/").rsplit("-", 1)[-1]
    folder = cache_folder() / f"shards-{digest}"
    store = open_store()
    # shards of this version of the format are recognised, others made anew
    units = plan_shards(store, raw_uri, config, folder.as_uri())
    merged = merge_manifests(shard_unit(store, unit, folder.as_uri(), config) for unit in units)
    manifest = folder / "manifest.json"
    store.write_bytes(manifest.as_uri(), merged.to_json().encode())
    return manifest.as_uri()


# `iceaggr bench shard`: how fast raw events become shards, against the floor of the machine.

_SHARD = """
from iceaggr.config import DataConfig
from iceaggr.shards.writing import shard_unit
from iceaggr.storage import open_store
shard_unit(open_store(), sys.argv[1], sys.argv[2], DataConfig())
"""


def bench_shard() -> dict[str, Any]:
    """Shard one simulated raw file and compare with only reading its columns and writing bytes.

    The floor reads the same parquet columns in the same portions and writes the bytes of the same
    shards through the same store, one after the other, with no work between. All variants run in
    turn, N_ROUNDS times; the best time of each counts, which other load disturbs least.
    Returns JSON types: pulses_per_s and ratio_to_floor (everything included, as the step runs),
    ratio_to_floor_without_sketch (less the statistics, which save a second pass over the data),
    time_ratio_for_10_times_the_events, peak_memory_gib of a fresh process, what was sharded.
    """
    raw_uri = repeated_raw_events(N_SIMULATED, N_REPEATS)
    with tempfile.TemporaryDirectory(prefix="iceaggr-bench-") as scratch:
        return _bench(raw_uri, Path(scratch))


def _bench(raw_uri: str, scratch: Path) -> dict[str, Any]:
    n_events = N_SIMULATED * N_REPEATS
    manifest = _shard(raw_uri, scratch, n_events)  # also warms the page cache
    blobs = [open_store().read_bytes(entry.uri) for entry in manifest.shards]
    variants: dict[str, Callable[[], Any]] = {
        "full": lambda: _shard(raw_uri, scratch, n_events),
        "floor": lambda: _floor(raw_uri, scratch, blobs),
        "bare": lambda: _without_sketch(lambda: _shard(raw_uri, scratch, n_events)),
        "tenth": lambda: _shard(raw_uri, scratch, n_events // 10),
    }
    seconds: dict[str, list[float]] = {name: [] for name in variants}
    for _ in range(N_ROUNDS):
        for name, run in variants.items():
            shutil.rmtree(scratch / "out", ignore_errors=True)
            began = time.perf_counter()
            run()
            seconds[name].append(time.perf_counter() - began)
    best = {name: min(times) for name, times in seconds.items()}
    n_pulses = sum(source.n_pulses_in for source in manifest.source_files)
    shutil.rmtree(scratch / "out", ignore_errors=True)
    out_uri = (scratch / "out").as_uri()
    work_unit = plan_shards(open_store(), raw_uri, DataConfig(), out_uri)[0]
    return {
        "pulses_per_s": round(n_pulses / best["full"]),
        "ratio_to_floor": round(best["full"] / best["floor"], 2),
        "ratio_to_floor_without_sketch": round(best["bare"] / best["floor"], 2),
        "floor_pulses_per_s": round(n_pulses / best["floor"]),
        "time_ratio_for_10_times_the_events": round(best["full"] / best["tenth"], 2),
        "peak_memory_gib": round(peak_memory_gib(_SHARD, work_unit, out_uri), 3),
        "n_events": n_events,
        "n_pulses": n_pulses,
        "shard_bytes_per_pulse": round(sum(map(len, blobs)) / n_pulses, 2),
        "machine": f"{platform.machine()}, Python {platform.python_version()}",
    }


def _shard(raw_uri: str, scratch: Path, n_events: int) -> ShardManifest:
    out_uri = (scratch / "out").as_uri()
    config = DataConfig(n_events=n_events)
    work_units = plan_shards(open_store(), raw_uri, config, out_uri)
    return shard_unit(open_store(), work_units[0], out_uri, config)


def _floor(raw_uri: str, scratch: Path, blobs: list[bytes]) -> None:
    store = open_store()
    with open_parquet(store, f"{raw_uri}/train/batch_1.parquet") as file:
        for _ in file.iter_batches(pulses.PULSES_PER_READ, columns=list(PULSE_COLUMNS)):
            pass
    for number, blob in enumerate(blobs):
        store.write_bytes((scratch / "out" / f"{number}.arrow").as_uri(), blob)


def _without_sketch(run: Callable[[], ShardManifest]) -> ShardManifest:
    plain = shard_writer.sketch_events
    known: list[Any] = []

    def sketch_once(events: Any, detector: Any) -> Any:
        if not known:
            known.append(plain(events, detector))
        return known[0]

    shard_writer.sketch_events = sketch_once
    try:
        return run()
    finally:
        shard_writer.sketch_events = plain
