"""Files that a tracked run keeps: finding a run by what users see of it, and fetching a file."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

import mlflow
from mlflow import MlflowClient
from mlflow.entities import Run

from iceaggr.errors import TrackingError
from iceaggr.patience import first_contact_s
from iceaggr.tracking.connection import as_tracking_error, connect

_N_NAMED = 5
# the address of a run's page, and runs:/ID
_ID_IN_ADDRESS = re.compile(r"runs:?/([0-9a-f]{32})\b")


@dataclass(frozen=True)
class RunFile:
    """A downloaded file of a run."""

    run_id: str
    run_name: str
    path: Path


def fetch_run_file(run: str, artifact_path: str, into: Path) -> RunFile:
    """Download one file of a run.

    run: its id, its name, the beginning of its name, or the address of its page.
    into: local folder.
    Raises: TrackingError if no run or several are meant, or it has no such file.
    """
    client = connect("", first_contact_s())
    with as_tracking_error("cannot look for the run", run):
        found = _find_run(client, run)
    name, run_id = str(found.info.run_name), str(found.info.run_id)
    with as_tracking_error("cannot fetch a file of the run", f"{name} {artifact_path}"):
        path = mlflow.artifacts.download_artifacts(
            run_id=_holder(client, found, artifact_path),
            artifact_path=artifact_path,
            dst_path=str(into),
            tracking_uri=client.tracking_uri,
        )
    return RunFile(run_id, name, Path(path))


def _find_run(client: MlflowClient, run: str) -> Run:
    experiments = [experiment.experiment_id for experiment in client.search_experiments()]
    in_address = _ID_IN_ADDRESS.search(run)
    asked = in_address[1] if in_address else run.replace("'", "").replace("%", "")
    for query in (
        f"attributes.run_id = '{asked}'",
        f"attributes.run_name = '{asked}'",
        f"attributes.run_name LIKE '{asked}%'",
    ):
        found = client.search_runs(experiments, query, max_results=_N_NAMED) if asked else []
        if len(found) == 1:
            return found[0]
        if len(found) > 1:
            raise TrackingError(
                "several runs are meant",
                where=run,
                found=_named(found),
                expected="one run",
                remedy="Give a whole name, or the id of the run where names are equal",
            )
    newest = client.search_runs(experiments, max_results=_N_NAMED)
    raise TrackingError(
        "no such run",
        where=run,
        found=f"newest runs {_named(newest)}" if newest else "no runs at all",
        expected="the name, the id or the address of a run on this server",
        remedy="The list of runs on the server's page shows their names",
    )


def _named(runs: list[Run]) -> str:
    return ", ".join(f"{run.info.run_name} ({run.info.run_id})" for run in runs)


def _holder(client: MlflowClient, run: Run, artifact_path: str) -> str:
    """Name the run that holds the file: the run itself, or one of its steps.

    Kubeflow's MLflow plugin makes a run for each step, below that of the pipeline.
    """
    folder = artifact_path.rpartition("/")[0]
    below = f"tags.`mlflow.parentRunId` = '{run.info.run_id}'"
    for candidate in (run, *client.search_runs([run.info.experiment_id], below)):
        known = client.list_artifacts(candidate.info.run_id, folder or None)
        if artifact_path in [item.path for item in known]:
            return str(candidate.info.run_id)
    raise TrackingError(
        "run has no such file",
        where=str(run.info.run_name),
        found=f"a run that is {run.info.status.lower()}, without {artifact_path}",
        expected="a run whose evaluation is done",
        remedy="Let its evaluation finish, or name another run",
    )
