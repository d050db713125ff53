import itertools
from dataclasses import fields

import numpy as np

from iceaggr.events.joining import concatenate, take_range
from tests.shards.dom_events_builder import random_dom_events


def assert_same(found, expected):
    for field in fields(expected):
        left, right = getattr(found, field.name), getattr(expected, field.name)
        np.testing.assert_array_equal(left, right)
        assert left.dtype == right.dtype, field.name


def test_concatenate_undoes_take_range():
    events = random_dom_events(50, seed=0)
    cuts = [0, 7, 7, 30, 50]
    parts = [take_range(events, a, b) for a, b in itertools.pairwise(cuts)]
    assert [part.n_events for part in parts] == [7, 0, 23, 20]
    assert_same(concatenate(parts), events)
    assert_same(take_range(take_range(events, 10, 40), 5, 8), take_range(events, 15, 18))


def test_take_range_does_not_copy_pulses():
    events = random_dom_events(50, seed=0)
    assert np.shares_memory(take_range(events, 10, 20).time_ns, events.time_ns)
