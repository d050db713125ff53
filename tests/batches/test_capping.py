"""Caps keep what carries information, and count what they drop."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from iceaggr.batches.capping import N_TIME_SLICES, Candidates, cap_events
from iceaggr.config import BatchConfig
from iceaggr.events.dom_events import DomEvents
from tests.shards.dom_events_builder import random_dom_events


def track(n_doms: int, *, auxiliary: np.ndarray, charge: np.ndarray) -> DomEvents:
    """Make one event with one pulse per DOM, hit one after the other."""
    return DomEvents(
        event_id=np.array([7]),
        azimuth=np.array([1.0]),
        zenith=np.array([1.0]),
        event_dom_offsets=np.array([0, n_doms]),
        sensor_id=np.arange(n_doms, dtype=np.int32),
        dom_pulse_offsets=np.arange(n_doms + 1),
        time_ns=np.arange(n_doms) * 10 + 6000,
        charge_pe=charge.astype(np.float32),
        auxiliary=auxiliary,
    )


def test_caps_return_the_same_events_when_nothing_is_too_large() -> None:
    events = random_dom_events(50, seed=1)
    capped, dropped = cap_events(events, BatchConfig())
    assert capped is events
    assert dropped.n_doms.sum() == dropped.n_pulses.sum() == 0


def test_dom_cap_keeps_every_triggering_dom_before_any_auxiliary_one() -> None:
    auxiliary = np.ones(400, bool)
    auxiliary[300:330] = False  # late, and fainter than all others
    charge = np.where(auxiliary, 50.0, 0.1)
    capped, dropped = cap_events(
        track(400, auxiliary=auxiliary, charge=charge), BatchConfig(max_doms_per_event=40)
    )
    assert set(range(300, 330)) <= set(capped.sensor_id.tolist())
    assert capped.n_doms == 40
    assert dropped.n_doms.tolist() == dropped.n_pulses.tolist() == [360]


def test_dom_cap_spreads_over_the_whole_time_of_the_event() -> None:
    n_doms = 1600
    charge = np.linspace(100, 1, n_doms)  # the earliest are the brightest
    capped, _ = cap_events(
        track(n_doms, auxiliary=np.zeros(n_doms, bool), charge=charge),
        BatchConfig(max_doms_per_event=160),
    )
    per_slice = np.bincount(capped.sensor_id // 100, minlength=16)
    assert per_slice.tolist() == [10] * 16


def test_dom_cap_prefers_the_brightest_of_each_time_slice() -> None:
    rng = np.random.default_rng(5)
    n_doms = 160
    charge = rng.permutation(n_doms).astype(float)
    capped, _ = cap_events(
        track(n_doms, auxiliary=np.zeros(n_doms, bool), charge=charge),
        BatchConfig(max_doms_per_event=16),
    )
    brightest = charge.reshape(16, 10).argmax(axis=1) + np.arange(16) * 10
    assert capped.sensor_id.tolist() == brightest.tolist()


def test_pulse_cap_keeps_the_first_pulse_then_triggering_then_bright_ones() -> None:
    n = 100
    auxiliary = np.ones(n, bool)
    auxiliary[60:65] = False
    charge = np.full(n, 1.0)
    charge[90] = 30.0
    charge[0] = 0.025
    events = DomEvents(
        event_id=np.array([1]),
        azimuth=np.array([0.0]),
        zenith=np.array([0.0]),
        event_dom_offsets=np.array([0, 1]),
        sensor_id=np.array([3], np.int32),
        dom_pulse_offsets=np.array([0, n]),
        time_ns=np.arange(n) + 6000,
        charge_pe=charge,
        auxiliary=auxiliary,
    )
    capped, dropped = cap_events(events, BatchConfig(max_pulses_per_dom=22))
    kept = capped.time_ns - 6000
    assert {0, 60, 61, 62, 63, 64, 90} <= set(kept.tolist())
    assert np.all(np.diff(kept) > 0)
    assert len(kept) == 22
    assert kept[-1] >= 90
    assert dropped.n_pulses.tolist() == [78]
    assert dropped.n_doms.tolist() == [0]


def test_auxiliary_pulses_are_left_out_and_counted_but_no_event_is_lost() -> None:
    events = random_dom_events(40, seed=5, median_pulses=200)
    auxiliary = events.auxiliary.astype(bool)
    auxiliary[: events.event_pulse_offsets()[1]] = True
    events = replace(events, auxiliary=auxiliary)
    capped, dropped = cap_events(events, BatchConfig(leave_out_auxiliary=True))
    first = events.event_pulse_offsets()[1]
    wanted = np.concatenate([np.arange(first), first + np.flatnonzero(~auxiliary[first:])])
    np.testing.assert_array_equal(capped.time_ns, events.time_ns[wanted])
    np.testing.assert_array_equal(capped.charge_pe, events.charge_pe[wanted])
    dom_of_pulse = np.repeat(np.arange(events.n_doms), np.diff(events.dom_pulse_offsets))
    np.testing.assert_array_equal(
        capped.sensor_id, events.sensor_id[np.unique(dom_of_pulse[wanted])]
    )
    assert dropped.n_pulses.sum() == auxiliary[first:].sum()
    assert dropped.n_pulses[0] == 0
    assert dropped.n_doms.sum() == events.n_doms - capped.n_doms


def test_pulse_cap_of_one_keeps_the_first_pulse_of_each_dom() -> None:
    events = random_dom_events(40, seed=3, median_pulses=200)
    config = BatchConfig(max_doms_per_event=5160, max_pulses_per_dom=1)
    capped, _ = cap_events(events, config)
    np.testing.assert_array_equal(capped.time_ns, events.time_ns[events.dom_pulse_offsets[:-1]])
    np.testing.assert_array_equal(capped.sensor_id, events.sensor_id)


@given(
    seed=st.integers(0, 2**31),
    n_events=st.integers(1, 12),
    dom_cap=st.integers(1, 60),
    pulse_cap=st.integers(1, 5),
)
@settings(max_examples=60, deadline=None)
def test_caps_select_rows_in_order_and_count_all_they_drop(
    seed: int, n_events: int, dom_cap: int, pulse_cap: int
) -> None:
    events = random_dom_events(n_events, seed, median_pulses=60)
    config = BatchConfig(max_doms_per_event=dom_cap, max_pulses_per_dom=pulse_cap)
    capped, dropped = cap_events(events, config)
    n_doms, n_pulses = np.diff(capped.event_dom_offsets), np.diff(capped.dom_pulse_offsets)
    assert n_pulses.max() <= pulse_cap
    np.testing.assert_array_equal(n_doms, np.minimum(np.diff(events.event_dom_offsets), dom_cap))
    np.testing.assert_array_equal(n_doms + dropped.n_doms, np.diff(events.event_dom_offsets))
    np.testing.assert_array_equal(
        np.diff(capped.event_pulse_offsets()) + dropped.n_pulses,
        np.diff(events.event_pulse_offsets()),
    )
    whole, part = pulse_tuples(events), pulse_tuples(capped)
    remaining = iter(whole)
    assert all(pulse in remaining for pulse in part), "not a subsequence of the events"


def pulse_tuples(events: DomEvents) -> list[tuple[float, ...]]:
    dom = np.repeat(np.arange(events.n_doms), np.diff(events.dom_pulse_offsets))
    event = np.repeat(np.arange(events.n_events), np.diff(events.event_dom_offsets))[dom]
    columns = (event, events.sensor_id[dom], events.time_ns, events.charge_pe, events.auxiliary)
    return list(zip(*(column.tolist() for column in columns), strict=True))


@pytest.mark.parametrize("cap", [1, 3, 100])
def test_candidates_that_tie_are_kept_in_their_order(cap: int) -> None:
    n = 30
    zeros = np.zeros(n, np.int64)
    keep = Candidates(np.array([n]), zeros, np.ones(n)).kept(cap)
    again = Candidates(np.array([n]), zeros, np.ones(n)).kept(cap)
    assert keep.sum() == min(cap, n)
    np.testing.assert_array_equal(keep, again)
    assert keep[0]


def kept_slowly(tier: list[int], charge: list[float], cap: int) -> list[bool]:
    """Choose the rows of one segment as the rule is told: tier, then turns through the slices."""
    chosen: set[int] = set()
    for value in sorted(set(tier)):
        rows = [row for row, t in enumerate(tier) if t == value]
        slices: list[list[int]] = [[] for _ in range(N_TIME_SLICES)]
        for rank, row in enumerate(rows):
            slices[rank * N_TIME_SLICES // len(rows)].append(row)
        brightest_first = [sorted(rows_, key=lambda row: (-charge[row], row)) for rows_ in slices]
        for turn in range(len(rows)):
            takers = [rows_[turn] for rows_ in brightest_first if turn < len(rows_)]
            takers.sort(key=lambda row: (-charge[row], row))
            chosen |= set(takers[: max(0, cap - len(chosen))])
    return [row in chosen for row in range(len(tier))]


@given(
    segments=st.lists(
        st.lists(
            st.tuples(st.integers(0, 2), st.sampled_from([0.025, 1.0, 1.05, 30.0, 2762.0])),
            min_size=1,
            max_size=90,
        ),
        min_size=1,
        max_size=5,
    ),
    cap=st.integers(1, 50),
)
@settings(max_examples=80, deadline=None)
def test_candidates_are_chosen_as_the_rule_is_told(
    segments: list[list[tuple[int, float]]], cap: int
) -> None:
    candidates = Candidates(
        n_rows=np.array([len(segment) for segment in segments]),
        tier=np.array([tier for segment in segments for tier, _ in segment]),
        charge=np.array([charge for segment in segments for _, charge in segment]),
    )
    expected = [
        keep
        for segment in segments
        for keep in kept_slowly([t for t, _ in segment], [q for _, q in segment], cap)
    ]
    assert candidates.kept(cap).tolist() == expected
