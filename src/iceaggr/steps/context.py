"""What every step knows: which run it belongs to, where the run keeps its data, its settings."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from iceaggr.config import ExperimentConfig, parse_config
from iceaggr.errors import ConfigError
from iceaggr.interfaces import NullTracker, ObjectStore, Tracker
from iceaggr.paths import RunPaths, WorkPaths
from iceaggr.patience import FIRST_CONTACT_S, away_s
from iceaggr.service_settings import TRACKING_VARIABLE, without_credentials
from iceaggr.signals import TerminatedError, TrainingInterruptedError
from iceaggr.storage import open_store
from iceaggr.storage.uris import check_place

FIRST_STEP = "plan_shards"
FINISH_WITHIN_S = 20.0
"""How long a step waits at its end for a tracking server that is away."""


@dataclass(frozen=True)
class RunContext:
    """The identity and the settings that the steps of one pipeline run share.

    run_id: identity of the pipeline run, the key under which its steps find their MLflow run
    experiment_name: MLflow experiment
    work_uri: folder in object storage for shards, checkpoints and models
    config: validated settings
    tracked: False when a single step is run by hand without a tracking server
    name: of the run, as Kubeflow lists it; empty = made of preset and run_id
    """

    run_id: str
    experiment_name: str
    work_uri: str
    config: ExperimentConfig
    tracked: bool = True
    name: str = ""

    @property
    def run_uri(self) -> str:
        """Name the folder of this run's own results."""
        return self.paths.uri

    @property
    def paths(self) -> RunPaths:
        """Name what lies in that folder."""
        return WorkPaths(self.work_uri).run(self.run_id)

    @property
    def run_name(self) -> str:
        """Name the run as Kubeflow, MLflow and the report show it.

        Kubeflow gives no name to a run that a schedule started, or its placeholder as it is.
        """
        given = self.name if not self.name.startswith("{{") else ""
        return given or f"{self.config.name}-{self.run_id[:8]}"

    def open_store(self) -> ObjectStore:
        """Connect to object storage with the settings of the environment."""
        return open_store()

    @contextmanager
    def tracking(
        self, step: str, *, end: Literal["FINISHED", "FAILED", "KILLED"] | None = None
    ) -> Iterator[Tracker]:
        """Open this run's tracker for the time of one step, found or created by the run's id.

        end: how the run ends with this step; None = others follow. A step that fails marks the run
        failed, with the reason; one that is asked to stop leaves it running.
        The first step of a run insists on its server, and tries what the last step needs. A later
        one goes on without: its records are sent when the server is back, at the latest by the last
        step of another run.
        Raises: TrackingError if no server is configured, it refuses, or the first step gets no
        answer.
        """
        if not self.tracked:
            yield NullTracker()
            return
        from iceaggr.tracking.connection import check_server
        from iceaggr.tracking.run import open_tracker
        from iceaggr.tracking.unsent import send_kept

        tracker = open_tracker(
            "",
            self.experiment_name,
            self.run_id,
            self.run_name,
            step,
            must_answer=step == FIRST_STEP,
        )
        if tracker.run_id:
            send_kept(self.open_store(), self.unsent_uri)
        try:
            if step == FIRST_STEP:
                settings = self.config.model_dump_json(indent=1)
                check_server(tracker.client, tracker.run_id, settings, away_s(FIRST_CONTACT_S))
            yield tracker
        except (TerminatedError, TrainingInterruptedError):
            # asked to stop, maybe to go on in another pod: how the run ends, its last step says
            self._keep(tracker.finish(None, FINISH_WITHIN_S, tell=False, how="interrupted"))
            raise
        except BaseException as error:
            tracker.set_tags({"failed_step": step, "failure": str(error) or type(error).__name__})
            self._keep(tracker.finish("FAILED", FINISH_WITHIN_S, tell=False))
            raise
        self._keep(tracker.finish(end, FINISH_WITHIN_S, tell=False))

    @property
    def unsent_uri(self) -> str:
        """Name the folder of tracking records that did not reach the server."""
        return WorkPaths(self.work_uri).unsent(self.run_id)

    def require_registry(self, purpose: str) -> None:
        """Refuse what needs a model registry in a run without a tracking server.

        Raises: ConfigError.
        """
        if not self.tracked:
            raise ConfigError(
                f"{purpose} needs a model registry",
                where=TRACKING_VARIABLE,
                found="nothing",
                expected="http://host:port or https://host",
                remedy="Set it to the address of an MLflow server; `make up` starts one here",
            )

    def _keep(self, spool: Path | None) -> None:
        if spool is not None:
            from iceaggr.tracking.unsent import keep_unsent

            keep_unsent(self.open_store(), spool, self.unsent_uri)


def make_context(
    run_id: str,
    experiment_name: str,
    work_uri: str,
    config: dict[str, Any],
    run_name: str = "",
    *,
    tracked: bool = True,
) -> RunContext:
    """Validate the parameters that every component receives.

    Raises: ConfigError if the settings are not valid or the work folder is not a URI; StorageError
    if that is no storage URI or holds a secret.
    """
    if "://" not in work_uri.rstrip("/"):
        raise ConfigError(
            "work folder is not a URI",
            where="work_uri",
            found=repr(without_credentials(work_uri)),
            expected="file:///folder or s3://bucket/folder",
            remedy="Give the URI with its scheme",
        )
    check_place(work_uri.rstrip("/"), "work_uri")
    return RunContext(
        run_id=run_id,
        experiment_name=experiment_name,
        work_uri=work_uri.rstrip("/"),
        config=parse_config(config),
        tracked=tracked,
        name=run_name.strip(),
    )
