"""Dealing batches to ranks in rounds, so that every rank takes the same number of steps.

The epoch is one global sequence of batches. A round gives one batch to each rank, in order, so
that what is done after a round is always the beginning of the sequence: one integer says where an
epoch stands, whatever the number of ranks that did it or will go on.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import pairwise

import numpy as np


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
