"""The object store and tracking server of a local run: those of the environment, or our own."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from iceaggr.errors import ConfigError
from iceaggr.events.simulation import SimulationConfig, simulate
from iceaggr.local_services.processes import of_a_run
from iceaggr.local_services.services import LocalServices
from iceaggr.progress import StepProgress
from iceaggr.storage import open_store

_STORE_VARIABLES = ("AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3", "AWS_ACCESS_KEY_ID")


@dataclass(frozen=True)
class Addresses:
    """Where the services of a run are, and whether they outlive it."""

    tracking_uri: str
    stay_up: bool


@contextmanager
def service_environment(state_folder: Path, console: Console) -> Iterator[Addresses]:
    """Give the block an object store and a tracking server in its environment.

    With MLFLOW_TRACKING_URI set, the user's own services are used, with all settings of the shell.
    Otherwise the shell's variables for stores and servers are ignored: the services of `make up`
    are used if they run; else they are started, and stopped by the last run that uses them.
    Raises: ConfigError if only one of the two services is configured.
    """
    tracking_uri = os.environ.get("MLFLOW_TRACKING_URI", "")
    if tracking_uri:
        yield Addresses(tracking_uri, stay_up=True)
        return
    _check_no_store_alone()
    services = LocalServices(state_folder)
    if not services.all_run():
        console.print("starting the object store and the MLflow server")
    with services as started:
        before = dict(os.environ)
        replaced = of_a_run(before, started.env)
        os.environ.clear()
        os.environ.update(replaced)
        try:
            yield Addresses(started.mlflow_uri, stay_up=services.stay_up)
        finally:
            os.environ.clear()
            os.environ.update(before)


def _check_no_store_alone() -> None:
    configured = [name for name in _STORE_VARIABLES if os.environ.get(name)]
    if configured:
        raise ConfigError(
            "an object store is configured but no tracking server",
            where="environment",
            found=", ".join(configured),
            expected="also MLFLOW_TRACKING_URI, or neither",
            remedy="Set MLFLOW_TRACKING_URI to your server, or unset both to start local services",
        )


# The default data of a local run: simulated once, then reused.

EVENTS_PER_FILE = 10_000
SEED = 1


def ensure_simulated_events(raw_uri: str, n_events: int) -> None:
    """Simulate raw events unless they are there; the meta file, written last, marks them whole."""
    store = open_store()
    with StepProgress("simulate") as progress:
        if store.stat(f"{raw_uri}/train_meta.parquet") is not None:
            progress.conclude(f"{n_events:,} events, simulated before")
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
