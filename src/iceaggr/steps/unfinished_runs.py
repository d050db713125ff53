"""What runs without success leave for a retry, and how it ends: a later run deletes it.

Retrying a failed or stopped run in the UI goes on from its checkpoints, so these stay. A run that
nobody retried for KEPT_DAYS is given up: the last step of any other run deletes what it left.
"""

from __future__ import annotations

import time

from pydantic import BaseModel, ConfigDict

from iceaggr.interfaces import ObjectStore
from iceaggr.steps.context import RunContext
from iceaggr.steps.documents import parse_document

KEPT_DAYS = 30
_DAY_S = 24 * 3600
_TEMPORARY = ("checkpoints", "request", "here", "start")
# says that the run has checkpoints; written by iceaggr.training.checkpoint
_MARK = "has_checkpoints.json"
_DELETED_LAST = {_MARK: 1, "latest.json": 2}


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
    latest = _latest_tag(store, context.run_uri)
    note = UnfinishedRun(state=state, closed_at_s=time.time(), latest=latest)
    store.write_bytes(_note_uri(context), note.model_dump_json(indent=1).encode())


def forget_unfinished(store: ObjectStore, context: RunContext) -> None:
    """Forget that an earlier attempt of this run had no success. Raises: StorageError."""
    store.delete(_note_uri(context))


def delete_temporary(store: ObjectStore, run_uri: str) -> int:
    """Delete what only a run in progress or its retry needs.

    Returns the number of objects.  Raises: StorageError.
    """
    folders = [f"{run_uri}/training/{name}/" for name in _TEMPORARY]
    found = [item for folder in folders for item in store.list(folder)]
    mark = store.stat(f"{run_uri}/training/{_MARK}")
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
    for item in store.list(f"{context.work_uri}/unfinished_runs/"):
        note = parse_document(UnfinishedRun, store.read_bytes(item.uri), item.uri)
        run_id = item.uri.rpartition("/")[2].removesuffix(".json")
        run_uri = f"{context.work_uri}/runs/{run_id}"
        given_up = time.time() - note.closed_at_s > KEPT_DAYS * _DAY_S
        if not given_up or _latest_tag(store, run_uri) != note.latest:
            continue
        n_deleted += delete_temporary(store, run_uri)
        # it names a copy that is gone now; without it a retry decides anew
        store.delete(f"{run_uri}/training/start.json")
        store.delete(item.uri)
    return n_deleted


def _latest_tag(store: ObjectStore, run_uri: str) -> str:
    found = store.stat(f"{run_uri}/training/checkpoints/latest.json")
    return found.etag if found is not None else ""


def _note_uri(context: RunContext) -> str:
    return f"{context.work_uri}/unfinished_runs/{context.run_id}.json"
