"""Triggers on coincident hits, the readout windows around them, and the event's clock."""

from __future__ import annotations

from dataclasses import dataclass, fields
from functools import cache

import numpy as np
import numpy.typing as npt

from iceaggr.events.simulation.ice import Floats, Ints, Site, icecube_site
from iceaggr.events.simulation.pulses import Pulses

# Of IceCube, beside SMT-8, which is that of its site. Source: arXiv:1612.05093, trigger table.
N_DEEPCORE_HITS, DEEPCORE_WINDOW_NS = 3, 2_500.0
N_STRING_HITS, STRING_SPAN, STRING_WINDOW_NS = 5, 7, 1_500.0
"""Hits among so many adjacent modules of one string."""
N_VOLUME_HITS, VOLUME_WINDOW_NS = 4, 1_000.0
VOLUME_RADIUS_M, VOLUME_HEIGHT_M = 175.0, 75.0
"""Cylinder about a hit module, the module in its middle. Source: IceTray, CylinderTrigger."""
_TRIGGER_TIME_NS, _TRIGGER_SPREAD_NS, _TRIGGER_REACH_NS = 9_855.0, 50.0, 140.0
"""Place of the trigger on the event's clock, read off the published first-pulse quartiles."""
_LATE_SHARE, _LATE_MEAN_NS, _LATE_MAX_NS = 0.03, 15_000.0, 60_000.0
"""Events that are a later part of a longer merged readout: they keep its clock, and what came
before belongs to another part. Read off the published tail of the first-pulse time."""

# DeepCore's part of the DeepCore trigger, strings and modules counted from 1: the lower 50 modules
# of its own strings and the lower 22 of the seven around them.
# Source: IceTray, DeepCore_Filter DOMS("IC86"), whose 554 modules these are.
_DEEPCORE_STRINGS, _DEEPCORE_FIRST_DOM = tuple(range(79, 87)), 11
_DEEPCORE_NEIGHBOURS, _NEIGHBOURS_FIRST_DOM = (26, 27, 35, 36, 37, 45, 46), 39


@dataclass
class Windows:
    """Trigger windows: event (W,) int64 row; start_ns, end_ns: (W,) first and last trigger hit."""

    event: Ints
    start_ns: Floats
    end_ns: Floats

    def take(self, rows: npt.NDArray[np.int64] | npt.NDArray[np.bool_]) -> Windows:
        """Select windows by row or mask."""
        return Windows(**{f.name: getattr(self, f.name)[rows] for f in fields(self)})


@dataclass
class Readout:
    """Pulses of triggered events only, sorted by event and time.

    event: (N,) int64 row of the event before the trigger; time_ns: (N,) int64; sensor: (N,) int64
    row of the sensor; charge_pe: (N,) float64; hlc, dark: (N,) bool
    triggered: (T,) int64 ascending rows of the events that triggered
    start_ns, end_ns: (T,) ends of the readout window on the clock of the pulses that came in
    n_outside: (T,) int64 pulses of each that fell outside its readout window.
    """

    event: Ints
    time_ns: Ints
    sensor: Ints
    charge_pe: Floats
    hlc: npt.NDArray[np.bool_]
    dark: npt.NDArray[np.bool_]
    triggered: Ints
    start_ns: Floats
    end_ns: Floats
    n_outside: Ints


def read_out(pulses: Pulses, n_events: int, site: Site, rng: np.random.Generator) -> Readout:
    """Trigger on the site's multiplicity alone and keep what each event reads out."""
    first, last = trigger_times(pulses, n_events, site)
    clock, before = _event_clock(n_events, site, rng)
    return _keep(pulses, first - before, last + site.readout_after_ns, first - clock)


