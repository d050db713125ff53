"""Take a large set of raw events through sharding, statistics and one epoch, and watch the memory.

Usage: python benchmarks/large_run.py RAW_URI FOLDER [--config configs/laptop.yaml]

Prints one row per step: time, rate, and the resident memory of its process at ten moments.
"""

from __future__ import annotations

if __name__ == "__main__":
    from iceaggr.entry import begin

    begin()

import argparse
import multiprocessing
import os
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import numpy as np
import psutil

from iceaggr.batches import EventLoader
from iceaggr.shards.encoding import SPLITS
from iceaggr.shards.reading import load_recorded_detector
from iceaggr.steps.run_folder import RunFolder
from iceaggr.steps.training_inputs import read_manifest

SAMPLE_EVERY_S = 0.2
N_MOMENTS = 10


def main() -> None:
    """Run the three steps, each in a process of its own, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("raw_uri")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--config", type=Path, default=Path("configs/laptop.yaml"))
    asked = parser.parse_args()
    folder = asked.folder
    run = RunFolder(folder.absolute())
    at = ("--folder", folder)
    steps: dict[str, tuple[Callable[..., None], tuple[object, ...]]] = {
        "sharding": (command, ("shard", "--raw-uri", asked.raw_uri, "--config", asked.config, *at)),
        "statistics": (command, ("stats", *at)),
        "one epoch": (load_epoch, (folder,)),
    }
    print(f"| step | s | events/s | MiB at {N_MOMENTS} moments from start to end | peak MiB |")
    print("|---|---|---|---|---|")
    for name, (step, arguments) in steps.items():
        seconds, memory_mib = watched(step, arguments)
        units = [read_manifest(path) for path in run.unit_manifests()]
        splits = ("train",) if step is load_epoch else SPLITS
        n_events = sum(unit.n_events(split) for unit in units for split in splits)
        moments = np.linspace(0, len(memory_mib) - 1, N_MOMENTS).astype(int)
        curve = " ".join(f"{memory_mib[moment]:.0f}" for moment in moments)
        speed = f"{seconds:.1f} | {n_events / seconds:,.0f}"
        print(f"| {name} | {speed} | {curve} | {max(memory_mib):.0f} |", flush=True)


def command(*words: object) -> None:
    """Become the command `iceaggr WORDS`."""
    os.execv(sys.executable, [sys.executable, "-m", "iceaggr", *map(str, words)])


def load_epoch(folder: Path) -> None:
    """Load every train event once, complete and in minibatches."""
    run = RunFolder.open(folder)
    context = run.context()
    store, manifest = context.open_store(), read_manifest(run.manifest)
    detector = load_recorded_detector(store, manifest)
    loader = EventLoader(store, manifest, "train", detector, context.config.batches)
    n_events = sum(batch.n_events for batch in loader.epoch(0))
    assert n_events == manifest.n_events("train"), "an epoch is every train event once"


def watched(step: Callable[..., None], arguments: tuple[object, ...]) -> tuple[float, list[float]]:
    """Run a step in a fresh process; give its seconds and its resident MiB over time."""
    process = multiprocessing.get_context("spawn").Process(target=step, args=arguments)
    began = time.perf_counter()
    process.start()
    memory_mib: list[float] = []
    while process.is_alive():
        memory_mib.append(_resident_mib(process.pid))
        process.join(SAMPLE_EVERY_S)
    if process.exitcode:
        raise SystemExit(f"{step.__name__} ended with {process.exitcode}")
    return time.perf_counter() - began, memory_mib


def _resident_mib(pid: int | None) -> float:
    with suppress(psutil.NoSuchProcess):
        return float(psutil.Process(pid).memory_info().rss / 2**20)
    return 0.0


if __name__ == "__main__":
    from iceaggr.entry import run

    run(main)
