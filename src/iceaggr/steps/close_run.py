"""Last step: close the MLflow run, however it ended, and delete what a finished run does not need.

A run that succeeded loses its checkpoints, which hold optimiser states and are several times the
size of the model, its copy of the champion, if training started from that, and the requests and
answers of its training processes. A failed or stopped run keeps them for 30 days, because a retry
in the UI goes on from them; then the last step of another run deletes them. Tracking records that
earlier runs could not send to MLflow are sent now. A TrainJob that still works is ended, since
nobody waits for it any more.
"""

from __future__ import annotations

import json
import os
import time
import urllib.request
from collections.abc import Mapping
from http.client import HTTPException
from typing import Literal
from urllib.error import HTTPError

from pydantic import BaseModel, ConfigDict

from iceaggr.errors import IceaggrError
from iceaggr.interfaces import ObjectStore
from iceaggr.paths import HAS_CHECKPOINTS, LATEST_CHECKPOINT, RunPaths, TrainingPaths, WorkPaths
from iceaggr.patience import ask_patiently, is_in_a_pod
from iceaggr.progress import StepProgress
from iceaggr.service_settings import without_credentials
from iceaggr.steps.context import RunContext
from iceaggr.steps.documents import parse_document

# What runs without success leave for a retry, and how it ends: a later run deletes it.
#
# Retrying a failed or stopped run in the UI goes on from its checkpoints, so these stay. A run that
# nobody retried for KEPT_DAYS is given up: the last step of any other run deletes what it left.

KEPT_DAYS = 30
_DAY_S = 24 * 3600
_DELETED_LAST = {HAS_CHECKPOINTS: 1, LATEST_CHECKPOINT: 2}


class UnfinishedRun(BaseModel):
    """The note about a run that ended without success; its name is the run's id.

    closed_at_s: when, in seconds since 1970
    latest: content tag of its newest checkpoint, which tells whether it went on since; '' if none
    """

    model_config = ConfigDict(frozen=True, extra="forbid", title="note about an unfinished run")

    state: str
    closed_at_s: float
    latest: str


def note_unfinished(store: ObjectStore, context: RunContext, state: str) -> None:
    """Remember a run that ended without success. Raises: StorageError."""
    latest = _latest_tag(store, context.paths)
    note = UnfinishedRun(state=state, closed_at_s=time.time(), latest=latest)
    uri = WorkPaths(context.work_uri).unfinished(context.run_id)
    store.write_bytes(uri, note.model_dump_json(indent=1).encode())


def delete_temporary(store: ObjectStore, training: TrainingPaths) -> int:
    """Delete what only a run in progress or its retry needs.

    Returns the number of objects.  Raises: StorageError.
    """
    found = [item for uri in training.temporary_folders() for item in store.list(f"{uri}/")]
    mark = store.stat(training.has_checkpoints_uri)
    found += [mark] if mark is not None else []
    # latest.json last: an interrupted deletion must not look like a run that never began. The mark
    # just before: alone it would forbid a later attempt to begin anew
    for item in sorted(found, key=lambda item: _DELETED_LAST.get(item.uri.rpartition("/")[2], 0)):
        store.delete(item.uri)
    return len(found)


def delete_given_up(store: ObjectStore, context: RunContext) -> int:
    """Delete what other runs left that nobody retried for KEPT_DAYS.

    Returns the number of objects.  Raises: StorageError; IceaggrError for a note that is none.
    """
    n_deleted = 0
    work = WorkPaths(context.work_uri)
    for item in store.list(f"{work.unfinished_uri}/"):
        note = parse_document(UnfinishedRun, store.read_bytes(item.uri), item.uri)
        run = work.run(item.uri.rpartition("/")[2].removesuffix(".json"))
        given_up = time.time() - note.closed_at_s > KEPT_DAYS * _DAY_S
        if not given_up or _latest_tag(store, run) != note.latest:
            continue
        n_deleted += delete_temporary(store, run.training)
        # it names a copy that is gone now; without it a retry decides anew
        store.delete(run.training.start_uri)
        store.delete(item.uri)
    return n_deleted


def _latest_tag(store: ObjectStore, run: RunPaths) -> str:
    found = store.stat(run.training.latest_checkpoint_uri)
    return found.etag if found is not None else ""


# the backend says COMPLETE, the local runner SUCCEEDED
_SUCCEEDED = ("COMPLETE", "SUCCEEDED")

EndStatus = Literal["FINISHED", "FAILED", "KILLED"]

KFP_API_VARIABLE = "ICEAGGR_KFP_API"
_KFP_API = "http://ml-pipeline.kubeflow:8888"
_ANSWER_S = 10.0
_PATIENCE_S = 180.0
"""How long an API that restarts is waited for: the answer decides a word, not the run's result."""
_BY_A_PERSON = "terminated by a person in Kubeflow Pipelines"
_BY_THE_PLATFORM = (
    "a step was ended by the platform and not retried: evicted, out of memory, or its pod deleted"
)
_UNKNOWN = "stopped from outside; Kubeflow Pipelines did not tell whether by a person"


