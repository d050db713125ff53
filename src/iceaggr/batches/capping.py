"""Caps on DOMs per event and pulses per DOM: what is kept when an event is too large.

The earliest DOMs of an event are noise from before the trigger, then the entry of a track; cutting
by time would lose its exit. So triggering rows come first, then the brightest of each time slice.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from iceaggr.batches.ragged import IntArray, offsets_of, ragged_rows, rank_within
from iceaggr.config import BatchConfig
from iceaggr.events.dom_events import DomEvents

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
    """Rows that compete for the places of their segment; all arrays are (R,).

    segment: int64, equal values adjacent.  tier: int64, lower tiers are kept first.
    time: orders the slices.  charge: the brighter row of a slice is kept first.
    """

    segment: IntArray
    tier: IntArray
    time: npt.NDArray[np.int64]
    charge: npt.NDArray[np.floating]

    def kept(self, cap: int) -> BoolArray:
        """Choose `cap` rows per segment: by tier, then in turn the brightest of each time slice.

        Returns (R,) bool. Rows that tie in everything are kept in their order.
        """
        tiers = self.segment * (1 + self.tier.max(initial=0)) + self.tier
        by_time = np.lexsort((self.time, tiers))
        slices = np.empty_like(tiers)
        slices[by_time] = _time_slices(tiers[by_time])
        by_charge = np.lexsort((-self.charge, slices, tiers))
        turn = np.empty_like(tiers)
        turn[by_charge] = rank_within((tiers * N_TIME_SLICES + slices)[by_charge])
        order = np.lexsort((-self.charge, turn, self.tier, self.segment))
        keep = np.empty(len(order), bool)
        keep[order] = rank_within(self.segment[order]) < cap
        return keep


def cap_events(events: DomEvents, config: BatchConfig) -> tuple[DomEvents, Dropped]:
    """Apply both caps; DOMs and pulses keep their order.

    Returns the events, unchanged when nothing is too large, and the count of what was dropped.
    """
    dom_keep = _kept_doms(events, config.max_doms_per_event)
    pulse_keep = _kept_pulses(events, config.max_pulses_per_dom)
    if dom_keep is None and pulse_keep is None:
        nothing = np.zeros(events.n_events, np.int64)
        return events, Dropped(nothing, nothing)
    capped = _select(events, dom_keep, pulse_keep)
    dropped = Dropped(
        n_doms=np.diff(events.event_dom_offsets) - np.diff(capped.event_dom_offsets),
        n_pulses=np.diff(events.event_pulse_offsets()) - np.diff(capped.event_pulse_offsets()),
    )
    return capped, dropped


def _time_slices(tiers: IntArray) -> IntArray:
    """Cut each group of time-ordered rows into slices of equal population."""
    rank = rank_within(tiers)
    _, group, size = np.unique(tiers, return_inverse=True, return_counts=True)
    return rank * N_TIME_SLICES // size[group]


def _kept_doms(events: DomEvents, cap: int) -> BoolArray | None:
    counts = np.diff(events.event_dom_offsets)
    over = np.flatnonzero(counts > cap)
    if not len(over):
        return None
    doms = ragged_rows(events.event_dom_offsets[over], counts[over])
    n_pulses = np.diff(events.dom_pulse_offsets)[doms]
    pulses = ragged_rows(events.dom_pulse_offsets[doms], n_pulses)
    dom = np.repeat(np.arange(len(doms)), n_pulses)
    charge = np.bincount(dom, events.charge_pe[pulses], len(doms)).astype(np.float64)
    n_triggering = np.bincount(dom, ~events.auxiliary[pulses], len(doms))
    candidates = Candidates(
        segment=np.repeat(over, counts[over]),
        tier=(n_triggering == 0).astype(np.int64),
        time=events.time_ns[events.dom_pulse_offsets[doms]],
        charge=charge,
    )
    keep = np.ones(events.n_doms, bool)
    keep[doms] = candidates.kept(cap)
    return keep


def _kept_pulses(events: DomEvents, cap: int) -> BoolArray | None:
    counts = np.diff(events.dom_pulse_offsets)
    over = np.flatnonzero(counts > cap)
    if not len(over):
        return None
    pulses = ragged_rows(events.dom_pulse_offsets[over], counts[over])
    segment = np.repeat(over, counts[over])
    is_first = pulses == events.dom_pulse_offsets[segment]
    candidates = Candidates(
        segment=segment,
        tier=np.where(is_first, 0, 1 + events.auxiliary[pulses]),
        time=events.time_ns[pulses],
        charge=events.charge_pe[pulses],
    )
    keep = np.ones(events.n_pulses, bool)
    keep[pulses] = candidates.kept(cap)
    return keep


def _select(
    events: DomEvents, dom_keep: BoolArray | None, pulse_keep: BoolArray | None
) -> DomEvents:
    """Keep some DOMs and, of these, some pulses; None keeps all."""
    n_pulses = np.diff(events.dom_pulse_offsets)
    if dom_keep is None:
        dom_keep = np.ones(events.n_doms, bool)
    keep = np.repeat(dom_keep, n_pulses)
    if pulse_keep is not None:
        keep &= pulse_keep
        n_pulses = np.diff(offsets_of(keep)[events.dom_pulse_offsets])
    return replace(
        events,
        event_dom_offsets=offsets_of(dom_keep)[events.event_dom_offsets],
        sensor_id=events.sensor_id[dom_keep],
        dom_pulse_offsets=offsets_of(n_pulses[dom_keep]),
        time_ns=events.time_ns[keep],
        charge_pe=events.charge_pe[keep],
        auxiliary=events.auxiliary[keep],
    )
