"""EventLoader: an epoch of batches, shuffled, dealt to ranks, read ahead and resumable anywhere."""

from __future__ import annotations

import logging
import math
import os
import threading
from collections.abc import Callable, Generator, Iterator, Mapping
from concurrent.futures import Executor, Future
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property
from itertools import islice
from pathlib import Path
from tempfile import TemporaryFile
from uuid import uuid4

import numpy as np

from iceaggr.batches.collation import SensorTable
from iceaggr.batches.event_batch import EventBatch, IntArray
from iceaggr.batches.event_pool import EventPool, Extent
from iceaggr.batches.shuffling import (
    Deal,
    Span,
    WindowFeed,
    WindowOrder,
    deal,
    grouped_by_length,
    in_order,
    mixed_order,
    n_events_to_mix,
    shuffle_key,
    windows_of,
    workers,
)
from iceaggr.config import BatchConfig
from iceaggr.detector import Detector
from iceaggr.errors import IceaggrError, ShardError, StorageError
from iceaggr.events.dom_events import DomEvents
from iceaggr.interfaces import ObjectStore
from iceaggr.shards.manifest import ShardEntry, ShardManifest
from iceaggr.shards.reading import read_shard, read_shard_bytes, verified_shard

# Local copies of remote shards, bounded in size, named by their hash.
#
# Several processes may share a folder: files appear by renaming and are only ever replaced by equal
# content. A copy that another process deletes to make room is simply fetched again. Copies are not
# forced to the disk, which would take longer than fetching them: every read verifies the hash, so
# one that a crash left incomplete is fetched again, too.

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
                with suppress(FileNotFoundError):  # another process made room
                    os.utime(path)
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


Position = dict[str, int]
"""{"epoch": e, "n_events_done": n}: n counts the events of all ranks, so any number may go on."""

GIB = 1024**3
N_TOGETHER = 8
"""Batches that are assembled in one go."""