def run_close_run(context: RunContext, state: str) -> EndStatus:
    """Set the final state of the MLflow run and clean up. Returns that state.

    state: as KFP gives it. A run without summary.json did not finish, whatever KFP says. The MLflow
    run is closed even when cleaning up fails.
    Raises: StorageError, TrackingError, KubernetesError.
    """
    with StepProgress("close_run", run_id=context.run_id) as progress:
        store = context.open_store()
        has_summary = state in _SUCCEEDED and store.stat(context.paths.summary_uri) is not None
        status, reason = end_status(state, has_summary), ""
        if status == "KILLED":
            status, reason = who_stopped(context.run_id)
        try:
            done = _clean_up(store, context, status)
        finally:
            with context.tracking("close_run", end=status) as tracker:
                if reason:
                    tracker.set_tags({"end_reason": reason})
        told = f" ({reason})" if reason else ""
        progress.conclude(f"run {status.lower()}{told}, {done}{_send_earlier(store, context)}")
        return status


def _send_earlier(store: ObjectStore, context: RunContext) -> str:
    """Send what MLflow lacks of runs that ended while it was away. Returns what was done."""
    if not context.tracked:
        return ""
    from iceaggr.tracking.unsent import send_kept_of_runs

    try:
        done = send_kept_of_runs(store, WorkPaths(context.work_uri).unsent_uri)
    except IceaggrError as error:
        done = f"tracking records of earlier runs stay: {error}"
    return f", {done}" if done else ""


def _clean_up(store: ObjectStore, context: RunContext, status: EndStatus) -> str:
    """Delete what nobody needs any more. Returns what was done, in words."""
    stopped = _stop_train_job(store, context)
    n_deleted = 0
    if status == "FINISHED":
        n_deleted = delete_temporary(store, context.paths.training)
        # an earlier attempt of this run may have had no success
        store.delete(WorkPaths(context.work_uri).unfinished(context.run_id))
    else:
        note_unfinished(store, context, status)
    done = f"{n_deleted} temporary files deleted"
    try:
        n_given_up = delete_given_up(store, context)
    except IceaggrError as error:
        # another run may delete the same at this moment, and theirs is not this run's success
        done += f", those of earlier runs stay: {error}"
    else:
        done += f", {n_given_up} of runs given up" if n_given_up else ""
    return done + (", TrainJob ended" if stopped else "")


def end_status(state: str, has_summary: bool) -> EndStatus:
    """Translate KFP's final state: neither success nor failure means that the run was stopped."""
    if state in _SUCCEEDED:
        return "FINISHED" if has_summary else "FAILED"
    return "FAILED" if state == "FAILED" else "KILLED"


def who_stopped(run_id: str, environment: Mapping[str, str] = os.environ) -> tuple[EndStatus, str]:
    """Find out whether a person or the platform ended a run that KFP still calls running.

    KFP learns of a step's end from the step itself. One that was killed tells nothing, and its last
    known state stays RUNNING: after a person's Terminate as after an eviction. Only the state of
    the run tells them apart: it is CANCELING after Terminate, until the last step has ended.
    Returns the state for MLflow and the reason; KILLED where KFP gives no answer.
    """
    if not is_in_a_pod(environment):
        return "KILLED", _UNKNOWN
    api = (environment.get(KFP_API_VARIABLE) or _KFP_API).rstrip("/")

    def ask() -> str:
        address = f"{api}/apis/v2beta1/runs/{run_id}"
        with urllib.request.urlopen(address, timeout=_ANSWER_S) as answer:
            return str(json.load(answer)["state"])

    try:
        state = ask_patiently(ask, is_away=_may_come_back, patience_s=_PATIENCE_S)
    except (OSError, HTTPException, ValueError, LookupError, TypeError) as error:
        # a multi-user installation asks for a login that steps do not have
        return "KILLED", f"{_UNKNOWN} ({without_credentials(api)}: {error})"
    by_a_person = state in ("CANCELING", "CANCELED")
    return ("KILLED", _BY_A_PERSON) if by_a_person else ("FAILED", _BY_THE_PLATFORM)


def _may_come_back(error: Exception) -> bool:
    """Tell a server that is away or starting from one that refuses."""
    if isinstance(error, HTTPError):
        return error.code >= 500 or error.code == 429
    return isinstance(error, OSError | HTTPException)


def _stop_train_job(store: ObjectStore, context: RunContext) -> bool:
    asked = store.stat(context.paths.training.job_request.request_uri) is not None
    if not asked or not is_in_a_pod():
        return False
    from iceaggr.machines.job_api import JobApi
    from iceaggr.machines.train_job import stop_train_job

    return stop_train_job(JobApi.of_this_pod(), context.run_id)
