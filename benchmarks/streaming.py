"""How fast shards in an object store become batches, and a NuBench set becomes raw events."""

from __future__ import annotations

import resource
import shutil
import sqlite3
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from types import SimpleNamespace
from typing import Any, get_args

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from benchmarks.data_path import listed_manifest, load_epoch, sharded_events
from iceaggr.built_in_detectors import built_in_detector
from iceaggr.config import BatchConfig
from iceaggr.events.conversion import ConversionSettings
from iceaggr.events.conversion.nubench import PULSES_OF, find_nubench
from iceaggr.events.conversion.nubench_groups import begin, convert_group, finish
from iceaggr.events.conversion.nubench_plan import plan_nubench
from iceaggr.events.conversion.tables import rows_as_columns
from iceaggr.events.simulation.nubench_layout import Layout, NuBenchWriter
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


# The conversion of a set in NuBench's layouts, beside a plain copy of its pulses.

N_CONVERTED = 10_000
"""Events of the set: about 0.8 million pulses with noise and without."""
N_CONVERSIONS = 3
_COPIED_ROWS = 1 << 18


def bench_convert() -> dict[str, Any]:
    """Convert the same random events from SQLite and from Parquet.

    copy: every column of both tables of pulses, read by the same libraries in the order of the
    events and written to Parquet as they are.  sqlite_copy: the same within SQLite, into another
    database. All run in turn, N_CONVERSIONS times; figures are medians.
    Returns JSON types: pulses_per_s of those in both tables, ratio_to_copy of the whole set (1 = as
    fast) by the clock and by processor time, and peak_memory_mib of a process that converts, its
    libraries included.
    """
    with tempfile.TemporaryDirectory(prefix="iceaggr-bench-") as scratch:
        rates: dict[str, list[tuple[float, float]]] = {}
        memory: dict[str, int] = {}
        for layout in get_args(Layout):
            folder = Path(scratch) / layout
            n_pulses = _write_set(folder, layout)
            for number in range(N_CONVERSIONS):
                out_uri = f"{folder.as_uri()}-{number}"
                with get_context("spawn").Pool(1) as pool:
                    wall_s, cpu_s, memory[layout] = pool.apply(_converted, (folder, out_uri))
                rates.setdefault(layout, []).append((n_pulses / wall_s, n_pulses / cpu_s))
                copied = partial(_copy, folder, layout)
                rates.setdefault(f"{layout} copied", []).append(_rate(copied, n_pulses))
                if layout == "nubench-sqlite":
                    copied = partial(_copy_by_sqlite, folder)
                    rates.setdefault("sqlite_copy", []).append(_rate(copied, n_pulses))
    clock, cpu = (
        {name: statistics.median(rate[k] for rate in rounds) for name, rounds in rates.items()}
        for k in (0, 1)
    )
    return {
        "pulses_per_s": {name: round(rate) for name, rate in clock.items()},
        "ratio_to_copy": {n: round(clock[n] / clock[f"{n} copied"], 3) for n in memory},
        "ratio_to_copy_by_cpu": {n: round(cpu[n] / cpu[f"{n} copied"], 3) for n in memory},
        "ratio_to_sqlite_copy": round(clock["nubench-sqlite"] / clock["sqlite_copy"], 3),
        "peak_memory_mib": memory,
        "n_pulses": n_pulses,
    }


def _rate(run: Callable[[], object], n: int) -> tuple[float, float]:
    """Give items per second of the clock and of processor time."""
    wall, cpu = time.perf_counter(), time.process_time()
    run()
    return n / (time.perf_counter() - wall), n / (time.process_time() - cpu)


