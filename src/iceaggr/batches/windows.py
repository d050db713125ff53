"""Windows: the shards that are mixed together, read ahead in the background."""

from __future__ import annotations

import math
import weakref
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np

from iceaggr.batches.collation import Gatherer, SensorTable, join_batches
from iceaggr.batches.event_batch import EventBatch, IntArray, offsets_of
from iceaggr.batches.event_pool import NOTHING, EventPool, Extent
from iceaggr.batches.shuffling import Span
from iceaggr.shards.manifest import ShardEntry

# Background threads that end with their iterator.

Note = TypeVar("Note")
Result = TypeVar("Result")


class CallerExecutor(Executor):
    """Runs each task at once in the calling thread."""

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        """Run the task; its exception is raised by result(), as with threads."""
        future: Future[Any] = Future()
        try:
            future.set_result(fn(*args, **kwargs))
        except Exception as error:
            future.set_exception(error)
        return future


@contextmanager
def workers(n_workers: int) -> Iterator[Executor]:
    """Start threads (0 = run tasks in the caller); on leaving, cancel what waits and join them."""
    executor: Executor = (
        ThreadPoolExecutor(n_workers, thread_name_prefix="iceaggr-batches")
        if n_workers
        else CallerExecutor()
    )
    try:
        yield executor
    finally:
        executor.shutdown(wait=True, cancel_futures=True)


def in_order(
    tasks: Iterator[tuple[Future[Result], Note]], n_ahead: int
) -> Iterator[tuple[Result, Note]]:
    """Yield each result with its note, in the order of submission, up to n_ahead under way."""
    under_way: deque[tuple[Future[Result], Note]] = deque()
    for task in tasks:
        under_way.append(task)
        if len(under_way) > n_ahead:
            future, note = under_way.popleft()
            yield future.result(), note
    while under_way:
        future, note = under_way.popleft()
        yield future.result(), note


READ_AHEAD_SHARE = 0.75
"""Share of a window's batches by which the next window has been asked for whole."""

FillPool = Callable[[EventPool, Extent, ShardEntry], None]
"""Reads a shard into its place in a pool."""


@dataclass(frozen=True)
class WindowOrder:
    """The events of a window in their final order, and the ends of its batches.

    rows: (B,) int64.  ends: int64, or None where batches are cut across windows.
    """

    rows: IntArray
    ends: IntArray | None = None


OrderWindow = Callable[[int, IntArray], WindowOrder]
"""From the number of the window and the DOMs of its events to the order."""


@dataclass(frozen=True)
class Window:
    """The events of some shards in memory, ready to be gathered."""

    gatherer: Gatherer
    order: WindowOrder


@dataclass(frozen=True)
class Piece:
    """Part of a window, which is perhaps still being read."""

    window: Future[Window]
    span: Span

    def rows(self) -> IntArray:
        """Wait for the window and give the rows of its pool."""
        return self.window.result().order.rows[self.span.first : self.span.end]


class Reading:
    """A window whose shards are being read into a pool."""

    def __init__(
        self, entries: Sequence[ShardEntry], memory: EventPool, executor: Executor, fill: FillPool
    ) -> None:
        self.memory = memory
        self._entries = entries
        self._executor = executor
        self._fill = fill
        self._futures: list[Future[None]] = []
        self._end = NOTHING
        self._pool = memory.first(Extent.of_all(entries))

    def advance(self, share: float) -> None:
        """Start reading until this share of the shards is under way."""
        n_wanted = min(len(self._entries), math.ceil(share * len(self._entries)))
        for entry in self._entries[len(self._futures) : n_wanted]:
            self._futures.append(self._executor.submit(self._fill, self._pool, self._end, entry))
            self._end += Extent.of(entry)

    def finish(self) -> EventPool:
        """Wait for all shards. Raises: what reading one of them raised."""
        for future in self._futures:
            future.result()
        return self._pool


