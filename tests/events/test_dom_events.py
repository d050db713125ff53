import itertools
import platform
import subprocess
import sys
from dataclasses import fields

import numpy as np
import pytest

from iceaggr.events.dom_events import PulseColumns, concatenate, take_range
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


# counts the pages that the kernel hands out while 20 arrays of 1 MiB come and go
_COUNT_FAULTS = """
import resource, sys
import numpy as np
from iceaggr.events.dom_events import keep_freed_memory
if sys.argv[1] == "kept":
    keep_freed_memory()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(50):
    arrays = [np.ones(1 << 20, np.uint8) for _ in range(20)]
    del arrays
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def test_pulse_columns_give_what_was_added_in_order():
    events = random_dom_events(60, 0)
    columns = PulseColumns()
    for start, stop in [(0, 7), (7, 7), (7, 50), (50, 60)]:
        columns.add(take_range(events, start, stop))
    for name, column in columns.filled().items():
        np.testing.assert_array_equal(column, getattr(events, name))
        assert column.dtype == getattr(events, name).dtype, name


@pytest.mark.parametrize("charge_dtype", [np.float32, np.float64])
def test_pulse_columns_use_their_memory_again(charge_dtype):
    events = random_dom_events(60, 0, charge_dtype=charge_dtype)
    columns = PulseColumns()
    columns.add(events)
    before = columns.filled()
    columns.clear()
    columns.add(take_range(events, 20, 60))
    for name, column in columns.filled().items():
        assert np.shares_memory(column, before[name]), name
        np.testing.assert_array_equal(column, getattr(take_range(events, 20, 60), name))


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc has these options")
def test_keep_freed_memory_spares_most_fresh_pages():
    faults = {
        mode: int(subprocess.check_output([sys.executable, "-c", _COUNT_FAULTS, mode]))
        for mode in ("plain", "kept")
    }
    assert faults["kept"] < 0.2 * faults["plain"]
