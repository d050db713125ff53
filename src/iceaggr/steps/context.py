"""What every step knows: which run it belongs to, where the run keeps its data, its settings."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

from iceaggr.config import ExperimentConfig, parse_config
from iceaggr.errors import ConfigError, TrackingError
from iceaggr.interfaces import NullTracker, ObjectStore, Tracker
from iceaggr.storage import open_store

TRACKING_VARIABLE = "MLFLOW_TRACKING_URI"


@dataclass(frozen=True)
class RunContext:
    """The identity and the settings that the steps of one pipeline run share.

    run_id: identity of the pipeline run, the key under which its steps find their MLflow run
    experiment_name: MLflow experiment
    work_uri: folder in object storage for shards, checkpoints and models
    config: validated settings
    tracked: False when a single step is run by hand without a tracking server
    """

    run_id: str
    experiment_name: str
    work_uri: str
    config: ExperimentConfig
    tracked: bool = True

    @property
    def run_uri(self) -> str:
        """Name the folder of this run's own results."""
        return f"{self.work_uri}/runs/{self.run_id}"

    @property
    def run_name(self) -> str:
        """Name the run as MLflow and the report show it."""
        return f"{self.config.name}-{self.run_id[:8]}"

    def open_store(self) -> ObjectStore:
        """Connect to object storage with the settings of the environment."""
        return open_store()

    @contextmanager
    def tracking(
        self, step: str, *, end: Literal["FINISHED", "FAILED", "KILLED"] | None = None
    ) -> Iterator[Tracker]:
        """Open this run's tracker for the time of one step, found or created by the run's id.

        end: how the run ends with this step; None = others follow. A step that fails marks the run
        failed, with the reason.
        Raises: TrackingError if MLFLOW_TRACKING_URI is not set or the server does not answer.
        """
        if not self.tracked:
            yield NullTracker()
            return
        from iceaggr.tracking import open_tracker

        tracking_uri = os.environ.get(TRACKING_VARIABLE, "")
        if not tracking_uri:
            raise TrackingError(
                "no tracking server configured",
                where=TRACKING_VARIABLE,
                remedy="Set it to the address of an MLflow server; `make up` starts one here",
            )
        tracker = open_tracker(tracking_uri, self.experiment_name, self.run_id, self.run_name, step)
        try:
            yield tracker
        except BaseException as error:
            tracker.set_tags({"failed_step": step, "failure": str(error) or type(error).__name__})
            tracker.finish("FAILED")
            raise
        tracker.finish(end)


def make_context(
    run_id: str,
    experiment_name: str,
    work_uri: str,
    config: dict[str, Any],
    *,
    tracked: bool = True,
) -> RunContext:
    """Validate the parameters that every component receives.

    Raises: ConfigError if the settings are not valid or the work folder is not a URI.
    """
    if "://" not in work_uri:
        raise ConfigError(
            "work folder is not a URI",
            where="work_uri",
            found=repr(work_uri),
            expected="file:///folder or s3://bucket/folder",
            remedy="Give the URI with its scheme",
        )
    return RunContext(
        run_id=run_id,
        experiment_name=experiment_name,
        work_uri=work_uri.rstrip("/"),
        config=parse_config(config),
        tracked=tracked,
    )
