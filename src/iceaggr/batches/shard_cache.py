"""Local copies of remote shards, bounded in size, named by their hash.

Several processes may share a folder: files appear by renaming and are only ever replaced by equal
content. A copy that another process deletes to make room is simply fetched again. Copies are not
forced to the disk, which would take longer than fetching them: every read verifies the hash, so one
that a crash left incomplete is fetched again, too.
"""

from __future__ import annotations

import logging
import os
import threading
from pathlib import Path
from tempfile import TemporaryFile
from uuid import uuid4

from iceaggr.errors import ShardError, StorageError
from iceaggr.events.dom_events import DomEvents
from iceaggr.interfaces import ObjectStore
from iceaggr.shards.manifest import ShardEntry
from iceaggr.shards.reading import read_shard_bytes, verified_shard

logger = logging.getLogger(__name__)

SUFFIX = ".arrow"


class ShardCache:
    """Reads shards through a local folder; the least recently used are deleted."""

    def __init__(self, store: ObjectStore, folder: Path, max_bytes: int) -> None:
        """Keep copies in a folder, which is made. Raises: StorageError if it takes no files."""
        self._store = store
        self._folder = folder.absolute()
        self._max_bytes = max_bytes
        self._lock = threading.Lock()
        self._make()

    def _make(self) -> None:
        """Make the folder, and find out at once whether it takes files."""
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            with TemporaryFile(dir=self._folder):
                pass
        except OSError as error:
            raise StorageError(
                "folder for copies of shards cannot be used",
                where=f"batches.cache_folder {self._folder}",
                found=error.strerror or str(error),
                expected="a folder, or the name of a new one, where this user may write files",
                remedy="Give another batches.cache_folder, or none: shards are then read from their"
                " storage each time",
            ) from error

    def read(self, entry: ShardEntry) -> DomEvents:
        """Read a shard, from the folder if it is there.

        What is fetched is verified before it is kept, and used without reading the copy.
        Raises: StorageError; ShardError if the remote shard itself is damaged.
        """
        path = self._folder / f"{entry.blake3}{SUFFIX}"
        if path.exists():
            try:
                events = verified_shard(path.read_bytes(), entry)
            except (ShardError, OSError) as error:
                logger.warning("cached shard is read again from %s: %s", entry.uri, error)
                path.unlink(missing_ok=True)
            else:
                _mark_used(path)
                return events
        data, found_hash = read_shard_bytes(self._store, entry)
        events = verified_shard(data, entry, found_hash)
        self._keep(data, path)
        return events

    def n_bytes(self) -> int:
        """Measure the folder."""
        return sum(size for _, size, _ in self._copies())

    def _keep(self, data: bytes, path: Path) -> None:
        """Make room, write under a temporary name, rename."""
        partial = path.with_name(f"{path.name}.{uuid4().hex}.part")
        try:
            partial.write_bytes(data)
            with self._lock:
                self._make_room(len(data))
                os.replace(partial, path)
        except OSError as error:
            raise StorageError(
                "cannot keep a local copy of a shard",
                where=f"batches.cache_folder {self._folder}",
                found=error.strerror or str(error),
                expected=f"room for {self._max_bytes} bytes",
                remedy="Make room on the disk, lower batches.cache_gib, or set no "
                "batches.cache_folder",
            ) from error
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
