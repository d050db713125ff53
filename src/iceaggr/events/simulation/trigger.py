"""The trigger on eight coincident hits, the readout window, and the event's clock."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from iceaggr.events.simulation.ice import Floats
from iceaggr.events.simulation.pulses import Pulses
from iceaggr.events.simulation.sensors import Ints

N_TRIGGER_HITS = 8
TRIGGER_WINDOW_NS = 5_000.0
"""Simple multiplicity trigger SMT-8. Source: arXiv:1612.05093, trigger table."""
READOUT_BEFORE_NS, READOUT_AFTER_NS = 4_000.0, 6_000.0
"""Readout around the trigger. Source: IC86 trigger settings at icecube.umd.edu."""
_TRIGGER_TIME_NS, _TRIGGER_SPREAD_NS, _TRIGGER_REACH_NS = 9_855.0, 50.0, 140.0
"""Place of the trigger on the event's clock, read off the published first-pulse quartiles."""
_LATE_SHARE, _LATE_MEAN_NS, _LATE_MAX_NS = 0.03, 15_000.0, 60_000.0
"""Events that are a later part of a longer merged readout: they keep its clock, and what came
before belongs to another part. Read off the published tail of the first-pulse time."""


@dataclass
class Readout:
    """Pulses of triggered events only, sorted by event and time.

    event: (N,) int64 row of the event before the trigger; time_ns: (N,) int64; sensor: (N,) int64
    row of the sensor; charge_pe: (N,) float64; hlc: (N,) bool
    triggered: (T,) int64 ascending rows of the events that triggered
    n_outside: (T,) int64 pulses of each that fell outside its readout window.
    """

    event: Ints
    time_ns: Ints
    sensor: Ints
    charge_pe: Floats
    hlc: npt.NDArray[np.bool_]
    triggered: Ints
    n_outside: Ints


def read_out(pulses: Pulses, n_events: int, rng: np.random.Generator) -> Readout:
    """Find the triggers and keep what each one reads out."""
    first, last = trigger_times(pulses, n_events)
    clock, before = _event_clock(n_events, rng)
    start = first - before
    inside = (pulses.time_ns >= start[pulses.event]) & (
        pulses.time_ns <= last[pulses.event] + READOUT_AFTER_NS
    )
    triggered = np.flatnonzero(np.isfinite(first))
    outside = np.bincount(pulses.event[~inside], minlength=n_events)[triggered]
    kept = pulses.take(inside)
    time = np.rint(kept.time_ns - first[kept.event] + clock[kept.event]).astype(np.int64)
    order = np.lexsort((kept.sensor, time, kept.event))
    return Readout(
        event=kept.event[order],
        time_ns=time[order],
        sensor=kept.sensor[order],
        charge_pe=kept.charge_pe[order],
        hlc=kept.hlc[order],
        triggered=triggered,
        n_outside=outside,
    )


def trigger_times(pulses: Pulses, n_events: int) -> tuple[Floats, Floats]:
    """Find the first hit of the first trigger and the last hit of the last one.

    Returns two (n_events,) float64 in ns; an event without a trigger has inf and -inf.
    """
    first, last = np.full(n_events, np.inf), np.full(n_events, -np.inf)
    at = np.flatnonzero(pulses.first_hlc)
    order = np.lexsort((pulses.time_ns[at], pulses.event[at]))
    event, time = pulses.event[at][order], pulses.time_ns[at][order]
    reach = N_TRIGGER_HITS - 1
    if len(time) <= reach:
        return first, last
    fires = (event[reach:] == event[:-reach]) & (time[reach:] - time[:-reach] <= TRIGGER_WINDOW_NS)
    opening = np.flatnonzero(fires)
    np.minimum.at(first, event[opening], time[opening])
    np.maximum.at(last, event[opening], time[opening + reach])
    return first, last


def _event_clock(n_events: int, rng: np.random.Generator) -> tuple[Floats, Floats]:
    """Draw the trigger's time on the event's clock and how far the readout reaches back, (E,)."""
    jitter = _TRIGGER_SPREAD_NS * rng.standard_normal(n_events)
    clock = _TRIGGER_TIME_NS + np.clip(jitter, -_TRIGGER_REACH_NS, _TRIGGER_REACH_NS)
    u = rng.random((3, n_events))
    late = u[0] < _LATE_SHARE
    shift = np.minimum(-_LATE_MEAN_NS * np.log1p(-u[1]), _LATE_MAX_NS)
    before = np.where(late, 300.0 + u[2] * (READOUT_BEFORE_NS - 300.0), READOUT_BEFORE_NS)
    return clock + np.where(late, shift, 0.0), before