class WindowFeed:
    """Reads the windows of an epoch one after the other, at most one ahead."""

    def __init__(
        self,
        windows: Sequence[Sequence[ShardEntry]],
        fill: FillPool,
        order: OrderWindow,
        table: SensorTable,
        executor: Executor,
    ) -> None:
        self._windows = windows
        self._fill = fill
        self._order = order
        self._table = table
        self._executor = executor
        self._reading: dict[int, Reading] = {}
        self._ready: dict[int, Future[Window]] = {}
        extents = [Extent.of_all(window) for window in windows]
        self.starts = offsets_of(np.array([extent.n_events for extent in extents], np.int64))
        self._largest = Extent(
            max(extent.n_events for extent in extents),
            max(extent.n_doms for extent in extents),
            max(extent.n_pulses for extent in extents),
        )
        self._spare_memory: list[EventPool] = []

    def window(self, number: int) -> Future[Window]:
        """Give a window, reading it now if that was not asked for before."""
        if number not in self._ready:
            self._ask(number, 1.0)
            reading = self._reading.pop(number)
            self._ready[number] = self._executor.submit(self._assemble, number, reading)
        return self._ready[number]

    def gather(self, spans: Sequence[Span]) -> Future[list[EventBatch]]:
        """Assemble some batches in the background and read ahead in step."""
        located = [self._pieces(span) for span in spans]
        last_span = spans[-1]
        self._forget_before(self._windows_of(spans[0])[0])
        last = self._windows_of(last_span)[1]
        if last + 1 < len(self._windows) and last + 1 not in self._ready:
            size = self.starts[last + 1] - self.starts[last]
            progress = (last_span.end - self.starts[last]) / size
            self._ask(last + 1, progress / READ_AHEAD_SHARE)
            if progress >= READ_AHEAD_SHARE:
                self.window(last + 1)
        return self._executor.submit(_gather, located)

    def _pieces(self, span: Span) -> list[Piece]:
        """Find the windows of a span, and its part of each."""
        first, last = self._windows_of(span)
        pieces = []
        for number in range(first, last + 1):
            start, end = self.starts[number], self.starts[number + 1]
            part = Span(int(max(span.first, start) - start), int(min(span.end, end) - start))
            pieces.append(Piece(self.window(number), part))
        return pieces

    def _forget_before(self, first: int) -> None:
        """Let go of windows that are used up, or passed over because other ranks have them."""
        for done in [number for number in self._ready if number < first]:
            del self._ready[done]
        for passed in [number for number in self._reading if number < first]:
            del self._reading[passed]

    def _windows_of(self, span: Span) -> tuple[int, int]:
        """Find the first and the last window of a span."""
        first = int(np.searchsorted(self.starts, span.first, side="right")) - 1
        last = int(np.searchsorted(self.starts, max(span.first, span.end - 1), side="right")) - 1
        n = len(self._windows) - 1
        return min(first, n), min(last, n)

    def _ask(self, number: int, share: float) -> None:
        if number not in self._reading:
            # fresh pages cost as much as what is written to them, so memory is used again
            spare = self._spare_memory
            memory = spare.pop() if spare else EventPool.with_room_for(self._largest)
            self._reading[number] = Reading(
                self._windows[number], memory, self._executor, self._fill
            )
        self._reading[number].advance(share)

    def _assemble(self, number: int, reading: Reading) -> Window:
        pool = reading.finish()
        window = Window(Gatherer(pool, self._table), self._order(number, pool.n_doms))
        # free again once no waiting task refers to the window
        weakref.finalize(window, self._spare_memory.append, reading.memory)
        return window


def _gather(located: list[list[Piece]]) -> list[EventBatch]:
    windows = {id(piece.window) for pieces in located for piece in pieces}
    if len(windows) == 1:
        window = located[0][0].window.result()
        return window.gatherer.gather_several([pieces[0].rows() for pieces in located])
    return [
        join_batches([piece.window.result().gatherer.gather(piece.rows()) for piece in pieces])
        for pieces in located
    ]
