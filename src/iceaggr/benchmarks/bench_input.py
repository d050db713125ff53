"""Input of the benchmarks: simulated raw events, made once and kept in the user's cache."""

from __future__ import annotations

import hashlib
import os
import shutil
from pathlib import Path

import numpy as np
import pandas as pd

from iceaggr.events.layout import GEOMETRY_FILE
from iceaggr.events.simulation import SimulationConfig, simulate
from iceaggr.storage import open_store

_INPUT_VERSION = 2


def cache_folder() -> Path:
    """Find the folder for benchmark data: $XDG_CACHE_HOME/iceaggr or ~/.cache/iceaggr."""
    root = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(root) / "iceaggr" / "bench"


def simulated_raw_events(n_events: int) -> str:
    """Give the URI of one raw file of events with the simulation's default mix."""
    # below a block or two, starting processes costs more than the events
    config = SimulationConfig(
        n_events=n_events, n_events_per_file=n_events, n_processes=0 if n_events > 1000 else 1
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
