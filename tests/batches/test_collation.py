"""Collation against a plain reading of the events, one pulse at a time."""

from __future__ import annotations

from dataclasses import fields, replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from iceaggr.angles import unit_vector
from iceaggr.batches import EventBatch, collate, iter_batches
from iceaggr.batches.collation import batch_ends, join_batches, select_events
from iceaggr.config import BatchConfig
from iceaggr.detector import ICE, WATER, Detector, icecube86, parse_geometry
from iceaggr.errors import DetectorError, ShardError
from iceaggr.events.dom_events import DomEvents
from tests.shards.dom_events_builder import random_dom_events

GEOMETRY = "sensor_id,x,y,z,efficiency\n40,1,2,3,1.35\n7,-4,5,-6,1\n1000,7,8,9,0.5\n"


def assert_same_batch(first: EventBatch, second: EventBatch) -> None:
    for field in fields(EventBatch):
        left, right = getattr(first, field.name), getattr(second, field.name)
        if isinstance(left, torch.Tensor):
            assert left.dtype == right.dtype, field.name
            assert torch.equal(left, right), field.name
        else:
            assert left == right, field.name


def collate_slowly(events: DomEvents, rows: list[int], detector: Detector) -> EventBatch:
    """Build a batch without any cap, one event, DOM and pulse at a time."""
    sensors, times, charges, auxiliaries = [], [], [], []
    dom_ends, pulse_ends = [0], [0]
    for row in rows:
        for dom in range(events.event_dom_offsets[row], events.event_dom_offsets[row + 1]):
            sensors.append(detector.sensor_id.tolist().index(events.sensor_id[dom]))
            for pulse in range(events.dom_pulse_offsets[dom], events.dom_pulse_offsets[dom + 1]):
                times.append(float(events.time_ns[pulse]))
                charges.append(float(events.charge_pe[pulse]))
                auxiliaries.append(bool(events.auxiliary[pulse]))
            pulse_ends.append(len(times))
        dom_ends.append(len(sensors))
    angles = torch.tensor(events.azimuth[rows]), torch.tensor(events.zenith[rows])
    return EventBatch(
        event_id=torch.tensor(events.event_id[rows]),
        event_dom_offsets=torch.tensor(dom_ends),
        sensor_idx=torch.tensor(sensors),
        xyz_m=torch.tensor(detector.xyz_m[sensors], dtype=torch.float32),
        efficiency=torch.tensor(detector.efficiency[sensors], dtype=torch.float32),
        dom_pulse_offsets=torch.tensor(pulse_ends),
        time_ns=torch.tensor(times),
        charge_pe=torch.tensor(charges),
        auxiliary=torch.tensor(auxiliaries),
        direction=unit_vector(*angles).float(),
        event_doms_dropped=torch.zeros(len(rows), dtype=torch.int64),
        event_pulses_dropped=torch.zeros(len(rows), dtype=torch.int64),
    )


@given(seed=st.integers(0, 2**31), rows=st.lists(st.integers(0, 9), min_size=1, max_size=12))
@settings(max_examples=30, deadline=None)
def test_collate_equals_reading_pulse_by_pulse(seed: int, rows: list[int]) -> None:
    detector = parse_geometry(GEOMETRY, "test")
    events = random_dom_events(10, seed, median_pulses=15, detector=detector)
    batch = collate(events, np.array(rows), detector, BatchConfig(max_pulses_per_dom=10**6))
    assert_same_batch(batch, collate_slowly(events, rows, detector))


def test_collate_gives_the_types_and_units_of_the_contract() -> None:
    events = random_dom_events(20, seed=1, charge_dtype=np.float64)
    batch = collate(events, np.arange(20), icecube86(), BatchConfig())
    int64 = ("event_id", "event_dom_offsets", "sensor_idx", "dom_pulse_offsets")
    float32 = ("xyz_m", "efficiency", "time_ns", "charge_pe", "direction")
    assert all(getattr(batch, name).dtype == torch.int64 for name in int64)
    assert all(getattr(batch, name).dtype == torch.float32 for name in float32)
    assert batch.auxiliary.dtype == torch.bool
    assert all(getattr(batch, f.name).is_contiguous() for f in fields(batch)[:10])
    norms = torch.linalg.vector_norm(batch.direction, dim=1)
    torch.testing.assert_close(norms, torch.ones(20))


