"""Input of the benchmarks: simulated raw events, made once and kept in the user's cache."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import numpy as np
import pandas as pd

from iceaggr.events.simulation import SimulationConfig, simulate
from iceaggr.storage import open_store

_INPUT_VERSION = 1


def cache_folder() -> Path:
    """Find the folder for benchmark data: $XDG_CACHE_HOME/iceaggr or ~/.cache/iceaggr."""
    root = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(root) / "iceaggr" / "bench"


def repeated_raw_events(n_simulated: int, n_repeats: int) -> str:
    """Give the URI of one raw file: simulated events, repeated under new event ids.

    Repeating makes a long file in seconds with the simulation's mix of sizes; every repeat is
    decoded, sorted and written again, so the cost per pulse is that of different events.
    """
    config = SimulationConfig(n_events=n_simulated, n_events_per_file=n_simulated)
    made_of = [_INPUT_VERSION, config.model_dump_json(), n_repeats]
    key = hashlib.sha256(repr(made_of).encode()).hexdigest()[:12]
    folder = cache_folder() / f"raw-{key}"
    if not (folder / "train_meta.parquet").exists():
        source = cache_folder() / f"simulated-{key}-{os.getpid()}"
        simulate(open_store(), source.as_uri(), config)
        _repeat(source, folder, n_repeats)
    return folder.as_uri()


def _repeat(source: Path, folder: Path, n_repeats: int) -> None:
    pulses = pd.read_parquet(source / "train" / "batch_1.parquet").reset_index()
    pulses = pulses.drop(columns=["index"], errors="ignore")
    meta = pd.read_parquet(source / "train_meta.parquet")
    stride = int(meta["event_id"].max()) + 1
    steps = range(n_repeats)
    (folder / "train").mkdir(parents=True, exist_ok=True)
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
    partial = folder / f"meta-{os.getpid()}.partial"
    pd.concat(metas).to_parquet(partial, index=False)
    partial.rename(folder / "train_meta.parquet")