def read_out_all(pulses: Pulses, n_events: int, rng: np.random.Generator) -> Readout:
    """Trigger on all of IceCube's triggers and keep what each event reads out.

    Windows that overlap become one readout. Where triggers are too far apart for that, each
    readout is an event of its own on the clock of the first, and one of them is kept, by chance.
    """
    readouts = merged_readouts(trigger_windows(pulses))
    n_of_event = np.bincount(readouts.event, minlength=n_events)
    first_of_event = np.cumsum(n_of_event) - n_of_event
    chosen = first_of_event + (rng.random(n_events) * n_of_event).astype(np.int64)
    seen = n_of_event > 0
    start, end, zero = np.full(n_events, np.inf), np.full(n_events, -np.inf), np.zeros(n_events)
    start[seen] = readouts.start_ns[chosen[seen]]
    end[seen] = readouts.end_ns[chosen[seen]]
    before = icecube_site().readout_before_ns
    zero[seen] = readouts.start_ns[first_of_event[seen]] + before
    return _keep(pulses, start, end, zero - _trigger_clock(n_events, rng))


def _keep(pulses: Pulses, start: Floats, end: Floats, zero: Floats) -> Readout:
    """Keep pulses from start to end, times counted from zero; events of no trigger start at inf."""
    inside = (pulses.time_ns >= start[pulses.event]) & (pulses.time_ns <= end[pulses.event])
    triggered = np.flatnonzero(np.isfinite(start))
    kept = pulses.take(inside)
    time = np.rint(kept.time_ns - zero[kept.event]).astype(np.int64)
    order = np.lexsort((kept.sensor, time, kept.event))
    return Readout(
        event=kept.event[order],
        time_ns=time[order],
        sensor=kept.sensor[order],
        charge_pe=kept.charge_pe[order],
        hlc=kept.hlc[order],
        dark=kept.dark[order],
        triggered=triggered,
        start_ns=start[triggered],
        end_ns=end[triggered],
        n_outside=np.bincount(pulses.event[~inside], minlength=len(start))[triggered],
    )


def _trigger_clock(n_events: int, rng: np.random.Generator) -> Floats:
    jitter = _TRIGGER_SPREAD_NS * rng.standard_normal(n_events)
    return _TRIGGER_TIME_NS + np.clip(jitter, -_TRIGGER_REACH_NS, _TRIGGER_REACH_NS)


def _event_clock(n_events: int, site: Site, rng: np.random.Generator) -> tuple[Floats, Floats]:
    """Draw the trigger's time on the event's clock and how far the readout reaches back, (E,).

    Other detectors than IceCube have no merged readouts: their clock begins with the readout.
    """
    reach_back = site.readout_before_ns
    if not site.is_icecube:
        return np.full(n_events, reach_back), np.full(n_events, reach_back)
    clock = _trigger_clock(n_events, rng)
    u = rng.random((3, n_events))
    late = u[0] < _LATE_SHARE
    shift = np.minimum(-_LATE_MEAN_NS * np.log1p(-u[1]), _LATE_MAX_NS)
    before = np.where(late, 300.0 + u[2] * (reach_back - 300.0), reach_back)
    return clock + np.where(late, shift, 0.0), before


def trigger_times(pulses: Pulses, n_events: int, site: Site) -> tuple[Floats, Floats]:
    """Find the first hit of the first trigger and the last hit of the last one.

    Returns two (n_events,) float64 in ns; an event without a trigger has inf and -inf.
    """
    first, last = np.full(n_events, np.inf), np.full(n_events, -np.inf)
    hits = launches(pulses)
    reach = site.n_trigger_hits - 1
    opening = _multiplicity_openings(hits, site.n_trigger_hits, site.trigger_window_ns)
    np.minimum.at(first, hits.event[opening], hits.time_ns[opening])
    np.maximum.at(last, hits.event[opening], hits.time_ns[opening + reach])
    return first, last


def launches(pulses: Pulses) -> Pulses:
    """Take the coincident launches that triggers count, sorted by event and time."""
    at = np.flatnonzero(pulses.first_hlc)
    return pulses.take(at[np.lexsort((pulses.time_ns[at], pulses.event[at]))])


