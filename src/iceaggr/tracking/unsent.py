"""Unsent tracking records: kept in object storage, sent when the server is back."""

from __future__ import annotations

import logging
import shutil
import uuid
from pathlib import Path
from tempfile import TemporaryDirectory

from iceaggr.errors import StorageError, TrackingError
from iceaggr.interfaces import ObjectStore
from iceaggr.service_settings import tracking_server
from iceaggr.storage.uris import below, inside
from iceaggr.tracking.connection import may_pass
from iceaggr.tracking.replay import replay

log = logging.getLogger(__name__)


def keep_unsent(store: ObjectStore, spool: Path, folder_uri: str) -> None:
    """Move a folder of unsent records to storage, and say where they lie.

    A store that fails as well leaves the folder where it is, which the log says too.
    """
    kept = below(folder_uri, uuid.uuid4().hex[:8])
    try:
        for path in sorted(path for path in spool.rglob("*") if path.is_file()):
            store.upload(path, below(kept, path.relative_to(spool).as_posix()))
    except StorageError as error:
        log.warning("unsent tracking records stay in %s: %s", spool, error)
        return
    shutil.rmtree(spool, ignore_errors=True)
    log.warning(
        "unsent tracking records lie in %s. A later step of this run sends them when the server is "
        "back; by hand: python -m iceaggr.tracking.replay %s",
        *(kept, folder_uri),
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
        with TemporaryDirectory(prefix="iceaggr-unsent-") as scratch:
            spool = Path(scratch, "spool")
            for uri in uris:
                path = inside(spool, uri.removeprefix(f"{kept}/"))
                path.parent.mkdir(parents=True, exist_ok=True)
                store.download(uri, path)
            try:
                n_sent += replay(spool, tracking_uri or tracking_server())
            except TrackingError as error:
                if not may_pass(error):
                    raise
                log.warning("records in %s stay unsent: %s", kept, error)
                return n_sent
        for uri in uris:
            store.delete(uri)
    return n_sent


def _kept(store: ObjectStore, folder_uri: str) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    base = folder_uri.rstrip("/")
    for item in store.list(f"{base}/"):
        name = item.uri.removeprefix(f"{base}/").partition("/")[0]
        found.setdefault(f"{base}/{name}", []).append(item.uri)
    return found
