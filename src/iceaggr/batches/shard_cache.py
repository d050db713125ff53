"""Local copies of remote shards, bounded in size, named by their hash.

Several processes may share a folder: files appear by renaming and are only ever replaced by equal
content. A copy that another process deletes to make room is simply fetched again.
"""

from __future__ import annotations

import logging
import os
import threading
from pathlib import Path
from uuid import uuid4

from iceaggr.errors import ShardError
from iceaggr.events.dom_events import DomEvents
from iceaggr.interfaces import ObjectStore
from iceaggr.shards.manifest import ShardEntry
from iceaggr.shards.reading import verified_shard
from iceaggr.verified import N_READS

logger = logging.getLogger(__name__)

SUFFIX = ".arrow"


class ShardCache:
    """Reads shards through a local folder; the least recently used are deleted."""

    def __init__(self, store: ObjectStore, folder: Path, max_bytes: int) -> None:
        self._store = store
        self._folder = folder.absolute()
        self._max_bytes = max_bytes
        self._lock = threading.Lock()
        self._folder.mkdir(parents=True, exist_ok=True)

    def read(self, entry: ShardEntry) -> DomEvents:
        """Read a shard, from the folder if it is there.

        A damaged copy is fetched again once; every read verifies the hash.
        Raises: StorageError; ShardError if the remote shard itself is damaged.
        """
        path = self._folder / f"{entry.sha256}{SUFFIX}"
        if path.exists():
            try:
                events = self._read_copy(entry, path)
            except (ShardError, OSError) as error:
                logger.warning("cached shard is read again from %s: %s", entry.uri, error)
                path.unlink(missing_ok=True)
            else:
                _mark_used(path)
                return events
        for _ in range(N_READS - 1):
            self._fetch(entry, path)
            try:
                return self._read_copy(entry, path)
            except (ShardError, OSError) as error:
                logger.warning("%s is fetched again: %s", entry.uri, error)
        self._fetch(entry, path)
        return self._read_copy(entry, path)

    def n_bytes(self) -> int:
        """Measure the folder."""
        return sum(size for _, size, _ in self._copies())

    def _read_copy(self, entry: ShardEntry, path: Path) -> DomEvents:
        return verified_shard(path.read_bytes(), entry)

    def _fetch(self, entry: ShardEntry, path: Path) -> None:
        """Download under a temporary name, make room, rename."""
        partial = path.with_name(f"{path.name}.{uuid4().hex}.part")
        try:
            self._store.download(entry.uri, partial)
            with self._lock:
                self._make_room(partial.stat().st_size)
                os.replace(partial, path)
        finally:
            partial.unlink(missing_ok=True)

    def _make_room(self, n_bytes: int) -> None:
        copies = sorted(self._copies())
        excess = sum(size for _, size, _ in copies) + n_bytes - self._max_bytes
        for _, size, path in copies:
            if excess <= 0:
                break
            path.unlink(missing_ok=True)
            excess -= size

    def _copies(self) -> list[tuple[int, int, Path]]:
        """List time of last use in ns, size in bytes and path of each copy."""
        copies = []
        for path in self._folder.glob(f"*{SUFFIX}"):
            try:
                status = path.stat()
            except FileNotFoundError:  # another process made room
                continue
            copies.append((status.st_mtime_ns, status.st_size, path))
        return copies


def _mark_used(path: Path) -> None:
    try:
        os.utime(path)
    except FileNotFoundError:
        logger.debug("cached shard %s was deleted while in use", path)
