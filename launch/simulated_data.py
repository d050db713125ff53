"""The default data of a local run: simulated once, then reused."""

from __future__ import annotations

from iceaggr.events.simulation import SimulationConfig, simulate
from iceaggr.progress import StepProgress
from iceaggr.storage import open_store

EVENTS_PER_FILE = 10_000
SEED = 1


def ensure_simulated_events(raw_uri: str, n_events: int) -> None:
    """Simulate raw events unless they are there; the meta file, written last, marks them whole."""
    store = open_store()
    with StepProgress("simulate") as progress:
        if store.stat(f"{raw_uri}/train_meta.parquet") is not None:
            progress.conclude(f"{n_events:,} events are there already")
            return
        config = SimulationConfig(
            n_events=n_events, n_events_per_file=EVENTS_PER_FILE, seed=SEED, n_processes=0
        )
        simulate(
            store,
            raw_uri,
            config,
            on_progress=lambda done: progress.update(done, n_events, f"{done:,} events"),
        )
        progress.conclude(f"{n_events:,} events")
