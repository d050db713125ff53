"""Last step: close the MLflow run, whatever the end, and delete what a finished run needs no more.

Deleted are of a run that succeeded: its checkpoints, which hold optimiser states and are several
times the size of the model; its copy of the champion, if training started from that; what its
training processes were asked and answered. A failed or stopped run keeps them, because retrying it
in the UI goes on from them; but a TrainJob of it that still works is ended, since nobody waits for
it any more.
"""

from __future__ import annotations

import os
from typing import Literal

from iceaggr.interfaces import ObjectStore
from iceaggr.progress import StepProgress
from iceaggr.steps.context import RunContext

# the backend says COMPLETE, the local runner SUCCEEDED
_SUCCEEDED = ("COMPLETE", "SUCCEEDED")

EndStatus = Literal["FINISHED", "FAILED", "KILLED"]


def run_close_run(context: RunContext, state: str) -> EndStatus:
    """Set the final state of the MLflow run and clean up. Returns that state.

    state: as KFP gives it. A run without summary.json did not finish, whatever KFP says.
    Raises: StorageError, TrackingError.
    """
    with StepProgress("close_run", run_id=context.run_id) as progress:
        store = context.open_store()
        status = end_status(state, store.stat(f"{context.run_uri}/summary.json") is not None)
        stopped = _stop_train_job(store, context)
        n_deleted = _delete_temporary(store, context) if status == "FINISHED" else 0
        with context.tracking("close_run", end=status):
            pass
        progress.conclude(
            f"run {status.lower()}, {n_deleted} temporary files deleted"
            + (", TrainJob ended" if stopped else "")
        )
        return status


def end_status(state: str, has_summary: bool) -> EndStatus:
    """Translate KFP's final state: neither success nor failure means that the run was stopped."""
    if state in _SUCCEEDED:
        return "FINISHED" if has_summary else "FAILED"
    return "FAILED" if state == "FAILED" else "KILLED"


def _delete_temporary(store: ObjectStore, context: RunContext) -> int:
    folders = [
        f"{context.run_uri}/training/{name}/" for name in ("checkpoints", "request", "start")
    ]
    found = [item for folder in folders for item in store.list(folder)]
    # latest.json last: an interrupted deletion must not look like a run that never began
    for item in sorted(found, key=lambda item: item.uri.endswith("/latest.json")):
        store.delete(item.uri)
    return len(found)


def _stop_train_job(store: ObjectStore, context: RunContext) -> bool:
    asked = store.stat(f"{context.run_uri}/training/request/request.json") is not None
    if not asked or "KUBERNETES_SERVICE_HOST" not in os.environ:
        return False
    from iceaggr.machines.job_api import JobApi
    from iceaggr.machines.job_run import stop_train_job

    return stop_train_job(JobApi.of_this_pod(), context.run_id)
