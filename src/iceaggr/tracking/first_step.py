"""What the first step finds out about the tracking server, before a day's work relies on it.

A database that cannot hold our signs, or a server that keeps no files, would refuse the results of
the last step. So the first one writes a text and a file of the kind that the last one writes.
"""

from __future__ import annotations

import tempfile
import uuid
from pathlib import Path
from urllib.parse import urlsplit

import mlflow
from mlflow import MlflowClient

from iceaggr.errors import TrackingError
from iceaggr.patience import ask_patiently, may_pass
from iceaggr.tracking.connection import (
    LACKS_SIGNS_REMEDY,
    ServerAwayError,
    as_tracking_error,
)

NOTE_TAG = "mlflow.note.content"
PLAIN_NOTE = "The pipeline works on this run."
NOTE = f"{PLAIN_NOTE} Angles come in ° ± their error; the verdict (gain ≥ so many σ) comes last."
"""Holds a sign of each kind that our texts have beyond ASCII: Latin, Greek, mathematical."""
SETTINGS_FILE = "settings.json"
_HERE = ("localhost", "127.0.0.1", "::1", "[::1]")
_WITH_SCHEME = ("mlflow-artifacts:", "http:", "https:", "s3:", "gs:", "wasbs:", "abfss:", "dbfs:")


def check_server(client: MlflowClient, run_id: str, settings: str, patience_s: float) -> None:
    """Write a text with our signs and a file into a run, and read them back.

    settings: text of the file, which stays with the run.
    patience_s: how long to wait for a server that is away or failing.
    Raises: TrackingError that names what the server cannot keep, and why.
    """

    def check() -> None:
        _check_place_of_files(client, run_id)
        _check_signs(client, run_id)
        _check_files(client, run_id, settings)

    ask_patiently(check, is_away=may_pass, patience_s=patience_s)


def _check_place_of_files(client: MlflowClient, run_id: str) -> None:
    """Refuse a server that leaves files to the disk of whoever writes them."""
    server = client.tracking_uri
    with as_tracking_error("cannot read the run", run_id):
        place = str(client.get_run(run_id).info.artifact_uri)
    is_here = not server.startswith(("http:", "https:")) or urlsplit(server).hostname in _HERE
    if place.startswith(_WITH_SCHEME) or is_here:
        return
    raise TrackingError(
        "tracking server has no artifact store",
        where=server,
        found=f"files of runs go to {place}, a folder of each client's own disk",
        expected="a server that takes files, or an object store that all can reach",
        remedy="Start the server with --serve-artifacts and --artifacts-destination, then use a new"
        " experiment: an experiment keeps its place",
    )


def _check_signs(client: MlflowClient, run_id: str) -> None:
    """Write our signs after a plain text: if only they fail, it is the database's encoding."""
    with as_tracking_error("cannot write into the run", run_id):
        client.set_tag(run_id, NOTE_TAG, PLAIN_NOTE)
    try:
        with as_tracking_error("cannot write into the run", run_id):
            client.set_tag(run_id, NOTE_TAG, NOTE)
            found = client.get_run(run_id).data.tags[NOTE_TAG]
    except TrackingError as error:
        if isinstance(error, ServerAwayError):
            raise
        with as_tracking_error("cannot write into the run", run_id):
            client.set_tag(run_id, NOTE_TAG, PLAIN_NOTE)  # fails, too, if it is another trouble
        # the error becomes a tag of the run itself, and must not hold what the server refuses
        raise _without_signs(
            client, f"{error.found}".encode("ascii", "replace").decode()
        ) from None  # a failing server may recover, this one not
    if found != NOTE:
        raise _without_signs(client, ascii(found))


def _without_signs(client: MlflowClient, found: str) -> TrackingError:
    return TrackingError(
        "tracking server cannot keep texts with signs such as plus-minus or degrees",
        where=client.tracking_uri,
        found=found,
        expected="a database in UTF-8, which plain text alone does not need",
        remedy=LACKS_SIGNS_REMEDY,
    )


def _check_files(client: MlflowClient, run_id: str, settings: str) -> None:
    with (
        tempfile.TemporaryDirectory(prefix="iceaggr-first-step-") as scratch,
        as_tracking_error("tracking server cannot keep files", client.tracking_uri),
    ):
        path = Path(scratch, SETTINGS_FILE)
        path.write_text(settings, encoding="utf-8")
        client.log_artifact(run_id, str(path))
        back = mlflow.artifacts.download_artifacts(
            run_id=run_id,
            artifact_path=SETTINGS_FILE,
            dst_path=str(Path(scratch, uuid.uuid4().hex)),
            tracking_uri=client.tracking_uri,
        )
        found = Path(back).read_text(encoding="utf-8")
    if found != settings:
        raise TrackingError(
            "tracking server gives back another file than it was given",
            where=f"{client.tracking_uri}, run {run_id}, {SETTINGS_FILE}",
            found=f"{len(found)} characters",
            expected=f"the {len(settings)} characters that were sent",
            remedy="Check the server's --artifacts-destination",
        )