def trigger_windows(pulses: Pulses) -> Windows:
    """Find the windows of IceCube's triggers: SMT-8, DeepCore's SMT-3, string and volume trigger.

    Hits inside a window of SMT-8 are not looked at again: the others would fire within it.
    """
    hits = launches(pulses)
    site = icecube_site()
    eight = _multiplicity_windows(hits, site.n_trigger_hits, site.trigger_window_ns)
    rest = hits.take(~_inside(hits, eight))
    in_deepcore = hits.take(_deepcore()[hits.sensor])
    return _joined(
        [
            eight,
            _multiplicity_windows(in_deepcore, N_DEEPCORE_HITS, DEEPCORE_WINDOW_NS),
            string_windows(rest),
            volume_windows(rest),
        ]
    )


def merged_readouts(windows: Windows) -> Windows:
    """Add the readout before and after each trigger and join what overlaps, sorted by time."""
    order = np.lexsort((windows.start_ns, windows.event))
    event = windows.event[order]
    start = windows.start_ns[order] - icecube_site().readout_before_ns
    end = windows.end_ns[order] + icecube_site().readout_after_ns
    if len(event) == 0:
        return Windows(event, start, end)
    # the running maximum starts anew with each event: a step larger than any time does that
    span = float(end.max() - start.min()) + 1.0
    reached = np.maximum.accumulate(end + event * span) - event * span
    opens = np.ones(len(event), bool)
    opens[1:] = (event[1:] != event[:-1]) | (start[1:] > reached[:-1])
    first = np.flatnonzero(opens)
    last = np.concatenate([first[1:], [len(event)]]) - 1
    return Windows(event[first], start[first], reached[last])


def _joined(parts: list[Windows]) -> Windows:
    return Windows(
        **{f.name: np.concatenate([getattr(p, f.name) for p in parts]) for f in fields(Windows)}
    )


def _inside(hits: Pulses, windows: Windows) -> npt.NDArray[np.bool_]:
    """Mark hits inside windows; windows of an event do not overlap, and both are sorted."""
    if len(windows.event) == 0 or len(hits.event) == 0:
        return np.zeros(len(hits.event), bool)
    latest = max(float(hits.time_ns.max()), float(windows.end_ns.max()))
    span = latest - float(hits.time_ns.min()) + 1.0
    at = hits.time_ns + hits.event * span
    slot = np.searchsorted(windows.start_ns + windows.event * span, at, side="right") - 1
    slot = np.maximum(slot, 0)
    same = windows.event[slot] == hits.event
    after = hits.time_ns >= windows.start_ns[slot]
    return np.asarray(same & after & (hits.time_ns <= windows.end_ns[slot]))


def _multiplicity_openings(hits: Pulses, n_hits: int, window_ns: float) -> Ints:
    """Find the hits that open a window with enough hits. hits: sorted by event and time."""
    reach = n_hits - 1
    event, time = hits.event, hits.time_ns
    if len(time) <= reach:
        return np.zeros(0, np.int64)
    fires = (event[reach:] == event[:-reach]) & (time[reach:] - time[:-reach] <= window_ns)
    return np.flatnonzero(fires)


def _multiplicity_windows(hits: Pulses, n_hits: int, window_ns: float) -> Windows:
    """Find simple multiplicity triggers, extended while no gap is longer than their window.

    Source: arXiv:1612.05093: extended until a time of the window's length has no hit.
    """
    opening = _multiplicity_openings(hits, n_hits, window_ns)
    if len(opening) == 0:
        return Windows(np.zeros(0, np.int64), np.zeros(0), np.zeros(0))
    gap = np.ones(len(hits.event), bool)
    gap[1:] = (hits.event[1:] != hits.event[:-1]) | (np.diff(hits.time_ns) > window_ns)
    chain = np.cumsum(gap) - 1
    last = np.concatenate([np.flatnonzero(gap)[1:], [len(gap)]]) - 1
    # of each unbroken chain the first opening counts: it goes on to the chain's end
    _, first = np.unique(chain[opening], return_index=True)
    opening = opening[first]
    return Windows(hits.event[opening], hits.time_ns[opening], hits.time_ns[last[chain[opening]]])


