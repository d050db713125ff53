"""Sends what a finished run could not: `python -m iceaggr.tracking.replay FOLDER`."""

from __future__ import annotations

if __name__ == "__main__":
    from iceaggr.entry import begin

    begin()

import argparse
import json
import shutil
import sys
from dataclasses import replace
from pathlib import Path

from iceaggr.errors import IceaggrError, TrackingError
from iceaggr.storage.uris import inside
from iceaggr.tracking.connection import as_tracking_error
from iceaggr.tracking.outbox import RECORDS
from iceaggr.tracking.run_target import load_target
from iceaggr.tracking.sending import RunSender

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


def _replay_stored(folder_uri: str) -> int:
    from iceaggr.storage import open_store
    from iceaggr.tracking.unsent import send_kept

    return send_kept(open_store(), folder_uri)


def main(arguments: list[str] | None = None) -> int:
    """Run from the command line; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m iceaggr.tracking.replay", description=__doc__)
    parser.add_argument("folder", help="a folder of unsent records, or its URI in storage")
    folder = parser.parse_args(arguments).folder
    try:
        n_sent = _replay_stored(folder) if "://" in folder else replay(Path(folder))
    except IceaggrError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(f"{n_sent} records sent")
    return 0


if __name__ == "__main__":
    from iceaggr.entry import run

    run(main)
