"""Unsent tracking records: kept in object storage, sent when the server is back.

By hand: python -m iceaggr.tracking.unsent FOLDER
"""

from __future__ import annotations

if __name__ == "__main__":
    from iceaggr.entry import begin

    begin()

import argparse
import json
import logging
import shutil
import sys
import time
import uuid
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

from iceaggr.errors import IceaggrError, StorageError, TrackingError
from iceaggr.interfaces import ObjectStore
from iceaggr.patience import may_pass
from iceaggr.service_settings import tracking_server
from iceaggr.storage import open_store
from iceaggr.storage.uris import below, inside
from iceaggr.tracking.connection import as_tracking_error
from iceaggr.tracking.outbox import RECORDS, RunSender
from iceaggr.tracking.run_target import load_target

log = logging.getLogger(__name__)

_RECORDS_PER_REQUEST = 200


def replay(folder: Path, tracking_uri: str = "") -> int:
    """Send a spool folder to its run and delete it; returns the number of records sent.

    tracking_uri: empty = the one that the records name.
    Raises: TrackingError if the folder is no spool or the server is still away; StorageError if a
    record names a file outside the folder.
    """
    try:
        target = load_target(folder)
        lines = (folder / RECORDS).read_text(encoding="utf-8").splitlines()
    except (OSError, ValueError, TypeError) as error:
        raise TrackingError(
            "not a folder of unsent tracking records",
            where=str(folder),
            found=str(error),
            expected=f"{RECORDS} and the file that names their run",
            remedy="Give the folder that the step named when it ended",
        ) from None
    if tracking_uri:
        target = replace(target, tracking_uri=tracking_uri)
    records = [json.loads(line) for line in lines]
    for record in records:  # the folder may have been moved since
        if record["kind"] == "file":
            path = Path(record["path"])
            record["path"] = str(inside(folder, f"{path.parent.name}/{path.name}"))
    client, target = target.open()
    sender = RunSender(client, target.run_id)
    with as_tracking_error("cannot send the records", str(folder)):
        for first in range(0, len(records), _RECORDS_PER_REQUEST):
            sender.send(records[first : first + _RECORDS_PER_REQUEST])
    shutil.rmtree(folder)
    return len(records)


def keep_unsent(store: ObjectStore, spool: Path, folder_uri: str) -> None:
    """Move a folder of unsent records to storage, and say where they lie.

    A store that fails as well leaves the folder where it is, which the log says too.
    """
    # by time: what one step said of the run's state must not overwrite what a later one said
    kept = below(folder_uri, f"{time.time_ns():020d}-{uuid.uuid4().hex[:8]}")
    try:
        for path in sorted(path for path in spool.rglob("*") if path.is_file()):
            store.upload(path, below(kept, path.relative_to(spool).as_posix()))
    except StorageError as error:
        log.warning("unsent tracking records stay in %s: %s", spool, error)
        return
    shutil.rmtree(spool, ignore_errors=True)
    log.warning(
        "unsent tracking records lie in %s. A later step of this run, or the last one of another, "
        "sends them when the server is back; by hand: python -m iceaggr.tracking.unsent %s",
        kept,
        folder_uri,
    )


def send_kept(store: ObjectStore, folder_uri: str, tracking_uri: str = "") -> int:
    """Send what `keep_unsent` kept below a folder, then delete it; returns the records sent.

    tracking_uri: empty = that of the environment, and only without one what the records name:
    they lie in a bucket, and our credentials go along.
    A server that is away again leaves the rest for later.
    Raises: StorageError, also for a name that leaves its folder; TrackingError if the server
    refuses.
    """
    n_sent = 0
    for kept, uris in _kept(store, folder_uri).items():
        try:
            n_sent += _send(store, kept, uris, tracking_uri)
        except TrackingError as error:
            if not may_pass(error):
                raise
            log.warning("records in %s stay unsent: %s", kept, error)
            break
    return n_sent


def send_kept_of_runs(store: ObjectStore, runs_uri: str) -> str:
    """Send what runs left that ended while the server was away, their final state with it.

    runs_uri: holds a folder of `keep_unsent` for each run.
    Returns in words what was sent and what stays, '' if nothing lay there: the troubles of one run
    are no other run's.  Raises: StorageError if they cannot be listed.
    """
    n_sent, n_runs, stays = 0, 0, ""
    for run_uri in _kept(store, runs_uri):
        try:
            for kept, uris in _kept(store, run_uri).items():
                n_sent += _send(store, kept, uris)
            n_runs += 1
        except (TrackingError, StorageError) as error:
            # a server that is away has been told of already, by the step that missed it
            stays = f", those in {run_uri} stay: {error.what if may_pass(error) else error}"
            if may_pass(error):
                break
    sent = f"{n_sent} tracking records of {n_runs} earlier runs sent" if n_sent else ""
    return f"{sent}{stays}".removeprefix(", ")


def _send(store: ObjectStore, kept: str, uris: list[str], tracking_uri: str = "") -> int:
    """Send one folder of records and delete it. Raises: StorageError, TrackingError."""
    with TemporaryDirectory(prefix="iceaggr-unsent-") as scratch:
        spool = Path(scratch, "spool")
        for uri in uris:
            path = inside(spool, uri.removeprefix(f"{kept}/"))
            path.parent.mkdir(parents=True, exist_ok=True)
            store.download(uri, path)
        n_sent = replay(spool, tracking_uri or tracking_server())
    for uri in uris:
        store.delete(uri)
    return n_sent


def _kept(store: ObjectStore, folder_uri: str) -> dict[str, list[str]]:
    """Group what lies below a folder by the first part of its name, in the order of names."""
    found: dict[str, list[str]] = {}
    base = folder_uri.rstrip("/")
    for item in store.list(f"{base}/"):
        name = item.uri.removeprefix(f"{base}/").partition("/")[0]
        found.setdefault(f"{base}/{name}", []).append(item.uri)
    return dict(sorted(found.items()))


def main(arguments: list[str] | None = None) -> int:
    """Run from the command line; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m iceaggr.tracking.unsent", description=__doc__)
    parser.add_argument("folder", help="a folder of unsent records, or its URI in storage")
    folder = parser.parse_args(arguments).folder
    try:
        n_sent = send_kept(open_store(), folder) if "://" in folder else replay(Path(folder))
    except IceaggrError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(f"{n_sent} records sent")
    return 0


if __name__ == "__main__":
    from iceaggr.entry import run

    run(main)
