"""Files that a tracked run keeps: finding a run by name or id, and fetching what it logged."""

from __future__ import annotations

from pathlib import Path

import mlflow
from mlflow import MlflowClient
from mlflow.entities import Run

from iceaggr.errors import TrackingError
from iceaggr.tracking.connection import as_tracking_error, connect


def fetch_run_file(run: str, artifact_path: str, into: Path) -> tuple[str, Path]:
    """Download one file of a run.

    run: id of the run, or its name if only one run has it.  into: local folder.
    Returns the run's name and the file.  Raises: TrackingError if there is no such run or file.
    """
    client = connect("")
    with as_tracking_error("cannot fetch a file of the run", f"{run} {artifact_path}"):
        found = _find_run(client, run)
        path = mlflow.artifacts.download_artifacts(
            run_id=found.info.run_id,
            artifact_path=artifact_path,
            dst_path=str(into),
            tracking_uri=client.tracking_uri,
        )
    return str(found.info.run_name), Path(path)


def _find_run(client: MlflowClient, run: str) -> Run:
    experiments = [experiment.experiment_id for experiment in client.search_experiments()]
    quoted = run.replace("'", "")
    for query in (f"attributes.run_id = '{quoted}'", f"attributes.run_name = '{quoted}'"):
        found = client.search_runs(experiments, query, max_results=2)
        if len(found) == 1:
            return found[0]
        if len(found) > 1:
            raise TrackingError(
                "several runs have this name", where=run, remedy="Give the id of the run"
            )
    raise TrackingError(
        "no such run", where=run, expected="the id or the name of a run on this server"
    )
