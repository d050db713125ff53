"""Caps on DOMs per event and pulses per DOM: what is kept when an event is too large.

The earliest DOMs of an event are noise from before the trigger, then the entry of a track; cutting
by time would lose its exit. So triggering rows come first, then the brightest of each time slice.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from iceaggr.batches.event_batch import IntArray, offsets_of, ragged_rows
from iceaggr.config import BatchConfig
from iceaggr.events.dom_events import DomEvents
from iceaggr.events.schema import PULSE_NAMES

N_TIME_SLICES = 16
"""Slices of equal population over which the kept rows of a segment are spread."""

BoolArray = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Dropped:
    """What the caps took from each event: (B,) int64 each."""

    n_doms: IntArray
    n_pulses: IntArray


@dataclass(frozen=True)
class Candidates:
    """Rows that compete for the places of their segment, in order of time within each.

    n_rows: (S,) int64, the length of each segment.
    tier: (R,) int64, lower tiers are kept first.  charge: (R,), photo-electrons.
    """

    n_rows: IntArray
    tier: IntArray
    charge: npt.NDArray[np.floating]

    def kept(self, cap: int) -> BoolArray:
        """Choose `cap` rows per segment: by tier, then in turn the brightest of each time slice.

        Of equally bright rows the earlier is kept. Returns (R,) bool.
        """
        n_tiers = 1 + int(self.tier.max(initial=0))
        segment = np.repeat(np.arange(len(self.n_rows)), self.n_rows)
        group = segment * n_tiers + self.tier
        size = np.bincount(group, minlength=len(self.n_rows) * n_tiers)
        in_tiers = size.reshape(-1, n_tiers)
        quota = np.clip(cap - (np.cumsum(in_tiers, axis=1) - in_tiers), 0, in_tiers).ravel()
        keep = (quota == size)[group]
        # at most one tier of a segment is kept in part, so the rows of a group are adjacent
        in_part = (quota > 0) & (quota < size)
        rows = np.flatnonzero(in_part[group])
        keep[rows] = _kept_in_part(self.charge[rows], size[in_part], quota[in_part])
        return keep


def _kept_in_part(charge: npt.NDArray[np.floating], size: IntArray, quota: IntArray) -> BoolArray:
    """Choose the quota of each group of rows, which are in order of time.

    size, quota: (G,) int64, 0 < quota < size. Slices are equally populated, so
    quota // N_TIME_SLICES turns are complete; of the next turn the brightest rows are kept.
    """
    edges = -(-np.arange(N_TIME_SLICES + 1) * size[:, None] // N_TIME_SLICES)
    turn = _rank_by_charge(np.diff(edges, axis=1).ravel(), charge)
    n_turns, n_left = np.divmod(quota, N_TIME_SLICES)
    group_turns = np.repeat(n_turns, size)
    keep = turn < group_turns
    last = turn == group_turns
    n_last = np.add.reduceat(last, offsets_of(size)[:-1], dtype=np.int64)
    rows = np.flatnonzero(last)
    keep[rows] = _rank_by_charge(n_last, charge[rows]) < np.repeat(n_left, n_last)
    return keep


def _rank_by_charge(size: IntArray, charge: npt.NDArray[np.floating]) -> IntArray:
    """Rank the rows of each group, the brightest first, of equal ones the earlier first.

    size: (G,) int64, the number of rows of each group. Returns (R,) int64.
    One sort of unique whole numbers, several times faster than sorting by two keys and the same
    on every machine: 23 bits of group, 20 of charge (the bits of a positive float are ordered
    like it; 12 are left of its mantissa), 21 of row.
    """
    size = size[size > 0]
    assert len(size) < 1 << 23, "more groups than a shard can hold"
    assert size.max(initial=0) < 1 << 21, "more rows in a group than a shard can hold"
    rank = ragged_rows(np.zeros_like(size), size)
    brightness = np.maximum(charge, 0).astype(np.float32).view(np.uint32) >> np.uint32(11)
    faintness = np.uint64((1 << 20) - 1) - brightness.astype(np.uint64)
    key = np.repeat(np.arange(len(size), dtype=np.uint64) << np.uint64(41), size)
    key |= faintness << np.uint64(21)
    key |= rank.view(np.uint64)
    key.sort()
    # groups keep their places in the sort, so the ranks fit the sorted rows too
    row = (key & np.uint64((1 << 21) - 1)).view(np.int64)
    row += np.repeat(offsets_of(size)[:-1], size)
    ranked = np.empty_like(rank)
    ranked[row] = rank
    return ranked


def cap_events(events: DomEvents, config: BatchConfig) -> tuple[DomEvents, Dropped]:
    """Apply both caps; DOMs and pulses keep their order.

    Returns the events, unchanged when nothing is too large, and the count of what was dropped.
    With `leave_out_auxiliary` the auxiliary pulses count as dropped.
    """
    given = events
    if config.leave_out_auxiliary:
        events = _without_auxiliary(events)
    dom_keep = _kept_doms(events, config.max_doms_per_event)
    pulse_keep = _kept_pulses(events, config.max_pulses_per_dom)
    if dom_keep is None and pulse_keep is None:
        return events, _dropped(given, events)
    if dom_keep is None:
        dom_keep = np.ones(events.n_doms, bool)
    if pulse_keep is None:
        pulse_keep = np.ones(events.n_pulses, bool)
    n_pulses = np.minimum(np.diff(events.dom_pulse_offsets), config.max_pulses_per_dom)
    capped = _select(events, dom_keep, pulse_keep, n_pulses)
    return capped, _dropped(given, capped)


def _dropped(given: DomEvents, kept: DomEvents) -> Dropped:
    return Dropped(
        n_doms=np.diff(given.event_dom_offsets) - np.diff(kept.event_dom_offsets),
        n_pulses=np.diff(given.event_pulse_offsets()) - np.diff(kept.event_pulse_offsets()),
    )


def _without_auxiliary(events: DomEvents) -> DomEvents:
    """Leave out auxiliary pulses, and DOMs that have no others; an event of nothing else stays."""
    triggering = ~events.auxiliary.astype(bool)
    of_event = events.event_pulse_offsets()
    is_dark = np.diff(offsets_of(triggering)[of_event]) == 0
    keep = triggering | np.repeat(is_dark, np.diff(of_event))
    n_pulses = np.diff(offsets_of(keep)[events.dom_pulse_offsets])
    return _select(events, n_pulses > 0, keep, n_pulses)


def _kept_doms(events: DomEvents, cap: int) -> BoolArray | None:
    counts = np.diff(events.event_dom_offsets)
    over = np.flatnonzero(counts > cap)
    if not len(over):
        return None
    doms = ragged_rows(events.event_dom_offsets[over], counts[over])
    n_pulses = np.diff(events.dom_pulse_offsets)[doms]
    pulses = ragged_rows(events.dom_pulse_offsets[doms], n_pulses)
    starts = offsets_of(n_pulses)[:-1]
    charge = np.add.reduceat(events.charge_pe[pulses], starts)
    only_auxiliary = np.logical_and.reduceat(events.auxiliary[pulses], starts)
    by_time = np.lexsort(
        (events.time_ns[events.dom_pulse_offsets[doms]], np.repeat(over, counts[over]))
    )
    candidates = Candidates(
        n_rows=counts[over],
        tier=only_auxiliary[by_time].astype(np.int64),
        charge=charge[by_time],
    )
    keep = np.ones(events.n_doms, bool)
    keep[doms[by_time]] = candidates.kept(cap)
    return keep


def _kept_pulses(events: DomEvents, cap: int) -> BoolArray | None:
    counts = np.diff(events.dom_pulse_offsets)
    over = np.flatnonzero(counts > cap)
    if not len(over):
        return None
    starts = events.dom_pulse_offsets[over]
    pulses = ragged_rows(starts, counts[over])
    tier = 1 + events.auxiliary[pulses].astype(np.int64)
    tier[offsets_of(counts[over])[:-1]] = 0  # the first pulse of a DOM carries most information
    candidates = Candidates(n_rows=counts[over], tier=tier, charge=events.charge_pe[pulses])
    keep = np.ones(events.n_pulses, bool)
    keep[pulses] = candidates.kept(cap)
    return keep


def _select(
    events: DomEvents, dom_keep: BoolArray, pulse_keep: BoolArray, n_pulses: IntArray
) -> DomEvents:
    """Keep some DOMs and, of these, some pulses.

    n_pulses: (D,) int64, what pulse_keep keeps of each DOM.
    """
    gone = np.flatnonzero(~dom_keep)
    starts = events.dom_pulse_offsets[gone]
    pulse_keep[ragged_rows(starts, events.dom_pulse_offsets[gone + 1] - starts)] = False
    pulses = np.flatnonzero(pulse_keep)
    # mode="clip" only skips a search for rows out of range
    return replace(
        events,
        event_dom_offsets=offsets_of(dom_keep)[events.event_dom_offsets],
        sensor_id=events.sensor_id[dom_keep],
        dom_pulse_offsets=offsets_of(n_pulses[dom_keep]),
        **{name: getattr(events, name).take(pulses, mode="clip") for name in PULSE_NAMES},
    )