@dataclass(eq=False)
class EventLoader:
    """Batches of one split, the same on every machine.

    Every epoch visits each event once, over all ranks together; each rank gets the same number of
    batches. Only when an epoch ends with fewer events than ranks is a batch empty (n_events 0).
    shuffle: None shuffles the train split only.
    Raises: ShardError if the split is empty; ValueError for a rank outside the world.
    """

    store: ObjectStore
    manifest: ShardManifest
    split: str
    detector: Detector
    config: BatchConfig
    rank: int = 0
    world_size: int = 1
    shuffle: bool | None = None
    position: Position = field(init=False)
    """Where the epoch stands once the batch handed out last is used: readable JSON."""

    def __post_init__(self) -> None:
        if not 0 <= self.rank < self.world_size:
            raise ValueError(f"rank {self.rank} is outside a world of {self.world_size}")
        self.position = {"epoch": 0, "n_events_done": 0}
        # a cache that cannot be used is told here, not as a fault of the first shard
        self._read = self._reader()
        self._entries = [entry for entry in self.manifest.shards_of(self.split) if entry.n_events]
        if not self._entries:
            raise ShardError(
                f"no events in the {self.split} split",
                where=f"manifest {self.manifest.digest()}",
                found="none",
                expected="at least one",
                remedy="Shard more raw events or raise the share of this split",
            )

    @cached_property
    def n_events(self) -> int:
        """Count the events of an epoch, over all ranks."""
        return sum(entry.n_events for entry in self._entries)

    def n_batches(self, epoch: int) -> int:
        """Count the batches that each rank gets in a whole epoch.

        With a token budget the lengths of all events are needed: the first call reads every shard.
        """
        if not self.config.max_doms_per_batch:
            n_spans = -(-self.n_events // self.config.n_events)
        else:
            n_spans = 0
            for number, window in enumerate(self._windows(epoch)):
                ends = self._order(epoch, number, window, self._n_doms_of(window)).ends
                assert ends is not None
                n_spans += len(ends)
        return -(-n_spans // self.world_size)

    def epoch(self, epoch: int, position: Mapping[str, int] | None = None) -> Generator[EventBatch]:
        """Yield this rank's batches, from the beginning or from a saved position of this epoch.

        Batches come in the same order whatever the number of workers. Close the iterator (or use it
        up) to end the background threads.
        Raises: ShardError naming the shard that could not be used; StorageError.
        """
        return self._run(epoch, self._n_events_done(epoch, position))

    def _run(self, epoch: int, n_events_done: int) -> Generator[EventBatch]:
        with workers(self.config.n_workers) as executor:
            feed = self._feed(epoch, executor)
            spans = self._spans(feed, n_events_done)
            tasks = self._tasks(feed, deal(spans, self.rank, self.world_size))
            n_ahead = -(-self.config.n_batches_ahead // N_TOGETHER) if self.config.n_workers else 0
            for batches, deals in in_order(tasks, n_ahead):
                for batch, one in zip(batches, deals, strict=True):
                    self.position = {"epoch": epoch, "n_events_done": one.n_events_done}
                    yield batch

    def _tasks(
        self, feed: WindowFeed, deals: Iterator[Deal]
    ) -> Iterator[tuple[Future[list[EventBatch]], list[Deal]]]:
        while together := list(islice(deals, N_TOGETHER)):
            yield feed.gather([one.span for one in together]), together

    def _spans(self, feed: WindowFeed, n_events_done: int) -> Iterator[Span]:
        """Cut the rest of the epoch into batches, at the same places wherever the rest begins."""
        first = n_events_done
        for end in self._ends(feed, n_events_done):
            if end > first:
                yield Span(first, end)
            first = end

    def _ends(self, feed: WindowFeed, n_events_done: int) -> Iterator[int]:
        size = self.config.n_events
        if not self.config.max_doms_per_batch:
            for first in range(n_events_done - n_events_done % size, self.n_events, size):
                yield min(first + size, self.n_events)
            return
        for number, start in enumerate(feed.starts[:-1].tolist()):
            if feed.starts[number + 1] <= n_events_done:
                continue
            ends = feed.window(number).result().order.ends
            assert ends is not None
            yield from (start + ends[start + ends > n_events_done]).tolist()

    def _feed(self, epoch: int, executor: Executor) -> WindowFeed:
        windows = self._windows(epoch)
        return WindowFeed(
            windows=windows,
            fill=self._fill,
            order=lambda number, n_doms: self._order(epoch, number, windows[number], n_doms),
            table=SensorTable.of(self.detector),
            executor=executor,
        )

    def _windows(self, epoch: int) -> list[list[ShardEntry]]:
        key, n_mixed = self._key(epoch, "shards"), self.config.n_mixed_shards
        if key is not None:
            n_enough = n_events_to_mix(self.config) * len(self._entries) / self.n_events
            n_mixed = max(n_mixed, math.ceil(n_enough))
        numbers = windows_of(len(self._entries), n_mixed, key)
        return [[self._entries[i] for i in window] for window in numbers]

    def _order(
        self, epoch: int, number: int, window: list[ShardEntry], n_doms: IntArray
    ) -> WindowOrder:
        key = self._key(epoch, "window", number)
        if key is None:
            rows = np.arange(len(n_doms))
        else:
            rows = mixed_order(np.array([entry.n_events for entry in window]), key)
        if not self.config.max_doms_per_batch:
            return WindowOrder(rows)
        return WindowOrder(*grouped_by_length(rows, n_doms, self.config, key))

    def _key(self, epoch: int, *parts: object) -> int | None:
        shuffled = self.split == "train" if self.shuffle is None else self.shuffle
        if not shuffled:
            return None
        return shuffle_key(self.manifest.digest(), self.split, self.config.seed, epoch, *parts)

    def _n_events_done(self, epoch: int, position: Mapping[str, int] | None) -> int:
        if position is None:
            return 0
        at, done = position.get("epoch"), position.get("n_events_done")
        if at != epoch or not isinstance(done, int) or not 0 <= done <= self.n_events:
            raise ShardError(
                "position is not of this epoch and data",
                where=f"{self.split} split of manifest {self.manifest.digest()}",
                found=f"epoch {at}, {done} events done",
                expected=f"epoch {epoch}, at most {self.n_events} events",
                remedy="Resume with the manifest that the run was started with",
            )
        return done

    def _reader(self) -> Callable[[ShardEntry], DomEvents]:
        if not self.config.cache_folder:
            return lambda entry: read_shard(self.store, entry)
        folder = Path(self.config.cache_folder)
        return ShardCache(self.store, folder, int(self.config.cache_gib * GIB)).read

    @cached_property
    def _known_n_doms(self) -> dict[str, IntArray]:
        return {}

    def _n_doms_of(self, window: list[ShardEntry]) -> IntArray:
        """Find the capped lengths of a window's events; each shard is read for it once."""
        for entry in window:
            if entry.blake3 not in self._known_n_doms:
                n_doms = np.diff(self._read(entry).event_dom_offsets)
                n_doms = np.minimum(n_doms, self.config.max_doms_per_event)
                self._known_n_doms[entry.blake3] = n_doms.astype(np.int32)
        return np.concatenate([self._known_n_doms[entry.blake3] for entry in window])

    def _fill(self, pool: EventPool, begin: Extent, entry: ShardEntry) -> None:
        try:
            pool.fill(begin, self._read(entry), self.detector, self.config)
        except IceaggrError as error:
            if entry.uri in str(error):
                raise
            raise error.at(f"{entry.uri} {error.where}".strip()) from error
        except Exception as error:
            raise ShardError(
                "shard could not be loaded",
                where=entry.uri,
                found=repr(error),
                expected="a readable shard",
                remedy="Run the step again; if it stays so, shard its raw file again",
            ) from error
