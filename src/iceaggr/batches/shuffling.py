"""The order of an epoch: a pure function of manifest, split, seed and epoch, on any machine.

Shards are permuted and cut into windows; a batch draws its events from all shards of one window.
Random numbers come from a hash, not from a generator whose stream may change between releases.
"""

from __future__ import annotations

import hashlib
import math
import weakref
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from iceaggr.batches.collation import Gatherer, SensorTable, batch_ends, join_batches
from iceaggr.batches.event_batch import EventBatch, IntArray, offsets_of
from iceaggr.batches.event_pool import NOTHING, EventPool, Extent
from iceaggr.config import BatchConfig
from iceaggr.shards.manifest import ShardEntry

N_NEIGHBOURS = 8
"""Events this close in a shard are kept apart in the order."""
NEIGHBOUR_GAP = 1 / 64
"""How far apart, as a share of the window."""
GAP_MARGIN = 1.25
"""Gaps are drawn as shares and used as counts, which scatter around them."""
MAX_REDRAWS = 64
"""Each round leaves about half of the neighbours that are too close, so far fewer are needed."""
N_GROUPED_EVENTS = 1024
"""Events among which like lengths are brought together; at least two batches' worth."""


def shuffle_key(*parts: object) -> int:
    """Hash anything printable to a 64-bit key."""
    text = "/".join(str(part) for part in parts)
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "little")


def random_numbers(n: int, key: int) -> npt.NDArray[np.float64]:
    """Draw the first n numbers of the stream of a key: (n,) float64 in [0, 1).

    Source: SplitMix64; Steele, Lea and Flood, "Fast splittable pseudorandom number
    generators", 2014.
    """
    golden = np.uint64(0x9E3779B97F4A7C15)
    state = np.arange(1, n + 1, dtype=np.uint64) * golden + np.array([key], np.uint64)
    state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return ((state ^ (state >> np.uint64(31))) >> np.uint64(11)).astype(np.float64) * 2.0**-53


def permutation(n: int, key: int) -> IntArray:
    """Permute range(n): (n,) int64."""
    return np.argsort(random_numbers(n, key), kind="stable")


def windows_of(n_shards: int, n_mixed_shards: int, key: int | None) -> list[IntArray]:
    """Cut all shards into windows of at least n_mixed_shards (fewer only if there are fewer).

    key: permutes the shards; None keeps their order. Returns the shard numbers of each window.
    """
    order = np.arange(n_shards) if key is None else permutation(n_shards, key)
    return np.array_split(order, max(1, n_shards // n_mixed_shards))


def n_events_to_mix(config: BatchConfig) -> int:
    """Count the events of a window in which no batch reaches from an event to its neighbour.

    In a smaller window neighbours that are kept apart still meet in one batch, and the more
    windows there are, the more often compared with a perfect shuffle of everything.
    """
    return math.ceil(GAP_MARGIN * _n_together(config) / NEIGHBOUR_GAP)


def _n_together(config: BatchConfig) -> int:
    """Count the events in a row that may come into one batch."""
    if not config.max_doms_per_batch:
        return config.n_events
    return max(2 * config.n_events, N_GROUPED_EVENTS)


def mixed_order(n_events_of_shards: IntArray, key: int) -> IntArray:
    """Shuffle the events of a window, keeping neighbours of a shard out of each other's batch.

    A window is only part of the data, so in a plain shuffle of it neighbours would meet more often
    than in a perfect shuffle of everything; events too close to a neighbour are drawn again.

    n_events_of_shards: (S,) int64. Returns a permutation of the window's events, int64, where the
    events of the first shard have the lowest numbers.
    """
    n_events = int(n_events_of_shards.sum())
    shard = np.repeat(np.arange(len(n_events_of_shards)), n_events_of_shards)
    place = random_numbers(n_events, key)
    for redraw in range(1, MAX_REDRAWS + 1):
        too_close = np.zeros(n_events, bool)
        for distance in range(1, min(N_NEIGHBOURS, n_events - 1) + 1):
            close = np.abs(place[distance:] - place[:-distance]) < NEIGHBOUR_GAP
            too_close[distance:] |= close & (shard[distance:] == shard[:-distance])
        rows = np.flatnonzero(too_close)
        if not len(rows):
            break
        place[rows] = random_numbers(len(rows), shuffle_key(key, redraw))
    return np.argsort(place, kind="stable")


def grouped_by_length(
    order: IntArray, n_doms: IntArray, config: BatchConfig, key: int | None
) -> tuple[IntArray, IntArray]:
    """Cut a window into batches within the token budget, of events of like length.

    order: (B,) int64 permutation.  n_doms: (B,) int64 by event number.
    key: orders the batches of a group randomly; None keeps the given order of events untouched.
    Returns the new order and the end of each batch in it, int64.
    """
    if key is None:
        return order, batch_ends(n_doms[order], config)
    n_grouped = _n_together(config)
    batches: list[IntArray] = []
    for first in range(0, len(order), n_grouped):
        group = order[first : first + n_grouped]
        group = group[np.argsort(n_doms[group], kind="stable")]
        cut = np.split(group, batch_ends(n_doms[group], config)[:-1])
        batches += [cut[i] for i in permutation(len(cut), shuffle_key(key, "group", first))]
    return np.concatenate(batches), offsets_of(np.array([len(batch) for batch in batches]))[1:]


# Dealing batches to ranks in rounds, so that every rank takes the same number of steps.
#
# The epoch is one global sequence of batches. A round gives one batch to each rank, in order, so
# that what is done after a round is always the beginning of the sequence: one integer says where an
# epoch stands, whatever the number of ranks that did it or will go on.


@dataclass(frozen=True)
class Span:
    """Events [first, end) of the epoch's order, which form a batch."""

    first: int
    end: int

    @property
    def n_events(self) -> int:
        """Count the events."""
        return self.end - self.first


@dataclass(frozen=True)
class Deal:
    """What one rank does in one round, and how many events are done when all ranks did."""

    span: Span
    n_events_done: int


def deal(spans: Iterable[Span], rank: int, world_size: int) -> Iterator[Deal]:
    """Give one span per round to each rank.

    The spans of an incomplete last round are cut smaller until they go round; only when fewer
    events than ranks are left does a rank get an empty span.
    """
    waiting: list[Span] = []
    for span in spans:
        waiting.append(span)
        if len(waiting) == world_size:
            yield Deal(waiting[rank], waiting[-1].end)
            waiting = []
    if waiting:
        yield Deal(cut_evenly(waiting, world_size)[rank], waiting[-1].end)


def cut_evenly(spans: list[Span], n_wanted: int) -> list[Span]:
    """Cut spans, the largest finest, until there are n_wanted (at least as many as spans)."""
    n_parts = np.ones(len(spans), np.int64)
    n_events = np.array([span.n_events for span in spans])
    for _ in range(n_wanted - len(spans)):
        n_parts[np.argmax(n_events / n_parts)] += 1
    cut = []
    for span, n in zip(spans, n_parts, strict=True):
        edges = span.first + np.arange(n + 1) * span.n_events // n
        cut += [Span(int(a), int(b)) for a, b in pairwise(edges)]
    return cut


# Windows: the shards that are mixed together, read ahead in the background.

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