def test_collate_counts_what_the_caps_dropped() -> None:
    events = random_dom_events(30, seed=2, median_pulses=100)
    config = BatchConfig(max_doms_per_event=20, max_pulses_per_dom=1)
    batch = collate(events, np.arange(30), icecube86(), config)
    assert batch.n_doms + batch.n_doms_dropped == events.n_doms
    assert batch.n_pulses + batch.n_pulses_dropped == events.n_pulses
    assert batch.event_dom_offsets.diff().max() == 20
    whole = torch.from_numpy(np.diff(events.event_dom_offsets))
    assert torch.equal(batch.event_dom_offsets.diff() + batch.event_doms_dropped, whole)
    assert int(batch.event_pulses_dropped.sum()) == batch.n_pulses_dropped > 0


def test_collate_has_no_direction_when_events_are_unlabelled() -> None:
    events = random_dom_events(5, seed=3, labelled=False)
    assert collate(events, np.arange(5), icecube86(), BatchConfig()).direction is None


def test_collate_accepts_no_events() -> None:
    batch = collate(random_dom_events(5, 4), np.array([], int), icecube86(), BatchConfig())
    assert batch.n_events == batch.n_doms == batch.n_pulses == 0
    assert batch.event_dom_offsets.tolist() == batch.dom_pulse_offsets.tolist() == [0]


def test_collate_refuses_a_mixture_of_labelled_and_unlabelled_events() -> None:
    events = random_dom_events(5, seed=3)
    azimuth = events.azimuth.copy()
    azimuth[2] = np.nan
    with pytest.raises(ShardError, match="event_id 2"):
        collate(replace(events, azimuth=azimuth), np.arange(5), icecube86(), BatchConfig())


def test_batches_know_the_medium_of_their_detector() -> None:
    events, wet = random_dom_events(20, 1), replace(icecube86(), stated_medium=WATER)
    batches = list(iter_batches(iter([events]), wet, BatchConfig(n_events=4)))
    assert {batch.medium for batch in batches} == {WATER}
    assert join_batches(batches).to("cpu").medium == WATER
    assert collate(events, np.arange(20), icecube86(), BatchConfig()).medium == ICE


def test_collate_refuses_a_sensor_the_detector_does_not_have() -> None:
    detector = parse_geometry(GEOMETRY, "test")
    with pytest.raises(DetectorError, match=r"found sensor_id .* expected one of the 3 sensors"):
        collate(random_dom_events(5, seed=3), np.arange(5), detector, BatchConfig())


@pytest.mark.parametrize("budget", [0, 512, 2000])
def test_iter_batches_gives_all_events_in_order(budget: int) -> None:
    chunks = [random_dom_events(n, seed=n, first_event_id=1000 * n) for n in (70, 1, 64)]
    config = BatchConfig(n_events=32, max_doms_per_batch=budget)
    batches = list(iter_batches(iter(chunks), icecube86(), config))
    assert max(batch.n_events for batch in batches) <= 32
    if budget:
        assert max(batch.n_doms for batch in batches) <= budget
    whole = join_batches(batches)
    parts = [collate(c, np.arange(c.n_events), icecube86(), config) for c in chunks]
    assert_same_batch(whole, join_batches(parts))


def test_batch_ends_give_a_giant_event_a_batch_of_its_own() -> None:
    config = BatchConfig(n_events=4, max_doms_per_event=100, max_doms_per_batch=100)
    n_doms = np.array([10, 10, 100, 10, 30, 30, 30, 30])
    assert batch_ends(n_doms, config).tolist() == [2, 3, 7, 8]


@pytest.mark.parametrize(("n_events", "ends"), [(0, []), (3, [3]), (4, [4]), (9, [4, 8, 9])])
def test_batch_ends_count_events_when_there_is_no_budget(n_events: int, ends: list[int]) -> None:
    assert batch_ends(np.ones(n_events, int), BatchConfig(n_events=4)).tolist() == ends


def test_select_events_copies_events_in_the_order_asked_for() -> None:
    events = random_dom_events(6, seed=5)
    twice = select_events(select_events(events, np.array([5, 0, 3])), np.array([2, 1]))
    once = select_events(events, np.array([3, 0]))
    for field in fields(DomEvents):
        np.testing.assert_array_equal(getattr(twice, field.name), getattr(once, field.name))