def string_windows(hits: Pulses) -> Windows:
    """Find string triggers: 5 of 7 adjacent modules of one string within 1.5 us."""
    first, later = _near_in_time(hits, STRING_WINDOW_NS)
    sensors = icecube_site().sensors
    string, place = sensors.string[hits.sensor], sensors.place[hits.sensor]
    apart = place[later] - place[first]
    reach = STRING_SPAN - 1
    near = (string[later] == string[first]) & (np.abs(apart) <= reach)
    first, later, apart = first[near], later[near], apart[near]
    # modules hit within the window, by their distance from the first, then in each span of seven
    width = 2 * reach + 1
    counts = np.bincount(first * width + apart + reach, minlength=len(place) * width)
    hit = np.minimum(counts.reshape(-1, width), 1)
    running = np.concatenate([np.zeros((len(place), 1), np.int64), np.cumsum(hit, axis=1)], axis=1)
    in_span = running[:, STRING_SPAN:] - running[:, :-STRING_SPAN]
    fires = in_span.max(axis=1, initial=0) >= N_STRING_HITS
    return _spans(hits, first[fires[first]], later[fires[first]])


def volume_windows(hits: Pulses) -> Windows:
    """Find volume triggers: 4 hits within 1 us in the cylinder about one of them."""
    first, later = _near_in_time(hits, VOLUME_WINDOW_NS)
    centre, other = np.concatenate([first, later]), np.concatenate([later, first])
    once = np.concatenate([np.ones(len(first), bool), first != later])
    centre, other = centre[once], other[once]
    xyz_m = icecube_site().sensors.xyz_m[hits.sensor]
    way = xyz_m[other] - xyz_m[centre]
    near = (way[:, 0] ** 2 + way[:, 1] ** 2 < VOLUME_RADIUS_M**2) & (
        np.abs(way[:, 2]) < 0.5 * VOLUME_HEIGHT_M
    )
    centre, other = centre[near], other[near]
    # hits are in order of time, so sorting by row sorts each cylinder by time
    order = np.lexsort((other, centre))
    centre, other = centre[order], other[order]
    reach = N_VOLUME_HITS - 1
    if len(centre) <= reach:
        return Windows(np.zeros(0, np.int64), np.zeros(0), np.zeros(0))
    begin, end = other[:-reach], other[reach:]
    fires = (centre[reach:] == centre[:-reach]) & (
        hits.time_ns[end] - hits.time_ns[begin] <= VOLUME_WINDOW_NS
    )
    fires &= (begin <= centre[:-reach]) & (centre[:-reach] <= end)
    return Windows(hits.event[begin[fires]], hits.time_ns[begin[fires]], hits.time_ns[end[fires]])


def _near_in_time(hits: Pulses, window_ns: float) -> tuple[Ints, Ints]:
    """Pair each hit with itself and with those of its event that follow within the window."""
    n = len(hits.event)
    if n == 0:
        return np.zeros(0, np.int64), np.zeros(0, np.int64)
    span = float(np.ptp(hits.time_ns)) + 2.0 * window_ns
    at = hits.time_ns - hits.time_ns.min() + hits.event * span
    n_near = np.searchsorted(at, at + window_ns, side="right") - np.arange(n)
    first = np.repeat(np.arange(n), n_near)
    step = np.arange(len(first)) - np.repeat(np.cumsum(n_near) - n_near, n_near)
    return first, first + step


def _spans(hits: Pulses, first: Ints, later: Ints) -> Windows:
    """Build the window of each opening hit, up to the last hit paired with it."""
    opening, start = np.unique(first, return_index=True)
    if len(opening) == 0:
        return Windows(np.zeros(0, np.int64), np.zeros(0), np.zeros(0))
    last = np.maximum.reduceat(hits.time_ns[later], start)
    return Windows(hits.event[opening], hits.time_ns[opening], last)


@cache
def _deepcore() -> npt.NDArray[np.bool_]:
    """Mark the live sensors of DeepCore's trigger, (S,)."""
    site = icecube_site()
    string, dom = site.detector.string_id[site.detector.in_use], site.sensors.place + 1
    own = np.isin(string, _DEEPCORE_STRINGS) & (dom >= _DEEPCORE_FIRST_DOM)
    around = np.isin(string, _DEEPCORE_NEIGHBOURS) & (dom >= _NEIGHBOURS_FIRST_DOM)
    return np.asarray(own | around)
