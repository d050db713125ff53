"""`iceaggr bench shard`: how fast raw events become shards, against the floor of the machine."""

from __future__ import annotations

import platform
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.loader import repeated_raw_events
from iceaggr.config import DataConfig
from iceaggr.events import pulses
from iceaggr.events.schema import PULSE_COLUMNS, open_parquet
from iceaggr.shards import shard_writer
from iceaggr.shards.manifest import ShardManifest
from iceaggr.shards.planning import plan_shards
from iceaggr.shards.writing import shard_unit
from iceaggr.storage import open_store

N_SIMULATED, N_REPEATS = 5_000, 24
N_ROUNDS = 3

# a fresh process, so that its peak is that of sharding alone; VmHWM because ru_maxrss starts at the
# peak of the process that started it
_PEAK_PROBE = """
import sys
from iceaggr.config import DataConfig
from iceaggr.shards.writing import shard_unit
from iceaggr.storage import open_store
shard_unit(open_store(), sys.argv[1], sys.argv[2], DataConfig())
lines = open("/proc/self/status").read().splitlines()
print(next(line.split()[1] for line in lines if line.startswith("VmHWM")))
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
    return {
        "pulses_per_s": round(n_pulses / best["full"]),
        "ratio_to_floor": round(best["full"] / best["floor"], 2),
        "ratio_to_floor_without_sketch": round(best["bare"] / best["floor"], 2),
        "floor_pulses_per_s": round(n_pulses / best["floor"]),
        "time_ratio_for_10_times_the_events": round(best["full"] / best["tenth"], 2),
        "peak_memory_gib": round(_peak_memory_gib(raw_uri, scratch), 3),
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


def _peak_memory_gib(raw_uri: str, scratch: Path) -> float:
    shutil.rmtree(scratch / "out", ignore_errors=True)
    out_uri = (scratch / "out").as_uri()
    work_unit = plan_shards(open_store(), raw_uri, DataConfig(), out_uri)[0]
    command = [sys.executable, "-c", _PEAK_PROBE, work_unit, out_uri]
    found = subprocess.run(command, capture_output=True, text=True, check=True, encoding="utf-8")
    return int(found.stdout) * 1024 / 2**30