def _write_set(folder: Path, layout: Layout) -> int:
    """Write random events of Hexagon; gives the pulses in both tables."""
    detector, rng = built_in_detector("hexagon"), np.random.default_rng(5)
    with tempfile.TemporaryDirectory(prefix="iceaggr-bench-") as scratch:
        writer = NuBenchWriter(
            open_store(),
            folder.as_uri(),
            layout,
            detector,
            Path(scratch),
            first_id=0,
            n_events_per_part=2_000,
            seed=5,
            describe=_random_truth,
        )
        for _ in range(N_CONVERTED // 1_000):
            n_pulses = rng.integers(20, 140, 1_000)
            n = int(n_pulses.sum())
            events = SimpleNamespace(
                n_pulses=n_pulses,
                sensor_id=rng.choice(detector.sensor_id, n),
                time_ns=rng.integers(0, 20_000, n),
                charge_pe=rng.gamma(2.0, 0.5, n) + 0.1,
                dark=rng.random(n) < 0.3,
            )
            writer.add(events)
        writer.finish()
    return sum(len(rows) for name in PULSES_OF.values() for rows in _tables(folder, layout, name))


def _random_truth(events: Any, event_no: Any) -> pa.Table:
    rng, n = np.random.default_rng(int(event_no[0])), len(event_no)
    names = ["vertex_x_m", "vertex_y_m", "vertex_z_m", "bjorken_x", "inelasticity"]
    names += ["visible_inelasticity", "muon_zenith", "muon_azimuth"]
    columns = {name: rng.random(n) for name in names}
    columns |= {"azimuth": rng.uniform(0, 6, n), "zenith": np.arccos(rng.uniform(-1, 1, n))}
    columns |= {"energy_gev": rng.uniform(1e3, 1e5, n), "flavour": np.full(n, 14)}
    return pa.table({**columns, "interaction": ["cc"] * n})


def _tables(folder: Path, layout: Layout, table: str) -> Iterator[pa.Table]:
    """Read all columns of a table in the order of the events, some rows at a time."""
    if layout == "nubench-sqlite":
        with closing(sqlite3.connect(folder / "merged" / "merged.db")) as connection:
            cursor = connection.execute(f"SELECT * FROM {table} ORDER BY event_no")
            names = [column[0] for column in cursor.description]
            while rows := cursor.fetchmany(_COPIED_ROWS):
                yield pa.table(rows_as_columns(rows, names, table, str(folder)))
        return
    for path in sorted((folder / "merged" / table).iterdir()):
        with pq.ParquetFile(path) as file:
            for part in file.iter_batches(_COPIED_ROWS):
                yield pa.Table.from_batches([part])


def _copy(folder: Path, layout: Layout) -> None:
    for table in PULSES_OF.values():
        writer = None
        for rows in _tables(folder, layout, table):
            writer = writer or pq.ParquetWriter(folder / f"{table}.copy", rows.schema)
            writer.write_table(rows)
        assert writer is not None, "the set has pulses"
        writer.close()


def _copy_by_sqlite(folder: Path) -> None:
    (folder / "copy.db").unlink(missing_ok=True)
    with closing(sqlite3.connect(folder / "copy.db")) as connection:
        connection.execute("ATTACH ? AS given", (str(folder / "merged" / "merged.db"),))
        for table in PULSES_OF.values():
            statement = f"CREATE TABLE {table} AS SELECT * FROM given.{table} ORDER BY event_no"
            connection.execute(statement)
        connection.commit()


def _converted(folder: Path, out_uri: str) -> tuple[float, float, int]:
    """Convert a set: seconds by clock and processor without the look at a sample, peak MiB."""
    store = open_store()
    files = find_nubench(store, folder.as_uri())
    assert files is not None, "the set was just written"
    with tempfile.TemporaryDirectory(prefix="iceaggr-bench-") as scratch:
        ready = plan_nubench(store, files, ConversionSettings(), Path(scratch))
        wall, cpu = time.perf_counter(), time.process_time()
        for number in begin(ready, out_uri):
            convert_group(ready, out_uri, number)
        finish(store, out_uri)
        seconds = time.perf_counter() - wall, time.process_time() - cpu
    return *seconds, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10
