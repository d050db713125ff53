"""Single bad pulses and bad events: rejected with a reason and counted, never silently.

Structural damage stops the reading (RawDataError); what is wrong with one pulse or one event costs
that pulse or event only. Pulses in = kept + rejected, always.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from iceaggr.detector import Detector
from iceaggr.events.label_reading import in_range
from iceaggr.events.meta import EventTable
from iceaggr.events.pulses import PulseChunk, Pulses

MAX_TIME_NS = 10_000_000
"""10 ms: a hundred times the longest readout window; anything later is no time."""

MIN_CHARGE_PE, MAX_CHARGE_PE = 1e-4, 1e6
"""Photo-electrons that a pulse can have: measured ones have 0.025 to a few thousand, where the
module saturates. Far beyond, sums over a module would overflow float32 and poison the batch."""

PULSE_REASONS = (
    "value_missing",
    "time_negative",
    "time_beyond_10_ms",
    "sensor_not_in_geometry",
    "charge_not_finite",
    "charge_not_positive",
    "charge_out_of_range",
    "event_rejected",
)
"""Why a pulse is rejected: the first that applies."""

EVENT_REASONS = (
    "label_not_finite",
    "label_out_of_range",
    "no_pulses",
    "no_valid_pulses",
)
"""Why an event is rejected: the first that applies."""


@dataclass
class Account:
    """Events and pulses in, kept and rejected, summed while reading."""

    n_events_in: int = 0
    n_events_kept: int = 0
    n_pulses_in: int = 0
    n_pulses_kept: int = 0
    rejected_events: Counter[str] = field(default_factory=Counter)
    rejected_pulses: Counter[str] = field(default_factory=Counter)
    rejected_event_ids: list[int] = field(default_factory=list)


def merge_accounts(accounts: Iterable[Account]) -> Account:
    """Add up the counts of accounts, without the ids of rejected events."""
    total = Account()
    for account in accounts:
        for name in ("n_events_in", "n_events_kept", "n_pulses_in", "n_pulses_kept"):
            setattr(total, name, getattr(total, name) + getattr(account, name))
        total.rejected_events.update(account.rejected_events)
        total.rejected_pulses.update(account.rejected_pulses)
    return total


@dataclass(frozen=True)
class CleanChunk:
    """The events of a chunk that are kept, and why the others are not.

    events:       (B,) int64, rows of the event table
    n_pulses:     (B,) int64, at least 1
    pulses:       the kept pulses, event after event
    sensor_idx:   (N,) integer, rows of the detector's table
    event_reason: (E,) int8 for all events of the chunk, index in EVENT_REASONS or -1
    pulse_reason: (P,) int8 for all pulses of the chunk, index in PULSE_REASONS or -1;
                  None when nothing is rejected
    """

    events: npt.NDArray[np.int64]
    n_pulses: npt.NDArray[np.int64]
    pulses: Pulses
    sensor_idx: npt.NDArray[np.integer]
    event_reason: npt.NDArray[np.int8]
    pulse_reason: npt.NDArray[np.int8] | None


def clean(
    chunk: PulseChunk, table: EventTable, detector: Detector, labelled: bool, account: Account
) -> CleanChunk:
    """Reject bad pulses and events and add the chunk to the account.

    labelled: events without a valid label are rejected.
    """
    rows = slice(chunk.first_event, chunk.stop_event)
    events = np.arange(chunk.first_event, chunk.stop_event)
    n_pulses = table.n_pulses[rows]
    sensor_idx = _sensor_idx(chunk.pulses.sensor_id, detector)
    event_reason = _label_reason(table, rows, labelled)
    event_reason[(event_reason < 0) & (n_pulses == 0)] = EVENT_REASONS.index("no_pulses")
    if _all_valid(chunk.pulses, sensor_idx) and not (event_reason >= 0).any():
        cleaned = CleanChunk(events, n_pulses, chunk.pulses, sensor_idx, event_reason, None)
    else:
        pulse_reason = _pulse_reason(chunk.pulses, sensor_idx)
        event_idx = np.repeat(np.arange(len(events)), n_pulses)
        n_valid = np.bincount(event_idx[pulse_reason < 0], minlength=len(events))
        event_reason[(event_reason < 0) & (n_valid == 0)] = EVENT_REASONS.index("no_valid_pulses")
        pulse_reason[(pulse_reason < 0) & (event_reason >= 0)[event_idx]] = PULSE_REASONS.index(
            "event_rejected"
        )
        kept_events, kept = event_reason < 0, pulse_reason < 0
        cleaned = CleanChunk(
            events=events[kept_events],
            n_pulses=n_valid[kept_events],
            pulses=chunk.pulses.take(kept),
            sensor_idx=sensor_idx[kept],
            event_reason=event_reason,
            pulse_reason=pulse_reason,
        )
    _book(cleaned, chunk, table, account)
    return cleaned


def _book(cleaned: CleanChunk, chunk: PulseChunk, table: EventTable, account: Account) -> None:
    account.n_events_in += chunk.stop_event - chunk.first_event
    account.n_events_kept += len(cleaned.events)
    account.n_pulses_in += len(chunk.pulses)
    account.n_pulses_kept += len(cleaned.pulses)
    if cleaned.pulse_reason is None:
        return
    account.rejected_events.update(_count(cleaned.event_reason, EVENT_REASONS))
    account.rejected_pulses.update(_count(cleaned.pulse_reason, PULSE_REASONS))
    rejected = chunk.first_event + np.flatnonzero(cleaned.event_reason >= 0)
    account.rejected_event_ids.extend(table.event_id[rejected].tolist())


def _count(reason: npt.NDArray[np.int8], names: tuple[str, ...]) -> dict[str, int]:
    counts = np.bincount(reason[reason >= 0], minlength=len(names))
    return {name: int(n) for name, n in zip(names, counts, strict=True) if n}


def _sensor_idx(sensor_id: npt.NDArray[np.integer], detector: Detector) -> npt.NDArray[np.integer]:
    is_contiguous = detector.sensor_id[0] == 0 and detector.sensor_id[-1] == detector.n_sensors - 1
    if (
        is_contiguous
        and len(sensor_id)
        and 0 <= sensor_id.min() <= sensor_id.max() < detector.n_sensors
    ):
        return sensor_id  # ids that count from 0 are the table's rows
    return detector.sensor_idx(sensor_id)


def _all_valid(pulses: Pulses, sensor_idx: npt.NDArray[np.integer]) -> bool:
    if not len(pulses):
        return True
    # least and greatest are one quick pass each; a NaN makes both comparisons of its column false
    return bool(
        not pulses.is_missing.any()
        and sensor_idx.min() >= 0
        and pulses.time_ns.min() >= 0
        and pulses.time_ns.max() <= MAX_TIME_NS
        and pulses.charge_pe.min() >= MIN_CHARGE_PE
        and pulses.charge_pe.max() <= MAX_CHARGE_PE
    )


def _pulse_reason(pulses: Pulses, sensor_idx: npt.NDArray[np.integer]) -> npt.NDArray[np.int8]:
    faults = {
        "value_missing": pulses.is_missing,
        "time_negative": pulses.time_ns < 0,
        "time_beyond_10_ms": pulses.time_ns > MAX_TIME_NS,
        "sensor_not_in_geometry": sensor_idx < 0,
        "charge_not_finite": ~np.isfinite(pulses.charge_pe),
        "charge_not_positive": pulses.charge_pe <= 0,
        "charge_out_of_range": (pulses.charge_pe < MIN_CHARGE_PE)
        | (pulses.charge_pe > MAX_CHARGE_PE),
    }
    return _first_reason(faults, PULSE_REASONS, len(pulses))


def _label_reason(table: EventTable, rows: slice, labelled: bool) -> npt.NDArray[np.int8]:
    azimuth, zenith = table.azimuth[rows], table.zenith[rows]
    if not labelled:
        return np.full(len(azimuth), -1, np.int8)
    faults = {
        "label_not_finite": ~np.isfinite(azimuth) | ~np.isfinite(zenith),
        "label_out_of_range": ~in_range(azimuth, zenith),
    }
    return _first_reason(faults, EVENT_REASONS, len(azimuth))


def _first_reason(
    faults: dict[str, npt.NDArray[np.bool_]], names: tuple[str, ...], n_rows: int
) -> npt.NDArray[np.int8]:
    reason = np.full(n_rows, -1, np.int8)
    for name, is_faulty in faults.items():
        reason[is_faulty & (reason < 0)] = names.index(name)
    return reason


# Local coincidence, where a source does not say which pulses the trigger decided on.

COINCIDENCE_NS = 1_000
"""Light crosses two distances of neighbours well within it. Source: arXiv:1612.05093, IceCube's
local coincidence."""
_N_NEIGHBOURS_APART = 2.2
"""Distances of neighbours within which a sensor counts as near: the next but one on a string."""
_TIME_BITS = 24
_N_PULSES_AT_ONCE = 50_000
_N_STEPS = 16
"""Of pulses that are looked at one after the other; where more come at once, they are searched."""


def lone_pulses(
    event: npt.NDArray[np.integer],
    sensor_id: npt.NDArray[np.integer],
    time_ns: npt.NDArray[np.floating],
    detector: Detector,
) -> npt.NDArray[np.bool_]:
    """Mark pulses that no pulse on a near sensor accompanies within a microsecond: noise, mostly.

    event: (N,) from 0, non-decreasing; sensor_id: (N,); time_ns: (N,), NaN where it is missing.
    Returns (N,) bool, True also where the sensor is not in the table, which is rejected later.
    """
    row = detector.sensor_idx(sensor_id)
    at = np.flatnonzero((row >= 0) & (time_ns >= 0) & (time_ns < MAX_TIME_NS))
    sensor, tick, number = row[at], time_ns[at].astype(np.int64), event[at].astype(np.int64)
    near = _NearSensors(detector)
    alone = np.ones(len(row), bool)
    # whole events, a few at a time, which stay in the processor's cache
    cuts = np.unique(np.searchsorted(number, number[::_N_PULSES_AT_ONCE]))
    for start, stop in pairwise([*cuts.tolist(), len(at)]):
        part = slice(start, stop)
        alone[at[part]] = _alone(number[part], sensor[part], tick[part], near)
    return alone


class _NearSensors:
    """Which sensors are near each other.

    group: (S,) int64; sensors of different groups, strings mostly, are never near
    table: (K, S) int64 rows of the near sensors of each, filled up with -1
    """

    def __init__(self, detector: Detector) -> None:
        from scipy.sparse import coo_array  # here: sharding does without them
        from scipy.sparse.csgraph import connected_components
        from scipy.spatial import cKDTree

        n, self._axes_m = detector.n_sensors, np.ascontiguousarray(detector.xyz_m.T)
        tree = cKDTree(detector.xyz_m)
        self._within_m = _N_NEIGHBOURS_APART * float(
            np.median(tree.query(detector.xyz_m, k=2)[0][:, 1])
        )
        pairs = tree.query_pairs(self._within_m, output_type="ndarray")
        first, second = np.concatenate([pairs, pairs[:, ::-1]]).T
        links = coo_array((np.ones(len(first), bool), (first, second)), shape=(n, n))
        self.group = connected_components(links, directed=False)[1].astype(np.int64)
        order = np.argsort(first, kind="stable")
        first, second = first[order], second[order]
        counts = np.bincount(first, minlength=n)
        place = np.arange(len(first)) - np.repeat(np.cumsum(counts) - counts, counts)
        self.table = np.full((int(counts.max(initial=0)), n), -1, np.int64)
        self.table[place, first] = second

    def are_near(
        self, one: npt.NDArray[np.int64], other: npt.NDArray[np.int64]
    ) -> npt.NDArray[np.bool_]:
        """Tell of pairs of sensors whether they are near, and two: (K,) bool."""
        squared = sum((axis[one] - axis[other]) ** 2 for axis in self._axes_m)
        return np.asarray((squared <= self._within_m**2) & (one != other))


def _alone(
    event: npt.NDArray[np.int64],
    sensor: npt.NDArray[np.int64],
    tick: npt.NDArray[np.int64],
    near: _NearSensors,
) -> npt.NDArray[np.bool_]:
    """Mark pulses without company, (N,) bool."""
    n_sensors = len(near.group)
    key = ((event * n_sensors + near.group[sensor]) << _TIME_BITS) | tick
    order = np.argsort(key)
    key, of = key[order], sensor[order]
    alone = np.ones(len(key), bool)
    # company is among the next pulses of the group, in bright events far behind
    still = np.arange(len(key))
    for step in range(1, _N_STEPS + 1):
        still = still[: np.searchsorted(still, len(key) - step)]
        still = still[key[still + step] - key[still] <= COINCIDENCE_NS]
        if 2 * len(still) > len(key) or step == _N_STEPS:
            break
        asks = still[alone[still] | alone[still + step]]
        asks = asks[near.are_near(of[asks], of[asks + step])]
        alone[asks] = alone[asks + step] = False
    marked = np.empty(len(key), bool)
    marked[order] = alone
    # whatever is farther behind than these steps is in a crowd as well
    crowded = np.zeros(len(key), bool)
    crowded[still] = crowded[still + step] = True
    crowd = order[crowded]
    asks = np.flatnonzero(alone[crowded])
    if len(asks):
        sensor = sensor[crowd]
        keys = ((event[crowd] * n_sensors + sensor) << _TIME_BITS) | tick[crowd]
        marked[crowd[asks]] = _searched(np.sort(keys), keys[asks], sensor[asks], near.table)
    return marked


def _searched(
    keys: npt.NDArray[np.int64],
    asked: npt.NDArray[np.int64],
    sensor: npt.NDArray[np.int64],
    table: npt.NDArray[np.int64],
) -> npt.NDArray[np.bool_]:
    """Mark pulses without company among all of them, whose keys ascend.

    keys: (N,) of event, sensor and time together.  asked, sensor: (M,) of the pulses in question.
    """
    alone = np.ones(len(asked), bool)
    asks = np.argsort(asked)
    for neighbour in table:
        # in the order of the keys, so that each search begins where the last one ended
        other = neighbour[sensor[asks]]
        asks, other = asks[other >= 0], other[other >= 0]
        target = asked[asks] + ((other - sensor[asks]) << _TIME_BITS)
        slot = np.minimum(np.searchsorted(keys, target - COINCIDENCE_NS), len(keys) - 1)
        found = np.abs(keys[slot] - target) <= COINCIDENCE_NS
        alone[asks[found]] = False
        asks = asks[~found]
    return alone
