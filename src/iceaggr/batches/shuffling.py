"""The order of an epoch: a pure function of manifest, split, seed and epoch, on any machine.

Shards are permuted and cut into windows; a batch draws its events from all shards of one window.
Random numbers come from a hash, not from a generator whose stream may change between releases.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from iceaggr.batches.collation import batch_ends
from iceaggr.batches.event_batch import IntArray, offsets_of
from iceaggr.config import BatchConfig

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
